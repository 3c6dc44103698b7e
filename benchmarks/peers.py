"""Who runs in `benchmarks/models.py`: one training step of one DCN-v2, seven ways.

The network: F categorical fields of dim D, a cross tower of full-rank layers beside an
MLP, one logit, log loss. All see the same examples, in batches of the same size:

- rankax reads a dataset folder with its own reader, routes the ids and runs the step:
  the whole path of a training run. Adam on dense weights, row-wise Adagrad on all
  tables, small ones too (which would be replicated and left to Adam by default).
- The others take ready batches from memory, ids already converted, so that their time
  is the step alone. FBGEMM's table moves its rows by row-wise Adagrad too, under the
  same network in PyTorch; PyTorch's own tables have three kinds of Adam; FuxiCTR is
  its `BaseModel.train_step`: dense Adam and clipping by the norm of all gradients.

A contestant is a function that takes a `Workload` and the folder of its examples, and
returns its `Program`; frameworks are imported inside.
"""

from collections.abc import Callable
import dataclasses
import functools
import itertools
import pathlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import contestants
from benchmarks.contestants import Program
from rankax.config.experiment import BackboneConfig, ExperimentConfig, ParquetConfig
from rankax.data.card import Card, CategoricalField, Label, Split, Table

if TYPE_CHECKING:
    from rankax.training.step import Steps

LANES = 16
EMBEDDING_STD = contestants.TABLE_BOUND / 3**0.5  # of what is uniform in ± the bound
CLIP_NORM = 10.0  # FuxiCTR's default


# ---------------------------------------------------------------- workload


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The examples and the network.

    Attributes:
        num_fields: F.
        num_rows: V of all tables together.
        dim: D.
        batch_size: B.
        num_batches: batches of distinct examples, which a trial repeats.
        num_cross_layers: depth of the cross tower.
        hidden_dims: widths of the MLP.
        exponent: of the power law that ids follow within a field.
        seed: same seed, same examples.
    """

    num_fields: int = 39
    num_rows: int = 1_000_000
    dim: int = 16
    batch_size: int = 4096
    num_batches: int = 64
    num_cross_layers: int = 3
    hidden_dims: tuple[int, ...] = (400, 400, 400)
    exponent: float = 1.05
    seed: int = 0

    @property
    def num_examples(self) -> int:
        """Distinct examples."""
        return self.num_batches * self.batch_size

    @property
    def table_bytes(self) -> int:
        """Size of all tables, float32."""
        return self.num_rows * self.dim * 4

    @property
    def fields(self) -> list[str]:
        """Names of the fields."""
        return [f"c{field:02d}" for field in range(self.num_fields)]

    def table_sizes(self) -> list[int]:
        """Rows of each field's table: a few large ones, many small, V in all."""
        shares = 0.75 ** np.arange(self.num_fields)
        sizes = [max(10, int(self.num_rows * s / shares.sum())) for s in shares]
        sizes[0] += self.num_rows - sum(sizes)
        if sizes[0] < 10:
            raise SystemExit(
                f"--rows={self.num_rows} is too few for --fields={self.num_fields}; "
                f"use at least {20 * self.num_fields}"
            )
        return sizes

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids [n, F] int32, frequent ids first, and labels [n] int32."""
        rng = np.random.default_rng(self.seed)
        ids = np.empty((self.num_examples, self.num_fields), np.int32)
        logits = np.full(self.num_examples, -1.0)
        power = 1 - self.exponent
        for field, size in enumerate(self.table_sizes()):
            # Inverse distribution function of the density x^-exponent on [1, size + 1).
            u = rng.random(self.num_examples)
            x = (1 - u * (1 - (size + 1) ** power)) ** (1 / power)
            ids[:, field] = np.minimum(x.astype(np.int64) - 1, size - 1)
            logits += rng.normal(0, 0.2, size)[ids[:, field]]
        labels = rng.random(self.num_examples) < 1 / (1 + np.exp(-logits))
        return ids, labels.astype(np.int32)


def write_examples(workload: Workload, folder: pathlib.Path) -> None:
    """Writes a dataset folder for rankax, `ids.npy` and `labels.npy` for the peers."""
    (folder / "train").mkdir(parents=True)
    ids, labels = workload.examples()
    np.save(folder / "ids.npy", ids)
    np.save(folder / "labels.npy", labels)
    columns = {name: ids[:, field] for field, name in enumerate(workload.fields)}
    pq.write_table(
        pa.table({"ctr": labels, **columns}),
        folder / "train" / "0.parquet",
        row_group_size=-(-workload.num_examples // LANES),
        compression="snappy",
    )
    sizes = zip(workload.fields, workload.table_sizes(), strict=True)
    Card(
        name="benchmark",
        tables=tuple(Table(name=name, num_rows=size) for name, size in sizes),
        fields=tuple(CategoricalField(name=x, table=x) for x in workload.fields),
        labels=(Label(name="ctr"),),
        splits={"train": Split(num_rows=workload.num_examples)},
    ).save(folder)


def read_examples(
    workload: Workload, folder: pathlib.Path
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `write_examples` wrote: ids [n, B, F] int64, labels [n, B]."""
    shape = (workload.num_batches, workload.batch_size)
    ids = np.load(folder / "ids.npy").astype(np.int64)
    labels = np.load(folder / "labels.npy").astype(np.float32)
    return ids.reshape(*shape, -1), labels.reshape(shape)


# ---------------------------------------------------------------- rankax


def rankax(workload: Workload, folder: pathlib.Path) -> Program:
    """Trains the network in rankax, from the files on."""
    config = rankax_config(workload, folder, backbone(workload))
    config.tables.replicate_below_bytes = 0  # one optimizer for all rows, as FBGEMM has
    return rankax_program(config, rankax_steps(config))


def backbone(workload: Workload) -> BackboneConfig:
    """Returns the network as our configuration."""
    # Imported late: the peers' processes run from this file too, and need no jax.
    from rankax.models.backbones.dcnv2 import DCNv2Config

    return DCNv2Config(
        embedding_dim=workload.dim,
        embedding_init_std=EMBEDDING_STD,
        num_cross_layers=workload.num_cross_layers,
        hidden_dims=workload.hidden_dims,
    )


def rankax_config(
    workload: Workload, folder: pathlib.Path, model: BackboneConfig
) -> ExperimentConfig:
    """Returns a run of any backbone on the examples."""
    config = ExperimentConfig()
    config.data.source = ParquetConfig(path=str(folder))
    config.data.lanes = LANES
    config.model.backbone = model
    config.train.seed = workload.seed
    config.train.batch_size = workload.batch_size
    config.train.num_steps = 1  # of the schedule, which is not used
    config.validate()
    return config


def rankax_steps(config: ExperimentConfig) -> "Steps":
    """Returns the run's compiled steps, on one device."""
    import jax

    from rankax.data import source
    from rankax.data.schema import Schema
    from rankax.parallel import mesh
    from rankax.training.step import Steps

    schema = Schema.select(source.load_card(config.data.source))
    return Steps(config, schema, mesh.make_mesh(devices=jax.devices()[:1]))


def rankax_program(config: ExperimentConfig, steps: "Steps") -> Program:
    """Trains as `rankax.train` does, without logs and evaluations."""
    import jax

    from rankax.data import lanes, source

    state = steps.init_state()
    batches = lanes.read_batches(
        source.open_split(config.data.source, "train", steps.schema),
        steps.schema,
        batch_size=config.train.batch_size,
        lanes=config.data.lanes,
        seed=config.train.seed,
        shuffle=True,
        num_epochs=None,
        map_batch=steps.to_devices,
    )
    loss = np.float32(0)
    waits = []

    def step() -> Any:
        nonlocal state, loss
        begin = time.perf_counter()
        batch, _ = next(batches)
        waits.append(time.perf_counter() - begin)
        running = loss
        state, metrics, _ = steps.train(state, batch, factor=1.0)
        loss = metrics["loss"]
        # One step runs, one is queued. Further ahead, the loop would outrun the reader
        # and wait for it while the device is busy, which is no lost time.
        jax.block_until_ready(running)
        return loss

    return Program(
        step=step,
        finish=lambda: jax.block_until_ready(state),
        waits=waits,
        num_dense_parameters=steps.num_dense_parameters,
    )


# ---------------------------------------------------------------- PyTorch


def torch_network(workload: Workload) -> Any:
    """Returns the network as a module: [B, F·D] to a logit [B, 1]."""
    import torch
    from torch import nn

    width = workload.num_fields * workload.dim
    widths = (width, *workload.hidden_dims)

    class DCNv2(nn.Module):
        def __init__(self):
            super().__init__()
            self.cross = nn.ModuleList(
                nn.Linear(width, width) for _ in range(workload.num_cross_layers)
            )
            layers = []
            for before, after in itertools.pairwise(widths):
                layers += [nn.Linear(before, after), nn.ReLU()]
            self.mlp = nn.Sequential(*layers)
            self.head = nn.Linear(width + widths[-1], 1)

        def forward(self, x0):
            x = x0
            for layer in self.cross:
                x = x0 * layer(x) + x
            return self.head(torch.cat([x, self.mlp(x0)], dim=1))

    return DCNv2()


def torch_step(workload: Workload, folder: pathlib.Path, *, tables: str) -> Program:
    """The network in PyTorch on tables that `contestants.torch_program` knows."""
    import torch

    torch.manual_seed(workload.seed)
    ids, labels = read_examples(workload, folder)
    return contestants.torch_program(
        torch_network(workload),
        ids + np.cumsum([0, *workload.table_sizes()[:-1]]),
        labels,
        tables=tables,
        shape=(workload.num_rows, workload.dim),
    )


# ---------------------------------------------------------------- FuxiCTR


def fuxictr_model(workload: Workload) -> Any:
    """Returns the network as FuxiCTR has it: its layers, its `BaseModel`, its Adam."""
    from fuxictr import features
    from fuxictr.pytorch.layers import CrossNetV2, FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import BaseModel
    import torch
    from torch import nn

    feature_map = features.FeatureMap("benchmark", data_dir="")
    for name, size in zip(workload.fields, workload.table_sizes(), strict=True):
        feature_map.features[name] = {"type": "categorical", "vocab_size": size}
    feature_map.labels = ["ctr"]
    feature_map.default_emb_dim = workload.dim
    width = workload.num_fields * workload.dim

    class DCNv2(BaseModel):
        """Its package lacks the class of its model zoo; this is the same step."""

        def __init__(self):
            super().__init__(feature_map, verbose=0, model_root="", metrics=["AUC"])
            self.embedding_layer = FeatureEmbedding(
                feature_map,
                workload.dim,
                embedding_initializer=f"partial(nn.init.normal_, std={EMBEDDING_STD})",
            )
            self.cross = CrossNetV2(width, workload.num_cross_layers)
            self.mlp = MLP_Block(
                input_dim=width, hidden_units=list(workload.hidden_dims)
            )
            self.head = nn.Linear(width + workload.hidden_dims[-1], 1)
            self.compile("adam", "binary_crossentropy", contestants.NETWORK_RATE)
            self.reset_parameters()
            self._max_gradient_norm = CLIP_NORM  # what `fit` sets

        def forward(self, inputs):
            x = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
            logits = self.head(torch.cat([self.cross(x), self.mlp(x)], dim=1))
            return {"y_pred": self.output_activation(logits)}

    return DCNv2()


def fuxictr(workload: Workload, folder: pathlib.Path) -> Program:
    """FuxiCTR's training step on ready tensors, a column each."""
    import torch

    torch.manual_seed(workload.seed)
    model = fuxictr_model(workload)
    ids, labels = map(torch.from_numpy, read_examples(workload, folder))
    columns = ids.permute(0, 2, 1).contiguous()  # [n, F, B]
    batches = itertools.cycle(
        {"ctr": label, **dict(zip(workload.fields, rows, strict=True))}
        for rows, label in zip(columns, labels, strict=True)
    )
    model.train()
    dense = [p for x in (model.cross, model.mlp, model.head) for p in x.parameters()]
    return Program(
        step=lambda: model.train_step(next(batches)).detach(),
        finish=lambda: None,
        num_dense_parameters=sum(p.numel() for p in dense),
    )


# ---------------------------------------------------------------- all


@dataclasses.dataclass(frozen=True, slots=True)
class Contestant:
    """A line of the table."""

    title: str
    build: Callable[[Workload, pathlib.Path], Program]


def _torch(tables: str) -> Callable[[Workload, pathlib.Path], Program]:
    return functools.partial(torch_step, tables=tables)


CONTESTANTS = {
    "rankax": Contestant("rankax: row-wise Adagrad + Adam", rankax),
    "fbgemm": Contestant("FBGEMM: row-wise Adagrad + Adam", _torch("fbgemm")),
    "torch_sparse_adam": Contestant(
        "PyTorch: SparseAdam + Adam", _torch("sparse_adam")
    ),
    "torch_fused_adam": Contestant("PyTorch: fused Adam", _torch("fused_adam")),
    "torch_adam": Contestant("PyTorch: Adam", _torch("adam")),
    "fuxictr": Contestant("FuxiCTR: Adam, clipped", fuxictr),
}
