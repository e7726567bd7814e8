"""Find and open the spool of a job, and decide whether the job may move to another spool. Edge: files, SQL.

The database knows a job's spool by its address and by the id in its marker. The same id at another address is the same
spool: the disk was mounted elsewhere, or the bucket has a new name. Another id is another spool, to which the job may
move while no body is needed. The move is one transaction. If we die on the line before it, the job keeps its spool, and
all that exists of the new spool is a marker. If we die on the line after it, no batch needs the old spool.
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

SHOWN_BATCHES = 5  # the most batches that an error names


def address_of(home: Path | None, given: str | None, stored: str | None) -> str:
    """Return the address of a spool: the one given, else the stored one, else `spool` beside the database.

    home: the folder of a SQLite database; None: the database is on a server. given, stored: None: there is none. Raises
    DatabaseError for an address of an unknown kind, or if there is no address and the database is on a server.
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
    """Return a given address in the form that the database stores. Raises DatabaseError for an unknown kind."""
    if objects.is_url(given):
        return given.rstrip("/")
    if "://" in given:
        schemes = ", ".join(f"{scheme}://" for scheme in objects.SCHEMES)
        raise DatabaseError(f"--spool {given}: a spool is a folder, or an address that begins with {schemes}")
    return str(Path(given).absolute())


def open_at(address: str, job: str, *, expected: str | None = None) -> Spool:
    """Open the spool at this address for a job. expected: the id that it must have; None: any id.

    Raises as `open` of the two kinds of spool does.
    """
    if objects.is_url(address):
        return ObjectSpool.open(address, job, expected=expected)
    return LocalSpool.open(Path(address), job, expected=expected)


def read_id(address: str) -> str | None:
    """Return the id of the spool at this address; None if there is no spool yet. Changes nothing.

    Raises DatabaseError if no spool can be there, and Stopped if the object storage cannot be reached.
    """
    return ObjectSpool.read_id(address) if objects.is_url(address) else LocalSpool.read_id(Path(address))


def check(database: Database, job: JobRecord, given: str | None) -> None:
    """Raise DatabaseError if the job cannot use the given spool; None: its own spool. Changes nothing."""
    own, address = _addresses(database, job, given)
    found = read_id(address)
    if address != own and not _is_same(job, found):
        with database.read() as conn:
            _refuse_needed(job, own, address, needed_bodies(conn, job.id))
    elif job.spool_id not in (None, found):
        raise wrong_spool(address, job.name, job.spool_id)


def open_for(database: Database, job: JobRecord, given: str | None) -> tuple[Spool, str | None]:
    """Open the spool of a job, and store its address if the job moves there.

    given: the address that the command gives; None: the job's own spool. Returns the spool, and its address if it is
    new, else None. Raises DatabaseError if the job cannot use the spool.
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
        alone(conn)  # another driver may be registering the job at this moment
        if spool_id_of(conn, job.id, to_change=True) != job.spool_id:
            raise DatabaseError(f"another driver has just chosen another spool for job {job.name}; run it again")
        if not is_same:  # checked again: from here on no driver can plan a batch until this transaction ends
            _refuse_needed(job, own, address, needed_bodies(conn, job.id))
        set_spool(conn, job.id, address, spool.id)
    return spool, address


def _addresses(database: Database, job: JobRecord, given: str | None) -> tuple[str, str]:
    """Return the address of the job's spool, and the address that its spool will have."""
    return address_of(database.folder, None, job.spool), address_of(database.folder, given, job.spool)


def _is_same(job: JobRecord, found: str | None) -> bool:
    """Return whether an id is that of the job's spool. found: the id in a marker; None: there is no marker."""
    return found is not None and found == job.spool_id


def _refuse_needed(job: JobRecord, own: str, address: str, needed: Sequence[int]) -> None:
    """Raise DatabaseError if batches of the job still need bodies in its own spool. needed: the numbers of these."""
    if not needed:
        return
    more = len(needed) - SHOWN_BATCHES
    named = ", ".join(str(number) for number in needed[:SHOWN_BATCHES]) + (f" and {more} more" if more > 0 else "")
    raise DatabaseError(
        f"--spool {address} is not the spool of job {job.name}, which is {own}, and bodies in that spool are still "
        f"needed ({'batch' if len(needed) == 1 else 'batches'} {named}): leave --spool and BATCH_SPOOL out until "
        f"`batch-pipeline collect {job.name}` has collected them, or copy all of {own}, with {MARKER} in it, to "
        f"{address} first"
    )


def _refuse_unknown(database: Database, job: JobRecord, own: str) -> None:
    """Raise DatabaseError if the job's spool can be reached and holds bodies that the database does not know.

    Such bodies show that the database was restored from a backup, or that a driver died while planning. A run with the
    old spool finds out which.
    """
    if job.spool_id is None:
        return
    try:
        held = open_at(own, job.name, expected=job.spool_id).bodies(datetime.now(UTC))
    except (DatabaseError, Stopped):
        return  # the old spool is gone, which is why the job moves
    with database.read() as conn:
        unknown = held.keys() - known_nonces(conn, job.id)
    if unknown:
        raise DatabaseError(
            f"spool {own} holds a body that {database.shown} does not know ({held[min(unknown)].location}): run job "
            f"{job.name} once without --spool and BATCH_SPOOL, to find out whether it was sent, then run it with the "
            "new spool"
        )
