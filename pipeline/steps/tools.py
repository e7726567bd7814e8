"""Call the tools that answers of an open run ask for. Edge: SQL, and whatever the tools of the job do.

A turn is claimed before its calls are made, by the driver's sign of life, and each result is committed by itself. If we
die before such a commit, the call is made again by the driver that claims the turn next: tools must be safe to repeat.
A driver that is asked to stop leaves the calls under way in the same way.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from typing import Any

from pipeline.answer.continuing import calls_of
from pipeline.driver.driver import Driver
from pipeline.driver.environment import Environment
from pipeline.driver.job_of_run import JobOfRun
from pipeline.driver.tool_groups import ROWS_AT_A_TIME, Called, ToolGroup, groups
from pipeline.errors import JobError, LostRace, Stopped
from pipeline.events.runs import ToolsCalled, WaitsForTools
from pipeline.job.model import Job
from pipeline.state.database import Database
from pipeline.state.jobs import known_job
from pipeline.state.leases import local_now
from pipeline.state.turns import (
    CallsLeft,
    ClaimableRows,
    ClaimedTurn,
    calls_left,
    claim_turn,
    claimable_rows,
    put_result,
    standing,
)
from pipeline.tools.calls import Toolbox
from pipeline.tools.proof import load_tools

SECONDS_AT_A_TIME = 30.0  # for which a driver calls tools before it polls and submits again
SECONDS_OF_GROUP = 600.0  # the same for another process, which calls them for a driver


def call_tools(driver: Driver, job: Job, run_id: int) -> int:
    """Make calls of an open run that no other driver makes. Return how many were made.

    If the time for them is over before all are made, `driver.calls_left` says so: the driver polls and submits before
    it calls again. If other processes call tools for the driver, it makes calls itself only if none of them works.

    A driver that does not call tools only tells how many rows wait for them. Raises Stopped if a tool of the job cannot
    be imported here, RunEnded if another driver ends the run, and Interrupted at once if the driver is asked to stop.
    """
    rows = _waiting(driver, run_id)
    if not rows:
        return 0
    if not driver.runs_tools:
        if run_id not in driver.told_waiting:
            driver.told_waiting.add(run_id)
            driver.tell(WaitsForTools(run=run_id, rows=rows))
        return 0
    made = _made_by_others(driver, job, run_id)
    if made is None:
        made = _make_calls(driver, job, run_id, seconds=SECONDS_AT_A_TIME)
    _tell(driver, run_id, made)
    return made.calls


def call_group(where: Environment, group: ToolGroup) -> Called:
    """Make the calls of a group of rows for another driver, and return what was made when the time for it is over.

    Raises as `call_tools`; RunEnded, too, if the run has ended. Raises InputError when the API cannot be asked.
    """
    job_record = known_job(where.database, group.job)
    with where.driving(where.endpoint_of(job_record)) as driving:
        driver = driving.driver(job_record)
        job = JobOfRun(driver)(group.run_id)
        made = _make_calls(driver, job, group.run_id, (group.first - 1, group.last), seconds=SECONDS_OF_GROUP)
        _tell(driver, group.run_id, made)
        return made


def left_of_groups(database: Database, of: Sequence[ToolGroup]) -> CallsLeft:
    """Return the calls that the rows of groups still wait for. of: all groups of one step, in order."""
    first, last = of[0], of[-1]
    with database.read() as conn:
        living_at = database.now(conn, local_now())
        return calls_left(conn, first.run_id, after=first.first - 1, last=last.last, living_at=living_at)


def _made_by_others(driver: Driver, job: Job, run_id: int) -> Called | None:
    """Let other processes make calls, and return what they made; None: this driver has to make the calls."""
    if driver.tool_runner is None:
        return None
    with driver.reading() as conn:
        which = ClaimableRows(run_id, driver.lease.resource, driver.database.now(conn, driver.local_now()))
        rows = claimable_rows(conn, which, limit=ROWS_AT_A_TIME)
    if not rows:
        return Called()
    ended = driver.tool_runner(groups(driver.job_name, run_id, rows, job.rounds.timeout))
    if not ended:
        return None
    made = Called.sum(ended)
    driver.calls_left = made.calls > 0  # of groups that failed or had no time left, and of rows above the last group
    return made


def _make_calls(
    driver: Driver, job: Job, run_id: int, between: tuple[int, int | None] = (0, None), *, seconds: float
) -> Called:
    """Make calls for about so many seconds. between: the rows' numbers, see `ClaimableRows`. Raises as `call_tools`."""
    tools = _toolbox(driver, job, run_id)
    calls, failed = 0, 0
    until = driver.local_now() + timedelta(seconds=seconds)
    turns = _claimed(driver, run_id, *between)
    while some := list(islice(turns, driver.settings.tool_rows)):
        made = _Calls.of(some)
        for place, result in tools.call_all(made.uses, check=driver.check):
            made.store(driver, place, result)
            calls, failed = calls + 1, failed + bool(result.get("is_error"))
        if driver.local_now() >= until:
            driver.calls_left = True
            break
    return Called(calls, failed)


def _tell(driver: Driver, run_id: int, made: Called) -> None:
    if made.calls:
        driver.tell(ToolsCalled(run=run_id, calls=made.calls, failed=made.failed))


def _waiting(driver: Driver, run_id: int) -> int:
    """Return how many rows of a run wait for calls of tools."""
    with driver.reading() as conn:
        return sum(behind.calling for behind in standing(conn, run_id).values())


def _toolbox(driver: Driver, job: Job, run_id: int) -> Toolbox:
    """Return the tools of a job with their functions. Raises Stopped if one of them cannot be imported here."""
    try:
        tools = load_tools(job)
    except JobError as exc:
        raise Stopped(
            f"{exc}; {_waiting(driver, run_id):,} rows of run {run_id} wait for it: collect on a machine that has it, "
            "or leave them waiting with --no-tools"
        ) from exc
    if tools is None:  # the job was changed since these rows were sent: the model gets an error for each call
        return Toolbox((), timeout=job.rounds.timeout, max_output_bytes=job.rounds.max_output_bytes)
    return tools


def _claimed(driver: Driver, run_id: int, after: int, last: int | None) -> Iterator[ClaimedTurn]:
    """Claim the turns whose calls have no results, one by one. after, last: the rows' numbers, see `ClaimableRows`."""
    while True:
        driver.check()
        with driver.database.write() as conn:
            living_at = driver.database.now(conn, driver.local_now())
            turn = claim_turn(conn, ClaimableRows(run_id, driver.lease.resource, living_at, after, last))
        if turn is None:
            return
        yield turn
        after = turn.row


@dataclass
class _Calls:
    """The calls of some turns that have no result yet. uses: blocks of the answers; places: where each comes from."""

    uses: list[dict[str, Any]] = field(default_factory=list)
    places: list[tuple[ClaimedTurn, int]] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)  #: rows whose turn another driver has claimed

    @classmethod
    def of(cls, turns: list[ClaimedTurn]) -> "_Calls":
        """Return the calls of these turns."""
        made = cls()
        for turn in turns:
            for n, (use, result) in enumerate(zip(calls_of(turn.message), turn.results, strict=True)):
                if result is None:
                    made.uses.append(use)
                    made.places.append((turn, n))
        return made

    def store(self, driver: Driver, place: int, result: dict[str, Any]) -> None:
        """Commit the result of a call; ignore it if another driver has claimed the turn and makes the call, too."""
        turn, call = self.places[place]
        if turn.row in self.lost:
            return
        try:
            with driver.database.write() as conn:
                put_result(conn, turn, call, result, driver=driver.lease.resource, now=driver.now())
        except LostRace:
            self.lost.add(turn.row)
