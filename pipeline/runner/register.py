"""Store a job in the state database and make its results table. Edge: SQL, the spool."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.driver import spools
from pipeline.driver.environment import Environment
from pipeline.errors import DatabaseError, InputError
from pipeline.escapes import inline
from pipeline.job.model import Job
from pipeline.planning.trial import Sampled
from pipeline.sink.columns import ResultColumns, with_kinds
from pipeline.sink.definition import check_tables, make_tables
from pipeline.sink.table import ResultsTable, columns_as_json
from pipeline.spool.spool import Spool
from pipeline.state.batches import batches_to_come_back
from pipeline.state.database import Connection, Database
from pipeline.state.jobs import (
    JobRecord,
    all_jobs,
    alone,
    columns_of,
    job_named,
    put_job,
    set_columns,
    trials_of,
)


def known_to_database(
    conn: Connection, database: Database, job: Job, columns: ResultColumns, trial: Sampled | None = None
) -> tuple[JobRecord | None, ResultsTable]:
    """Return the job as the database has it, and its results table. The job is None if the database does not know it.

    trial: a trial of a job, which `job` is as it is asked; None: the job itself. Raises DatabaseError when the job
    cannot have this table: another job has it, or its columns do not fit; and InputError for a trial that was begun
    with other settings.
    """
    job_record = job_named(conn, job.name if trial is None else trial.name)
    _refuse_table_of_another_job(conn, job)
    if trial is not None and job_record is not None:
        _refuse_other_settings(job_record, trial)
    owners = _owners(conn, job, job_record, trial)
    before = ResultColumns.from_stored(owners[-1].columns) if owners else None
    if before is not None:
        _refuse_another_table(job, columns, owners[-1], before)
    sink = _results_table(database, job, columns, before, None if trial is None else trial.trial.name)
    if before is not None:
        _refuse_changed(conn, job, columns, owners, before)
    check_tables(conn, sink, before)
    return job_record, sink


def _owners(conn: Connection, job: Job, job_record: JobRecord | None, trial: Sampled | None) -> list[JobRecord]:
    """Return the records whose answers are in the results table: that of the job, or of all trials of the job."""
    if trial is None:
        return [] if job_record is None else [job_record]
    of_job = job_named(conn, job.name)
    return [] if of_job is None else trials_of(conn, of_job.id)


def _refuse_other_settings(job_record: JobRecord, trial: Sampled) -> None:
    """Raise InputError when the trial was begun with other settings: its answers would not belong together."""
    begun, now = job_record.trial, trial.trial
    if begun is None or begun == now:
        return
    options = {
        "changes": "--set",
        "sample": "--sample",
        "where": "--where",
        "gold_only": "--gold-only",
        "vars": "--var",
    }
    differ = [
        f"{option} ({_begun_with(getattr(begun, name))})"
        for name, option in options.items()
        if getattr(begun, name) != getattr(now, name)
    ]
    why = f"with another {' and '.join(differ)}" if differ else "before the job's request or output was changed"
    raise InputError(
        f"--name {now.name}: this trial of job {trial.job.name} was begun {why}, and nothing was sent; choose another "
        "name, or give what it was begun with to continue it"
    )


def _begun_with(value: Any) -> str:
    """Return what an option was, for a message: only the names of fields and vars, whose values may be long texts."""
    if not value:
        return "not given"
    if value is True:
        return "given"
    return ", ".join(value) if isinstance(value, Mapping) else inline(str(value))


def _results_table(
    database: Database, job: Job, columns: ResultColumns, before: ResultColumns | None, trial: str | None
) -> ResultsTable:
    """Return the results table of the job. before: the columns that it has; None for a table that is not made yet.

    A column that the job had and no longer names stays, empty in new answers. trial: the name of a trial.
    """
    kept_today = None if before is None else columns.keep
    schema = database.default_schema
    return ResultsTable(job.sink.table, columns.added_to(before), kept_today=kept_today, schema=schema, trial=trial)


def _refuse_table_of_another_job(conn: Connection, job: Job) -> None:
    """Raise DatabaseError when the results table belongs to another job."""
    for other in all_jobs(conn):
        if other.results_table.lower() == job.sink.table.lower() and other.job_name != job.name:
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
    conn: Connection, job: Job, columns: ResultColumns, owners: Sequence[JobRecord], before: ResultColumns
) -> None:
    """Raise DatabaseError when a column is to change its kind or name while batches of the job are open.

    Their answers have the former kind, and the drivers that wait for them know the former columns. owners: the job, or
    all its trials.
    """
    changed, moved = columns.changed_outputs(before), columns.displaced(before)
    open_batches = sum(batches_to_come_back(conn, each.id) for each in owners) if changed or moved else 0
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


def register(
    where: Environment, job: Job, columns: ResultColumns, file: Path | None, trial: Sampled | None = None
) -> tuple[JobRecord, ResultsTable]:
    """Store the job and make its results table, in one transaction. Return both.

    file: the job file; None: the job was declared in Python. trial: as for `known_to_database`; its job must be stored.
    Raises DatabaseError as `known_to_database` does, and when another driver has just chosen another spool for the job.
    """
    name = job.name if trial is None else trial.name
    with where.database.read() as conn:
        before, of_job = job_named(conn, name), None if trial is None else job_named(conn, job.name)
    spool = _spool(where, name, before, of_job)  # before the transaction, because the spool may be remote
    with where.database.write() as conn:
        alone(conn)  # another driver may store the same job now
        job_record, sink = known_to_database(conn, where.database, job, columns, trial)
        _make_table(conn, _owners(conn, job, job_record, trial), sink)
        if job_record is not None and job_record.spool_id not in (None, spool.id):
            raise DatabaseError(f"another driver has just chosen another spool for job {name}; run it again")
        stored = job_record or of_job
        stored_spool = None if stored is None else stored.spool
        if where.spool is not None:
            stored_spool = spools.address_of(where.database.folder, where.spool, None)
        put_job(
            conn,
            name=name,
            file=None if file is None else str(file.absolute()),
            results_table=job.sink.table,
            columns=columns_as_json(sink.columns),
            spool=stored_spool,
            spool_id=spool.id,
            now=where.now(),
            trial_of=None if of_job is None else of_job.id,
            trial=None if trial is None else trial.trial,
        )
        registered = job_named(conn, name)
        assert registered is not None
        return registered, sink


def _spool(where: Environment, name: str, job_record: JobRecord | None, of_job: JobRecord | None) -> Spool:
    """Open the spool of the job of this name. job_record: None: the job is new, and gets its spool now.

    of_job: the job of which it is a trial, where a new trial has its spool, too; None: it is a job.
    """
    if job_record is None:
        stored = None if of_job is None else of_job.spool
        return spools.open_at(spools.address_of(where.database.folder, where.spool, stored), name)
    return where.spool_of(job_record)


def _make_table(conn: Connection, owners: Sequence[JobRecord], sink: ResultsTable) -> None:
    """Make the results table, or change its columns to the present ones. owners: as for `_refuse_changed`."""
    before = ResultColumns.from_stored(owners[-1].columns) if owners else None
    if before is None or sink.columns == before:
        make_tables(conn, sink, before)
        return
    for each in owners:
        columns_of(conn, each.id, to_change=True)  # lock before the table, as drivers that write answers do
    make_tables(conn, sink, before)
    for each in owners:
        set_columns(conn, each.id, columns_as_json(sink.columns))
