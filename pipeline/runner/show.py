"""Collect all that is known of one row: source values, request, attempts and answers. Edge: SQL, files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from pipeline.answer.continuing import next_params
from pipeline.driver import spools
from pipeline.errors import InputError, PipelineError, RowProblem, SourceError
from pipeline.job import templates
from pipeline.job.model import Job
from pipeline.planning import picking
from pipeline.planning.packer import sent_hash
from pipeline.planning.plan import Plan
from pipeline.planning.selection import spellings
from pipeline.sink.read import answers_of_row
from pipeline.sink.table import ResultsTable
from pipeline.source import identity
from pipeline.spool.body import params_at
from pipeline.state.batch_facts import batch_facts
from pipeline.state.batches import sendings_of
from pipeline.state.database import Connection, Database
from pipeline.state.jobs import JobRecord
from pipeline.state.row_facts import TracedRow, traced_row
from pipeline.state.turns import TurnRecord, turns_of
from pipeline.states import BatchState, RowState

#: Which request is shown: its short name in --json, and its description for people.
SENT, PLANNED, AGAIN, NOW = "sent", "planned", "again", "now"
REQUEST_IS = {
    SENT: "as it was sent",
    PLANNED: "as it waits to be sent",
    AGAIN: "as it was sent, and waits to be sent again",
    NOW: "as it would be sent now",
}


@dataclass
class Shown:
    """What is known of one row, to be shown.

    key: as people write it. place: the row's file and number in the source. source: its source values. request: its
    params; request_is: a key of REQUEST_IS. row: its state in the database. batch, sendings: the batch that it is or
    was in last. turns: the answers of its earlier rounds, with the results of their tools. answer, earlier: its answer,
    and those that were replaced. problems: what could not be read, and why.
    None or empty: there is no such thing, or it could not be read.
    """

    key: str
    place: str | None = None
    source: dict[str, Any] | None = None
    request: Any = None
    request_is: str | None = None
    row: dict[str, Any] | None = None
    batch: dict[str, Any] | None = None
    sendings: list[dict[str, Any]] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)
    answer: dict[str, Any] | None = None
    earlier: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """Return all fields by name, as for JSON."""
        return dict(vars(self))


def show(job: Job, key: str, database: Database | None, known_job: JobRecord | None, spool: str | None) -> Shown:
    """Return all that is known of the row with this key.

    key: as people write it. database, known_job: None for a job that no database knows yet. spool: the address that
    was given for the spool; None: the address that is stored. Raises InputError when neither the source nor the
    database has the row.
    """
    spelled = spellings(key, len(job.source.key))
    shown, rendered = Shown(key), None
    try:
        rendered = _fill_from_source(shown, Plan(job), key)
    except SourceError as exc:
        shown.problems.append(str(exc))
    found = None
    if database is not None and known_job is not None:
        with database.read() as conn:
            found = _fill_from_database(shown, conn, known_job, spelled)
            stored = None if found is None else _body_of(conn, found)
            if found is not None and found.round > 1:
                _fill_from_turns(shown, turns_of(conn, found.id, found.round), found, job)
        if stored is not None:
            _fill_from_spool(shown, database, known_job, spool, stored)
    if found is None and shown.source is None:
        raise InputError(shown.problems[0] if shown.problems else f"--key {key}: there is no such row")
    if shown.request is None and rendered is not None:
        shown.request = orjson.loads(rendered)
        same = found is not None and sent_hash(rendered) in (found.sent_hash, found.outcome_sent_hash)
        shown.request_is = SENT if same and shown.batch is not None else NOW
    return shown


def _fill_from_source(shown: Shown, plan: Plan, key: str) -> bytes | None:
    """Fill in what the source has. Return the request as it would be sent now; None when the row cannot be sent."""
    [picked] = picking.of_keys(plan, [key], plan.source.rows.columns)
    shown.key, shown.place = identity.shown(picked.key), picked.chunk.place(picked.i)
    shown.source = picked.values
    try:
        return plan.builder.params(picked.values, picked.chunk.folder, inline_files=True).params
    except (RowProblem, templates.TemplateProblem) as exc:
        shown.problems.append(f"the row cannot be sent: {exc}")
        return None


def _fill_from_database(shown: Shown, conn: Connection, job: JobRecord, spelled: Sequence[str]) -> TracedRow | None:
    """Fill in what the database has. Return the row as the database has it; None when it does not know the row."""
    found = traced_row(conn, job.id, spelled)
    if found is None:
        return None
    shown.key = identity.shown(found.key)
    shown.row = {
        "state": found.state,
        "run_id": found.run_id,
        "attempts": abs(found.attempts),
        "round": found.round,
        "outcome": found.outcome,
        "error_type": found.error_type,
    }
    if found.batch_id is not None:
        batch = batch_facts(conn, found.batch_id)
        shown.batch = {name: getattr(batch, name) for name in _OF_BATCH}
        shown.batch["custom_id"] = f"{batch.nonce}-{found.n}"
        of_batch = sendings_of(conn, found.batch_id)
        shown.sendings = [{name: getattr(sending, name) for name in _OF_SENDING} for sending in of_batch]
    shown.answer, shown.earlier = answers_of_row(conn, ResultsTable.of(job), found.key)
    return found


def _fill_from_turns(shown: Shown, turns: Sequence[TurnRecord], row: TracedRow, job: Job) -> None:
    """Fill in the earlier rounds of a row, and the request of the next one if the row waits for it."""
    for turn in turns:
        results = None if turn.results is None else orjson.loads(turn.results)
        message = orjson.loads(turn.message)
        shown.turns.append({"round": turn.round, "message": message, "results": results, "usage": turn.usage})
    waits = row.state == RowState.PENDING and row.body_id is None and bool(turns)
    if waits and turns[-1].params is not None:
        is_ready = not turns[-1].open_calls
        params = turns[-1].params.encode()
        if is_ready:
            params = next_params(turns[-1].params, turns[-1].message, shown.turns[-1]["results"], job.request.cache)
        shown.request, shown.request_is = orjson.loads(params), PLANNED if is_ready else SENT


_OF_BATCH = ("id", "run_id", "state", "reason", "problem", "api_id", "created_at", "ended_at", "collected_at")
_OF_SENDING = ("started_at", "ended_at", "end", "api_id", "request_id", "problem")


@dataclass(frozen=True)
class _Body:
    """Where a row's request is in the spool, if it is still there. what: a key of REQUEST_IS."""

    nonce: str
    digest: str
    n: int
    what: str


def _body_of(conn: Connection, row: TracedRow) -> _Body | None:
    waits = row.state == RowState.PENDING
    number, n = (row.body_id, row.body_n) if waits else (row.batch_id, row.n)
    if number is None or n is None:
        return None
    batch = batch_facts(conn, number)
    sent = batch.state not in (BatchState.PLANNED, BatchState.DROPPED)
    return _Body(batch.nonce, batch.digest, n, AGAIN if waits else SENT if sent else PLANNED)


def _fill_from_spool(shown: Shown, database: Database, job: JobRecord, given: str | None, body: _Body) -> None:
    """Fill in the request as it is in the spool. The spool may not have it once the answer is stored."""
    try:
        address = spools.address_of(database.folder, given, job.spool)
        if spools.read_id(address) != job.spool_id:
            shown.problems.append(f"{address} is not the spool of job {job.name} on this machine")
            return
        with spools.open_at(address, job.name, expected=job.spool_id).local_copy(body.nonce, body.digest) as file:
            found = None if file is None else next(params_at(file, [body.n]), None)
    except PipelineError as exc:
        shown.problems.append(str(exc))
        return
    if found is not None:
        shown.request, shown.request_is = orjson.loads(found), body.what
