"""Pack the next round of rows that go on into batches; their requests are made from `turns`. Edge: SQL, files.

Packing is planning, see `packer`. If we die before a batch is committed, its rows still wait for their round; if we die
after it, the next driver sends the batch.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta

import orjson

from pipeline.answer.continuing import next_params
from pipeline.driver.driver import Driver
from pipeline.driver.sums import Total
from pipeline.job.model import Job
from pipeline.money.budget import Bound, attachment_tokens, is_small
from pipeline.money.prices import PriceList
from pipeline.planning.invalid import InvalidRow
from pipeline.planning.packer import Packer, Sendable, sent_hash
from pipeline.request import packing
from pipeline.state.batches import smallest_too_large
from pipeline.state.rows import Replanned, replan_rows
from pipeline.state.turns import Earlier, ReadyRow, Standing, is_round_open, ready_rows, standing, turns_of
from pipeline.states import RowState

ROWS_AT_ONCE = 500  # whose turns are read in one transaction
BYTES_AT_ONCE = 16_000_000  # of these turns


def due_gates(driver: Driver, job: Job, run_id: int) -> list[str | None]:
    """Return the gates whose rows' next round is to be packed now; None among them: rows behind no gate.

    It is packed when nothing of this round is open, or a full batch waits, or one row has waited for `rounds.wait`.
    """
    with driver.reading() as conn:
        found = standing(conn, run_id)
        ready = {gate: of_gate for gate, of_gate in found.items() if of_gate.ready}
        open_now = {gate for gate in ready if found[gate].calling or is_round_open(conn, run_id, gate)}
    return [gate for gate, of_gate in ready.items() if gate not in open_now or _is_due(of_gate, job, driver.now())]


def _is_due(waiting: Standing, job: Job, now: datetime) -> bool:
    """Return whether rows are sent although more may come into this round."""
    assert waiting.since is not None
    waited = now - waiting.since >= timedelta(seconds=job.rounds.wait_seconds)
    return waited or waiting.ready >= min(job.limits.max_batch_requests, job.limits.max_in_flight_requests)


def pack_rounds(driver: Driver, job: Job, run_id: int, recipe: str, gate: str | None) -> Iterator[int]:
    """Pack the rows of a run that can be sent in their next round, and yield the number of each batch.

    gate: only rows whose batch opens this gate of the run; None: those that open none.
    """
    driver.connect()
    with driver.reading() as conn:
        too_large = smallest_too_large(conn, run_id)
    at_most = None if too_large is None else max(1, too_large // 2)
    packer = Packer(driver, job, run_id, recipe, max_requests=at_most)
    packer.gate = gate
    listed, largest = PriceList(job.prices), packing.largest_params(job.limits.max_batch_bytes)
    after = 0
    try:
        while True:
            with driver.reading() as conn:
                rows = ready_rows(conn, run_id, gate, after=after, limit=ROWS_AT_ONCE, most_bytes=BYTES_AT_ONCE)
            if not rows:
                break
            made = [(row, _params(job, row)) for row in rows]
            fitting = [(row, params) for row, params in made if len(params) <= largest]
            if len(fitting) < len(made):
                _end_too_large(driver, run_id, recipe, [row for row, params in made if len(params) > largest])
            yield from packer.add([_sendable(row.id, params, listed) for row, params in fitting])
            after = rows[-1].id
        yield from packer.finish()
    finally:
        packer.discard()


def _params(job: Job, row: ReadyRow) -> bytes:
    """Return the request of a row's next round."""
    results = None if row.results is None else orjson.loads(row.results)
    return next_params(row.params, row.message, results, job.request.cache)


def _sendable(row: int, params: bytes, listed: PriceList) -> Sendable:
    """Return a row with its request."""
    fields = orjson.loads(params)
    tokens = attachment_tokens(fields)
    bound = Bound.of(fields, listed, attachment_tokens=tokens, small=is_small(len(params), tokens))
    return Sendable(row, sent_hash(params), params, bound, changed=True)


def _end_too_large(driver: Driver, run_id: int, recipe: str, rows: list[ReadyRow]) -> None:
    """Mark rows as invalid whose conversation has grown larger than a batch. Their answers have what they have cost."""
    with driver.planning_transaction(run_id) as conn:
        replan_rows(
            conn,
            [
                Replanned(
                    id=row.id,
                    run_id=run_id,
                    state=RowState.INVALID.value,
                    row_hash=row.row_hash,
                    recipe=recipe,
                    keep=row.keep,
                    sent_hash=None,
                    attempts=0,
                    outcome=RowState.INVALID.value,
                    outcome_hash=row.row_hash,
                    outcome_recipe=recipe,
                )
                for row in rows
            ],
        )
        sink, now = driver.sink_now(conn), driver.now()
        counts_calls = "tool_calls" in sink.columns.output
        answers = []
        for row in rows:
            reason = f"the conversation of round {row.round} is larger than limits.max_batch_bytes"
            before = Earlier(row.round - 1, [turn.usage for turn in turns_of(conn, row.id, row.round)])
            invalid = InvalidRow(row.key, row.keep, reason, attempts=0).answer(run_id, recipe, now)
            total = Total.of(invalid.outcome, 0.0, 0, before, counts_calls=counts_calls)
            fixed = invalid.fixed._replace(cost_usd=total.cost, attempts=total.attempts)
            answers.append(invalid._replace(outcome=total.outcome, fixed=fixed))
        sink.write_answers(conn, answers)
