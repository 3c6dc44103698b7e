"""The optax optimizer of network weights and replicated tables."""

from typing import Any

import jax
import optax

from rankax.config.experiment import DenseOptimizerConfig

NETWORK, TABLES = "network", "tables"  # the two subtrees of the dense parameters


def dense_optimizer(config: DenseOptimizerConfig) -> optax.GradientTransformation:
    """Builds gradient → unit-rate step; the caller multiplies by −learning rate.

    Order: L2 terms join the gradient, then clipping by global norm, then the
    preconditioner, then decoupled weight decay ("adamw"). L2 and decay act on arrays
    with two or more dimensions of the network (biases, norms and learned tokens are
    spared), and `table_l2` on whole replicated tables.
    """
    parts = []
    if config.l2 or config.table_l2:
        parts.append(optax.add_decayed_weights(config.l2, _is_kernel))
        parts.append(optax.add_decayed_weights(config.table_l2, _is_table))
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    match config.name:
        case "adam" | "adamw":
            parts.append(optax.scale_by_adam(config.b1, config.b2, config.eps))
        case "adagrad":
            parts.append(optax.scale_by_rss(eps=config.eps))
        case "sgd":
            parts.append(optax.identity())
        case other:
            raise ValueError(f"unknown dense optimizer {other!r}")
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, _is_kernel))
    return optax.chain(*parts)


# Weights with two dimensions that are no kernels: a bias, gain or vector per token.
_NO_KERNELS = {"bias", "biases", "offset", "positions", "scale", "tokens", "vector"}


def _is_kernel(params: dict[str, Any]) -> dict[str, Any]:
    def is_kernel(path: tuple[Any, ...], x: jax.Array) -> bool:
        name = [key.key for key in path if isinstance(key.key, str)][-1]
        return x.ndim >= 2 and name not in _NO_KERNELS

    return {
        NETWORK: jax.tree.map_with_path(is_kernel, params[NETWORK]),
        TABLES: jax.tree.map(lambda x: False, params[TABLES]),
    }


def _is_table(params: dict[str, Any]) -> dict[str, Any]:
    return {
        NETWORK: jax.tree.map(lambda x: False, params[NETWORK]),
        TABLES: jax.tree.map(lambda x: True, params[TABLES]),
    }
