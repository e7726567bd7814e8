"""Export answers to a folder in Hive's layout, COLUMN=VALUE/part-ID.parquet. Edge: SQL, files, network.

The database gives answers ordered by key, a page at a time, and has no index for another order. So they are first
written to an unnamed temporary file, sorted by folder. Then the files are written one after the other, each once, so
that only one is open at a time, however many values there are.
"""

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy import Column

from pipeline.errors import InputError, PipelineError, Stopped
from pipeline.sink.arrow import record_batch
from pipeline.sink.export import Exported, Pipe, completed_if_written, is_url, require_parent, with_fitting_types
from pipeline.sink.formats import FORMATS
from pipeline.sink.nested import NestedColumns
from pipeline.sink.read import AnswerFilter, pages
from pipeline.sink.table import ResultsTable
from pipeline.sink.writer import Rows
from pipeline.source.files import NO_VALUE
from pipeline.state.database import Database
from pipeline.state.jobs import JobRecord
from pipeline.storage import durable, objects

SORTED_BYTES = 16_000_000  # of answers that are sorted in memory at a time
GROUP_BYTES = 8_000_000  # of answers that are written to a file at a time: a row group of Parquet
MAX_FOLDERS = 10_000
LONGEST_NAME = 255  # bytes of a folder's name; the limit of file systems

SUCCESS = "_SUCCESS"  # an empty file that is present while the folder holds one complete export
_OURS = re.compile(rf"part-[0-9a-f]{{16}}\.\w+|{SUCCESS}")
_ESCAPED = re.compile(r"[\x00-\x1f\x7f\"#%'*/:=?\\{\[\]^]")  # Hive's own list (FileUtils.escapePathName)


def export_partitioned(
    database: Database,
    job: JobRecord,
    place: str | Path,
    by: Sequence[str],
    wanted: AnswerFilter,
    *,
    ending: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the job's answers into a folder, with a subfolder for each value of the columns `by`.

    place: a path, or a URL on object storage. ending: one of FORMATS; None for that of `place`, or .parquet if it has
    none. overwrite: whether an earlier export in the folder is replaced.
    Raises InputError for an unknown column, for more than MAX_FOLDERS subfolders, for a folder that is not empty
    (unless overwrite), and for a folder with files that no export wrote; Stopped as `export` does.
    """
    place = str(place).rstrip("/") or "/"
    ending = ending or os.path.splitext(place)[1].lower()
    ending = ending if ending in FORMATS else ".parquet"
    table = ResultsTable.of(job).table
    names = [str(column.name) for column in table.columns]
    for name in by:
        if name not in names or list(by).count(name) > 1:
            what = "is named twice" if name in names else f"is not in {table.name} (it has {', '.join(names)})"
            raise InputError(f"--partition-by {name}: this column {what}")
    into = (_ObjectFolder if is_url(place) else _LocalFolder)(
        place, f"part-{secrets.token_hex(8)}{ending}", overwrite=overwrite
    )
    with _Sorter(list(table.columns), by, into.scratch) as sorter:
        with _disk(into.scratch or tempfile.gettempdir()):
            for page in pages(database, job, wanted):
                sorter.add(page)
            sorter.spill()

        def write(nested_columns: NestedColumns) -> int:
            into.fill(sorter.folders(), lambda out, folder: sorter.write(out, folder, ending, nested_columns))
            return sorter.rows

        with completed_if_written(place, into.is_whole):
            with_fitting_types(database, job, write)
    return Exported(sorter.rows, place, len(sorter.folders()))


@contextlib.contextmanager
def _disk(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise Stopped(f"{path}: {exc.strerror or exc}; nothing was written, safe to run again") from exc


def folder_name(column: str, value: Any) -> str:
    """Return Hive's name for a folder, like `label=billing`. value: as the database gives it; None and "" are null.

    Raises InputError if the name is longer than LONGEST_NAME.
    """
    if isinstance(value, bool):
        value = str(value).lower()
    text = NO_VALUE if value is None or value == "" else _escaped(str(value))
    name = f"{_escaped(column)}={text}"
    if len(name.encode()) > LONGEST_NAME:
        raise InputError(
            f"--partition-by {column}: the value {str(value)[:40]!r}... is too long for a folder's name; choose a "
            "column of short values"
        )
    return name


def _escaped(text: str) -> str:
    return _ESCAPED.sub(lambda found: f"%{ord(found[0]):02X}", text)


# -- sorting ---------------------------------------------------------------------------------------------------------


class _Sorter:
    """Sorts answers into folders by means of a temporary file. rows: the number of answers so far.

    The file has blocks; each holds answers of one folder.
    """

    def __init__(self, columns: list[Column[Any]], by: Sequence[str], scratch: Path | None) -> None:
        """scratch: the folder of the temporary file, on a disk with room for all answers; None for the default one."""
        self._all, self._by = columns, by
        self._columns = [column for column in columns if column.name not in by]  # the folder's name has the others
        at = [str(column.name) for column in columns]
        self._at = [at.index(name) for name in by]
        self._names: dict[tuple[Any, ...], str] = {}
        self._held: list[Any] = []
        self._held_names: list[str] = []
        self._blocks: dict[str, array[int]] = {}  # by folder: start and end of each block, one after the other
        self.rows = 0
        with _disk(scratch or tempfile.gettempdir()):
            self._file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  # closed, and gone, with the block

    def __enter__(self) -> "_Sorter":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def folders(self) -> list[str]:
        """Return the names of the folders with answers, sorted."""
        return sorted(self._blocks)

    def add(self, page: Rows) -> None:
        """Add answers, ordered by key. page: rows with all columns."""
        self.rows += len(page)
        self._held_names += [self._folder(tuple(row[i] for i in self._at)) for row in page]
        self._held.append(record_batch(page, self._all))
        if sum(each.nbytes for each in self._held) >= SORTED_BYTES:
            self.spill()

    def _folder(self, values: tuple[Any, ...]) -> str:
        name = self._names.get(values)
        if name is None:
            name = "/".join(folder_name(column, value) for column, value in zip(self._by, values, strict=True))
            self._names[values] = name
            if len(self._names) > MAX_FOLDERS:
                raise InputError(
                    f"--partition-by {', '.join(self._by)}: there are more than {MAX_FOLDERS:,} values; choose "
                    "columns with fewer values"
                )
        return name

    def spill(self) -> None:
        """Write the answers in memory to the temporary file, sorted by folder."""
        if not self._held:
            return
        names = self._held_names
        order = sorted(range(len(names)), key=names.__getitem__)  # stable: by key within a folder
        table = pa.Table.from_batches(self._held).select([str(column.name) for column in self._columns])
        [held] = table.take(pa.array(order)).combine_chunks().to_batches()
        start = 0
        for i in range(1, len(order) + 1):
            folder = names[order[start]]
            if i == len(order) or names[order[i]] != folder:
                begins = self._file.tell()
                self._file.write(held.slice(start, i - start).serialize())
                self._blocks.setdefault(folder, array("Q")).extend((begins, self._file.tell()))
                start = i
        self._held.clear()
        self._held_names.clear()

    def write(self, out: Any, folder: str, ending: str, nested_columns: NestedColumns) -> Iterator[None]:
        """Write a folder's answers into an open file; yield after each group, so that the caller can take the bytes."""
        writer = FORMATS[ending](out, self._columns, nested_columns)
        try:
            for table in self._groups(folder):
                writer.write_arrow(table)
                yield
        finally:
            writer.close()

    def _groups(self, folder: str) -> Iterator[Any]:
        """Yield a folder's answers as Arrow tables of about GROUP_BYTES."""
        fields = record_batch([], self._columns).schema
        blocks, held, size = self._blocks[folder], list[Any](), 0
        for begins, ends in zip(blocks[::2], blocks[1::2], strict=True):
            self._file.seek(begins)
            held.append(pa.ipc.read_record_batch(pa.py_buffer(self._file.read(ends - begins)), fields))
            size += ends - begins
            if size >= GROUP_BYTES:
                yield pa.Table.from_batches(held)
                held, size = [], 0
        if held:
            yield pa.Table.from_batches(held)


#: Writes a folder's answers into an open file; yields after each group. See _Sorter.write.
Write = Callable[[Any, str], Iterator[None]]


# -- a local folder --------------------------------------------------------------------------------------------------


class _LocalFolder:
    """A local folder as the target of an export: written under another name next to it, and renamed when complete."""

    def __init__(self, place: str, name: str, *, overwrite: bool) -> None:
        """name: of each file. Raises InputError if the export may not be written to this folder."""
        self._path, self._name, self._overwrite = Path(place).resolve(), name, overwrite
        self._shown = place
        if self._path.exists() and not self._path.is_dir():
            raise InputError(f"{place} is a file; --partition-by COLUMN writes a folder: give another name")
        require_parent(self._path)
        files = (Path(root, name) for root, _, names in os.walk(self._path) for name in names)
        _refuse_taken(place, (str(file) for file in files), overwrite=overwrite)
        self.scratch = self._path.parent  #: for temporary files: this disk needs room for all answers anyway

    def is_whole(self) -> bool:
        """Return whether this export is in the folder, completely."""
        return any(self._name in names for _, _, names in os.walk(self._path))

    def fill(self, folders: Sequence[str], write: Write) -> None:
        """Write these subfolders, and make them appear all at once."""
        made = self._beside("tmp")
        try:
            with _disk(self._shown):
                for folder in folders:
                    (made / folder).mkdir(parents=True)
                    with open(made / folder / self._name, "wb") as out:
                        for _ in write(out, folder):
                            pass
                        durable.sync_file(out)
                made.mkdir(exist_ok=True)
                (made / SUCCESS).touch()
                for folder, _, _ in os.walk(made):
                    durable.sync_folder(Path(folder))
                self._swap(made)
                durable.sync_folder(self._path.parent)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _beside(self, kind: str) -> Path:
        return self._path.with_name(f".{self._path.name}.{self._name.partition('.')[0][5:]}.{kind}")

    def _swap(self, made: Path) -> None:
        if not self._overwrite or not self._path.exists():
            made.rename(self._path)  # replaces an empty folder, and fails for any other
            return
        before = self._beside("old")
        self._path.rename(before)
        try:
            made.rename(self._path)
        except BaseException:
            before.rename(self._path)
            raise
        shutil.rmtree(before, ignore_errors=True)


def _refuse_taken(place: str, files: Iterator[str], *, overwrite: bool) -> None:
    """Raise InputError if the folder has files, or, with overwrite, files that no export wrote."""
    for file in files:
        if not overwrite:
            raise InputError(f"{place} is not empty; give another folder, or --overwrite")
        if not _OURS.fullmatch(file.rpartition("/")[2]):
            raise InputError(f"{place} holds {file}, which no export wrote; give another folder")


# -- a folder on object storage --------------------------------------------------------------------------------------


class _ObjectFolder:
    """A folder on object storage as the target of an export. Nothing can be renamed there.

    `_SUCCESS` is present only while the folder holds one complete export and nothing else. It is removed before the
    first new file is written, and written again last. If the process dies in between, it is missing, and the next
    export with overwrite removes the incomplete files.
    """

    scratch = None

    def __init__(self, place: str, name: str, *, overwrite: bool) -> None:
        """The arguments are those of `_LocalFolder`."""
        self._place, self._name = place, name
        self._before = self._files()
        _refuse_taken(place, iter(self._before), overwrite=overwrite)

    def _files(self) -> list[str]:
        """Return the URLs of all files in the folder, without the empty objects by which a store's console marks it."""
        found = [obj for obj in objects.list_objects(self._place) if obj.url.startswith(f"{self._place}/")]
        return [obj.url for obj in found if obj.size or obj.url.rpartition("/")[2] == SUCCESS]

    def is_whole(self) -> bool:
        """Return whether the folder holds this export completely, and nothing else."""
        names = {url.rpartition("/")[2] for url in self._files()}
        return self._name in names and names <= {self._name, SUCCESS} and SUCCESS in names

    def fill(self, folders: Sequence[str], write: Write) -> None:
        """Write these subfolders, then remove the files of the earlier export, then write _SUCCESS."""
        success = f"{self._place}/{SUCCESS}"
        put: list[str] = []
        try:
            if success in self._before:
                objects.remove(success)
            for folder in folders:
                put.append(f"{self._place}/{folder}/{self._name}")
                objects.put(put[-1], Pipe.parts(lambda out, folder=folder: write(out, folder)))  # type: ignore[misc]
            self._refuse_other_exports(put)
        except BaseException:
            with contextlib.suppress(PipelineError):  # the first error is the one to report
                for url in put:
                    objects.remove(url)
                if success in self._before:
                    objects.put(success, b"")
            raise
        for url in self._before:
            if url != success:
                objects.remove(url)
        objects.put(success, b"")

    def _refuse_other_exports(self, put: list[str]) -> None:
        """Raise Stopped if another export writes to this folder at the same time: readers would find both."""
        others = set(self._files()) - set(put) - set(self._before)
        if others:
            raise Stopped(
                f"{self._place}: another export writes to this folder, too ({min(others)}); wait until it has "
                "finished, and run again"
            )
