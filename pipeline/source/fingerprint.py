"""Compute the fingerprint of a source file, by which an unchanged file is recognised. Edge: files."""

import hashlib
from collections.abc import Sequence

import orjson
import polars as pl

from pipeline.job.model import Source
from pipeline.source.formats import FileInput
from pipeline.source.rows import Input
from pipeline.storage import digests, stamps
from pipeline.storage.objects import Object
from pipeline.storage.stamps import Stamp, stamp

VERSION = 2  # of the way in which fingerprints are computed; another version gives other fingerprints
TEXT_VERSION = 1  # the same, for CSV files


def version_of(one: Input) -> Stamp | Object | None:
    """Return what changes when the input's file is altered; None for an input without a file, or a missing file."""
    if not isinstance(one, FileInput):
        return None
    return one.file.found if isinstance(one.file.found, Object) else stamp(one.path)


def is_recent(version: Stamp | Object) -> bool:
    """Return whether the file was written so recently that another write could get the same time."""
    if isinstance(version, Object):
        return False  # each write gives an object another ETag
    return stamps.is_recent(version)


def fingerprint(one: Input, source: Source, columns: Sequence[str]) -> bytes | None:
    """Return a digest, 32 bytes, of a file's bytes and of all settings that decide how they are read.

    For an object, size and ETag stand for its bytes. columns: those that row_hash covers. None for an input without a
    file, or a file that cannot be read.
    """
    if not isinstance(one, FileInput):
        return None
    file = one.file
    settings = source.model_dump(mode="json", exclude={"path"})
    # parsed, because now() in a `where` becomes the time of parsing
    where = None if source.where is None else str(pl.sql_expr(source.where))
    version = TEXT_VERSION if file.format == "csv" else VERSION
    reading = [version, settings, where, list(columns), file.path, file.format, file.compression, file.delimiter]
    found = hashlib.sha256(orjson.dumps(reading, option=orjson.OPT_SORT_KEYS, default=str))
    if isinstance(file.found, Object):
        found.update(orjson.dumps([file.found.size, file.found.etag]))
        return found.digest()
    try:
        found.update(digests.block_digests(file.path))
    except OSError:
        return None
    return found.digest()
