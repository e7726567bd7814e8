"""Compare what a run has cost with its estimate and its budgets, as lines and as JSON facts. Edge: SQL."""

import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from pipeline.money.measures import CERTAIN_TOKENS_PER_BYTE, month_of, read_rate
from pipeline.report.words import cost_range
from pipeline.state.database import Connection
from pipeline.state.runs import RunRecord
from pipeline.state.spending import cost_of_waiting, spending, spending_since
from pipeline.states import RunReason
from pipeline.text import money


def budget_facts(conn: Connection, run: RunRecord) -> dict[str, float | None] | None:
    """Return the limit, the spent and the reserved money of a run in US dollars; None for a run without a budget.

    to_finish_usd: a limit, in whole cents, that is enough for all rows that still wait, whatever their answers cost;
    None if no row waits or if their cost is not known.
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
    """Yield a line on the cost of a run so far and its estimate, and a line on the use of the prompt cache.

    estimate: made when the run began; without a cost in it the first line is left out. cost: US dollars so far.
    usage: tokens by class; without tokens of the prompt cache the second line is left out.
    """
    estimated = (estimate or {}).get("cost_usd")
    if estimated is not None:
        yield f"estimated {cost_range(estimated)}; spent {money(cost)} so far"
    rate = read_rate(dict(usage))
    if rate is not None:
        read, written = usage.get("cache_read_tokens", 0), usage.get("cache_write_tokens", 0)
        yield f"cache: {rate:.1%} of the cached tokens were read ({read:,} tokens read, {written:,} written)"


def money_facts(estimate: Mapping[str, Any] | None, cost: float, usage: Mapping[str, int]) -> dict[str, Any]:
    """Return the facts of `money_lines` as JSON; estimate_usd and cache_read_rate are None if they are not known."""
    estimated = (estimate or {}).get("cost_usd")
    return {
        "estimate_usd": estimated,
        "cost_usd": cost,
        "usage": dict(usage),
        "cache_read_rate": read_rate(dict(usage)),
    }


def month_facts(conn: Connection, run: RunRecord, limit: float | None, now: datetime) -> dict[str, Any] | None:
    """Return the money of all jobs in the present month as JSON, in US dollars; None if `limit` is None.

    limit: BATCH_MONTHLY_BUDGET_USD. The fields are those of `budget_facts`; to_finish_usd counts only the
    waiting rows of this run.
    """
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
    """Return `month 2026-11 (UTC), all jobs: ...`, which continues as `budget_line` does."""
    return f"month {month['month']} (UTC), all jobs: {_money_line(month, 'BATCH_MONTHLY_BUDGET_USD=')}"


def budget_line(budget: Mapping[str, float | None], *, trial: bool = False) -> str:
    """Return `budget $5.00: $4.20 spent, $0.70 reserved ...; limits.max_cost_usd: 7.25 is enough for the waiting rows`.

    The reserved money is left out if it is 0, and the last part if the limit is high enough. trial: the budget is that
    of a trial, which an option gives.
    """
    return _money_line(budget, "--max-cost-usd " if trial else "limits.max_cost_usd: ")


def _money_line(budget: Mapping[str, float | None], field: str) -> str:
    line = f"budget {money(budget['limit_usd'])}: {money(budget['spent_usd'])} spent"
    if budget["reserved_usd"]:
        line += f", {money(budget['reserved_usd'])} reserved for results not stored yet"
    limit, enough = budget["limit_usd"], budget["to_finish_usd"]
    short = limit is not None and enough is not None and enough > limit
    return f"{line}; {field}{enough:.2f} is enough for the waiting rows" if short else line


def stopped_line(
    reason: str | None,
    budget: Mapping[str, float | None] | None,
    month: Mapping[str, Any] | None = None,
    *,
    retry: bool = False,
    trial: bool = False,
) -> str | None:
    """Return why a run stopped early and how to continue; None if it did not stop early.

    retry, trial: whether the run is a retry, or that of a trial.
    """
    match reason:
        case RunReason.BUDGET:
            lines = [] if budget is None else [budget_line(budget, trial=trial)]
            lines += [] if month is None else [month_line(month)]
            spent = "; ".join(lines) or "the month's budget is spent (BATCH_MONTHLY_BUDGET_USD)"
            return f"{spent}; raise it and run the same command again to send the remaining rows"
        case RunReason.CANARY:
            return (
                "the canary did not pass, so nothing more is sent: `errors` lists rows that failed, `evaluate` wrong "
                "answers to rows with gold; correct that and run again, or send all rows with `run --no-canary`"
            )
        case RunReason.FAILURES:
            return (
                "too many of its rows failed, so nothing more is sent: `errors` says why; correct that, or raise "
                "limits.max_failed, and run again"
            )
        case RunReason.CANCELED if trial:
            return "it was canceled: requests that succeeded are collected, and the same command sends the other rows"
        case RunReason.CANCELED if retry:
            return (
                "it was canceled: requests that succeeded are collected, rows that were not sent keep their outcome, "
                "and `retry --status canceled` sends the canceled rows"
            )
        case RunReason.CANCELED:
            return (
                "it was canceled: requests that succeeded are collected, `run` sends the rows that were not sent, and "
                "`retry --status canceled` sends the canceled rows"
            )
    return None
