"""One `run` at work: it plans, then passes over what is due until nothing is left."""

import contextlib
from collections.abc import Iterable
from typing import Any

from pipeline.driver.driver import Driver
from pipeline.driver.job_of_run import JobOfRun
from pipeline.errors import AccountStopped, RunEnded
from pipeline.events.event import Tell
from pipeline.events.runs import Waiting
from pipeline.runner.begin import Work
from pipeline.runner.options import Finished
from pipeline.runner.patience import LONGEST_WAIT, Patience
from pipeline.runner.planner import Planner
from pipeline.runner.sweep import end_run_if_done, one_pass, tidy
from pipeline.state import ends
from pipeline.state.batches import any_open, batches_by_state, count_foreign, next_due_at, waited_for
from pipeline.state.ends import End
from pipeline.state.holders import in_words, until
from pipeline.state.jobs import mark_swept
from pipeline.state.runs import end_if_done, get_run, has_work, open_runs, rows_for_planning, run_cost, run_rows
from pipeline.states import RunState
from pipeline.steps.delete_files import delete_files_due
from pipeline.steps.submit import due_soon

LOOK_AT_OTHERS = 1.0  # seconds between two passes, when other drivers have all that there is to do


def tell_ends(tell: Tell, some: Iterable[End], when: str) -> None:
    """Tell the bad ones of these ends."""
    for end in some:
        if end.exit_code:
            tell(end.event(when))


class Run:
    """One `run` at work."""

    def __init__(self, work: Work, earlier: Iterable[End]) -> None:
        """earlier: ends of runs of the job that nobody was told of before this command."""
        self._work, self._driver, self._plan = work, work.driver, work.plan
        self._earlier = earlier
        self._jobs = JobOfRun(work.driver)
        self._patience = Patience(work.driver)
        self._planner = Planner(work, self._jobs, self._patience)

    def to_the_end(self) -> Finished:
        """Plan, and do what is due, until nothing is left; return how the run stands then."""
        with contextlib.suppress(RunEnded):  # by another driver: that is how this one ends, too
            self._planner.plan(self._work.quote.stale_batches)
            self._loop()
        self._end_others()
        tidy(self._driver, self._work.job)
        delete_files_due(self._driver)
        return self._finished()

    def _loop(self) -> None:
        """Pass over what is due until nothing is left, or nothing is left to send and the command is to detach."""
        driver, planner = self._driver, self._planner
        while not self._done():
            self._patience.do(lambda: one_pass(driver, self._jobs, still_planning=planner.run_id))
            if self._work.options.detach and not due_soon(driver):
                self._done()  # which ends it, if nothing is left
                return
            if planner.needs_planning():
                planner.plan(frozenset())
            else:
                self._wait()

    def _end_others(self) -> None:
        """Note that all that was due is done, and end other runs of the job whose last rows this one has taken over."""
        with self._driver.database.write() as conn:
            mark_swept(conn, self._driver.job_id, self._driver.now())
            others = open_runs(conn, self._driver.job_id)
        for other in others:
            if other.id != self._planner.run_id:
                end_run_if_done(self._driver, other.id, self._jobs(other.id))

    def _done(self) -> bool:
        """Whether nothing that the run waits for is under way or can be sent; it is finished if no row is left at all.

        It waits for rows of its source in batches of other runs, too. Rows are left when an earlier driver died while
        it planned, and this one plans up to a limit only.
        """
        run_id = self._planner.run_id
        with self._driver.database.write() as conn:
            if get_run(conn, run_id).state == RunState.INCOMPLETE:
                return True
            if has_work(conn, run_id) or self._plan.awaited.plan_again_after:
                return False
            if any_open(conn, self._plan.awaited.batches):
                return False
            left = rows_for_planning(conn, run_id)
            if not left:
                end_if_done(conn, run_id, self._driver.now())
            return left <= self._planner.beyond_limit

    def _wait(self) -> None:
        """Wait until a batch is due. Raises AccountStopped when only another account can go on."""
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
                    seconds=min(seconds, LONGEST_WAIT),
                    progress=progress(driver, self._planner.run_id),
                    held_by=[{"process": in_words(row.holder), "until": until(row.expires_at)} for row in others],
                )
            )
            driver.stop.wait(min(seconds, LONGEST_WAIT))

    def _finished(self) -> Finished:
        """How the run stands, and the other runs that this driver has ended, which are told now."""
        run_id = self._planner.run_id
        with self._driver.reading() as conn:
            row = get_run(conn, run_id)
            counts = run_rows(conn, row)
            cost = run_cost(conn, run_id)
            meanwhile = ends.of(conn, set(self._driver.ended) - {run_id})
        tell_ends(self._driver.tell, meanwhile, "while this command ran")
        return Finished(
            run_id,
            row.state,
            row.reason,
            counts,
            cost,
            self._work.quote,
            self._work.job.limits.max_failed,
            ended_at=row.ended_at,
            earlier=tuple(end for end in self._earlier if end.run_id != run_id),  # unless it went on just now
            meanwhile=tuple(meanwhile),
        )


def progress(driver: Driver, run_id: int) -> dict[str, Any]:
    """What moves: batches by state."""
    with driver.reading() as conn:
        return {"batches": batches_by_state(conn, run_id)}
