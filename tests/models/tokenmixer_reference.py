"""TokenMixer-Large in plain NumPy, one token and one example after another."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np


def build(make):
    """Builds a module without initialising it, and fills it with made-up weights."""
    rng = np.random.default_rng(1)

    def fill(path, leaf):
        low, high = (0.5, 1.5) if "scale" in str(path) else (-0.6, 0.6)
        return jnp.asarray(rng.uniform(low, high, leaf.shape), jnp.float32)

    module = nnx.eval_shape(make)
    nnx.update(module, jax.tree.map_with_path(fill, nnx.state(module, nnx.Param)))
    return module


def mix(x, num_heads):
    """Row h: slice h of every token, one after another."""
    width = x.shape[2] // num_heads
    out = np.empty((len(x), num_heads, x.shape[1] * width), x.dtype)
    for t in range(x.shape[1]):
        for h in range(num_heads):
            out[:, h, t * width : (t + 1) * width] = x[:, t, h * width :][:, :width]
    return out


def revert(h, num_tokens):
    """Column block t of row h is slice h of token t."""
    width = h.shape[2] // num_tokens
    out = np.empty((len(h), num_tokens, h.shape[1] * width), h.dtype)
    for t in range(num_tokens):
        for j in range(h.shape[1]):
            out[:, t, j * width : (j + 1) * width] = h[:, j, t * width :][:, :width]
    return out


def silu(x):
    return x / (1 + np.exp(-x))


def weights(param):
    return np.asarray(param[...], np.float64)


def rms(norm, x):
    mean = (x**2).mean(axis=-1, keepdims=True)
    return x / np.sqrt(mean + 1e-6) * weights(norm.scale)


def swiglu(gate, up, down, x):
    return (silu(x @ gate) * (x @ up)) @ down


def per_token_swiglu(module, x):
    kernels = [weights(getattr(module, n).kernel) for n in ("gate", "up", "down")]
    tokens = [swiglu(*(k[t] for k in kernels), x[:, t]) for t in range(x.shape[1])]
    return np.stack(tokens, axis=1)


def moe(module, x, *, num_chosen, scale):
    """Σ over the best logits, one example and position after another."""
    router = weights(module.router)
    kernels = [weights(getattr(module, n)) for n in ("gate", "up", "down")]
    out = per_token_swiglu(module.shared, x)
    for b in range(len(x)):
        for t in range(x.shape[1]):
            logits = x[b, t] @ router[t]
            best = np.argsort(-logits)[:num_chosen]
            gates = np.exp(logits[best]) / np.exp(logits[best]).sum()
            for j, g in zip(best, gates, strict=True):
                out[b, t] += scale * g * swiglu(*(k[t, j] for k in kernels), x[b, t])
    return out


def tokens(tokenizer, flat):
    """MLP of everything, then of each group; groups are the tokenizer's."""
    ends = np.cumsum((0, *tokenizer.groups.widths))
    groups = [
        np.concatenate([flat[:, ends[i] : ends[i + 1]] for i in group], axis=1)
        for group in tokenizer.groups.groups
    ]
    out = []
    for mlp, x in zip(
        tokenizer.mlps, [np.concatenate(groups, axis=1), *groups], strict=True
    ):
        x = x @ weights(mlp[0].kernel)
        out.append(silu(x) @ weights(mlp[1].kernel) if len(mlp) == 2 else x)
    return np.stack(out, axis=1)


def streams(model, config, x):
    """X_1 .. X_L of a model, after the interval residuals."""
    seen = [x]
    num_tokens = x.shape[1]
    for index, block in enumerate(model.blocks, 1):
        x, heads = seen[-1], block.num_heads
        if config.residual == "equation":
            h = mix(x, heads)
            h = h + per_token_swiglu(block.mix_stage, rms(block.mix_norm, h))
            base, first = x, revert(h, num_tokens)
        else:
            if config.norm_site == "token":
                normed = mix(rms(block.mix_norm, x), heads)
            else:
                normed = rms(block.mix_norm, mix(x, heads))
            first = x + revert(per_token_swiglu(block.mix_stage, normed), num_tokens)
            base = first
        x = base + per_token_swiglu(block.revert_stage, rms(block.revert_norm, first))
        interval = config.residual_interval
        if interval and index % interval == 0 and index < len(model.blocks):
            x = x + seen[index - interval]
            x = x / 2 if config.residual_interval_mode == "mean" else x
        seen.append(x)
    return seen[1:]
