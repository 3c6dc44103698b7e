"""Parameter-free token mixing and its inverse (arXiv 2602.06563, section 3.3).

    mix    [B, T, D] -> [B, H, T·D/H]: row h holds slice h, of D/H, of every token
    revert [B, H, T·D/H] -> [B, T, D]: exactly undoes it

Both are permutations. Under Token Parallel each is one all-to-all over "model": the
arrays come in split by their second dimension and leave so. The pins on the
four-dimensional arrays are what keeps XLA from exchanging them twice.
"""

import jax

from rankax.parallel import rules


def mix(x: jax.Array, num_heads: int) -> jax.Array:
    """Maps tokens [B, T, D] to mixed tokens [B, H, T·D/H]; H divides D."""
    batch, num_tokens, _ = x.shape
    slices = x.reshape(batch, num_tokens, num_heads, -1)
    slices = rules.constrain(slices, "data", None, "model", None)
    mixed = rules.constrain(slices.swapaxes(1, 2), "data", "model", None, None)
    return mixed.reshape(batch, num_heads, -1)


def revert(h: jax.Array, num_tokens: int) -> jax.Array:
    """Maps mixed tokens [B, H, T·D/H] back to tokens [B, T, D]."""
    batch, num_heads, _ = h.shape
    h = rules.constrain(h, "data", "model", None)
    slices = h.reshape(batch, num_heads, num_tokens, -1).swapaxes(1, 2)
    slices = rules.constrain(slices, "data", None, "model", None)
    slices = rules.constrain(slices, "data", "model", None, None)
    return slices.reshape(batch, num_tokens, -1)
