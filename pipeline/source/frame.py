"""The rows of a frame in memory, polars or pandas, as an input of a source."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.source import exact
from pipeline.source.frames import Frame, of_arrow, rows_of_a_chunk, unreadable
from pipeline.source.identity import columns_of
from pipeline.source.predicate import Predicate
from pipeline.source.query import PLAIN, TEXTS
from pipeline.storage.folders import Folder, LocalFolder


@dataclass(frozen=True)
class Memory:
    """The rows of a polars frame."""

    frame: pl.DataFrame
    path: str = "source.frame"
    name: str = "source.frame"
    partition: tuple[tuple[str, str | None], ...] = ()
    by_value: bool = False

    @property
    def folder(self) -> Folder:
        """As for other relative paths in Python: the current one."""
        return LocalFolder(Path.cwd())

    @property
    def columns(self) -> list[str]:
        """The frame's columns."""
        return self.frame.columns

    @property
    def later_columns(self) -> list[str]:
        """None: `columns` has all."""
        return []

    @property
    def types(self) -> dict[str, Any]:
        """Nothing to compare: there is one frame."""
        return {}

    def frames(
        self, names: list[str], where: Predicate | None = None, known: frozenset[str] = frozenset()
    ) -> Iterator[Frame]:
        """The rows as frames of at most CHUNK_ROWS rows and about CHUNK_BYTES bytes, columns in this order.

        Raises SourceError that names the column for values that have no exact text.
        """
        del where, known
        chosen = columns_of(self.frame, names)
        many = rows_of_a_chunk(chosen)
        for start in range(0, chosen.height, many):
            yield Frame(start + 1, pl.DataFrame({one.name: _held(one) for one in chosen[start : start + many]}))


def _held(column: pl.Series) -> pl.Series:
    """A column of a frame in memory as one whose values have exact texts. Raises SourceError that names it."""
    if column.dtype == pl.Object:
        values = column.to_list()
        kinds = [type(value) for value in values if type(value) not in PLAIN and not isinstance(value, TEXTS)]
        if kinds:
            raise SourceError(
                f"source.frame: column {column.name!r} holds values of Python's type {kinds[0].__name__}, which have "
                "no exact text; make them texts, or leave the column out"
            )
        return pl.Series(column.name, [str(v) if isinstance(v, TEXTS) else v for v in values], dtype=pl.Object)
    try:
        kind = column.head(0).to_arrow().type
        if exact.is_plain(kind):
            return column
        of_one = pa.table({column.name: column.to_arrow()}).combine_chunks()
        return of_arrow(of_one, "source.frame").to_series()
    except BaseException as exc:  # a panic of polars is no Exception
        raise unreadable(exc, "source.frame", column.name) from exc


def memory(frame: Any) -> Memory:
    """A frame of polars, pandas or pyarrow as an input. Raises SourceError for anything else."""
    try:
        if isinstance(frame, pa.Table | pa.RecordBatch):
            return Memory(of_arrow(frame, "source.frame"))
        found = pl.DataFrame(frame) if hasattr(frame, "__arrow_c_stream__") or _is_pandas(frame) else frame
    except (TypeError, ValueError, pa.ArrowException) as exc:
        raise SourceError(f"source.frame: the frame cannot be read ({exc})") from exc
    except BaseException as exc:  # a panic of polars is no Exception
        raise unreadable(exc, "source.frame", None) from exc
    if not isinstance(found, pl.DataFrame):
        raise SourceError(
            f"source.frame: a {type(frame).__name__} is no frame; give a polars or pandas DataFrame, or an Arrow table"
        )
    return Memory(found)


def _is_pandas(frame: Any) -> bool:
    return type(frame).__module__.startswith("pandas.")
