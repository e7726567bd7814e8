"""One `run` at work: it plans, then passes over what is due until nothing is left."""

import contextlib
from collections.abc import Callable, Container, Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from pipeline.driver.driver import Driver
from pipeline.driver.environment import Environment
from pipeline.driver.job_of_run import JobOfRun
from pipeline.errors import AccountStopped, ApiUnreachable, Busy, InputError, LostRace, RunEnded, Stopped
from pipeline.events.event import Tell
from pipeline.events.runs import PlannedElsewhere, Unreachable, Waiting
from pipeline.job.model import Job
from pipeline.planning import gates, quoting
from pipeline.planning.drop import drop_of_ended_runs, drop_stale, finish_planning
from pipeline.planning.known_rows import KnownRows
from pipeline.planning.model_checks import primes_cache
from pipeline.planning.packer import First
from pipeline.planning.plan import Plan
from pipeline.planning.quote import Quote
from pipeline.planning.resend import send_again
from pipeline.planning.sample import Counts
from pipeline.planning.shards import shards
from pipeline.runner.options import Finished, Options
from pipeline.runner.submitter import Submitter
from pipeline.runner.sweep import end_run_if_done, one_pass, tidy
from pipeline.state import ends
from pipeline.state.batches import any_open, batches_by_state, count_foreign, next_due_at, waited_for
from pipeline.state.ends import End
from pipeline.state.gates import keeps_gate, note_no_canary, open_gate, set_gate
from pipeline.state.holders import in_words, until
from pipeline.state.jobs import mark_swept
from pipeline.state.rows import forget_waiting_bodies
from pipeline.state.runs import (
    bound_tokens,
    end_if_done,
    get_run,
    has_work,
    join_run,
    open_runs,
    rows_for_planning,
    run_cost,
    save_estimate,
)
from pipeline.state.tallies import note_gone, run_rows
from pipeline.states import RunState
from pipeline.steps.delete_files import delete_files_due
from pipeline.steps.reconcile import reconcile_due, refuse_unknown_bodies
from pipeline.steps.submit import due_soon

LONGEST_LOOK_AWAY = 60.0  # seconds between two passes of the loop at most
LOOK_WHILE_PLANNED = 1.0  # seconds between two tries to plan while another driver does
LOOK_AT_OTHERS = 1.0  # seconds between two passes, when other drivers have all that there is to do
RETRY_SECONDS = 5.0  # after the API did not answer; doubles up to the longest look-away


def note(where: Environment, job_id: int, plan: Plan, quote: Quote, counts: Counts) -> None:
    """What was found out for the quote, and is of use later."""
    with where.database.write() as conn:
        quoting.store_counts(conn, job_id, plan, counts, where.now())
        if quote.gone is not None:
            note_gone(conn, job_id, quote.gone, where.now())


def tell_ends(tell: Tell, some: Iterable[End], when: str) -> None:
    """Tell the bad ones of these ends."""
    for end in some:
        if end.exit_code:
            tell(end.event(when))


class Run:
    """One `run` at work."""

    def __init__(
        self,
        driver: Driver,
        job: Job,
        plan: Plan,
        quote: Quote,
        counts: Counts,
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
            mark_swept(conn, driver.job_id, driver.now())
            others = open_runs(conn, driver.job_id)
        for other in others:  # whose last rows this one may have taken over
            if other.id != self._run_id:
                end_run_if_done(driver, other.id, self._jobs(other.id))
        tidy(driver, self._job)
        delete_files_due(driver)
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
                self._driver.tell(PlannedElsewhere(problem=str(exc)))
                self._patiently(lambda: one_pass(self._driver, self._jobs))  # there may be enough to do meanwhile
                self._driver.stop.wait(LOOK_WHILE_PLANNED)
            else:
                return

    def _join(self, stale: Container[int]) -> None:
        driver, job = self._driver, self._job
        driver.spool.remove_unfinished()
        refuse_unknown_bodies(driver)
        with driver.planning_transaction() as conn:
            self._run_id = join_run(
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
                note_no_canary(conn, self._run_id)
            run = get_run(conn, self._run_id)
            self._gate(conn, run)
            if run.estimate is None:
                save_estimate(conn, self._run_id, self._estimated())
            budgeted = job.limits.max_cost_usd is not None or driver.settings.monthly_budget is not None
            if budgeted and run.tokens_per_byte is None:
                bound_tokens(conn, self._run_id, self._counts.tokens_per_byte)
        drop_of_ended_runs(driver)
        drop_stale(driver, self._run_id, job, self._plan.recipe, stale, self._options.retry)
        if self._plans_all:
            with driver.planning_transaction() as conn:
                forget_waiting_bodies(conn, self._run_id, dict(job.vars))

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
            primes=primes_cache(self._quote.models, self._counts.prefix),
        )
        if run.gate is None:
            set_gate(conn, run.id, gate)
        elif gate is None:
            open_gate(conn, run.id, run.gate, self._driver.now())

    def _pass_two(self) -> None:
        driver = self._driver
        self._plan.begin_anew()
        with Submitter(driver) as submitter:
            if not self._planned_by_others(submitter):
                lookup = KnownRows(driver.database, driver.job_id, driver.sink)
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
                self._beyond_limit = rows_for_planning(conn, self._run_id)

    def _first(self) -> First | None:
        """The batch that is planned before all others, when the run waits for one that is not there yet."""
        with self._driver.reading() as conn:
            gate = get_run(conn, self._run_id).gate
            waits = gate is not None and not keeps_gate(conn, self._run_id, gate)
            return gates.first(self._job, gate) if waits else None

    def _planned_by_others(self, submitter: "Submitter") -> bool:
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
        shared = shards(self._plan, self._driver.job_name, self._run_id, lease, first)
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
            if get_run(conn, self._run_id).state == RunState.INCOMPLETE:
                return False
            if self._plan.plan_again_after and not any_open(conn, self._plan.plan_again_after):
                return True
            idle = not has_work(conn, self._run_id)
            return idle and rows_for_planning(conn, self._run_id) > self._beyond_limit

    def _done(self) -> bool:
        """Whether nothing that the run waits for is under way or can be sent; it is finished if no row is left at all.

        It waits for rows of its source in batches of other runs, too. Rows are left when an earlier driver died while
        it planned, and this one plans up to a limit only.
        """
        run_id = self._run_id
        with self._driver.database.write() as conn:
            if get_run(conn, run_id).state == RunState.INCOMPLETE:
                return True
            if has_work(conn, run_id) or self._plan.plan_again_after:
                return False
            if any_open(conn, self._plan.awaited):
                return False
            left = rows_for_planning(conn, run_id)
            if not left:
                end_if_done(conn, run_id, self._driver.now())
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
            self._driver.tell(Unreachable(problem=str(exc), wait=self._retry_seconds))
            self._driver.stop.wait(self._retry_seconds)
            self._retry_seconds = min(2 * self._retry_seconds, LONGEST_LOOK_AWAY)
        else:
            self._failing_since, self._retry_seconds = None, RETRY_SECONDS

    def _wait(self) -> None:
        driver = self._driver
        if self._done():
            return
        with driver.reading() as conn:
            next_due = next_due_at(conn, driver.job_id, driver.lease.resource, driver.account_id)
            foreign = count_foreign(conn, driver.job_id, driver.account_id)
            others = waited_for(conn, driver.job_id, driver.lease.resource) if next_due is None else []
        if foreign:
            raise AccountStopped(
                f"{foreign} batches of {driver.job_name} were sent by another account and nothing else is left to do; "
                "run the job with that account's key, or give them up by `cancel --abandon`"
            )
        seconds = LOOK_AT_OTHERS if next_due is None else (next_due - driver.now()).total_seconds()
        if seconds > 0:
            driver.tell(
                Waiting(
                    seconds=min(seconds, LONGEST_LOOK_AWAY),
                    progress=progress(driver, self._run_id),
                    held_by=[{"process": in_words(row.holder), "until": until(row.expires_at)} for row in others],
                )
            )
            driver.stop.wait(min(seconds, LONGEST_LOOK_AWAY))

    def _finished(self) -> Finished:
        with self._driver.reading() as conn:
            row = get_run(conn, self._run_id)
            counts = run_rows(conn, row)
            cost = run_cost(conn, self._run_id)
            meanwhile = ends.of(conn, set(self._driver.ended) - {self._run_id})
        tell_ends(self._driver.tell, meanwhile, "while this command ran")
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


def progress(driver: Driver, run_id: int) -> dict[str, Any]:
    """What moves: batches by state."""
    with driver.reading() as conn:
        return {"batches": batches_by_state(conn, run_id)}
