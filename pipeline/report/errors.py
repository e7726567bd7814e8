"""Rows that did not succeed, by error, each with its remedy."""

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, Row, func, select

from pipeline.answer.outcome import is_about_account
from pipeline.escapes import inline
from pipeline.job import json_values
from pipeline.sink.table import ResultsTable
from pipeline.source import identity
from pipeline.state.runs import last_run
from pipeline.states import FAILURES, RowState
from pipeline.text import count

#: What the API says of a request that it would refuse again.
_REFUSED_AS_IT_IS = ("invalid_request_error", "not_found_error", "request_too_large")
_ANOTHER_MODEL = "claude-sonnet-5"  # a larger one than most jobs ask


def error_facts(conn: Connection, job: Row[Any], sink: ResultsTable, name: str) -> list[dict[str, Any]]:
    """Failed rows by cause, most frequent first, each with up to three keys, what mends it, and the command for that.

    sink: the job's; name: what commands call the job.
    """
    table, key = sink.table, sink.columns.key
    failed = table.c.status.in_(FAILURES)
    causes = conn.execute(
        select(table.c.status, table.c.error_type, table.c.error_message, func.count().label("rows"))
        .where(failed)
        .group_by(table.c.status, table.c.error_type, table.c.error_message)
        .order_by(func.count().desc(), table.c.status)
        .limit(50)
    )
    last = last_run(conn, job.id)
    request = {"model": "", "max_tokens": 0} if last is None else last.job["request"]
    found = []
    for cause in causes:
        same = [
            table.c.status == cause.status,
            table.c.error_type.is_not_distinct_from(cause.error_type),
            table.c.error_message.is_not_distinct_from(cause.error_message),
        ]
        columns = [table.c[column] for column in key]
        ids = [table.c.message_id, table.c.request_id] if sink.columns.ids else []
        examples = [tuple(row) for row in conn.execute(select(*columns, *ids).where(*same).limit(3))]
        remedy, words = _remedy(cause, request)
        found.append(
            {
                "status": cause.status,
                "error_type": cause.error_type,
                "error_message": cause.error_message,
                "rows": cause.rows,
                "keys": [identity.shown(json_values.dump(list(row[: len(key)]))) for row in examples],
                "ids": [_ids(*row[len(key) :]) for row in examples],
                "remedy": remedy,
                "command": [words[0], name, *words[1:]],
            }
        )
    return found


def _remedy(cause: Row[Any], request: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What mends rows that failed so, and the command without its job. request: what was asked of the model last."""
    status, error_type = cause.status, cause.error_type
    again = ["retry", "--status", status]
    match status:
        case RowState.INVALID:
            return "correct these rows at the source, or the template; then", ["run"]
        case RowState.TRUNCATED if error_type == "model_context_window_exceeded":
            return "shorten these rows at the source, or name a model with a larger window; then", ["run"]
        case RowState.TRUNCATED:
            return "let answers be longer", [*again, "--set", f"request.max_tokens={2 * request['max_tokens']}"]
        case RowState.REFUSED:
            other = [] if request["model"] == _ANOTHER_MODEL else ["--set", f"request.model={_ANOTHER_MODEL}"]
            return "ask another model, or change the prompt and `run`", [*again, *other]
        case RowState.UNPARSABLE:
            return "ask once more, or change the prompt or the labels and `run`", again
        case RowState.EXPIRED:
            return "ask again; smaller batches (limits.max_batch_requests) help", again
        case RowState.CANCELED:
            return "if they are wanted after all", again
        case RowState.LOST:
            return "look the batch up in the Console first: sending these rows again may pay for them twice", again
    named = [] if error_type is None else ["--error-type", error_type]
    if is_about_account(cause.error_message or ""):
        return "the account was refused, not the request: put that right; then", [*again, *named]
    if error_type in _REFUSED_AS_IT_IS:
        return "the API refuses the request as it is: correct the job file; then", ["run"]
    return "ask again (retry.errors names what is asked again by itself)", [*again, *named]


def error_lines(causes: list[dict[str, Any]]) -> Iterator[str]:
    """`errors` as text; of each the command is a line of the shell by now."""
    for cause in causes:
        what = f"{cause['status']} ({cause['error_type']})" if cause["error_type"] else cause["status"]
        yield f"{count(cause['rows'], 'row')} {what}: {inline(str(cause['error_message']))}"
        examples = zip(cause["keys"], cause["ids"], strict=True)
        yield f"    for example {', '.join(key + _in_brackets(ids) for key, ids in examples)}"
        yield f"    {cause['remedy']}: {cause['command']}"


def _ids(message_id: str | None = None, request_id: str | None = None) -> dict[str, str | None]:
    return {"message_id": message_id, "request_id": request_id}


def _in_brackets(ids: Mapping[str, str | None]) -> str:
    """` (req_011CS)`: by what the API's support finds a request; empty where nothing was sent."""
    named = ids["request_id"] or ids["message_id"]
    return f" ({named})" if named else ""
