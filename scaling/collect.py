r"""Gathers the rows of finished runs, and refuses to mix what must not be compared.

python -m scaling.collect synthetic --runs=runs/scaling   # from the run folders
python -m scaling.collect synthetic                       # checks the rows again

`python -m scaling.sweep` adds a run's rows to `runs.jsonl` when it finishes, and calls
this at its end; with --runs the file is made anew from the folders, and from its own
rows of runs that diverged.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence, Set
import itertools
import json
import math
import pathlib
import statistics
import sys
from typing import Any

from etils import epath

from experiments.results import Results, Row
from rankax.config.base import ConfigError
from rankax.data.errors import DataError
from rankax.observe import stores
from rankax.training import run_folder
from scaling import noise
from scaling.runs import COLUMNS, LadderGroup, ScalingRun
from scaling.study import Study, load
from scaling.study import parser as study_parser

FILE_NAME = "runs.jsonl"
# What the rows of a study must have in common, and why.
COMMON = {
    "eval_hash": "scores of other examples cannot be compared",
    "data_hash": "other training data are another experiment",
    "git_sha": "other code may be another model",
}


class MixedRowsError(ValueError):
    """Rows that must not be fitted together."""


def check(rows: Iterable[Row], *, allow: Sequence[str] = ()) -> None:
    """Refuses rows of different data, evaluation windows or code.

    Args:
        rows: of a study; those of diverged runs have no data and pass.
        allow: columns of `COMMON` that may differ.

    Raises:
        MixedRowsError: they do.
    """
    rows = list(rows)
    for column, why in COMMON.items():
        values = {row[column] for row in rows if row[column] is not None}
        if len(values) > 1 and column not in allow:
            examples = {row[column]: row["run_id"] for row in rows}
            raise MixedRowsError(
                f"the rows have {len(values)} values of {column}, and {why}: "
                + ", ".join(f"{v} ({examples[v]})" for v in sorted(values))
                + f"; run again what is old, or say --allow={column}"
            )


def flag_data_limited(rows: Sequence[Row]) -> None:
    """Marks sizes that want more data, in place.

    A size is data-limited if the loss still falls faster over the second half of its
    run than that of the next smaller size, by more than 2 σ: d = L(1/2) − L(1) of the
    runs of a size, and σ the standard error of the difference of the two means, from
    the spread over seeds pooled over the ladder. One with a single seed uses it too.
    """
    ladders: dict[tuple[str, str], dict[str, list[float]]] = {}
    for own in _by_run(rows):
        last = own[-1]
        halves = [r for r in own if _is_about(r["samples_seen"], last, 1 / 2)]
        if last["lr_stage"] or not last["final"] or not halves:
            continue
        ladder = ladders.setdefault((last["model"], last["ladder"]), {})
        fall = halves[0]["logloss"] - last["logloss"]
        ladder.setdefault(last["size_name"], []).append(fall)
    limited = set()
    for name, sizes in ladders.items():
        measured = noise.pooled(sizes)
        sigma = measured.sigma if measured else math.inf
        ordered = sorted(sizes, key=lambda size: _cost(rows, name, size))
        for smaller, size in itertools.pairwise(ordered):
            counts = len(sizes[smaller]), len(sizes[size])
            error = sigma * math.sqrt(sum(1 / n for n in counts))
            difference = statistics.mean(sizes[size]) - statistics.mean(sizes[smaller])
            if difference > 2 * error:
                limited.add((*name, size))
    for row in rows:
        key = row["model"], row["ladder"], row["size_name"]
        row["data_limited"] = key in limited


def _by_run(rows: Iterable[Row]) -> list[list[Row]]:
    runs: dict[str, list[Row]] = {}
    for row in rows:
        if row["complete"]:
            runs.setdefault(row["run_id"], []).append(row)
    return [sorted(own, key=lambda row: row["samples_seen"]) for own in runs.values()]


def _is_about(seen: int, last: Row, share: float) -> bool:
    return abs(seen / (share * last["samples_seen"]) - 1) <= 0.1


def _cost(rows: Iterable[Row], name: tuple[str, str], size: str) -> tuple[Any, ...]:
    """Orders sizes, by arithmetic and then by tables."""
    for row in rows:
        key = row["model"], row["ladder"], row["size_name"]
        if key == (*name, size) and row["complete"]:
            return row["flops_fwd_per_sample"], row["n_table"]
    raise AssertionError(size)


def from_folders(
    study: Study, runs: pathlib.Path, *, before: Iterable[Row] = ()
) -> list[Row]:
    """Returns the rows of all runs of a study that have ended.

    Args:
        study: whose runs they are.
        runs: the folder that --runs of the sweep named.
        before: rows that were known; of runs that diverged they are kept, for a search
            that lacks one of its runs decides nothing.

    Raises:
        ConfigError: runs of a search have not ended, while others that it decides have
            finished.
    """
    diverged = {
        (row["run_id"], row["config_hash"]): row for row in before if row["diverged"]
    }
    rows: list[Row] = []
    taken: set[str] = set()
    unfinished: list[ScalingRun] = []
    for ladder in study.ladders:
        group = LadderGroup(study, ladder)
        known: dict[tuple[Any, ...], Row] = {}
        for _ in range(2):  # the search first, then what depends on it
            for run in group.todo(known).runs:
                assert isinstance(run, ScalingRun)
                if run.key() in known:
                    continue
                own = _ended(run, runs / run.name, diverged)
                if own:
                    known[run.key()] = own[-1]
                    taken.add(run.name)
                    rows += own
        unfinished += [run for run in group.searched() if run.key() not in known]
    _check_searches(unfinished, taken, runs)
    return rows


def _ended(
    run: ScalingRun, folder: pathlib.Path, diverged: Mapping[tuple[str, str], Row]
) -> list[Row]:
    """Rows of a run that has finished or diverged; [] if it has done neither."""
    if run.is_finished(folder):
        return run.rows(folder)
    error = run.divergence(folder)
    if error is not None:
        # Nobody knows which code it was.
        return [row | {"git_sha": None} for row in run.lost(error)]
    known = diverged.get((run.run_id, run.config_hash))
    return [known] if known else []


def _check_searches(
    unfinished: Sequence[ScalingRun], taken: Set[str], runs: pathlib.Path
) -> None:
    """Refuses to leave out finished folders whose rates an open search decides."""
    groups = {run.group.name for run in unfinished}
    left = [
        path.parent
        for group in sorted(groups)
        for path in sorted((runs / group).glob(f"*/{run_folder.RESULT}"))
        if f"{group}/{path.parent.name}" not in taken
    ]
    if left:
        study = unfinished[0].study.name
        raise ConfigError(
            f"{len(left)} finished folders below {runs} (the first is {left[0]}) "
            "cannot be told from those of other learning rates, for these runs of the "
            f"search have not ended: {', '.join(run.run_id for run in unfinished)}. "
            f"Finish them (python -m scaling.sweep {study} --commands --runs={runs} "
            f"lists what is left) or move those folders away; {FILE_NAME} stays as it "
            "was"
        )


def collect(
    study: Study,
    folder: pathlib.Path,
    *,
    runs: pathlib.Path | None = None,
    allow: Sequence[str] = (),
) -> list[Row]:
    """Writes `runs.jsonl` in order, checked and flagged; returns its rows.

    Args:
        study: whose rows they are.
        folder: of its results.
        runs: the run folders to take the rows from; None = those of the file.
        allow: columns of `COMMON` that may differ.

    Raises:
        MixedRowsError: rows that must not be fitted together.
        ConfigError: there are none, or folders of an unfinished search.
    """
    path = folder / FILE_NAME
    rows = Results(path, COLUMNS).read()
    if runs is not None:
        rows = from_folders(study, runs, before=rows)
    if not rows:
        where = path if runs is None else f"{runs}/{study.name}"
        raise ConfigError(
            f"{where} has no finished run of {study.name}; make some with python -m "
            f"scaling.sweep {study.name}"
        )
    check(rows, allow=allow)
    flag_data_limited(rows)
    order = {
        (ladder.model, ladder.axis, size.name): (place, number)
        for place, ladder in enumerate(study.ladders)
        for number, size in enumerate(ladder.sizes)
    }

    def key(row: Row) -> tuple[Any, ...]:
        size = order.get((row["model"], row["ladder"], row["size_name"]), (99, 0))
        return (
            *size,
            not row["lr_stage"],
            row["lr_dense"],
            row["seed"],
            row["samples_seen"] or 0,
        )

    rows.sort(key=key)
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    stores.write_text(epath.Path(path), text)
    return rows


def allowed(parser: argparse.ArgumentParser, text: str) -> list[str]:
    """Returns the columns that --allow names, or ends the program."""
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in COMMON:
            parser.error(f"--allow: {name!r} is none of {', '.join(COMMON)}")
    return names


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = study_parser("scaling.collect", __doc__)
    parser.add_argument("--runs", type=pathlib.Path, help="take rows from run folders")
    parser.add_argument(
        "--allow", default="", help=f"what may differ, of {', '.join(COMMON)}"
    )
    flags = parser.parse_args(arguments)
    allow = allowed(parser, flags.allow)
    try:
        study, folder = load(flags.study)
        study = study.at(flags.datasets)
        rows = collect(study, folder, runs=flags.runs, allow=allow)
    except (ConfigError, DataError, MixedRowsError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    runs = {row["run_id"] for row in rows}
    print(f"{folder / FILE_NAME}: {len(rows)} rows of {len(runs)} runs")


if __name__ == "__main__":
    main()
