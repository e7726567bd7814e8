"""The predicate of `source.where`: which rows it leaves, and which files and parts of files it rules out unread."""

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
        """typed: columns whose values have another type in their files. Raises SourceError for what is no predicate."""
        self.sql, self._typed = sql, frozenset(typed)
        try:
            self._expr = pl.sql_expr(sql)
        except (pl.exceptions.PolarsError, ValueError) as exc:
            raise SourceError(f"source.where: {sql!r} is not a SQL predicate: {exc}") from exc
        self.columns: list[str] = self._expr.meta.root_names()

    def kept(self, frame: pl.DataFrame) -> list[int]:
        """The positions of the rows for which it is true; where it is null a row is left out."""
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
        """The row groups of a Parquet file that may hold wanted rows, by its own statistics; None: any of them."""
        fragment = _fragment(raw)
        schema = fragment.physical_schema
        types = zip(schema.names, schema.types, strict=True)
        others = {name for name, kind in types if pa.types.is_floating(kind) or not exact.is_compared(kind)}
        # NaN is above all numbers to the predicate, and in no statistics; a typed column has other values there
        if not (self._typed | others).isdisjoint(self.columns):
            return None
        rule = self._rule(schema)
        return None if rule is None else [group.id for group in fragment.subset(filter=rule, schema=schema).row_groups]

    def files(self, said: pl.DataFrame, others: Mapping[str, pl.DataType]) -> list[int]:
        """Which files may hold wanted rows. said: for each what its folders say; others: the types of the rest."""
        if set(said.columns).isdisjoint(self.columns):
            return list(range(said.height))
        # the values of each file as the statistics of a row group, for pyarrow knows what these rule out
        statistics, table = io.BytesIO(), said.to_arrow()
        pa.parquet.write_table(table, statistics, row_group_size=1)
        fragment = _fragment(pa.BufferReader(statistics.getvalue()))
        rest = pl.DataFrame(schema={name: kind for name, kind in others.items() if name not in said.columns})
        schema = pa.unify_schemas([table.schema, rest.to_arrow().schema])
        rule = self._rule(schema)
        if rule is None:
            return list(range(said.height))
        return [group.id for group in fragment.subset(filter=rule, schema=schema).row_groups]

    def _rule(self, schema: Any) -> Any:
        """As much of the predicate as pyarrow can say: it holds for each wanted row, maybe for others; None: nothing.

        polars itself translates what it would push down into a pyarrow dataset with these columns.
        """
        asked = _Asked(schema)
        try:
            pl.scan_pyarrow_dataset(asked).filter(self._expr).collect()
        except (pl.exceptions.PolarsError, pa.ArrowException):  # `kept` says it, with the rows at hand
            return None
        return asked.rule


def _fragment(raw: Any) -> Any:
    """A Parquet file as pyarrow's datasets have it."""
    import pyarrow.dataset  # which brings pandas, where that is installed: 50 MB and 0.3 s

    return pyarrow.dataset.ParquetFileFormat().make_fragment(raw)


class _Asked:
    """A dataset without rows that notes what it is asked for."""

    def __init__(self, schema: Any) -> None:
        self.schema, self.rule = schema, None

    def to_batches(self, *, filter: Any = None, **_: Any) -> Iterator[Any]:
        """No row."""
        self.rule = filter
        return iter(())
