"""The runs of a study's ladders, and the rows that their folders give."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from typing import Any

from etils import epath

from experiments import commit, protocol
from experiments.driver import Todo
from experiments.results import Columns, Row
from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.data import collisions, synthetic
from rankax.data.errors import DataError
from rankax.observe import accounting
from rankax.observe.writers import read_metrics
from rankax.training import run_folder
from rankax.training.setup import Setup, set_up
from scaling import rates
from scaling.study import Ladder, Size, Study

RATE = "optimizer.dense.learning_rate"
COLUMNS = Columns(
    key=("run_id",),
    like=("study", "model", "ladder", "size_name"),
    data=("study", "data_hash"),
    seconds="wall_s",
)
# Of one core, to foretell hours before there are rows; --dry_run takes better ones.
FLOPS_PER_SECOND = 2e10
START_SECONDS = 15.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingRun:
    """One process: a size with a learning rate and a seed.

    Attributes:
        group: where it belongs.
        size: likewise.
        seed: of the initialisation, and of the order where data.shuffle is on.
        rate: of the dense learning rate.
        is_search: whether it is there to find a rate.
    """

    group: "LadderGroup"
    size: Size
    seed: int
    rate: float
    is_search: bool

    @property
    def study(self) -> Study:
        """Where it belongs."""
        return self.group.study

    @property
    def ladder(self) -> Ladder:
        """Likewise."""
        return self.group.ladder

    @property
    def options(self) -> dict[str, Any]:
        """Overrides by full name."""
        own = {RATE: self.rate, "train.seed": self.seed, "eval.test": False}
        return {**self.study.overrides, **self.size.overrides, **own}

    @functools.cached_property
    def config(self) -> ExperimentConfig:
        """With all overrides."""
        return configured(self.study, self.ladder, self.options)

    @functools.cached_property
    def config_hash(self) -> str:
        """Of the run folder."""
        return run_folder.hash_of(self.config)

    @property
    def name(self) -> str:
        """Folder below `--runs`: ladders that meet in a run share it."""
        return f"{self.study.name}/{self.ladder.model}/{self.config_hash}"

    @property
    def kind(self) -> str:
        """Of the run."""
        return "search" if self.is_search else "run"

    @property
    def run_id(self) -> str:
        """For people, and the key of its rows."""
        return (
            f"{self.ladder.name}/{self.size.name}/{self.kind}-lr-{self.rate:g}-seed-"
            f"{self.seed}"
        )

    @property
    def like(self) -> tuple[str, ...]:
        """Runs of one size take about as long."""
        return self.study.name, self.ladder.model, self.ladder.axis, self.size.name

    @property
    def seconds(self) -> float:
        """Forecast by arithmetic."""
        flops = self.group.costs(self.size)["train_flops"]
        return START_SECONDS + flops / self.group.flops_per_second

    def key(self) -> tuple[Any, ...]:
        """That of its rows."""
        return (self.run_id,)

    def arguments(self, runs: str) -> list[str]:
        """Returns those of `python`."""
        config = self.study.config.format(model=self.ladder.model)
        return [
            *("-m", "rankax.main"),
            f"--config={config}",
            f"--workdir={runs}/{self.name}",
            *(f"--config.{name}={value}" for name, value in self.options.items()),
        ]

    def is_finished(self, folder: pathlib.Path) -> bool:
        """Returns whether the folder holds the result of this configuration."""
        result = run_folder.read_result(epath.Path(folder))
        return result is not None and result["config_hash"] == self.config_hash

    def told(self, row: Row) -> str:
        """Says what its last checkpoint scored."""
        return f"{self.run_id}: log loss {row['logloss']:.5f} ({row['wall_s']:.0f} s)"

    def rows(self, folder: pathlib.Path) -> list[Row]:
        """Returns a row per checkpoint: after 1, 1/2, 1/4, 1/8 … of the run."""
        result = run_folder.read_result(epath.Path(folder))
        assert result is not None
        lines = read_metrics(epath.Path(folder))
        last = result["step"]
        scores = {line["step"]: line for line in lines if line["split"] == "valid"}
        losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
        batch, task = self.config.train.batch_size, self.study.task
        columns = self._columns() | {
            "git_sha": (result.get("versions") or {}).get("commit") or commit.now(),
            "config_hash": result["config_hash"],
            "data_hash": result["dataset_fingerprint"],
            "eval_hash": _eval_hash(self.config, result["dataset_fingerprint"]),
            "n_dense_total": result["num_dense_parameters"],
            "n_dense_active": result["num_active_dense_parameters"],
            "n_table": result["num_table_parameters"],
            "flops_fwd_per_sample": result["flops_per_example"],
            "table_bytes_per_sample": _rounded(result["table_bytes_per_example"]),
            "device": result["hardware"]["device_kind"],
            "device_count": result["hardware"]["num_devices"],
            "wall_s": _rounded(result["wall_seconds"]),
            "samples_per_s": _rounded(result["examples_per_second"]),
            "mfu": _rounded(result["mfu"]),
            "complete": True,
        }
        rows = []
        for step in _log_spaced(sorted(scores), last):
            score = {
                name.partition("/")[2]: value
                for name, value in scores[step].items()
                if name.startswith(f"{task}/")
            }
            seen = step * batch
            rows.append(
                columns
                | {
                    "samples_seen": seen,
                    "c_train": 3 * columns["flops_fwd_per_sample"] * seen,
                    "logloss": _rounded(score["log_loss"]),
                    "ne": _rounded(score["normalized_entropy"]),
                    "auc": _rounded(score["auc"]),
                    "gauc": _rounded(score.get("gauc")),
                    "calibration": _rounded(score["calibration"]),
                    "progressive_logloss": _rounded(_progressive(losses, step)),
                    "final": step == last,
                }
            )
        return rows

    def divergence(self, folder: pathlib.Path) -> str | None:
        """Returns the error of a run that ended at a loss or gradient not finite."""
        path = epath.Path(folder) / run_folder.BAD_STEP
        if not path.exists():
            return None
        step = run_folder.read_json(path)["step"]
        return f"NonFiniteError: the loss or a gradient of step {step} was not finite"

    def lost(self, error: str) -> list[Row]:
        """Returns the row of a run that diverged: it says so, and has no scores."""
        own = {
            "git_sha": commit.now(),
            "config_hash": self.config_hash,
            "diverged": True,
            "error": error,
        }
        return [self._columns() | own]

    def _columns(self) -> Row:
        """Returns all columns, with what is known before the run."""
        row: Row = dict.fromkeys(ROW_COLUMNS)
        config, known = self.config, self.group.costs(self.size)
        return row | {
            "run_id": self.run_id,
            "study": self.study.name,
            "model": self.ladder.model,
            "ladder": self.ladder.axis,
            "size_name": self.size.name,
            "shape": json.loads(json.dumps(self.size.overrides)),
            "table_rows": known["table_rows"],
            "table_dim": known["table_dim"],
            "collision_share": known["collision_share"],
            "n_dense_total": known["n_dense_total"],
            "seed": self.seed,
            "order_seed": self.seed if config.data.shuffle else None,
            "lr_dense": self.rate,
            "lr_sparse": config.optimizer.sparse.learning_rate,
            "lr_stage": self.is_search,
            "batch": config.train.batch_size,
            "dtype": config.model.compute_dtype,
            "split": "valid",
            "held_out": self.size.held_out,
            "diverged": False,
            "complete": False,
            "final": False,
            "data_limited": False,
            **oracle(config, self.study.task),
        }


ROW_COLUMNS = (
    "run_id", "study", "git_sha", "config_hash", "data_hash", "eval_hash", "model",
    "ladder", "size_name", "shape", "n_dense_total", "n_dense_active", "n_table",
    "table_rows", "table_dim", "collision_share", "flops_fwd_per_sample",
    "table_bytes_per_sample", "samples_seen", "c_train", "seed", "order_seed",
    "lr_dense", "lr_sparse", "lr_stage", "batch", "dtype", "device", "device_count",
    "wall_s", "samples_per_s", "mfu", "logloss", "ne", "auc", "gauc", "calibration",
    "progressive_logloss", "oracle_logloss", "oracle_auc", "diverged", "complete",
    "final", "held_out", "split", "data_limited",
)  # fmt: skip


class LadderGroup:
    """The runs of one ladder, in the driver's hands."""

    def __init__(
        self,
        study: Study,
        ladder: Ladder,
        *,
        flops_per_second: float = FLOPS_PER_SECOND,
    ):
        """Takes a ladder of a study, and how fast one run is thought to be."""
        self.study, self.ladder = study, ladder
        self.flops_per_second = flops_per_second
        self._costs: dict[str, dict[str, Any]] = {}  # by size
        self._runs: dict[tuple[Any, ...], ScalingRun] = {}

    def costs(self, size: Size) -> dict[str, Any]:
        """Returns `measure` of a size, made once."""
        if size.name not in self._costs:
            self._costs[size.name] = measure(self.study, self.ladder, size)
        return self._costs[size.name]

    @property
    def name(self) -> str:
        """Folder below `--runs`."""
        return f"{self.study.name}/{self.ladder.model}"

    @property
    def data(self) -> str:
        """All rows of a study are of the same data."""
        return self.study.name

    @functools.cached_property
    def base_rate(self) -> float:
        """The dense learning rate of the configuration."""
        config = configured(self.study, self.ladder, self.study.overrides)
        return config.optimizer.dense.learning_rate

    def searched(self) -> list[ScalingRun]:
        """Returns the runs that look for the learning rate."""
        base = self.base_rate
        return [
            self._run(size, 0, float(f"{factor * base:.3g}"), is_search=True)
            for size in self.ladder.sizes
            if size.name in self.ladder.tune
            for factor in self.study.learning_rate_factors
        ]

    def law(self, rows: Mapping[tuple[Any, ...], Row]) -> rates.RateLaw | None:
        """Returns what the search found; None = it is not finished, or there is none.

        Args:
            rows: the last row of each run, by key.
        """
        found = [rows.get(run.key()) for run in self.searched()]
        known = [row for row in found if row is not None]
        return rates.law(known) if known and len(known) == len(found) else None

    def runs(self, law: rates.RateLaw | None) -> list[ScalingRun]:
        """Returns the runs of the ladder itself, with the rates of the law if any."""
        base = self.base_rate
        return [
            self._run(size, seed, rate, is_search=False)
            for size in self.ladder.sizes
            for rate in [law.rate(self.costs(size)["n_dense_total"]) if law else base]
            for seed in size.seeds
        ]

    def todo(self, rows: Mapping[tuple[Any, ...], Row]) -> Todo:
        """Returns the search, and the other runs once it is finished."""
        searched, law = self.searched(), self.law(rows)
        if searched and law is None:
            return Todo(searched, waiting=self.runs(None))
        return Todo([*searched, *self.runs(law)])

    def check(self) -> str:
        """Sets up every size as its runs will; returns the fingerprint of the data.

        Raises:
            ConfigError: one that cannot be run, or its data set.
        """
        fingerprint = ""
        for size in self.ladder.sizes:
            try:
                fingerprint = self.costs(size)["data_hash"]
            except (ConfigError, DataError) as error:
                name = f"{self.ladder.name}/{size.name}"
                raise ConfigError(f"{name}: {error}") from error
        return fingerprint

    def _run(
        self, size: Size, seed: int, rate: float, *, is_search: bool
    ) -> ScalingRun:
        """Returns a run, the same object for the same run: its hash takes a while."""
        key = size.name, seed, rate, is_search
        if key not in self._runs:
            self._runs[key] = ScalingRun(
                group=self, size=size, seed=seed, rate=rate, is_search=is_search
            )
        return self._runs[key]


def configured(
    study: Study, ladder: Ladder, options: Mapping[str, Any]
) -> ExperimentConfig:
    """Returns the configuration of a run."""
    return protocol.configured(study.config.format(model=ladder.model), options)


# ---------------------------------------------------------------- costs and data


def measure(study: Study, ladder: Ladder, size: Size) -> dict[str, Any]:
    """Returns what a size costs, its tables and its data; makes no parameter."""
    config = configured(study, ladder, {**study.overrides, **size.overrides})
    setup = set_up(config)
    engine = setup.steps.engine
    cost = accounting.account(config, setup.schema, engine)
    samples = setup.num_steps(config) * config.train.batch_size
    dims = [dim for role, dim in engine.plan.dims.items() if role == "embedding"]
    return {
        "data_hash": setup.dataset_fingerprint,
        "n_dense_total": cost.num_dense_parameters,
        "n_dense_active": cost.num_active_dense_parameters,
        "n_table": cost.num_table_parameters,
        "table_rows": sum(setup.schema.num_rows.values()),
        "table_dim": dims[0] if dims else None,
        "collision_share": collision_share(setup),
        "flops": cost.flops_per_example,
        "samples": samples,
        "train_flops": 3 * (cost.flops_per_example or 0) * samples,
    }


def collision_share(setup: Setup) -> float | None:
    """Returns the share of the ids of hashed tables that share a row, as forecast.

    Of the tables that the run hashes anew, whose number of ids the card knows as their
    rows; None = there are none.
    """
    known = {table.name: table.num_rows for table in setup.schema.card.tables}
    pairs = [
        (known[name], collisions.forecast(known[name], rows).sharing)
        for name, rows in setup.schema.hashed_rows.items()
    ]
    total = sum(ids for ids, _ in pairs)
    return _rounded(sum(ids * share for ids, share in pairs) / total) if total else None


def oracle(config: ExperimentConfig, task: str) -> dict[str, float]:
    """Returns what the true probabilities score; {} where nobody knows them."""
    if not isinstance(config.data.source, SyntheticConfig):
        return {}
    scores = synthetic.oracle(config.data.source, "valid")
    return {
        "oracle_logloss": _rounded(scores[f"{task}/oracle_log_loss"]),
        "oracle_auc": _rounded(scores[f"{task}/oracle_auc"]),
    }


def _eval_hash(config: ExperimentConfig, fingerprint: str) -> str:
    """Returns what decides which examples a score is of, and how it is made."""
    valid = fingerprint.split("-")[1]
    parts = [valid, config.data.tasks, config.eval.exact_auc]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _log_spaced(steps: Sequence[int], last: int) -> list[int]:
    """Returns, of the steps that were evaluated, those nearest to last / 2^k.

    Each is within a tenth of its mark, so that unequal ladders are read alike.
    """
    chosen = []
    for k in range(32):
        mark = last / 2**k
        nearest = min(steps, key=lambda step: abs(step - mark), default=0)
        if nearest and abs(nearest / mark - 1) <= 0.1:
            chosen.append(nearest)
    return sorted(set(chosen))


def _progressive(losses: Mapping[int, float], step: int) -> float | None:
    """Returns the mean training loss of the last eighth before a step.

    In one pass every example is met before it is learned.
    """
    window = [loss for at, loss in losses.items() if step * 7 / 8 < at <= step]
    return sum(window) / len(window) if window else None


def _rounded(value: Any) -> Any:
    """Eight digits: differences of losses are what counts."""
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.8g}")
    return value
