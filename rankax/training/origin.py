"""What a run was started with: its configuration, its examples, the code.

Every checkpoint carries this beside the state, for people, and so that a run that is
continued can tell what has changed since.
"""

from collections.abc import Mapping
from typing import Any

from rankax.config.experiment import ExperimentConfig
from rankax.data.errors import DataError
from rankax.observe import environment
from rankax.training import run_folder
from rankax.training.setup import Setup


def of_run(config: ExperimentConfig, setup: Setup) -> dict[str, Any]:
    """Returns configuration and its hash, what is known of the data, versions."""
    return {
        "config_hash": run_folder.hash_of(config),
        "config": config.to_dict(),
        "dataset": setup.schema.card.name,
        "splits": {name: split.fingerprint for name, split in setup.splits.items()},
        "hashed_tables": [
            t.name for t in setup.schema.tables.values() if t.ids == "hash"
        ],
        "text_ids": sorted(setup.splits["train"].text_ids),
        "versions": environment.versions(),
    }


def changes(saved: Mapping[str, Any], now: Mapping[str, Any], *, where: str) -> str:
    """Compares two results of `of_run`, where a run goes on from a checkpoint.

    Args:
        saved: of the checkpoint.
        now: of this start.
        where: names the checkpoint in messages.

    Returns:
        The versions that differ, "jax 0.10.1 -> 0.10.2, ..."; "" = none.

    Raises:
        DataError: the examples of a split are others.
    """
    for name, fingerprint in now["splits"].items():
        if fingerprint != saved["splits"].get(name):
            raise DataError(
                f"{now['dataset']}/{name} has changed since {where} was saved: its "
                f"fingerprint was {saved['splits'].get(name)!r} and is "
                f"{fingerprint!r}; restore the data set, or start a new run in another "
                "--workdir (checkpoint.init_from takes over what was learned)"
            )
    before, after = saved["versions"], now["versions"]
    return ", ".join(
        f"{name} {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    )
