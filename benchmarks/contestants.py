"""Who runs in `benchmarks/embedding.py`: one step of the same network, six ways.

The network: 26 categorical fields of dim D, an MLP 26·D → 64 → 1, log loss. Every
contestant starts from equal network weights and equally distributed tables, sees the
same ids and labels, and moves the network by Adam. A contestant is a function that
takes a `Workload` and returns its `Program`; none needs what another one needs, so that
frameworks are imported inside.
"""

from collections import deque
from collections.abc import Callable
from concurrent import futures
import dataclasses
import functools
import itertools
from typing import Any

import numpy as np

NUM_FIELDS = 26
HIDDEN = 64
TABLE_BOUND = 1e-2  # tables start uniform in ± this
NETWORK_RATE = 1e-3
ROW_RATE = 0.02  # of row-wise Adagrad, as in rankax's default
EPS = 1e-8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Examples and size of the tables.

    Attributes:
        num_rows: V of all fields together, of equal size (rounded down).
        dim: D.
        batch_size: B.
        num_fields: F.
        num_batches: distinct batches, which a trial repeats.
        exponent: of the power law that ids follow within a field.
        seed: same seed, same examples.
    """

    num_rows: int
    dim: int
    batch_size: int
    num_fields: int = NUM_FIELDS
    num_batches: int = 32
    exponent: float = 1.05
    seed: int = 0

    @property
    def field_rows(self) -> int:
        """Rows of one field's table."""
        return self.num_rows // self.num_fields

    @property
    def table_bytes(self) -> int:
        """Size of all tables, float32."""
        return self.field_rows * self.num_fields * self.dim * 4

    def batches(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids [n, B, F] int32, rows within a field, and labels [n, B] float32.

        Frequent ids are scattered over the table. Every id adds a fixed amount to the
        logit, so that there is something to learn.
        """
        rng = np.random.default_rng(self.seed)
        shape = (self.num_batches, self.batch_size)
        ids = np.empty((*shape, self.num_fields), np.int32)
        logits = np.full(shape, -1.0)
        size, power = self.field_rows, 1 - self.exponent
        for field in range(self.num_fields):
            # Inverse distribution function of the density x^-exponent on [1, size + 1).
            u = rng.random(shape)
            x = (1 - u * (1 - (size + 1) ** power)) ** (1 / power)
            rank = np.minimum(x.astype(np.int64) - 1, size - 1)
            ids[..., field] = rank * 2_654_435_761 % size  # a prime: one to one
            logits += 0.4 * np.sin(rank + 7 * field)
        labels = rng.random(shape) < 1 / (1 + np.exp(-logits))
        return ids, labels.astype(np.float32)

    def network(self) -> dict[str, np.ndarray]:
        """Returns the initial weights of the MLP.

        Kernels are [out, in], as PyTorch has them: XLA's gradient of such a kernel
        takes half the time on CPU.
        """
        rng = np.random.default_rng(self.seed + 1)
        widths = (self.num_fields * self.dim, HIDDEN, 1)
        weights = {}
        for layer, (before, after) in enumerate(itertools.pairwise(widths)):
            kernel = rng.normal(0, (2 / before) ** 0.5, (after, before))
            weights[f"kernel_{layer}"] = kernel.astype(np.float32)
            weights[f"bias_{layer}"] = np.zeros(after, np.float32)
        return weights


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A contestant, ready to run.

    Attributes:
        step: takes one step and returns its loss, [] of any framework.
        finish: waits until all steps given so far are done.
        prepare: what a pipeline thread does for one batch, if anything.
        waits: seconds that each step so far waited for its batch, if it has to.
        num_dense_parameters: weights outside the tables, where contestants compare
            them.
    """

    step: Callable[[], Any]
    finish: Callable[[], Any]
    prepare: Callable[[], Any] | None = None
    waits: list[float] = dataclasses.field(default_factory=list)
    num_dense_parameters: int = 0


# ---------------------------------------------------------------- JAX


def jax_loss(network: dict, embedded: Any, labels: Any) -> Any:
    """Log loss [] of the MLP on embedded ids [B, F, D]."""
    import jax
    import optax

    x = embedded.reshape(len(labels), -1)
    hidden = jax.nn.relu(x @ network["kernel_0"].T + network["bias_0"])
    logits = (hidden @ network["kernel_1"].T + network["bias_1"])[:, 0]
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean()


def row_optimizer() -> Any:
    """Returns the engine's row-wise Adagrad."""
    from rankax.embeddings import optimizers

    return optimizers.rowwise_adagrad(eps=EPS, initial_accumulator=0.0)


def make_engine(workload: Workload, mesh: Any) -> Any:
    """Returns the table engine with all fields' tables sharded by row."""
    from rankax.config.experiment import TablesConfig, TableSpec
    from rankax.embeddings.engine import TableEngine
    from rankax.embeddings.placement import plan_tables

    names = [f"c{field:02d}" for field in range(workload.num_fields)]
    specs = [
        TableSpec(
            name=name,
            role="embedding",
            num_rows=workload.field_rows,
            dim=workload.dim,
            init="uniform",
            init_scale=TABLE_BOUND,
        )
        for name in names
    ]
    config = TablesConfig(replicate_below_bytes=0)  # small ones too: this is measured
    plan = plan_tables(specs, column_tables=names, config=config, num_devices=mesh.size)
    sample = dataclasses.replace(workload, num_batches=1).batches()[0][0]
    return TableEngine(plan, mesh, row_optimizer(), config=config, sample_ids=sample)


def engine_program(workload: Workload, mesh: Any) -> tuple[Any, Any, Any, Any]:
    """Returns engine, init() -> state, route(ids, labels) -> batch, and the step."""
    import jax
    import jax.numpy as jnp
    import optax

    from rankax.parallel import mesh as meshes

    engine = make_engine(workload, mesh)
    adam = optax.adam(NETWORK_RATE)

    def init():
        network = jax.tree.map(jnp.array, workload.network())
        dense = {
            "network": network,
            "moments": adam.init(network),
            "step": jnp.int32(0),
        }
        dense = jax.device_put(dense, meshes.replicated(mesh))
        return {**dense, "tables": engine.init_tables(jax.random.key(workload.seed))}

    def route(ids: np.ndarray, labels: np.ndarray):
        batch = {"routes": engine.route(ids), "labels": labels}
        return jax.device_put(batch, meshes.over_all_devices(mesh))

    def train(state, batch):
        requests = engine.request(batch["routes"])
        rows = engine.lookup(state["tables"], requests)

        def loss_of(network, rows):
            embedded = engine.embed({}, rows, requests)["embedding"]
            return jax_loss(network, embedded, batch["labels"])

        loss, (gradient, row_gradient) = jax.value_and_grad(loss_of, argnums=(0, 1))(
            state["network"], rows
        )
        updates, moments = adam.update(gradient, state["moments"])
        tables = engine.update(
            state["tables"],
            requests,
            rows,
            row_gradient,
            learning_rate=jnp.float32(ROW_RATE),
            step=state["step"],
            enabled=jnp.isfinite(loss) & engine.fits(requests),
        )
        network = optax.apply_updates(state["network"], updates)
        new = {"network": network, "moments": moments, "step": state["step"] + 1}
        return {**new, "tables": tables}, loss

    return engine, init, route, train


def rankax(workload: Workload) -> Program:
    """Row-wise Adagrad by the engine; a thread routes the ids of the next batches."""
    import jax

    from rankax.parallel import mesh as meshes

    _, init, route, train = engine_program(
        workload, meshes.make_mesh(devices=jax.devices()[:1])
    )
    train = jax.jit(train, donate_argnums=0)
    state = init()
    batches = itertools.cycle(zip(*workload.batches(), strict=True))
    thread = futures.ThreadPoolExecutor(1)
    ready = deque(thread.submit(route, *next(batches)) for _ in range(2))
    loss = np.float32(0)

    def step():
        nonlocal state, loss
        running, batch = loss, ready.popleft().result()
        ready.append(thread.submit(route, *next(batches)))
        state, loss = train(state, batch)
        jax.block_until_ready(running)  # one step runs, one is queued
        return loss

    return Program(
        step=step,
        finish=lambda: jax.block_until_ready((state, [x.result() for x in ready])),
        prepare=lambda: jax.block_until_ready(route(*next(batches))),
    )


def jax_adam(workload: Workload) -> Program:
    """A table that is a parameter like any other: dense gradient, optax.adam."""
    import jax
    import jax.numpy as jnp
    import optax

    adam = optax.adam(NETWORK_RATE)
    shape = (workload.num_fields * workload.field_rows, workload.dim)

    @jax.jit
    def init(network, key):
        table = jax.random.uniform(key, shape, minval=-TABLE_BOUND, maxval=TABLE_BOUND)
        params = {"network": network, "table": table}
        return params, adam.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train(params, moments, ids, labels):
        def loss_of(params):
            return jax_loss(params["network"], params["table"][ids], labels)

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, moments = adam.update(gradient, moments)
        return optax.apply_updates(params, updates), moments, loss

    params, moments = init(workload.network(), jax.random.key(workload.seed))
    ids, labels = workload.batches()
    ids += np.arange(workload.num_fields, dtype=np.int32) * workload.field_rows
    batches = itertools.cycle(
        zip(list(map(jnp.array, ids)), list(map(jnp.array, labels)), strict=True)
    )
    loss = np.float32(0)

    def step():
        nonlocal params, moments, loss
        running = loss
        params, moments, loss = train(params, moments, *next(batches))
        jax.block_until_ready(running)
        return loss

    return Program(step=step, finish=lambda: jax.block_until_ready((params, moments)))


# ---------------------------------------------------------------- PyTorch


def torch_step(workload: Workload, *, tables: str) -> Program:
    """The MLP in PyTorch (eager) on tables that `torch_program` knows."""
    import torch
    from torch import nn

    torch.manual_seed(workload.seed)
    start = {name: torch.from_numpy(x) for name, x in workload.network().items()}
    first = nn.Linear(workload.num_fields * workload.dim, HIDDEN)
    last = nn.Linear(HIDDEN, 1)
    for layer, linear in enumerate((first, last)):
        linear.weight.data = start[f"kernel_{layer}"]
        linear.bias.data = start[f"bias_{layer}"]
    ids, labels = workload.batches()
    return torch_program(
        nn.Sequential(first, nn.ReLU(), last),
        ids + np.arange(workload.num_fields) * workload.field_rows,  # int64
        labels,
        tables=tables,
        shape=(workload.num_fields * workload.field_rows, workload.dim),
    )


def torch_program(
    network: Any,
    ids: np.ndarray,
    labels: np.ndarray,
    *,
    tables: str,
    shape: tuple[int, int],
) -> Program:
    """Trains a network on one table of all fields in PyTorch (eager).

    Args:
        network: module that maps [B, F·D] to a logit [B, 1].
        ids: rows of the table, [n, B, F] int64.
        labels: [n, B] float32.
        tables: "adam", "fused_adam", "sparse_adam" or "fbgemm".
        shape: of the table, (V, D).
    """
    import torch
    from torch import nn

    on_gpu = torch.cuda.is_available() and tables != "fbgemm"
    device = torch.device("cuda" if on_gpu else "cpu")
    network = network.to(device)
    _, batch_size, num_fields = ids.shape
    if tables == "fbgemm":  # all ids of the first field, then all of the second, ..
        ids = ids.transpose(0, 2, 1).reshape(len(ids), -1)
        bags = _fbgemm_bags(shape, num_fields)
        offsets = torch.arange(num_fields * batch_size + 1)
        optimizers = [torch.optim.Adam(network.parameters(), lr=NETWORK_RATE)]

        def lookup(ids):  # the backward pass moves the rows
            return bags(ids, offsets)
    else:
        table, optimizers = _torch_table(network, tables, shape, device)

        def lookup(ids):
            return table(ids).flatten(1)

    batches = itertools.cycle(
        zip(
            torch.from_numpy(ids).to(device),
            torch.from_numpy(labels).to(device),
            strict=True,
        )
    )

    def step():
        ids, labels = next(batches)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        logits = network(lookup(ids))[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return loss.detach()

    return Program(
        step=step,
        finish=torch.cuda.synchronize if on_gpu else lambda: None,
        num_dense_parameters=sum(p.numel() for p in network.parameters()),
    )


def _torch_table(network: Any, tables: str, shape: tuple[int, int], device: Any):
    """Returns a table that PyTorch trains, and the optimizers of it and the network."""
    import torch
    from torch import nn

    table = nn.Embedding.from_pretrained(
        torch.empty(shape, device=device).uniform_(-TABLE_BOUND, TABLE_BOUND),
        freeze=False,
        sparse=tables == "sparse_adam",
    )
    dense, rows = list(network.parameters()), [table.weight]
    if tables == "sparse_adam":
        optimizers = [
            torch.optim.SparseAdam(rows, lr=NETWORK_RATE),
            torch.optim.Adam(dense, lr=NETWORK_RATE),
        ]
    else:
        fused = tables == "fused_adam"
        optimizers = [torch.optim.Adam(dense + rows, lr=NETWORK_RATE, fused=fused)]
    return table, optimizers


def _fbgemm_bags(shape: tuple[int, int], num_fields: int) -> Any:
    """FBGEMM's table of all fields with row-wise Adagrad in its backward pass.

    One stacked table with one feature per field, each a bag of one id, is its fastest
    arrangement on CPU: 26 tables take 3 times as long, unpooled lookup 5 to 9 times.
    """
    from fbgemm_gpu import split_embedding_configs as configs
    from fbgemm_gpu import split_table_batched_embeddings_ops_common as common
    from fbgemm_gpu import split_table_batched_embeddings_ops_training as training
    import torch

    bags = training.SplitTableBatchedEmbeddingBagsCodegen(
        [(*shape, common.EmbeddingLocation.HOST, training.ComputeDevice.CPU)],
        feature_table_map=[0] * num_fields,
        optimizer=configs.EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=ROW_RATE,
        eps=EPS,
        device=torch.device("cpu"),
    )
    bags.init_embedding_weights_uniform(-TABLE_BOUND, TABLE_BOUND)
    return bags


# ---------------------------------------------------------------- all


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A line of the table.

    Attributes:
        title: its name there.
        build: makes it ready to run.
        copies: arrays of the tables' size that its step holds.
        row_bytes: optimizer state beside, per row.
        module: that must be installed.
    """

    title: str
    build: Callable[[Workload], Program]
    copies: int
    row_bytes: int = 0
    module: str = "torch"

    def needed_bytes(self, workload: Workload) -> int:
        """Memory that grows with the tables; more than the machine's cannot run."""
        rows = workload.num_fields * workload.field_rows
        return self.copies * workload.table_bytes + self.row_bytes * rows


def _torch(tables: str) -> Callable[[Workload], Program]:
    return functools.partial(torch_step, tables=tables)


CONTESTANTS = {
    "rankax": Contestant(
        title="rankax, row-wise Adagrad",
        build=rankax,
        copies=1,
        row_bytes=4,
        module="jax",
    ),
    "fbgemm": Contestant(
        title="FBGEMM (CPU), row-wise Adagrad",
        build=_torch("fbgemm"),
        copies=1,
        row_bytes=4,
        module="fbgemm_gpu",
    ),
    "torch_sparse_adam": Contestant(
        title="PyTorch, SparseAdam", build=_torch("sparse_adam"), copies=3
    ),
    # Weights, gradient and two moments; PyTorch's plain kernel has two temporaries.
    "torch_fused_adam": Contestant(
        title="PyTorch, fused dense Adam", build=_torch("fused_adam"), copies=4
    ),
    "torch_adam": Contestant(
        title="PyTorch, dense Adam", build=_torch("adam"), copies=6
    ),
    "jax_adam": Contestant(
        title="JAX, dense optax.adam", build=jax_adam, copies=4, module="jax"
    ),
}
