"""What a run cost, against its estimate and its budgets, as lines and as facts."""

import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from pipeline.money.budget import CERTAIN_TOKENS_PER_BYTE, month_of
from pipeline.planning.past import read_rate
from pipeline.report.quote import cost_range
from pipeline.state.database import Connection
from pipeline.state.runs import RunRecord
from pipeline.state.spending import cost_of_waiting, spending, spending_since
from pipeline.states import RunReason
from pipeline.text import money


def budget_facts(conn: Connection, run: RunRecord) -> dict[str, float | None] | None:
    """How a run's money stands, in US dollars; None for a run without a budget.

    to_finish_usd: a limit that is enough for all that still waits, whatever its answers cost; None when nothing does,
    or that is not known.
    """
    limit = run.max_cost_usd
    if limit is None:
        return None
    tokens_per_byte = CERTAIN_TOKENS_PER_BYTE if run.tokens_per_byte is None else run.tokens_per_byte
    spent, reserved = spending(conn, run.id, tokens_per_byte)
    waiting = cost_of_waiting(conn, run.id, tokens_per_byte)
    to_finish = None if not waiting else math.ceil((spent + reserved + waiting) * 100) / 100  # whole cents
    return {"limit_usd": limit, "spent_usd": spent, "reserved_usd": reserved, "to_finish_usd": to_finish}


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


def month_facts(conn: Connection, run: RunRecord, limit: float | None, now: datetime) -> dict[str, Any] | None:
    """How the month's money stands, in US dollars; None without BATCH_MONTHLY_BUDGET_USD. As `budget_facts`."""
    if limit is None:
        return None
    since = month_of(now)
    spent, reserved = spending_since(conn, since, CERTAIN_TOKENS_PER_BYTE)
    tokens_per_byte = CERTAIN_TOKENS_PER_BYTE if run.tokens_per_byte is None else run.tokens_per_byte
    waiting = cost_of_waiting(conn, run.id, tokens_per_byte)
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
