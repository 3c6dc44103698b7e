"""The runs of one model on one set: four trials, and three seeds of the chosen one."""

from collections.abc import Mapping
import dataclasses
import pathlib
import runpy
import shlex
from typing import Any

from experiments import commit, results
from experiments.driver import ROOT, Todo
from experiments.results import Row
from experiments.spaces import SEEDS, ExperimentSet
from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig, ParquetConfig
from rankax.data.card import DataError
from rankax.training import run_folder
from rankax.training.predictions import FILE_NAME as PREDICTIONS
from rankax.training.setup import set_up

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
        datasets: folder of the data sets; "" = the configuration's.
    """

    set: ExperimentSet
    model: str
    kind: str
    trial: int
    seed: int
    overrides: dict[str, Any]
    config_hash: str
    datasets: str = ""

    @property
    def name(self) -> str:
        """Folder below `--runs`; seed 0 goes on in that of its trial.

        The hash is in it so that an edited trial never meets the folder it had before.
        """
        seed = f"-seed-{self.seed}" if self.seed else ""
        name = f"trial-{self.trial}{seed}-{self.config_hash}"
        return f"{self.set.name}/{self.model}/{name}"

    @property
    def like(self) -> tuple[str, str]:
        """Runs of one model on one set take about as long."""
        return self.set.name, self.model

    @property
    def seconds(self) -> float:
        """A guess; seed 0 of the chosen trial has been trained."""
        is_trained = self.kind == "seed" and self.seed == 0
        return 0.0 if is_trained else self.set.seconds

    @property
    def data_path(self) -> str:
        """Of the data set, where it is not the configuration's; "" = it is."""
        if not (self.datasets and self.set.dataset):
            return ""
        return f"{self.datasets}/{self.set.dataset}"

    def key(self) -> tuple[Any, ...]:
        """That of its row."""
        return self.set.name, self.model, self.config_hash, self.seed, self.kind

    def arguments(self, runs: str) -> list[str]:
        """Returns those of `python`."""
        options = {**self.set.overrides, **self.overrides, "train.seed": self.seed}
        if self.kind == "trial":
            options["eval.test"] = False
        else:
            options["eval.save_predictions"] = True
        if self.data_path:
            options["data.source.path"] = self.data_path
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
            and (
                self.kind == "trial"
                or (bool(result["metrics"]) and (folder / PREDICTIONS).exists())
            )
        )

    def rows(self, folder: pathlib.Path) -> list[Row]:
        """Returns the row of its finished folder."""
        row = self._columns() | results.of_folder(folder)
        versions = row["versions"] or {}  # None in results of older versions
        row["commit"] = versions.get("commit") or commit.now()
        if self.kind == "trial":
            row["test"] = {}  # though its folder may have gone on since
        return [row]

    def told(self, row: Row) -> str:
        """Says what validation found."""
        return f"valid {row['metric']} {row['value']} ({row['wall_seconds']:.0f} s)"

    def lost(self, error: str) -> list[Row]:
        """Returns the row of a trial that has lost; a seed has failed."""
        own = {"value": None, "error": error, "config_hash": self.config_hash}
        own["commit"] = commit.now()
        return [self._columns() | own] if self.kind == "trial" else []

    def _columns(self) -> Row:
        anywhere = dataclasses.replace(self, datasets="").arguments(RUNS)
        return {
            "set": self.set.name,
            "model": self.model,
            "kind": self.kind,
            "trial": self.trial,
            "seed": self.seed,
            "overrides": self.overrides,
            "command": shlex.join(["python", *anywhere]),
        }


class Group:
    """The runs of one model on one set."""

    def __init__(self, of: ExperimentSet, model: str, datasets: str = ""):
        """Makes its configurations once.

        Args:
            of: the set.
            model: likewise.
            datasets: folder of the data sets; "" = the configuration's.

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
                datasets=datasets,
            )
            for trial, overrides in enumerate(of.options(model), 1)
            for kind, seed in [("trial", 0), *(("seed", seed) for seed in SEEDS)]
        }
        self.trials = [run for run in self._runs.values() if run.kind == "trial"]
        hashes = [run.config_hash for run in self.trials]
        if len(set(hashes)) < len(hashes):
            raise ConfigError(f"{of.name}: two trials of {model!r} are the same run")

    @property
    def name(self) -> str:
        """Folder below `--runs`."""
        return f"{self.set.name}/{self.model}"

    @property
    def data(self) -> str:
        """Rows of one set are of the same data."""
        return self.set.name

    def todo(self, rows: dict[tuple[Any, ...], Row]) -> Todo:
        """Returns the trials, and the seeds once one of them is chosen."""
        chosen = self.chosen(rows)
        if chosen:
            return Todo([*self.trials, *self.seeds(chosen["trial"])])
        return Todo(self.trials, waiting=self.seeds(1))

    def check(self) -> str:
        """Sets up every trial as its run will, without training.

        Returns:
            The fingerprint of the data set.

        Raises:
            ConfigError: a trial that cannot be run, or its data set.
        """
        fingerprint = ""
        for run in self.trials:
            config = _config(self.set, self.model, run.overrides)
            if run.data_path:
                assert isinstance(config.data.source, ParquetConfig)
                config.data.source.path = run.data_path
            try:
                fingerprint = set_up(config).dataset_fingerprint
            except (ConfigError, DataError) as error:
                raise ConfigError(f"{run.name}: {error}") from error
        return fingerprint

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
    return run_folder.hash_of(_config(of, model, options))


def _config(of: ExperimentSet, model: str, options: dict[str, Any]) -> ExperimentConfig:
    return configured(of.config_of(model), {**of.overrides, **options})


def configured(name: str, options: Mapping[str, Any]) -> ExperimentConfig:
    """Returns what `--config=NAME` with these overrides makes, validated.

    Args:
        name: FILE.py or FILE.py:ARGUMENT, from the root of the checkout.
        options: full name, such as "train.seed" -> value.

    Raises:
        ConfigError: no such file, or options that cannot be used.
    """
    file, _, argument = name.partition(":")
    path = ROOT / file
    if not path.exists():
        raise ConfigError(f"{file} does not exist")
    config: ExperimentConfig = runpy.run_path(str(path))["get_config"](argument)
    for name, value in options.items():
        *sections, option = name.split(".")
        section = config
        for each in sections:
            section = getattr(section, each)
        setattr(section, option, value)
    config.validate()
    return config
