"""What the devices of a compiled program send each other, read from its text.

The bytes are those that one device sends when the program runs once, by ring:

    all-to-all           (n − 1) / n · result
    all-gather           (n − 1) / n · result
    reduce-scatter       (n − 1) · result
    all-reduce           2 · (n − 1) / n · result
    collective-permute   result

The body of a loop counts as often as it runs where the program says so: by the
compiler's note, or, as libtpu writes none, by a condition i < 23, for the loops of jax
count from 0. Other loops count once: the engine's loop over rounds runs once unless a
batch does not fit its exchange.
"""

from collections.abc import Iterator
import dataclasses
import math
import re

# By ring: what one of n devices sends per byte of the operation's result.
SENT_PER_BYTE = {
    "all-to-all": lambda n: (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "collective-permute": lambda n: 1,
}
_COLLECTIVE = re.compile(
    rf" = (?P<result>.*?)\s(?P<kind>{'|'.join(SENT_PER_BYTE)})(?P<start>-start)?\("
    r"(?P<rest>.*)"
)
_SHAPE = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) .*-> .*\{$")
_CALLED = re.compile(r"\b(?P<how>calls|body|condition|to_apply)=%?(?P<name>[\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NUMBER = re.compile(r"%?(?P<name>[\w.-]+) = s32\[\]\S* constant\((?P<value>\d+)\)")
_BELOW = re.compile(r" ROOT .* compare\(%?[\w.-]+, %?([\w.-]+)\), direction=LT")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """One operation between devices.

    Attributes:
        kind: "all-to-all", "all-gather", "reduce-scatter", "all-reduce" or
            "collective-permute".
        num_devices: n, that take part.
        result: its type, such as "f32[16,176,16]", without the layout.
        times: that it runs.
        sent_bytes: by one device, all times.
        op_name: where the program has it from, "" = unknown.
    """

    kind: str
    num_devices: int
    result: str
    times: int
    sent_bytes: float
    op_name: str = ""


def read(hlo_text: str, num_devices: int) -> tuple[Collective, ...]:
    """Lists the collectives of a compiled program, in its order.

    Args:
        hlo_text: `compiled.as_text()`, of any platform.
        num_devices: N, the group of a collective that names none.
    """
    return tuple(_read(hlo_text, num_devices))


def sent_bytes(hlo_text: str, num_devices: int) -> int:
    """Returns the bytes that each device sends when the program runs once."""
    return round(sum(each.sent_bytes for each in _read(hlo_text, num_devices)))


def _read(hlo_text: str, num_devices: int) -> Iterator[Collective]:
    runs = _runs(hlo_text)
    times = 1
    for line in hlo_text.splitlines():
        if header := _COMPUTATION.match(line):
            times = runs[header["name"]]
        if not (found := _COLLECTIVE.search(line)):
            continue
        kind, result = found["kind"], found["result"]
        if found["start"] and kind != "all-reduce":
            # (operands, results, ...), but those of an all-reduce are results alone
            result = _parts(result)[1]
        size = _group_size(found["rest"], num_devices)
        name = _OP_NAME.search(found["rest"])
        yield Collective(
            kind=kind,
            num_devices=size,
            result=", ".join(shape.group() for shape in _SHAPE.finditer(result)),
            times=times,
            sent_bytes=times * SENT_PER_BYTE[kind](size) * _shape_bytes(result),
            op_name=name[1] if name else "",
        )


def _runs(hlo_text: str) -> dict[str, int]:
    """Computation -> how often it runs; callers stand below what they call."""
    runs: dict[str, int] = {}
    calls: list[tuple[str, str, int]] = []  # caller, called, times
    numbers: dict[str, int] = {}
    limits: dict[str, int] = {}  # condition i < n -> n
    name = ""
    for line in hlo_text.splitlines():
        if header := _COMPUTATION.match(line):
            name = header["name"]
            runs[name] = int(bool(header["entry"]))
        elif number := _NUMBER.search(line):
            numbers[number["name"]] = int(number["value"])
        elif (below := _BELOW.search(line)) and below[1] in numbers:
            limits[name] = numbers[below[1]]
        elif name:
            called = {found["how"]: found["name"] for found in _CALLED.finditer(line)}
            known = _TRIPS.search(line)
            trips = (
                int(known[1]) if known else limits.get(called.get("condition", ""), 1)
            )
            calls += [
                (name, other, trips if how == "body" else 1)
                for how, other in called.items()
            ]
    for caller, called, times in reversed(calls):
        runs[called] += times * runs[caller]
    # Branches are not among the calls.
    return {name: max(count, 1) for name, count in runs.items()}


def _parts(text: str) -> list[str]:
    """Splits "(a, (b, c))" at its outermost commas."""
    parts, depth = [""], 0
    for letter in text.strip()[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _group_size(attributes: str, num_devices: int) -> int:
    """Devices that take part, in the three ways in which XLA writes it."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", attributes):
        sizes = dict(re.findall(r"('\w+')=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'\w+'", found[2]))
    return num_devices


def _shape_bytes(text: str) -> float:
    """Bytes of all arrays in "f32[8,16]{1,0}" or "(s32[4], pred[2,2])"."""
    total = 0.0
    for bits, dims in _SHAPE.findall(text):
        sizes = [int(size) for size in dims.split(",") if size]
        total += int(bits or 8) / 8 * math.prod(sizes)
    return total
