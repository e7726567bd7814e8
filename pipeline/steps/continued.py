"""What becomes of the answers of a batch that are not the end of their rows? Edge: SQL, files.

Such a row becomes pending in its next round, in the transaction that stores its answer as a turn. The turn holds the
request that was answered, too, so that the next request needs neither the source nor this batch's body. If the body is
missing, the round is sent again instead. The answer of the last round is stored with the sums over all rounds.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from pipeline.answer.continuing import Continuing, continued, out_of_rounds
from pipeline.answer.outcome import Outcome
from pipeline.answer.whole import message_text
from pipeline.driver.driver import Driver
from pipeline.driver.settle import SettledRows
from pipeline.driver.sums import Total, usage_of
from pipeline.job.model import Job
from pipeline.spool.body import BodyParams
from pipeline.state.batches import Batch
from pipeline.state.rows import BatchRow, Settled
from pipeline.state.turns import FIRST_ROUND, Earlier, NewTurn, earlier_rounds
from pipeline.states import CONTINUED, Gate


class Rounds:
    """Sorts out the answers of one batch that go on, chunk by chunk. Close it when the batch is stored."""

    def __init__(self, driver: Driver, batch: Batch, job: Job) -> None:
        self._driver, self._batch, self._continuing = driver, batch, Continuing(job)
        self._counts_calls = "tool_calls" in driver.sink.columns.output
        self._open = ExitStack()
        self._body: BodyParams | None = None
        self._is_open = False

    def close(self) -> None:
        """Close the body, if it was read."""
        self._open.close()

    def chunk(self, settled: SettledRows) -> "ChunkRounds":
        """Return what sorts out the rows of a chunk."""
        with self._driver.reading() as conn:
            earlier = earlier_rounds(conn, self._batch.id, settled.first, settled.last)
        return ChunkRounds(self, settled, earlier)

    def judged(self, outcome: Outcome, line: bytes | None, number: int) -> tuple[Outcome, str | None, int | None]:
        """Return the outcome of an answer in this round; if it goes on, its message, and how many tools it asks for."""
        if line is None or not self._continuing.may_go_on(outcome):
            return outcome, None, None
        message = message_text(line)
        calls = self._continuing.calls(outcome, message)
        if calls is None:
            return outcome, None, None
        if number >= self._continuing.most:
            return out_of_rounds(outcome, self._continuing.most), None, None
        return continued(outcome), message, calls

    def total(self, outcome: Outcome, earlier: Earlier, cost: float | None, attempts: int) -> Total:
        """Return an outcome with the sums over all rounds of its row."""
        return Total.of(outcome, cost, attempts, earlier, counts_calls=self._counts_calls)

    @property
    def next_gate(self) -> str | None:
        """Return the gate that later rounds of this batch's rows open: a canary is judged when they have outcomes."""
        return self._batch.gate if self._batch.gate == Gate.CANARY else None

    def params_at(self, positions: list[int]) -> Mapping[int, bytes]:
        """Return the params of these requests by position; {}: the body is missing. positions: ascending."""
        if not self._is_open:
            self._is_open = True
            copy = self._driver.spool.local_copy(self._batch.nonce, self._batch.digest)
            file = self._open.enter_context(copy)
            if file is not None:
                self._body = BodyParams(file)
                self._open.callback(self._body.close)
        return {} if self._body is None else self._body.at(positions)


class ChunkRounds:
    """Sorts out the rows of one chunk. turns: to store with it; ended: rows that had turns and have ended."""

    def __init__(self, rounds: Rounds, settled: SettledRows, earlier: Mapping[int, Earlier]) -> None:
        self._rounds, self._settled, self._earlier = rounds, settled, earlier
        self._waiting: list[tuple[BatchRow, str, int | None, dict[str, Any]]] = []
        self.turns: list[NewTurn] = []
        self.ended: list[int] = []

    def of(self, row: BatchRow) -> Earlier:
        """Return the earlier rounds of a row."""
        return self._earlier.get(row.id, FIRST_ROUND)

    def goes_on(self, row: BatchRow, outcome: Outcome, line: bytes | None, cost: float | None) -> Outcome:
        """Return the outcome of a row in this round. If its state is CONTINUED, the row is noted to go on.

        cost: of this answer in US dollars; None: unknown.
        """
        judged, message, calls = self._rounds.judged(outcome, line, self.of(row).round)
        if message is not None:
            paused = outcome.stop_reason == "pause_turn"
            usage = usage_of(outcome, cost, row.attempts + 1, calls or 0)
            self._waiting.append((row, message, None if paused else calls, usage))
        return judged

    def total(self, row: BatchRow, outcome: Outcome, cost: float | None, *, again: bool) -> Total:
        """Return the outcome of a row that does not go on, with the sums over all its rounds."""
        earlier = self.of(row)
        if earlier.round > 1 and not again and outcome.state != "lost":
            self.ended.append(row.id)
        return self._rounds.total(outcome, earlier, cost, row.attempts + 1)

    def finish(self) -> None:
        """Read the requests of the rows that go on; those whose request is missing are sent again in this round."""
        params = self._rounds.params_at(sorted({row.n for row, *_ in self._waiting})) if self._waiting else {}
        for row, message, calls, usage in self._waiting:
            sent = params.get(row.n)
            kind = Settled(CONTINUED, None, again=True, counts=sent is not None, goes_on=sent is not None)
            self._settled.moves[kind].append(row.id)
            if sent is not None:
                gate = self._rounds.next_gate
                self.turns.append(NewTurn(row.id, self.of(row).round, sent.decode(), message, calls, usage, gate))
