"""The folder of one run: its configuration, its result, and whose it is."""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import math
import os
import pathlib
import socket
from typing import Any

from rankax.config.base import ConfigError, config_hash, difference
from rankax.config.experiment import NOT_OF_THE_RUN, ExperimentConfig

CONFIG, RESULT, CHECKPOINTS = "config.json", "result.json", "checkpoints"
TABLES = "tables.txt"  # where every table was placed
LOCK = "lock"  # locked, not only there, while a run trains


def claim(workdir: str, config: ExperimentConfig) -> pathlib.Path:
    """Creates the run folder, or accepts the one that this configuration started.

    A finished run keeps the configuration that its result was made with.

    Raises:
        ConfigError: the folder belongs to another configuration.
    """
    folder = pathlib.Path(workdir)
    path = folder / CONFIG
    if path.exists():
        _check_same(path, config)
        if (folder / RESULT).exists():
            return folder
    elif folder.exists() and any(folder.iterdir()):
        raise ConfigError(
            f"--workdir={folder} holds files but no {CONFIG}, so it is not a run "
            "folder; name a new or empty folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config)
    return folder


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other runs off the folder; a process that ends, however, lets it go.

    Raises:
        ConfigError: a run of another process, or of this one, is at work there.
    """
    with open(folder / LOCK, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConfigError(
                f"--workdir={folder} is in use by {file.read() or 'another process'}; "
                "wait for its end, or name another folder"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def write_config(folder: pathlib.Path, config: ExperimentConfig) -> None:
    """Writes `config.json`."""
    tree = {"hash": hash_of(config), "config": config.to_dict()}
    write_json(folder / CONFIG, tree)


def find(workdir: str, config: ExperimentConfig) -> pathlib.Path:
    """Returns the folder of an existing run of this configuration.

    Raises:
        ConfigError: no run there, or one of another configuration.
    """
    path = pathlib.Path(workdir) / CONFIG
    if not path.exists():
        raise ConfigError(
            f"--workdir={workdir} holds no run ({CONFIG} is missing); train one with "
            "--mode=train"
        )
    _check_same(path, config)
    return path.parent


def not_applied(folder: pathlib.Path, config: ExperimentConfig) -> list[str]:
    """Returns what differs in `eval` between a finished run and this configuration."""
    saved = json.loads((folder / CONFIG).read_text())["config"]
    changes = difference(saved, config.to_dict())
    return [change for change in changes if change.startswith("eval.")]


def hash_of(config: ExperimentConfig) -> str:
    """Returns the hash of what decides a run's result."""
    return config_hash(config, ignore=NOT_OF_THE_RUN)


def read_result(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns `result.json` of a finished run, else None."""
    path = folder / RESULT
    return json.loads(path.read_text()) if path.exists() else None


def _check_same(path: pathlib.Path, config: ExperimentConfig) -> None:
    saved, tree = json.loads(path.read_text()), config.to_dict()
    # With one hash an option that only one of two versions has is at its default; what
    # the hash does not see is a default that the other version has changed.
    changes = difference(
        saved["config"],
        tree,
        ignore=NOT_OF_THE_RUN,
        of_both=saved["hash"] == hash_of(config),
    )
    if not changes:
        return
    raise ConfigError(
        f"--workdir={path.parent} belongs to a run of another configuration "
        f"({saved['hash']}, now {hash_of(config)}):\n"
        + "\n".join(f"  - {change}" for change in changes)
        + "\nname another --workdir, or go back to that configuration"
    )


def write_json(path: pathlib.Path, tree: dict[str, Any]) -> None:
    """Writes a JSON file, whole or not at all; numbers that are not finite are null."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(_finite(tree), indent=1, allow_nan=False) + "\n")
    os.replace(draft, path)


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
