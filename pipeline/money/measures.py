"""Measures of tokens and time that prices, budgets and reports share. Pure.

This module imports nothing heavy: `status` reads it.
"""

from datetime import UTC, datetime

CERTAIN_TOKENS_PER_BYTE = 1.0  # no tokenizer makes more than one token of one byte


def month_of(now: datetime) -> datetime:
    """Return the start of the calendar month of `now`, in UTC. BATCH_MONTHLY_BUDGET_USD counts from this time."""
    return now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def read_rate(usage: dict[str, int]) -> float | None:
    """Return the share of cached tokens that was read, not written; None if the requests cached no tokens."""
    read, written = usage.get("cache_read_tokens", 0), usage.get("cache_write_tokens", 0)
    return read / (read + written) if read + written else None


def cached_share(usage: dict[str, int]) -> float:
    """Return the share of all input tokens that was read from the prompt cache or written to it; 0 if none was."""
    cached = usage.get("cache_read_tokens", 0) + usage.get("cache_write_tokens", 0)
    return cached / (usage.get("input_tokens", 0) + cached) if cached else 0.0
