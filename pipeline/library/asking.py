"""What does Python get to know of a job: its status, the causes of its failures, the proof that it is complete?

Edge: SQL.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import InputError
from pipeline.job.model import Job
from pipeline.library.places import known, name_of
from pipeline.report.errors import error_facts
from pipeline.report.next_command import next_command
from pipeline.report.status import status_facts, status_lines
from pipeline.runner import verify as proof
from pipeline.runner.verify import Verified
from pipeline.sink.table import ResultsTable


@dataclass(frozen=True)
class RunStatus:
    """How a run stands.

    state, reason: `open`, `finished`, or `incomplete` and why. rows: by state. planned: whether all rows that wait have
    their requests. gate: what the other rows wait for; None: nothing.
    """

    run_id: int
    state: str
    reason: str | None
    rows: dict[str, int]
    cost_usd: float
    planned: bool
    gate: str | None
    created_at: datetime


@dataclass(frozen=True)
class JobStatus:
    """How far a job is. `print` shows what the command `status` shows.

    rows, batches: by state. cost_usd: of all answers so far. open_runs: oldest first. last_run: None if there is none.
    problems: what is wrong with batches. results_vanish_at: when the API removes the results of the oldest batch that
    is still there; None if none is there. next_command: the words of the command to run next, without `batch-pipeline`.
    """

    job: str
    table: str
    rows: dict[str, int]
    batches: dict[str, int]
    cost_usd: float
    open_runs: tuple[RunStatus, ...]
    last_run: RunStatus | None
    problems: tuple[str, ...]
    results_vanish_at: datetime | None
    next_command: tuple[str, ...]
    lines: tuple[str, ...] = field(repr=False)

    def __str__(self) -> str:
        return "\n".join(self.lines)


@dataclass(frozen=True)
class FailedRows:
    """Rows that failed with the same cause.

    rows: how many. keys: of up to three of them. message_ids, request_ids: of the same rows, as far as the API gave
    any. under_way: whether all rows of this status and error type are being sent again. remedy: what to do. command:
    the words of the command for it, without `batch-pipeline`.
    """

    status: str
    error_type: str | None
    error_message: str | None
    rows: int
    keys: tuple[str, ...]
    message_ids: tuple[str | None, ...]
    request_ids: tuple[str | None, ...]
    under_way: bool
    remedy: str
    command: tuple[str, ...]


def status(job: Job | str, *, database: str | None = None, emulator: bool = False) -> JobStatus:
    """Return how far a job is. job: a job or its name. Raises InputError for an unknown job or database."""
    with known(job, database, emulator=emulator) as (opened, job_record), opened.read() as conn:
        facts = status_facts(conn, job_record, datetime.now(UTC))
    vanish = facts["results_vanish_at"]
    return JobStatus(
        job=facts["job"],
        table=facts["table"],
        rows=dict(facts["rows"]),
        batches=dict(facts["batches"]),
        cost_usd=facts["cost_usd"],
        open_runs=tuple(_run_status(run) for run in facts["open_runs"]),
        last_run=None if facts["last_run"] is None else _run_status(facts["last_run"]),
        problems=tuple(f"batch {each['batch']}: {each['problem']}" for each in facts["problems"] + facts["twins"]),
        results_vanish_at=None if vanish is None else datetime.fromisoformat(vanish),
        next_command=tuple(next_command(facts, name_of(job))),
        lines=tuple(status_lines(facts)),
    )


def _run_status(facts: Mapping[str, Any]) -> RunStatus:
    same = {name: facts[name] for name in ("run_id", "state", "reason", "cost_usd", "planned", "gate")}
    return RunStatus(rows=dict(facts["rows"]), created_at=datetime.fromisoformat(facts["created_at"]), **same)


def errors(job: Job | str, *, database: str | None = None, emulator: bool = False) -> list[FailedRows]:
    """Return the failed rows of a job by cause, the most frequent first; empty if no row failed.

    job: a job or its name. Raises InputError for an unknown job or database.
    """
    with known(job, database, emulator=emulator) as (opened, job_record), opened.read() as conn:
        causes = error_facts(conn, job_record, ResultsTable.of(job_record), name_of(job))
    return [
        FailedRows(
            status=cause["status"],
            error_type=cause["error_type"],
            error_message=cause["error_message"],
            rows=cause["rows"],
            keys=tuple(cause["keys"]),
            message_ids=tuple(ids["message_id"] for ids in cause["ids"]),
            request_ids=tuple(ids["request_id"] for ids in cause["ids"]),
            under_way=cause["under_way"],
            remedy=cause["remedy"],
            command=tuple(cause["command"]),
        )
        for cause in causes
    ]


def verify(job: Job | str, *, source: bool = False, database: str | None = None, emulator: bool = False) -> Verified:
    """Return the proof that a job is complete, or the problems that were found; `holds` tells which.

    job: a job or its name. source: also check that each row of the source has an outcome for its present values; this
    needs the job itself. Raises InputError for an unknown job or database, or for a source that cannot be read.
    """
    if source and isinstance(job, str):
        raise InputError(f"verify {job!r}: to read the source, give the job itself, not its name")
    with known(job, database, emulator=emulator) as (opened, job_record):
        found = proof.verify(opened, job_record)
        if source and isinstance(job, Job):
            proof.verify_source(opened, job_record, job, found)
    return found
