"""Names that Kubernetes, Google Cloud, Slurm and shells take."""

from collections.abc import Sequence
import os
import re

from rankax.config.base import ConfigError

LABEL_LENGTH = 63  # of an RFC 1123 label


def check_label(value: str, option: str, *, max_length: int = LABEL_LENGTH) -> str:
    """Returns a name if it is an RFC 1123 label: of a host, a pod, a TPU VM.

    Raises:
        ConfigError: it is not; the message proposes one that is.
    """
    if len(value) <= max_length and re.fullmatch(
        r"[a-z]([a-z0-9-]*[a-z0-9])?", value, flags=re.ASCII
    ):
        return value
    near = re.sub(r"[^a-z0-9]+", "-", value.lower()).lstrip("-0123456789")
    near = near[:max_length].rstrip("-") or "run"
    raise ConfigError(
        f"{option}={value!r} must be lower-case letters, digits and '-', start with a "
        f"letter, end with a letter or digit, and have {max_length} characters at most "
        f"(RFC 1123); for example {near!r}"
    )


def check_plain(value: str, option: str) -> str:
    """Returns a value without white space, quotes or control characters.

    Raises:
        ConfigError: it has some, or is empty.
    """
    if re.fullmatch(r"[^\s'\"\\`$;&|<>()\x00-\x1f\x7f]+", value):
        return value
    raise ConfigError(
        f"{option}={value!r} must not be empty, nor have white space, quotes or "
        "characters that shells read ($ ; & | < > ( ) `)"
    )


def check_line(value: str, option: str) -> str:
    """Returns a value that stands in one line of a file.

    Raises:
        ConfigError: it has more lines.
    """
    if value.isprintable():
        return value
    raise ConfigError(f"{option}={value!r} must be one line of printable characters")


def is_store(path: str) -> bool:
    """Tells whether a path is in an object store."""
    return "://" in path


def is_under(path: str, folder: str) -> bool:
    """Tells whether an absolute path is inside of a folder; nothing is inside of ""."""
    if not folder or not path.startswith("/"):
        return False
    return os.path.normpath(path).startswith(os.path.normpath(folder) + "/")


def value_of(option: str, words: Sequence[str]) -> str:
    """Returns the last value of an option in a command, "" if it is not there.

    Args:
        option: "--workdir".
        words: of the command; "--workdir=FOLDER" and "--workdir FOLDER" are the same.
    """
    found = ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == option:
            found = following
        elif word.startswith(option + "="):
            found = word.partition("=")[2]
    return found
