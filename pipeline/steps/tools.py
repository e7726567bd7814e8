"""Call the tools that answers of an open run ask for. Edge: SQL, and whatever the tools of the job do.

A turn is claimed before its calls are made, by the driver's sign of life, and each result is committed by itself. If we
die before such a commit, the call is made again by the driver that claims the turn next: tools must be safe to repeat.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pipeline.answer.continuing import calls_of
from pipeline.driver.driver import Driver
from pipeline.errors import JobError, LostRace, Stopped
from pipeline.events.runs import ToolsCalled, WaitsForTools
from pipeline.job.model import Job
from pipeline.state.turns import ClaimedTurn, claim_turn, put_result, standing
from pipeline.tools.calls import Toolbox
from pipeline.tools.proof import load_tools


def call_tools(driver: Driver, job: Job, run_id: int) -> int:
    """Make all calls of an open run that no other driver makes. Return how many were made.

    A driver that does not call tools only tells how many rows wait for them. Raises Stopped if a tool of the job cannot
    be imported here, and RunEnded if another driver ends the run.
    """
    with driver.reading() as conn:
        rows = sum(behind.calling for behind in standing(conn, run_id).values())
    if not rows:
        return 0
    if not driver.runs_tools:
        if run_id not in driver.told_waiting:
            driver.told_waiting.add(run_id)
            driver.tell(WaitsForTools(run=run_id, rows=rows))
        return 0
    try:
        tools = load_tools(job)
    except JobError as exc:
        raise Stopped(
            f"{exc}; {rows:,} rows of run {run_id} wait for it: collect on a machine that has it, or leave them "
            "waiting with --no-tools"
        ) from exc
    if tools is None:  # the job was changed since these rows were sent: the model gets an error for each call
        tools = Toolbox((), timeout=job.rounds.timeout, max_output_bytes=job.rounds.max_output_bytes)
    calls, failed = 0, 0
    turns = _claimed(driver, run_id)
    while some := list(islice(turns, driver.settings.tool_rows)):
        made = _Calls.of(some)
        for place, result in tools.call_all(made.uses):
            made.store(driver, place, result)
            calls, failed = calls + 1, failed + bool(result.get("is_error"))
    if calls:
        driver.tell(ToolsCalled(run=run_id, calls=calls, failed=failed))
    return calls


def _claimed(driver: Driver, run_id: int) -> Iterator[ClaimedTurn]:
    """Claim the turns whose calls have no results, one by one."""
    after = 0
    while True:
        driver.check()
        with driver.database.write() as conn:
            living_at = driver.database.now(conn, driver.local_now())
            turn = claim_turn(conn, run_id, after=after, driver=driver.lease.resource, living_at=living_at)
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
