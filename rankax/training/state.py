"""Everything that a training step changes, as one plain pytree."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """State of a run on the devices.

    Attributes:
        step: [] int32, updates applied so far; the one counter of all optimizers.
        params: {"network": nested dict of weights, "tables": replicated stacks}.
        opt_state: optax state of `params`.
        rest: other variables of the network (BatchNorm statistics).
        tables: row-sharded tables with their row optimizer's state.
        rng: key data of the run's randomness; a step folds its number into it.
        first_bad_step: [] int32, number of the first step whose loss or gradient was
            not finite; -1 = none. From that step on nothing is written any more.
    """

    step: jax.Array
    params: dict[str, Any]
    opt_state: Any
    rest: dict[str, Any]
    tables: dict[str, dict[str, jax.Array]]
    rng: jax.Array
    first_bad_step: jax.Array
