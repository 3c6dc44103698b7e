"""Settings of the synthetic clicks (`rankax.data.synthetic`)."""

import dataclasses

from rankax.config.base import ConfigError
from rankax.config.experiment import SourceConfig

NUM_CATEGORIES = 40


@dataclasses.dataclass(slots=True, kw_only=True)
class SyntheticConfig(SourceConfig):
    """A world of users and items, and how much each kind of effect moves the click.

    The defaults are the quickstart setting, fixed in
    `tests/data/golden/synthetic_quickstart.json`.

    Attributes:
        seed: another seed is another world with other rows.
        num_train_rows: the splits are consecutive ranges of one time range, in the
            order train, valid, test.
        num_valid_rows: see `num_train_rows`.
        num_test_rows: see `num_train_rows`.
        rows_per_group: rows that one read makes.
        num_users: ids of field `user_id`.
        num_items: ids of field `item_id`, a multiple of the 40 categories.
        main_scale: factor on the effects of single fields and numeric fields, the
            part that a linear model can (mostly) see.
        cross_scale: factor on the second-order crosses.
        triple_scale: factor on the third-order crosses.
        sequence_scale: factor on the affinity of the item to the last events.
        drift_scale: factor on the change of popularity, appeal and base rate
            between the first row and the last; at most 2.
    """

    seed: int = 0
    num_train_rows: int = 2_000_000
    num_valid_rows: int = 100_000
    num_test_rows: int = 200_000
    rows_per_group: int = 16_384
    num_users: int = 2_000
    num_items: int = 1_200
    main_scale: float = 1.0
    cross_scale: float = 1.0
    triple_scale: float = 1.0
    sequence_scale: float = 1.0
    drift_scale: float = 1.0

    def check(self) -> None:
        """Raises one `ConfigError` that lists every value out of range."""
        limits = {
            "seed": (0, 2**63 - 1),
            "num_train_rows": (1, 2**40),
            "num_valid_rows": (1, 2**40),
            "num_test_rows": (1, 2**40),
            "rows_per_group": (1, 2**20),
            "num_users": (2, 2**24),
            "num_items": (2 * NUM_CATEGORIES, 2**24),
            "main_scale": (0, 10),
            "cross_scale": (0, 10),
            "triple_scale": (0, 10),
            "sequence_scale": (0, 10),
            "drift_scale": (0, 2),
        }
        problems = [
            f"{name} = {getattr(self, name)} must be in {low} .. {high}"
            for name, (low, high) in limits.items()
            if not low <= getattr(self, name) <= high
        ]
        if self.num_items % NUM_CATEGORIES:
            problems.append(
                f"num_items = {self.num_items} must be a multiple of the "
                f"{NUM_CATEGORIES} categories"
            )
        if problems:
            raise ConfigError(
                "the synthetic source cannot be used:\n"
                + "\n".join(f"  - {problem}" for problem in problems)
            )
