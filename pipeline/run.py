"""The drivers: `run` takes a job to its end, `sweep` does once what is due. Both only call the steps, in a loop."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row

from pipeline import checks, store
from pipeline.api import Api
from pipeline.collect import JobOfRun, collect_due
from pipeline.driver import Driver
from pipeline.errors import AccountStopped, ApiUnreachable, Busy, DatabaseError, InputError, Stopped
from pipeline.job import Job
from pipeline.plan import Lookup, Plan, drop_stale, finish_planning, send_again
from pipeline.poll import poll_due
from pipeline.quote import Quote
from pipeline.reconcile import reconcile_due
from pipeline.sink import Columns, Sink, named, stored
from pipeline.spool import Spool
from pipeline.states import RowState, RunState
from pipeline.submit import due, submit_due
from pipeline.where import Where

LONGEST_LOOK_AWAY = 60.0  # seconds between two passes of the loop at most
RETRY_SECONDS = 5.0  # after the API did not answer; doubles up to the longest look-away


@dataclass(frozen=True)
class Finished:
    """How a run stands when its driver ends. state open: rows are still waiting or at the API.

    rows: of this run by state. kept: rows that had their outcome before. quote: what was said before.
    """

    run_id: int | None
    state: str
    reason: str | None
    rows: dict[str, int]
    cost_usd: float
    quote: Quote
    max_failed: float

    @property
    def exit_code(self) -> int:
        """0 when the rows of this run succeeded, up to max_failed of them; 1 when more did not; 3 when it stopped."""
        if self.state == RunState.INCOMPLETE:
            return 3
        total = sum(self.rows.values())
        waiting = self.rows.get(RowState.PENDING, 0) + self.rows.get(RowState.IN_FLIGHT, 0)
        failed = total - waiting - self.rows.get(RowState.SUCCEEDED, 0)
        return 1 if failed > self.max_failed * total else 0


@dataclass(frozen=True)
class Options:
    """What one `run` is asked to do. confirm: shown the quote, says whether to go on."""

    limit: int | None = None
    refresh: bool = False
    detach: bool = False
    dry_run: bool = False
    confirm: Callable[[Quote], bool] = lambda quote: True


def run(job: Job, where: Where, options: Options | None = None, *, file: Path | None = None) -> Finished:
    """Plan, submit, poll and collect until every row of the source has an outcome for its present content.

    The same call again continues what an earlier one left. Raises InputError with nothing sent, Busy when another
    driver is at it, Stopped or Interrupted when it is safe to call again.
    """
    options = options or Options()
    checks.check_params(job)
    plan = Plan(job, limit=options.limit, refresh=options.refresh)
    columns = Columns.of(job, plan.kinds())
    with where.api() as (api, account_id), where.lease(job.name) as lease:
        with where.database.read() as conn:
            row = store.job_named(conn, job.name)
            before = None if row is None else Columns(**row.columns)
            sink = _sink(job, columns, row, before)
            _refuse_table_of_another(conn, job)
            sink.check(conn, before)
            unsent = frozenset() if row is None else store.unsent(conn, row.id)
        spool = Spool.open(where.spool_root(None if row is None else row.spool), job.name)
        quote = plan.quote(Lookup(where.database, None if row is None else row.id), unsent)
        where.tell("quote", quote=quote)
        if options.dry_run or not options.confirm(quote):
            return Finished(None, "quoted", None, {}, 0.0, quote, job.limits.max_failed)
        job_id = _register(where, job, sink, row, before, file)
        driver = Driver(
            database=where.database,
            spool=spool,
            api=api,
            account_id=account_id,
            job_id=job_id,
            job_name=job.name,
            sink=sink,
            lease=lease,
            settings=where.settings,
            tell=where.tell,
            stop=where.stop,
            now=where.now,
            tries_account=True,
        )
        spool.remove_unfinished()
        return _Run(driver, job, plan, quote, options).to_the_end()


def sweep(where: Where, job_name: str | None = None) -> list[tuple[str, str | None]]:
    """Do once what is due for every open run: poll, collect, submit. Plans no new rows.

    job_name: of one job only. Returns for each job its name and why it could not be swept, or None. Raises InputError
    for an unknown job.
    """
    with where.database.read() as conn:
        known = store.all_jobs(conn)
        waiting = {run.job_id for run in store.open_runs(conn)}
    if job_name is not None and job_name not in {row.name for row in known}:
        names = ", ".join(row.name for row in known) or "none"
        raise InputError(f"this database knows no job {job_name!r} (it knows: {names})")
    chosen = [row for row in known if row.id in waiting and job_name in (None, row.name)]
    swept: list[tuple[str, str | None]] = []
    if not chosen:
        return swept
    with where.api() as (api, account_id):
        for row in chosen:
            try:
                _sweep_job(where, row, api, account_id)
                swept.append((row.name, None))
            except (Busy, Stopped) as exc:
                swept.append((row.name, str(exc)))
    return swept


def _sweep_job(where: Where, row: Row[Any], api: Api, account_id: int) -> None:
    with where.lease(row.name) as lease:
        driver = Driver(
            database=where.database,
            spool=Spool.open(where.spool_root(row.spool), row.name),
            api=api,
            account_id=account_id,
            job_id=row.id,
            job_name=row.name,
            sink=Sink(row.results_table, Columns(**row.columns)),
            lease=lease,
            settings=where.settings,
            tell=where.tell,
            stop=where.stop,
            now=where.now,
        )
        jobs = JobOfRun(driver)
        one_pass(driver, jobs)
        one_pass(driver, jobs)  # what the first pass packed anew is submitted by the second


def one_pass(driver: Driver, jobs: JobOfRun, *, still_planning: int | None = None) -> None:
    """Each step once, over all of the job's open runs. A refused account stops submitting, not collecting.

    still_planning: a run that its driver may plan again, and ends itself.
    """
    refused: AccountStopped | None = None
    reconcile_due(driver)
    try:
        submit_due(driver)
    except AccountStopped as exc:
        refused = exc
    poll_due(driver)
    collect_due(driver, jobs)
    with driver.reading() as conn:
        open_now = store.open_runs(conn, driver.job_id)
    for each in open_now:
        driver.stop.check()
        for _ in send_again(driver, jobs(each.id), each.id, each.recipe):
            driver.stop.check()
        if each.id != still_planning:
            _end_if_done(driver, each)
    if refused is not None:
        raise refused


def _end_if_done(driver: Driver, each: Row[Any]) -> None:
    with driver.transaction() as conn:
        left = store.has_work(conn, each.id) or store.rows_for_planning(conn, each.id)
        if each.planned_at is not None and not left:
            store.end_run(conn, each.id, RunState.FINISHED, reason=None, now=driver.now())


class _Run:
    """One `run` at work."""

    def __init__(self, driver: Driver, job: Job, plan: Plan, quote: Quote, options: Options) -> None:
        self._driver, self._job, self._plan, self._quote, self._options = driver, job, plan, quote, options
        self._jobs = JobOfRun(driver)
        self._beyond_limit = 0  # rows of the run that the last planning did not come to
        self._failing_since: datetime | None = None
        self._retry_seconds = RETRY_SECONDS

    def to_the_end(self) -> Finished:
        driver = self._driver
        with driver.transaction() as conn:
            run_id = store.join_run(
                conn,
                driver.job_id,
                variables=self._job.vars,
                job=self._job.model_dump(mode="json"),
                recipe=self._plan.recipe,
                now=driver.now(),
            )
        drop_stale(driver, run_id, dict(self._job.vars), self._plan.recipe, self._quote.stale_batches)
        self._patiently(lambda: reconcile_due(driver))
        self._plan_and_submit(run_id)
        while not self._done(run_id):
            self._patiently(lambda: one_pass(driver, self._jobs, still_planning=run_id))
            if self._options.detach and not due(driver):
                break
            if self._needs_planning(run_id):
                self._plan_and_submit(run_id)
            else:
                self._wait(run_id)
        with driver.reading() as conn:
            others = store.open_runs(conn, driver.job_id)
        for other in others:  # whose last rows this one may have taken over
            _end_if_done(driver, other)
        return self._finished(run_id)

    def _plan_and_submit(self, run_id: int) -> None:
        """Pass two, with a thread that submits each batch as soon as it is planned."""
        driver = self._driver
        limited = self._options.limit is not None
        driver.planning = True
        with _Submitter(driver) as submitter:
            lookup = Lookup(driver.database, driver.job_id)
            for _ in self._plan.batches(driver, run_id, lookup):
                submitter.wake()
            finish_planning(driver, run_id, dict(self._job.vars), limited=limited, now=driver.now())
            driver.planning = False
            for _ in send_again(driver, self._job, run_id, self._plan.recipe):
                submitter.wake()
        if limited:
            with driver.reading() as conn:
                self._beyond_limit = store.rows_for_planning(conn, run_id)

    def _needs_planning(self, run_id: int) -> bool:
        """Whether rows can only go on from the source.

        Those are rows that changed, or were asked in other words, while they were at the API and are back now, and rows
        whose body in the spool was damaged.
        """
        with self._driver.reading() as conn:
            if self._plan.plan_again_after and not store.any_open(conn, self._plan.plan_again_after):
                return True
            idle = not store.has_work(conn, run_id)
            return idle and store.rows_for_planning(conn, run_id) > self._beyond_limit

    def _done(self, run_id: int) -> bool:
        """Whether nothing that the run waits for is under way or can be sent; it is finished if no row is left at all.

        It waits for rows of its source in batches of other runs, too. Rows are left when an earlier driver died while
        it planned, and this one plans up to a limit only.
        """
        with self._driver.transaction() as conn:
            if store.has_work(conn, run_id) or self._plan.plan_again_after:
                return False
            if store.any_open(conn, self._plan.awaited):
                return False
            left = store.rows_for_planning(conn, run_id)
            if not left:
                store.end_run(conn, run_id, RunState.FINISHED, reason=None, now=self._driver.now())
            return left <= self._beyond_limit

    def _patiently(self, step: Callable[[], None]) -> None:
        """Do a step; bear with an API that does not answer for as long as one call may take."""
        try:
            step()
        except ApiUnreachable as exc:
            now = self._driver.now()
            self._failing_since = self._failing_since or now
            if (now - self._failing_since).total_seconds() >= self._driver.settings.timeout:
                raise
            self._driver.tell("unreachable", problem=str(exc), wait=self._retry_seconds)
            self._driver.stop.wait(self._retry_seconds)
            self._retry_seconds = min(2 * self._retry_seconds, LONGEST_LOOK_AWAY)
        else:
            self._failing_since, self._retry_seconds = None, RETRY_SECONDS

    def _wait(self, run_id: int) -> None:
        driver = self._driver
        if self._done(run_id):
            return
        with driver.reading() as conn:
            next_due = store.next_due(conn, driver.job_id)
            foreign = store.all_foreign(conn, driver.job_id, driver.account_id)
        if foreign:
            raise AccountStopped(
                f"{foreign} batches of {driver.job_name} were sent by another account and nothing else is left to do; "
                "run the job with that account's key"
            )
        seconds = 0.0 if next_due is None else (next_due - driver.now()).total_seconds()
        if seconds > 0:
            driver.tell("waiting", seconds=min(seconds, LONGEST_LOOK_AWAY), progress=progress(driver, run_id))
            driver.stop.wait(min(seconds, LONGEST_LOOK_AWAY))

    def _finished(self, run_id: int) -> Finished:
        with self._driver.reading() as conn:
            row = store.run(conn, run_id)
            counts = row.counts if row.counts is not None else store.run_counts(conn, run_id)
            cost = store.run_cost(conn, run_id)
        return Finished(run_id, row.state, row.reason, counts, cost, self._quote, self._job.limits.max_failed)


class _Submitter:
    """A thread that submits planned batches while the next ones are being planned.

    It ends when the block ends and nothing is due any more; an error of it is raised there. An API that does not
    answer just ends it: the loop behind the planning is the one that has patience.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._woken = threading.Semaphore(0)
        self._ending = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="submit")

    def wake(self) -> None:
        """A batch has been planned. Raises what ended the thread."""
        if self._error is not None:
            raise self._error
        self._woken.release()

    def __enter__(self) -> "_Submitter":
        self._thread.start()
        return self

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        if exc is not None:
            self._driver.stop.event.set()  # a POST under way holds its last bytes back
        self._ending = True
        self._woken.release()
        self._thread.join()
        if exc is None and self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            submit_due(self._driver)
            while not self._ending:
                self._woken.acquire()
                submit_due(self._driver)
        except ApiUnreachable as exc:
            self._driver.tell("unreachable", problem=str(exc), wait=0.0)
        except BaseException as exc:  # noqa: BLE001  # raised again in the thread that plans
            self._error = exc


def progress(driver: Driver, run_id: int) -> dict[str, Any]:
    """What moves: batches by state."""
    with driver.reading() as conn:
        return {"batches": store.batches_by_state(conn, run_id)}


def _refuse_table_of_another(conn: Connection, job: Job) -> None:
    for other in store.all_jobs(conn):
        if other.results_table.lower() == job.sink.table.lower() and other.name != job.name:
            raise DatabaseError(f"sink.table: {job.sink.table!r} belongs to job {other.name}; choose another name")


def _sink(job: Job, columns: Columns, row: Row[Any] | None, before: Columns | None) -> Sink:
    """The results table of the job, whose columns were `before`.

    A column that the job had and no longer names stays, empty in new answers.
    """
    if row is None or before is None:
        return Sink(job.sink.table, columns)
    if row.results_table != job.sink.table:
        raise DatabaseError(
            f"sink.table: job {job.name} has its answers in table {row.results_table!r}; go back to it, "
            "or give the job a new name"
        )
    if before.key != columns.key:
        raise DatabaseError(
            f"source.key: table {job.sink.table!r} has the key {named(before.key)}, the job now says "
            f"{named(columns.key)}; give the job and sink.table new names, or go back to the old key"
        )
    everything = Columns(columns.key, {**before.keep, **columns.keep}, {**before.output, **columns.output})
    return Sink(job.sink.table, everything, kept_today=columns.keep)


def _register(
    where: Where, job: Job, sink: Sink, row: Row[Any] | None, before: Columns | None, file: Path | None
) -> int:
    """Note the job and make its results table, in one transaction."""
    with where.database.write() as conn:
        sink.make(conn, before)
        return store.put_job(
            conn,
            name=job.name,
            file=None if file is None else str(file.absolute()),
            results_table=sink.table.name,
            columns=stored(sink.columns),
            spool=str(Path(where.spool).absolute()) if where.spool else (None if row is None else row.spool),
            now=where.now(),
        )
