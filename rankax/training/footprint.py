"""What each device must hold of a run, table by table and module by module.

All of it follows from shapes and shardings: nothing is compiled or allocated. What a
compiler adds (padding, temporaries) it alone can tell: `rankax.training.ahead_of_time`.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from rankax.config.experiment import ExperimentConfig
from rankax.data.schema import Schema
from rankax.embeddings import sizes
from rankax.models.ranker import Ranker
from rankax.observe import traffic
from rankax.optim.dense import NETWORK
from rankax.parallel import mesh as meshes
from rankax.parallel.mesh import bytes_per_device
from rankax.training.step import Steps


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TableShare:
    """One table on one device; bytes are those of rows, optimizer and `last_step`."""

    name: str
    role: str
    num_rows: int
    dim: int
    dtype: str
    optimizer: str
    placement: str
    bytes_per_device: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModuleShare:
    """One module of the network on one device; bytes of weights and their moments."""

    name: str
    num_parameters: int
    bytes_per_device: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes of one device.

    Attributes:
        tables: of the run.
        modules: of the network.
        state: all of it, tables included.
        batch: one batch on its way through the step.
        activations: what the backward pass keeps.
        exchange: unique rows, their gradients, and what is sent and received.
        network_moments: of the optimizer of the network's weights.
    """

    tables: tuple[TableShare, ...]
    modules: tuple[ModuleShare, ...]
    state: int
    batch: int
    activations: int
    exchange: int
    network_moments: int

    @property
    def table_bytes(self) -> int:
        """Of all tables."""
        return sum(table.bytes_per_device for table in self.tables)

    @property
    def dense_bytes(self) -> int:
        """Of the network."""
        return sum(module.bytes_per_device for module in self.modules)

    @property
    def forecast(self) -> int:
        """What a device needs, until a compiler says it better.

        Activations count twice: gradients with respect to them come and go.
        """
        return self.state + self.batch + 2 * self.activations + self.exchange


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Bytes of all devices together, what each has a copy of counted once.

    Attributes:
        tables: rows that are split over the devices, and their optimizer's state.
        copied: what every device has: dense weights, small tables, their moments.
    """

    tables: int
    copied: int

    @property
    def total(self) -> int:
        """Of a checkpoint."""
        return self.tables + self.copied


def footprint(
    config: ExperimentConfig, schema: Schema, steps: Steps, batch: Mapping[str, Any]
) -> Footprint:
    """Returns what a device holds.

    Args:
        config: the run.
        schema: fields and tasks.
        steps: of the run, on its devices.
        batch: `Steps.abstract_batch`.
    """
    state = steps.abstract_state()
    examples = config.train.batch_size // steps.mesh.size
    # Optax keeps as many moments of every parameter, of replicated tables too.
    network = bytes_per_device(state.params[NETWORK])
    moments = bytes_per_device(state.opt_state)
    per_weight = moments / max(bytes_per_device(state.params), 1)
    return Footprint(
        tables=_tables(config, steps, state.tables),
        modules=_modules(state.params[NETWORK], per_weight),
        state=bytes_per_device(state),
        batch=bytes_per_device(batch),
        activations=round(
            examples * activation_bytes_per_example(config, schema, steps)
        ),
        exchange=_exchange(steps, examples),
        network_moments=round(per_weight * network),
    )


def whole(config: ExperimentConfig, schema: Schema) -> Whole:
    """Returns what a run trains and saves, on whatever devices."""
    mesh = meshes.make_mesh(data=1, devices=jax.devices("cpu")[:1])
    state = Steps(config, schema, mesh).abstract_saved()
    tables = bytes_per_device(state.tables)
    return Whole(tables=tables, copied=bytes_per_device(state) - tables)


def activation_bytes_per_example(
    config: ExperimentConfig, schema: Schema, steps: Steps
) -> float:
    """Returns what the backward pass of the network keeps of one example.

    From what `jax.vjp` stores, by the difference between two batches, for weights are
    stored too.
    """
    dims = steps.engine.plan.dims
    model = nnx.eval_shape(
        lambda: Ranker(config.model, schema, dims, rngs=nnx.Rngs(0, dropout=0))
    )
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def kept(batch_size: int) -> int:
        def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

        def outputs(rest, lengths, numeric, weights, params, rows):
            ranker = nnx.merge(graph, params, rest, copy=True)
            ranker.train()
            found = ranker.outputs(
                rows,
                lengths=lengths,
                numeric=numeric,
                bag_weights=weights if schema.num_bag_weights else None,
                rngs=nnx.Rngs(dropout=jax.random.key(0)),
            )
            return found.logits, found.auxiliary_logits, found.penalty

        def residuals(rest, lengths, numeric, weights, params, rows):
            fixed = functools.partial(outputs, rest, lengths, numeric, weights)
            return jax.vjp(fixed, params, rows)[1]

        rows = {role: array(schema.num_id_columns, dim) for role, dim in dims.items()}
        found = jax.eval_shape(
            residuals,
            rest,
            array(schema.num_bags, dtype=jnp.int32),
            array(schema.num_numeric),
            array(schema.num_bag_weights),
            params,
            rows,
        )
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(found))

    small = max(config.train.batch_size // steps.mesh.size, 1)
    return (kept(2 * small) - kept(small)) / small


def _tables(
    config: ExperimentConfig, steps: Steps, state: Mapping[str, Mapping[str, Any]]
) -> tuple[TableShare, ...]:
    plan, num_devices = steps.engine.plan, steps.mesh.size
    found = []
    for group in plan.groups:
        per_row = bytes_per_device(state[group.name]) * num_devices / group.num_rows
        ends = [table.offset for table in group.tables[1:]] + [group.depth]
        for table, end in zip(group.tables, ends, strict=True):
            rows = (end - table.offset) * group.num_shards // num_devices
            found.append(
                TableShare(
                    name=table.spec.name,
                    role=group.role,
                    num_rows=table.spec.num_rows,
                    dim=group.dim,
                    dtype=config.tables.dtype,
                    optimizer=config.optimizer.sparse.name,
                    placement=f"by row in {group.name}",
                    bytes_per_device=round(rows * per_row),
                )
            )
    for stack in plan.stacks:
        row = 4 * stack.dim
        row += traffic.dense_state_bytes(config.optimizer.dense, stack.dim)
        found += [
            TableShare(
                name=table.spec.name,
                role=stack.role,
                num_rows=table.spec.num_rows,
                dim=stack.dim,
                dtype="float32",
                optimizer=config.optimizer.dense.name,
                placement="replicated",
                bytes_per_device=table.spec.num_rows * row,
            )
            for table in stack.tables
        ]
    return tuple(found)


def _modules(network: Any, moments_per_weight: float) -> tuple[ModuleShare, ...]:
    """Two levels of names: "backbone/cross", "head/kernel"."""
    sizes_of: dict[str, list[float]] = {}
    for path, weight in jax.tree.leaves_with_path(network):
        name = "/".join(str(getattr(key, "key", key)) for key in path[:2])
        own = sizes_of.setdefault(name, [0, 0])
        own[0] += weight.size
        own[1] += bytes_per_device(weight) * (1 + moments_per_weight)
    return tuple(
        ModuleShare(name=name, num_parameters=int(count), bytes_per_device=round(held))
        for name, (count, held) in sizes_of.items()
    )


def _exchange(steps: Steps, examples: int) -> int:
    """Unique rows thrice (rows, gradients, their sum) and what is on the wire twice."""
    total = 0
    for group in steps.engine.plan.groups:
        bound = sizes.unique_bound(group, examples_per_device=examples)
        capacity = steps.engine.sizes.capacity(group, examples_per_device=examples)
        wire = capacity * steps.mesh.size if steps.mesh.size > 1 else 0
        total += (3 * bound + 2 * wire) * group.dim * 4
    return total
