"""The rows of finished runs in `results.jsonl`, and the table made of them."""

from collections.abc import Iterable, Sequence
import contextlib
import datetime
import fcntl
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


def key(row: Row) -> tuple[Any, ...]:
    """Returns what makes a row the only one of its kind."""
    return row["set"], row["model"], row["config_hash"], row["seed"], row["kind"]


def read(path: pathlib.Path) -> list[Row]:
    """Returns the rows; none where there is no file.

    A last line without its end was torn by a crash (or is being written) and is no row.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines if line]


def append(path: pathlib.Path, row: Row) -> bool:
    """Adds a row, once, however many drivers write; returns whether it was new.

    Raises:
        ValueError: the set has rows of other data, with which it would be compared.
    """
    with open(path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        rows = read(path)
        if key(row) in map(key, rows):
            return False
        check_same_data(rows, row["set"], row.get("dataset_fingerprint"))
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)  # drops a torn line
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return True


def check_same_data(rows: Iterable[Row], name: str, fingerprint: str | None) -> None:
    """Refuses rows of one set on different data.

    Raises:
        ValueError: there is such a row.
    """
    known = {
        row["dataset_fingerprint"]
        for row in rows
        if row["set"] == name and row.get("dataset_fingerprint")
    }
    if fingerprint and known - {fingerprint}:
        raise ValueError(
            f"the rows of {name} are of the data {sorted(known)}, this is "
            f"{fingerprint}; convert the data set as before, or name another --results"
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
    header = max(map(list, found), key=len)  # a model without seeds has fewer columns
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    lines += [[cells.get(name, "–") for name in header] for cells in found]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
