"""Store a job in the state database and make its results table. Edge: SQL, the spool."""

from pathlib import Path

from pipeline.driver import spools
from pipeline.driver.environment import Environment
from pipeline.errors import DatabaseError
from pipeline.job.model import Job
from pipeline.sink.columns import ResultColumns, with_kinds
from pipeline.sink.definition import check_tables, make_tables
from pipeline.sink.table import ResultsTable, columns_as_json
from pipeline.spool.spool import Spool
from pipeline.state.batches import batches_to_come_back
from pipeline.state.database import Connection, Database
from pipeline.state.jobs import JobRecord, all_jobs, alone, columns_of, job_named, put_job


def known_to_database(
    conn: Connection, database: Database, job: Job, columns: ResultColumns
) -> tuple[JobRecord | None, ResultsTable]:
    """Return the job as the database has it, and its results table. The job is None if the database does not know it.

    Raises DatabaseError when the job cannot have this table: another job has it, or its columns do not fit.
    """
    job_record = job_named(conn, job.name)
    _refuse_table_of_another_job(conn, job)
    before = None if job_record is None else ResultColumns.from_stored(job_record.columns)
    if job_record is not None and before is not None:
        _refuse_another_table(job, columns, job_record, before)
    sink = _results_table(database, job, columns, before)
    if job_record is not None and before is not None:
        _refuse_changed(conn, job, columns, job_record, before)
    check_tables(conn, sink, before)
    return job_record, sink


def _results_table(database: Database, job: Job, columns: ResultColumns, before: ResultColumns | None) -> ResultsTable:
    """Return the results table of the job. before: the columns that it has; None for a table that is not made yet.

    A column that the job had and no longer names stays, empty in new answers.
    """
    kept_today = None if before is None else columns.keep
    schema = database.default_schema
    return ResultsTable(job.sink.table, columns.added_to(before), kept_today=kept_today, schema=schema)


def _refuse_table_of_another_job(conn: Connection, job: Job) -> None:
    """Raise DatabaseError when the results table belongs to another job."""
    for other in all_jobs(conn):
        if other.results_table.lower() == job.sink.table.lower() and other.name != job.name:
            raise DatabaseError(f"sink.table: {job.sink.table!r} belongs to job {other.name}; choose another name")


def _refuse_another_table(job: Job, columns: ResultColumns, job_record: JobRecord, before: ResultColumns) -> None:
    """Raise DatabaseError when the job's answers are in another table, or have another key."""
    if job_record.results_table != job.sink.table:
        raise DatabaseError(
            f"sink.table: job {job.name} has its answers in table {job_record.results_table!r}; go back to it, "
            "or give the job a new name"
        )
    if before.key != columns.key:
        raise DatabaseError(
            f"source.key: table {job.sink.table!r} has the key {with_kinds(before.key)}, the job now says "
            f"{with_kinds(columns.key)}; give the job and sink.table new names, or go back to the old key"
        )


def _refuse_changed(
    conn: Connection, job: Job, columns: ResultColumns, job_record: JobRecord, before: ResultColumns
) -> None:
    """Raise DatabaseError when a column is to change its kind or name while batches of the job are open.

    Their answers have the former kind, and the drivers that wait for them know the former columns.
    """
    changed, moved = columns.changed_outputs(before), columns.displaced(before)
    open_batches = batches_to_come_back(conn, job_record.id) if changed or moved else 0
    for name, new in moved.items() if open_batches else ():
        raise DatabaseError(
            f"sink.table: column {name!r} of table {job.sink.table!r} is to be renamed to {new!r}, because every "
            f"results table now has such a column of its own, and {open_batches} of the job's batches are open: "
            f"finish them by `collect {job.name}` or `cancel`, then run again"
        )
    if open_batches:
        name, (was, now) = next(iter(changed.items()))
        raise DatabaseError(
            f"output: column {name!r} of table {job.sink.table!r} holds {was}, the job now says {now}, and "
            f"{open_batches} of the job's batches are open: finish them by `collect {job.name}` or `cancel`, then "
            f"run again; or give the new column another name by output.columns: {{{name}: answer_{name}}}"
        )


def register(where: Environment, job: Job, columns: ResultColumns, file: Path | None) -> tuple[JobRecord, ResultsTable]:
    """Store the job and make its results table, in one transaction. Return both.

    file: the job file; None: the job was declared in Python. Raises DatabaseError as `known_to_database` does, and when
    another driver has just chosen another spool for the job.
    """
    with where.database.read() as conn:
        before = job_named(conn, job.name)
    spool = _spool(where, job, before)  # before the transaction, because the spool may be remote
    with where.database.write() as conn:
        alone(conn)  # another driver may store the same job now
        job_record, sink = known_to_database(conn, where.database, job, columns)
        _make_table(conn, job_record, sink)
        if job_record is not None and job_record.spool_id not in (None, spool.id):
            raise DatabaseError(f"another driver has just chosen another spool for job {job.name}; run it again")
        stored_spool = None if job_record is None else job_record.spool
        if where.spool is not None:
            stored_spool = spools.address_of(where.database.folder, where.spool, None)
        put_job(
            conn,
            name=job.name,
            file=None if file is None else str(file.absolute()),
            results_table=job.sink.table,
            columns=columns_as_json(sink.columns),
            spool=stored_spool,
            spool_id=spool.id,
            now=where.now(),
        )
        registered = job_named(conn, job.name)
        assert registered is not None
        return registered, sink


def _spool(where: Environment, job: Job, job_record: JobRecord | None) -> Spool:
    """Open the spool of the job. job_record: None: the job is new, and gets its spool now."""
    if job_record is None:
        return spools.open_at(spools.address_of(where.database.folder, where.spool, None), job.name)
    return where.spool_of(job_record)


def _make_table(conn: Connection, job_record: JobRecord | None, sink: ResultsTable) -> None:
    """Make the results table, or change its columns to the present ones. job_record: as for `_spool`."""
    before = None if job_record is None else ResultColumns.from_stored(job_record.columns)
    if job_record is not None and sink.columns != before:
        columns_of(conn, job_record.id, to_change=True)  # lock before the table, as drivers that write answers do
    make_tables(conn, sink, before)
