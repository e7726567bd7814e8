"""What a person reads: events, quotes, status, errors and proofs as text. Pure but for a few queries.

A command to be said next comes as words, without the program's name: `["run", "tickets.yaml"]`.
"""

import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection, Row, func, or_, select, text

from pipeline import identity, jsontext, recipes, store
from pipeline.budget import CERTAIN_TOKENS_PER_BYTE, month_of
from pipeline.ends import failed_rows
from pipeline.escapes import inline
from pipeline.estimate import Estimate, read_rate, usage_of
from pipeline.outcomes import speaks_of_account
from pipeline.quote import Quote
from pipeline.reasons import BEHIND_GATE, in_words
from pipeline.sink import Sink
from pipeline.states import FAILURES, OPEN_BATCHES, BatchState, Gate, RowState, RunReason, RunState, SendingEnd
from pipeline.tables import batches, requests, sendings
from pipeline.verdicts import Verdict
from pipeline.verify import Verified


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


def quote_lines(quote: Quote, *, problems: bool = True) -> Iterator[str]:
    """What a run is about to do and what it will cost. problems: with the first one, which may tell a row's text."""
    rows = quote.rows
    parts = [
        (rows[Verdict.NEW], "new"),
        (rows[Verdict.CHANGED], "changed"),
        (rows[Verdict.AGAIN], "to send again"),
        (rows[Verdict.WAITING] + rows[Verdict.PLANNED], "planned before and not sent yet"),
        (rows[Verdict.IN_FLIGHT] + rows[Verdict.CHANGED_IN_FLIGHT], "in flight"),
        (rows[Verdict.KEPT] + rows[Verdict.KEPT_OLDER], "kept"),
        (rows[Verdict.FOR_RETRY], "left to a retry that is not finished"),
        (rows[Verdict.OTHER], "not asked for"),
    ]
    listed = ", ".join(f"{n:,} {what}" for n, what in parts if n) or "none"
    yield f"rows     {quote.total:,} in the source: {listed}"
    if rows[Verdict.CHANGED_IN_FLIGHT]:
        changed = rows[Verdict.CHANGED_IN_FLIGHT]
        yield f"         {changed:,} of those in flight have changed; they go again when they are back"
    if rows[Verdict.KEPT_OLDER]:
        older = rows[Verdict.KEPT_OLDER]
        yield f"         {older:,} succeeded with an older recipe and are kept; --refresh sends them too"
    if quote.gone:
        yield f"         {gone_words(quote.gone)}; answers stay"
    yield from _in_flight_line(quote)
    said = quote.estimate
    if not quote.to_send or said is None:
        return
    yield f"sends    {_sends(said)} in {count(said.batches, 'batch')}{_ahead(quote)}, {_bytes(said.size_bytes)}"
    if problems and quote.problems:
        yield f"         {invalid_share(quote)}"
    tokens = said.input_tokens
    each = f"{tokens.mean:,.0f} tokens a request, give or take {tokens.error:,.0f}; {said.total_tokens:,} in all"
    yield f"input    {each} ({_counted_how(said)})"
    low, expected, most = said.output_tokens
    about = "" if expected is None else f", about {expected:,.0f}"
    yield f"output   {low:,.0f} to {most:,} tokens an answer{about}"
    yield f"cost     {cost_words(said)}"
    if quote.unbounded is not None:
        yield f"         and on top what {quote.unbounded} costs and reads at the API"
    if quote.max_cost_usd is not None:
        yield _limit_line(quote)


def gone_words(rows: int) -> str:
    """`12 rows of the job are no longer in its source`."""
    return f"{count(rows, 'row')} of the job {'is' if rows == 1 else 'are'} no longer in its source"


def _in_flight_line(quote: Quote) -> Iterator[str]:
    """What is at the API, and what is reserved for it."""
    there = quote.in_flight
    if there is not None:
        reserved = "unpriced" if there.usd is None else f"at most {money(there.usd)} is reserved for it"
        yield f"at API   {count(there.batches, 'batch')} with {count(there.rows, 'row')}: {reserved}"


def _sends(said: Estimate) -> str:
    """`19,185 requests for 19,980 rows (795 equal to another)`, `500 requests`."""
    equal = said.rows - said.requests
    requests = count(said.requests, "request")
    return f"{requests} for {count(said.rows, 'row')} ({equal:,} equal to another)" if equal > 0 else requests


def _ahead(quote: Quote) -> str:
    if not quote.ahead:
        return ""
    first = "first row" if quote.ahead == 1 else f"first {quote.ahead:,} rows"
    if quote.waits_for_ahead:
        return f" (they wait for the {first} of the run)"
    return f" (the {first} {'goes' if quote.ahead == 1 else 'go'} ahead)"


def _counted_how(said: Estimate) -> str:
    sampled = said.input_tokens.sampled
    return f"the API counted {count(sampled, 'request')}" if sampled else "by bytes, the API did not count"


def cost_words(said: Estimate) -> str:
    """What a run costs, as it is said before, at the end and by `estimate`."""
    if said.cost_facts is None:
        return f"unpriced: no batch price is known for {said.unpriced}; prices in the job file can say it"
    return cost_range(said.cost_facts)


def cost_range(usd: Mapping[str, float | None]) -> str:
    """`about $2.60; $2.14 at least, $3.34 at worst`. usd: see estimate.Money."""
    about = "" if usd["expected"] is None else f"about {money(usd['expected'])}; "
    return f"{about}{money(usd['low'])} at least, {money(usd['worst'])} at worst"


def _limit_line(quote: Quote) -> str:
    said = quote.estimate
    worst = None if said is None or said.money is None else said.money.worst
    enough = worst is not None and quote.max_cost_usd is not None and worst <= quote.max_cost_usd
    then = "enough for that" if enough else "the run stops before it costs more, by a 99% bound of its input"
    return f"budget   {money(quote.max_cost_usd)} (limits.max_cost_usd): {then}"


def limit_means(quote: Quote) -> Iterator[str]:
    """What the limit of a run's cost promises, in full; nothing for a job without one."""
    if quote.max_cost_usd is not None:
        yield f"budget   {money(quote.max_cost_usd)} (limits.max_cost_usd): answers are bounded exactly, by max_tokens;"
        yield "         input is bounded by the tokens per byte of a sample, with 99% certainty, so in rare cases a run"
        yield "         costs slightly more"


def shortened(params: Any) -> Any:
    """A request for people: of the files that it carries only how they begin."""
    if isinstance(params, dict):
        carried = params.get("type") == "base64" and isinstance(params.get("data"), str)
        rest = {"data": f"{params['data'][:40]}... ({len(params['data']):,} characters)"} if carried else {}
        return {name: shortened(value) for name, value in {**params, **rest}.items()}
    return [shortened(value) for value in params] if isinstance(params, list) else params


def invalid_share(quote: Quote) -> str:
    """`3 of 100 sampled rows cannot be sent: column 'photo' ...`."""
    return f"{len(quote.problems)} of {quote.sampled} sampled rows cannot be sent: {quote.problems[0]}"


def quote_facts(quote: Quote) -> dict[str, Any]:
    """The quote as JSON."""
    said, there = quote.estimate, quote.in_flight
    facts = {
        "rows": {kind.value: quote.rows[kind] for kind in Verdict},
        "to_send": quote.to_send,
        "ahead": quote.ahead,
        "in_flight": None if there is None else there._asdict(),
        "max_cost_usd": quote.max_cost_usd,
    }
    return facts if said is None else {**facts, **said.facts()}


def estimate_lines(quote: Quote) -> Iterator[str]:
    """`estimate` as text: what `run` says before it sends, and answers, cache, time, and what it assumes."""
    yield from quote_lines(quote)
    said = quote.estimate
    if not quote.to_send or said is None:
        return
    yield f"models   {', '.join(said.models)}"
    if said.cached is not None:
        yield f"cache    {said.cached.tokens:,} tokens shared by all requests, for {said.cached.ttl}"
    usual, longest = said.hours
    rounds = "at once" if said.rounds == 1 else f"in {said.rounds:,} rounds of {said.queue:,} requests"
    yield f"time     {rounds}: usually within {usual} h, at most {longest} h"
    for assumption in said.assumes:
        yield f"assumes  {assumption}"


_EVENTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "emulator": lambda e: f"emulator {e['url']}",
    "warning": lambda e: f"warning  {e['warning']}",
    "waits_for_retry": lambda e: _waits_for_retry(e),
    "planned": lambda e: f"batch {e['batch']} planned: {count(e['requests'], 'request')}, {_bytes(e['bytes'])}",
    "submitting": lambda e: f"batch {e['batch']} submitting",
    "submitted": lambda e: f"batch {e['batch']} submitted as {e['api_id']}",
    "adopted": lambda e: f"batch {e['batch']} found at the API as {e['api_id']}: it had been accepted",
    "found_late": lambda e: f"batch {e['batch']} is at the API after all, as {e['api_id']}: it is not sent again",
    "counts_disagree": lambda e: (
        f"batch {e['batch']} is ours by its results, though the API counts {count(e['counted'], 'request')} in it, "
        f"and {e['requests']:,} were sent"
    ),
    "absent": lambda e: f"batch {e['batch']} is not at the API: it is sent again",
    "rejected": lambda e: f"batch {e['batch']} was not accepted: {e['problem']}" + _later(e["wait"]),
    "unknown_end": lambda e: (
        f"batch {e['batch']}: no answer that says whether the API took it ({e['problem']}); "
        f"the API's listing will tell, within {e['grace']:.0f} s"
    ),
    "watching": lambda e: f"batch {e['batch']}: {e['problem']}",
    "dropped": lambda e: f"batch {e['batch']} dropped: {e['problem']}",
    "spool_moved": lambda e: f"spool    of job {e['job']} is {e['spool']} from now on",
    "body_lost": lambda e: f"batch {e['batch']}: its body is gone or was altered; `run` plans its rows anew",
    "body_left": lambda e: f"batch {e['batch']}: its body is left until `run` plans again ({e['problem']})",
    "canceling": lambda e: f"batch {e['batch']} is being canceled at the API",
    "overdue": lambda e: f"batch {e['batch']}: {e['problem']}",
    "ended": lambda e: f"batch {e['batch']} ended: {e['succeeded']:,} of {count(e['requests'], 'request')} succeeded",
    "collected": lambda e: (
        f"batch {e['batch']} collected: {counted(e['outcomes'])}, {money(e['cost_usd'])}{_failed_at_the_api(e)}"
    ),
    "results_missing": lambda e: f"batch {e['batch']}: {e['problem']}",
    "unknown_results": lambda e: f"batch {e['batch']}: {e['lines']} result lines name no request of ours",
    "not_found": lambda e: f"batch {e['batch']}: {e['problem']}",
    "lost": lambda e: f"batch {e['batch']} is lost: {e['problem']}",
    "found_again": lambda e: f"batch {e['batch']} was lost and is there again; {count(e['rows'], 'row')} wait for it",
    "twin": lambda e: f"batch {e['batch']}: {e['problem']}",
    "held_back": lambda e: f"batch {e['batch']} {e['problem']}",
    "taken_over": lambda e: f"batch {e['batch']} was taken over by another driver",
    "planned_elsewhere": lambda e: f"waiting: {e['problem']}",
    "not_counted": lambda e: (
        f"warning  tokens were not counted by the API: {e['problem']}; the quote goes by bytes, "
        "and a budget reserves for one token a byte"
    ),
    "canary_failed": lambda e: f"canary: {e['failed']:,} of its {count(e['rows'], 'row')} failed",
    "gate_opened": lambda e: _gate_opened(e),
    "uploaded": lambda e: f"file put up as {e['file_id']}, {_bytes(e['bytes'])}",
    "file_removed": lambda e: f"file {e['file_id']} removed at the API",
    "file_not_removed": lambda e: f"file {e['file_id']} not removed at the API yet: {e['problem']}",
    "finished": lambda e: f"run {e['run']} is finished",
    "run_ended": lambda e: run_ended_line(e, f"batch-pipeline {shlex.join(after_end(e, e['job']))}"),
    "incomplete": lambda e: f"run {e['run']} ends before its end: {e['reason']}",
    "canceled": lambda e: f"canceled {count(e['runs'], 'open run')}; {_at_the_api(e['open'], e['foreign'])}",
    "deleted": lambda e: f"batch {e['batch']} deleted at the API",
    "not_deleted": lambda e: f"batch {e['batch']} not deleted at the API yet: {e['problem']}",
    "other_account": lambda e: f"batch {e['batch']} belongs to another account and is left alone",
    "unreachable": lambda e: e["problem"] + _later(e["wait"]),
    "waiting": lambda e: f"waiting: {_waited_for(e)}; next look in {math.ceil(e['seconds'])} s",
}


def event_line(event: str, facts: Mapping[str, Any]) -> str:
    """One line for an event of a driver."""
    return _EVENTS[event](facts)


def _waited_for(facts: Mapping[str, Any]) -> str:
    """Batches by state; and the drivers that have them, where this one has nothing to do until they have ended."""
    said, others = counted(facts["progress"]["batches"]), facts["held_by"]
    if not others:
        return said
    who = ", ".join(sorted({other["process"] for other in others}))
    return (
        f"{said}, held by {who}: wait, or stop the process; what a process that has died holds is free when its lease "
        f"runs out, at {max(other['until'] for other in others)} at the latest"
    )


def _waits_for_retry(facts: Mapping[str, Any]) -> str:
    """command: that goes on with it, where keys of rows may be said; else the line names none, for it may be logged."""
    rows = count(facts["rows"], "row")
    waiting = f"{rows} {'waits' if facts['rows'] == 1 else 'wait'} for a retry that is not finished"
    way_on = f"run {facts['run']}, `batch-pipeline status {facts['job']}` says how it goes on"
    return f"retry    {waiting}: {facts.get('command', way_on)}"


def retry_words(run: Mapping[str, Any], job: str) -> list[str]:
    """The command that goes on with a retry: a person has said yes to it before."""
    return [*same_command(run, job), "--yes"]


def _gate_opened(facts: Mapping[str, Any]) -> str:
    if facts["gate"] == Gate.PRIMER:
        return "primer is back: the prefix is in the prompt cache, the rest goes"
    good = facts["rows"] - facts["failed"]
    return f"canary is back: {good:,} of {count(facts['rows'], 'row')} succeeded, the rest goes"


def _at_the_api(still: int, foreign: int) -> str:
    if not still:
        return "nothing of the job is at the API any more"
    said = f"{count(still, 'batch')} {'is' if still == 1 else 'are'} at the API still"
    if not foreign:
        return f"{said}, asked to cancel: what had succeeded by then is collected"
    return f"{said}, {foreign:,} of them sent by another account: use its key, or give them up by --abandon"


def counts_line(counts: Mapping[str, int]) -> str:
    """`500 rows: 498 succeeded, 2 errored`."""
    return f"{count(sum(counts.values()), 'row')}: {counted(counts) or 'nothing to do'}"


def counted(counts: Mapping[str, int]) -> str:
    """`498 succeeded, 2 errored`, of rows or batches by state, in the order of the states."""
    order = [RowState.PENDING, BatchState.PLANNED, *RowState, *BatchState]
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
    said = or_(batches.c.reason.is_not(None), batches.c.problem.is_not(None))
    troubled = (batches.c.state.in_((*OPEN_BATCHES, BatchState.LOST)), said)
    columns = (batches.c.id, batches.c.state, batches.c.reason, batches.c.problem)
    problems = conn.execute(select(*columns).where(where, *troubled))
    twins = (
        select(batches.c.id, sendings.c.problem)
        .join(batches, batches.c.id == sendings.c.batch_id)
        .where(where, sendings.c.end == SendingEnd.TWIN)
    )
    cost = conn.scalar(select(func.coalesce(func.sum(batches.c.cost_usd), 0.0)).where(where))
    return {
        "job": job.name,
        "table": job.results_table,
        "rows": store.job_rows(conn, job.id),
        "gone": job.gone,
        "gone_at": None if job.gone_at is None else job.gone_at.isoformat(),
        "recipes": [one._asdict() | {"since": one.since.isoformat()} for one in recipes.answered(conn, job.id)],
        "batches": {row[0]: row[1] for row in conn.execute(by_state)},
        "collecting": [batch._asdict() for batch in store.partly_collected(conn, job.id)],
        "cost_usd": round(float(cost or 0.0), 12),
        "open_runs": [_run_facts(conn, run) for run in store.open_runs(conn, job.id)],
        "stopped_retries": [
            _run_facts(conn, run) for run in store.unfinished_retries(conn, job.id) if run.state != RunState.OPEN
        ],
        "last_run": None if last is None else _run_facts(conn, last),
        "swept_seconds_ago": None if job.swept_at is None else max(0, round((now - job.swept_at).total_seconds())),
        "results_vanish_at": None if oldest is None else (oldest + store.RESULTS_KEPT).isoformat(),
        "results_vanish_days": None if oldest is None else (oldest + store.RESULTS_KEPT - now).days,
        "problems": [{"batch": p.id, "state": p.state, "problem": in_words(p.reason, p.problem)} for p in problems],
        "twins": [{"batch": batch, "problem": problem} for batch, problem in conn.execute(twins)],
    }


def _run_facts(conn: Connection, run: Row[Any]) -> dict[str, Any]:
    return {
        "run_id": run.id,
        "state": run.state,
        "reason": run.reason,
        "vars": run.vars,
        "retry": run.retry,
        "rows": store.run_rows(conn, run),
        "planned": run.planned_at is not None and not store.rows_for_planning(conn, run.id),
        "cost_usd": store.run_cost(conn, run.id),
        "budget": budget_facts(conn, run),
        "estimate": run.estimate,
        "usage": usage_of(conn, batches.c.run_id == run.id),
        "gate": run.gate if run.state == RunState.OPEN else None,
        "created_at": run.created_at.isoformat(),
    }


def budget_facts(conn: Connection, run: Row[Any]) -> dict[str, float | None] | None:
    """How a run's money stands, in US dollars; None for a run without a budget.

    to_finish_usd: a limit that is enough for all that still waits, whatever its answers cost; None when nothing does,
    or that is not known.
    """
    limit = run.job["limits"]["max_cost_usd"]
    if limit is None:
        return None
    tokens_per_byte = CERTAIN_TOKENS_PER_BYTE if run.tokens_per_byte is None else run.tokens_per_byte
    spent, reserved = store.spending(conn, run.id, tokens_per_byte)
    waiting = _cost_of_waiting(conn, run.id, tokens_per_byte)
    to_finish = None if not waiting else math.ceil((spent + reserved + waiting) * 100) / 100  # whole cents
    return {"limit_usd": limit, "spent_usd": spent, "reserved_usd": reserved, "to_finish_usd": to_finish}


def _cost_of_waiting(conn: Connection, run_id: int, tokens_per_byte: float) -> float | None:
    """US dollars that the run's rows that wait may cost at most, by the bounds of the batches that they were in.

    None when these are of a model without a known price.
    """
    request = (batches.c.max_output_usd + batches.c.max_input_usd * tokens_per_byte) / batches.c.requests
    bounds = conn.execute(
        select(func.count(), func.count(requests.c.body_id), func.sum(request))
        .select_from(requests.outerjoin(batches, batches.c.id == requests.c.body_id))
        .where(requests.c.run_id == run_id, requests.c.state == text("'pending'"))
    ).one()
    planned = (batches.c.run_id == run_id, batches.c.state == BatchState.PLANNED)
    unsent = float(conn.scalar(select(func.sum(request * batches.c.requests)).where(*planned)) or 0.0)
    waiting, spooled, cost = bounds
    mean = conn.scalar(select(func.avg(request)).where(batches.c.run_id == run_id)) if waiting > spooled else 0.0
    if mean is None or (spooled and cost is None):
        return None
    return unsent + float(cost or 0.0) + int(waiting - spooled) * float(mean)


def status_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """`status` as text."""
    yield f"job      {facts['job']}, answers in table {facts['table']}"
    yield f"rows     {counts_line(facts['rows'])}"
    if facts["gone"]:
        yield f"         {gone_words(facts['gone'])}, as of {facts['gone_at'][:10]}"
    yield from _recipe_lines(facts["recipes"])
    yield f"batches  {counted(facts['batches']) or 'none'}"
    for batch in facts["collecting"]:
        yield f"         batch {batch['batch']}: {batch['answered']:,} of {count(batch['rows'], 'row')} answered"
    yield f"cost     {money(facts['cost_usd'])} for all answers so far"
    for run in facts["open_runs"] or ([facts["last_run"]] if facts["last_run"] else []):
        yield from _run_lines(run)
    if (facts["open_runs"] or _is_open(facts["batches"])) and facts["swept_seconds_ago"] is not None:
        yield f"swept    {_duration(facts['swept_seconds_ago'])} ago"
    for problem in facts["problems"]:
        lost = "is lost: " if problem["state"] == BatchState.LOST else ""
        yield f"         batch {problem['batch']}: {lost}{problem['problem']}"
    for twin in facts["twins"]:
        yield f"warning  batch {twin['batch']}: {twin['problem']}"
    if facts["results_vanish_days"] is not None and facts["results_vanish_days"] < 7:
        yield f"warning  results vanish at the API on {facts['results_vanish_at'][:10]}; collect them before"


def _recipe_lines(by_recipe: list[Mapping[str, Any]]) -> Iterator[str]:
    """Of which recipe the rows of the table are, where they are of several, or all of an older one."""
    for recipe in by_recipe:
        rows, since = count(recipe["rows"], "row"), recipe["since"][:10]
        if recipe["present"]:
            yield f"recipe   {rows} answered with the present one, of {since}"
        else:
            differs = f": {recipe['differs']}" if recipe["differs"] else ""
            yield f"recipe   {rows} answered with an older one, of {since}{differs}"


def _is_open(batches_by_state: Mapping[str, int]) -> bool:
    return any(batches_by_state.get(state) for state in OPEN_BATCHES)


def _duration(seconds: int) -> str:
    """`40 s`, `25 min`, `30 h`: in the unit that says enough."""
    unit, name = next(((u, n) for u, n in ((3600, "h"), (60, "min")) if seconds >= 2 * u), (1, "s"))
    return f"{seconds // unit} {name}"


def _run_lines(run: Mapping[str, Any]) -> Iterator[str]:
    given = " ".join(f"{name}={value}" for name, value in run["vars"].items())
    state = run["state"] + (f": {run['reason']}" if run["reason"] else "")
    planning = "" if run["planned"] or run["state"] != RunState.OPEN else ", planning not finished"
    when = run["created_at"][:16].replace("T", " ")
    begun = f"{'a retry ' if run['retry'] else ''}begun {when}{' with ' + given if given else ''}"
    yield f"run {run['run_id']:<4} {state}{planning}, {begun}: {counts_line(run['rows'])}"
    if run["gate"] is not None:
        yield f"         the rest {in_words(BEHIND_GATE[run['gate']])}"
    if run["budget"] is not None:
        yield f"         {budget_line(run['budget'])}"
    for line in money_lines(run["estimate"], run["cost_usd"], run["usage"]):
        yield f"         {line}"


def money_lines(estimate: Mapping[str, Any] | None, cost: float, usage: Mapping[str, int]) -> Iterator[str]:
    """What a run has cost against what was estimated when it began, and what the prompt cache did."""
    said = (estimate or {}).get("cost_usd")
    if said is not None:
        yield f"estimated {cost_range(said)}; it was {money(cost)} so far"
    rate = read_rate(dict(usage))
    if rate is not None:
        read, written = usage.get("cache_read_tokens", 0), usage.get("cache_write_tokens", 0)
        yield f"cache: {rate:.1%} read of what was to be cached ({read:,} tokens read, {written:,} written)"


def money_facts(estimate: Mapping[str, Any] | None, cost: float, usage: Mapping[str, int]) -> dict[str, Any]:
    """As `money_lines`, as JSON."""
    said = (estimate or {}).get("cost_usd")
    return {"estimate_usd": said, "cost_usd": cost, "usage": dict(usage), "cache_read_rate": read_rate(dict(usage))}


def month_facts(conn: Connection, run: Row[Any], limit: float | None, now: datetime) -> dict[str, Any] | None:
    """How the month's money stands, in US dollars; None without BATCH_MONTHLY_BUDGET_USD. As `budget_facts`."""
    if limit is None:
        return None
    since = month_of(now)
    spent, reserved = store.spending_since(conn, since, CERTAIN_TOKENS_PER_BYTE)
    tokens_per_byte = CERTAIN_TOKENS_PER_BYTE if run.tokens_per_byte is None else run.tokens_per_byte
    waiting = _cost_of_waiting(conn, run.id, tokens_per_byte)
    to_finish = None if not waiting else math.ceil((spent + reserved + waiting) * 100) / 100  # whole cents
    facts = {"limit_usd": limit, "spent_usd": spent, "reserved_usd": reserved, "to_finish_usd": to_finish}
    return {"month": f"{since:%Y-%m}", **facts}


def month_line(month: Mapping[str, Any]) -> str:
    """`month 2026-11: ...`, as `budget_line`."""
    return f"month {month['month']} (UTC), all jobs: {_money_line(month, 'BATCH_MONTHLY_BUDGET_USD=')}"


def budget_line(budget: Mapping[str, float | None]) -> str:
    """`budget $5.00: $4.20 spent, $0.70 reserved; limits.max_cost_usd: 7.25 is enough for what waits`."""
    return _money_line(budget, "limits.max_cost_usd: ")


def _money_line(budget: Mapping[str, float | None], field: str) -> str:
    said = f"budget {money(budget['limit_usd'])}: {money(budget['spent_usd'])} spent"
    if budget["reserved_usd"]:
        said += f", {money(budget['reserved_usd'])} reserved for what may still come"
    limit, enough = budget["limit_usd"], budget["to_finish_usd"]
    short = limit is not None and enough is not None and enough > limit
    return f"{said}; {field}{enough:.2f} is enough for what waits" if short else said


def next_command(facts: Mapping[str, Any], job: str) -> list[str]:
    """What to do next."""
    rows, last = facts["rows"], facts["last_run"]
    unplanned = next((run for run in facts["open_runs"] if not run["planned"]), None)
    if unplanned is not None:
        return same_command(unplanned, job)
    if facts["open_runs"] or _is_open(facts["batches"]):
        return ["collect", job]
    failed = any(rows.get(state) for state in FAILURES)
    stopped = last is not None and last["reason"] in (RunReason.FAILURES, RunReason.CANARY)
    if rows.get(RowState.PENDING) and not (failed and stopped):
        waited_for = [run for run in (last, *facts["stopped_retries"]) if run["rows"].get(RowState.PENDING)]
        return same_command(waited_for[0] if waited_for else last, job)
    return ["errors" if failed else "export", job]


def same_command(run: Mapping[str, Any], job: str) -> list[str]:
    """The command that goes on with a run: `run`, or the `retry` that it was."""
    texts = {name: value for name, value in run["vars"].items() if isinstance(value, str)}  # --var gives only these
    given = [word for name, value in texts.items() for word in ("--var", f"{name}={value}")]
    wanted = run["retry"]
    if wanted is None:
        return ["run", job, *given]
    words = [word for status in wanted["statuses"] for word in ("--status", status)]
    words += [word for error_type in wanted["error_types"] for word in ("--error-type", error_type)]
    words += [word for key in wanted["keys"] for word in ("--key", key)]
    words += [] if wanted["where"] is None else ["--where", wanted["where"]]
    words += [word for name, value in wanted["changes"].items() for word in ("--set", f"{name}={_yaml(value)}")]
    return ["retry", job, *words, *given]


_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


def _yaml(value: Any) -> str:
    """A value as it is written behind --set: model names as they are, all else as JSON, which is YAML."""
    plain = isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in ("true", "false", "null")
    return value if plain else orjson.dumps(value).decode()


# -- errors ----------------------------------------------------------------------------------------------------------

#: What the API says of a request that it would refuse again.
_REFUSED_AS_IT_IS = ("invalid_request_error", "not_found_error", "request_too_large")
_ANOTHER_MODEL = "claude-sonnet-5"  # a larger one than most jobs ask


def errors(conn: Connection, job: Row[Any], sink: Sink, name: str) -> list[dict[str, Any]]:
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
    last = store.last_run(conn, job.id)
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
                "keys": [identity.shown(jsontext.dump(list(row[: len(key)]))) for row in examples],
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
    if speaks_of_account(cause.error_message or ""):
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


def _failed_at_the_api(event: Mapping[str, Any]) -> str:
    """`; failed: req_011CS (api_error)`, of a batch; empty when none of its results has an id."""
    named = [f"{of['request_id'] or of['message_id']} ({of['error_type']})" for of in event.get("failed", ())]
    return f"; failed: {', '.join(named)}" if named else ""


def _ids(message_id: str | None = None, request_id: str | None = None) -> dict[str, str | None]:
    return {"message_id": message_id, "request_id": request_id}


def _in_brackets(ids: Mapping[str, str | None]) -> str:
    """` (req_011CS)`: by what the API's support finds a request; empty where nothing was sent."""
    named = ids["request_id"] or ids["message_id"]
    return f" ({named})" if named else ""


# -- the end of a run ------------------------------------------------------------------------------------------------

#: Why a run is incomplete, and the command that says more of it.
_STOPPED: dict[str, tuple[str, str]] = {
    RunReason.BUDGET: ("the budget is used up", "status"),
    RunReason.CANARY: ("too many of the canary's rows failed", "errors"),
    RunReason.FAILURES: ("too many of its rows failed", "errors"),
    RunReason.CANCELED: ("it was canceled", "status"),
}


def run_ended_line(end: Mapping[str, Any], command: str) -> str:
    """`run 3 ended before this command: 2 of 5 rows failed; next: COMMAND`, of a run that ended badly.

    end: the facts of an `ends.End`, and when: in words; None where the command is about several jobs.
    """
    if end["state"] == RunState.INCOMPLETE:
        how = f"it stopped early, {_STOPPED[end['reason']][0]}"
    else:
        how = f"{failed_rows(end['rows']):,} of {count(sum(end['rows'].values()), 'row')} failed"
    when = f"of {end['job']} ended" if end["when"] is None else f"ended {end['when']}"
    return f"run {end['run']} {when}: {how}; next: {command}"


def after_end(end: Mapping[str, Any], job: str) -> list[str]:
    """The command that says more of a run that ended badly. job: what commands call the job."""
    return [_STOPPED[end["reason"]][1] if end["state"] == RunState.INCOMPLETE else "errors", job]


def stopped_line(
    reason: str | None,
    budget: Mapping[str, float | None] | None,
    month: Mapping[str, Any] | None = None,
    *,
    retry: bool = False,
) -> str | None:
    """Why a run stopped before its end, and the way on; None for one that did not. retry: whether it is a retry."""
    match reason:
        case RunReason.BUDGET:
            lines = [] if budget is None else [budget_line(budget)]
            lines += [] if month is None else [month_line(month)]
            said = "; ".join(lines) or "the month's budget is spent (BATCH_MONTHLY_BUDGET_USD)"
            return f"{said}; raise it, and the same command goes on with what is left"
        case RunReason.CANARY:
            return (
                "too many of the canary's rows failed, so nothing more is sent: `errors` says why; put that right and "
                "run again, or go past it with `run --no-canary`"
            )
        case RunReason.FAILURES:
            return (
                "so many of its rows failed that nothing more is sent: `errors` says why; put that right, or allow "
                "more by limits.max_failed, and run again"
            )
        case RunReason.CANCELED if retry:
            return (
                "it was canceled: what had succeeded is collected, what was not sent keeps the outcome that it had, "
                "and `retry --status canceled` sends what was canceled"
            )
        case RunReason.CANCELED:
            return (
                "it was canceled: what had succeeded is collected, `run` sends what was not sent, and "
                "`retry --status canceled` what was canceled"
            )
    return None


# -- verify ----------------------------------------------------------------------------------------------------------


def verify_facts(found: Verified) -> dict[str, Any]:
    """A proof as JSON, without what does not hold."""
    return {
        "holds": found.holds,
        "problems": found.problems,
        "rows": found.rows,
        "statuses": dict(found.statuses),
        "waiting": found.waiting,
        "source_rows": found.source_rows,
        "gone": found.gone,
        "vanished": found.vanished,
        "batches": found.batches,
        "requests": found.requests,
        "lost": [{"batch": batch, "problem": problem} for batch, problem in found.lost],
        "twins": [{"batch": batch, "problem": problem} for batch, problem in found.twins],
    }


def verify_lines(found: Verified) -> Iterator[str]:
    """A proof as text: what was proven, or what does not hold."""
    if found.holds:
        same = "each has one final status, and one answer in table"
        yield f"holds    {count(found.rows, 'row')}: {same} {found.table} that says the same"
        yield f"         {counted(found.statuses) or 'none'}"
        collected = f"{count(found.batches, 'collected batch')} ({count(found.requests, 'request')})"
        yield f"         the API's counts of {collected} agree"
        if found.source_rows is not None:
            rows = count(found.source_rows, "row")
            yield f"         {rows} of the source: each has an outcome for its present content"
    else:
        of_rows = f"{count(found.rows, 'row')}, {found.waiting:,} of them not done" if found.waiting else "the job"
        yield f"does not hold: {count(found.problems, 'problem')} with {of_rows}"
        for of, problem in found.shown:
            yield f"    {of} {problem}"
        if found.problems > len(found.shown):
            yield f"    and {found.problems - len(found.shown):,} more"
    if found.gone:
        yield f"         {gone_words(found.gone)}"
    if found.vanished:
        yield f"         {count(found.vanished, 'row')} left the source before being answered, and the job with it"
    for batch, problem in found.lost:
        yield f"warning  batch {batch} is lost: {problem}"
    for batch, problem in found.twins:
        yield f"warning  batch {batch}: {problem}"
