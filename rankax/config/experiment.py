"""The whole of a run's configuration: one dataclass a section, one check for all.

An experiment file returns an `ExperimentConfig` from `get_config(arg)`. Rules that a
single value cannot show (batch against lanes, one option against another) stand in
`ExperimentConfig.validate`; rules that need the data set are checked where it is read.
"""

from collections.abc import Mapping
import dataclasses
import itertools
import math

from rankax.config.base import Config, ConfigError, suggest
from rankax.config.ranges import RangedConfig

DENSE_OPTIMIZERS = ("adam", "adamw", "adagrad", "sgd")
# Row optimizer -> those of its options that not all of them use.
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
    "checkpoint",
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
class DataConfig(Config):
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
    """

    source: SourceConfig = dataclasses.field(default_factory=ParquetConfig)
    tasks: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    lanes: int = 16
    shuffle: bool = True
    time_window: int = 0
    num_threads: int = 1
    prefetch_batches: int = 2


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
class TablesConfig(Config):
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
    """

    num_shards: int = 1024
    replicate_below_bytes: int = 1 << 20
    dtype: str = "float32"
    out_of_range: str = "error"
    deduplicate: str = "host"
    capacity_margin: float = 6.0
    track_last_step: bool = False


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
class ModelConfig(Config):
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
    compute_dtype: str = "float32"


# ---------------------------------------------------------------- training


@dataclasses.dataclass(slots=True, kw_only=True)
class TrainConfig(Config):
    """Length of the run. Exactly one of `num_steps` and `num_epochs` is set."""

    seed: int = 0
    batch_size: int = 4096
    num_steps: int = 0
    num_epochs: int = 0


@dataclasses.dataclass(slots=True, kw_only=True)
class DenseOptimizerConfig(Config):
    """Optimizer (optax) of network weights and replicated tables.

    Attributes:
        l2: λ of (λ/2)·‖W‖² on kernels of the network (not on biases and norms).
        table_l2: λ of (λ/2)·‖E‖² on whole replicated tables.
        weight_decay: decoupled decay of kernels, "adamw" only.
        clip_norm: bound of the global gradient norm; 0 = off.
    """

    name: str = "adam"
    learning_rate: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    l2: float = 0.0
    table_l2: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 0.0


@dataclasses.dataclass(slots=True, kw_only=True)
class SparseOptimizerConfig(Config):
    """Row optimizer of row-sharded tables; formulas in `embeddings/optimizers.py`.

    Attributes:
        initial_accumulator: of both kinds of Adagrad.
        b1: decay of the gradient's mean, "lazy_adam" only.
        b2: decay of the squared gradient's mean, "lazy_adam" only.
        weight_decay: decoupled decay of the rows that a step touches.
    """

    name: str = "rowwise_adagrad"
    learning_rate: float = 0.02
    eps: float = 1e-8
    initial_accumulator: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0


@dataclasses.dataclass(slots=True, kw_only=True)
class ScheduleConfig(Config):
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
    decay: str = "constant"
    final_factor: float = 0.0
    plateau_factor: float = 0.0
    plateau_patience: int = 1
    min_factor: float = 1e-3


@dataclasses.dataclass(slots=True, kw_only=True)
class OptimizerConfig(Config):
    """Dense and sparse optimizer under one schedule."""

    dense: DenseOptimizerConfig = dataclasses.field(
        default_factory=DenseOptimizerConfig
    )
    sparse: SparseOptimizerConfig = dataclasses.field(
        default_factory=SparseOptimizerConfig
    )
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)


@dataclasses.dataclass(slots=True, kw_only=True)
class EvalConfig(Config):
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
class CheckpointConfig(Config):
    """Checkpoints are saved at every evaluation, and every `every_steps` if set."""

    every_steps: int = 0
    keep_last: int = 1


@dataclasses.dataclass(slots=True, kw_only=True)
class ObserveConfig(Config):
    """What the run tells while it goes on and when it ends."""

    log_every: int = 50
    tensorboard: bool = True
    report: bool = True


@dataclasses.dataclass(slots=True, kw_only=True)
class MeshConfig(Config):
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
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def validate(self) -> None:
        """Raises one `ConfigError` that lists every broken rule with advice."""
        problems = [*_ranges(self), *_choices(self), *_rules(self)]
        if problems:
            raise ConfigError(
                "the configuration cannot be used:\n"
                + "\n".join(f"  - {problem}" for problem in problems)
            )


def _ranges(config: ExperimentConfig) -> list[str]:
    """Smallest allowed value of each number."""
    c = config
    at_least = {
        "data.lanes": (c.data.lanes, 1),
        "data.time_window": (c.data.time_window, 0),
        "data.num_threads": (c.data.num_threads, 1),
        "data.prefetch_batches": (c.data.prefetch_batches, 1),
        "tables.num_shards": (c.tables.num_shards, 1),
        "tables.replicate_below_bytes": (c.tables.replicate_below_bytes, 0),
        "tables.capacity_margin": (c.tables.capacity_margin, 0),
        "train.seed": (c.train.seed, 0),
        "train.batch_size": (c.train.batch_size, 1),
        "train.num_steps": (c.train.num_steps, 0),
        "train.num_epochs": (c.train.num_epochs, 0),
        "optimizer.dense.learning_rate": (c.optimizer.dense.learning_rate, 0),
        "optimizer.dense.l2": (c.optimizer.dense.l2, 0),
        "optimizer.dense.table_l2": (c.optimizer.dense.table_l2, 0),
        "optimizer.dense.weight_decay": (c.optimizer.dense.weight_decay, 0),
        "optimizer.dense.clip_norm": (c.optimizer.dense.clip_norm, 0),
        "optimizer.sparse.learning_rate": (c.optimizer.sparse.learning_rate, 0),
        "optimizer.sparse.eps": (c.optimizer.sparse.eps, 0),
        "optimizer.sparse.initial_accumulator": (
            c.optimizer.sparse.initial_accumulator,
            0,
        ),
        "optimizer.sparse.b1": (c.optimizer.sparse.b1, 0),
        "optimizer.sparse.b2": (c.optimizer.sparse.b2, 0),
        "optimizer.sparse.weight_decay": (c.optimizer.sparse.weight_decay, 0),
        "optimizer.schedule.warmup_steps": (c.optimizer.schedule.warmup_steps, 0),
        "optimizer.schedule.plateau_factor": (c.optimizer.schedule.plateau_factor, 0),
        "optimizer.schedule.plateau_patience": (
            c.optimizer.schedule.plateau_patience,
            1,
        ),
        "eval.every_steps": (c.eval.every_steps, 0),
        "eval.batch_size": (c.eval.batch_size, 0),
        "eval.top_k": (c.eval.top_k, 0),
        "eval.early_stopping_patience": (c.eval.early_stopping_patience, 0),
        "checkpoint.every_steps": (c.checkpoint.every_steps, 0),
        "checkpoint.keep_last": (c.checkpoint.keep_last, 1),
        "observe.log_every": (c.observe.log_every, 1),
        "mesh.data": (c.mesh.data, 0),
        "mesh.model": (c.mesh.model, 1),
    }
    return [
        f"{name} = {value} must be at least {minimum}"
        for name, (value, minimum) in at_least.items()
        if not value >= minimum
    ]


def _choices(config: ExperimentConfig) -> list[str]:
    """Names that must be one of a list."""
    choices = {
        "tables.dtype": (config.tables.dtype, ROW_DTYPES),
        "tables.out_of_range": (config.tables.out_of_range, OUT_OF_RANGE),
        "model.compute_dtype": (config.model.compute_dtype, COMPUTE_DTYPES),
        "tables.deduplicate": (config.tables.deduplicate, DEDUPLICATE),
        "optimizer.dense.name": (config.optimizer.dense.name, DENSE_OPTIMIZERS),
        "optimizer.sparse.name": (
            config.optimizer.sparse.name,
            tuple(ROW_OPTIMIZERS),
        ),
        "optimizer.schedule.decay": (config.optimizer.schedule.decay, DECAYS),
    }
    return [
        f"{name} = {value!r} is unknown; {suggest(value, known)}"
        for name, (value, known) in choices.items()
        if value not in known
    ]


def _rules(config: ExperimentConfig) -> list[str]:
    """Rules between options."""
    problems = []
    data, train, dense = config.data, config.train, config.optimizer.dense
    schedule = config.optimizer.schedule
    lanes = max(data.lanes, 1)
    if type(config.model.backbone) is BackboneConfig:
        problems.append(
            "model.backbone is not set; choose one of rankax.models.backbones, "
            "for example DCNv2Config()"
        )
    for section, part in (
        ("model.backbone", config.model.backbone),
        ("model.sequence", config.model.sequence),
    ):
        problems += [f"{section}.{problem}" for problem in part.broken_rules()]
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
    if math.isinf(config.tables.capacity_margin):
        problems.append("tables.capacity_margin must be finite; 6 is usual")
    if config.tables.num_shards & (config.tables.num_shards - 1):
        problems.append(
            f"tables.num_shards = {config.tables.num_shards} must be a power of two"
        )
    if dense.weight_decay > 0 and dense.name != "adamw":
        problems.append(
            f"optimizer.dense.weight_decay is used by 'adamw' only, not {dense.name!r};"
            " set optimizer.dense.l2 or the other optimizer"
        )
    problems += _row_optimizer_rules(config.optimizer.sparse)
    if schedule.plateau_factor >= 1:
        problems.append(
            f"optimizer.schedule.plateau_factor = {schedule.plateau_factor} "
            "must be below 1 (0 = off)"
        )
    if schedule.decay == "constant" and schedule.final_factor:
        problems.append(
            "optimizer.schedule.final_factor has no use with decay = 'constant'; "
            "choose 'linear' or 'cosine'"
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


def _row_optimizer_rules(sparse: SparseOptimizerConfig) -> list[str]:
    problems = []
    own = ROW_OPTIMIZERS.get(sparse.name)
    if own is None:  # reported with the other unknown names
        return problems
    default = SparseOptimizerConfig()
    for option in sorted(set(itertools.chain(*ROW_OPTIMIZERS.values())) - set(own)):
        value, usual = getattr(sparse, option), getattr(default, option)
        if value != usual:
            users = [name for name, other in ROW_OPTIMIZERS.items() if option in other]
            problems.append(
                f"optimizer.sparse.{option} = {value} is not used by {sparse.name!r} "
                f"but by {', '.join(users)}; leave it at {usual} or choose one of those"
            )
    for option in ("b1", "b2"):
        if getattr(sparse, option) >= 1:
            problems.append(
                f"optimizer.sparse.{option} = {getattr(sparse, option)} must be below 1"
            )
    if "eps" in own and sparse.eps == 0 and sparse.initial_accumulator == 0:
        problems.append(
            "optimizer.sparse.eps = 0 divides 0 by 0 where a gradient is zero; set it "
            "to a small positive number"
        )
    return problems
