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

import argparse
from collections.abc import Mapping, Sequence
import sys

from rankax.config.base import ConfigError
from scaling.runs import LadderGroup
from scaling.study import Ladder, Size, Study, load

SEEDS = (0, 1, 2)


def _sizes(
    overrides: Mapping[str, Mapping[str, object]], seeds: Mapping[str, tuple[int, ...]]
) -> tuple[Size, ...]:
    """The largest is held out."""
    last = list(overrides)[-1]
    return tuple(
        Size(
            name=name,
            overrides=dict(own),
            seeds=seeds.get(name, SEEDS),
            held_out=name == last,
        )
        for name, own in overrides.items()
    )


def _ladder(
    model: str,
    axis: str,
    overrides: Mapping[str, Mapping[str, object]],
    *,
    seeds: Mapping[str, tuple[int, ...]] | None = None,
    is_tuned: bool,
) -> Ladder:
    """Tunes the two smallest sizes and the middle one."""
    names = list(overrides)
    tune = dict.fromkeys([*names[:2], names[len(names) // 2]]) if is_tuned else ()
    return Ladder(
        model=model,
        axis=axis,
        sizes=_sizes(overrides, seeds or {}),
        tune=tuple(tune),
    )


def dnn_width(widths: Sequence[int], *, is_tuned: bool = True) -> Ladder:
    """Returns DNNs of three layers."""
    sizes = {f"h{h}": {"model.backbone.hidden_dims": (h, h, h)} for h in widths}
    return _ladder("dnn", "width", sizes, is_tuned=is_tuned)


def dnn_depth(depths: Sequence[int], *, width: int) -> Ladder:
    """Returns DNNs of one width."""
    sizes = {f"l{n}": {"model.backbone.hidden_dims": (width,) * n} for n in depths}
    return _ladder("dnn", "depth", sizes, is_tuned=False)


def mlcc_channels(channels: Sequence[int], *, is_tuned: bool = True) -> Ladder:
    """Returns MC-MLCCs."""
    sizes = {f"s{s}": {"model.backbone.num_channels": s} for s in channels}
    return _ladder("mc_mlcc", "channels", sizes, is_tuned=is_tuned)


def mixer_width(dims: Sequence[int], *, is_tuned: bool = True) -> Ladder:
    """Returns TokenMixer-Larges."""
    sizes = {f"d{d}": {"model.backbone.token_dim": d} for d in dims}
    return _ladder("tokenmixer_large", "width", sizes, is_tuned=is_tuned)


def table_rows(
    model: str, tables: Mapping[str, int], shares: Mapping[str, float]
) -> Ladder:
    """Returns hash sizes.

    Args:
        model: of the network, which stays.
        tables: name -> number of its ids.
        shares: name of the size -> rows per id.
    """
    sizes = {
        name: {
            "tables.hashed_rows": tuple(
                f"{table}={max(round(share * ids), 1)}" for table, ids in tables.items()
            )
        }
        for name, share in shares.items()
    }
    return _ladder(model, "rows", sizes, is_tuned=False)


def table_dim(model: str, dims: Sequence[int]) -> Ladder:
    """Returns widths of all rows."""
    sizes = {f"d{d}": {"model.backbone.embedding_dim": d} for d in dims}
    return _ladder(model, "dim", sizes, is_tuned=False)


# ---------------------------------------------------------------- command line


def table(study: Study) -> str:
    """Returns a line per size: parameters, FLOPs, tables, seeds."""
    header = (
        f"{'ladder':24} {'size':6} {'dense':>11} {'active':>11} {'in tables':>12} "
        f"{'rows':>9} {'dim':>4} {'FLOP/example':>13} {'examples':>9}  seeds"
    )
    lines = [header]
    for ladder in study.ladders:
        group = LadderGroup(study, ladder)
        for size in ladder.sizes:
            cost = group.costs(size)
            notes = " tuned" * (size.name in ladder.tune)
            notes += " held out" * size.held_out
            lines.append(
                f"{ladder.name:24} {size.name:6} {cost['n_dense_total']:11,} "
                f"{cost['n_dense_active']:11,} {cost['n_table']:12,} "
                f"{cost['table_rows']:9,} {cost['table_dim'] or 0:4} "
                f"{cost['flops']:13,.0f} {cost['samples']:9,}  "
                f"{len(size.seeds)}{notes}"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        "python -m scaling.ladders",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", help="name or folder")
    flags = parser.parse_args(arguments)
    try:
        print(table(load(flags.study)[0]))
    except ConfigError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
