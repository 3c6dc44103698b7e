"""The records of a prepared TensorFlow Datasets set as columns, without TensorFlow.

A record is a protocol buffer: a name and a flat list of values for every feature. The
features say what shape the values have.
"""

from collections.abc import Iterator, Mapping
import importlib
import itertools
import pathlib
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from data_pipelines.engine import raw_files, text
from data_pipelines.engine.plan import Plan
from rankax.data.card import DataError

INFO_NAME = "dataset_info.json"
ROWS_PER_PART = 1 << 20
ROWS_PER_CHUNK = 1 << 16


class Feature(NamedTuple):
    """One column of a prepared set.

    Attributes:
        key: its name in the records.
        list_name: of the protocol buffer field that holds its values.
        type: of the column: values, lists of them, or lists of one size.
        events: name of the sequence that it is an aspect of; "" = of none.
    """

    key: str
    list_name: str
    type: pa.DataType
    events: str = ""


def find(dataset: str, data_dir: pathlib.Path) -> pathlib.Path:
    """Returns the folder of a prepared set.

    Args:
        dataset: such a folder, or NAME[/CONFIG][:VERSION]; without a version the
            newest.
        data_dir: where TFDS keeps its sets.

    Raises:
        DataError: it is not there.
    """
    if (pathlib.Path(dataset) / INFO_NAME).is_file():
        return pathlib.Path(dataset)
    name, _, version = dataset.partition(":")
    found = {
        path.parent.name: path.parent
        for path in (data_dir / name).glob(f"*/{INFO_NAME}")
    }
    if not found or version not in ("", *found):
        raise DataError(
            f"{data_dir / name} holds prepared versions {sorted(found)}, expected "
            f"{version or 'one'}; prepare it (tfds build {name} "
            "--file_format=array_record), or pass --data_dir"
        )
    newest = max(found, key=lambda version: [int(n) for n in version.split(".")])
    return found[version or newest]


def open_builder(folder: pathlib.Path) -> Any:
    """Opens a prepared set for reading.

    Raises:
        DataError: TFDS is not installed, or the files are of another format.
    """
    builder = _import("tensorflow_datasets").builder_from_directory(folder)
    found = builder.info.file_format.value
    if found != "array_record":
        raise DataError(
            f"{folder} is prepared as {found}, which only TensorFlow reads; prepare it "
            "with --file_format=array_record"
        )
    return builder


def find_features(builder: Any) -> tuple[dict[str, Feature], dict[str, str]]:
    """Returns column -> feature, and what cannot be a column -> its class."""
    specs = _import("tensorflow_datasets").features
    features: dict[str, Feature] = {}
    others: dict[str, str] = {}

    def visit(spec: Any, path: tuple[str, ...], events: tuple[str, ...]) -> None:
        is_sequence = isinstance(spec, specs.Sequence) and not events
        if is_sequence and isinstance(spec.feature, specs.FeaturesDict):
            return visit(spec.feature, path, path)
        if isinstance(spec, specs.FeaturesDict):
            for key, member in sorted(spec.items()):  # theirs have no order
                visit(member, (*path, key), events)
            return
        name, kind = "_".join(path), None
        if isinstance(spec.shape, tuple):
            shape = (None, *spec.shape) if events else spec.shape
            kind = _type(shape, np.dtype(spec.np_dtype))
        if kind is None:
            others[name] = type(spec).__name__
        elif name in features:
            raise DataError(f"two features would become one column {name!r}")
        else:
            features[name] = Feature("/".join(path), *kind, "_".join(events))

    visit(builder.info.features, (), ())
    return features, others


def _type(
    shape: tuple[int | None, ...], dtype: np.dtype
) -> tuple[str, pa.DataType] | None:
    """Returns where records keep such values, and the type of the column."""
    if dtype.kind in "iub":
        list_name, value = "int64_list", pa.int64()
    elif dtype.kind == "f":
        list_name, value = "float_list", pa.float32()
    elif dtype.kind in "OSU":
        list_name, value = "bytes_list", pa.string()
    else:
        return None
    match shape:
        case ():
            return list_name, value
        case (int() as size,) if dtype.kind == "f":
            return list_name, pa.list_(value, size)
        case (_,) if dtype.kind != "f":
            return list_name, pa.list_(value)
    return None


class Records:
    """The records of a prepared set, in parts of `ROWS_PER_PART`."""

    def __init__(
        self,
        folder: pathlib.Path,
        instructions: Mapping[str, str],
        features: Mapping[str, Feature],
        plan: Plan,
    ):
        """Decides the types of the columns in use, and deals the rows to parts.

        Args:
            folder: the prepared set.
            instructions: split of the dataset folder -> splits of TFDS.
            features: of `find_features`.
            plan: names the columns.

        Raises:
            DataError: a feature or a split is missing, does not suit what it is named
                for, or rows are in two splits.
        """
        builder = open_builder(folder)
        schema = pa.schema([(name, feature.type) for name, feature in features.items()])
        types = {
            name: raw_files.column_of(schema, name, kind, where=folder)
            for name, kind in plan.kinds().items()
        }
        raw_files.check_id_types(plan.id_columns(), types)
        self._folder, self._instructions = folder, dict(instructions)
        self._columns = {name: (features[name], types[name].type) for name in types}
        sizes = _sizes(builder, instructions)
        self._parts = [
            (split, start, min(start + ROWS_PER_PART, size))
            for split, size in sizes.items()
            for start in range(0, size, ROWS_PER_PART)
        ]
        self.names = tuple(instructions)
        rules = [f"{split} = {theirs}" for split, theirs in instructions.items()]
        self.rule = f"of {builder.info.full_name}: {', '.join(rules)}"
        self.num_parts = len(self._parts)
        self.inputs = text.stamp(sorted(folder.iterdir()), self.rule)

    def chunks(self, part: int) -> Iterator[tuple[str, pa.Table]]:
        """Yields (split, rows)."""
        split, start, stop = self._parts[part]
        builder = open_builder(self._folder)
        source = builder.as_data_source(self._instructions[split]).data_source
        for first in range(start, stop, ROWS_PER_CHUNK):
            rows = range(first, min(first + ROWS_PER_CHUNK, stop))
            yield split, self._decode(source.__getitems__(rows))

    def _decode(self, records: list[bytes]) -> pa.Table:
        # Every record is a message of its own. Taking it apart by columns is eight
        # times as fast as TFDS's way, which makes nested dictionaries of arrays.
        message = _import("tensorflow_datasets.proto").tf_example_pb2.Example
        examples = [message.FromString(record).features.feature for record in records]
        columns = {}
        for name, (feature, kind) in self._columns.items():
            values = [
                getattr(example[feature.key], feature.list_name).value
                for example in examples
            ]
            try:
                columns[name] = _column(values, feature.type).cast(kind)
            except (pa.ArrowException, ValueError) as error:
                raise DataError(
                    f"{self._folder}: feature {feature.key!r}: {error}"
                ) from error
        return pa.table(columns)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Makes a column of the values of each record."""
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    is_list = pa.types.is_list(kind)
    size = kind.list_size if pa.types.is_fixed_size_list(kind) else 1
    if not is_list and (lengths != size).any():
        wrong = int(lengths[lengths != size][0])
        raise ValueError(f"a record has {wrong} values, expected {size}")
    value = kind.value_type if pa.types.is_nested(kind) else kind
    flat = itertools.chain.from_iterable(values)
    if pa.types.is_string(value):
        elements = pa.array(flat, pa.binary(), size=int(lengths.sum())).cast(value)
    else:
        dtype = value.to_pandas_dtype()
        elements = pa.array(np.fromiter(flat, dtype, int(lengths.sum())))
    if is_list:
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), elements)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(elements, size)
    return elements


def _sizes(builder: Any, instructions: Mapping[str, str]) -> dict[str, int]:
    """Returns the rows of every split, none of which is in two of them."""
    sizes: dict[str, int] = {}
    taken: list[tuple[str, str, int, int]] = []
    for split, theirs in instructions.items():
        try:
            found = builder.info.splits[theirs]
        except (KeyError, ValueError) as error:
            known = ", ".join(builder.info.splits)
            raise DataError(
                f"--{split}={theirs}: {error}; the set has {known}, and slices like "
                "train[:80%]"
            ) from error
        sizes[split] = found.num_examples
        for file in found.file_instructions:
            name, start = str(file.filename), file.skip
            stop = (
                start + file.examples_in_shard if file.take < 0 else start + file.take
            )
            for other, other_name, other_start, other_stop in taken:
                if name == other_name and start < other_stop and other_start < stop:
                    raise DataError(
                        f"--{other} and --{split} share rows of {name}; give slices "
                        "that do not overlap, like train[:80%] and train[80%:]"
                    )
            taken.append((split, name, start, stop))
    return sizes


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{error}; pip install 'rankax[tfds]'") from error
