"""Write the outcomes of rows of a batch: states, answers and the batch's sums, in one transaction. Edge: SQL."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipeline.answer.outcome import Outcome
from pipeline.driver.driver import Driver
from pipeline.driver.sums import Total
from pipeline.request import packing
from pipeline.sink.table import Answer, Fixed, ResultsTable
from pipeline.state.batches import Batch
from pipeline.state.database import Connection
from pipeline.state.rows import BatchRow, Settled, add_to_batch, batch_rows, mark_outcomes
from pipeline.state.turns import FIRST_ROUND, earlier_rounds


@dataclass
class SettledRows:
    """The outcomes of the rows of a batch that are in flight at positions `first` to `last`.

    sink: the results table whose columns `rows` have; moves: the rows by how they end; answers: the answers; rows: the
    answers as rows of `sink`; unmade: makes the answers of the further `rows` that are not in `answers`; left: the rows
    that stay in flight; outcomes: number of rows by outcome; usage: tokens by class.
    """

    first: int
    last: int
    sink: ResultsTable
    moves: defaultdict[Settled, list[int]] = field(default_factory=lambda: defaultdict(list))
    answers: list[Answer] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    unmade: Callable[[], list[Answer]] = list
    outcomes: Counter[str] = field(default_factory=Counter)
    usage: Counter[str] = field(default_factory=Counter)
    cost_usd: float = 0.0

    def add(self, row: BatchRow, outcome: Outcome, fixed: Fixed, *, again: bool) -> None:
        """Add a row with its outcome. again: whether the row is sent again."""
        self.moves[Settled(outcome.state, outcome.error_type, again)].append(row.id)
        self.answers.append(Answer(row.key, row.keep, outcome, fixed))
        self.rows.append(self.sink.row(row.key, row.keep, outcome, fixed))


def fixed_of(
    batch: Batch, row: BatchRow, cost: float | None, attempts: int, now: datetime, *, sent: bool = True
) -> Fixed:
    """Return what the pipeline itself knows about the answer of a row. cost: in US dollars; None: unknown.

    attempts: how often the row was sent; sent: whether the API may have received its request in this batch.
    """
    return Fixed(
        recipe=batch.recipe,
        cost_usd=cost,
        attempts=attempts,
        custom_id=packing.custom_id(batch.nonce, row.n) if sent else None,
        batch_id=batch.api_id if sent else None,
        run_id=batch.run_id,
        updated_at=now,
    )


def settle_rows(driver: Driver, conn: Connection, batch: Batch, settled: SettledRows, *, counted: bool = True) -> None:
    """Write the states and answers of these rows.

    counted: whether their outcomes, tokens and cost are added to the sums of the batch. Raises LostRace unless
    `settled` has all rows that are in flight at its positions.
    """
    mark_outcomes(conn, batch, settled.first, settled.last, settled.moves, left=settled.left)
    sink = driver.sink_now(conn)  # after the states: everything that writes answers locks in this order
    if sink is settled.sink:
        sink.write(conn, settled.rows)
    else:  # another driver has added columns to the table since
        sink.write_answers(conn, [*settled.answers, *settled.unmade()])
    if counted:
        add_to_batch(conn, batch, settled.outcomes, settled.usage, settled.cost_usd)


def settle_alike(
    driver: Driver, conn: Connection, batch: Batch, outcome: Outcome, *, first: int, last: int, sent: bool
) -> None:
    """Give all rows of a batch that are in flight at these positions the same outcome; none of them is sent again.

    sent: whether the API may have received their requests. If so, their cost is not known, and the outcomes are added
    to the sums of the batch; if not, they cost nothing, and the batch is about to be dropped.
    """
    settled, now = SettledRows(first, last, driver.sink), driver.now()
    columns = driver.sink.columns.output
    earlier = earlier_rounds(conn, batch.id, first, last)
    for row in batch_rows(conn, batch.id, first, last):
        total = Total(outcome, None if sent else 0.0, row.attempts + 1)
        if earlier or "rounds" in columns:
            total = Total.of(*total, earlier.get(row.id, FIRST_ROUND), counts_calls="tool_calls" in columns)
        fixed = fixed_of(batch, row, total.cost, total.attempts, now, sent=sent)
        settled.add(row, total.outcome, fixed, again=False)
    settled.outcomes[outcome.state] = len(settled.rows)
    settle_rows(driver, conn, batch, settled, counted=sent)
