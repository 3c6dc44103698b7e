"""What the options of a section may be: by type and default, or as `option` says.

int    a count or a width: at least 1, or 0 where that is the default (0 = off)
float  finite and at least 0; of a name that starts with "dropout" also below 1
tuple  as many of these as one likes
"""

from collections.abc import Iterator, Sequence
import dataclasses
import math
from typing import Any

from rankax.config.base import Config, suggest


def option(
    default: Any,
    *,
    least: int | None = None,
    choices: Sequence[Any] = (),
    is_needed: bool = False,
    is_positive: bool = False,
) -> Any:
    """Declares an option of a `RangedConfig` whose range the module's rules miss.

    Args:
        default: its value if it is not set.
        least: smallest integer, or smallest element of a tuple of integers.
        choices: all values that it may have beside the default.
        is_needed: the tuple must not be empty.
        is_positive: the number must be above 0.
    """
    ranges = {
        "least": least,
        "choices": tuple(choices),
        "is_needed": is_needed,
        "is_positive": is_positive,
    }
    return dataclasses.field(default=default, metadata=ranges)


def unused(config: Config, names: Sequence[str], why: str) -> list[str]:
    """Lists the options among `names` that were set although nothing reads them.

    Args:
        config: any section.
        names: options that have no use beside the others' values.
        why: what they belong to, and what to set for it; follows "name = value".
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}  # pyright: ignore[reportArgumentType]
    return [
        f"{name} = {value!r} {why}, or leave it at {defaults[name]!r}"
        for name, value in config.options()
        if name in names and value != defaults[name]
    ]


class RangedConfig(Config):
    """A section whose options have the ranges of this module."""

    __slots__ = ()

    def problems(self) -> list[str]:
        """Lists rules between options that are broken; each is in its own range.

        A problem starts with the name of an option.
        """
        return []

    def broken_rules(self) -> list[str]:
        """Lists the options out of range, or if there is none the `problems`."""
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        found = [text for field in fields for text in self._out_of_range(field)]
        return found or self.problems()

    def _out_of_range(self, field: dataclasses.Field) -> Iterator[str]:
        name, value, ranges = field.name, getattr(self, field.name), field.metadata
        choices = ranges.get("choices")
        if choices:
            if value not in choices and value != field.default:
                advice = suggest(str(value), [str(choice) for choice in choices])
                yield f"{name} = {value!r} is unknown; {advice}"
            return
        if ranges.get("is_needed") and not value:
            yield f"{name} = () must not be empty; {field.default} is the default"
        if ranges.get("is_positive") and value == 0:
            yield f"{name} = {value} must be above 0; {field.default} is the default"
        least = ranges.get("least")
        if least is None:
            least = 0 if field.default == 0 else 1
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) is int and number < least:
                yield f"{name} = {value} must be at least {least}"
                return
            if type(number) is float:
                is_rate = name.startswith("dropout")
                if not 0 <= number < (1 if is_rate else math.inf):
                    rest = "and below 1" if is_rate else "and finite"
                    yield f"{name} = {value} must be at least 0 {rest}"
                    return
