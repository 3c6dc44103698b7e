"""The command of one run, checked before any machine is paid for."""

from collections.abc import Iterator, Sequence
import dataclasses
import math
import re
import shlex
from typing import Any

from absl import flags
from ml_collections import config_flags

from rankax.config.base import ConfigError, suggest
from rankax.config.experiment import ExperimentConfig, ParquetConfig
from rankax.data.errors import DataError
from rankax.observe import peaks, plan_screen
from rankax.parallel import topology as topologies
from rankax.training import footprint, setup
from rankax.training.footprint import Whole
from tpu import checkout, names
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
        data_path: folder of its examples; "" = they are made up.
        saves_every: steps between saves beside evaluations; 0 = none.
    """

    words: tuple[str, ...]
    workdir: str
    checkpoint_bytes: int = 0
    data_path: str = ""
    saves_every: int = 0

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

    def warn_of_data(self, num_hosts: int, *, mount: str) -> list[str]:
        """Returns a warning if machines may not see the examples.

        Args:
            num_hosts: machines.
            mount: folder that all of them see; "" = none.
        """
        path = self.data_path
        if not path or names.is_store(path) or names.is_under(path, mount):
            return []
        place = f" or under {mount}" if mount else ""
        who = f"each of the {num_hosts} machines" if num_hosts > 1 else "the machine"
        return [
            f"data.source.path = {path!r} is not on a store{place}: {who} must have "
            "dataset.json and the Parquet shards there before the run starts"
        ]

    def warn_of_spot(self, num_hosts: int, *, seconds: int) -> list[str]:
        """Returns a warning if a Spot machine ends before a save does.

        Args:
            num_hosts: machines.
            seconds: from the notice to the end of a machine.
        """
        rate = SAVED_BYTES_PER_SECOND * num_hosts
        is_known = self.checkpoint_bytes > 0
        if self.saves_every or (is_known and self.checkpoint_bytes <= seconds * rate):
            return []
        return [
            f"--spot: a machine that is taken away leaves {seconds} s for a save, and "
            f"{self.why_grace(num_hosts)}: all since the last evaluation "
            f"{'is' if is_known else 'may be'} lost; set "
            "--config.checkpoint.every_steps=STEPS to what you can lose"
        ]


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
    state = weigh(loaded)
    if state:
        _check_memory(loaded, state, slice, plan=(*words, *overrides, "--mode=plan"))
    source = loaded.data.source
    return Program(
        words=(*words, f"--workdir={workdir}", *overrides),
        workdir=workdir,
        checkpoint_bytes=state.total if state else 0,
        data_path=source.path if isinstance(source, ParquetConfig) else "",
        saves_every=loaded.checkpoint.every_steps,
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
    checkout.check_there(config)
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
    try:
        setup.check_divides(config, num_devices=slice.num_devices)
    except ConfigError as error:
        raise ConfigError(f"--topology={slice.topology}: {error}") from error
    if config.data.lanes % num_processes:
        raise ConfigError(
            f"data.lanes = {config.data.lanes} cannot be split over the "
            f"{num_processes} processes of --topology={slice.topology}; set "
            f"--config.data.lanes={num_processes} or a multiple of it"
        )


def _check_memory(
    config: ExperimentConfig, state: Whole, slice: Slice, *, plan: Sequence[str]
) -> None:
    """Refuses what no compiler can make fit: activations come on top of it."""
    where = topologies.parse(slice.topology)
    known = peaks.peaks(where.device_kind)
    if known is None:
        return
    # Some dense weights are split along "model", so that this is the least.
    held = state.tables / slice.num_devices + state.copied / config.mesh.model
    if held <= known.memory_bytes:
        return
    taken, room = (
        plan_screen.size(size * where.devices_per_chip)
        for size in (held, known.memory_bytes)
    )
    raise ConfigError(
        f"--topology={slice.topology}: tables and dense weights alone take {taken} of "
        f"each chip, which has {room}; a size that fits is found by\n"
        f"{shlex.join((*plan, f'--plan.topology={slice.kind}'))}"
    )


def weigh(config: ExperimentConfig) -> Whole | None:
    """Returns the bytes of what a run trains and saves; allocates nothing.

    None where the card of its data cannot be read from here: the machines may see a
    folder that this one does not.
    """
    try:
        schema = setup.schema_of(config)
    except (DataError, OSError):
        return None
    return footprint.whole(config, schema)
