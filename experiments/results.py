"""The rows of finished runs in `results.jsonl`, and the table made of them."""

from collections.abc import Iterable, Mapping, Sequence
import contextlib
import dataclasses
import datetime
import fcntl
import itertools
import json
import os
import pathlib
import statistics
from typing import Any

Row = dict[str, Any]

_METRICS = ("auc", "log_loss", "gauc", "oracle_auc", "oracle_log_loss")
_COPIED = (
    "num_dense_parameters",
    "num_active_dense_parameters",
    "num_table_parameters",
    "flops_per_example",
    "table_bytes_per_example",
    "examples_per_second",
    "train_seconds",
    "wall_seconds",
    "step",
    "config_hash",
    "dataset_fingerprint",
    "versions",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns that a driver needs to know.

    Attributes:
        key: what tells the rows of one run from those of all others.
        like: what runs that take equally long have in common.
        data: the name of the data, and their fingerprint.
        seconds: how long the run took.
    """

    key: tuple[str, ...] = ("set", "model", "config_hash", "seed", "kind")
    like: tuple[str, ...] = ("set", "model")
    data: tuple[str, str] = ("set", "dataset_fingerprint")
    seconds: str = "wall_seconds"


class Results:
    """A file of rows, one JSON object a line, to which several drivers may add."""

    def __init__(
        self,
        path: pathlib.Path,
        columns: Columns | None = None,
        *,
        any_data: bool = False,
    ):
        """Opens nothing yet; `any_data` lets fingerprints of one name differ."""
        self.path = path
        self.any_data = any_data
        self.columns = columns or Columns()

    def key(self, row: Row) -> tuple[Any, ...]:
        """Returns what names the run of a row."""
        return tuple(row[name] for name in self.columns.key)

    def read(self) -> list[Row]:
        """Returns the rows; none where there is no file.

        A last line without its end was torn by a crash (or is being written) and is no
        row.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines if line]

    def by_key(self) -> dict[tuple[Any, ...], Row]:
        """Returns the last row of each run."""
        return {self.key(row): row for row in self.read()}

    def seconds(self) -> dict[tuple[Any, ...], list[float]]:
        """Returns by `Columns.like` how long runs took."""
        found: dict[tuple[Any, ...], list[float]] = {}
        for row in self.by_key().values():
            if row.get(self.columns.seconds) is not None:
                like = tuple(row[name] for name in self.columns.like)
                found.setdefault(like, []).append(row[self.columns.seconds])
        return found

    def append(self, rows: Sequence[Row]) -> bool:
        """Adds the rows of a run, once, however many drivers write.

        Returns:
            Whether there were none of it.

        Raises:
            ValueError: there are rows of other data, with which they would be compared.
        """
        with open(self.path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
            if self.key(rows[0]) in self.by_key():
                return False
            name, fingerprint = self.columns.data
            self.check_same_data(rows[0][name], rows[0].get(fingerprint))
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # drops a torn line
            # In one write, so that a killed process leaves all rows of the run or none.
            file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
        return True

    def check_same_data(self, name: str, fingerprint: str | None) -> None:
        """Refuses rows of one name on different data.

        Raises:
            ValueError: there is such a row.
        """
        named, column = self.columns.data
        known = {
            row[column] for row in self.read() if row[named] == name and row.get(column)
        }
        if fingerprint and known - {fingerprint} and not self.any_data:
            raise ValueError(
                f"the rows of {name} are of the data {sorted(known)}, this is "
                f"{fingerprint}; convert the data set as before, or name another "
                "--results; if the examples are the same and only the files differ "
                "(other versions of pyarrow write other bytes), say --any-data"
            )


def of_folder(folder: pathlib.Path) -> Row:
    """Returns what a row takes from a finished run folder."""
    path = folder / "result.json"
    result = json.loads(path.read_text())
    best, hardware = result["best_validation"], result["hardware"]
    date = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
    return {
        "metric": best["metric"],
        "value": _rounded(best["value"]),
        "best_step": best["step"],
        "valid": _chosen_metrics(best["metrics"]),
        "test": _chosen_metrics(result["metrics"]),
        **{name: _rounded(result.get(name)) for name in _COPIED},
        "hardware": {name: hardware[name] for name in ("cpu", "cpu_cores")},
        "date": date.date().isoformat(),
    }


def _chosen_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Those of `_METRICS`, without those that the set does not define."""
    return {
        name: _rounded(value)
        for name, value in metrics.items()
        if name.rpartition("/")[2] in _METRICS and value is not None
    }


def _rounded(value: Any) -> Any:
    """Seven digits are more than any of the numbers is worth."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


# ---------------------------------------------------------------- table


def table(
    chosen: Iterable[tuple[str, Row, Sequence[Row]]], published: dict[str, str]
) -> str:
    """Returns a Markdown table.

    Args:
        chosen: model, row of the chosen trial, rows of its seeds.
        published: model -> figure to compare with; its column is left out if empty.
    """
    found: list[dict[str, str]] = []
    for model, trial, seeds in chosen:
        cells = {"model": model}
        for name in seeds[0]["test"] if seeds else ():
            if name.rpartition("/")[2] in ("auc", "log_loss"):
                cells[f"test {name}"] = _spread([row["test"][name] for row in seeds])
        cells[f"valid {trial['metric']}"] = f"{trial['value']:.4f}"
        if published:
            cells["published"] = published.get(model, "–")
        cells["trial"] = _changes(trial)
        last = seeds[0] if seeds else trial
        cells["dense parameters"] = _count(last["num_dense_parameters"])
        cells["table parameters"] = _count(last["num_table_parameters"])
        cells["FLOPs an example"] = _count(last["flops_per_example"])
        cells["examples/s"] = _count(last["examples_per_second"])
        found.append(cells)
    if not found:
        return "no model has all of its trials yet"
    # A model without seeds has fewer columns.
    return _markdown(max(map(list, found), key=len), found)


def overview(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Returns a Markdown table of models by sets: the spread of each model's scores.

    Args:
        scores: set -> model -> a score a seed.
    """
    models = list(dict.fromkeys(itertools.chain.from_iterable(scores.values())))
    lines = [
        {"model": model}
        | {name: _spread(of[model]) for name, of in scores.items() if model in of}
        for model in models
    ]
    return _markdown(["model", *scores], lines)


def _markdown(header: Sequence[str], lines: Iterable[Mapping[str, str]]) -> str:
    cells = [header, ["---"] + ["---:"] * (len(header) - 1)]
    cells += [[line.get(name, "–") for name in header] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _spread(values: Sequence[float]) -> str:
    with contextlib.suppress(statistics.StatisticsError):  # of one value
        return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
    return f"{values[0]:.4f}"


def _changes(row: Row) -> str:
    names = {k.rpartition(".")[2]: v for k, v in row["overrides"].items()}
    changes = ", ".join(f"{name} {value}" for name, value in names.items())
    return f"{row['trial']}: {changes or 'as the file has it'}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
