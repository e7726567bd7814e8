"""What a person reads: events, quotes, status and errors as text. Pure but for the queries of `status` and `errors`."""

import math
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Table, func, select

from pipeline import identity, store
from pipeline.quote import Quote
from pipeline.states import FAILURES, OPEN_BATCHES, BatchState, RowState, RunState
from pipeline.tables import batches
from pipeline.verdicts import Verdict


def money(usd: float | None) -> str:
    """US dollars for people: as many digits as matter."""
    if usd is None:
        return "unpriced"
    if usd and usd < 0.01:
        return f"${usd:.4f}"
    return f"${usd:,.2f}"


def count(n: int, what: str) -> str:
    """`1 row`, `2 rows`, `2 batches`."""
    plural = what + ("es" if what.endswith("ch") else "s")
    return f"{n:,} {what if n == 1 else plural}"


def quote_lines(quote: Quote) -> Iterator[str]:
    """What a run is about to do and what it will cost."""
    rows = quote.rows
    parts = [
        (rows[Verdict.NEW], "new"),
        (rows[Verdict.CHANGED], "changed"),
        (rows[Verdict.AGAIN], "to send again"),
        (rows[Verdict.WAITING] + rows[Verdict.PLANNED], "planned before and not sent yet"),
        (rows[Verdict.IN_FLIGHT] + rows[Verdict.CHANGED_IN_FLIGHT], "in flight"),
        (rows[Verdict.KEPT] + rows[Verdict.KEPT_OLDER], "kept"),
    ]
    said = ", ".join(f"{n:,} {what}" for n, what in parts if n) or "none"
    yield f"rows     {quote.total:,} in the source: {said}"
    if rows[Verdict.CHANGED_IN_FLIGHT]:
        changed = rows[Verdict.CHANGED_IN_FLIGHT]
        yield f"         {changed:,} of those in flight have changed; they go again when they are back"
    if rows[Verdict.KEPT_OLDER]:
        older = rows[Verdict.KEPT_OLDER]
        yield f"         {older:,} succeeded with an older recipe and are kept; --refresh sends them too"
    if not quote.to_send:
        return
    tokens = f"about {quote.input_tokens:,} input tokens"
    yield f"sends    {count(quote.to_send, 'request')} in {count(quote.batches, 'batch')}, {tokens}"
    if quote.invalid_in_sample:
        share = f"{quote.invalid_in_sample} of {quote.sampled} sampled rows"
        yield f"         {share} cannot be sent: {quote.first_problem}"
    if quote.cost_most is None:
        yield f"cost     unpriced: no batch price is known for {quote.model}"
    else:
        most = f"at most about {money(quote.cost_most)} if every answer takes {quote.max_tokens} tokens"
        yield f"cost     about {money(quote.cost_input)} for the input, {most}"


def quote_facts(quote: Quote) -> dict[str, Any]:
    """The quote as JSON."""
    return {
        "rows": {kind.value: quote.rows[kind] for kind in Verdict},
        "to_send": quote.to_send,
        "batches": quote.batches if quote.to_send else 0,
        "input_tokens": quote.input_tokens,
        "cost_input_usd": quote.cost_input,
        "cost_most_usd": quote.cost_most,
    }


_EVENTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "emulator": lambda e: f"emulator {e['url']}",
    "planned": lambda e: f"batch {e['batch']} planned: {count(e['requests'], 'request')}, {_bytes(e['bytes'])}",
    "submitting": lambda e: f"batch {e['batch']} submitting",
    "submitted": lambda e: f"batch {e['batch']} submitted as {e['api_id']}",
    "adopted": lambda e: f"batch {e['batch']} found at the API as {e['api_id']}: it had been accepted",
    "absent": lambda e: f"batch {e['batch']} is not at the API: it goes again",
    "rejected": lambda e: f"batch {e['batch']} was not accepted: {e['problem']}" + _later(e["wait"]),
    "unknown_end": lambda e: (
        f"batch {e['batch']}: no answer that says whether the API took it ({e['problem']}); "
        f"the API's listing will tell, within {e['grace']:.0f} s"
    ),
    "watching": lambda e: f"batch {e['batch']} waits: {e['problem']}",
    "dropped": lambda e: f"batch {e['batch']} dropped: {e['problem']}",
    "body_lost": lambda e: f"batch {e['batch']}: its body is gone or was altered; `run` plans its rows anew",
    "canceling": lambda e: f"batch {e['batch']} is being canceled at the API",
    "ended": lambda e: f"batch {e['batch']} ended: {e['succeeded']:,} of {count(e['requests'], 'request')} succeeded",
    "collected": lambda e: f"batch {e['batch']} collected: {_counted(e['outcomes'])}, {money(e['cost_usd'])}",
    "results_missing": lambda e: f"batch {e['batch']}: {e['problem']}",
    "unknown_results": lambda e: f"batch {e['batch']}: {e['lines']} result lines name no request of ours",
    "not_found": lambda e: f"batch {e['batch']}: {e['problem']}",
    "lost": lambda e: f"batch {e['batch']} is lost: {e['problem']}",
    "found_again": lambda e: f"batch {e['batch']} was lost and is there again; {count(e['rows'], 'row')} wait for it",
    "twin": lambda e: f"batch {e['batch']}: {e['problem']}",
    "held_back": lambda e: f"batch {e['batch']} {e['problem']}",
    "taken_over": lambda e: f"batch {e['batch']} was taken over by another driver",
    "planned_elsewhere": lambda e: f"waiting: {e['problem']}",
    "not_counted": lambda e: f"tokens could not be counted ({e['problem']}); reserving for one a byte",
    "incomplete": lambda e: f"run {e['run']} ends before its end: {e['reason']}",
    "deleted": lambda e: f"batch {e['batch']} deleted at the API",
    "not_deleted": lambda e: f"batch {e['batch']} not deleted at the API yet: {e['problem']}",
    "other_account": lambda e: f"batch {e['batch']} belongs to another account and is left alone",
    "unreachable": lambda e: e["problem"] + _later(e["wait"]),
    "waiting": lambda e: f"waiting: {_counted(e['progress']['batches'])}; next look in {math.ceil(e['seconds'])} s",
}


def event_line(event: str, facts: Mapping[str, Any]) -> str:
    """One line for an event of a driver."""
    return _EVENTS[event](facts)


def counts_line(counts: Mapping[str, int]) -> str:
    """`500 rows: 498 succeeded, 2 errored`."""
    return f"{count(sum(counts.values()), 'row')}: {_counted(counts) or 'nothing to do'}"


def _counted(counts: Mapping[str, int]) -> str:
    order = [*RowState, *BatchState]
    names = sorted(counts, key=lambda name: order.index(name) if name in order else len(order))
    return ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in names if counts[name])


def _later(wait: float) -> str:
    return f"; again in {math.ceil(wait)} s" if wait else ""


def _bytes(n: int) -> str:
    return f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.1f} kB"


# -- status ----------------------------------------------------------------------------------------------------------


def status(conn: Connection, job: Row[Any], now: datetime) -> dict[str, Any]:
    """What is known of a job: rows and batches by state, open runs and the last one, money, what is about to vanish."""
    last = store.last_run(conn, job.id)
    where = batches.c.job_id == job.id
    by_state = select(batches.c.state, func.count()).where(where).group_by(batches.c.state)
    uncollected = batches.c.state.in_((BatchState.IN_PROGRESS, BatchState.CANCELING, BatchState.ENDED))
    oldest = conn.scalar(select(func.min(batches.c.created_at)).where(where, uncollected))
    troubled = (batches.c.state.in_(OPEN_BATCHES), batches.c.problem.is_not(None))
    problems = conn.execute(select(batches.c.id, batches.c.problem).where(where, *troubled))
    cost = conn.scalar(select(func.coalesce(func.sum(batches.c.cost_usd), 0.0)).where(where))
    return {
        "job": job.name,
        "table": job.results_table,
        "rows": dict(store.job_counts(conn, job.id)),
        "batches": {row[0]: row[1] for row in conn.execute(by_state)},
        "cost_usd": float(cost or 0.0),
        "open_runs": [_run_facts(conn, run) for run in store.open_runs(conn, job.id)],
        "last_run": None if last is None else _run_facts(conn, last),
        "results_vanish_at": None if oldest is None else (oldest + store.RESULTS_KEPT).isoformat(),
        "results_vanish_days": None if oldest is None else (oldest + store.RESULTS_KEPT - now).days,
        "problems": [{"batch": batch, "problem": problem} for batch, problem in problems],
    }


def _run_facts(conn: Connection, run: Row[Any]) -> dict[str, Any]:
    counts = run.counts if run.counts is not None else store.run_counts(conn, run.id)
    return {
        "run_id": run.id,
        "state": run.state,
        "reason": run.reason,
        "vars": run.vars,
        "rows": counts,
        "planned": run.planned_at is not None,
        "cost_usd": store.run_cost(conn, run.id),
        "created_at": run.created_at.isoformat(),
    }


def status_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """`status` as text."""
    yield f"job      {facts['job']}, answers in table {facts['table']}"
    yield f"rows     {counts_line(facts['rows'])}"
    yield f"batches  {_counted(facts['batches']) or 'none'}"
    yield f"cost     {money(facts['cost_usd'])} for all answers so far"
    for run in facts["open_runs"] or ([facts["last_run"]] if facts["last_run"] else []):
        given = " ".join(f"{name}={value}" for name, value in run["vars"].items())
        state = run["state"] + (f": {run['reason']}" if run["reason"] else "")
        planning = "" if run["planned"] or run["state"] != RunState.OPEN else ", planning not finished"
        when = run["created_at"][:16].replace("T", " ")
        begun = f"begun {when}{' with ' + given if given else ''}"
        yield f"run {run['run_id']:<4} {state}{planning}, {begun}: {counts_line(run['rows'])}"
    for problem in facts["problems"]:
        yield f"         batch {problem['batch']}: {problem['problem']}"
    if facts["results_vanish_days"] is not None and facts["results_vanish_days"] < 7:
        yield f"warning  results vanish at the API on {facts['results_vanish_at'][:10]}; collect them before"


def next_command(facts: Mapping[str, Any], job: str) -> str:
    """What to do next, as a command."""
    rows = facts["rows"]
    if any(not run["planned"] for run in facts["open_runs"]) or (rows.get("pending") and not facts["open_runs"]):
        return f"batch-pipeline run {job}"
    if facts["open_runs"]:
        return f"batch-pipeline collect {job}"
    if any(rows.get(state) for state in FAILURES):
        return f"batch-pipeline errors {job}"
    return f"batch-pipeline export {job}"


# -- errors ----------------------------------------------------------------------------------------------------------

_REMEDIES = {
    RowState.INVALID: "correct these rows at the source, or the template, and run again",
    RowState.TRUNCATED: "raise request.max_tokens and run again",
    RowState.REFUSED: "change the prompt, or name another model, and run again",
    RowState.UNPARSABLE: "change the prompt or the labels and run again",
    RowState.EXPIRED: "raise retry.max_attempts and run again; smaller batches (limits.max_batch_requests) help",
    RowState.CANCELED: "the batch was canceled: these rows go again only when they change at the source",
    RowState.LOST: "look the batch up in the Console first: sending these rows again may pay for them twice",
}


def errors(conn: Connection, table: Table, key: list[str]) -> list[dict[str, Any]]:
    """Failed rows by cause, most frequent first, each with up to three keys and what mends it."""
    failed = table.c.status.in_(FAILURES)
    causes = conn.execute(
        select(table.c.status, table.c.error_type, table.c.error_message, func.count().label("rows"))
        .where(failed)
        .group_by(table.c.status, table.c.error_type, table.c.error_message)
        .order_by(func.count().desc(), table.c.status)
        .limit(50)
    )
    found = []
    for cause in causes:
        same = [
            table.c.status == cause.status,
            table.c.error_type.is_not_distinct_from(cause.error_type),
            table.c.error_message.is_not_distinct_from(cause.error_message),
        ]
        examples = conn.execute(select(*[table.c[name] for name in key]).where(*same).limit(3))
        found.append(
            {
                "status": cause.status,
                "error_type": cause.error_type,
                "error_message": cause.error_message,
                "rows": cause.rows,
                "keys": [identity.shown(identity.dump(list(row))) for row in examples],
                "remedy": _remedy(cause.status, cause.error_type),
            }
        )
    return found


def _remedy(status: str, error_type: str | None) -> str:
    if status == RowState.ERRORED:
        if error_type in ("invalid_request_error", "not_found_error", "request_too_large"):
            return "the API refuses the request as it is: correct the job file and run again"
        return "name this error in retry.errors and raise retry.max_attempts, then run again"
    return _REMEDIES[RowState(status)]


def error_lines(causes: list[dict[str, Any]]) -> Iterator[str]:
    """`errors` as text."""
    for cause in causes:
        what = f"{cause['status']} ({cause['error_type']})" if cause["error_type"] else cause["status"]
        yield f"{count(cause['rows'], 'row')} {what}: {cause['error_message']}"
        yield f"    for example {', '.join(cause['keys'])}"
        yield f"    {cause['remedy']}"
