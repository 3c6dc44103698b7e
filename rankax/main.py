"""Entry point: python -m rankax.main --config=FILE.py[:arg] --workdir=FOLDER.

Options of the configuration are overridden by flags, for example
--config.train.batch_size=8192; a config file may take an argument after a colon,
for example experiments/quickstart.py:dcnv2.
"""

from rankax import malloc  # noqa: F401  first: before what starts threads

# isort: split
from collections.abc import Iterator
import contextlib
import difflib
import io
import re
import sys
import time
import traceback

from absl import app, flags, logging
import jax
from ml_collections import config_flags

from rankax import (
    evaluate,
    export,
    plan,
    predict,
    progressive,
    publish,
    replay,
    train,
)
from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig
from rankax.data.errors import DataError
from rankax.embeddings.routing import RoutingOverflowError
from rankax.observe.stores import StoreError
from rankax.parallel import processes
from rankax.training import checkpoint
from rankax.training.interruption import Interrupted
from rankax.training.progress import NonFiniteError
from rankax.training.run_folder import RunFolderError


def _predict(config: ExperimentConfig, workdir: str) -> None:
    data, out = _PREDICT_DATA.value, _PREDICT_OUT.value
    if not (data and out):
        raise ConfigError(
            "--mode=predict needs --predict_data=FOLDER/SPLIT, what to score, and "
            "--predict_out=FILE.parquet, where to write it"
        )
    predict.predict(config, workdir, data=data, out=out, step=_STEP.value)


def _plan(config: ExperimentConfig) -> None:
    if not _PLAN_TOPOLOGY.value:
        raise ConfigError(
            "--mode=plan needs --plan.topology, such as v5p:4x4x4, h100:8 or cpu:8; "
            "v5p alone looks for the smallest size that fits"
        )
    plan.plan(
        config,
        topology=_PLAN_TOPOLOGY.value,
        price_per_chip_hour=_PLAN_PRICE.value,
        json_path=_PLAN_JSON.value,
    )


_MODES = {
    "train": train.train,
    "evaluate": evaluate.evaluate,
    "predict": _predict,
    "replay": replay.replay,
    "export": lambda config, workdir: export.export(
        config,
        workdir,
        step=_STEP.value,
        folder=_BUNDLE.value,
        rows=_ROWS_DTYPE.value,
    ),
    "progressive": lambda config, workdir: progressive.progressive(
        config, workdir, folder=_BUNDLE.value, rows=_ROWS_DTYPE.value
    ),
    "publish": lambda config, workdir: publish.publish(
        config,
        workdir,
        step=_STEP.value,
        folder=_BUNDLE.value,
        dense_every=_DENSE_EVERY.value,
        max_bytes=_MAX_DELTA_BYTES.value,
    ),
    "plan": lambda config, _: _plan(config),
}
# Flags that only some modes know.
_FLAGS_OF = {
    "predict_data": ("predict",),
    "predict_out": ("predict",),
    "step": ("predict", "export", "publish"),
    "bundle": ("export", "publish", "progressive"),
    "rows_dtype": ("export", "progressive"),
    "dense_every": ("publish",),
    "max_delta_bytes": ("publish",),
    "plan.topology": ("plan",),
    "plan.price_per_chip_hour": ("plan",),
    "plan.json": ("plan",),
}

# Errors whose message says all that a user needs.
_TOLD = (
    ConfigError,
    DataError,
    RoutingOverflowError,
    RunFolderError,
    StoreError,
    NonFiniteError,
    export.ParityError,
)

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "experiment file with get_config(arg), as FILE.py or FILE.py:arg"
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "run folder, on a disk, s3:// or gs://; the same command on the same folder "
    "continues the run",
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    list(_MODES),
    "train: train and test; evaluate: score the best checkpoint of --workdir; predict: "
    "write what it says of each example of --predict_data; replay: take the step again "
    "that ended the run with a NaN, and show what it was; export: write a bundle to "
    "serve; publish: write what has changed since as the bundle's next delta; "
    "progressive: train window by window, evaluate each before it is learned, publish; "
    "plan: say what the run takes on --plan.topology, and allocate nothing",
)
_PREDICT_DATA = flags.DEFINE_string(
    "predict_data",
    None,
    "with --mode=predict: the examples to score, a split of a dataset folder as "
    "FOLDER/SPLIT, on a disk or a store; it needs no labels",
)
_PREDICT_OUT = flags.DEFINE_string(
    "predict_out",
    None,
    "with --mode=predict: the Parquet file to write, on a disk or a store",
)
_STEP = flags.DEFINE_integer(
    "step",
    None,
    "with --mode=predict, export or publish: of the checkpoint to use; without it the "
    "best by validation, of publish the newest",
)
_BUNDLE = flags.DEFINE_string(
    "bundle",
    "",
    "with --mode=export, publish or progressive: folder of the bundle; default: bundle "
    "in --workdir",
)
_ROWS_DTYPE = flags.DEFINE_enum(
    "rows_dtype",
    "float32",
    ["float32", "bfloat16"],
    "with --mode=export or progressive: of the tables' rows; bfloat16 takes half the "
    "room, and what it costs in AUC and log loss is told",
)
_DENSE_EVERY = flags.DEFINE_integer(
    "dense_every",
    1,
    "with --mode=publish: dense parameters go with every so many-th delta",
)
_MAX_DELTA_BYTES = flags.DEFINE_integer(
    "max_delta_bytes",
    0,
    "with --mode=publish: limit of the rows of a delta; those that have moved furthest "
    "go first, the others with later deltas; 0 = none",
)
_PLAN_TOPOLOGY = flags.DEFINE_string(
    "plan.topology",
    "",
    "with --mode=plan: the machine, such as v5p:4x4x4, v5e:4x8, tpu7x:2x2x1, h100:8 or "
    "cpu:8; without a size, such as v5p, the smallest that fits is looked for. TPU "
    "slices are compiled for by libtpu (extra tpu), no TPU is needed",
)
_PLAN_PRICE = flags.DEFINE_float(
    "plan.price_per_chip_hour",
    0.0,
    "with --mode=plan: of a chip, in any currency; gives the cost of 1e9 examples",
    lower_bound=0.0,
)
_PLAN_JSON = flags.DEFINE_string(
    "plan.json",
    "",
    "with --mode=plan: file to write the whole plan into as JSON; - prints it instead",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "several processes train as one: HOST:PORT of the first, or auto on Cloud TPU, "
    "Slurm, Open MPI and Kubernetes; every process gets the same command",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "with --coordinator")
_PROCESS_INDEX = flags.DEFINE_integer(
    "process_index", None, "with --coordinator: which one this is, from 0"
)
_START_TIMEOUT = flags.DEFINE_integer(
    "start_timeout_seconds", 300, "with --coordinator: how long to wait for the others"
)


def main(argv: list[str]) -> None:
    """Runs one mode with a checked and frozen configuration."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells a lot
        _print_errors_once()
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; options start with --")
    config = _CONFIG.value
    try:
        _ = getattr(config, "validate", None)
    except OSError as error:  # in place of a file that cannot be read
        raise ConfigError(f"--config: {error}") from error
    if not isinstance(config, ExperimentConfig):
        raise ConfigError(
            f"get_config of --config returned {type(config).__name__}; it must return "
            "a rankax.config.experiment.ExperimentConfig"
        )
    config.validate()
    config.freeze()
    for name, modes in _FLAGS_OF.items():
        if flags.FLAGS[name].present and _MODE.value not in modes:
            known = ", ".join(modes[:-1]) + " and " * (len(modes) > 1) + modes[-1]
            raise ConfigError(
                f"--{name} is for --mode={known}, not for --mode={_MODE.value}"
            )
    with _together():
        _MODES[_MODE.value](config, _WORKDIR.value or "")


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Joins the processes of the run, and lets none of them wait for one that fails."""
    if _COORDINATOR.value is None:
        if (_NUM_PROCESSES.value, _PROCESS_INDEX.value) != (None, None):
            raise ConfigError(
                "--num_processes and --process_index need --coordinator=HOST:PORT"
            )
        yield
        return
    lifeline = processes.start(
        _COORDINATOR.value,
        num_processes=_NUM_PROCESSES.value,
        process_index=_PROCESS_INDEX.value,
        timeout_seconds=_START_TIMEOUT.value,
    )
    try:
        yield
    except Interrupted:  # all of them are
        lifeline.close()
        raise
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            time.sleep(2)  # mostly the end of another process, which the lifeline tells
        if isinstance(error, _TOLD):
            print(_text(error), file=sys.stderr)
        else:
            traceback.print_exception(error)
        lifeline.fail(_text(error))
    lifeline.close()


def _print_errors_once() -> None:
    """Keeps Orbax from printing pages about an error of a save that it also raises."""
    logging.get_absl_logger().addFilter(
        lambda record: not (record.exc_info and "orbax" in record.pathname)
    )
    checkpoint.ignore_closed_loops()


def run() -> None:
    """Parses flags and runs; configuration and data errors end without a traceback."""
    flags.mark_flag_as_required("config")
    flags.register_multi_flags_validator(
        ["workdir", "mode"],
        lambda values: values["workdir"] is not None or values["mode"] == "plan",
        message="Flag --workdir must have a value other than None.",
    )
    try:
        app.run(main, flags_parser=_parse)
    except Interrupted as error:
        print(error, file=sys.stderr)
        sys.exit(128 + error.signal)
    except _TOLD as error:
        sys.exit(_text(error))


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; a misspelt option of the configuration is answered with advice."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return app.parse_flags_with_usage(argv)
    except (KeyError, AttributeError) as error:
        raise ConfigError(_advice(str(error), argv)) from error
    except SystemExit as end:
        cause: BaseException | None = end
        while cause := cause.__context__:
            # The file's own; others on the way repeat it with a traceback in the text.
            if isinstance(cause, ConfigError) and cause.__context__ is None:
                raise cause from None
        sys.stderr.write(told.getvalue())
        raise


def _advice(message: str, argv: list[str]) -> str:
    """Finds which --config.x.y does not exist and the closest one that does."""
    options = [m[1] for arg in argv if (m := re.match(r"--config\.([^=]+)", arg))]
    known = list(_names(_without_overrides(argv)))
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean --config.{close[0]}?" if close else "see its sections"
            return f"--config.{option}: no such option; {hint}"
    return message


def _without_overrides(argv: list[str]) -> ExperimentConfig:
    """Loads the file of --config alone: its model and source have options too."""
    alone = argv[:1] + [arg for arg in argv if arg.startswith("--config=")]
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file(
        "config", flag_values=values, sys_argv=alone
    )
    values(alone)
    return config.value or ExperimentConfig()


def _names(config, prefix: str = ""):
    for name, value in config.options():
        yield prefix + name
        if hasattr(value, "options"):
            yield from _names(value, f"{prefix}{name}.")


if __name__ == "__main__":
    run()
