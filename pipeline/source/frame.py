"""Read the rows of a polars, pandas or Arrow frame in memory. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.source import exact
from pipeline.source.frames import Frame, from_arrow, rows_per_chunk, unreadable
from pipeline.source.identity import columns_of
from pipeline.source.predicate import Predicate
from pipeline.source.query import PLAIN, TEXTS
from pipeline.storage.folders import Folder, LocalFolder


@dataclass(frozen=True)
class FrameInput:
    """A polars frame, as an Input (see rows.Input)."""

    frame: pl.DataFrame
    path: str = "source.frame"
    name: str = "source.frame"
    size: int = 0
    partition: tuple[tuple[str, str | None], ...] = ()
    by_value: bool = False

    @property
    def folder(self) -> Folder:
        """The current folder, as for other relative paths in Python."""
        return LocalFolder(Path.cwd())

    @property
    def columns(self) -> list[str]:
        """The frame's columns."""
        return self.frame.columns

    @property
    def late_columns(self) -> list[str]:
        """Empty: `columns` has all columns."""
        return []

    @property
    def types(self) -> dict[str, Any]:
        """Empty: there is no second frame whose types could differ."""
        return {}

    def frames(
        self, names: list[str], where: Predicate | None = None, known: frozenset[str] = frozenset()
    ) -> Iterator[Frame]:
        """Yield the rows in frames of at most CHUNK_ROWS rows and about CHUNK_BYTES bytes.

        names: the columns, in this order. where, known: not used. Raises SourceError that names the column for values
        that have no exact text.
        """
        del where, known
        chosen = columns_of(self.frame, names)
        many = rows_per_chunk(chosen)
        for start in range(0, chosen.height, many):
            yield Frame(start + 1, pl.DataFrame({one.name: _exact_column(one) for one in chosen[start : start + many]}))


def _exact_column(column: pl.Series) -> pl.Series:
    """Return a column with values that have exact texts. Raises SourceError that names the column if it cannot."""
    if column.dtype == pl.Object:
        values = column.to_list()
        kinds = [type(value) for value in values if type(value) not in PLAIN and not isinstance(value, TEXTS)]
        if kinds:
            raise SourceError(
                f"source.frame: column {column.name!r} holds values of Python's type {kinds[0].__name__}, which have "
                "no exact text; convert them to text, or leave the column out"
            )
        return pl.Series(column.name, [str(v) if isinstance(v, TEXTS) else v for v in values], dtype=pl.Object)
    try:
        kind = column.head(0).to_arrow().type
        if exact.is_plain(kind):
            return column
        of_one = pa.table({column.name: column.to_arrow()}).combine_chunks()
        return from_arrow(of_one, "source.frame").to_series()
    except BaseException as exc:  # a panic of polars is not an Exception
        raise unreadable(exc, "source.frame", column.name) from exc


def frame_input(frame: Any) -> FrameInput:
    """Return a frame of polars, pandas or pyarrow as an input. Raises SourceError for anything else."""
    try:
        if isinstance(frame, pa.Table | pa.RecordBatch):
            return FrameInput(from_arrow(frame, "source.frame"))
        found = pl.DataFrame(frame) if hasattr(frame, "__arrow_c_stream__") or _is_pandas(frame) else frame
    except (TypeError, ValueError, pa.ArrowException) as exc:
        raise SourceError(f"source.frame: the frame cannot be read ({exc})") from exc
    except BaseException as exc:  # a panic of polars is not an Exception
        raise unreadable(exc, "source.frame", None) from exc
    if not isinstance(found, pl.DataFrame):
        raise SourceError(
            f"source.frame: a {type(frame).__name__} is not a frame; give a polars or pandas DataFrame, or an Arrow "
            "table"
        )
    return FrameInput(found)


def _is_pandas(frame: Any) -> bool:
    return type(frame).__module__.startswith("pandas.")
