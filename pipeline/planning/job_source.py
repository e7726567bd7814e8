"""Read the source columns that a job needs, and compute the keys and hashes of its rows. Edge: files, SQL."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import polars as pl

from pipeline.answer.continuing import shares_requests
from pipeline.errors import JobError
from pipeline.job.model import Job
from pipeline.request.build import RequestBuilder
from pipeline.source import identity
from pipeline.source.frames import LATE_FIELDS
from pipeline.source.rows import Chunk, Input, Rows

ATTACHED_BYTES = 32_000_000  # of attachments in one chunk, which are in memory until they are written to the spool
STAMPS = " attachments"  # their name in row_hash; no column of a source begins with a blank


class JobSource:
    """The source of a job as planning reads it: only the columns that the job names."""

    def __init__(self, job: Job, builder: RequestBuilder, *, limit: int | None = None) -> None:
        """Read the headers. Raises JobError or SourceError for a column that the source does not have.

        limit: the most rows to read; None: all.
        """
        self._job, self._builder, self._limit = job, builder, limit
        self.rows = Rows(job.source)
        self._require_columns()
        columns = builder.columns
        self.template_columns = list(columns.templates)  #: the columns that templates are rendered with
        if columns.all_columns:
            late = [LATE_FIELDS] if self.rows.has_late_columns else []
            self.template_columns = list(dict.fromkeys([*self.rows.columns, *columns.templates, *late]))
        #: the columns that the requests are made from
        self.request_columns = list(dict.fromkeys([*self.template_columns, *columns.attachments]))
        #: all columns that planning reads
        self.columns = list(dict.fromkeys([*job.source.key, *job.source.keep, *self.request_columns]))

    def _require_columns(self) -> None:
        self.rows.require(self._job.source.key, "source.key")
        self.rows.require(list(self._job.source.keep), "source.keep")
        for field_name, named in self._builder.named.items():
            self.rows.require(named, field_name)
        for field_name, functions in self._builder.functions.items():
            for name in sorted(functions & set(self.rows.columns)):
                raise JobError(
                    f'{field_name}: {name} is a function of the templates; for the column write row["{name}"]'
                )

    @property
    def key(self) -> list[str]:
        """Return the key columns."""
        return self._job.source.key

    @property
    def inputs(self) -> list[Input]:
        """Return the files of the source, or its query."""
        return self.rows.inputs

    def kinds(self) -> dict[str, str]:
        """Return the SQL types of the key and kept columns, by column."""
        return self.rows.kinds([*self._job.source.key, *self._job.source.keep])

    def chunks(self, inputs: Sequence[Input] | None = None, *, columns: Sequence[str] | None = None) -> Iterator[Chunk]:
        """Yield the rows in chunks. inputs, columns: read only these; None: all inputs, and `self.columns`."""
        return self.rows.chunks(self.columns if columns is None else columns, limit=self._limit, inputs=inputs)

    def chunks_in_bounds(self, inputs: Sequence[Input] | None = None) -> Iterator[Chunk]:
        """Yield the rows in chunks of at most ATTACHED_BYTES of attachments, or of one row. inputs: as for `chunks`."""
        attached = self._builder.columns.attachments
        for chunk in self.chunks(inputs):
            if not attached:
                yield chunk
                continue
            folder, start, weight = chunk.folder, 0, 0
            rows = list(identity.named_rows(chunk.frame, attached, as_bytes=attached))
            self._builder.attachments.prefetch(rows, folder)
            for i, row in enumerate(rows):
                heavy = self._builder.attachments.weight(row, folder)
                if i > start and weight + heavy > ATTACHED_BYTES:
                    yield chunk.part(start, i)
                    start, weight = i, 0
                weight += heavy
            yield chunk.part(start, chunk.frame.height)

    def keys(self, chunk: Chunk) -> pl.Series:
        """Return the key of each row, as JSON."""
        return identity.key_column(chunk.frame, self._job.source.key)

    def keeps(self, chunk: Chunk) -> list[str | None]:
        """Return the kept values of each row, as JSON; None where the job keeps no column."""
        return identity.kept(chunk.frame, self._job.source.keep)

    def request_values(self, frame: pl.DataFrame) -> Iterable[dict[str, Any]]:
        """Return the values that the request of each row is built from, by column."""
        return identity.named_rows(frame, self.request_columns, as_bytes=self._builder.columns.attachments)

    def request_hashes(self, frame: pl.DataFrame) -> pl.Series | None:
        """Return a hash for each row that is equal where the values are equal from which the request is made.

        None if rows do not share requests, or if a value cannot be hashed.
        """
        frame = identity.columns_of(frame, self.request_columns)
        hashable = all(not dtype.is_nested() and dtype != pl.Object for dtype in frame.dtypes)
        return frame.hash_rows() if shares_requests(self._job) and hashable and frame.width else None

    def hashes(self, chunk: Chunk) -> list[bytes]:
        """Return each row's row_hash. It covers the template columns and a stamp that shows changed attachments."""
        if not self._builder.columns.attachments:
            return identity.row_hashes(chunk.frame, self.template_columns)
        return identity.row_hashes(self._stamped(chunk), [*self.template_columns, STAMPS])

    def older_hashes(self, chunk: Chunk) -> Sequence[bytes | None]:
        """Return the row_hash that older versions gave each row, before some conversions became exact.

        None: the row has no such hash, or it is the same as today's. See source/legacy.py.
        """
        types = chunk.input.types
        older = identity.older_hashes(chunk.frame, self.template_columns, types)
        if older is not None and self._builder.columns.attachments:  # only then: it looks at all files a second time
            older = identity.older_hashes(self._stamped(chunk), [*self.template_columns, STAMPS], types)
        return older or [None] * chunk.frame.height

    def _stamped(self, chunk: Chunk) -> pl.DataFrame:
        """Return the rows with a column STAMPS, whose value changes when an attachment of the row changes."""
        folder, attached = chunk.folder, self._builder.columns.attachments
        rows = list(identity.named_rows(chunk.frame, attached, as_bytes=attached))
        self._builder.attachments.prefetch(rows, folder)
        stamps = pl.Series(STAMPS, [self._builder.attachments.stamp(row, folder) for row in rows], dtype=pl.String)
        return chunk.frame.with_columns(stamps)
