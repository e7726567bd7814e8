"""Apply the predicate `source.where` to rows, and skip files and row groups that it rules out. Edge: files."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet

from pipeline.errors import SourceError
from pipeline.source import exact


class Predicate:
    """A SQL predicate over a source's columns."""

    def __init__(self, sql: str, typed: Sequence[str] = ()) -> None:
        """typed: columns that have another type than in their files. Raises SourceError for an invalid predicate."""
        self.sql, self._typed = sql, frozenset(typed)
        try:
            self._expr = pl.sql_expr(sql)
        except (pl.exceptions.PolarsError, ValueError) as exc:
            raise SourceError(f"source.where: {sql!r} is not a SQL predicate: {exc}") from exc
        self.columns: list[str] = self._expr.meta.root_names()

    def kept(self, frame: pl.DataFrame) -> list[int]:
        """Return the positions of the rows for which the predicate is true; not those for which it is null.

        Raises SourceError if it does not fit the columns.
        """
        try:
            mask = frame.select(self._expr.alias("kept"))["kept"]
            if mask.dtype != pl.Boolean:
                raise SourceError(f"source.where: {self.sql!r} is {mask.dtype}, not true or false")
            return mask.fill_null(value=False).arg_true().to_list()
        except pl.exceptions.PolarsError as exc:
            raise SourceError(
                f"source.where: {self.sql!r} cannot be applied: {str(exc).splitlines()[0]}; "
                "columns of a text file are text unless source.types says otherwise"
            ) from exc

    def row_groups(self, raw: Any) -> Sequence[int] | None:
        """Return the row groups of a Parquet file that may hold wanted rows, by the file's statistics; None for all.

        raw: the file, open.
        """
        fragment = _fragment(raw)
        schema = fragment.physical_schema
        types = zip(schema.names, schema.types, strict=True)
        others = {name for name, kind in types if pa.types.is_floating(kind) or not exact.is_comparable(kind)}
        # for the predicate NaN is above all numbers, and statistics leave it out; a typed column has other values there
        if not (self._typed | others).isdisjoint(self.columns):
            return None
        rule = self._rule(schema)
        return None if rule is None else [group.id for group in fragment.subset(filter=rule, schema=schema).row_groups]

    def files(self, folder_values: pl.DataFrame, others: Mapping[str, pl.DataType]) -> list[int]:
        """Return the indices of the files that may hold wanted rows.

        folder_values: a row for each file with the values that its folders give; others: types of the other columns.
        """
        if set(folder_values.columns).isdisjoint(self.columns):
            return list(range(folder_values.height))
        # the values of each file become the statistics of a row group, for which pyarrow can decide what to skip
        statistics, table = io.BytesIO(), folder_values.to_arrow()
        pa.parquet.write_table(table, statistics, row_group_size=1)
        fragment = _fragment(pa.BufferReader(statistics.getvalue()))
        rest = pl.DataFrame(schema={name: kind for name, kind in others.items() if name not in folder_values.columns})
        schema = pa.unify_schemas([table.schema, rest.to_arrow().schema])
        rule = self._rule(schema)
        if rule is None:
            return list(range(folder_values.height))
        return [group.id for group in fragment.subset(filter=rule, schema=schema).row_groups]

    def _rule(self, schema: Any) -> Any:
        """Return a pyarrow filter that is true for each wanted row, and maybe for others; None if there is none.

        polars translates the predicate, as far as it would push it down into a pyarrow dataset with these columns.
        """
        recorder = _FilterRecorder(schema)
        try:
            pl.scan_pyarrow_dataset(recorder).filter(self._expr).collect()
        except (pl.exceptions.PolarsError, pa.ArrowException):  # `kept` raises the error when it gets the rows
            return None
        return recorder.rule


def _fragment(raw: Any) -> Any:
    """Return a Parquet file as a fragment of a pyarrow dataset."""
    import pyarrow.dataset  # imports pandas if it is installed: 50 MB and 0.3 s

    return pyarrow.dataset.ParquetFileFormat().make_fragment(raw)


class _FilterRecorder:
    """A dataset without rows, which records the filter that polars passes to it."""

    def __init__(self, schema: Any) -> None:
        self.schema, self.rule = schema, None

    def to_batches(self, *, filter: Any = None, **_: Any) -> Iterator[Any]:
        """Record the filter; yield nothing."""
        self.rule = filter
        return iter(())
