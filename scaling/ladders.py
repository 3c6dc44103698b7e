r"""Ladders: from a size to options of the configuration.

python -m scaling.ladders synthetic   # parameters and FLOPs of every size of a study

Nothing is trained and no parameter is made. Shape rules, told in advance:

    dnn_width       three layers of equal width h
    dnn_depth       l layers of one width
    mlcc_channels   channels S of a fixed E: the rows of the tables, S·E, grow with them
    mixer_width     token dim D of TokenMixer-Large; T, L, n stay
    table_rows      ids of the named tables hashed into a share of their number
    table_dim       D of all tables
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
import sys

from rankax.config.base import ConfigError
from rankax.data.errors import DataError
from scaling.runs import LadderGroup
from scaling.study import Ladder, Size, Study, load
from scaling.study import parser as study_parser

SEEDS = (0, 1, 2)


def ladder(
    model: str,
    axis: str,
    overrides: Mapping[str, Mapping[str, object]],
    *,
    is_tuned: bool,
    seeds: Mapping[str, tuple[int, ...]] | None = None,
) -> Ladder:
    """Returns a ladder of which the largest size is held out.

    Args:
        model: that fills the study's configuration.
        axis: what grows.
        overrides: name of the size -> its options, smallest first; the last one is not
            run, but is the largest one doubled.
        is_tuned: search the learning rate at the two smallest sizes and the middle one.
        seeds: of sizes that have others than 0, 1, 2.
    """
    names = list(overrides)[:-1]
    tune = dict.fromkeys([*names[:2], names[len(names) // 2]]) if is_tuned else ()
    sizes = [
        Size(
            name=name,
            overrides=dict(own),
            seeds=(seeds or {}).get(name, SEEDS),
            held_out=name == names[-1],
        )
        for name, own in overrides.items()
    ]
    return Ladder(
        model=model,
        axis=axis,
        sizes=tuple(sizes[:-1]),
        tune=tuple(tune),
        doubled=sizes[-1],
    )


def _doubled(values: Sequence[int]) -> tuple[int, ...]:
    return (*values, 2 * values[-1])


def dnn_width(widths: Sequence[int], *, is_tuned: bool = True) -> Ladder:
    """Returns DNNs of three layers."""
    sizes = {
        f"h{h}": {"model.backbone.hidden_dims": (h, h, h)} for h in _doubled(widths)
    }
    return ladder("dnn", "width", sizes, is_tuned=is_tuned)


def dnn_depth(depths: Sequence[int], *, width: int) -> Ladder:
    """Returns DNNs of one width."""
    sizes = {
        f"l{n}": {"model.backbone.hidden_dims": (width,) * n} for n in _doubled(depths)
    }
    return ladder("dnn", "depth", sizes, is_tuned=False)


def mlcc_channels(channels: Sequence[int], *, is_tuned: bool = True) -> Ladder:
    """Returns MC-MLCCs."""
    sizes = {f"s{s}": {"model.backbone.num_channels": s} for s in _doubled(channels)}
    return ladder("mc_mlcc", "channels", sizes, is_tuned=is_tuned)


def mixer_width(dims: Sequence[int], *, is_tuned: bool = True) -> Ladder:
    """Returns TokenMixer-Larges."""
    sizes = {f"d{d}": {"model.backbone.token_dim": d} for d in _doubled(dims)}
    return ladder("tokenmixer_large", "width", sizes, is_tuned=is_tuned)


def table_rows(model: str, tables: Mapping[str, int], ratios: Sequence[str]) -> Ladder:
    """Returns hash sizes.

    Args:
        model: of the network, which stays.
        tables: name -> number of its ids.
        ratios: rows per id, as fractions, "1/4".
    """
    named = {ratio: Fraction(ratio) for ratio in ratios}
    named[str(2 * named[ratios[-1]])] = 2 * named[ratios[-1]]
    sizes = {
        name: {
            "tables.hashed_rows": tuple(
                f"{table}={max(round(ratio * ids), 1)}" for table, ids in tables.items()
            )
        }
        for name, ratio in named.items()
    }
    return ladder(model, "rows", sizes, is_tuned=False)


def table_dim(model: str, dims: Sequence[int]) -> Ladder:
    """Returns widths of all rows."""
    sizes = {f"d{d}": {"model.backbone.embedding_dim": d} for d in _doubled(dims)}
    return ladder(model, "dim", sizes, is_tuned=False)


# ---------------------------------------------------------------- command line


def table(study: Study) -> str:
    """Returns a line per size: parameters, FLOPs, tables, seeds."""
    header = (
        f"{'ladder':24} {'size':6} {'dense':>11} {'active':>11} {'in tables':>12} "
        f"{'rows':>9} {'dim':>4} {'FLOP/example':>13} {'examples':>9}  seeds"
    )
    lines = [header]
    for each in study.ladders:
        group = LadderGroup(study, each)
        for size in each.sizes:
            cost = group.costs(size)
            notes = " tuned" * (size.name in each.tune)
            notes += " held out" * size.held_out
            lines.append(
                f"{each.name:24} {size.name:6} {cost['n_dense_total']:11,} "
                f"{cost['n_dense_active']:11,} {cost['n_table']:12,} "
                f"{cost['table_rows']:9,} {cost['table_dim'] or 0:4} "
                f"{cost['flops']:13,.0f} {cost['samples']:9,}  "
                f"{len(size.seeds)}{notes}"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = study_parser("scaling.ladders", __doc__)
    flags = parser.parse_args(arguments)
    try:
        print(table(load(flags.study)[0].at(flags.datasets)))
    except (ConfigError, DataError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
