"""What machines get of a checkout: its HEAD, by `git archive`."""

import difflib
import os
import pathlib
import subprocess

from rankax.config.base import ConfigError

ROOT = pathlib.Path(__file__).resolve().parents[1]
_READ_BY_A_RUN = ("experiments", "rankax", "scaling", "pyproject.toml")


def split(config: str) -> tuple[str, str]:
    """Returns the file and the argument, with its colon, of a --config."""
    path, colon, argument = config.partition(":")
    return path, colon + argument


def check_there(config: str) -> None:
    """Checks that the file of a --config is there.

    Raises:
        ConfigError: it is not; the message names the file that has nearly its name.
    """
    path, argument = split(config)
    if pathlib.Path(path).is_file():
        return
    known = [str(file) for file in pathlib.Path("experiments").rglob("*.py")]
    near = difflib.get_close_matches(path, known, n=1)
    advice = f"did you mean {near[0]}{argument}?" if near else "see experiments/"
    raise ConfigError(f"--config={config}: no such file {path}; {advice}")


def check_shipped(config: str) -> list[str]:
    """Returns warnings about a configuration that machines get from HEAD.

    Args:
        config: FILE.py or FILE.py:arg, seen from here.

    Raises:
        ConfigError: they will not have the file, or not under this name.
    """
    path, argument = split(config)
    file = pathlib.Path(path).resolve()
    if not file.is_relative_to(ROOT):
        raise ConfigError(
            f"--config={config} is outside of the checkout {ROOT}, whose HEAD is all "
            f"that machines get; put it under experiments/ and commit it"
        )
    name = file.relative_to(ROOT).as_posix()
    if os.path.normpath(path) != name:
        raise ConfigError(
            f"--config={config}: machines start in the root of the checkout, where the "
            f"file is {name}; go to {ROOT} and write --config={name}{argument}"
        )
    if _git("rev-parse", "HEAD") is None:
        return [
            f"git knows no commit of {ROOT}, so nobody has checked that machines get "
            f"--config={config}; they get what `git archive HEAD` holds"
        ]
    if _git("cat-file", "-e", f"HEAD:./{name}") is None:
        raise ConfigError(
            f"--config={config} is not committed, and machines get HEAD of the "
            f"checkout; put it under experiments/, then: git add {name} && git commit"
        )
    read = ("--", *_READ_BY_A_RUN, name)
    told = _git("diff", "--name-only", "--relative", "HEAD", *read) or ""
    changed = told.splitlines()
    if not changed:
        return []
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return [
        f"changes of {', '.join(changed[:3])}{more} are not committed, and machines "
        "get HEAD of the checkout; commit them if the run is to have them"
    ]


def _git(*words: str) -> str | None:
    """Returns what git says in the checkout, None if it fails or is not there."""
    command = ["git", "-C", str(ROOT), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return None if done.returncode else done.stdout
