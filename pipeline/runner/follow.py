"""Follow the runs of a job, or of all jobs, until none is open; wait for the first one. Edge: SQL, HTTP, files."""

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline.driver.driver import Driver
from pipeline.driver.environment import Environment, Session
from pipeline.driver.job_of_run import JobOfRun
from pipeline.errors import Busy, LostRace
from pipeline.events.runs import AwaitsPlanning, NoRunOpen, Waiting, Warned
from pipeline.job.endpoint import Endpoint
from pipeline.runner.next_look import NextLook, next_look
from pipeline.runner.patience import LONGEST_WAIT, Patience
from pipeline.runner.sweep import one_pass, problem_of, sweep_job
from pipeline.state import ends, leases
from pipeline.state.batches import batches_by_state
from pipeline.state.database import Connection
from pipeline.state.ends import End
from pipeline.state.jobs import JobRecord, with_trials
from pipeline.state.runs import RunRecord, has_work, newest_run, rows_for_planning, runs_after, unended_runs
from pipeline.states import RunState

LOOK = 2.0  # seconds between two looks at the database, which other drivers change, too; no call of the API
SWEEP_EVERY = timedelta(minutes=10)  # as a scheduler does: only a sweep asks the API for lost batches


@dataclass(frozen=True)
class Followed:
    """What a follower has seen.

    ends: how each run ended that was open meanwhile, oldest first. problems: for each job that could not be followed
    to the end of its runs, by its name, why.
    """

    ends: list[End]
    problems: Mapping[str, str]

    @property
    def run_ids(self) -> set[int]:
        """Return the numbers of the runs that have ended."""
        return {end.run_id for end in self.ends}

    @property
    def jobs(self) -> set[str]:
        """Return the names of the jobs that were followed."""
        return {end.job for end in self.ends} | set(self.problems)

    @property
    def exit_code(self) -> int:
        """Return the exit code of the worst end, as of a `run`; 3 if a job could not be followed."""
        return max([3 if self.problems else 0, *(end.exit_code for end in self.ends)])


def follow(where: Environment, job_name: str | None = None, *, after_run: int | None = None) -> Followed:
    """Do what is due until no run is open and no batch of a run that stopped early is left at the API.

    If no run is open yet, wait for the first one. Plan no new rows: if an open run needs its source, tell so once and
    wait for the driver that plans it. Other drivers may do the same work at the same time.

    job_name: follow only this job with its trials, which the database need not know yet; None: all jobs. after_run:
    runs with a higher number count as followed, even if they end before they are seen to be open; None: those that
    begin from now on. Raises InputError when the first endpoint of the API cannot be used, and Interrupted when asked
    to stop.
    """
    with contextlib.ExitStack() as stack:
        if after_run is None:
            with where.database.read() as conn:
                after_run = newest_run(conn)
        return _Follower(where, job_name, after_run, stack).to_the_end()


class _FollowedJob:
    """A job that is followed at one endpoint of the API."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._jobs = JobOfRun(driver)
        self._patience = Patience(driver)
        self._sweep_at: datetime | None = None  # None: it was not swept yet
        self._work_at: datetime | None = None  # None: not before the next look

    def look(self) -> NextLook:
        """Return when something may be due for this driver. Raises as `next_look`."""
        look = next_look(self.driver, otherwise=LOOK)
        at = self.driver.now() + timedelta(seconds=min(look.seconds, LONGEST_WAIT))
        self._work_at = at if self._work_at is None else min(self._work_at, at)
        return look

    def work_if_due(self) -> None:
        """Do what is due. While the API does not answer, only wait. Raises as `Patience.do`.

        Do nothing before something may be due: a step without a call would look like an answer of the API.
        """
        if self._work_at is not None and self.driver.now() >= self._work_at:
            self._work_at = None
            with contextlib.suppress(Busy, LostRace):  # another driver does this work, or has done it
                self._patience.do(self._step)

    def _step(self) -> None:
        now = self.driver.now()
        if self._sweep_at is None or now >= self._sweep_at:
            sweep_job(self.driver)
            self._sweep_at = now + SWEEP_EVERY
        else:
            one_pass(self.driver, self._jobs)


class _Follower:
    """Follows the runs of a job, or of all jobs."""

    def __init__(self, where: Environment, job_name: str | None, after_run: int, stack: contextlib.ExitStack) -> None:
        """stack: on it the sessions with the API are opened."""
        self._where, self._job_name, self._stack = where, job_name, stack
        self._after_run = after_run
        self._sessions: dict[Endpoint, Session] = {}
        self._followed: dict[tuple[int, Endpoint], _FollowedJob] = {}  # by number of the job, and endpoint
        self._runs: set[int] = set()  # the runs that are followed
        self._problems: dict[str, str] = {}  # by name of a job that is not followed any more
        self._told_no_run = False
        self._told_awaiting: set[int] = set()  # runs

    def to_the_end(self) -> Followed:
        """Do what is due until no run is left, and return how the runs ended."""
        while (jobs := self._look()) or not self._runs:
            if jobs:
                self._do_due(jobs)
            else:
                self._wait_for_first_run()
        with self._where.database.read() as conn:
            return Followed(ends.of(conn, self._runs), self._problems)

    def _look(self) -> list[JobRecord]:
        """Return the jobs that have a run to follow and no problem, and note all runs to follow."""
        with self._where.database.read() as conn:
            known = {job.id: job for job in with_trials(conn, self._job_name)}
            unended = [run for run in unended_runs(conn) if run.job_id in known]
            newer = [run for run in runs_after(conn, self._after_run) if run.job_id in known]
        self._runs |= {run.id for run in (*unended, *newer)}
        with_runs = {run.job_id for run in unended}
        return [job for job in known.values() if job.id in with_runs and job.name not in self._problems]

    def _wait_for_first_run(self) -> None:
        if not self._told_no_run:
            self._told_no_run = True
            self._where.tell(NoRunOpen(job=self._job_name))
        self._where.stop.wait(LOOK)

    def _do_due(self, jobs: Sequence[JobRecord]) -> None:
        """Wait until something may be due, at most until the next look at the database, then do it."""
        if not self._sessions:
            self._session(self._where.endpoint_of(jobs[0]))  # raises InputError: without one nothing can be done
        looks: list[NextLook] = []
        for job in jobs:
            self._try(job, lambda followed: looks.append(followed.look()))
        self._tell_awaiting(jobs)
        self._wait(looks)
        for job in jobs:
            if job.name not in self._problems:
                self._try(job, _FollowedJob.work_if_due)

    def _wait(self, looks: Sequence[NextLook]) -> None:
        """Wait until the next batch is due. Free the batches that other drivers have claimed, if these are dead."""
        where, held_by = self._where, [other for look in looks for other in look.held_by]
        if held_by:
            with where.database.write() as conn:
                leases.bury(conn, where.database.now(conn, where.now()))
        seconds = min((look.seconds for look in looks), default=0.0)
        if seconds > 0:
            progress = {"batches": self._batches_by_state()}
            told = Waiting(seconds=min(seconds, LONGEST_WAIT), progress=progress, held_by=held_by)
            where.tell(told if self._job_name is None else told.of_job(self._job_name))
        where.stop.wait(min(seconds, LOOK))

    def _batches_by_state(self) -> dict[str, int]:
        """Return the number of batches of all followed runs in each state."""
        total: Counter[str] = Counter()
        with self._where.database.read() as conn:
            for run_id in self._runs:
                total.update(batches_by_state(conn, run_id))
        return dict(total)

    def _tell_awaiting(self, jobs: Sequence[JobRecord]) -> None:
        """Tell once of each run that only a driver which reads its source can continue, while no driver does so."""
        names = {job.id: job.name for job in jobs}
        with self._where.database.read() as conn:
            at = self._where.database.now(conn, self._where.now())
            found = [
                run
                for run in unended_runs(conn)
                if run.job_id in names
                and run.id not in self._told_awaiting
                and _needs_source(conn, run)
                and not leases.is_held(conn, leases.planning_of(names[run.job_id]), at)
            ]
        for run in found:
            self._told_awaiting.add(run.id)
            self._where.tell(AwaitsPlanning(run=run.id, job=names[run.job_id]))

    def _try(self, job: JobRecord, work: Callable[[_FollowedJob], None]) -> None:
        """Do work for a job. If that fails, stop following the job; tell so now if there may be others to follow."""
        problem = problem_of(job.name, lambda: work(self._job(job)))
        if problem is not None:
            self._problems[job.name] = problem
            if self._job_name is None:
                self._where.tell(Warned(warning=f"job {job.name} is not followed any more: {problem}"))

    def _job(self, job: JobRecord) -> _FollowedJob:
        """Return a job as it is followed at the endpoint of its last run."""
        endpoint = self._where.endpoint_of(job)
        key = (job.id, endpoint)
        if key not in self._followed:
            self._followed[key] = _FollowedJob(self._session(endpoint).driver(job))
        return self._followed[key]

    def _session(self, endpoint: Endpoint) -> Session:
        if endpoint not in self._sessions:
            self._sessions[endpoint] = self._stack.enter_context(self._where.driving(endpoint))
        return self._sessions[endpoint]


def _needs_source(conn: Connection, run: RunRecord) -> bool:
    """Return whether nothing is left to do for an open run but what needs its source."""
    if run.state != RunState.OPEN or has_work(conn, run.id):
        return False
    return run.planned_at is None or rows_for_planning(conn, run.id) > 0
