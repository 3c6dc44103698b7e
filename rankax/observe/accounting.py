"""What a run costs: parameters, FLOPs, bytes of table rows and bytes on the wire.

All of it follows from the configuration and the data set's schema; nothing is compiled
and no parameter is made. Conventions:

    FLOPs      of one example's forward pass in evaluation mode, from looked-up rows to
               logits, counted by `rankax.observe.flops`. A sparse mixture of experts
               counts for the experts that an example is routed to.
    training   3 × forward: the backward pass has two products for each of the forward
               pass. Auxiliary heads, optimizer and recomputation are not in it.
    MFU        training FLOPs per second / (devices · peak), `rankax.observe.peaks`, of
               matrix products alone: the peak is that of the units which make them.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from rankax.config.experiment import ExperimentConfig, ModelConfig
from rankax.data.schema import Schema
from rankax.embeddings.engine import TableEngine
from rankax.models.ranker import Ranker
from rankax.observe import flops, traffic
from rankax.observe.flops import Operations
from rankax.observe.peaks import peak_flops_per_second


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Costs of a run.

    Attributes:
        num_dense_parameters: of the network, tables excluded.
        num_active_dense_parameters: without the experts that an example does not meet.
        num_table_parameters: in all tables.
        flops_per_example: of the forward pass; None = its program has parts whose
            arithmetic cannot be counted.
        product_flops_per_example: those of matrix products among them.
        table_bytes_per_example: between tables and memory, in training.
        wire_bytes_per_step: that each device sends, in training.
        num_devices: N.
        peak_flops_per_second: of one device; None = unknown.
    """

    num_dense_parameters: int
    num_active_dense_parameters: int
    num_table_parameters: int
    flops_per_example: float | None
    product_flops_per_example: float | None
    table_bytes_per_example: float
    wire_bytes_per_step: float
    num_devices: int
    peak_flops_per_second: float | None

    @property
    def train_flops_per_example(self) -> float | None:
        """Forward and backward pass: 3 × forward."""
        forward = self.flops_per_example
        return None if forward is None else 3 * forward

    def speed(self, examples_per_second: float) -> dict[str, float]:
        """Returns `tflops_per_second` of a device, and `mfu` where its peak is known.

        Both are of matrix products, forward and backward; empty where unknown.

        Args:
            examples_per_second: trained on, by all devices together.
        """
        if self.product_flops_per_example is None:
            return {}
        flops = 3 * self.product_flops_per_example
        rate = flops * examples_per_second / self.num_devices
        values = {"tflops_per_second": rate / 1e12}
        if self.peak_flops_per_second:
            values["mfu"] = rate / self.peak_flops_per_second
        return values

    def __str__(self) -> str:
        """Parameters and FLOPs, for people."""
        active = ""
        if self.num_active_dense_parameters != self.num_dense_parameters:
            active = f" ({self.num_active_dense_parameters:,} active)"
        flops = "FLOPs unknown"
        if self.flops_per_example is not None:
            flops = f"{self.flops_per_example:,.0f} FLOP an example"
        return (
            f"{self.num_dense_parameters:,} dense{active} and "
            f"{self.num_table_parameters:,} table parameters, {flops}"
        )


def account(config: ExperimentConfig, schema: Schema, engine: TableEngine) -> Cost:
    """Returns what a run costs, before its first step.

    Args:
        config: the run.
        schema: fields and tasks.
        engine: the run's tables on its devices.
    """
    dims = engine.plan.dims
    model = _abstract_ranker(config.model, schema, dims)
    params = nnx.state(model, nnx.Param)
    num_parameters = sum(x.size for x in jax.tree.leaves(params))
    num_inactive = sum(
        getattr(module, "num_inactive_parameters", 0)
        for _, module in nnx.iter_modules(model)
    )
    if num_inactive and hasattr(config.model.backbone, "execution"):
        # Count no execution that computes all experts as a reference.
        backbone = dataclasses.replace(config.model.backbone, execution="ragged")
        ragged = dataclasses.replace(config.model, backbone=backbone)
        model = _abstract_ranker(ragged, schema, dims)
    batch_size = config.train.batch_size
    try:
        operations = forward_operations(model, schema, dims, batch_size=batch_size)
        flops_per_example = operations.flops / batch_size
        product_flops_per_example = operations.products / batch_size
    except NotImplementedError:  # a kernel of the user's own: no reason not to train
        flops_per_example = product_flops_per_example = None
    device = engine.mesh.devices.flat[0]
    return Cost(
        num_dense_parameters=num_parameters,
        num_active_dense_parameters=num_parameters - num_inactive,
        num_table_parameters=engine.plan.num_parameters,
        flops_per_example=flops_per_example,
        product_flops_per_example=product_flops_per_example,
        table_bytes_per_example=traffic.table_bytes_per_example(config, engine),
        wire_bytes_per_step=traffic.wire_bytes_per_step(config, engine, params),
        num_devices=engine.mesh.size,
        peak_flops_per_second=peak_flops_per_second(
            device.device_kind, config.model.compute_dtype
        ),
    )


def _abstract_ranker(
    config: ModelConfig, schema: Schema, dims: Mapping[str, int]
) -> Ranker:
    return nnx.eval_shape(lambda: Ranker(config, schema, dims, rngs=nnx.Rngs(0)))


def forward_operations(
    model: Ranker, schema: Schema, dims: Mapping[str, int], *, batch_size: int
) -> Operations:
    """Counts a batch's forward pass in evaluation mode, from looked-up rows to logits.

    Args:
        model: abstract or not.
        schema: fields and tasks.
        dims: role -> D of the rows.
        batch_size: B. What a batch needs once, such as work on weights, counts once.
    """

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

    graph, state = nnx.split(model)

    def forward(state, rows, lengths, numeric, bag_weights):
        ranker = nnx.merge(graph, state, copy=True)
        ranker.eval()
        return ranker(rows, lengths, numeric, bag_weights=bag_weights)

    return flops.count(
        forward,
        state,
        {role: array(schema.num_id_columns, dim) for role, dim in dims.items()},
        array(schema.num_bags, dtype=jnp.int32),
        array(schema.num_numeric),
        array(schema.num_bag_weights),
    )
