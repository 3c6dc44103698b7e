"""The folder of one run: its configuration, its result, and whose it is."""

from collections.abc import Callable, Iterator
import contextlib
import fcntl
import json
import math
import os
import socket
from typing import Any

from etils import epath

from rankax.config.base import ConfigError, config_hash, difference
from rankax.config.experiment import NOT_OF_THE_RUN, ExperimentConfig
from rankax.observe import stores
from rankax.training.store_lock import StoreLock

CONFIG, RESULT, CHECKPOINTS = "config.json", "result.json", "checkpoints"
TABLES = "tables.txt"  # where every table was placed
QUARANTINE = "quarantine.json"  # what could not be read when the run began
BAD_STEP = "bad_step.json"  # whose loss or gradient was not finite
LOCK = "lock"  # locked, not only there, while a run trains
TRAIN, PROGRESSIVE = "train", "progressive"  # what a folder is trained by

# What a run that was killed before it had a configuration may leave.
_BEGUN = {CONFIG + stores.DRAFT, LOCK}


class RunFolderError(Exception):
    """A run folder that cannot be written; the message says why and what to do."""


@contextlib.contextmanager
def explained(workdir: str) -> Iterator[None]:
    """Makes the errors of a full disk, and the like, one that says what to do.

    Raises:
        RunFolderError: the system, or a writer of checkpoints, has refused something.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        # Checkpoints are written by a library whose errors are plain ValueErrors.
        is_told = isinstance(error, stores.StoreError)
        is_of_system = isinstance(error, OSError) or (
            type(error) is ValueError and "os_error_code" in str(error)
        )
        if is_told or not is_of_system:
            raise
        reason = str(error).partition("\n")[0]
        raise RunFolderError(
            f"--workdir={workdir} cannot be written ({reason:.1000}); free space, or "
            "check the disk and the rights on the folder. The same command then goes "
            "on from the last checkpoint, which is intact"
        ) from error


def accept(
    workdir: epath.PathLike, config: ExperimentConfig, *, mode: str = TRAIN
) -> epath.Path:
    """Returns a run folder that is new, or that this configuration started.

    Writes nothing: it may be another run's.

    Raises:
        ConfigError: the folder belongs to another configuration or mode.
        StoreError: the store does not do what it is asked.
    """
    folder = stores.locate(workdir)
    path = folder / CONFIG
    if stores.is_there(path):
        _check_same(path, config, mode=mode)
    elif stores.is_there(folder) and {p.name for p in folder.iterdir()} - _BEGUN:
        raise ConfigError(
            f"--workdir={folder} holds files but no {CONFIG}, so it is not a run "
            "folder; name a new or empty folder"
        )
    return folder


def claim(
    workdir: epath.PathLike, config: ExperimentConfig, *, mode: str = TRAIN
) -> epath.Path:
    """Does as `accept` and writes the configuration; the folder is to be `locked`.

    A finished run keeps the configuration that its result was made with.
    """
    folder = accept(workdir, config, mode=mode)
    if not stores.is_there(folder / RESULT):
        write_config(folder, config, mode=mode)
    return folder


@contextlib.contextmanager
def locked(
    folder: epath.PathLike, *, tell: Callable[[str], None] = print
) -> Iterator[Callable[[], None]]:
    """Keeps other runs off the folder; a process that ends, however, lets it go.

    Creates the folder if it is not there.

    On a store it does so for what `rankax.training.store_lock` says, and what it gives
    to the `with` block checks there that no other run has taken the folder over.

    Raises:
        ConfigError: a run of another process, or of this one, is at work there.
    """
    folder = stores.locate(folder)
    if not stores.is_on_disk(folder):
        with StoreLock(folder / LOCK, tell=tell) as lock:
            yield lock.check
        return
    folder.mkdir(parents=True, exist_ok=True)
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
        yield lambda: None  # the system keeps this lock


def write_config(
    folder: epath.Path, config: ExperimentConfig, *, mode: str = TRAIN
) -> None:
    """Writes `config.json`; `mode` is what the folder is trained by."""
    tree = {"hash": hash_of(config), "mode": mode, "config": config.to_dict()}
    write_json(folder / CONFIG, tree)


def find(
    workdir: epath.PathLike, config: ExperimentConfig, *, mode: str = ""
) -> epath.Path:
    """Returns the folder of an existing run of this configuration.

    Args:
        workdir: the folder.
        config: the run's.
        mode: what it must be trained by; "" = any.

    Raises:
        ConfigError: no run there, or one of another configuration or mode.
    """
    path = stores.locate(workdir) / CONFIG
    if not stores.is_there(path):
        raise ConfigError(
            f"--workdir={workdir} holds no run ({CONFIG} is missing); train one with "
            "--mode=train"
        )
    _check_same(path, config, mode=mode)
    return path.parent


def not_applied(folder: epath.Path, config: ExperimentConfig) -> list[str]:
    """Returns what differs in `eval` between a finished run and this configuration."""
    saved = _read_config(folder / CONFIG)["config"]
    changes = difference(saved, config.to_dict())
    return [change for change in changes if change.startswith("eval.")]


def hash_of(config: ExperimentConfig) -> str:
    """Returns the hash of what decides a run's result."""
    return config_hash(config, ignore=NOT_OF_THE_RUN)


def read_result(folder: epath.Path) -> dict[str, Any] | None:
    """Returns `result.json` of a finished run, else None."""
    path = folder / RESULT
    if not stores.is_there(path):
        return None
    result = read_json(path)
    if not (
        isinstance(result.get("metrics"), dict) and type(result.get("step")) is int
    ):
        raise _damaged(path, 'it lacks "metrics" and "step"')
    return result


def _check_same(path: epath.Path, config: ExperimentConfig, *, mode: str) -> None:
    saved, tree = _read_config(path), config.to_dict()
    own = saved.get("mode", TRAIN)
    if mode and own != mode:
        why = (
            ", which trains on all splits and evaluates every window before it learns "
            "it (see its report)"
        )
        raise ConfigError(
            f"--workdir={path.parent} is a run of --mode={own}"
            f"{why if own == PROGRESSIVE else ''}; go on with that mode, or name "
            f"a folder of --mode={mode}"
        )
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


def read_json(path: epath.Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        tree = json.loads(stores.read_text(path))
    except (ValueError, RecursionError) as error:  # of characters, too
        raise _damaged(path, str(error)) from error
    if not isinstance(tree, dict):
        raise _damaged(path, f"it holds {tree!r:.40}, not an object")
    return tree


def _read_config(path: epath.Path) -> dict[str, Any]:
    tree = read_json(path)
    if not (isinstance(tree.get("hash"), str) and isinstance(tree.get("config"), dict)):
        raise _damaged(path, 'it lacks "hash" and "config"')
    return tree


def _damaged(path: epath.Path, what: str) -> ConfigError:
    return ConfigError(
        f"{path} is damaged: {what}; restore the file, or name another --workdir"
    )


def write_json(path: epath.Path, tree: dict[str, Any]) -> None:
    """Writes a JSON file, whole or not at all; numbers that are not finite are null."""
    text = json.dumps(_finite(tree), indent=1, allow_nan=False) + "\n"
    stores.write_text(path, text)


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
