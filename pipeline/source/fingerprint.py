"""A fingerprint of a file's content, by which a source that did not change is known. Edge: files."""

import functools
import hashlib
import os
import time
from collections.abc import Sequence

import orjson
import polars as pl

from pipeline.job.model import Source
from pipeline.prefetch import map_ahead
from pipeline.source.files import Stamp, stamp
from pipeline.source.formats import FileInput
from pipeline.source.rows import Input
from pipeline.storage.objects import Object

RECENT_SECONDS = 10  # more than the times of any file system are apart
VERSION = 2  # of what a digest is made of, of files
TEXT_VERSION = 1  # of CSV files
READERS = 2  # threads that look at a file, or at stretches, at the same time
_READ_BYTES = 1 << 20
_BLOCK_BYTES = 16 << 20  # of a file, which a thread takes


def version_of(one: Input) -> Stamp | Object | None:
    """By what a file is taken for unaltered while it is read; None for what is no file, and what is gone."""
    if not isinstance(one, FileInput):
        return None
    return one.file.found if isinstance(one.file.found, Object) else stamp(one.path)


def is_recent(version: Stamp | Object) -> bool:
    """Whether the file was written to so lately that the next writing might bear the same time."""
    if isinstance(version, Object):
        return False  # the next writing gives it another ETag
    return time.time_ns() - version.mtime_ns < RECENT_SECONDS * 1_000_000_000


def fingerprint(one: Input, source: Source, columns: Sequence[str]) -> bytes | None:
    """32 bytes that stand for the rows a file holds: its bytes, and all that decides how they are read.

    Of an object its size and ETag stand for its bytes. columns: of whose values row_hashes are made. None when it
    cannot be read, and for what is no file.
    """
    if not isinstance(one, FileInput):
        return None
    file = one.file
    settings = source.model_dump(mode="json", exclude={"path"})
    # now() in a `where` is the time at which it was parsed
    where = None if source.where is None else str(pl.sql_expr(source.where))
    version = TEXT_VERSION if file.format == "csv" else VERSION
    said = [version, settings, where, list(columns), file.path, file.format, file.compression, file.delimiter]
    found = hashlib.sha256(orjson.dumps(said, option=orjson.OPT_SORT_KEYS, default=str))
    if isinstance(file.found, Object):
        found.update(orjson.dumps([file.found.size, file.found.etag]))
        return found.digest()
    try:
        starts = range(0, os.stat(file.path).st_size, _BLOCK_BYTES)
        block = functools.partial(_block, file.path)
        for digest in map_ahead(block, starts, name="fingerprint", threads=READERS, ahead=READERS):
            found.update(digest)
    except OSError:
        return None
    return found.digest()


def _block(path: str, start: int) -> bytes:
    """The digest of a part of a file; hashing leaves Python to other threads."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(start)
        for _ in range(_BLOCK_BYTES // _READ_BYTES):
            found.update(file.read(_READ_BYTES))
    return found.digest()
