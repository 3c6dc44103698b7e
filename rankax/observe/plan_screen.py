"""A plan (`rankax.plan`) as one screen of text."""

from collections.abc import Iterator, Mapping
from typing import Any

# Longer lists end with a line for the rest.
_MOST_TABLES, _MOST_MODULES = 12, 6
# Of a GPU's memory, that jax lets programs have if nobody says otherwise.
_DEFAULT_FRACTION = 0.75


def render(plan: Mapping[str, Any]) -> str:
    """Returns the text of a plan, the result of `rankax.plan.plan`."""
    parts = (_head, _sizes, _tables, _modules, _memory, _wire, _speed, _verdict)
    return "\n".join(line for part in parts for line in part(plan))


def size(num_bytes: float) -> str:
    """Writes bytes with three digits: "63.1 GB"."""
    return _scaled(num_bytes, "B")


def _scaled(number: float, unit: str = "") -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor * 0.9995:
            return f"{_digits(number / factor)} {prefix}{unit}".rstrip()
    return f"{number:.0f} {unit}".rstrip()


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def _digits(number: float) -> str:
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f}"


def _head(plan: Mapping[str, Any]) -> Iterator[str]:
    count, chips, devices = plan["parameters"], plan["chips"], plan["devices"]
    of = f" ({devices:,} devices)" if devices != chips else ""
    machine = f"{plan['topology']}: {_count(chips, 'chip')}{of}"
    yield (
        f"{plan['backbone']} on {plan['data_set']}: {count['tables']:,} table and "
        f"{count['dense']:,} dense parameters, batches of {plan['batch_size']:,}"
    )
    seconds = plan["compile_seconds"]
    took = f" in {seconds:.0f} s" if seconds else ""
    yield f"{machine}; {plan['source']}{took}"
    if plan["refusal"]:
        yield f"the compiler says: {plan['refusal'][:600]}"


def _sizes(plan: Mapping[str, Any]) -> Iterator[str]:
    if "tried" not in plan:
        return
    yield ""
    yield f"{'size':16} {'chips':>6} {'bytes per chip':>15} {'of':>9}"
    for row in plan["tried"]:
        if "problem" in row:
            yield f"{row['topology']:16} {row['problem']}"
            continue
        held = row.get("compiled_bytes_per_chip", row["forecast_bytes_per_chip"])
        how = "compiled" if "compiled_bytes_per_chip" in row else "by formula"
        verdict = "fits" if row["is_fitting"] else "too small"
        room = row["memory_bytes_per_chip"]
        yield (
            f"{row['topology']:16} {row['chips']:6,} {size(held):>15} "
            f"{size(room):>9}  {verdict}, {how}"
        )


def _tables(plan: Mapping[str, Any]) -> Iterator[str]:
    rows = sorted(plan["tables"], key=lambda row: -row["bytes_per_chip"])
    yield ""
    yield (
        f"{'table':20} {'rows':>13} {'dim':>5}  {'dtype':9} {'optimizer':16} "
        f"{'per chip':>9}  placed"
    )
    for row in rows[:_MOST_TABLES]:
        yield (
            f"{_name(row):20} {row['num_rows']:13,} {row['dim']:5}  {row['dtype']:9} "
            f"{row['optimizer']:16} {size(row['bytes_per_chip']):>9}  "
            f"{row['placement']}"
        )
    rest = rows[_MOST_TABLES:]
    if rest:
        total = sum(row["bytes_per_chip"] for row in rest)
        num_rows = sum(row["num_rows"] for row in rest)
        yield f"{f'{len(rest)} smaller ones':20} {num_rows:13,} {size(total):>43}"


def _name(row: Mapping[str, Any]) -> str:
    return row["name"] if row["role"] == "embedding" else f"{row['role']}/{row['name']}"


def _modules(plan: Mapping[str, Any]) -> Iterator[str]:
    rows = sorted(plan["modules"], key=lambda row: -row["bytes_per_chip"])
    yield ""
    yield f"{'module':34} {'parameters':>13} {'per chip':>26}  with moments"
    for row in rows[:_MOST_MODULES]:
        yield (
            f"{row['name']:34} {row['num_parameters']:13,} "
            f"{size(row['bytes_per_chip']):>26}"
        )
    rest = rows[_MOST_MODULES:]
    if rest:
        held = sum(row["bytes_per_chip"] for row in rest)
        count = sum(row["num_parameters"] for row in rest)
        yield f"{f'{len(rest)} smaller ones':34} {count:13,} {size(held):>26}"


def _memory(plan: Mapping[str, Any]) -> Iterator[str]:
    memory, room = plan["memory"], plan["memory_bytes_per_chip"]
    names = ("tables", "dense", "batch", "temporaries", "padding", "code")
    parts = ", ".join(f"{name} {size(memory[name])}" for name in names)
    yield ""
    yield f"memory of a chip: {size(memory['total'])} of {size(room)}: {parts}"
    yield (
        f"  by formula, before a compiler fuses: the backward pass keeps "
        f"{size(memory['activations'])} of activations; the exchange is "
        f"{plan['exchange']}"
    )
    yield f"checkpoint: {size(plan['checkpoint_bytes'])}{_by_host(plan)}"


def _by_host(plan: Mapping[str, Any]) -> str:
    hosts = plan["input"]["hosts"]
    share = size(plan["checkpoint_bytes"] / hosts)
    return f", {share} from each of {hosts} hosts" if hosts > 1 else ""


def _wire(plan: Mapping[str, Any]) -> Iterator[str]:
    found = ", ".join(
        f"{row['count']} {row['kind']} {size(row['sent_bytes'])}"
        if row["count"]
        else f"{row['kind']} {size(row['sent_bytes'])}"
        for row in plan["collectives"]
        if row["sent_bytes"]
    )
    sent = size(plan["wire_bytes_per_step"])
    yield f"wire: each device sends {sent} a step{': ' if found else ''}{found}"


def _speed(plan: Mapping[str, Any]) -> Iterator[str]:
    flops = plan["flops_per_example"]
    if flops is None:
        yield "arithmetic: unknown, for a kernel of the model cannot be counted"
    else:
        yield (
            f"arithmetic: {_scaled(flops, 'FLOP')} an example forward, "
            f"{_scaled(3 * flops, 'FLOP')} in training; "
            f"{size(plan['bytes_per_example'])} through memory: "
            f"{plan['arithmetic_intensity']:.1f} FLOP a byte"
        )
    found = plan["forecast"]
    if found is None:
        yield "forecast: none, no data sheet tells what these devices can do"
        yield f"input: {size(plan['input']['bytes_per_example'])} an example to devices"
        return
    if not plan["is_fitting"]:
        return
    least, most = found["least_examples_per_second"], found["most_examples_per_second"]
    parts = ", ".join(f"{k} {_time(v)}" for k, v in found["seconds"].items())
    yield (
        f"forecast: {_scaled(least)} to {_scaled(most)} examples/s at most, bound by "
        f"{found['bound']} (a step: {parts})"
    )
    fed = plan["input"]
    rate = _scaled(fed["examples_per_second_per_host"])
    yield (
        f"input: {_count(fed['hosts'], 'host')}, each {rate} examples/s and "
        f"{size(fed['bytes_per_second_per_host'])}/s to its chips to keep up "
        f"({size(fed['bytes_per_example'])} an example)"
    )
    low, high = found["chip_hours_per_billion"]
    text = f"cost: {_range(low, high)} chip-hours per billion examples"
    if "price_per_billion" in found:
        low, high = found["price_per_billion"]
        price = found["price_per_chip_hour"]
        text += f", {_range(low, high)} in money at {price:g} an hour"
    yield text
    rows = plan["train_rows"]
    if rows:
        took = f"{_long(rows / most)} to {_long(rows / least)} at least"
        yield f"epoch: {rows:,} examples, {took}"


def _range(low: float, high: float) -> str:
    """Writes two amounts: whole cents, or two digits of what is less than one."""
    return " to ".join(f"{x:,.2f}" if x >= 1 else f"{x:.2g}" for x in (low, high))


def _long(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs" if seconds < 1e-2 else f"{seconds * 1e3:,.0f} ms"


def _verdict(plan: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    memory, room = plan["memory"], plan["memory_bytes_per_chip"]
    if plan["is_fitting"]:
        whose = "this machine's" if plan["device_kind"] == "cpu" else "a chip's"
        used = f"{memory['total'] / room:.1%} of {whose} memory"
        yield f"it fits {plan['topology']}: it takes {used}"
        is_gpu = plan["device_kind"].startswith("NVIDIA")
        if is_gpu and memory["total"] > _DEFAULT_FRACTION * room:
            yield (
                f"jax takes {_DEFAULT_FRACTION:.0%} of a GPU; set "
                "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 in the environment of the run"
            )
        return
    over = memory["total"] - room
    lacks = f": {size(over)} too much on each chip" if over > 0 else ""
    change = "; what to change:" if plan["advice"] else ""
    yield f"it does not fit {plan['topology']}{lacks}{change}"
    for advice in plan["advice"]:
        yield f"  - {advice}"
