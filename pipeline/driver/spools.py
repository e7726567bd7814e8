"""Which spool does a job use, and when may another place be its spool?

A job's spool is known by its address and by the id in its marker. The same id at another address is the same spool: the
disk was mounted elsewhere, or the bucket has a new name. Another id is another spool, which may take over while no body
is needed. The database learns of it in one transaction. If we die on the line before, the job keeps its spool, and all
that exists of the new one is a marker. If we die on the line after, no batch needs the old one.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import DatabaseError, Stopped
from pipeline.spool.local import LocalSpool
from pipeline.spool.objects import ObjectSpool
from pipeline.spool.spool import Spool, wrong_spool
from pipeline.state.batches import known_nonces
from pipeline.state.database import Database
from pipeline.state.jobs import JobRecord, alone, set_spool, spool_id_of
from pipeline.state.rows import needed_bodies
from pipeline.storage import objects
from pipeline.storage.folders import MARKER

SHOWN_BATCHES = 5  # that an error names


def address_of(home: Path | None, given: str | None, stored: str | None) -> str:
    """The address of a spool: the one given, else the one that the job has, else `spool` beside the database.

    home: the folder of a SQLite database; None on a server. Raises DatabaseError for an address of an unknown kind, and
    where there is no such place.
    """
    chosen = stored if given is None else _address(given)
    if chosen:
        return chosen
    if home is None:
        raise DatabaseError(
            "a database on a server needs a spool, a folder that all its drivers can read, or a place on object "
            "storage (s3://BUCKET/PREFIX): give one by --spool or BATCH_SPOOL"
        )
    return str((home / "spool").absolute())


def _address(given: str) -> str:
    """A spool as it was given, in the form in which the database has it."""
    if objects.is_url(given):
        return given.rstrip("/")
    if "://" in given:
        schemes = ", ".join(f"{scheme}://" for scheme in objects.SCHEMES)
        raise DatabaseError(f"--spool {given}: a spool is a folder, or an address that begins with {schemes}")
    return str(Path(given).absolute())


def open_at(address: str, job: str, *, expected: str | None = None) -> Spool:
    """The spool of a job at this address. expected: its id, if it has to be that one. Raises as its `open` does."""
    if objects.is_url(address):
        return ObjectSpool.open(address, job, expected=expected)
    return LocalSpool.open(Path(address), job, expected=expected)


def read_id(address: str) -> str | None:
    """The id of the spool at this address; None when there is none yet. Changes nothing.

    Raises DatabaseError when no spool can be there, and Stopped when a store cannot be reached.
    """
    return ObjectSpool.read_id(address) if objects.is_url(address) else LocalSpool.read_id(Path(address))


def check(database: Database, job: JobRecord, given: str | None) -> None:
    """Raises DatabaseError unless the job can use the spool that is given, or else its own. Changes nothing."""
    own, address = _addresses(database, job, given)
    found = read_id(address)
    if address != own and not _is_same(job, found):
        with database.read() as conn:
            _refuse_needed(job, own, address, needed_bodies(conn, job.id))
    elif job.spool_id not in (None, found):
        raise wrong_spool(address, job.name, job.spool_id)


def open_for(database: Database, job: JobRecord, given: str | None) -> tuple[Spool, str | None]:
    """The spool of a job of the database, and its address if that is new, which the database then knows.

    given: a place that may be another one. Raises DatabaseError for a spool that cannot be the job's.
    """
    own, address = _addresses(database, job, given)
    if address == own:
        return open_at(own, job.name, expected=job.spool_id), None
    check(database, job, given)
    is_same = _is_same(job, read_id(address))
    if not is_same:
        _refuse_unknown(database, job, own)
    spool = open_at(address, job.name, expected=job.spool_id if is_same else None)
    with database.write() as conn:
        alone(conn)  # another driver may register the job just now
        if spool_id_of(conn, job.id, to_change=True) != job.spool_id:
            raise DatabaseError(f"another driver has just chosen another spool for job {job.name}; run it again")
        if not is_same:  # no driver can plan a batch until this transaction has ended
            _refuse_needed(job, own, address, needed_bodies(conn, job.id))
        set_spool(conn, job.id, address, spool.id)
    return spool, address


def _addresses(database: Database, job: JobRecord, given: str | None) -> tuple[str, str]:
    """Where the spool of a job is, and where it is to be from now on."""
    return address_of(database.folder, None, job.spool), address_of(database.folder, given, job.spool)


def _is_same(job: JobRecord, found: str | None) -> bool:
    """Whether a marker is that of the job's spool."""
    return found is not None and found == job.spool_id


def _refuse_needed(job: JobRecord, own: str, address: str, needed: Sequence[int]) -> None:
    """Raises DatabaseError when batches of the job need their bodies, which are in another spool."""
    if not needed:
        return
    more = len(needed) - SHOWN_BATCHES
    named = ", ".join(str(number) for number in needed[:SHOWN_BATCHES]) + (f" and {more} more" if more > 0 else "")
    raise DatabaseError(
        f"--spool {address} is not the spool of job {job.name}, which is {own}, and bodies in that are still needed "
        f"({'batch' if len(needed) == 1 else 'batches'} {named}): leave --spool and BATCH_SPOOL out until "
        f"`batch-pipeline collect {job.name}` has collected them, or copy all of {own}, with {MARKER} in it, to "
        f"{address} first"
    )


def _refuse_unknown(database: Database, job: JobRecord, own: str) -> None:
    """Raises DatabaseError when the job's spool, if it can still be reached, holds bodies that the database lacks.

    They show that the database was restored from a backup, or that a planner has just died: planning there finds out.
    """
    if job.spool_id is None:
        return
    try:
        held = open_at(own, job.name, expected=job.spool_id).bodies(datetime.now(UTC))
    except (DatabaseError, Stopped):
        return  # it is gone, which is why the job gets another one
    with database.read() as conn:
        unknown = held.keys() - known_nonces(conn, job.id)
    if unknown:
        raise DatabaseError(
            f"spool {own} holds a body that {database.shown} does not know ({held[min(unknown)].location}): run job "
            f"{job.name} once without --spool and BATCH_SPOOL, which finds out whether it was sent, and then again"
        )
