"""The whole of a run's configuration: one dataclass a section, one check for all.

An experiment file returns an `ExperimentConfig` from `get_config`, whose `validate`
checks the ranges of all options, the rules inside each section (`problems`) and those
between sections; rules that need the data set are checked where it is read.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import itertools
import math

from rankax.config.base import Config, ConfigError
from rankax.config.ranges import RangedConfig, option, unused

# Optimizer -> those of its options that not all of its kind use.
DENSE_OPTIMIZERS = {
    "adam": ("b1", "b2", "eps"),
    "adamw": ("b1", "b2", "eps", "weight_decay"),
    "adagrad": ("eps",),
    "sgd": (),
}
ROW_OPTIMIZERS = {
    "rowwise_adagrad": ("eps", "initial_accumulator"),
    "adagrad": ("eps", "initial_accumulator"),
    "lazy_adam": ("b1", "b2", "eps"),
    "sgd": (),
}
ROW_DTYPES = ("float32", "bfloat16")
COMPUTE_DTYPES = ("float32", "bfloat16")
OUT_OF_RANGE = ("error", "default_row")
DEDUPLICATE = ("host", "device")
DECAYS = ("constant", "linear", "cosine")


# Options that say how and where a run is done, not what it computes: they may change
# between starts of one run.
NOT_OF_THE_RUN = (
    "checkpoint.every_steps",
    "checkpoint.keep_best",
    "checkpoint.keep_every",
    "checkpoint.keep_last",
    "data.num_threads",
    "data.prefetch_batches",
    "data.source.path",
    "eval.batch_size",
    "eval.exact_auc",
    "eval.save_predictions",
    "eval.slices",
    "eval.test",
    "eval.top_k",
    "mesh",
    "observe",
    "progressive",
    "tables.capacity_margin",
    "tables.deduplicate",
)


# ---------------------------------------------------------------- data


@dataclasses.dataclass(slots=True, kw_only=True)
class SourceConfig(Config):
    """Where examples come from; use `ParquetConfig` or `SyntheticConfig`."""


@dataclasses.dataclass(slots=True, kw_only=True)
class ParquetConfig(SourceConfig):
    """A dataset folder: Parquet shards per split and `dataset.json`."""

    path: str = ""


@dataclasses.dataclass(slots=True, kw_only=True)
class DataConfig(RangedConfig):
    """Input. Empty `tasks` and `fields` mean all that the dataset card names.

    Attributes:
        source: where examples come from.
        tasks: labels to learn.
        fields: fields to read.
        lanes: virtual lanes, part of the order of examples and not of the machine.
        shuffle: in every epoch anew; false keeps to the order of the files.
        time_window: train through time: windows of this width, in the units of the
            card's time column (microseconds where it holds timestamps), come one after
            the other, and shuffling stays inside each; 0 = shuffle the whole split.
        num_threads: threads that read row groups.
        prefetch_batches: batches made ahead of the step.
        quarantine: share of the rows of a split that may be left out because their
            shards or row groups cannot be read, below 1. All splits are then read once
            before the first step; the run folder keeps what was found. 0 = off: the run
            ends where it meets such a shard.
    """

    source: SourceConfig = dataclasses.field(default_factory=ParquetConfig)
    tasks: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    lanes: int = 16
    shuffle: bool = True
    time_window: int = 0
    num_threads: int = 1
    prefetch_batches: int = 2
    quarantine: float = 0.0

    def problems(self) -> list[str]:
        """A quarantine without files, or of all of them."""
        if self.quarantine and not isinstance(self.source, ParquetConfig):
            why = "is for Parquet shards, which this data.source has not"
            return unused(self, ("quarantine",), why)
        if self.quarantine >= 1:
            return [f"quarantine = {self.quarantine:g} must be a share below 1"]
        return []


# ---------------------------------------------------------------- tables and model


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """One embedding table that a backbone asks for.

    Attributes:
        name: table name of the dataset card.
        role: what the model uses it for: "embedding", or "weight" for 1-wide rows.
        num_rows: V.
        dim: D.
        init: "normal" (scale = standard deviation) or "uniform" (scale = bound).
        init_scale: see `init`.
        fields: those whose ids are looked up in this role; () = all of the table.
    """

    name: str
    role: str
    num_rows: int
    dim: int
    init: str = "normal"
    init_scale: float = 1e-4
    fields: tuple[str, ...] = ()


def tables_for_role(
    num_rows: Mapping[str, int],
    *,
    role: str,
    dim: int,
    init: str = "normal",
    init_scale: float = 1e-4,
) -> tuple[TableSpec, ...]:
    """Returns one `TableSpec` per table of the card, all of the same width.

    Args:
        num_rows: table name -> V.
        role: see `TableSpec`.
        dim: D.
        init: "normal", "uniform", or "xavier_uniform": uniform with the bound
            √(6 / (V + D)) of each table.
        init_scale: see `TableSpec`; unused by "xavier_uniform".
    """
    specs = []
    for name, rows in num_rows.items():
        kind, scale = init, init_scale
        if init == "xavier_uniform":
            kind, scale = "uniform", math.sqrt(6 / (rows + dim))
        spec = TableSpec(
            name=name, role=role, num_rows=rows, dim=dim, init=kind, init_scale=scale
        )
        specs.append(spec)
    return tuple(specs)


@dataclasses.dataclass(slots=True, kw_only=True)
class TablesConfig(RangedConfig):
    """Layout of the embedding tables over the machine.

    Attributes:
        num_shards: S, the fixed number of virtual shards of a row-sharded table;
            any device count that divides it can train or restore.
        replicate_below_bytes: smaller tables are replicated and trained as dense
            parameters.
        dtype: of row-sharded rows, "float32" or "bfloat16" (half the memory, written
            with stochastic rounding; optimizer state stays float32).
        out_of_range: an id outside a table of direct ids is an "error", or is looked
            up in a trained "default_row" that every such table then has, and counted.
        deduplicate: where repeated ids are found, on the "host" (in the reader's
            thread) or on the "device" (where the host cannot keep up). Same results.
        capacity_margin: room for one owner in an exchange, in standard deviations
            above the mean. What does not fit takes more rounds. Same results.
        track_last_step: keep the step of each row's last update, 4 bytes a row.
        hashed_rows: tables whose ids this run hashes into fewer or more rows than the
            card says, as "table=rows", such as "user_id=50000".
    """

    num_shards: int = 1024
    replicate_below_bytes: int = option(1 << 20, least=0)
    dtype: str = option("float32", choices=ROW_DTYPES)
    out_of_range: str = option("error", choices=OUT_OF_RANGE)
    deduplicate: str = option("host", choices=DEDUPLICATE)
    capacity_margin: float = 6.0
    track_last_step: bool = False
    hashed_rows: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """Shards that no power of two of devices divides; rows that are no number."""
        found = []
        if self.num_shards & (self.num_shards - 1):
            found.append(f"num_shards = {self.num_shards} must be a power of two")
        for entry in self.hashed_rows:
            name, _, rows = entry.rpartition("=")
            if not (name and rows.isdecimal() and 0 < int(rows) < 2**31):
                found.append(
                    f"hashed_rows has {entry!r}; write TABLE=ROWS with 1 to 2^31 - 1 "
                    "rows, such as 'user_id=50000'"
                )
        names = list(self.rows_by_table()) if not found else []
        if len(names) < len(self.hashed_rows) and not found:
            found.append(f"hashed_rows = {self.hashed_rows} names a table twice")
        return found

    def rows_by_table(self) -> dict[str, int]:
        """Returns `hashed_rows` as table name -> rows."""
        pairs = (entry.rpartition("=") for entry in self.hashed_rows)
        return {name: int(rows) for name, _, rows in pairs}


@dataclasses.dataclass(slots=True, kw_only=True)
class BackboneConfig(RangedConfig):
    """Base of every backbone's configuration."""

    def tables(
        self, num_rows: Mapping[str, int], *, num_tasks: int
    ) -> tuple[TableSpec, ...]:
        """Returns the tables that the backbone needs, given table name -> V and T."""
        raise NotImplementedError


@dataclasses.dataclass(slots=True, kw_only=True)
class SequenceConfig(RangedConfig):
    """Base of every sequence encoder's configuration."""


@dataclasses.dataclass(slots=True, kw_only=True)
class MeanPoolingConfig(SequenceConfig):
    """Mean of the history's embeddings (`rankax.models.sequences.mean_pooling`)."""


@dataclasses.dataclass(slots=True, kw_only=True)
class ModelConfig(RangedConfig):
    """Backbone on embedded fields and encoded sequences, one head per task.

    Attributes:
        backbone: see `rankax.models.backbones`.
        sequence: see `rankax.models.sequences`.
        task_weights: of the losses, one per task; empty = all 1.
        compute_dtype: of the operands of matrix products in backbone and encoders,
            "float32" or "bfloat16" (faster on accelerators); weights, sums, norms,
            logits and losses stay float32.
    """

    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    sequence: SequenceConfig = dataclasses.field(default_factory=MeanPoolingConfig)
    task_weights: tuple[float, ...] = ()
    compute_dtype: str = option("float32", choices=COMPUTE_DTYPES)


# ---------------------------------------------------------------- training


@dataclasses.dataclass(slots=True, kw_only=True)
class TrainConfig(RangedConfig):
    """Length of the run. Exactly one of `num_steps` and `num_epochs` is set."""

    seed: int = 0
    batch_size: int = 4096
    num_steps: int = 0
    num_epochs: int = 0


@dataclasses.dataclass(slots=True, kw_only=True)
class DenseOptimizerConfig(RangedConfig):
    """Optimizer (optax) of network weights and replicated tables.

    Attributes:
        l2: λ of (λ/2)·‖W‖² on kernels of the network (not on biases and norms).
        table_l2: λ of (λ/2)·‖E‖² on whole replicated tables.
        weight_decay: decoupled decay of kernels, "adamw" only.
        clip_norm: bound of the global gradient norm; 0 = off.
    """

    name: str = option("adam", choices=tuple(DENSE_OPTIMIZERS))
    learning_rate: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    l2: float = 0.0
    table_l2: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 0.0

    def problems(self) -> list[str]:
        """Options of other optimizers, and updates that are not defined."""
        starts_at = 0.1 if self.name == "adagrad" else 0.0  # as optax has it
        return _unfit(self, DENSE_OPTIMIZERS, starts_at=starts_at)


@dataclasses.dataclass(slots=True, kw_only=True)
class SparseOptimizerConfig(RangedConfig):
    """Row optimizer of row-sharded tables; formulas in `embeddings/optimizers.py`.

    Attributes:
        initial_accumulator: of both kinds of Adagrad.
        b1: decay of the gradient's mean, "lazy_adam" only.
        b2: decay of the squared gradient's mean, "lazy_adam" only.
        weight_decay: decoupled decay of the rows that a step touches.
    """

    name: str = option("rowwise_adagrad", choices=tuple(ROW_OPTIMIZERS))
    learning_rate: float = 0.02
    eps: float = 1e-8
    initial_accumulator: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0

    def problems(self) -> list[str]:
        """Options of other optimizers, and updates that are not defined."""
        return _unfit(self, ROW_OPTIMIZERS, starts_at=self.initial_accumulator)


def _unfit(
    config: DenseOptimizerConfig | SparseOptimizerConfig,
    optimizers: Mapping[str, tuple[str, ...]],
    *,
    starts_at: float,
) -> list[str]:
    """Lists options of other optimizers, and updates that are not defined.

    Args:
        config: a section.
        optimizers: of its kind, and the options of each.
        starts_at: what the squared gradients are added to.
    """
    own = optimizers[config.name]
    problems = []
    for name in sorted({*itertools.chain(*optimizers.values())} - {*own}):
        users = [each for each, other in optimizers.items() if name in other]
        why = f"is not used by {config.name!r} but by {', '.join(users)}; set name"
        problems += unused(config, (name,), why)
    for name in ("b1", "b2"):
        if getattr(config, name) >= 1:
            problems.append(f"{name} = {getattr(config, name)} must be below 1")
    if "eps" in own and config.eps == 0 and starts_at == 0:
        problems.append(
            "eps = 0 divides 0 by 0 where a gradient is zero; set it to a small "
            "positive number"
        )
    return problems


@dataclasses.dataclass(slots=True, kw_only=True)
class ScheduleConfig(RangedConfig):
    """One factor on both learning rates, counted by one step counter.

    Attributes:
        warmup_steps: linear from 0 to 1 over these steps.
        decay: "constant", "linear" or "cosine" from the end of the warm-up to the
            last step, down to `final_factor`.
        plateau_factor: multiplies the rate when the selection metric has not improved
            for `plateau_patience` evaluations; 0 = off.
        min_factor: floor of the plateau's product.
    """

    warmup_steps: int = 0
    decay: str = option("constant", choices=DECAYS)
    final_factor: float = 0.0
    plateau_factor: float = 0.0
    plateau_patience: int = 1
    min_factor: float = 1e-3

    def problems(self) -> list[str]:
        """Rates that would rise, and options of what is off."""
        problems = []
        if self.plateau_factor >= 1:
            problems.append(
                f"plateau_factor = {self.plateau_factor} must be below 1 (0 = off)"
            )
        problems += [
            f"{name} = {value} must not be above 1, where the rate starts"
            for name, value in self.options()
            if name in ("final_factor", "min_factor") and value > 1
        ]
        if not self.plateau_factor:
            why = "is of the plateau, which is off; set plateau_factor, such as 0.1"
            problems += unused(self, ("plateau_patience", "min_factor"), why)
        if self.decay == "constant":
            why = "has no use with decay = 'constant'; choose 'linear' or 'cosine'"
            problems += unused(self, ("final_factor",), why)
        return problems


@dataclasses.dataclass(slots=True, kw_only=True)
class OptimizerConfig(RangedConfig):
    """Dense and sparse optimizer under one schedule."""

    dense: DenseOptimizerConfig = dataclasses.field(
        default_factory=DenseOptimizerConfig
    )
    sparse: SparseOptimizerConfig = dataclasses.field(
        default_factory=SparseOptimizerConfig
    )
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)


@dataclasses.dataclass(slots=True, kw_only=True)
class EvalConfig(RangedConfig):
    """Validation during training, and the final reading of the test split.

    Attributes:
        every_steps: 0 = at the end of every epoch.
        batch_size: 0 = `train.batch_size`.
        metric: selection metric, "<task>/<metric>", or "mean/<metric>" for the plain
            mean over the tasks; "" = AUC of the first task.
        early_stopping_patience: stop after this many evaluations without a better
            metric; 0 = off. The best checkpoint is what gets tested either way.
        exact_auc: sort all scores instead of the bit-pattern histogram.
        save_predictions: write `predictions.parquet` of the test split.
        test: read the test split at the end of the run. Off for tuning trials; the same
            command with it on completes such a run from its best checkpoint.
        slices: slices of the dataset card to report the test split by; empty = all.
        top_k: report hit rate and NDCG of the first `top_k` candidates of each group
            (`rankax.metrics.ranking`); 0 = off.
    """

    every_steps: int = 0
    batch_size: int = 0
    metric: str = ""
    early_stopping_patience: int = 0
    exact_auc: bool = False
    save_predictions: bool = False
    test: bool = True
    slices: tuple[str, ...] = ()
    top_k: int = 0


@dataclasses.dataclass(slots=True, kw_only=True)
class CheckpointConfig(RangedConfig):
    """When checkpoints are saved, which are kept, and what a new run starts with.

    Attributes:
        every_steps: save at these steps too; they are saved at every evaluation.
        keep_last: the newest ones.
        keep_best: the newest of those that were the best by validation when saved; the
            run tests the last of them.
        keep_every: all whose step is a multiple; 0 = off.
        init_from: start with what another run has learned: its folder, for its best
            checkpoint (the newest if none was evaluated), or `checkpoints/<step>` in
            it. Acts where this run has no checkpoint of its own. Step, rng, schedule
            and input begin anew.
        init_patterns: which entries to take, such as "tables/embedding/user" or
            "network/backbone/*"; * stands for anything, "/" too. What does not fit is
            left as initialised, tables of another size are taken as far as they go,
            and the console says what became of each. Weights of the network are taken
            by name and shape: leave layers out whose inputs have changed places.
            Empty = all of them, and any difference is an error.
        init_rename: tables that have another name there, "new_name=old_name".
    """

    every_steps: int = 0
    keep_last: int = 1
    keep_best: int = 1
    keep_every: int = 0
    init_from: str = ""
    init_patterns: tuple[str, ...] = ()
    init_rename: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """What to take without where from, and renames of another form."""
        problems = [
            f"init_rename = {self.init_rename}: {rename!r} must be 'new_name=old_name'"
            for rename in self.init_rename
            if not all(rename.split("=")) or rename.count("=") != 1
        ]
        if not self.init_from:
            why = "has no use without init_from; set that"
            problems += unused(self, ("init_patterns", "init_rename"), why)
        return problems


@dataclasses.dataclass(slots=True, kw_only=True)
class ObserveConfig(RangedConfig):
    """What the run tells while it goes on and when it ends.

    Attributes:
        profile_steps: "100:110" traces the ten steps after step 100 with the profiler
            of jax, into `profile/` of the run folder; "" = off.
    """

    log_every: int = 50
    tensorboard: bool = True
    report: bool = True
    profile_steps: str = ""

    def problems(self) -> list[str]:
        """Steps to profile that are no range."""
        first, last = step_range(self.profile_steps)
        if self.profile_steps and first >= last:
            return [
                f"profile_steps = {self.profile_steps!r} must be FIRST:LAST with FIRST "
                "below LAST, such as '100:110' for the ten steps after step 100"
            ]
        return []


def step_range(text: str) -> tuple[int, int]:
    """Reads "FIRST:LAST", steps after FIRST up to LAST; (0, 0) for anything else."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        return 0, 0
    return int(first), int(last)


@dataclasses.dataclass(slots=True, kw_only=True)
class ProgressiveConfig(RangedConfig):
    """With --mode=progressive: training window by window, publishing in between.

    Attributes:
        staleness: the model that was trained on window t is evaluated on window
            t + 1 + s for each of these s: what it would be worth if nothing was
            published for s windows. Ascending from 0, which is the evaluation of every
            window before it is trained on.
        publish: write a bundle after the first window, and a delta after each other.
        dense_every: dense parameters go with every so many-th delta.
        max_delta_bytes: limit of the rows of a delta; those that have moved furthest go
            first, the others with later ones; 0 = none.
    """

    staleness: tuple[int, ...] = option((0, 1, 2, 4), least=0)
    publish: bool = True
    dense_every: int = option(1, least=1)
    max_delta_bytes: int = 0

    def problems(self) -> list[str]:
        """Stalenesses that are not ascending from 0."""
        own = self.staleness
        if not own or own[0] != 0 or list(own) != sorted(set(own)):
            return [f"staleness = {own} must ascend from 0, such as (0, 1, 2, 4)"]
        return []


@dataclasses.dataclass(slots=True, kw_only=True)
class MeshConfig(RangedConfig):
    """Devices along each mesh axis; `data` 0 = all devices / `model`."""

    data: int = 0
    model: int = 1


@dataclasses.dataclass(slots=True, kw_only=True)
class ExperimentConfig(Config):
    """Everything that decides a run's result."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    tables: TablesConfig = dataclasses.field(default_factory=TablesConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    observe: ObserveConfig = dataclasses.field(default_factory=ObserveConfig)
    progressive: ProgressiveConfig = dataclasses.field(
        default_factory=ProgressiveConfig
    )
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def validate(self) -> None:
        """Raises one `ConfigError` that lists every broken rule with advice."""
        problems = [
            f"{name}{problem}"
            for name, section in _sections(self)
            for problem in section.broken_rules()
        ]
        problems += _rules(self)
        if problems:
            raise ConfigError(
                "the configuration cannot be used:\n"
                + "\n".join(f"  - {problem}" for problem in problems)
            )


def _sections(config: Config, prefix: str = "") -> Iterator[tuple[str, RangedConfig]]:
    """Yields every section below one, with its name and a dot."""
    for name, value in config.options():
        if isinstance(value, RangedConfig):
            yield f"{prefix}{name}.", value
            yield from _sections(value, f"{prefix}{name}.")


def _rules(config: ExperimentConfig) -> list[str]:
    """Rules between options."""
    problems = []
    data, train = config.data, config.train
    lanes = max(data.lanes, 1)
    if type(config.model.backbone) is BackboneConfig:
        problems.append(
            "model.backbone is not set; choose one of rankax.models.backbones, "
            "for example DCNv2Config()"
        )
    if type(data.source) is SourceConfig:
        problems.append("data.source is not set; use ParquetConfig or SyntheticConfig")
    if isinstance(data.source, ParquetConfig) and not data.source.path:
        problems.append("data.source.path is empty; set it to a dataset folder")
    for name, size in (
        ("train.batch_size", train.batch_size),
        ("eval.batch_size", config.eval.batch_size),
    ):
        if size % lanes:
            problems.append(
                f"{name} = {size} must be a multiple of data.lanes = {lanes}; "
                f"use {max(size // lanes, 1) * lanes} or other lanes"
            )
    if (train.num_steps > 0) == (train.num_epochs > 0):
        problems.append(
            f"train.num_steps = {train.num_steps} and train.num_epochs = "
            f"{train.num_epochs}: set exactly one of them"
        )
    metric, top_k = config.eval.metric, config.eval.top_k
    _, at, k = metric.rpartition("/")[2].partition("@")
    if at and k.isdigit() and int(k) != top_k:
        problems.append(
            f"eval.metric = {metric!r} is of the first {k}, but eval.top_k = {top_k}; "
            "set both to one number"
        )
    weights = config.model.task_weights
    if weights and data.tasks and len(weights) != len(data.tasks):
        problems.append(
            f"model.task_weights has {len(weights)} values for {len(data.tasks)} "
            f"tasks {data.tasks}"
        )
    return problems
