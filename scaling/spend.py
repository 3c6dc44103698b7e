r"""Where to spend next: what twice of each thing is forecast to bring, and to cost.

python -m scaling.spend synthetic   # after scaling.fit: writes spend.json

For each ladder the loss is fitted to all its finished sizes at the study's amount of
data (data-limited ones too: the question is asked at this amount), in the form that
`fits.json` prefers, and read at the ladder's largest size and at that size with its
axis doubled (`Ladder.doubled`), whose parameters and FLOPs are counted, not guessed.
For data it is the learning curve's. Intervals are of the difference, by bootstrap.
"""

from collections.abc import Iterator, Sequence
import json
import pathlib
import sys
from typing import Any

from etils import epath

from rankax.config.base import ConfigError
from rankax.data.errors import DataError
from rankax.observe import stores
from scaling import curve, fit, forms, noise
from scaling import rows as rows_lib
from scaling.rows import Row
from scaling.runs import LadderGroup, measure
from scaling.study import Ladder, Study, load
from scaling.study import parser as study_parser

FILE_NAME = "spend.json"
METRIC = "logloss"
_FORMS = {form.name: form for form in (forms.LOGLINEAR, forms.POWER_CONST)}


def spend(
    study: Study,
    rows: Sequence[Row],
    fits: dict[str, Any],
    *,
    num_replicates: int = curve.NUM_REPLICATES,
) -> list[dict[str, Any]]:
    """Returns what `spend.json` holds, the largest gain first.

    Args:
        study: whose ladders they are.
        rows: of `runs.jsonl`.
        fits: of `fits.json`.
        num_replicates: of the bootstrap.
    """
    entries = [
        *_ladders(study, rows, fits, num_replicates),
        *_data(study, fits),
    ]
    return sorted(entries, key=lambda entry: entry["dlogloss"])


def _ladders(
    study: Study, rows: Sequence[Row], fits: dict[str, Any], num_replicates: int
) -> Iterator[dict[str, Any]]:
    for ladder in study.ladders:
        own = [
            r for r in rows if (r["model"], r["ladder"]) == (ladder.model, ladder.axis)
        ]
        last = rows_lib.last_rows(own, rows_lib.final_split(own))
        sound = [r for r in last if rows_lib.flaw(r) is None]
        if ladder.doubled is None or len(rows_lib.by_size(sound)) < 2:
            continue
        axis = rows_lib.TABLE_AXES.get(ladder.axis, "n_dense_active")
        entry = fit.find(fits, model=ladder.model, ladder=ladder.axis, axis=axis)
        name = (entry or {}).get("preferred") or forms.LOGLINEAR.name
        measured = noise.measure(own, METRIC, split=rows_lib.final_split(own))
        law = curve.fit(
            _FORMS[name],
            fit.points(sound, axis=axis, metric=METRIC),
            sigma=measured.sigma if measured and measured.sigma else None,
            num_replicates=num_replicates,
        )
        now, then = _costs(study, ladder)
        change = law.change(now[axis], then[axis])
        yield {
            "axis": ladder.name,
            "what": f"{ladder.sizes[-1].name} to {ladder.doubled.name}",
            "dlogloss": change.value,
            "lo": change.p5,
            "hi": change.p95,
            "factor_flops": then["flops"] / now["flops"],
            "factor_table_bytes": then["n_table"] / now["n_table"],
            "factor_data": 1.0,
            "note": f"by {law.form.name} on {axis}, {law.points.num_sizes} sizes",
        }


def _costs(study: Study, ladder: Ladder) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what the largest size costs, and the doubled one."""
    assert ladder.doubled is not None
    now = LadderGroup(study, ladder).costs(ladder.sizes[-1])
    return now, measure(study, ladder, ladder.doubled)


def _data(study: Study, fits: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields what twice the data brings to each ladder whose curve was fitted."""
    names = {(ladder.model, ladder.axis): ladder.name for ladder in study.ladders}
    for entry in fits["fits"]:
        key = entry["model"], entry["ladder"]
        is_curve = entry["axis"] == "samples_seen" and entry["metric"] == METRIC
        if not is_curve or key not in names or "doubled" not in entry:
            continue
        doubled = entry["doubled"]
        yield {
            "axis": f"data for {names[key]}",
            "what": f"{doubled['from']:,} to {doubled['to']:,} examples "
            f"at {doubled['from_size']}",
            "dlogloss": doubled["change"]["value"],
            "lo": doubled["change"]["p5"],
            "hi": doubled["change"]["p95"],
            "factor_flops": 2.0,
            "factor_table_bytes": 1.0,
            "factor_data": 2.0,
            "note": f"by {doubled['form']} on checkpoints; FLOPs of the whole run",
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = study_parser("scaling.spend", __doc__)
    parser.add_argument(
        "--replicates",
        type=int,
        default=curve.NUM_REPLICATES,
        help="of the bootstrap (%(default)s)",
    )
    flags = parser.parse_args(arguments)
    try:
        study, folder = load(flags.study)
        study = study.at(flags.datasets)
        rows, fits = rows_lib.read(folder), fit.read(folder)
        entries = spend(study, rows, fits, num_replicates=flags.replicates)
    except (ConfigError, DataError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    write(folder, entries)
    for entry in entries:
        print(
            f"{entry['axis']:32} {entry['what']:34} {entry['dlogloss']:+.5f} "
            f"[{entry['lo']:+.5f}, {entry['hi']:+.5f}]  FLOPs × "
            f"{entry['factor_flops']:.2f}"
        )


def write(folder: pathlib.Path, entries: Sequence[dict[str, Any]]) -> None:
    """Writes `spend.json`."""
    text = ",\n".join(json.dumps(entry) for entry in entries)
    stores.write_text(epath.Path(folder / FILE_NAME), f"[\n{text}\n]\n")


if __name__ == "__main__":
    main()
