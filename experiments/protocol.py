"""The runs of one model on one set: four trials, and three seeds of the chosen one."""

import dataclasses
import pathlib
import runpy
import shlex
from typing import Any

from experiments import results
from experiments.results import Row
from experiments.spaces import SEEDS, ExperimentSet
from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig
from rankax.training import run_folder

ROOT = pathlib.Path(__file__).parents[1]
RUNS = "runs/sweep"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One row to be: a trial, or a seed of the chosen trial.

    Attributes:
        set: where it belongs.
        model: likewise.
        kind: "trial" or "seed".
        trial: 1 .. 4.
        seed: of training.
        overrides: of the trial.
        config_hash: with seed and the set's overrides.
    """

    set: ExperimentSet
    model: str
    kind: str
    trial: int
    seed: int
    overrides: dict[str, Any]
    config_hash: str

    @property
    def name(self) -> str:
        """Folder below `--runs`; seed 0 goes on in that of its trial."""
        seed = f"-seed-{self.seed}" if self.seed else ""
        return f"{self.set.name}/{self.model}/trial-{self.trial}{seed}"

    def key(self) -> tuple[Any, ...]:
        """That of its row."""
        return self.set.name, self.model, self.config_hash, self.seed, self.kind

    def arguments(self, runs: str = RUNS, datasets: str = "") -> list[str]:
        """Returns those of `python`; the defaults are what the row records."""
        options = {**self.set.overrides, **self.overrides, "train.seed": self.seed}
        if self.kind == "trial":
            options["eval.test"] = False
        else:
            options["eval.save_predictions"] = True
        if datasets and self.set.dataset:
            options["data.source.path"] = f"{datasets}/{self.set.dataset}"
        return [
            *("-m", "rankax.main"),
            f"--config={self.set.config_of(self.model)}",
            f"--workdir={runs}/{self.name}",
            *(f"--config.{name}={value}" for name, value in options.items()),
        ]

    def is_finished(self, folder: pathlib.Path) -> bool:
        """Returns whether its folder holds what its row needs."""
        result = run_folder.read_result(folder)
        return (
            result is not None
            and result["config_hash"] == self.config_hash
            and (self.kind == "trial" or bool(result["metrics"]))
        )

    def row(self, folder: pathlib.Path, *, lost: str = "") -> Row:
        """Returns the row of its finished folder, or that of a lost trial."""
        columns = {
            "set": self.set.name,
            "model": self.model,
            "kind": self.kind,
            "trial": self.trial,
            "seed": self.seed,
            "overrides": self.overrides,
            "command": shlex.join(["python", *self.arguments()]),
        }
        if lost:
            own = {"value": None, "error": lost, "config_hash": self.config_hash}
            return columns | own
        row = columns | results.of_folder(folder)
        if self.kind == "trial":
            row["test"] = {}  # though its folder may have gone on since
        return row


class Group:
    """The runs of one model on one set."""

    def __init__(self, of: ExperimentSet, model: str):
        """Makes its configurations once.

        Raises:
            ConfigError: a model or an option that does not exist (yet), or two trials
                that are the same run.
        """
        self.set, self.model = of, model
        self._runs = {
            (kind, trial, seed): Run(
                set=of,
                model=model,
                kind=kind,
                trial=trial,
                seed=seed,
                overrides=overrides,
                config_hash=_config_hash(of, model, {**overrides, "train.seed": seed}),
            )
            for trial, overrides in enumerate(of.options(model), 1)
            for kind, seed in [("trial", 0), *(("seed", seed) for seed in SEEDS)]
        }
        self.trials = [run for run in self._runs.values() if run.kind == "trial"]
        hashes = [run.config_hash for run in self.trials]
        if len(set(hashes)) < len(hashes):
            raise ConfigError(f"{of.name}: two trials of {model!r} are the same run")

    def seeds(self, trial: int) -> list[Run]:
        """Returns the three runs of a chosen trial."""
        return [self._runs["seed", trial, seed] for seed in SEEDS]

    def chosen(self, rows: dict[tuple[Any, ...], Row]) -> Row | None:
        """Returns the row of the trial that validation likes best.

        Args:
            rows: by key.

        Returns:
            None as long as a trial has no row, or when all were lost.
        """
        if any(run.key() not in rows for run in self.trials):
            return None
        found = [rows[run.key()] for run in self.trials]
        found = [row for row in found if row["value"] is not None]
        # An AUC on every set.
        return max(found, key=lambda row: row["value"], default=None)


def _config_hash(of: ExperimentSet, model: str, options: dict[str, Any]) -> str:
    """Returns the hash that the run will have; a wrong option fails here, at once."""
    file, _, argument = of.config_of(model).partition(":")
    path = ROOT / file
    if not path.exists():
        raise ConfigError(f"{file} does not exist")
    config: ExperimentConfig = runpy.run_path(str(path))["get_config"](argument)
    for name, value in {**of.overrides, **options}.items():
        *sections, option = name.split(".")
        section = config
        for each in sections:
            section = getattr(section, each)
        setattr(section, option, value)
    config.validate()
    return run_folder.hash_of(config)
