"""Which rows with gold are the canary of a run? Choose them, and pack them before all others. Edge: files, SQL.

They are chosen after pass one, before the run begins: too few of them are an error, and nothing is written then. Their
batch is committed before pass two looks at any other row, which then finds them in flight. If we die before that
commit, the next command chooses the same rows; if we die after it, the run keeps its canary.
"""

import heapq
from collections.abc import Iterator, Sequence
from itertools import islice

import polars as pl

from pipeline.driver.driver import Driver
from pipeline.errors import InputError
from pipeline.job.canary import Canary
from pipeline.planning.known_rows import KnownRows
from pipeline.planning.packer import First, Packer
from pipeline.planning.plan import Plan
from pipeline.planning.verdict import SENT
from pipeline.planning.write import Writer
from pipeline.quality.gold import RowsWithGold
from pipeline.quality.judges import rows_needed
from pipeline.sink.table import ResultsTable
from pipeline.source import identity
from pipeline.source.rows import Chunk
from pipeline.states import Gate


def choose(plan: Plan, known_rows: KnownRows, gold: RowsWithGold, sink: ResultsTable, *, failed: bool) -> list[str]:
    """Return the keys of the rows with gold that are the canary of a run, at most canary.rows; [] if none is sent.

    gold: of the job; by reviews, only of rows that stand for all. failed: whether a canary of this recipe has failed.
    Raises InputError if there are fewer rows than could ever pass, or if the canary of this recipe has failed and no
    other row with gold is sent.
    """
    canary = plan.job.canary
    assert isinstance(canary, Canary)
    assert canary.min_accuracy is not None
    keys = _sendable(plan, known_rows, gold, sink)
    chosen = (
        heapq.nsmallest(canary.rows, keys, key=identity.key_rank) if canary.sample else list(islice(keys, canary.rows))
    )
    if not chosen and failed:
        raise InputError(
            "canary.min_accuracy: the canary of this recipe did not pass, and no other row with gold is to be sent; "
            "change request or output, give more gold, or send all rows with `run --no-canary`"
        )
    needed = rows_needed(canary.min_accuracy, canary.judge)
    if 0 < len(chosen) < needed:
        raise InputError(
            f"canary.min_accuracy: {len(chosen):,} rows with gold are to be sent, and fewer than {needed:,} can never "
            f"show {canary.min_accuracy:.1%}, even if all are right; give more gold, or lower canary.min_accuracy"
        )
    return chosen


def _sendable(plan: Plan, known_rows: KnownRows, gold: RowsWithGold, sink: ResultsTable) -> Iterator[str]:
    """Yield the keys of the rows that have gold and are to be sent, in the order of the source."""
    judge = plan.judge(known_rows, hashes_all=False)
    columns = [*plan.source.columns, *gold.source_columns]
    for chunk in plan.source.chunks(columns=columns):
        keys = plan.source.keys(chunk)
        judged = judge.chunk(chunk, keys)
        sent = [(i, row.row_hash) for i, row in zip(judged.places, judged.rows, strict=True) if row.verdict in SENT]
        having = gold.having(chunk, keys, sink)
        yield from (keys[i] for i, row_hash in sent if having[i] and gold.holds_for(keys[i], row_hash, sink))


def pack(plan: Plan, driver: Driver, run_id: int, known_rows: KnownRows, keys: Sequence[str]) -> Iterator[int]:
    """Render, pack and spool the rows with these keys as the canary of a run, and yield the number of each batch."""
    packer = Packer(driver, plan.job, run_id, plan.recipe, first=First(len(keys), Gate.CANARY))
    packer.gate = Gate.CANARY  # if they need several batches, for their size
    plan.begin_to_render(driver, run_id)
    mover = plan.mover(driver, run_id, known_rows)
    writer = Writer(driver, run_id, plan.recipe, packer, None)
    left, wanted = len(keys), pl.Series(keys, dtype=pl.String).implode()
    try:
        for chunk in plan.source.chunks_in_bounds():
            driver.stop.check()
            places = plan.source.keys(chunk).is_in(wanted).arg_true()
            if places.len():
                some = Chunk(chunk.input, chunk.frame[places], [chunk.numbers[i] for i in places])
                yield from writer.write(mover.moves(some))
                left -= places.len()
            if not left:
                break
        yield from packer.finish()
    finally:
        packer.discard()
