"""Answers to one file, local or on object storage, whole or not at all. Edge: SQL, files, network."""

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
from pipeline.sink.formats import FORMATS, Columns, Writer
from pipeline.sink.nested import Nesteds
from pipeline.sink.read import Wanted, pages
from pipeline.sink.table import ResultsTable
from pipeline.source import files
from pipeline.state.database import Database
from pipeline.state.jobs import JobRecord
from pipeline.storage import durable, objects


class Exported(NamedTuple):
    """What was written: how many answers, where, and into how many files."""

    rows: int
    place: str
    files: int = 1


def export(
    database: Database, job: JobRecord, place: str | Path, wanted: Wanted, *, overwrite: bool = False
) -> Exported:
    """Write the job's answers, in the order of their keys, into a file whose name says the format.

    place: a path, or an address on object storage. The file has its name only when it is whole. Raises InputError for
    a name that is taken (unless overwrite) or says no format, Stopped when the disk or the store does not take it.
    """
    place = str(place)
    ending = os.path.splitext(place)[1].lower()
    if ending not in FORMATS:
        raise InputError(f"{place}: the name must end in one of {', '.join(FORMATS)}")
    into = _into_object if is_url(place) else _into_file
    before = _version(place)
    with said_if_whole(place, lambda: _version(place) not in (None, before)):
        rows = fitting(database, job, lambda nesteds: _written(into, place, database, job, wanted, nesteds, overwrite))
    return Exported(rows, place)


def fitting(database: Database, job: JobRecord, write: Callable[[Nesteds], int]) -> int:
    """What `write` returns, which writes the answers with these columns of lists and objects.

    It begins again when a value does not fit the type of its column, which is text then; nothing has its name by then.
    """
    with database.read() as conn:
        nesteds = nested.of(conn, job, ResultsTable.of(job).columns)
    while True:
        try:
            return write(nesteds)
        except nested.Misfit as misfit:
            nesteds = {**nesteds, misfit.column: nested.Nested()}


def _written(
    into: Callable[..., None],
    place: str,
    database: Database,
    job: JobRecord,
    wanted: Wanted,
    nesteds: Nesteds,
    overwrite: bool,
) -> int:
    sheet = _Sheet(database, job, wanted, os.path.splitext(place)[1].lower(), nesteds)
    into(place, sheet, overwrite=overwrite)
    return sheet.rows


@contextlib.contextmanager
def said_if_whole(place: str, is_whole: Callable[[], bool]) -> Iterator[None]:
    """Turns Ctrl-C or SIGTERM into Completed when the export had been written by then.

    The process hears of them when an upload has come to its end, so its object may be whole.
    """
    try:
        yield
    except KeyboardInterrupt as exc:
        whole = False
        with contextlib.suppress(PipelineError):
            whole = is_whole()
        if whole:
            raise Completed(f"{place} is whole: all answers had been written before") from exc
        raise


def _version(place: str) -> object:
    """What changes when this file or object is written; None if there is none."""
    if not is_url(place):
        return files.stamp(place)
    try:
        return objects.head(place)
    except objects.NotFound:
        return None


def is_url(place: str) -> bool:
    """Whether this is an address on object storage, else it is a path. Raises InputError for another kind of URL."""
    if objects.is_url(place):
        return True
    if "://" in place:
        raise InputError(f"{place}: answers go to a path, or to {objects.ADDRESSES}")
    return False


class _Sheet:
    """The answers that go into one file. rows: how many there were so far."""

    def __init__(self, database: Database, job: JobRecord, wanted: Wanted, ending: str, nesteds: Nesteds) -> None:
        self._pages = pages(database, job, wanted)
        self._columns: Columns = list(ResultsTable.of(job).table.columns)
        self._make, self._nesteds = FORMATS[ending], nesteds
        self.rows = 0

    def write(self, out: Any) -> Iterator[None]:
        """Write them; comes up for air after each page."""
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
    with _whole(path) as part, open(part, "wb") as out:
        for _ in sheet.write(out):
            pass
        durable.sync_file(out)


def require_parent(path: Path) -> None:
    """Raises InputError where there is no folder for this file or folder."""
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it first")


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which gets its own when the block ends well."""
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
    """It goes up in parts while the database is read: no disk is needed, and no more memory than some parts take."""

    def refuse_taken() -> None:
        if not overwrite and is_there(url):
            raise InputError(f"{url} exists; give another name, or --overwrite")

    refuse_taken()
    # asked again before the last part: two who export to one name should not both believe that theirs is there
    objects.put(url, Pipe.parts(sheet.write, refuse_taken))


def is_there(url: str) -> bool:
    """Whether there is an object at this address."""
    try:
        objects.head(url)
    except objects.NotFound:
        return False
    return True


class Pipe(io.RawIOBase):
    """A file that is written, and taken away from the other end. held: bytes that wait to be taken."""

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
        """All that was written since the last time."""
        data = b"".join(self._held)
        self._held.clear()
        self._taken, self.held = self._taken + self.held, 0
        return data

    @classmethod
    def parts(
        cls, write: Callable[[Any], Iterator[None]], before_last: Callable[[], None] = lambda: None
    ) -> Iterator[bytes]:
        """What `write` writes into the file it is given, as parts of an upload."""
        pipe = cls()
        for _ in write(pipe):
            if pipe.held >= objects.PART_BYTES:
                yield pipe.take()
        with ThreadPoolExecutor(1) as apart:  # obstore, which asks us for the parts, cannot be asked from here
            apart.submit(before_last).result()
        yield pipe.take()
