"""Do the work of one `run`: plan its rows, then do what is due until nothing is left. Edge: SQL, HTTP, files."""

import contextlib
from collections.abc import Iterable
from typing import Any

from pipeline.driver.driver import Driver
from pipeline.driver.job_of_run import JobOfRun
from pipeline.errors import RunEnded
from pipeline.events.runs import Waiting
from pipeline.runner.begin import Work
from pipeline.runner.next_look import next_look
from pipeline.runner.options import Finished
from pipeline.runner.patience import LONGEST_WAIT, Patience
from pipeline.runner.planner import Planner
from pipeline.runner.sweep import end_run_if_done, one_pass, tidy
from pipeline.state import ends
from pipeline.state.batches import any_open, batches_by_state
from pipeline.state.ends import End
from pipeline.state.jobs import mark_swept
from pipeline.state.runs import end_if_done, get_run, has_work, open_runs, rows_for_planning, run_cost, run_rows
from pipeline.states import RunState
from pipeline.steps.delete_files import delete_files_due
from pipeline.steps.submit import due_soon

LOOK_AT_OTHERS = 1.0  # seconds between two passes while other drivers have claimed all the work


class Run:
    """Does the work of one `run`."""

    def __init__(self, work: Work, earlier: Iterable[End]) -> None:
        """earlier: ends of the job's runs that were not announced before this command."""
        self._work, self._driver, self._plan = work, work.driver, work.plan
        self._earlier = earlier
        self._jobs = JobOfRun(work.driver)
        self._patience = Patience(work.driver)
        self._planner = Planner(work, self._jobs, self._patience)

    def to_the_end(self) -> Finished:
        """Plan, then do what is due until nothing is left, or the command detaches. Return how the run stands then."""
        with contextlib.suppress(RunEnded):  # another driver has ended the run, so this one stops, too
            self._planner.plan(self._work.quote.stale_batches)
            self._loop()
            self._plan.mark_answered(self._driver, self._planner.run_id)
        self._end_others()
        tidy(self._driver, self._work.job)
        delete_files_due(self._driver)
        return self._finished()

    def _loop(self) -> None:
        """Do what is due until nothing is left, or until nothing can be sent now if the command is to detach."""
        driver, planner = self._driver, self._planner
        while not self._done():
            self._patience.do(lambda: one_pass(driver, self._jobs, still_planning=planner.run_id))
            if self._work.options.detach and not driver.calls_left and not due_soon(driver):
                self._done()  # ends the run if nothing is left
                return
            if planner.needs_planning():
                planner.plan(frozenset())
            else:
                self._wait()

    def _end_others(self) -> None:
        """Note that all due work is done, and end other runs of the job whose last rows this run has taken over."""
        with self._driver.database.write() as conn:
            mark_swept(conn, self._driver.job_id, self._driver.now())
            others = open_runs(conn, self._driver.job_id)
        for other in others:
            if other.id != self._planner.run_id:
                end_run_if_done(self._driver, other.id, self._jobs(other.id))

    def _done(self) -> bool:
        """Return whether the command is done: nothing that it waits for is under way or can be sent.

        The run is ended as finished if no row is left at all. It also waits for rows of its source that are in batches
        of other runs. Rows are left when an earlier driver died while it planned, and this driver plans only up to a
        limit.
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
        """Wait until a batch is due, at most LONGEST_WAIT. Raises AccountStopped if only another account can go on."""
        driver = self._driver
        if self._done():
            return
        look = next_look(driver, otherwise=LOOK_AT_OTHERS)
        seconds = min(look.seconds, LONGEST_WAIT)
        if seconds > 0:
            driver.tell(Waiting(seconds=seconds, progress=progress(driver, self._planner.run_id), held_by=look.held_by))
            driver.stop.wait(seconds)

    def _finished(self) -> Finished:
        """Return how the run stands. Tell the ends of other runs that this driver has ended, and return them, too."""
        run_id = self._planner.run_id
        with self._driver.reading() as conn:
            run = get_run(conn, run_id)
            counts = run_rows(conn, run)
            cost = run_cost(conn, run_id)
            meanwhile = ends.of(conn, set(self._driver.ended) - {run_id})
        ends.tell_bad(self._driver.tell, meanwhile, "while this command ran")
        return Finished(
            run_id,
            run.state,
            run.reason,
            counts,
            cost,
            self._work.quote,
            self._work.job.limits.max_failed,
            ended_at=run.ended_at,
            # without an earlier end of this run, because this command has continued the run
            earlier=tuple(end for end in self._earlier if end.run_id != run_id),
            meanwhile=tuple(meanwhile),
        )


def progress(driver: Driver, run_id: int) -> dict[str, Any]:
    """Return the progress of a run: its number of batches by state."""
    with driver.reading() as conn:
        return {"batches": batches_by_state(conn, run_id)}
