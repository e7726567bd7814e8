"""Format a quote and its estimate as lines of text and as JSON facts. Pure."""

from collections.abc import Iterator
from typing import Any

from pipeline.planning.estimate import Estimate
from pipeline.planning.quote import Quote
from pipeline.planning.verdict import Verdict
from pipeline.report.words import cost_range, gone_words
from pipeline.text import count, money, size


def quote_lines(quote: Quote, *, problems: bool = True) -> Iterator[str]:
    """Yield the lines of a quote: which rows a run would send, and what they would cost.

    If nothing would be sent, or there is no estimate, only the lines on rows and on batches at the API are there.
    problems: whether to include the first problem of a sampled row, which may contain text of the row.
    """
    rows = quote.rows
    parts = [
        (rows[Verdict.NEW], "new"),
        (rows[Verdict.CHANGED], "changed"),
        (rows[Verdict.AGAIN], "to send again"),
        (rows[Verdict.WAITING] + rows[Verdict.PLANNED], "planned before and not sent yet"),
        (rows[Verdict.IN_FLIGHT] + rows[Verdict.CHANGED_IN_FLIGHT], "in flight"),
        (rows[Verdict.IN_ROUNDS], "between two rounds"),
        (rows[Verdict.KEPT] + rows[Verdict.KEPT_OLDER], "kept"),
        (rows[Verdict.FOR_RETRY], "left to a retry that is not finished"),
        (rows[Verdict.OTHER], "not selected"),
    ]
    listed = ", ".join(f"{n:,} {what}" for n, what in parts if n) or "none"
    yield f"rows     {quote.total:,} in the {'trial' if quote.trial else 'source'}: {listed}"
    if rows[Verdict.CHANGED_IN_FLIGHT]:
        changed = rows[Verdict.CHANGED_IN_FLIGHT]
        yield f"         {changed:,} of those in flight have changed; they are sent again once their batch has ended"
    if rows[Verdict.KEPT_OLDER]:
        older = rows[Verdict.KEPT_OLDER]
        yield f"         {older:,} succeeded with an older recipe and are kept; --refresh sends them too"
    if rows[Verdict.IN_ROUNDS]:
        yield f"         {rows[Verdict.IN_ROUNDS]:,} of them go on in a later round, which is not in the cost below"
    if quote.gone:
        yield f"         {gone_words(quote.gone)}; their answers stay"
    yield from _in_flight_line(quote)
    said = quote.estimate
    if not quote.to_send or said is None:
        return
    yield f"sends    {_sends(said)} in {count(said.batches, 'batch')}{_ahead(quote)}, {size(said.size_bytes)}"
    if problems and quote.problems:
        yield f"         {invalid_share(quote)}"
    tokens = said.input_tokens
    each = f"{tokens.mean:,.0f} tokens a request, give or take {tokens.error:,.0f}; {said.total_tokens:,} in all"
    yield f"input    {each} ({_counted_how(said)})"
    low, expected, most = said.output_tokens
    about = "" if expected is None else f", about {expected:,.0f}"
    yield f"output   {low:,.0f} to {most:,} tokens an answer{about}"
    yield f"cost     {cost_words(said)}"
    if quote.rounds > 1:
        apart = "; equal rows are sent apart, because each has its own conversation" if quote.unshared else ""
        yield f"rounds   up to {quote.rounds} of each row, all of them in the worst case{apart}"
    if quote.unbounded is not None:
        yield f"         plus what {quote.unbounded} costs and reads at the API"
    if quote.max_cost_usd is not None:
        yield _limit_line(quote)


def _in_flight_line(quote: Quote) -> Iterator[str]:
    """Yield a line on the batches at the API and the money reserved for them; nothing if no row is at the API."""
    there = quote.in_flight
    if there is not None:
        reserved = "unpriced" if there.usd is None else f"at most {money(there.usd)} is reserved for it"
        yield f"at API   {count(there.batches, 'batch')} with {count(there.rows, 'row')}: {reserved}"


def _sends(said: Estimate) -> str:
    """Return `19,185 requests for 19,980 rows (795 equal to another)`, or `500 requests` if no two are equal."""
    equal = said.rows - said.requests
    requests = count(said.requests, "request")
    return f"{requests} for {count(said.rows, 'row')} ({equal:,} equal to another)" if equal > 0 else requests


def _ahead(quote: Quote) -> str:
    if not quote.ahead:
        return ""
    first = "first row" if quote.ahead == 1 else f"first {quote.ahead:,} rows"
    first += " with gold" if quote.gold_ahead else ""
    if quote.waits_for_ahead:
        return f" (they wait for the {first} of the run)"
    return f" (the {first} {'is' if quote.ahead == 1 else 'are'} sent first)"


def _counted_how(said: Estimate) -> str:
    sampled = said.input_tokens.sampled
    return f"the API counted {count(sampled, 'request')}" if sampled else "estimated from bytes, the API did not count"


def cost_words(said: Estimate) -> str:
    """Return the cost of a run as text. The quote, the end of a run and the command `estimate` use the same words."""
    if said.cost_facts is None:
        return f"unpriced: no batch price is known for {said.unpriced}; give one under prices in the job file"
    return cost_range(said.cost_facts)


def _limit_line(quote: Quote) -> str:
    said = quote.estimate
    worst = None if said is None or said.money is None else said.money.worst
    enough = worst is not None and quote.max_cost_usd is not None and worst <= quote.max_cost_usd
    then = "enough for the worst case" if enough else "the run stops before it costs more, by a 99% bound of its input"
    which = "of the trial" if quote.trial else "limits.max_cost_usd"
    return f"budget   {money(quote.max_cost_usd)} ({which}): {then}"


def limit_means(quote: Quote) -> Iterator[str]:
    """Yield lines that say what the limit of a run's cost guarantees; nothing for a job without a limit."""
    if quote.max_cost_usd is not None:
        yield f"budget   {money(quote.max_cost_usd)} (limits.max_cost_usd): answers are bounded exactly, by max_tokens;"
        yield "         input is bounded by the tokens per byte of a sample, with 99% certainty, so in rare cases a run"
        yield "         costs slightly more"


def shortened(params: Any) -> Any:
    """Return a copy of a request for people: of each base64 file in it, only the first 40 characters are kept."""
    if isinstance(params, dict):
        carried = params.get("type") == "base64" and isinstance(params.get("data"), str)
        rest = {"data": f"{params['data'][:40]}... ({len(params['data']):,} characters)"} if carried else {}
        return {name: shortened(value) for name, value in {**params, **rest}.items()}
    return [shortened(value) for value in params] if isinstance(params, list) else params


def invalid_share(quote: Quote) -> str:
    """Return `3 of 100 sampled rows cannot be sent: column 'photo' ...`. The quote must have a problem."""
    return f"{len(quote.problems)} of {quote.sampled} sampled rows cannot be sent: {quote.problems[0]}"


def quote_facts(quote: Quote) -> dict[str, Any]:
    """Return the quote as JSON, with the facts of the estimate if there is one."""
    said, there = quote.estimate, quote.in_flight
    facts = {
        "rows": {kind.value: quote.rows[kind] for kind in Verdict},
        "to_send": quote.to_send,
        "ahead": quote.ahead,
        "gold_ahead": quote.gold_ahead,
        "in_flight": None if there is None else there._asdict(),
        "max_cost_usd": quote.max_cost_usd,
    }
    return facts if said is None else {**facts, **said.facts()}


def estimate_lines(quote: Quote) -> Iterator[str]:
    """Yield the lines of the command `estimate`: the quote that `run` shows, models, cache, time and assumptions."""
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
