"""The two blocks of INFNet (arXiv 2508.11565): hubs read all tokens, then gate them.

Groups: "fields", "events" (absent where there are no sequences), "tasks". Each has
tokens X_g and a few hubs H_g; a block maps the dict of both (`hubs_of(g)` is the key of
H_g) to its next value. Reading is attention with the hubs as queries: all that read one
source are put side by side, so that a block has one attention call a source. Residuals,
norms and softmax are float32 whatever the dtype of the products.
"""

from collections.abc import Mapping

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rankax.layers.cross_attention import attend
from rankax.layers.linear import XAVIER_NORMAL, linear
from rankax.layers.norms import layer_norm

FIELDS, EVENTS, TASKS = "fields", "events", "tasks"
Tokens = dict[str, jax.Array]


def hubs_of(group: str) -> str:
    """Returns the key of a group's hubs."""
    return f"{group}_hubs"


class HubMLP(nnx.Module):
    """flatten(H) -> hidden -> ReLU -> out: what a group's hubs say to its tokens."""

    def __init__(
        self,
        num_hubs: int,
        width: int,
        hidden_width: int,
        width_out: int,
        *,
        rngs: nnx.Rngs,
        init: jax.nn.initializers.Initializer = XAVIER_NORMAL,
        dtype: DTypeLike | None = None,
    ):
        """Builds both layers; `init` is of the last one's kernel."""
        self.first = linear(num_hubs * width, hidden_width, dtype=dtype, rngs=rngs)
        self.second = linear(hidden_width, width_out, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, hubs: jax.Array) -> jax.Array:
        """Maps hubs [B, n, d] to [B, 1, out], to broadcast over the group's tokens."""
        hidden = nnx.relu(self.first(hubs.reshape(hubs.shape[0], -1)))
        return self.second(hidden)[:, None].astype(hubs.dtype)


class AggregateBroadcastBlock(nnx.Module):
    """The second version's block.

    Z_g = softmax(Q_h·K_gᵀ / √d)·V_g            of every hub group h in every group g
    H_h = LN(H_h + [Z_fields, Z_events, Z_tasks]·W_h)
    [α, β] = MLP_g(flatten(H_g)),   X_g = LN(X_g + X_g ⊙ σ(α) + β)

    K's bias cancels in the softmax, and so does K where a source has one token (one
    task); both are kept, as the paper's count has them.
    """

    def __init__(
        self,
        num_hubs: Mapping[str, int],
        width: int,
        *,
        expansion: int,
        num_heads: int,
        is_last: bool,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
    ):
        """Builds the weights.

        Args:
            num_hubs: group -> hubs; its keys are the groups there are.
            width: d.
            expansion: hidden width of the MLPs / d.
            num_heads: of the attention.
            is_last: only the task tokens are read afterwards; build no more than they
                need.
            rngs: initialisation randomness.
            dtype: of the products' operands; None = as they come.
        """
        self.groups = groups = tuple(num_hubs)
        self.updated = (TASKS,) if is_last else groups
        self.num_heads, self.dtype = num_heads, dtype

        def dense(width_in: int) -> nnx.Linear:
            return linear(width_in, width, dtype=dtype, rngs=rngs)

        self.key = nnx.Dict({g: dense(width) for g in groups})
        self.value = nnx.Dict({g: dense(width) for g in groups})
        self.query = nnx.Dict({g: dense(width) for g in self.updated})
        self.fuse = nnx.Dict({g: dense(len(groups) * width) for g in self.updated})
        self.modulation = nnx.Dict(
            {
                g: HubMLP(
                    num_hubs[g],
                    width,
                    expansion * width,
                    2 * width,
                    dtype=dtype,
                    rngs=rngs,
                )
                for g in self.updated
            }
        )
        self.norms = nnx.Dict(
            {
                name: layer_norm(width, rngs=rngs)
                for g in self.updated
                for name in (g, hubs_of(g))
            }
        )

    def __call__(self, tokens: Tokens, is_event: jax.Array | None) -> Tokens:
        """Maps tokens [B, ·, d], of which is_event [B, L] are events, to the next."""
        queries = [self.query[g](tokens[hubs_of(g)]) for g in self.updated]
        views = [
            attend(
                jnp.concatenate(queries, axis=1),
                tokens[g],
                self.key[g],
                self.value[g],
                num_heads=self.num_heads,
                is_valid=is_event if g == EVENTS else None,
                dtype=self.dtype,
            )
            for g in self.groups
        ]
        view = jnp.concatenate(views, axis=-1)  # [B, hubs of all groups, 3·d]
        updated, start = dict(tokens), 0
        for g, query in zip(self.updated, queries, strict=True):
            end = start + query.shape[1]
            fused = self.fuse[g](view[:, start:end])
            start = end
            hubs = self.norms[hubs_of(g)](tokens[hubs_of(g)] + fused)
            alpha, beta = jnp.split(self.modulation[g](hubs), 2, axis=-1)
            x = tokens[g]
            updated[g] = self.norms[g](x + x * nnx.sigmoid(alpha) + beta)
            updated[hubs_of(g)] = hubs
        return updated


class ProxyGateBlock(nnx.Module):
    """The first version's block; there the hubs are called proxies.

    H_h = [H_h +] Σ_g CA(H_h, X_g)       over the other groups g ≠ h
    T^  = [T   +] Σ_g CA(T, X_g)         task tokens read fields and events as well
    X_g = X_g ⊙ gate(MLP_g(flatten(H_g))),   X_tasks = T^ ⊙ gate(…), with the new H

    CA has no biases and no output projection: W_Q per reader and source; W_K, W_V per
    source, or per reader and source with `shares_sources` off. The paper prints no
    residuals, gate = σ. `use_residual` adds the terms in brackets, a LayerNorm before
    every CA, and gate(z) = 2·σ(z) over a last layer of zeros: X + X ⊙ tanh(z/2), so
    that tokens start unchanged instead of halved by every block.
    """

    def __init__(
        self,
        num_hubs: Mapping[str, int],
        width: int,
        *,
        expansion: int,
        num_heads: int,
        is_last: bool,
        use_residual: bool,
        shares_sources: bool,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
    ):
        """Builds the weights; arguments as in the other block, options as above."""
        groups = tuple(num_hubs)
        self.updated = (TASKS,) if is_last else groups
        self.num_heads, self.dtype = num_heads, dtype
        self.use_residual, self.shares_sources = use_residual, shares_sources
        readers = (*(hubs_of(g) for g in self.updated), TASKS)
        reads = (
            (g, tuple(name for name in readers if name not in (g, hubs_of(g))))
            for g in groups
        )
        self.reads = tuple((source, by) for source, by in reads if by)
        pairs = [_pair(reader, source) for source, by in self.reads for reader in by]
        read = [source for source, _ in self.reads]
        sources = read if shares_sources else pairs

        def matrices(names: list[str]) -> nnx.Dict:
            def matrix() -> nnx.Linear:
                return linear(width, width, use_bias=False, dtype=dtype, rngs=rngs)

            return nnx.Dict({name: matrix() for name in names})

        self.query = matrices(pairs)
        self.key, self.value = matrices(sources), matrices(sources)
        self.gate = nnx.Dict(
            {
                g: HubMLP(
                    num_hubs[g],
                    width,
                    expansion * width,
                    width,
                    init=nnx.initializers.zeros if use_residual else XAVIER_NORMAL,
                    dtype=dtype,
                    rngs=rngs,
                )
                for g in self.updated
            }
        )
        normed = dict.fromkeys((*readers, *read)) if use_residual else ()
        self.norms = nnx.Dict({name: layer_norm(width, rngs=rngs) for name in normed})

    def __call__(self, tokens: Tokens, is_event: jax.Array | None) -> Tokens:
        """Maps tokens [B, ·, d], of which is_event [B, L] are events, to the next."""
        x = tokens
        if self.use_residual:
            x = {name: norm(tokens[name]) for name, norm in self.norms.items()}
        updated = dict(tokens)
        for reader, read in self._read(x, is_event).items():
            updated[reader] = tokens[reader] + read if self.use_residual else read
        for g in self.updated:
            gate = nnx.sigmoid(self.gate[g](updated[hubs_of(g)]))
            updated[g] = updated[g] * (2 * gate if self.use_residual else gate)
        return updated

    def _read(self, x: Tokens, is_event: jax.Array | None) -> Tokens:
        """Returns Σ_g CA(reader, X_g) of each reader."""
        total: Tokens = {}
        for source, readers in self.reads:
            calls = [readers] if self.shares_sources else [(r,) for r in readers]
            for call in calls:
                name = source if self.shares_sources else _pair(call[0], source)
                queries = [self.query[_pair(r, source)](x[r]) for r in call]
                read = attend(
                    jnp.concatenate(queries, axis=1),
                    x[source],
                    self.key[name],
                    self.value[name],
                    num_heads=self.num_heads,
                    is_valid=is_event if source == EVENTS else None,
                    dtype=self.dtype,
                )
                start = 0
                for reader, query in zip(call, queries, strict=True):
                    end = start + query.shape[1]
                    total[reader] = total.get(reader, 0) + read[:, start:end]
                    start = end
        return total


def _pair(reader: str, source: str) -> str:
    return f"{reader}_of_{source}"
