"""One factor on all learning rates, and its reduction on a plateau.

The factor is computed on the host and enters the step as data: changing it never
recompiles, and dense and sparse optimizers follow it together.
"""

import dataclasses
import math

from rankax.config.experiment import ScheduleConfig


def factor(config: ScheduleConfig, step: int, num_steps: int) -> float:
    """Returns warm-up × decay at a step (0-based), before any plateau reduction."""
    warmup = config.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step - warmup) / max(num_steps - warmup, 1), 1.0)
    match config.decay:
        case "linear":
            remaining = 1 - progress
        case "cosine":
            remaining = (1 + math.cos(math.pi * progress)) / 2
        case _:
            return 1.0
    return config.final_factor + (1 - config.final_factor) * remaining


@dataclasses.dataclass(slots=True, kw_only=True)
class Plateau:
    """Follows the selection metric over evaluations; all JSON values.

    Attributes:
        best: best value so far, None before the first evaluation.
        best_step: its step.
        since_best: evaluations since the best one.
        since_reduction: evaluations without improvement since the last reduction.
        factor: product of the reductions.
    """

    best: float | None = None
    best_step: int = 0
    since_best: int = 0
    since_reduction: int = 0
    factor: float = 1.0

    def update(
        self, value: float, *, step: int, is_higher_better: bool, config: ScheduleConfig
    ) -> bool:
        """Takes in one evaluation; returns whether it is the best so far.

        A value that is not better than the best (NaN included) counts towards
        `config.plateau_patience`; then the factor shrinks by `config.plateau_factor`,
        never below `config.min_factor`.
        """
        if not math.isnan(value):
            sign = 1 if is_higher_better else -1
            if self.best is None or sign * value > sign * self.best:
                self.best, self.best_step = value, step
                self.since_best = self.since_reduction = 0
                return True
        self.since_best += 1
        self.since_reduction += 1
        if config.plateau_factor and self.since_reduction >= config.plateau_patience:
            self.factor = max(self.factor * config.plateau_factor, config.min_factor)
            self.since_reduction = 0
        return False
