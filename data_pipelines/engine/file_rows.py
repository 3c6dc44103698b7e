"""The rows of files that flags name, in any format that `raw_files` reads."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from collections.abc import Iterator
import pathlib

import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.engine import raw_files, splits, text
from data_pipelines.engine.plan import Plan
from rankax.data.card import DataError


class FileRows:
    """The raw rows of every split; each file is one part, read in chunks."""

    def __init__(
        self,
        files: dict[str, list[pathlib.Path]],
        plan: Plan,
        *,
        form: raw_files.Format,
        rule: splits.SplitRule | None = None,
    ):
        """Finds the types of the columns, and with a rule the split of every row.

        Args:
            files: split -> its files; with a rule {"data": files}.
            plan: names the columns.
            form: format of the files.
            rule: how the rows of "data" are split.

        Raises:
            DataError: a column is missing or of a wrong type.
        """
        self._form, self._splitter = form, None
        self._parts = [(split, file) for split in files for file in files[split]]
        self.num_parts = len(self._parts)
        self.inputs = text.stamp(
            [file for _, file in self._parts],
            repr(form),
            [split for split, _ in self._parts],
        )
        kinds = plan.kinds()
        for name, kind in rule.columns.items() if rule is not None else ():
            if kinds.setdefault(name, kind) != kind:
                raise DataError(
                    f"--split: column {name!r} cannot be read as {kind} and as "
                    f"{kinds[name]}; write it under two names"
                )
        for name in form.text:
            if kinds.get(name) not in ("id", "list"):
                raise DataError(f"--text={name}: no column of ids has this name")
        first = next(iter(files.values()))[0]
        self._columns = raw_files.find_columns(first, kinds, form)
        raw_files.check_id_types(plan.id_columns(), self._columns)
        self.rule, self.names = "files as given", tuple(files)
        if rule is not None:
            self.names = splits.SPLITS
            self._splitter = splits.Splitter.find(
                rule, (chunk for _, file in self._parts for chunk in self._read(file))
            )
            self.rule = self._splitter.text

    def chunks(self, part: int) -> Iterator[tuple[str, pa.Table]]:
        """Yields (split, rows)."""
        split, file = self._parts[part]
        if self._splitter is None:
            yield from ((split, chunk) for chunk in self._read(file))
            return
        for chunk in self._splitter.assign(self._read(file), part):
            number = chunk[splits.SPLIT_COLUMN]
            for i, name in enumerate(self.names):
                yield name, chunk.filter(pc.equal(number, i))
                chunk = chunk.replace_schema_metadata(None)  # counts once

    def _read(self, file: pathlib.Path) -> Iterator[pa.Table]:
        return raw_files.chunks(file, self._columns, self._form)
