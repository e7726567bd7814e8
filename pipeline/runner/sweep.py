"""Do once all work that is due, for one job or for every job. Edge: SQL, HTTP, files."""

import contextlib
import logging
from collections.abc import Callable, Mapping

from pipeline.driver.driver import Driver
from pipeline.driver.environment import Environment, Session
from pipeline.driver.job_of_run import JobOfRun
from pipeline.errors import Busy, InputError, Interrupted, LostRace, NoAnswer, PipelineError, RunEnded, Stopped
from pipeline.events.runs import RunFinished
from pipeline.job.model import Job
from pipeline.planning.drop import remove_unneeded, stop_run
from pipeline.planning.resend import send_again, waits
from pipeline.planning.rounds import due_gates, pack_rounds
from pipeline.state.jobs import JobRecord, all_jobs, jobs_with_work, mark_swept, with_trials
from pipeline.state.runs import RunRecord, end_if_done, open_runs, run_outcomes
from pipeline.state.sharing import forget_shareable, has_shareable
from pipeline.state.tallies import run_counts
from pipeline.state.turns import any_between_rounds
from pipeline.states import OUTCOMES, RowState, RunReason
from pipeline.steps.collect import collect_due
from pipeline.steps.delete import delete_batches_due
from pipeline.steps.gates import evaluate, share_that_may_fail
from pipeline.steps.poll import poll_due
from pipeline.steps.reconcile import ask_again, find_twins, reconcile_due
from pipeline.steps.submit import submit_due
from pipeline.steps.tools import call_tools

logger = logging.getLogger("pipeline")
#: Another driver plans the job, or has taken that over from this one while it was suspended: it packs what is left.
PLANNED_BY_ANOTHER = (Busy, LostRace)
FAILED_AFTER_ROWS = 1_000  # rows with an outcome; fewer prove nothing
FORGOTTEN_AT_ONCE = 5_000  # notes of shared requests that one transaction removes


def sweep(where: Environment, job_name: str | None = None) -> list[tuple[str, str | None]]:
    """Do once the work that is due for every job: poll, collect, submit, ask for lost batches. Plan no new rows.

    job_name: sweep only this job with its trials, or this trial; None: all jobs. Returns for each job with work its
    name, and why it could not be swept; None: it was. Raises InputError for an unknown job, and when the only endpoint
    of the API cannot be used.
    """
    with where.database.read() as conn:
        known = with_trials(conn, job_name)
        if job_name is not None and not known:
            names = ", ".join(job.name for job in all_jobs(conn) if job.trial is None) or "none"
            raise InputError(f"this database knows no job {job_name!r} (it knows: {names})")
        waiting = jobs_with_work(conn, now=where.now())
    chosen = [job for job in known if job.id in waiting]
    swept: list[tuple[str, str | None]] = []
    if not chosen:
        return swept
    endpoints = where.by_endpoint(chosen)
    for endpoint, jobs in endpoints.items():
        try:
            with where.driving(endpoint) as driving:
                swept += [_sweep_one(driving, job) for job in jobs]
        except InputError as exc:
            if len(endpoints) == 1:
                raise
            swept += [(job.name, str(exc)) for job in jobs]  # the jobs of other endpoints are still swept
    return swept


def _sweep_one(driving: Session, job: JobRecord) -> tuple[str, str | None]:
    """Sweep one job. Return its name, and what went wrong; None: nothing did."""
    return job.name, problem_of(job.name, lambda: sweep_job(driving.driver(job)))


def problem_of(job_name: str, work: Callable[[], None]) -> str | None:
    """Do work for one job. Return what went wrong; None: nothing did.

    Raises only Interrupted, so that work for the other jobs is done whatever goes wrong with this one.
    """
    try:
        work()
    except Interrupted:
        raise
    except PipelineError as exc:
        return str(exc)
    except Exception as exc:  # it is told, and work for the other jobs is still done
        logger.debug("job %s", job_name, exc_info=True)
        return f"unexpected error: {type(exc).__name__}: {exc}"
    return None


def sweep_job(driver: Driver) -> None:
    """Do once all work that is due for one job."""
    jobs = JobOfRun(driver)
    ask_again(driver)
    find_twins(driver)
    whole = 0  # passes one after the other that left no calls of tools
    while whole < 2:  # the second one submits what the first one packed
        one_pass(driver, jobs)
        whole = 0 if driver.calls_left else whole + 1
    with driver.database.write() as conn:
        mark_swept(conn, driver.job_id, driver.now())


def one_pass(driver: Driver, jobs: JobOfRun, *, still_planning: int | None = None) -> None:
    """Do each step once, over all open runs of the job.

    still_planning: a run that is not ended here, because its driver may plan it again and ends it itself; None: no such
    run. If submitting, polling or collecting raises Stopped, the other steps are still done, and the first such error
    is raised at the end. NoAnswer is raised at once.
    """
    stopped: list[Stopped] = []
    driver.connect()
    reconcile_due(driver)
    _do_step(lambda: submit_due(driver), stopped)
    _take_answers(driver, jobs, stopped, still_planning)


def collect_while_planning(driver: Driver, jobs: JobOfRun, run_id: int) -> None:
    """Do what `one_pass` does, but for batches that are not at the API yet: a thread of this driver submits them.

    A claim does not keep two threads of one driver apart. run_id: the run that is being planned.
    """
    driver.connect()
    _take_answers(driver, jobs, [], run_id)


def _take_answers(driver: Driver, jobs: JobOfRun, stopped: list[Stopped], still_planning: int | None) -> None:
    """Poll and collect, then look at each open run. stopped: errors of the steps before; the first one is raised."""
    _do_step(lambda: poll_due(driver), stopped)
    collected = _do_step(lambda: collect_due(driver, jobs), stopped)
    delete_batches_due(driver)
    driver.calls_left = False
    with driver.reading() as conn:
        open_now = open_runs(conn, driver.job_id)
    for run in open_now:
        driver.stop.check()
        with contextlib.suppress(RunEnded):  # another driver has ended it: continue with the next run
            _pass_of_run(driver, run, jobs(run.id), stopped, collected=bool(collected))
            if run.id != still_planning:
                end_run_if_done(driver, run.id, jobs(run.id))
    if stopped:
        raise stopped[0]


def _do_step(step: Callable[[], int], stopped: list[Stopped]) -> int:
    """Do a step and return how many batches it moved. If it raises Stopped, note that in `stopped` and return 0."""
    try:
        return step()
    except NoAnswer:
        raise
    except Stopped as exc:
        stopped.append(exc)
        return 0


def _pass_of_run(driver: Driver, run: RunRecord, job: Job, stopped: list[Stopped], *, collected: bool) -> None:
    """Stop one open run if too many rows failed; otherwise evaluate its gate, and pack its rows that are sent again.

    Rows that go on in another round are among these, once their tools were called. collected: whether this pass has
    collected a batch. stopped: gets the error if tools cannot be called. Raises RunEnded when another driver ends the
    run.
    """
    if collected and _too_many_failed(driver, job, run.id) and stop_run(driver, run.id, RunReason.FAILURES):
        return
    evaluate(driver, run.id, job)
    if waits(driver, run.id):
        with contextlib.suppress(*PLANNED_BY_ANOTHER), driver.planning():
            for _ in send_again(driver, job, run.id, run.recipe):
                driver.stop.check()
    with driver.reading() as conn:  # not the job is asked: it may have lost its section `rounds` meanwhile
        in_rounds = any_between_rounds(conn, run.id)
    if in_rounds:
        _begin_rounds(driver, run, job, stopped)


def _begin_rounds(driver: Driver, run: RunRecord, job: Job, stopped: list[Stopped]) -> None:
    """Call the tools of an open run, then pack the next round of its rows that go on, if it is time for it."""
    try:
        call_tools(driver, job, run.id)
    except RunEnded:
        raise
    except Stopped as exc:  # a tool is missing on this machine: rows whose calls were made still go on
        stopped.append(exc)
    for gate in due_gates(driver, job, run.id):
        with contextlib.suppress(*PLANNED_BY_ANOTHER), driver.planning():
            for _ in pack_rounds(driver, job, run.id, run.recipe, gate):
                driver.stop.check()


def end_run_if_done(driver: Driver, run_id: int, job: Job) -> None:
    """End a run if it is done, and tell so. Of all drivers and sweeps, only one ends it and tells."""
    with driver.database.write() as conn:
        ended = end_if_done(conn, run_id, driver.now())
    if ended:
        driver.tell_end(RunFinished(run=run_id))
        tidy(driver, job)


def tidy(driver: Driver, job: Job) -> None:
    """Remove what an ended run leaves: bodies of rows that were sent again in another run, notes of shared requests.

    If we die, the next command removes the rest.
    """
    with contextlib.suppress(Stopped):  # then the next planning removes them
        remove_unneeded(driver, job)
    with driver.reading() as conn:
        left = has_shareable(conn, driver.job_id)
    while left:
        with driver.database.write() as conn:
            left = forget_shareable(conn, driver.job_id, limit=FORGOTTEN_AT_ONCE) == FORGOTTEN_AT_ONCE


def _too_many_failed(driver: Driver, job: Job, run_id: int) -> bool:
    """Return whether so large a share of the run's rows failed that sending more would be a waste."""
    allowed = max(share_that_may_fail(job), job.limits.max_failed)
    with driver.reading() as conn:
        if not _is_above(run_outcomes(conn, run_id), allowed):  # a cheap check first; it counts retries, too
            return False
        return _is_above(run_counts(conn, run_id), allowed)


def _is_above(counts: Mapping[str, int], allowed: float) -> bool:
    """Return whether more than the allowed share of at least FAILED_AFTER_ROWS rows failed. counts: rows by state."""
    answered = sum(counts.get(state, 0) for state in OUTCOMES)
    failed = answered - counts.get(RowState.SUCCEEDED, 0)
    return answered >= FAILED_AFTER_ROWS and failed > allowed * answered
