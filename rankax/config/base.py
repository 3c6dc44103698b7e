"""Typed configuration sections that refuse typos, wrong types and late changes.

`ml_collections.config_flags` reads and overrides any tree of dataclasses, but lets a
config *file* assign a value of the wrong type and names no alternatives for a typo.
`Config` closes both holes; `suggest` writes the "did you mean".
"""

from collections.abc import Iterator, Sequence
import dataclasses
import difflib
import functools
import hashlib
import json
import types
from typing import Any, get_args, get_origin, get_type_hints


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what to change."""


def suggest(name: str, known: Sequence[str]) -> str:
    """Returns "; did you mean 'x'?" or the list of what exists."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(sorted(known))}"


class Config:
    """Base of all configuration sections.

    Subclasses are `@dataclasses.dataclass(slots=True, kw_only=True)` and hold numbers,
    strings, tuples of those, and other configs. Every assignment is checked against
    the annotation; after `freeze` every assignment is an error. "Off" is 0 or "".
    """

    __slots__ = ("_frozen",)

    def __setattr__(self, name: str, value: Any) -> None:
        hints = _hints(type(self))
        where = type(self).__name__
        if name not in hints:
            raise ConfigError(
                f"{where} has no option {name!r}; {suggest(name, tuple(hints))}"
            )
        if getattr(self, "_frozen", False):
            raise ConfigError(
                f"{where}.{name} = {value!r}: the configuration is frozen once the "
                "program has started; set it in the config file or by flag"
            )
        object.__setattr__(self, name, _checked(value, hints[name], f"{where}.{name}"))

    def freeze(self) -> None:
        """Forbids further assignment, here and in all nested sections."""
        for _, value in self.options():
            for child in value if isinstance(value, tuple) else (value,):
                if isinstance(child, Config):
                    child.freeze()
        object.__setattr__(self, "_frozen", True)

    def options(self) -> Iterator[tuple[str, Any]]:
        """Yields (name, value) of every option of this section."""
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            yield field.name, getattr(self, field.name)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values; a chosen config class stands under "type"."""
        result: dict[str, Any] = {"type": type(self).__name__}
        for name, value in self.options():
            result[name] = _plain(value)
        return result


def config_hash(config: Config, *, ignore: Sequence[str] = ()) -> str:
    """Returns 12 hexadecimal digits that change with any option's value.

    They are made of the options that are not at their defaults, so that runs keep their
    hash when a later version has more options.

    Args:
        config: any section.
        ignore: options, or whole sections, that do not count: "section.option".
    """
    tree = {"type": type(config).__name__, **_changed(config)}
    text = json.dumps(_flat(tree, ignore), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _changed(config: Config) -> dict[str, Any]:
    """Returns `to_dict` without the options, and sections, that are at their defaults.

    A section has a "type" where it is not of the default's class.
    """
    tree: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # pyright: ignore[reportArgumentType]
        value, default = getattr(config, field.name), field.default
        if default is dataclasses.MISSING:
            assert field.default_factory is not dataclasses.MISSING
            default = field.default_factory()
        if isinstance(value, Config):
            own = _changed(value)
            if type(value) is not type(default):
                own["type"] = type(value).__name__
            if own:
                tree[field.name] = own
        elif value != default:
            tree[field.name] = _plain(value)
    return tree


def difference(
    old: dict[str, Any],
    new: dict[str, Any],
    *,
    ignore: Sequence[str] = (),
    of_both: bool = False,
) -> list[str]:
    """Lists "section.option: old -> new" for two results of `Config.to_dict`.

    Args:
        old: one of them.
        new: the other.
        ignore: as `config_hash` has it.
        of_both: leave out options that only one of the two has.
    """
    left, right = _flat(old, ignore), _flat(new, ignore)
    keys = left.keys() & right.keys() if of_both else left.keys() | right.keys()
    return [
        f"{key}: {left.get(key, 'absent')!r} -> {right.get(key, 'absent')!r}"
        for key in sorted(keys)
        if left.get(key, "absent") != right.get(key, "absent")
    ]


def completed(tree: Any) -> Any:
    """Returns a `Config.to_dict` with the options that later versions have added.

    They stand at their defaults, as `config_hash` takes them.
    """
    if isinstance(tree, list):
        return [completed(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    own = {name: completed(value) for name, value in tree.items()}
    return defaults_of(tree.get("type", "")) | own


def defaults_of(type_name: str) -> dict[str, Any]:
    """Returns `to_dict` of the defaults of a class, {} if nothing has imported it."""
    waiting = [Config]
    while waiting:
        cls = waiting.pop()
        if cls.__name__ == type_name:
            return cls().to_dict()
        waiting += cls.__subclasses__()
    return {}


def _flat(tree: Any, ignore: Sequence[str] = (), prefix: str = "") -> dict[str, Any]:
    """Nested dicts, and lists of dicts, as one dict of dotted names."""
    if prefix in ignore:
        return {}
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list) and any(isinstance(v, dict) for v in tree):
        items = enumerate(tree)
    else:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flat(value, ignore, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _checked(value: Any, hint: Any, where: str) -> Any:
    """Returns the value, an int widened to float and a list to tuple, or raises."""
    if get_origin(hint) is tuple:
        if isinstance(value, list):
            value = tuple(value)
        if not isinstance(value, tuple):
            raise ConfigError(f"{where}: expected a tuple, found {value!r}")
        element = get_args(hint)[0]  # all our tuples are tuple[X, ...]
        return tuple(_checked(v, element, f"{where}[{i}]") for i, v in enumerate(value))
    assert isinstance(hint, type) and not isinstance(hint, types.UnionType), hint
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (isinstance(value, bool) and hint is not bool) or not isinstance(value, hint):
        raise ConfigError(
            f"{where}: expected {hint.__name__}, found {type(value).__name__} {value!r}"
        )
    return value
