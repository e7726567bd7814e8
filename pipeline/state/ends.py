"""How runs have ended, and which ends have been announced to a person. Edge: SQL.

The end of a run is committed before it is announced, so a process that dies in between announces nothing. Therefore
each announcement is noted in `runs.announced_at`, and each later `run`, `collect` and flow announces the ends without a
note. If a process dies between the announcement and its note, the end is announced twice. It is never left out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, update

from pipeline.events.event import Tell
from pipeline.events.runs import RunEnded
from pipeline.state.database import Database
from pipeline.state.jobs import name_of
from pipeline.state.runs import RunRecord, run_cost, runs_where
from pipeline.state.tables import runs
from pipeline.state.tallies import run_counts
from pipeline.states import RunState, failed_rows

Ended = Mapping[int, datetime]  #: number and end of runs: a run that is continued after its end has another end later


@dataclass(frozen=True)
class End:
    """How a run ended. rows: numbers by state. max_failed: the share of rows that may fail with exit code 0."""

    run_id: int
    job: str
    state: str
    reason: str | None
    rows: dict[str, int]
    cost_usd: float
    max_failed: float
    ended_at: datetime

    @property
    def exit_code(self) -> int:
        """Return the exit code of a command whose run ended so."""
        return exit_code(self.state, self.rows, self.max_failed)

    def event(self, when: str | None) -> RunEnded:
        """Return the event that tells this end. when: as in the event."""
        return RunEnded(
            when=when,
            run=self.run_id,
            job=self.job,
            state=self.state,
            reason=self.reason,
            rows=self.rows,
            cost_usd=self.cost_usd,
        )


def exit_code(state: str, rows: Mapping[str, int], max_failed: float) -> int:
    """Return 0 if at most the share max_failed of the rows failed, 1 if more failed, 3 if the run stopped early."""
    if state == RunState.INCOMPLETE:
        return 3
    return 1 if failed_rows(rows) > max_failed * sum(rows.values()) else 0


def tell_bad(tell: Tell, ends: Iterable[End], when: str | None) -> None:
    """Tell those of these ends whose exit code is not 0. when: as in the event."""
    for end in ends:
        if end.exit_code:
            tell(end.event(when))


def untold(conn: Connection, *job_ids: int) -> list[End]:
    """Return the ends that are not noted as announced, oldest first: of these jobs, without any of all jobs."""
    of_job = (runs.c.job_id.in_(job_ids),) if job_ids else ()
    found = runs_where(conn, runs.c.state != RunState.OPEN, runs.c.announced_at.is_(None), *of_job)
    return [_end(conn, run) for run in found]


def of(conn: Connection, run_ids: Iterable[int]) -> list[End]:
    """Return how these runs ended, oldest first. Runs that are open are left out."""
    found = runs_where(conn, runs.c.id.in_(list(run_ids)), runs.c.state != RunState.OPEN)
    return [_end(conn, run) for run in found]


def _end(conn: Connection, run: RunRecord) -> End:
    assert run.ended_at is not None
    return End(
        run_id=run.id,
        job=name_of(conn, run.job_id),
        state=run.state,
        reason=run.reason,
        rows=dict(run.counts) if run.counts is not None else run_counts(conn, run.id),
        cost_usd=run_cost(conn, run.id),
        max_failed=run.max_failed,
        ended_at=run.ended_at,
    )


def note_told(database: Database, ended: Ended, now: datetime) -> None:
    """Note that these ends were announced. An end that another process noted before keeps that note."""
    if not ended:
        return
    with database.write() as conn:
        for run_id, ended_at in ended.items():
            here = (runs.c.id == run_id, runs.c.ended_at == ended_at, runs.c.announced_at.is_(None))
            conn.execute(update(runs).where(*here).values(announced_at=now))
