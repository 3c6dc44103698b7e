"""Sparse-Pertoken mixture of experts (arXiv 2602.06563, section 3.4).

Every token position t has its own router and its own E small SwiGLUs, one of them
shared by all examples, the other R = E − 1 routed:

    y_t = α·Σ_{j ∈ top k−1} g_{t,j}(x_t)·Expert_{t,j}(x_t) + Shared_t(x_t)

g is the softmax over the chosen logits alone. With k − 1 = 1 it would be constant 1 and
the router would never learn, hence k ≥ 3. Cutting a dense SwiGLU into E slices along
its hidden width gives experts whose unweighted sum is the dense layer (`split_dense`).

Execution is the same function either way: "dense" computes every expert and masks
(the reference, and the fast way on CPU); "ragged" sorts the chosen rows by expert and
multiplies each once (`jax.lax.ragged_dot`): no capacity, nothing dropped.
"""

from collections.abc import Mapping
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from rankax.layers.linear import operands
from rankax.layers.per_token import PerTokenSwiGLU, token_kernel
from rankax.parallel import rules

EXECUTIONS = ("auto", "dense", "ragged")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Routing:
    """What the routers of one layer decided for a batch.

    Attributes:
        logits: [B, N, R] float32.
        chosen: [B, N, k−1] int32, experts in order of their logits.
        gates: [B, N, k−1] float32; sum to 1.
    """

    logits: jax.Array
    chosen: jax.Array
    gates: jax.Array

    def load(self) -> jax.Array:
        """Returns each expert's share of the choices at its position, [N, R]."""
        chosen = jax.nn.one_hot(self.chosen, self.logits.shape[-1])
        return chosen.sum(axis=2).mean(axis=0) / self.chosen.shape[-1]

    def balance_loss(self) -> jax.Array:
        """Returns R·Σ_j load_j·p_j, p the mean softmax, averaged over positions.

        1 when even; the loss of Switch Transformer (arXiv 2101.03961, eq. 4).
        """
        probability = jax.nn.softmax(self.logits).mean(axis=0)
        return (self.load() * probability).sum(axis=-1).mean() * self.logits.shape[-1]

    def z_loss(self) -> jax.Array:
        """Returns the mean of logsumexp(logits)² (arXiv 2202.08906, eq. 5)."""
        return (jax.nn.logsumexp(self.logits, axis=-1) ** 2).mean()

    def metrics(self) -> Mapping[str, jax.Array]:
        """Returns two scalars per position: how evenly its experts are used.

        "load_entropy/<t>" in units of log R (1 = even) and "load_max_over_mean/<t>".
        """
        load = rules.constrain(self.load())  # together, not scalar by scalar
        num_experts = load.shape[-1]
        entropy = jax.scipy.special.entr(load).sum(axis=-1) / jnp.log(num_experts)
        peak = load.max(axis=-1) * num_experts
        return {
            f"{name}/{t}": value[t]
            for name, value in (("load_entropy", entropy), ("load_max_over_mean", peak))
            for t in range(len(load))
        }


class SparsePertokenMoE(nnx.Module):
    """Routed experts, routers and a shared expert for each of N positions."""

    def __init__(
        self,
        num_tokens: int,
        width: int,
        hidden_width: int,
        *,
        num_experts: int,
        num_active: int,
        scale: float,
        rngs: nnx.Rngs,
        down_scale: float = 1.0,
        execution: str = "auto",
        dtype: DTypeLike | None = None,
    ):
        """Builds the experts of h/E hidden units and routers [N, w, R].

        Args:
            num_tokens: N.
            width: w of each token.
            hidden_width: h of all experts together; E divides it.
            num_experts: E, the shared one included.
            num_active: k, the shared one included; 3 ≤ k ≤ E.
            scale: α.
            rngs: initialisation randomness.
            down_scale: multiplies the bound of the initial down-projections.
            execution: "ragged", "dense", or "auto": ragged but on CPU.
            dtype: of the products' operands; None = as they come. Routers stay float32.
        """
        hidden, routed = hidden_width // num_experts, num_experts - 1
        shape = (num_tokens, routed)
        self.shared = PerTokenSwiGLU(
            num_tokens, width, hidden, down_scale=down_scale, dtype=dtype, rngs=rngs
        )
        self.gate = token_kernel((*shape, width, hidden), rngs=rngs)
        self.up = token_kernel((*shape, width, hidden), rngs=rngs)
        self.down = token_kernel((*shape, hidden, width), rngs=rngs, scale=down_scale)
        self.router = token_kernel((num_tokens, width, routed), rngs=rngs)
        self.num_chosen = num_active - 1
        self.scale = scale
        self.execution = execution
        self.dtype = dtype

    @property
    def num_inactive_parameters(self) -> int:
        """Parameters of the experts that an example does not use."""
        total = self.gate.size + self.up.size + self.down.size
        routed = self.router.shape[-1]
        return total // routed * (routed - self.num_chosen)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, Routing]:
        """Maps [B, N, w] to [B, N, w] float32, and tells how it was routed."""
        routing = self.route(x)
        gates = self.scale * routing.gates
        if self.execution == "auto":
            # The device that computes decides, not the one that traces: an exported
            # model is for several, and a ragged product on a CPU, which XLA makes of
            # all groups, takes 100 times as long.
            y = jax.lax.platform_dependent(
                x, routing.chosen, gates, cpu=self._dense, default=self._ragged
            )
        else:
            run = self._dense if self.execution == "dense" else self._ragged
            y = run(x, routing.chosen, gates)
        return y + self.shared(x), routing

    def route(self, x: jax.Array) -> Routing:
        """Chooses k − 1 of the routed experts for each token."""
        highest = jax.lax.Precision.HIGHEST  # float32 where the default is less
        logits = jnp.einsum("bnw,nwr->bnr", x, self.router[...], precision=highest)
        # Not lax.top_k, for which XLA would gather the logits of all devices.
        chosen, left = [], jax.lax.stop_gradient(logits)
        for _ in range(self.num_chosen):
            chosen.append(left.argmax(axis=-1))
            mask = jax.nn.one_hot(chosen[-1], logits.shape[-1], dtype=bool)
            left = jnp.where(mask, -jnp.inf, left)
        chosen = jnp.stack(chosen, axis=-1)
        mask = jax.nn.one_hot(chosen, logits.shape[-1])
        best = (logits[..., None, :] * mask).sum(axis=-1)
        return Routing(logits=logits, chosen=chosen, gates=jax.nn.softmax(best))

    def weighted_sum(self, x: jax.Array, gates: jax.Array) -> jax.Array:
        """Σ_j gates_j·Expert_j(x) over all routed experts: [B, N, w], [B, N, R]."""
        num_tokens, _, width, hidden_width = self.gate.shape
        # All experts of a position side by side are one wide layer, [N, w, R·f].
        gate, up = (
            kernel[...].swapaxes(1, 2).reshape(num_tokens, width, -1)
            for kernel in (self.gate, self.up)
        )
        down = self.down[...].reshape(num_tokens, -1, width)
        x, gate, up, down = operands(self.dtype, x.swapaxes(0, 1), gate, up, down)
        gates = jnp.repeat(gates.swapaxes(0, 1), hidden_width, axis=-1)
        hidden = nnx.silu(x @ gate) * (x @ up) * gates
        y = jnp.matmul(hidden.astype(x.dtype), down, preferred_element_type=jnp.float32)
        return y.swapaxes(0, 1)

    def _dense(self, x: jax.Array, chosen: jax.Array, gates: jax.Array) -> jax.Array:
        """The sum over all experts, of which those not chosen have gate 0."""
        mask = jax.nn.one_hot(chosen, self.router.shape[-1])
        return self.weighted_sum(x, (gates[..., None] * mask).sum(axis=2))

    def _ragged(self, x: jax.Array, chosen: jax.Array, gates: jax.Array) -> jax.Array:
        """The same sum over the chosen experts only; sorts on each device alone."""
        x, *kernels = operands(
            self.dtype, x, self.gate[...], self.up[...], self.down[...]
        )
        run = _sorted_experts
        num_shards = jax.sharding.get_abstract_mesh().shape.get("data")
        if num_shards and x.shape[0] % num_shards == 0:
            token, expert = PartitionSpec("data", "model"), PartitionSpec("model")
            run = jax.shard_map(
                run, in_specs=(token,) * 3 + (expert,) * 3, out_specs=token
            )
        return run(x, chosen, gates, *kernels)


def split_dense(dense: PerTokenSwiGLU, moe: SparsePertokenMoE) -> None:
    """Cuts a dense SwiGLU into the experts of `moe`, the first into the shared one.

    `moe.weighted_sum` with all gates 1 plus `moe.shared` is then the dense layer.
    """
    num_experts = moe.router.shape[-1] + 1
    for name in ("gate", "up", "down"):
        axis = 1 if name == "down" else 2  # of the hidden width
        kernel = getattr(dense, name).kernel[...]
        shared, *routed = jnp.split(kernel, num_experts, axis=axis)
        getattr(moe.shared, name).kernel.set_value(shared)
        getattr(moe, name).set_value(jnp.stack(routed, axis=1))


def _sorted_experts(
    x: jax.Array,
    chosen: jax.Array,
    gates: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
) -> jax.Array:
    """Σ_c gates_c·Expert_{chosen_c}(x): rows sorted by (position, expert).

    Args:
        x: [B, N, w].
        chosen: [B, N, C].
        gates: [B, N, C].
        gate: [N, R, w, f].
        up: [N, R, w, f].
        down: [N, R, f, w].

    Returns:
        [B, N, w] float32.
    """
    batch, num_tokens, num_chosen = chosen.shape
    num_groups = num_tokens * gate.shape[1]
    group = (chosen + gate.shape[1] * jnp.arange(num_tokens)[:, None]).reshape(-1)
    order = jnp.argsort(group, stable=True)
    sizes = jnp.bincount(group, length=num_groups)

    def permute(rows: jax.Array, by: jax.Array) -> jax.Array:
        # A permutation: its gradient is a scatter without collisions.
        return rows.at[by].get(unique_indices=True, mode="promise_in_bounds")

    def product(rows: jax.Array, kernels: jax.Array, dtype: DTypeLike) -> jax.Array:
        stacked = kernels.reshape(num_groups, *kernels.shape[2:])
        return jax.lax.ragged_dot(rows, stacked, sizes, preferred_element_type=dtype)

    rows = jnp.repeat(x[:, :, None], num_chosen, axis=2).reshape(-1, x.shape[-1])
    rows = permute(rows, order)
    hidden = nnx.silu(product(rows, gate, x.dtype)) * product(rows, up, x.dtype)
    hidden = hidden * permute(gates.reshape(-1), order)[:, None]
    out = product(hidden.astype(x.dtype), down, jnp.float32)
    out = permute(out, jnp.argsort(order))
    return out.reshape(batch, num_tokens, num_chosen, -1).sum(axis=2)
