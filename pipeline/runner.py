"""The drivers: `run` takes a job to its end, `sweep` does once what is due. Both only call the steps, in a loop."""

import contextlib
import logging
import threading
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row

from pipeline import attached, budget, checks, counting, ends, gates, quoting, spools, store
from pipeline.api import Api
from pipeline.collect import JobOfRun, collect_due, delete_due
from pipeline.database import Database
from pipeline.driver import Driver, Tell
from pipeline.ends import End, Ended
from pipeline.errors import (
    AccountStopped,
    ApiUnreachable,
    Busy,
    DatabaseError,
    InputError,
    Interrupted,
    LostRace,
    NoAnswer,
    PipelineError,
    RunEnded,
    Stopped,
)
from pipeline.holders import in_words, until
from pipeline.job import Job
from pipeline.known import Lookup
from pipeline.parts import Share, parts
from pipeline.plan import Plan, drop_stale, finish_planning, remove_unneeded
from pipeline.poll import poll_due
from pipeline.quote import Quote
from pipeline.reconcile import ask_again, find_twins, reconcile_due, refuse_unknown_bodies
from pipeline.repack import First, drop_of_ended_runs, send_again, stop_run, waits
from pipeline.retry import Retry
from pipeline.sink import Columns, Sink, named, stored
from pipeline.states import OUTCOMES, RowState, RunReason, RunState
from pipeline.submit import due_soon, submit_due
from pipeline.where import Driving, Where

logger = logging.getLogger("pipeline")

LONGEST_LOOK_AWAY = 60.0  # seconds between two passes of the loop at most
LOOK_WHILE_PLANNED = 1.0  # seconds between two tries to plan while another driver does
LOOK_AT_OTHERS = 1.0  # seconds between two passes, when other drivers have all that there is to do
FAILED_AFTER_ROWS = 1_000  # that have an outcome: fewer prove nothing
RETRY_SECONDS = 5.0  # after the API did not answer; doubles up to the longest look-away


@dataclass(frozen=True)
class Finished:
    """How a run stands when its driver ends. state open: rows are still waiting or at the API.

    rows: of this run by state. kept: rows that had their outcome before. quote: what was said before. ended_at: None
    while it is open. earlier: how earlier runs of the job ended, where nobody had been told; meanwhile: other runs of
    the job that this driver has ended.
    """

    run_id: int | None
    state: str
    reason: str | None
    rows: dict[str, int]
    cost_usd: float
    quote: Quote = field(repr=False)  # it holds texts of rows, which nobody wants to see under a cell
    max_failed: float
    ended_at: datetime | None = field(default=None, repr=False)
    earlier: tuple[End, ...] = field(default=(), repr=False)
    meanwhile: tuple[End, ...] = field(default=(), repr=False)

    @property
    def exit_code(self) -> int:
        """0 when the rows of this run succeeded, up to max_failed of them; 1 when more did not; 3 when it stopped.

        The worst code of an earlier run, when that is worse and nobody had been told.
        """
        return max([ends.exit_code(self.state, self.rows, self.max_failed), *(end.exit_code for end in self.earlier)])

    @property
    def told(self) -> Ended:
        """The ends that whoever shows this tells, for `ends.note_told`."""
        others = {end.run_id: end.ended_at for end in (*self.earlier, *self.meanwhile)}
        own = {} if self.run_id is None or self.ended_at is None else {self.run_id: self.ended_at}
        return {**others, **own}


@dataclass(frozen=True)
class Options:
    """What one `run` is asked to do. confirm: shown the quote, says whether to go on; retry: only these rows.

    canary: whether a new recipe's first rows go first, if the job says so.

    share: who else plans, file by file, where the source has several and all of it is planned.
    """

    limit: int | None = None
    refresh: bool = False
    detach: bool = False
    dry_run: bool = False
    canary: bool = True
    retry: Retry | None = None
    confirm: Callable[[Quote], bool] = lambda quote: True
    share: Share | None = None


def run(job: Job, where: Where, options: Options | None = None, *, file: Path | None = None) -> Finished:
    """Plan, submit, poll and collect until every row of the source has an outcome for its present content.

    The same call again continues what an earlier one left, and several at a time share the work. Ends of earlier runs
    that nobody was told of are told first. Who has told the ends in what this returns notes them (`ends.note_told`).
    Raises InputError with nothing sent, Stopped or Interrupted when it is safe to call again.
    """
    options = options or Options()
    plan = Plan(job, limit=options.limit, refresh=options.refresh, retry=options.retry)
    checks.check_params(plan.asked)
    budget.require_bound(plan.asked, where.settings.monthly_budget)
    columns = Columns.of(job, plan.kinds())
    with where.driving(job.api.client) as driving:
        with where.database.read() as conn:
            row, sink = _known(conn, where.database, job, columns)
            known = quoting.known(conn, row, sink, plan)
            earlier = [] if row is None else ends.untold(conn, row.id)
        plan.run_id = known.run_id if options.retry is not None else None
        _tell_ends(where.tell, earlier, "before this command")
        where.look_at_spool(row)
        quote = plan.quote(Lookup(where.database, None if row is None else row.id, sink), known.unsent)
        counts = _quoted(where, plan, quote, known, driving.api, canary=options.canary)
        if row is not None:
            _note(where, row.id, plan, quote, counts)
        where.tell("quote", quote=quote)
        _tell_of_retries(where, job, quote)
        if options.dry_run or not options.confirm(quote):
            return Finished(None, "quoted", None, {}, 0.0, quote, job.limits.max_failed)
        is_new = row is None
        row, sink = _register(where, job, columns, file)
        driver = driving.driver(row, sink, tries_account=True)
        if is_new:
            _note(where, row.id, plan, quote, counts)
        return _Run(driver, job, plan, quote, counts, options, earlier).to_the_end()


def _note(where: Where, job_id: int, plan: Plan, quote: Quote, counts: counting.Counts) -> None:
    """What was found out for the quote, and is of use later."""
    with where.database.write() as conn:
        quoting.store_counts(conn, job_id, plan, counts, where.now())
        if quote.gone is not None:
            store.note_gone(conn, job_id, quote.gone, where.now())


def _quoted(where: Where, plan: Plan, quote: Quote, known: quoting.Known, api: Api, *, canary: bool) -> counting.Counts:
    """Complete the quote by what the API says; tell warnings. Raises JobError for what a model would refuse."""
    warnings = quoting.require_rows(plan, quote)
    warnings += checks.check_models(plan.asked, quote, api, where.now()) if quote.to_send else []
    counts, problem = quoting.counted(plan, quote, known, api)
    if quote.to_send:
        warnings += checks.cache_warnings(plan.asked, quote, counts.prefix)
    for warning in warnings:
        where.tell("warning", warning=warning)
    if problem is not None:
        where.tell("not_counted", problem=problem)
    plan.tokens_per_byte = counts.tokens_per_byte
    quoting.complete(plan, quote, known, counts, canary=canary, queue=where.settings.max_in_flight)
    return counts


def _tell_ends(tell: Tell, some: Iterable[End], when: str) -> None:
    """Tell the bad ones of these ends."""
    for end in some:
        if end.exit_code:
            tell("run_ended", when=when, **end.facts)


def sweep(where: Where, job_name: str | None = None) -> list[tuple[str, str | None]]:
    """Do once what is due for every job: poll, collect, submit, ask after what was lost. Plans no new rows.

    job_name: of one job only. Returns for each job its name and why it could not be swept, or None. Raises InputError
    for an unknown job.
    """
    with where.database.read() as conn:
        known = store.all_jobs(conn)
        waiting = store.jobs_with_work(conn, now=where.now())
    if job_name is not None and job_name not in {row.name for row in known}:
        names = ", ".join(row.name for row in known) or "none"
        raise InputError(f"this database knows no job {job_name!r} (it knows: {names})")
    chosen = [row for row in known if row.id in waiting and job_name in (None, row.name)]
    swept: list[tuple[str, str | None]] = []
    if not chosen:
        return swept
    clients = where.by_client(chosen)
    for client, rows in clients.items():
        try:
            with where.driving(client) as driving:
                swept += [_swept(driving, row) for row in rows]
        except InputError as exc:
            if len(clients) == 1:
                raise
            swept += [(row.name, str(exc)) for row in rows]  # the jobs of other clients are swept all the same
    return swept


def _swept(driving: Driving, row: Row[Any]) -> tuple[str, str | None]:
    """Sweep one job; whatever goes wrong with it, the other jobs are swept all the same."""
    try:
        sweep_job(driving.driver(row))
    except Interrupted:
        raise
    except PipelineError as exc:
        return row.name, str(exc)
    except Exception as exc:  # said, and no other job has to wait for it
        logger.debug("job %s", row.name, exc_info=True)
        return row.name, f"unforeseen: {type(exc).__name__}: {exc}"
    return row.name, None


def sweep_job(driver: Driver) -> None:
    """One sweep over one job."""
    jobs = JobOfRun(driver)
    ask_again(driver)
    find_twins(driver)
    one_pass(driver, jobs)
    one_pass(driver, jobs)  # what the first pass packed anew is submitted by the second
    with driver.database.write() as conn:
        store.mark_swept(conn, driver.job_id, driver.now())


def one_pass(driver: Driver, jobs: JobOfRun, *, still_planning: int | None = None) -> None:
    """Each step once, over all of the job's open runs. What stops one step does not stop the others; it is raised then.

    still_planning: a run that its driver may plan again, and ends itself. Raises NoAnswer at once.
    """
    stopped: list[Stopped] = []
    reconcile_due(driver)
    _tried(lambda: submit_due(driver), stopped)
    _tried(lambda: poll_due(driver), stopped)
    collected = _tried(lambda: collect_due(driver, jobs), stopped)
    delete_due(driver)
    with driver.reading() as conn:
        open_now = store.open_runs(conn, driver.job_id)
    for each in open_now:
        driver.stop.check()
        with contextlib.suppress(RunEnded):  # by another driver, meanwhile: the others are looked at all the same
            _pass_of_run(driver, each, jobs(each.id), collected=bool(collected))
            if each.id != still_planning:
                _end_if_done(driver, each.id, jobs(each.id))
    if stopped:
        raise stopped[0]


def _tried(step: Callable[[], int], stopped: list[Stopped]) -> int:
    """Do a step, and note what stops it; how many batches it moved."""
    try:
        return step()
    except NoAnswer:
        raise
    except Stopped as exc:
        stopped.append(exc)
        return 0


def _pass_of_run(driver: Driver, run: Row[Any], job: Job, *, collected: bool) -> None:
    """What is to be decided of one open run, and sent again for it. Raises RunEnded when another driver ends it."""
    if collected and _fails(driver, job, run.id) and stop_run(driver, run.id, RunReason.FAILURES):
        return
    gates.look(driver, run.id, job)
    if waits(driver, run.id):
        with contextlib.suppress(Busy), driver.planning():
            for _ in send_again(driver, job, run.id, run.recipe):
                driver.stop.check()


def _end_if_done(driver: Driver, run_id: int, job: Job) -> None:
    """End a run that is done, and tell so: of all drivers, and of all sweeps, one does."""
    with driver.database.write() as conn:
        ended = store.end_if_done(conn, run_id, driver.now())
    if ended:
        driver.tell_end("finished", run_id)
        _tidy(driver, job)


def _tidy(driver: Driver, job: Job) -> None:
    """Remove what a run that has ended leaves in the spool: bodies of rows that went again in another one."""
    with contextlib.suppress(Stopped):  # then the next planning does it
        remove_unneeded(driver, job)


def _fails(driver: Driver, job: Job, run_id: int) -> bool:
    """Whether so large a share of the run's rows fails that sending more would be a waste."""
    allowed = max(gates.allowed(job), job.limits.max_failed)
    with driver.reading() as conn:
        if not _share_failed(store.run_outcomes(conn, run_id), allowed):  # which is cheap to know, and counts retries
            return False
        return _share_failed(store.run_counts(conn, run_id), allowed)


def _share_failed(counts: Mapping[str, int], allowed: float) -> bool:
    answered = sum(counts.get(state, 0) for state in OUTCOMES)
    failed = answered - counts.get(RowState.SUCCEEDED, 0)
    return answered >= FAILED_AFTER_ROWS and failed > allowed * answered


class _Run:
    """One `run` at work."""

    def __init__(
        self,
        driver: Driver,
        job: Job,
        plan: Plan,
        quote: Quote,
        counts: counting.Counts,
        options: Options,
        earlier: Iterable[End],
    ) -> None:
        """counts: of tokens by the API, its sample empty when it was not asked.

        earlier: ends of runs of the job that nobody was told of before this command.
        """
        self._driver, self._job, self._plan, self._quote, self._options = driver, job, plan, quote, options
        self._counts = counts
        self._earlier = earlier
        self._jobs = JobOfRun(driver)
        self._run_id = 0
        self._share = options.share
        self._plans_all = options.limit is None and options.retry is None
        self._retries_all = options.limit is None and options.retry is not None
        self._beyond_limit = 0  # rows of the run that the last planning did not come to
        self._failing_since: datetime | None = None
        self._retry_seconds = RETRY_SECONDS

    def to_the_end(self) -> Finished:
        driver = self._driver
        with contextlib.suppress(RunEnded):  # by another driver: that is how this one ends, too
            self._plan_and_submit(self._quote.stale_batches)
            while not self._done():
                self._patiently(lambda: one_pass(driver, self._jobs, still_planning=self._run_id))
                if self._options.detach and not due_soon(driver):
                    self._done()  # which ends it, if nothing is left
                    break
                if self._needs_planning():
                    self._plan_and_submit(frozenset())
                else:
                    self._wait()
        with driver.database.write() as conn:
            store.mark_swept(conn, driver.job_id, driver.now())
            others = store.open_runs(conn, driver.job_id)
        for other in others:  # whose last rows this one may have taken over
            if other.id != self._run_id:
                _end_if_done(driver, other.id, self._jobs(other.id))
        _tidy(driver, self._job)
        attached.delete_due(driver)
        return self._finished()

    def _plan_and_submit(self, stale: Container[int]) -> None:
        """Pass two, with a thread that submits each batch as soon as it is planned; when no other driver plans."""
        while True:
            try:
                with self._driver.planning():
                    self._patiently(lambda: reconcile_due(self._driver))
                    self._join(stale)
                    self._pass_two()
            except (Busy, LostRace) as exc:
                self._driver.tell("planned_elsewhere", problem=str(exc))
                self._patiently(lambda: one_pass(self._driver, self._jobs))  # there may be enough to do meanwhile
                self._driver.stop.wait(LOOK_WHILE_PLANNED)
            else:
                return

    def _join(self, stale: Container[int]) -> None:
        driver, job = self._driver, self._job
        driver.spool.remove_unfinished()
        refuse_unknown_bodies(driver)
        with driver.planning_transaction() as conn:
            self._run_id = store.join_run(
                conn,
                driver.job_id,
                variables=job.vars,
                job=job.model_dump(mode="json"),
                recipe=self._plan.recipe,
                retry=None if self._options.retry is None else self._options.retry.facts(),
                now=driver.now(),
            )
            if not self._options.canary:
                # in the transaction that begins the run: if we die after it, whoever goes on with the run knows it
                store.note_no_canary(conn, self._run_id)
            run = store.run(conn, self._run_id)
            self._gate(conn, run)
            if run.estimate is None:
                store.estimated(conn, self._run_id, self._estimated())
            budgeted = job.limits.max_cost_usd is not None or driver.settings.monthly_budget is not None
            if budgeted and run.tokens_per_byte is None:
                store.bound_tokens(conn, self._run_id, self._counts.tokens_per_byte)
        drop_of_ended_runs(driver)
        drop_stale(driver, self._run_id, job, self._plan.recipe, stale, self._options.retry)
        if self._plans_all:
            with driver.planning_transaction() as conn:
                store.forget_waiting_bodies(conn, self._run_id, dict(job.vars))

    def _estimated(self) -> dict[str, Any]:
        """What was said of the run's cost, to be held against what it then cost."""
        said = self._quote.estimate
        assert said is not None
        return {"rows": said.rows, "requests": said.requests, "cost_usd": said.cost_facts}

    def _gate(self, conn: Connection, run: Row[Any]) -> None:
        """Set or open the gate that the run waits behind from now on."""
        gate = gates.gate_of(
            self._job,
            gates.standing(conn, self._driver.job_id, self._plan.recipe, run),
            rows=self._quote.to_send,
            canary=self._options.canary and self._options.retry is None,
            primes=checks.primes(self._quote.models, self._counts.prefix),
        )
        if run.gate is None:
            store.set_gate(conn, run.id, gate)
        elif gate is None:
            store.open_gate(conn, run.id, run.gate, self._driver.now())

    def _pass_two(self) -> None:
        driver = self._driver
        self._plan.begin_anew()
        with _Submitter(driver) as submitter:
            if not self._planned_by_others(submitter):
                lookup = Lookup(driver.database, driver.job_id, driver.sink)
                try:
                    for _ in self._plan.batches(driver, self._run_id, lookup, first=self._first()):
                        submitter.wake()
                except InputError as exc:  # what came before it may be at the API by now
                    raise Stopped(
                        f"{exc} (rows before that are planned, and are sent and collected by the next driver)"
                    ) from exc
            finish_planning(
                driver,
                self._run_id,
                dict(self._job.vars),
                whole=self._plans_all,
                retry=self._retries_all,
                now=driver.now(),
            )
            for _ in send_again(driver, self._job, self._run_id, self._plan.recipe):
                submitter.wake()
        if not self._plans_all:
            with driver.reading() as conn:
                self._beyond_limit = store.rows_for_planning(conn, self._run_id)

    def _first(self) -> First | None:
        """The batch that is planned before all others, when the run waits for one that is not there yet."""
        with self._driver.reading() as conn:
            gate = store.run(conn, self._run_id).gate
            waits = gate is not None and not store.keeps_gate(conn, self._run_id, gate)
            return gates.first(self._job, gate) if waits else None

    def _planned_by_others(self, submitter: "_Submitter") -> bool:
        """Have others plan the files of the source, if that was asked for and there are several.

        Raises LostRace when they did not come to their end: under a new lease, for they may go on, all is planned here.
        """
        share, self._share = self._share, None
        if share is None or not self._plans_all or len(self._plan.rows.inputs) < 2 or self._plan.is_settled:
            return False

        def meanwhile() -> None:
            self._driver.check()
            submitter.wake()

        lease, first = self._driver.planning_lease, self._first()
        shared = parts(self._plan, self._driver.job_name, self._run_id, lease, first)
        planned = share(shared, meanwhile)
        for each in planned:
            self._plan.awaited |= each.awaited
            self._plan.plan_again_after |= each.plan_again_after
        if len(planned) < len(shared):
            raise LostRace(f"{len(shared) - len(planned)} of {len(shared)} files were not planned by others")
        return True

    def _needs_planning(self) -> bool:
        """Whether rows can only go on from the source.

        Those are rows that changed, or were asked in other words, while they were at the API and are back now, and rows
        whose body in the spool was damaged.
        """
        with self._driver.reading() as conn:
            if store.run(conn, self._run_id).state == RunState.INCOMPLETE:
                return False
            if self._plan.plan_again_after and not store.any_open(conn, self._plan.plan_again_after):
                return True
            idle = not store.has_work(conn, self._run_id)
            return idle and store.rows_for_planning(conn, self._run_id) > self._beyond_limit

    def _done(self) -> bool:
        """Whether nothing that the run waits for is under way or can be sent; it is finished if no row is left at all.

        It waits for rows of its source in batches of other runs, too. Rows are left when an earlier driver died while
        it planned, and this one plans up to a limit only.
        """
        run_id = self._run_id
        with self._driver.database.write() as conn:
            if store.run(conn, run_id).state == RunState.INCOMPLETE:
                return True
            if store.has_work(conn, run_id) or self._plan.plan_again_after:
                return False
            if store.any_open(conn, self._plan.awaited):
                return False
            left = store.rows_for_planning(conn, run_id)
            if not left:
                store.end_if_done(conn, run_id, self._driver.now())
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

    def _wait(self) -> None:
        driver = self._driver
        if self._done():
            return
        with driver.reading() as conn:
            next_due = store.next_due(conn, driver.job_id, driver.lease.resource, driver.account_id)
            foreign = store.all_foreign(conn, driver.job_id, driver.account_id)
            others = store.waited_for(conn, driver.job_id, driver.lease.resource) if next_due is None else []
        if foreign:
            raise AccountStopped(
                f"{foreign} batches of {driver.job_name} were sent by another account and nothing else is left to do; "
                "run the job with that account's key, or give them up by `cancel --abandon`"
            )
        seconds = LOOK_AT_OTHERS if next_due is None else (next_due - driver.now()).total_seconds()
        if seconds > 0:
            driver.tell(
                "waiting",
                seconds=min(seconds, LONGEST_LOOK_AWAY),
                progress=progress(driver, self._run_id),
                held_by=[{"process": in_words(row.holder), "until": until(row.expires_at)} for row in others],
            )
            driver.stop.wait(min(seconds, LONGEST_LOOK_AWAY))

    def _finished(self) -> Finished:
        with self._driver.reading() as conn:
            row = store.run(conn, self._run_id)
            counts = store.run_rows(conn, row)
            cost = store.run_cost(conn, self._run_id)
            meanwhile = ends.of(conn, set(self._driver.ended) - {self._run_id})
        _tell_ends(self._driver.tell, meanwhile, "while this command ran")
        return Finished(
            self._run_id,
            row.state,
            row.reason,
            counts,
            cost,
            self._quote,
            self._job.limits.max_failed,
            ended_at=row.ended_at,
            earlier=tuple(end for end in self._earlier if end.run_id != self._run_id),  # unless it went on just now
            meanwhile=tuple(meanwhile),
        )


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
        if exc is not None and not isinstance(exc, (LostRace, RunEnded)):  # after these the driver goes on
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


def _tell_of_retries(where: Where, job: Job, quote: Quote) -> None:
    """Tell of each retry that is not finished how many rows are left to it, and what it is."""
    if not quote.for_retries:
        return
    with where.database.read() as conn:
        retries = [store.run(conn, run_id) for run_id in sorted(quote.for_retries)]
    for run in retries:
        facts = {"run": run.id, "rows": quote.for_retries[run.id], "vars": run.vars, "retry": run.retry}
        where.tell("waits_for_retry", job=job.name, **facts)


def _known(conn: Connection, database: Database, job: Job, columns: Columns) -> tuple[Row[Any] | None, Sink]:
    """The job as the database knows it, or None, and its results table. Raises DatabaseError for an unusable one."""
    row = store.job_named(conn, job.name)
    for other in store.all_jobs(conn):
        if other.results_table.lower() == job.sink.table.lower() and other.name != job.name:
            raise DatabaseError(f"sink.table: {job.sink.table!r} belongs to job {other.name}; choose another name")
    before = None if row is None else Columns(**row.columns)
    sink = _sink(database, job, columns, row, before)
    if row is not None and before is not None:
        _refuse_changed(conn, job, columns, row, before)
    sink.check(conn, before)
    return row, sink


def _sink(database: Database, job: Job, columns: Columns, row: Row[Any] | None, before: Columns | None) -> Sink:
    """The results table of the job, whose columns were `before`.

    A column that the job had and no longer names stays, empty in new answers.
    """
    if row is None or before is None:
        return Sink(job.sink.table, columns.over(None), schema=database.default_schema)
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
    everything = columns.over(before)
    return Sink(job.sink.table, everything, kept_today=columns.keep, schema=database.default_schema)


def _refuse_changed(conn: Connection, job: Job, columns: Columns, row: Row[Any], before: Columns) -> None:
    """A column changes its kind only while no answers of the former kind are on their way, nor drivers that wait."""
    changed, moved = columns.changed_outputs(before), columns.moved(before)
    open_batches = store.batches_to_come_back(conn, row.id) if changed or moved else 0
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


def _register(where: Where, job: Job, columns: Columns, file: Path | None) -> tuple[Row[Any], Sink]:
    """Note the job and make its results table, in one transaction."""
    with where.database.read() as conn:
        before = store.job_named(conn, job.name)
    # before the transaction, for it may be far away
    if before is None:
        spool = spools.open_at(spools.address_of(where.database.folder, where.spool, None), job.name)
    else:
        spool = where.spool_of(before)
    with where.database.write() as conn:
        store.alone(conn)  # another driver may do the same just now
        row, sink = _known(conn, where.database, job, columns)
        if row is not None and sink.columns != Columns(**row.columns):
            store.columns_of(
                conn, row.id, to_change=True
            )  # before the table: who writes answers takes them in this order
        sink.make(conn, None if row is None else Columns(**row.columns))
        if row is not None and row.spool_id not in (None, spool.id):
            raise DatabaseError(f"another driver has just chosen another spool for job {job.name}; run it again")
        stored_spool = None if row is None else row.spool
        if where.spool is not None:
            stored_spool = spools.address_of(where.database.folder, where.spool, None)
        store.put_job(
            conn,
            name=job.name,
            file=None if file is None else str(file.absolute()),
            results_table=job.sink.table,
            columns=stored(sink.columns),
            spool=stored_spool,
            spool_id=spool.id,
            now=where.now(),
        )
        registered = store.job_named(conn, job.name)
        assert registered is not None
        return registered, sink
