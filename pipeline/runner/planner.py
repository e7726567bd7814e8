"""Plan the rows of a run, in this driver or in several processes. Edge: SQL, HTTP, files."""

import time
from collections.abc import Callable, Container
from dataclasses import replace

from pipeline.driver.job_of_run import JobOfRun
from pipeline.errors import Busy, InputError, LostRace, Stopped
from pipeline.events.runs import PlannedElsewhere
from pipeline.planning import gates, gold_canary
from pipeline.planning.drop import finish_planning
from pipeline.planning.known_rows import KnownRows
from pipeline.planning.packer import First
from pipeline.planning.resend import send_again
from pipeline.planning.shards import Planned, Shard, shards
from pipeline.planning.suspects import Suspects
from pipeline.runner.begin import Work, begin
from pipeline.runner.patience import Patience
from pipeline.runner.planners import Planners
from pipeline.runner.submitter import Submitter
from pipeline.runner.sweep import collect_while_planning, one_pass
from pipeline.state.batches import any_open
from pipeline.state.gates import keeps_gate
from pipeline.state.runs import get_run, has_work, rows_for_planning
from pipeline.states import Gate, RunState
from pipeline.steps.reconcile import reconcile_due

COLLECT_WHILE_PLANNED = 0.2  # seconds between two passes while other processes of this machine plan
LOOK_WHILE_PLANNED = 1.0  # seconds between two tries to plan while another driver does


class Planner:
    """Plans the rows of one `run`, while a thread submits each batch as soon as it is planned."""

    def __init__(self, work: Work, jobs: JobOfRun, patience: Patience) -> None:
        self._work, self._driver, self._plan = work, work.driver, work.plan
        self._jobs, self._patience = jobs, patience
        self._share = self._share_of(work)
        self._collect_at = 0.0  # when to collect next while others plan, by the monotonic clock
        self.run_id = 0  #: the number of the run; 0: it has not begun
        self.beyond_limit = 0  #: rows of the run that the last planning left out because of its limit

    def plan(self, stale: Container[int]) -> None:
        """Begin the run and plan its rows, as soon as no other driver plans the job.

        While another driver plans, do what else is due. stale: planned batches with a row that must be sent with
        another request.
        """
        while True:
            try:
                with self._driver.planning():
                    self._patience.do(lambda: reconcile_due(self._driver))
                    self.run_id = begin(self._work, stale)
                    self._pass_two()
            except (Busy, LostRace) as exc:
                self._driver.tell(PlannedElsewhere(problem=str(exc)))
                self._patience.do(lambda: one_pass(self._driver, self._jobs))  # other work may be due
                self._driver.stop.wait(LOOK_WHILE_PLANNED)
            else:
                return

    def needs_planning(self) -> bool:
        """Return whether rows of the run can only be sent after the source is read again.

        These are rows that changed, or whose recipe changed, while they were at the API, and that have a result now;
        and rows whose body in the spool was damaged.
        """
        after = self._plan.awaited.plan_again_after
        with self._driver.reading() as conn:
            if get_run(conn, self.run_id).state == RunState.INCOMPLETE:
                return False
            if after and not any_open(conn, after):
                return True
            idle = not has_work(conn, self.run_id)
            return idle and rows_for_planning(conn, self.run_id) > self.beyond_limit

    def _pass_two(self) -> None:
        """Plan the rows that are sent from the source, then the rows that are sent again from the spool."""
        driver, work = self._driver, self._work
        self._plan.begin_again()
        with Submitter(driver) as submitter:
            self._plan_canary(submitter)
            planned = self._planned_by_others(submitter)
            if work.planners is not None:
                work.planners.end()
            if not planned:
                self._plan_here(submitter)
            finish_planning(
                driver,
                self.run_id,
                dict(work.job.vars),
                whole=work.plans_all,
                awaits=bool(self._plan.awaited.batches or self._plan.awaited.plan_again_after),
                retry=work.retries_all,
                now=driver.now(),
            )
            self._plan.mark_settled(driver, self.run_id)
            for _ in send_again(driver, work.job, self.run_id, self._plan.recipe):
                submitter.wake()
        if not work.plans_all:
            with driver.reading() as conn:
                self.beyond_limit = rows_for_planning(conn, self.run_id)

    def _plan_here(self, submitter: Submitter) -> None:
        """Plan the rows of the source in this process. Raises Stopped when the source turns out to be wrong."""
        driver = self._driver
        known_rows = KnownRows(driver.database, driver.job_id, driver.sink)
        try:
            for _ in self._plan.batches(driver, self.run_id, known_rows, first=self._first()):
                submitter.wake()
        except InputError as exc:
            raise self._wrong_source(exc) from exc

    def _plan_canary(self, submitter: Submitter) -> None:
        """Plan the rows with gold that were chosen as the canary, unless the run has its canary already."""
        first = self._first() if self._work.canary_keys else None
        if first is None or first.gate != Gate.CANARY:
            return
        driver = self._driver
        known_rows = KnownRows(driver.database, driver.job_id, driver.sink)
        for _ in gold_canary.pack(self._plan, driver, self.run_id, known_rows, self._work.canary_keys):
            submitter.wake()

    def _first(self) -> First | None:
        """Return the batch to plan first, which opens the run's gate; None: the run needs none, or has one already."""
        with self._driver.reading() as conn:
            gate = get_run(conn, self.run_id).gate
            if gate is None or keeps_gate(conn, self.run_id, gate):
                return None
            return gates.first(self._work.job, gate)

    def _planned_by_others(self, submitter: Submitter) -> bool:
        """Let other processes plan the files of the source, if there are such processes.

        Return whether they did. Raises LostRace when not all files were planned: the others may still be at work, so
        this driver plans the whole source under a new lease.
        """
        share, self._share = self._share, None
        if share is None or not self._work.plans_all or self._plan.is_settled:
            return False
        parts = shards(self._plan, self._driver.job_name, self.run_id, self._driver.planning_lease, self._first())
        planned = share(parts, submitter)
        for shard in planned:
            self._plan.awaited.batches |= shard.awaited
            self._plan.awaited.plan_again_after |= shard.plan_again_after
        self._plan.take_covered(shard.covered for shard in planned)
        if len(planned) < len(parts):
            raise LostRace(f"{len(parts) - len(planned)} of {len(parts)} files were not planned by the other processes")
        return True

    def _share_of(self, work: Work) -> Callable[[list[Shard], Submitter], list[Planned]] | None:
        """Return the function that has shards planned by other processes; None: this driver plans."""
        planners, share = work.planners, work.options.share
        if planners is not None:
            return lambda parts, submitter: self._shared_out(planners, parts, submitter)
        if share is not None and len(work.plan.source.inputs) > 1:
            # without suspects: hashes of another machine may differ, and each process would get up to 2 MB of them
            return lambda parts, submitter: share(
                [replace(part, suspects=Suspects()) for part in parts], lambda: self._meanwhile(submitter)
            )
        return None

    def _shared_out(self, planners: Planners, parts: list[Shard], submitter: Submitter) -> list[Planned]:
        """Have shards planned by processes of this machine. Raises Stopped when the source turns out to be wrong."""
        try:
            return planners.plan(
                parts,
                self._driver.now(),
                self._driver.account_id,
                planned=submitter.nudge,
                meanwhile=lambda: self._meanwhile(submitter),
            )
        except InputError as exc:
            raise self._wrong_source(exc) from exc

    def _meanwhile(self, submitter: Submitter) -> None:
        """Submit what others have planned; collect what is due, if they plan on this machine."""
        self._driver.check()
        submitter.wake()
        if self._work.planners is not None and time.monotonic() >= self._collect_at:
            self._patience.do(lambda: collect_while_planning(self._driver, self._jobs, self.run_id))
            self._collect_at = time.monotonic() + COLLECT_WHILE_PLANNED

    @staticmethod
    def _wrong_source(exc: InputError) -> Stopped:
        """Return the error for a source that turned out to be wrong when rows before may be at the API already."""
        return Stopped(f"{exc} (the rows before it may be planned already; the next `run` or `collect` sends them)")
