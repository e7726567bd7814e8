"""Group the rows that did not succeed by cause, and give each cause a remedy. Edge: SQL."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.answer.continuing import OUT_OF_ROUNDS
from pipeline.answer.outcome import is_about_account
from pipeline.escapes import inline
from pipeline.job import json_values
from pipeline.sink.causes import Cause, failure_causes
from pipeline.sink.table import ResultsTable
from pipeline.source import identity
from pipeline.state.database import Connection
from pipeline.state.jobs import JobRecord
from pipeline.state.row_facts import under_way_again
from pipeline.state.runs import RunRecord, last_run
from pipeline.states import RowState
from pipeline.text import count

#: Error types of requests that the API would refuse again if they were sent unchanged.
_REFUSED_AS_IT_IS = ("invalid_request_error", "not_found_error", "request_too_large")
_ANOTHER_MODEL = "claude-sonnet-5"  # a larger model than most jobs use


def error_facts(
    conn: Connection, job: JobRecord, sink: ResultsTable, name: str, run_id: int | None = None
) -> list[dict[str, Any]]:
    """Return the causes of a job's failed rows as JSON, the most frequent first; empty if no row failed.

    Each cause has its number of rows, up to three of their keys, a remedy, and the words of the command for the remedy.
    under_way: whether all failed rows with this status and error type are being sent again already.

    sink: the job's results table. name: the job's name or file, as commands take it. run_id: only failures of this run;
    None: of all.
    """
    last = last_run(conn, job.id)
    causes, again = failure_causes(conn, sink, run_id), under_way_again(conn, job.id)
    failed: Counter[tuple[str, str | None]] = Counter()
    for cause in causes:
        failed[cause.status, cause.error_type] += cause.rows
    return [
        _cause_facts(cause, last, name, under_way=again.get(kind, 0) >= failed[kind], trial=job.trial is not None)
        for cause in causes
        for kind in [(cause.status, cause.error_type)]
    ]


def _cause_facts(cause: Cause, last: RunRecord | None, name: str, *, under_way: bool, trial: bool) -> dict[str, Any]:
    remedy, words = ("these rows are being sent again; wait for their answers", ["collect"])
    if not under_way:
        remedy, words = _remedy_of_trial(cause) if trial else _remedy(cause, last)
    return {
        "under_way": under_way,
        "status": cause.status,
        "error_type": cause.error_type,
        "error_message": cause.error_message,
        "rows": cause.rows,
        "keys": [identity.shown(json_values.dump(list(example.key))) for example in cause.examples],
        "ids": [{"message_id": one.message_id, "request_id": one.request_id} for one in cause.examples],
        "remedy": remedy,
        "command": [words[0], name, *words[1:]],
    }


def _remedy_of_trial(cause: Cause) -> tuple[str, list[str]]:
    """Return the remedy for rows of a trial: they are asked as before, for otherwise it would be another trial."""
    if cause.status in (RowState.TRUNCATED, RowState.REFUSED, RowState.UNPARSABLE):
        return "these count as wrong answers; to ask otherwise, begin a trial with another name", ["status"]
    if cause.status == RowState.INVALID or cause.error_type in _REFUSED_AS_IT_IS:
        return "correct what the trial asks, in a trial with another name", ["status"]
    return "ask again as before", ["retry", "--status", cause.status]


def _remedy(cause: Cause, last: RunRecord | None) -> tuple[str, list[str]]:
    """Return the remedy for rows with this cause, and the words of its command without the job.

    last: the job's newest run; None if it has none.
    """
    status, error_type = cause.status, cause.error_type
    again = ["retry", "--status", status]
    match status:
        case RowState.INVALID:
            return "correct these rows at the source, or the template; then", ["run"]
        case RowState.TRUNCATED if error_type == "model_context_window_exceeded":
            return "shorten these rows at the source, or name a model with a larger window; then", ["run"]
        case RowState.TRUNCATED if error_type == OUT_OF_ROUNDS:
            return "raise rounds.max in the job file; then", [*again, "--error-type", OUT_OF_ROUNDS]
        case RowState.TRUNCATED if error_type == "pause_turn":
            remedy = "let the model go on, with retry.change: {paused: {continue: true}} in the job file; then"
            return remedy, [*again, "--error-type", "pause_turn"]
        case RowState.TRUNCATED:
            if last is not None and last.max_tokens is None:
                return "raise request.max_tokens in the job file; then", ["run"]
            tokens = 0 if last is None else last.max_tokens or 0
            return "allow longer answers", [*again, "--set", f"request.max_tokens={2 * tokens}"]
        case RowState.REFUSED:
            was_asked = last is not None and last.model == _ANOTHER_MODEL
            other = [] if was_asked else ["--set", f"request.model={_ANOTHER_MODEL}"]
            return "ask another model, or change the prompt and `run`", [*again, *other]
        case RowState.UNPARSABLE:
            return "ask again, or change the prompt or the labels and `run`", again
        case RowState.EXPIRED:
            return "ask again; smaller batches (limits.max_batch_requests) help", again
        case RowState.CANCELED:
            return "to send them after all", again
        case RowState.LOST:
            return "look the batch up in the Console first: sending these rows again may pay for them twice", again
    named = [] if error_type is None else ["--error-type", error_type]
    if is_about_account(cause.error_message or ""):
        return "the API refused the account, not the request: correct its key, permission or billing; then", [
            *again,
            *named,
        ]
    if error_type in _REFUSED_AS_IT_IS:
        return "the API refuses the request as it is: correct the job file; then", ["run"]
    return "ask again (for the errors in retry.errors, `run` does that itself)", [*again, *named]


def error_lines(causes: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the command `errors`.

    causes: those of `error_facts`, but with each `command` as one line for the shell.
    """
    for cause in causes:
        what = f"{cause['status']} ({cause['error_type']})" if cause["error_type"] else cause["status"]
        yield f"{count(cause['rows'], 'row')} {what}: {inline(str(cause['error_message']))}"
        examples = zip(cause["keys"], cause["ids"], strict=True)
        yield f"    for example {', '.join(key + _in_brackets(ids) for key, ids in examples)}"
        yield f"    {cause['remedy']}: {cause['command']}"


def _in_brackets(ids: Mapping[str, str | None]) -> str:
    """Return ` (req_011CS)`, the id by which the API's support finds a request; empty if nothing was sent."""
    named = ids["request_id"] or ids["message_id"]
    return f" ({named})" if named else ""
