"""Report the batches of a job, and all batches of an account, as JSON facts and as lines of text. Edge: SQL."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from pipeline.state.batch_facts import BatchFacts, Owner, batches_of_job, owners
from pipeline.state.batches import RESULTS_KEPT
from pipeline.state.database import Connection
from pipeline.states import BatchState
from pipeline.text import count, counted, duration, money, table_lines

if TYPE_CHECKING:
    from anthropic.types.messages import MessageBatch

Facts = dict[str, Any]

SOON = timedelta(days=7)  # before the API removes the results of a batch, they are said to vanish soon
OWNERS_ASKED = 1_000  # batches in one query for their owners


def batch_facts(conn: Connection, job_id: int, now: datetime) -> list[Facts]:
    """Return the job's batches for --json, in the order they were planned.

    counts: requests by the API's kind; outcomes: rows by ours; both are null until they are counted.
    """
    return [_facts(batch, now) for batch in batches_of_job(conn, job_id)]


def _facts(batch: BatchFacts, now: datetime) -> Facts:
    return {
        "batch": batch.id,
        "api_id": batch.api_id,
        "state": batch.state,
        "run_id": batch.run_id,
        "requests": batch.requests,
        "rows": batch.rows,
        "counts": batch.counts,
        "outcomes": batch.outcomes,
        "created_at": batch.created_at.isoformat(),
        "ended_at": None if batch.ended_at is None else batch.ended_at.isoformat(),
        "collected_at": None if batch.collected_at is None else batch.collected_at.isoformat(),
        "age_seconds": _age(batch.created_at, now),
        "cost_usd": batch.cost_usd,
        "problem": batch.trouble,
    }


def batch_lines(facts: Sequence[Facts]) -> Iterator[str]:
    """Yield the lines of the command `batches`. facts: see `batch_facts`."""
    if not facts:
        yield "the job has no batches"
        return
    headings = ["BATCH", "API ID", "STATE", "REQUESTS", "OUTCOMES", "CREATED", "ENDED", "AGE", "COST"]
    yield from table_lines(headings, [_row(batch) for batch in facts], right=(0, 3, 8))
    for batch in facts:
        if batch["problem"]:
            yield f"batch {batch['batch']}: {batch['problem']}"


def _row(batch: Facts) -> list[str]:
    return [
        str(batch["batch"]),
        batch["api_id"] or "-",
        batch["state"],
        f"{batch['requests']:,}",
        counted(batch["outcomes"] or {}) or "-",
        _minute(batch["created_at"]),
        _minute(batch["ended_at"]),
        duration(batch["age_seconds"]),
        money(batch["cost_usd"]),
    ]


def remote_facts(conn: Connection, listed: "Sequence[MessageBatch]", now: datetime) -> list[Facts]:
    """Return the batches that the API lists, for --json, in their order. now: by the API's clock.

    job, batch: whose batch it is by this database; null for a foreign one. collected: whether its results are stored;
    null for a foreign one. vanishes_at: when the API removes its results; null if it has not ended, or they are gone.
    """
    found: list[Facts] = []
    for start in range(0, len(listed), OWNERS_ASKED):
        some = listed[start : start + OWNERS_ASKED]
        known = owners(conn, [batch.id for batch in some])
        found += [_remote(batch, known.get(batch.id), now) for batch in some]
    return found


def _remote(batch: "MessageBatch", owner: Owner | None, now: datetime) -> Facts:
    there = batch.ended_at is not None and batch.archived_at is None
    vanishes = batch.created_at + RESULTS_KEPT if there else None
    counts = {kind: n for kind, n in batch.request_counts.model_dump().items() if isinstance(n, int)}
    return {
        "api_id": batch.id,
        "job": None if owner is None else owner.job,
        "batch": None if owner is None else owner.batch,
        "state": batch.processing_status,
        "requests": sum(counts.values()),
        "counts": counts,
        "created_at": batch.created_at.isoformat(),
        "ended_at": None if batch.ended_at is None else batch.ended_at.isoformat(),
        "age_seconds": _age(batch.created_at, now),
        "collected": None if owner is None else owner.state == BatchState.COLLECTED,
        "vanishes_at": None if vanishes is None else vanishes.isoformat(),
        "vanishes_soon": vanishes is not None and vanishes - now < SOON,
    }


def remote_lines(facts: Sequence[Facts]) -> Iterator[str]:
    """Yield the lines of the command `batches --remote`. facts: see `remote_facts`."""
    if not facts:
        yield "the API lists no batches of this account"
        return
    headings = ["API ID", "OURS", "STATE", "REQUESTS", "COUNTS", "CREATED", "ENDED", "AGE", "RESULTS"]
    yield from table_lines(headings, [_remote_row(batch) for batch in facts], right=(3,))
    ours = [batch for batch in facts if batch["job"] is not None]
    waiting = [batch for batch in ours if not batch["collected"]]
    soon = [batch for batch in facts if batch["vanishes_soon"]]
    yield (
        f"{count(len(facts), 'batch')}: {len(ours):,} of this database, {len(waiting):,} of them not collected; "
        f"{len(facts) - len(ours):,} foreign"
    )
    if soon:
        lost, removed = sum(batch["collected"] is False for batch in soon), count(len(soon), "batch")
        yield f"the API removes the results of {removed} within {SOON.days} days, {lost:,} of them not collected"


def _remote_row(batch: Facts) -> list[str]:
    vanishes = batch["vanishes_at"]
    kept = "-" if vanishes is None else f"until {vanishes[:10]}" + (" (soon)" if batch["vanishes_soon"] else "")
    owner = "foreign" if batch["job"] is None else f"{batch['job']} batch {batch['batch']}"
    return [
        batch["api_id"],
        owner + (", collected" if batch["collected"] else ""),
        batch["state"],
        f"{batch['requests']:,}",
        _nonzero(batch["counts"]),
        _minute(batch["created_at"]),
        _minute(batch["ended_at"]),
        duration(batch["age_seconds"]),
        kept,
    ]


def _nonzero(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {kind}" for kind, n in counts.items() if n) or "-"


def _age(created_at: datetime, now: datetime) -> int:
    """Return how old something is, in whole seconds; 0 if the clocks say that it is of the future."""
    return max(0, int((now - created_at).total_seconds()))


def _minute(at: str | None) -> str:
    """Return a time in ISO format as `2026-11-20 14:05`; `-` for None."""
    return "-" if at is None else at[:16].replace("T", " ")
