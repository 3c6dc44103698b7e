"""What a study of scaling laws consists of: ladders of sizes, seeds, learning rates.

A study is a Python file with `get_study() -> Study`, `scaling/studies/NAME/study.py`;
its results lie beside it.
"""

import argparse
from collections.abc import Mapping
import dataclasses
import pathlib
import runpy
from typing import Any

from experiments.driver import ROOT
from rankax.config.base import ConfigError, suggest

STUDIES = ROOT / "scaling/studies"
FILE_NAME = "study.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """One rung of a ladder.

    Attributes:
        name: of the size.
        overrides: options of the configuration, by full name.
        seeds: of its runs.
        held_out: left out of the fit, which has to foretell it.
    """

    name: str
    overrides: Mapping[str, Any]
    seeds: tuple[int, ...] = (0, 1, 2)
    held_out: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ladder:
    """Sizes of one model along one axis, smallest first.

    Attributes:
        model: what fills {model} of the study's configuration.
        axis: what grows: "width", "channels", "depth", "rows", "dim", ...
        sizes: the rungs.
        tune: names of the sizes at which the dense learning rate is searched; the law
            fitted to them gives that of every size. () = the configuration's.
        doubled: the largest size with the axis doubled, for the forecast of what that
            would bring; never run. None = no forecast.
    """

    model: str
    axis: str
    sizes: tuple[Size, ...]
    tune: tuple[str, ...] = ()
    doubled: Size | None = None

    def __post_init__(self) -> None:
        """Refuses what would run twice, or not at all."""
        names = [size.name for size in self.sizes]
        if len(set(names)) < len(names):
            raise ConfigError(f"{self.name}: two sizes of one name among {names}")
        for name in self.tune:
            if name not in names:
                raise ConfigError(f"{self.name}: tune: {suggest(name, names)}")
        if len(self.tune) == 1:
            raise ConfigError(
                f"{self.name}: a law of the learning rate needs two tuned sizes at "
                "least; name more in tune, or none"
            )

    @property
    def name(self) -> str:
        """Tells it from the study's other ladders."""
        return f"{self.model}-{self.axis}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Ladders over the same data.

    Attributes:
        name: of its folder.
        title: of its report.
        config: experiment file and argument, with {model} to fill in.
        task: whose losses are fitted.
        dataset: folder below --datasets; "" = none is needed.
        overrides: options that all runs have.
        ladders: what is varied.
        learning_rate_factors: on the configuration's dense learning rate, of the
            search; in order.
        note: a paragraph for the report: what the data can and cannot show.
    """

    name: str
    title: str
    config: str
    task: str
    ladders: tuple[Ladder, ...]
    dataset: str = ""
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    learning_rate_factors: tuple[float, ...] = (0.5, 1.0, 2.0)
    note: str = ""

    def __post_init__(self) -> None:
        """Refuses two ladders of one name."""
        names = [ladder.name for ladder in self.ladders]
        if len(set(names)) < len(names):
            raise ConfigError(f"{self.name}: two ladders of one name among {names}")

    def at(self, datasets: str) -> "Study":
        """Returns the study with its data below another folder; "" = the usual one."""
        if not (datasets and self.dataset):
            return self
        path = {
            "data.source.path": str(pathlib.Path(datasets).absolute() / self.dataset)
        }
        return dataclasses.replace(self, overrides={**self.overrides, **path})


def load(name: str) -> tuple[Study, pathlib.Path]:
    """Returns a study and the folder of its results.

    Args:
        name: of a folder below `scaling/studies`, or the path of another folder.

    Raises:
        ConfigError: there is none.
    """
    folder = pathlib.Path(name) if "/" in name else STUDIES / name
    path = folder / FILE_NAME
    if not path.is_file():
        known = sorted(each.parent.name for each in STUDIES.glob(f"*/{FILE_NAME}"))
        raise ConfigError(
            f"no study {name!r}: {path} does not exist; {suggest(name, known)}, or "
            "give the path of a folder"
        )
    return runpy.run_path(str(path))["get_study"](), folder


def parser(module: str, text: str | None) -> argparse.ArgumentParser:
    """Returns the parser of a command on a study: its name, and where its data are.

    Args:
        module: the command, as `python -m` takes it.
        text: its help.
    """
    made = argparse.ArgumentParser(
        f"python -m {module}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("study", help="name or folder")
    made.add_argument(
        "--datasets", default="", help="folder of the data sets, if not datasets"
    )
    return made
