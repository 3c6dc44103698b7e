"""The command of one run, checked before any machine is paid for."""

from collections.abc import Iterator, Sequence
import dataclasses
import math
import re
from typing import Any

from absl import flags
import jax
from ml_collections import config_flags

from rankax.config.base import ConfigError, suggest
from rankax.config.experiment import ExperimentConfig
from rankax.data.errors import DataError
from rankax.parallel import mesh as meshes
from rankax.training import setup
from rankax.training.step import Steps
from tpu import names
from tpu.slices import Slice

# Between a signal and the end of the process there is a step or an evaluation's batch,
# and a save. docs/reliability.md measured 0.5 GB/s on a disk; shares of a network are
# slower, so this takes less than half of it for each machine.
SAVED_BYTES_PER_SECOND = 200_000_000
SECONDS_BESIDE_A_SAVE = 60
MIN_GRACE_SECONDS = 120
UNKNOWN_GRACE_SECONDS = 600


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What every machine of a run starts.

    Attributes:
        words: of the command, without --coordinator.
        workdir: its run folder.
        checkpoint_bytes: that a save writes; 0 = not known.
    """

    words: tuple[str, ...]
    workdir: str
    checkpoint_bytes: int = 0

    def grace_seconds(self, num_hosts: int) -> int:
        """Returns the time from a signal to the end of a save, with room."""
        if not self.checkpoint_bytes:
            return UNKNOWN_GRACE_SECONDS
        rate = SAVED_BYTES_PER_SECOND * num_hosts
        saving = math.ceil(self.checkpoint_bytes / rate)
        return max(MIN_GRACE_SECONDS, SECONDS_BESIDE_A_SAVE + saving)

    def why_grace(self, num_hosts: int) -> str:
        """Returns how `grace_seconds` came about, for people."""
        if not self.checkpoint_bytes:
            return "the size of a checkpoint is not known here"
        return (
            f"a checkpoint has {self.checkpoint_bytes / 1e9:,.3f} GB, saved at "
            f"{SAVED_BYTES_PER_SECOND / 1e9:g} GB/s by each of {num_hosts} "
            f"machine{'s' * (num_hosts > 1)}"
        )


def program(
    config: str,
    *,
    workdir: str,
    overrides: Sequence[str] = (),
    slice: Slice,
    num_processes: int,
) -> Program:
    """Returns the command of a run whose configuration fits its machines.

    Args:
        config: FILE.py or FILE.py:arg, as of --config.
        workdir: the run folder, as the machines will see it.
        overrides: --config.x.y=value, for the configuration.
        slice: of the run.
        num_processes: of the run.

    Raises:
        ConfigError: the configuration is wrong, or does not fit the machines.
    """
    names.check_plain(config, "--config")
    names.check_plain(workdir, "--workdir")
    for override in overrides:
        names.check_line(override, "an override")
    loaded = load(config, overrides)
    _check_fits(loaded, slice=slice, num_processes=num_processes)
    words = ("python", "-m", "rankax.main", f"--config={config}")
    return Program(
        words=(*words, f"--workdir={workdir}", *overrides),
        workdir=workdir,
        checkpoint_bytes=checkpoint_bytes(loaded),
    )


def load(config: str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Loads a configuration as `rankax.main` does.

    Raises:
        ConfigError: there is no such file or option, or the options do not fit.
    """
    for override in overrides:
        if not re.match(r"--config\.[\w.\[\]]+=", override):
            raise ConfigError(
                f"unknown argument {override!r}; options of the configuration are "
                "--config.SECTION.OPTION=VALUE"
            )
    try:
        loaded = _parse(config, overrides)
    except (KeyError, AttributeError) as error:
        raise ConfigError(_advice(error, config, overrides)) from error
    except (OSError, flags.Error) as error:
        raise ConfigError(f"--config={config}: {error}") from error
    if not isinstance(loaded, ExperimentConfig):
        raise ConfigError(
            f"get_config of --config={config} returned {type(loaded).__name__}; it "
            "must return a rankax.config.experiment.ExperimentConfig"
        )
    loaded.validate()
    return loaded


def _parse(config: str, overrides: Sequence[str]) -> Any:
    argv = ["render", f"--config={config}", *overrides]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file(
        "config", flag_values=values, sys_argv=argv
    )
    values(argv)
    _ = getattr(holder.value, "validate", None)  # a file that cannot be read says so
    return holder.value


def _advice(error: Exception, config: str, overrides: Sequence[str]) -> str:
    """Finds which --config.x.y does not exist and the closest one that does."""
    known = list(_options(_parse(config, ())))
    for override in overrides:
        option = override.removeprefix("--config.").partition("=")[0]
        if option not in known and "[" not in option:
            return f"--config.{option}: no such option; {suggest(option, known)}"
    return f"--config={config}: {error}"


def _options(config: Any, prefix: str = "") -> Iterator[str]:
    for name, value in config.options():
        yield prefix + name
        if hasattr(value, "options"):
            yield from _options(value, f"{prefix}{name}.")


def _check_fits(config: ExperimentConfig, *, slice: Slice, num_processes: int) -> None:
    """Says now what a run would say once its machines are there."""
    devices = slice.num_devices
    if config.tables.num_shards % devices:
        raise ConfigError(
            f"--topology={slice.topology} has {devices} devices, which do not divide "
            f"tables.num_shards = {config.tables.num_shards}; use a power of two of "
            "devices, or a larger tables.num_shards"
        )
    for name, size in (
        ("train.batch_size", config.train.batch_size),
        ("eval.batch_size", config.eval.batch_size),
    ):
        if size % devices:
            raise ConfigError(
                f"{name} = {size} must be a multiple of the {devices} devices of "
                f"--topology={slice.topology}; use "
                f"{max(size // devices, 1) * devices}"
            )
    if config.data.lanes % num_processes:
        raise ConfigError(
            f"data.lanes = {config.data.lanes} cannot be split over the "
            f"{num_processes} processes of --topology={slice.topology}; set "
            f"--config.data.lanes={num_processes} or a multiple of it"
        )


def checkpoint_bytes(config: ExperimentConfig) -> int:
    """Returns the bytes that a save of a run writes; allocates nothing.

    0 where the card of its data cannot be read from here: the machines may see a
    folder that this one does not.
    """
    try:
        schema = setup.schema_of(config)
    except (DataError, OSError):
        return 0
    mesh = meshes.make_mesh(data=1, devices=jax.devices("cpu")[:1])
    state = Steps(config, schema, mesh).abstract_state()
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
