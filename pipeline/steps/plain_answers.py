"""Take in the usual answers of a batch in one loop: a succeeded request with one text. Pure.

Nearly all answers are such. Measured: half of the time of the general way in `collect`, which takes every other one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.answer.outcome import MALFORMED, ResultReader, without_usage
from pipeline.answer.plain import PlainMessage
from pipeline.driver.settle import SettledRows, fixed_of
from pipeline.driver.sums import TOKENS
from pipeline.money.prices import PriceList
from pipeline.request import packing
from pipeline.sink.table import Answer
from pipeline.state.batches import Batch
from pipeline.state.rows import BatchRow, Settled
from pipeline.states import RowState

_SUCCEEDED: str = RowState.SUCCEEDED.value
_HOW = Settled(_SUCCEEDED, None, again=False)
_NO_TOKENS = (0, 0, 0, 0)  # of a row that shares the request of another row


#: What is stored of a plain answer: text, values of the columns, tokens by TOKENS, and cost in US dollars. It is a mere
#: tuple, because one is made for each answer.
_Plain = tuple[PlainMessage, str | None, Mapping[str, Any] | None, tuple[int, int, int, int], float]


@dataclass(frozen=True)
class PlainAnswers:
    """What takes in the plain answers of one batch. now: when they are stored."""

    reader: ResultReader
    prices: PriceList
    batch: Batch
    now: datetime

    def take(self, rows: Sequence[BatchRow], line_of: Mapping[int, bytes], settled: SettledRows) -> list[BatchRow]:
        """Add the rows with a plain answer to `settled`; return the others, which are to be read in the general way.

        rows: in flight, by position; of those at one position, the first has the tokens and the cost of their request.
        line_of: result lines by position.
        """
        plain_of, row_of = self._plain, settled.sink.row_of
        recipe, nonce, api_id, run_id = self.batch.recipe, self.batch.nonce, self.batch.api_id, self.batch.run_id
        others: list[BatchRow] = []
        taken: list[tuple[BatchRow, _Plain]] = []
        before, plain = -1, None
        for row in rows:
            _, n, attempts, key, keep = row
            if n != before:
                before, plain = n, plain_of(line_of.get(n))
            elif plain is not None and plain[3] is not _NO_TOKENS:
                plain = (*plain[:3], _NO_TOKENS, 0.0)
            if plain is None:
                others.append(row)
                continue
            message, text, values, tokens, cost = plain
            taken.append((row, plain))
            always: tuple[Any, ...] = (text, _SUCCEEDED, None, None, message.stop_reason, message.model, recipe)
            always += (*tokens, cost, attempts + 1, packing.custom_id(nonce, n), api_id, run_id, self.now)
            settled.rows.append(row_of(key, keep, values, (*always, message.id, message.stop_sequence, None)))
        self._count(taken, settled)
        return others

    def _plain(self, line: bytes | None) -> _Plain | None:
        """Return what is stored of the answer in a line; None if it is not plain, or its price is not known."""
        if line is None:
            return None
        reader, judge = self.reader, self.reader.judge_plain
        text: str | None
        values: Mapping[str, Any] | None
        try:
            message = reader.plain_message(line)
            usage = message.usage
            asked, answered = usage.input_tokens or 0, usage.output_tokens or 0
            read, written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
            prices = None if message.model is None else self.prices.of(message.model)
            flat = None if prices is None else prices.flat_rates
            if flat is None or read or written or usage.server_tool_use or usage.inference_geo == "us":
                outcome = reader.outcome_of(message)
                text, values, cost = outcome.text, outcome.values, self.prices.cost(outcome)
                if cost is None or outcome.state != _SUCCEEDED:
                    return None
            else:
                text, values, cost = message.content[0].text, None, asked * flat[0] + answered * flat[1]
                if judge is not None:
                    judged = judge(message.content[0].text)
                    if judged is None:
                        return None
                    text, values = judged
        except MALFORMED:  # the line has more than a text, or the answer is odd
            return None
        return message, text, values, (asked, answered, read, written), round(cost, 12)  # as in the general way

    def _count(self, taken: Sequence[tuple[BatchRow, _Plain]], settled: SettledRows) -> None:
        """Add what is written beside the answers: the moves of the rows, and the sums of the batch."""
        if not taken:
            return
        settled.moves[_HOW] += [row.id for row, _ in taken]
        settled.cost_usd += sum(plain[4] for _, plain in taken)
        settled.outcomes[_SUCCEEDED] += len(taken)
        for name, used in zip(TOKENS, zip(*(plain[3] for _, plain in taken), strict=True), strict=True):
            settled.usage[name] += sum(used)
        settled.unmade = lambda: [self._answer(row, plain) for row, plain in taken]

    def _answer(self, row: BatchRow, plain: _Plain) -> Answer:
        message, _, _, tokens, cost = plain
        outcome = self.reader.outcome_of(message)
        if tokens is _NO_TOKENS:
            outcome = without_usage(outcome)
        return Answer(row.key, row.keep, outcome, fixed_of(self.batch, row, cost, row.attempts + 1, self.now))
