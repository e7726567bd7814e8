"""Notes a job in the state database and makes its results table. Edge: SQL."""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row

from pipeline.driver import spools
from pipeline.driver.environment import Environment
from pipeline.errors import DatabaseError
from pipeline.job.model import Job
from pipeline.sink.columns import ResultColumns, with_kinds
from pipeline.sink.table import ResultsTable, columns_as_json
from pipeline.state.batches import batches_to_come_back
from pipeline.state.database import Database
from pipeline.state.jobs import all_jobs, alone, columns_of, job_named, put_job


def known_to_database(
    conn: Connection, database: Database, job: Job, columns: ResultColumns
) -> tuple[Row[Any] | None, ResultsTable]:
    """The job as the database knows it, or None, and its results table. Raises DatabaseError for an unusable one."""
    row = job_named(conn, job.name)
    for other in all_jobs(conn):
        if other.results_table.lower() == job.sink.table.lower() and other.name != job.name:
            raise DatabaseError(f"sink.table: {job.sink.table!r} belongs to job {other.name}; choose another name")
    before = None if row is None else ResultColumns(**row.columns)
    sink = _sink(database, job, columns, row, before)
    if row is not None and before is not None:
        _refuse_changed(conn, job, columns, row, before)
    sink.check(conn, before)
    return row, sink


def _sink(
    database: Database, job: Job, columns: ResultColumns, row: Row[Any] | None, before: ResultColumns | None
) -> ResultsTable:
    """The results table of the job, whose columns were `before`.

    A column that the job had and no longer names stays, empty in new answers.
    """
    if row is None or before is None:
        return ResultsTable(job.sink.table, columns.added_to(None), schema=database.default_schema)
    if row.results_table != job.sink.table:
        raise DatabaseError(
            f"sink.table: job {job.name} has its answers in table {row.results_table!r}; go back to it, "
            "or give the job a new name"
        )
    if before.key != columns.key:
        raise DatabaseError(
            f"source.key: table {job.sink.table!r} has the key {with_kinds(before.key)}, the job now says "
            f"{with_kinds(columns.key)}; give the job and sink.table new names, or go back to the old key"
        )
    everything = columns.added_to(before)
    return ResultsTable(job.sink.table, everything, kept_today=columns.keep, schema=database.default_schema)


def _refuse_changed(conn: Connection, job: Job, columns: ResultColumns, row: Row[Any], before: ResultColumns) -> None:
    """A column changes its kind only while no answers of the former kind are on their way, nor drivers that wait."""
    changed, moved = columns.changed_outputs(before), columns.displaced(before)
    open_batches = batches_to_come_back(conn, row.id) if changed or moved else 0
    for name, new in moved.items() if open_batches else ():
        raise DatabaseError(
            f"sink.table: column {name!r} of table {job.sink.table!r} is to be renamed to {new!r}, for every results "
            f"table has a column of that name by now, and {open_batches} of its batches are open: take them to their "
            f"end by `collect {job.name}` or `cancel`, then run again"
        )
    if open_batches:
        name, (was, now) = next(iter(changed.items()))
        raise DatabaseError(
            f"output: column {name!r} of table {job.sink.table!r} holds {was}, the job now says {now}, and "
            f"{open_batches} of its batches are open: take them to their end by `collect {job.name}` or `cancel`, then "
            f"run again; or give the new one another name by output.columns: {{{name}: answer_{name}}}"
        )


def register(where: Environment, job: Job, columns: ResultColumns, file: Path | None) -> tuple[Row[Any], ResultsTable]:
    """Note the job and make its results table, in one transaction."""
    with where.database.read() as conn:
        before = job_named(conn, job.name)
    # before the transaction, for it may be far away
    if before is None:
        spool = spools.open_at(spools.address_of(where.database.folder, where.spool, None), job.name)
    else:
        spool = where.spool_of(before)
    with where.database.write() as conn:
        alone(conn)  # another driver may do the same just now
        row, sink = known_to_database(conn, where.database, job, columns)
        if row is not None and sink.columns != ResultColumns(**row.columns):
            columns_of(conn, row.id, to_change=True)  # before the table: who writes answers takes them in this order
        sink.make(conn, None if row is None else ResultColumns(**row.columns))
        if row is not None and row.spool_id not in (None, spool.id):
            raise DatabaseError(f"another driver has just chosen another spool for job {job.name}; run it again")
        stored_spool = None if row is None else row.spool
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
