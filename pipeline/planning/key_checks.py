"""Check that the keys of a source are unique, never empty, and can be stored. Edge: files, SQL."""

import polars as pl

from pipeline.errors import SourceError
from pipeline.job.model import Source
from pipeline.planning.job_source import JobSource
from pipeline.planning.known_rows import KnownRows
from pipeline.source import duplicates, exact, identity
from pipeline.source.rows import Chunk, lacks_key

SHOWN = 10  # the most keys that a message lists


def require_usable(source: Source, chunk: Chunk) -> None:
    """Raise SourceError for an empty key, or for a key or kept value that the database cannot store exactly."""
    for name in source.key:
        column = chunk.frame[name]
        empty = lacks_key(column)
        if empty.any():
            places = [chunk.place(i) for i in empty.arg_true()[:SHOWN]]
            raise SourceError(
                f"source.key: column {name!r} is empty in {', '.join(places)}; each row needs a key: "
                "leave such rows out by source.where, or choose other key columns"
            )
    for field_name, names in (("source.key", source.key), ("source.keep", source.keep)):
        for name in names:
            if (found := exact.first_unstorable(chunk.frame[name])) is not None:
                raise SourceError(
                    f"{field_name}: column {name!r} in {chunk.place(found[0])}: {found[1]}; correct it in the source, "
                    "or leave such rows out by source.where"
                )


def refuse_older_keys(source: Source, chunk: Chunk, keys: pl.Series, known_rows: KnownRows) -> None:
    """Raise SourceError if the database knows rows of this chunk by the inexact keys of an older version.

    Under exact keys these rows would count as new, and they would be paid for again.
    """
    if known_rows.is_empty:
        return
    older = identity.older_keys(chunk.frame, source.key, chunk.input.types)
    for key in [] if older is None else known_rows(older.filter(older != keys).to_list()):
        raise SourceError(
            "source.key: an earlier version of this program wrote inexact keys for this column, such as "
            f"{identity.shown(key)}; with exact keys all rows would count as new and be sent again: to send them, give "
            "the job and sink.table new names; to keep their answers, leave out the answered rows by source.where"
        )


def refuse_duplicates(source: Source, read: JobSource, suspects: pl.Series) -> None:
    """Raise SourceError if rows share a key.

    suspects: the hashes of keys that came more than once; only keys with these hashes are compared. Without suspects
    the source is not read again.
    """
    if not suspects.len():
        return
    places: dict[str, list[str]] = {}
    for chunk in read.chunks(columns=source.key):
        keys = identity.key_texts(read.keys(chunk))
        for i in duplicates.hashes(keys).is_in(suspects.implode()).arg_true():
            places.setdefault(keys[i], []).append(chunk.place(i))
    twice = {key: where for key, where in places.items() if len(where) > 1}
    if twice:
        listed = "; ".join(f"{identity.shown(k)} in {', '.join(w[:3])}" for k, w in list(twice.items())[:SHOWN])
        more = f" (and {len(twice) - SHOWN} more)" if len(twice) > SHOWN else ""
        raise SourceError(
            f"source.key: {', '.join(source.key)}: several rows have the same key: {listed}{more}; "
            "choose columns whose values identify each row"
        )
