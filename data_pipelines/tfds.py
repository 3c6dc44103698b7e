r"""A tabular set of TensorFlow Datasets → a dataset folder, without TensorFlow.

    python -m data_pipelines.tfds movielens/100k-ratings:0.1.1 --out=datasets/ratings \
        --train='train[:80%]' --valid='train[80%:90%]' --test='train[90%:]' \
        --label='like=user_rating>=4' --group=user_id --time=timestamp \
        --skip=movie_title

The set must lie prepared in --data_dir, as array_record. Reading it needs neither
TensorFlow nor the set's own code; preparing it needs what its code imports, and for
most published sets that is TensorFlow, elsewhere and once:

    tfds build movielens/100k-ratings --file_format=array_record

A builder of your own that does without prepares without: `MyBuilder(data_dir=DIR,
file_format="array_record").download_and_prepare()`.

Fields follow from the features, unless a flag names them: a label, whole number or text
is categorical, a float numeric, a fixed list of floats a vector, any other list of
whole numbers or texts a list, and a sequence of several such features a sequence of
events, oldest first. Nested names are joined by "_". Other features are left out, and
told. Splits are TFDS's own, in its notation; without flags: train, validation, test.
"""

import argparse
from collections.abc import Mapping
import dataclasses
import os
import pathlib

import pyarrow as pa

from data_pipelines import tabular
from data_pipelines.engine import command, conversion, splits
from data_pipelines.engine.plan import Plan
from data_pipelines.sources import tfds_records
from data_pipelines.sources.tfds_records import Feature
from rankax.config.base import suggest
from rankax.data.card import Card, DataError

DEFAULT_SPLITS = {"train": "train", "validation": "valid", "test": "test"}


def convert(flags: argparse.Namespace) -> Card:
    """Writes the dataset folder that the flags describe.

    Raises:
        DataError: flags or a set that cannot be used.
    """
    folder = tfds_records.find(flags.dataset, flags.data_dir)
    builder = tfds_records.open_builder(folder)
    features, others = tfds_records.find_features(builder)
    for name in flags.skip:
        if name not in (known := (*features, *others)):
            raise DataError(f"--skip={name}: {suggest(name, known)}")
    if left_out := others.keys() - flags.skip:
        told = ", ".join(f"{name} ({others[name]})" for name in sorted(left_out))
        print(f"left out, as no field holds such values: {told}")
    info = builder.info
    plan = make_plan(flags, features)
    plan = dataclasses.replace(
        plan,
        origin=plan.origin or f"TFDS {info.full_name}, {info.homepage}",
        licence=plan.licence or info.redistribution_info.license,
    )
    given = {name: getattr(flags, name) for name in splits.SPLITS}
    instructions = {name: text for name, text in given.items() if text}
    if not instructions:
        instructions = {
            ours: theirs
            for theirs, ours in DEFAULT_SPLITS.items()
            if theirs in info.splits
        }
    if "train" not in instructions:
        raise DataError(
            f"--train is missing: vocabularies are built on it; {folder} has splits "
            f"{', '.join(info.splits)}"
        )
    return conversion.convert(
        plan,
        tfds_records.Records(folder, instructions, features, plan),
        flags.out,
        overwrite=flags.overwrite,
        rows_per_group=flags.rows_per_group,
        cluster=flags.cluster,
    )


def make_plan(flags: argparse.Namespace, features: Mapping[str, Feature]) -> Plan:
    """Understands the flags; features that they do not name become fields by type.

    Raises:
        DataError: a flag that cannot be understood.
    """
    given = tabular.make_plan(argparse.Namespace(**{**vars(flags), "share": []}))
    used = {*given.id_columns(), *(field.name for field in given.fields), *flags.skip}
    used |= {label.column for label in given.labels}
    used |= {flags.weight, flags.time}
    filled = argparse.Namespace(**vars(flags))
    for flag in ("categorical", "numeric", "vector", "list", "sequence"):
        setattr(filled, flag, [*getattr(flags, flag)])
    aspects: dict[str, list[str]] = {}
    for name, feature in features.items():
        if name in used:
            continue
        if feature.events:
            aspect = name.removeprefix(f"{feature.events}_")
            aspects.setdefault(feature.events, []).append(f"{aspect}={name}")
        elif pa.types.is_fixed_size_list(feature.type):
            filled.vector.append(f"{name}:{feature.type.list_size}")
        elif pa.types.is_list(feature.type):
            filled.list.append(f"{name}:{flags.max_length}")
        elif pa.types.is_floating(feature.type):
            filled.numeric.append(name)
        else:
            filled.categorical.append(name)
    for name, texts in aspects.items():
        filled.sequence.append(f"{name}:{flags.max_length}:{','.join(texts)}")
    return tabular.make_plan(filled)


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("tfds", __doc__, has_raw=False)
    parser.add_argument("dataset", help="NAME[/CONFIG][:VERSION], or its folder")
    home = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    parser.add_argument(
        "--data_dir",
        type=pathlib.Path,
        default=pathlib.Path(home).expanduser(),
        metavar="DIR",
        help="folder of the prepared sets (default: %(default)s)",
    )
    for name in splits.SPLITS:
        parser.add_argument(f"--{name}", metavar="SPLIT", help="such as train[:80%%]")
    parser.add_argument(
        "--skip",
        action="extend",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,...",
        help="features to leave out",
    )
    parser.add_argument(
        "--max_length",
        type=int,
        default=50,
        metavar="N",
        help="of lists and sequences that no flag names (default: %(default)s)",
    )
    tabular.add_plan_flags(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    flags = _parser().parse_args(arguments)
    command.run(lambda: convert(flags), flags.out)


if __name__ == "__main__":
    main()
