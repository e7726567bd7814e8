"""Export answers to one file, local or on object storage, whole or not at all. Edge: SQL, files, network."""

import contextlib
import io
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import Completed, InputError, PipelineError, Stopped
from pipeline.sink import nested
from pipeline.sink.formats import FORMATS
from pipeline.sink.nested import NestedColumns
from pipeline.sink.read import AnswerFilter, pages
from pipeline.sink.table import ResultsTable
from pipeline.sink.writer import Columns, Writer
from pipeline.state.database import Database
from pipeline.state.jobs import JobRecord
from pipeline.storage import durable, objects
from pipeline.storage.stamps import stamp


class Exported(NamedTuple):
    """What an export wrote. rows: the number of answers; place: as it was given; files: the number of data files."""

    rows: int
    place: str
    files: int = 1


def export(
    database: Database, job: JobRecord, place: str | Path, wanted: AnswerFilter, *, overwrite: bool = False
) -> Exported:
    """Write the job's answers, ordered by key, into a file; its ending gives the format, one of FORMATS.

    place: a path, or a URL on object storage. The file gets its name only when it is complete.
    Raises InputError for an unknown ending, a missing folder, or an existing file (unless overwrite), and Stopped if
    the disk or the store fails.
    """
    place = str(place)
    ending = os.path.splitext(place)[1].lower()
    if ending not in FORMATS:
        raise InputError(f"{place}: the name must end in one of {', '.join(FORMATS)}")
    into = _into_object if is_url(place) else _into_file
    before = _version(place)
    with completed_if_written(place, lambda: _version(place) not in (None, before)):
        rows = with_fitting_types(
            database,
            job,
            lambda nested_columns: _written(into, place, database, job, wanted, nested_columns, overwrite),
        )
    return Exported(rows, place)


def with_fitting_types(database: Database, job: JobRecord, write: Callable[[NestedColumns], int]) -> int:
    """Call `write` with the job's columns of lists and objects until all values fit, and return its result.

    If a value does not fit the type of its column, the column becomes text and `write` is called again. It must not
    have published anything at that time.
    """
    with database.read() as conn:
        nested_columns = nested.nested_columns(conn, job, ResultsTable.of(job).columns)
    while True:
        try:
            return write(nested_columns)
        except nested.TypeMismatch as misfit:
            nested_columns = {**nested_columns, misfit.column: nested.NestedColumn()}


def _written(
    into: Callable[..., None],
    place: str,
    database: Database,
    job: JobRecord,
    wanted: AnswerFilter,
    nested_columns: NestedColumns,
    overwrite: bool,
) -> int:
    sheet = _Sheet(database, job, wanted, os.path.splitext(place)[1].lower(), nested_columns)
    into(place, sheet, overwrite=overwrite)
    return sheet.rows


@contextlib.contextmanager
def completed_if_written(place: str, is_whole: Callable[[], bool]) -> Iterator[None]:
    """Turn Ctrl-C or SIGTERM into Completed if the export is already complete.

    During an upload the process notices these signals only when the upload has ended, so the object may be complete.
    """
    try:
        yield
    except KeyboardInterrupt as exc:
        whole = False
        with contextlib.suppress(PipelineError):
            whole = is_whole()
        if whole:
            raise Completed(f"{place} is complete: all answers were written before the interruption") from exc
        raise


def _version(place: str) -> object:
    """Return a value that differs after the file or object is written; None if it does not exist."""
    if not is_url(place):
        return stamp(place)
    try:
        return objects.head(place)
    except objects.NotFound:
        return None


def is_url(place: str) -> bool:
    """Return True for a URL on object storage, False for a path. Raises InputError for another kind of URL."""
    if objects.is_url(place):
        return True
    if "://" in place:
        raise InputError(f"{place}: answers cannot be written to this URL; give a path, or {objects.ADDRESSES}")
    return False


class _Sheet:
    """Writes answers into one file. rows: how many were written so far."""

    def __init__(
        self, database: Database, job: JobRecord, wanted: AnswerFilter, ending: str, nested_columns: NestedColumns
    ) -> None:
        self._pages = pages(database, job, wanted)
        self._columns: Columns = list(ResultsTable.of(job).table.columns)
        self._make, self._nesteds = FORMATS[ending], nested_columns
        self.rows = 0

    def write(self, out: Any) -> Iterator[None]:
        """Write all answers into an open file; yield after each page, so that the caller can take the bytes."""
        writer: Writer = self._make(out, self._columns, self._nesteds)
        try:
            for page in self._pages:
                writer.write(page)
                self.rows += len(page)
                yield
        finally:
            writer.close()


# -- a local file ----------------------------------------------------------------------------------------------------


def _into_file(place: str, sheet: _Sheet, *, overwrite: bool) -> None:
    path = Path(place)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file, or --partition-by COLUMN for a folder of files")
    if not overwrite and os.path.lexists(path):
        raise InputError(f"{path} exists; give another name, or --overwrite")
    require_parent(path)
    with whole_file(path) as part, open(part, "wb") as out:
        for _ in sheet.write(out):
            pass
        durable.sync_file(out)


def require_parent(path: Path) -> None:
    """Raise InputError if the folder in which `path` is to be created does not exist."""
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; create it first")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; rename it to `path` if the block succeeds, else delete it."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield part
        part.replace(path)
        durable.sync_folder(path.parent)
    except OSError as exc:
        raise Stopped(f"{path}: {exc.strerror or exc}; nothing was written, safe to run again") from exc
    finally:
        part.unlink(missing_ok=True)


# -- an object -------------------------------------------------------------------------------------------------------


def _into_object(url: str, sheet: _Sheet, *, overwrite: bool) -> None:
    """Upload the answers in parts while the database is read: this needs no disk, and memory for a few parts only."""

    def refuse_taken() -> None:
        if not overwrite and object_exists(url):
            raise InputError(f"{url} exists; give another name, or --overwrite")

    refuse_taken()
    # checked again before the last part, so that of two exports to one name at the same time one fails
    objects.put(url, Pipe.parts(sheet.write, refuse_taken))


def object_exists(url: str) -> bool:
    """Return whether there is an object at this URL."""
    try:
        objects.head(url)
    except objects.NotFound:
        return False
    return True


class Pipe(io.RawIOBase):
    """A file whose written bytes are taken out again. held: the number of bytes that were not taken yet."""

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self.held = self._taken = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._held.append(bytes(data))
        self.held += len(data)
        return len(data)

    def tell(self) -> int:
        return self._taken + self.held

    def take(self) -> bytes:
        """Remove and return all bytes that were written since the last call."""
        data = b"".join(self._held)
        self._held.clear()
        self._taken, self.held = self._taken + self.held, 0
        return data

    @classmethod
    def parts(
        cls, write: Callable[[Any], Iterator[None]], before_last: Callable[[], None] = lambda: None
    ) -> Iterator[bytes]:
        """Yield what `write` writes into a file, in parts for an upload. before_last: called before the last part.

        write: gets the file, and yields from time to time.
        """
        pipe = cls()
        for _ in write(pipe):
            if pipe.held >= objects.PART_BYTES:
                yield pipe.take()
        with ThreadPoolExecutor(1) as other_thread:  # obstore calls us for the parts, and cannot be called from here
            other_thread.submit(before_last).result()
        yield pipe.take()
