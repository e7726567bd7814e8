"""What does the source say of the rows that are reviewed? Edge: files."""

from collections.abc import Iterable
from typing import Any

import polars as pl

from pipeline.errors import SourceError
from pipeline.job.json_values import Unprintable, dump, json_text
from pipeline.job.model import Job
from pipeline.quality.review_values import Key
from pipeline.sink.table import ResultsTable
from pipeline.source import identity
from pipeline.source.rows import Chunk, Rows


class Inputs:
    """The source values that the requests of some rows show to the model.

    columns: their names, [] if the source cannot be read; problem: why it cannot be read, else None.
    """

    def __init__(self, job: Job, sink: ResultsTable, keys: Iterable[Key]) -> None:
        """Read them. keys: of the rows, as the results table holds them."""
        self.columns: list[str] = []
        self.problem: str | None = None
        self._values: dict[Key, list[str]] = {}
        self._sink, self._wanted = sink, set(keys)
        try:
            rows = Rows(job.source)
            self.columns = [name for name in _named(job, rows.columns) if name not in job.source.key]
            self._read(job, rows)
        except SourceError as exc:
            self.columns, self.problem = [], str(exc)

    def of(self, key: Key) -> list[str]:
        """Return the values of a row in the order of the columns; empty texts if the source does not have the row."""
        return self._values.get(key) or [""] * len(self.columns)

    def missing(self) -> int:
        """Return how many of the rows the source does not have."""
        return len(self._wanted) - len(self._values)

    def _read(self, job: Job, rows: Rows) -> None:
        texts = pl.Series([dump(list(key)) for key in self._wanted], dtype=pl.String).implode()
        plain = self._sink.columns.has_plain_key
        for chunk in rows.chunks([*job.source.key, *self.columns]):
            keys = identity.key_column(chunk.frame, job.source.key)
            self._take(chunk, keys, keys.is_in(texts).arg_true() if plain else range(len(keys)))
            if len(self._values) == len(self._wanted):
                return

    def _take(self, chunk: Chunk, keys: pl.Series, places: Iterable[int]) -> None:
        for i in places:
            key = self._sink.key_values(keys[i])
            if key in self._wanted:
                [row] = identity.named_rows(chunk.frame[i : i + 1], self.columns)
                self._values[key] = [_text(row[name]) for name in self.columns]


def _named(job: Job, columns: list[str]) -> list[str]:
    """Return the columns that the requests of a job name, in the order of the source."""
    named = job.request.named_columns()
    return columns if named is None else [name for name in columns if name in named]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Unprintable):
        return f"({value.reason})"
    return json_text(value) if isinstance(value, dict | list | bool) else str(value)
