"""Flat dataclasses from parsed JSON, every key and type checked."""

import dataclasses
import types
from typing import Any, get_args, get_origin

from rankax.config.base import suggest
from rankax.data.errors import DataError


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Returns a JSON object, or raises with `where` in front."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object, found {value!r:.80}")
    return value


def entries(value: Any, where: str) -> list[Any]:
    """Returns a JSON list, or raises with `where` in front."""
    if not isinstance(value, list):
        raise DataError(f"{where}: expected a list, found {value!r:.80}")
    return value


def build(cls: type, entry: Any, where: str) -> Any:
    """Calls a flat dataclass with a JSON object after checking keys and types.

    Raises:
        DataError: an unknown or missing key, or a value of another type.
    """
    entry = mapping(entry, where)
    known = {field.name: field for field in dataclasses.fields(cls)}
    for key, value in entry.items():
        if key not in known:
            raise DataError(
                f"{where}: unknown key {key!r}; {suggest(key, tuple(known))}"
            )
        expected = known[key].type
        if not fits(value, expected):
            name = getattr(expected, "__name__", expected)
            raise DataError(f"{where}: {key} must be {name}, found {value!r:.80}")
    missing = [
        name
        for name, field in known.items()
        if name not in entry
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise DataError(f"{where}: key {missing[0]!r} is missing")
    return cls(**entry)


def fits(value: Any, expected: Any) -> bool:
    """Whether a JSON value has the annotated type.

    An integer that a float can hold is one too, and half a character is no text.
    """
    if isinstance(expected, types.UnionType):
        return any(fits(value, kind) for kind in get_args(expected))
    if expected == tuple[float, ...]:
        return type(value) is tuple and all(fits(x, float) for x in value)
    if expected is float:
        is_in_range = type(value) is int and abs(value) < 2**1023
        return is_in_range or type(value) is float
    if expected is str and type(value) is str:
        return value.encode(errors="ignore").decode() == value
    if get_origin(expected) is dict:
        kind, item_kind = get_args(expected)
        return type(value) is dict and all(
            fits(key, kind) and fits(item, item_kind) for key, item in value.items()
        )
    return expected not in (str, int, bool, types.NoneType) or type(value) is expected
