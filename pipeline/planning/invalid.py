"""Rows that cannot be sent, and the answer that says why. Pure."""

from datetime import datetime
from typing import NamedTuple

from pipeline.answer.outcome import Outcome
from pipeline.sink.table import Answer, Fixed
from pipeline.states import RowState


class InvalidRow(NamedTuple):
    """A row that cannot be sent. reason: why; keep: its kept values; attempts: how often it was sent before."""

    key: str
    keep: str | None
    reason: str
    attempts: int

    def answer(self, run_id: int, recipe: str, now: datetime) -> Answer:
        """Return the answer that the results table gets for the row."""
        fixed = Fixed(
            recipe=recipe,
            cost_usd=0.0,
            attempts=self.attempts,
            custom_id=None,
            batch_id=None,
            run_id=run_id,
            updated_at=now,
        )
        return Answer(self.key, self.keep, Outcome(RowState.INVALID, "invalid", self.reason), fixed)
