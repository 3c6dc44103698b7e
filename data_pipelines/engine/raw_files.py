"""Raw tables: by chunks, of CSV, TSV or Parquet, one file or a folder; or whole.

CSV knows no types, so they are inferred from the first block of the first file (the
training data) and then demanded of every block of every file: a column never changes
its type on the way.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import pathlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from data_pipelines.engine import broken_rows
from rankax.config.base import suggest
from rankax.data.card import DataError

CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
CSV_BLOCK_BYTES = 16 << 20
PARQUET_ROWS = 1 << 18

EXPECTED = {
    "id": "an id; write integers or text, or pass --text=COLUMN to read it as text",
    "list": "a list of ids; write integers or text, in CSV one cell with separators",
    "number": "a number",
    "vector": "a list of numbers",
    "time": "a time; write an integer, or a timestamp in ISO 8601",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """What the files themselves do not say.

    Attributes:
        text: id and list columns to take as text although they look like numbers.
        missing: what stands for a missing value in CSV, besides an empty cell.
        separator: between the elements of a list in one cell of text.
        on_bad_line: "error" or "skip": what becomes of a row of CSV with too many or
            too few cells, or with a cell that is not of its column's type.
    """

    text: Sequence[str] = ()
    missing: Sequence[str] = ()
    separator: str = "|"
    on_bad_line: str = "error"


class Column(NamedTuple):
    """The type that a column is stored with, and the one that it is used with."""

    stored: pa.DataType
    type: pa.DataType


def find(path: str) -> list[pathlib.Path]:
    """Returns the files that a flag names: one, or those of a folder by name."""
    place = pathlib.Path(path)
    suffixes = (".parquet", *CSV_SUFFIXES)
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    files = [file for file in files if file.name.endswith(suffixes) and file.is_file()]
    if not files:
        raise DataError(
            f"{path}: no such file, or no file ending in {', '.join(suffixes)}"
        )
    return files


def find_columns(
    file: pathlib.Path, kinds: Mapping[str, str], form: Format
) -> dict[str, Column]:
    """Decides the type of each column by its kind and the first rows of one file.

    Args:
        file: the first file of the training data.
        kinds: column -> "id" (becomes int64 or string), "list" (of those), "number"
            (float64) or "time" (int64 or timestamp in microseconds).
        form: see `Format`.

    Raises:
        DataError: a column is missing or its type does not suit its kind.
    """
    schema = _schema(file, form)
    if _is_csv(file) and form.on_bad_line == "skip":
        # Where text stands among numbers, its row is to be left out.
        for name in [name for name, kind in kinds.items() if kind == "number"]:
            place = schema.get_field_index(name)
            if place >= 0 and pa.types.is_string(schema.field(place).type):
                schema = schema.set(place, pa.field(name, pa.float64()))
    columns = {
        name: column_of(schema, name, kind, where=file, as_text=name in form.text)
        for name, kind in kinds.items()
    }
    return _infer_list_elements(file, columns, kinds, form)


def column_of(
    schema: pa.Schema,
    name: str,
    kind: str,
    *,
    where: str | pathlib.Path,
    as_text: bool = False,
) -> Column:
    """Decides the type of one column by its kind and by what is there.

    Raises:
        DataError: the column is missing or its type does not suit its kind.
    """
    if schema.names.count(name) != 1:
        problem = "is missing" if name not in schema.names else "stands there twice"
        raise DataError(
            f"{where}: column {name!r} {problem}; {suggest(name, schema.names)}"
        )
    found = schema.field(name).type
    target = _target(kind, found, as_text=as_text)
    if target is None:
        raise DataError(
            f"{where}: column {name!r} has type {found}, expected {EXPECTED[kind]}"
        )
    # "true" is no number for the CSV reader, but a boolean can become one.
    stored = found if pa.types.is_boolean(found) else target
    return Column(pa.string() if kind == "list" else stored, target)


def check_id_types(
    id_columns: Mapping[str, tuple[str, str]], columns: Mapping[str, Column]
) -> None:
    """Raises where one table would get integers from one column and text of another.

    Args:
        id_columns: of the plan.
        columns: of `find_columns`.
    """
    first: dict[str, tuple[str, pa.DataType]] = {}
    for name, (table, kind) in id_columns.items():
        found = columns[name].type
        found = found.value_type if kind == "list" else found
        first_name, expected = first.setdefault(table, (name, found))
        if found != expected:
            number = name if found == pa.int64() else first_name
            raise DataError(
                f"table {table!r} is shared by column {first_name!r} with {expected} "
                f"ids and column {name!r} with {found} ids; pass --text={number}"
            )


def chunks(
    file: pathlib.Path, columns: Mapping[str, Column], form: Format
) -> Iterator[pa.Table]:
    """Yields the columns of a file, some hundred thousand rows at a time.

    Raises:
        DataError: a column is missing, a value is not of its column's type, or a row
            of CSV is broken, unless such rows are skipped.
    """
    names = _schema(file, form).names
    for name in columns:
        if name not in names:
            raise DataError(
                f"{file}: column {name!r} is missing; {suggest(name, names)}"
            )
    try:
        for batch in _batches(file, columns, form):
            chunk = {
                name: _cast(batch.column(name), column.type, form.separator)
                for name, column in columns.items()
            }
            yield pa.table(chunk).replace_schema_metadata(batch.schema.metadata)
    except (pa.ArrowException, OSError) as error:
        found, advice = str(error), ""
        if _is_csv(file) and form.on_bad_line == "error":
            read_text = functools.partial(_read_text, separator=form.separator)
            found = broken_rows.first(file, columns, form, open_csv, read_text) or found
            advice = ", or --on_bad_line=skip to leave such rows out"
        raise DataError(
            f"{file}: {found}; types are those of the first rows of the training data, "
            "correct the file, or pass --text=COLUMN to read the ids of a column as "
            f"text{advice}"
        ) from error


def read_whole(
    path: pathlib.Path,
    schema: pa.Schema,
    reader: Callable[[pathlib.Path], pa.Table] = pq.read_table,
) -> pa.Table:
    """Reads the columns of a schema from a file of --raw that is known by its name.

    Raises:
        DataError: no such file, or its columns are not those of the schema.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; --raw must be the folder that holds it")
    try:
        table = reader(path)
        if missing := [n for n in schema.names if n not in table.column_names]:
            found = table.column_names
            raise ValueError(f"columns {missing} are missing, found {found}")
        table = table.select(schema.names).cast(schema).combine_chunks()
        # Without "not null", which would keep tables from being put together.
        return pa.table(dict(zip(schema.names, table.columns, strict=True)))
    except (pa.ArrowException, ValueError, KeyError, OSError) as error:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise DataError(f"{path}: {error}; expected columns {columns}") from error


def ragged(lists: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Returns all elements of a list array and its offsets; a null list is empty."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return lists.flatten(), pa.array(offsets, pa.int32())


def _target(
    kind: str, found: pa.DataType, *, as_text: bool = False
) -> pa.DataType | None:
    """Returns the type in use, or None where the kind does not allow the type."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    is_time = pa.types.is_timestamp(found) or pa.types.is_date(found)
    is_text = pa.types.is_string(found) or pa.types.is_large_string(found)
    if kind == "list":
        if pa.types.is_list(found) or pa.types.is_large_list(found):
            value = _target("id", found.value_type, as_text=as_text)
            return pa.list_(value) if value is not None else None
        # A list of one element may look like anything; `_infer_list_elements` looks.
        return None if pa.types.is_nested(found) else pa.string()
    if kind == "vector":
        is_numbers = pa.types.is_list(found) or pa.types.is_fixed_size_list(found)
        if is_numbers and _target("number", found.value_type) is not None:
            return pa.list_(pa.float32())
        return None
    if pa.types.is_nested(found):
        return None
    if kind == "id":
        if as_text:
            return pa.string()
        if pa.types.is_integer(found):
            return pa.int64()
        is_other = pa.types.is_boolean(found) or pa.types.is_null(found)
        return pa.string() if is_text or is_time or is_other else None
    if kind == "time":
        if is_time:
            return pa.timestamp("us")
        is_number = pa.types.is_integer(found) or pa.types.is_null(found)
        return pa.int64() if is_number else None
    return None if is_text or is_time else pa.float64()


def _infer_list_elements(
    file: pathlib.Path,
    columns: dict[str, Column],
    kinds: Mapping[str, str],
    form: Format,
) -> dict[str, Column]:
    """Makes lists out of text: of integers where the first chunk has nothing else."""
    lists = {
        name: column
        for name, column in columns.items()
        if kinds[name] == "list" and pa.types.is_string(column.type)
    }
    if not lists:
        return columns
    first = next(chunks(file, lists, form), None)
    for name, column in lists.items():
        value = pa.string()
        if first is not None and name not in form.text and not _is_empty(first[name]):
            try:
                _cast(
                    first[name].combine_chunks(), pa.list_(pa.int64()), form.separator
                )
                value = pa.int64()
            except pa.ArrowException:
                pass  # text, then
        columns[name] = Column(column.stored, pa.list_(value))
    return columns


def _is_empty(texts: pa.ChunkedArray) -> bool:
    return texts.null_count == len(texts)


def _cast(values: pa.Array, target: pa.DataType, separator: str) -> pa.Array:
    if not pa.types.is_list(target) or pa.types.is_nested(values.type):
        return values.cast(target)
    # An empty text is an empty list, an empty element a missing id.
    texts = _null_if_empty(values.cast(pa.string()))
    elements, offsets = ragged(pc.split_pattern(texts, separator))
    elements = _null_if_empty(pc.utf8_trim_whitespace(elements))
    return pa.ListArray.from_arrays(offsets, elements.cast(target.value_type))


def _read_text(texts: pa.Array, column: Column, separator: str) -> pa.Array:
    """Makes values of cells that were read as text."""
    if pa.types.is_list(column.type):
        return _cast(texts, column.type, separator)
    if pa.types.is_string(column.stored):
        return texts
    return pc.utf8_trim_whitespace(texts).cast(column.stored).cast(column.type)


def _null_if_empty(texts: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(texts, ""), None, texts)


def _is_csv(file: pathlib.Path) -> bool:
    return file.name.endswith(CSV_SUFFIXES)


def _batches(
    file: pathlib.Path, columns: Mapping[str, Column], form: Format
) -> Iterator[pa.RecordBatch]:
    if not _is_csv(file):
        return pq.ParquetFile(file).iter_batches(PARQUET_ROWS, columns=list(columns))
    if form.on_bad_line == "skip":
        read_text = functools.partial(_read_text, separator=form.separator)
        return broken_rows.left_out(file, columns, form, open_csv, read_text)
    types = {name: column.stored for name, column in columns.items()}
    return iter(open_csv(file, form, types))


def open_csv(
    file: pathlib.Path,
    form: Format,
    types: Mapping[str, pa.DataType] | None = None,
    on_broken_row: Callable[[pyarrow.csv.InvalidRow], str] | None = None,
) -> pyarrow.csv.CSVStreamingReader:
    """Returns a reader of some columns, or of all with types that are inferred.

    Args:
        file: with a header.
        form: see `Format`.
        types: of the columns to read; None = all columns.
        on_broken_row: gets rows with too many or too few cells, with their numbers.
    """
    parse = pyarrow.csv.ParseOptions(
        delimiter="\t" if ".tsv" in file.suffixes else ",",
        newlines_in_values=True,
        invalid_row_handler=on_broken_row,
    )
    convert = pyarrow.csv.ConvertOptions(
        null_values=["", *form.missing], strings_can_be_null=True
    )
    if types is not None:
        convert.include_columns = list(types)
        convert.column_types = dict(types)
    read = pyarrow.csv.ReadOptions(
        block_size=CSV_BLOCK_BYTES,
        use_threads=on_broken_row is None,  # only one thread knows the rows' numbers
    )
    return pyarrow.csv.open_csv(
        file, read_options=read, parse_options=parse, convert_options=convert
    )


def _schema(file: pathlib.Path, form: Format) -> pa.Schema:
    """Returns names and types as the file has them, or as its first block looks."""
    try:
        if _is_csv(file):
            # Rows with too many or too few cells are told or left out later.
            with open_csv(file, form, on_broken_row=lambda row: "skip") as reader:
                return reader.schema
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        kind = "CSV with a header" if _is_csv(file) else "Parquet"
        raise DataError(f"{file} cannot be read as {kind}: {error}") from error
