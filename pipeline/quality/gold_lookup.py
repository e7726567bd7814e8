"""Which answers are right, by the gold table? Edge: SQL."""

from collections.abc import Sequence
from typing import Any

from pipeline.job.model import Job
from pipeline.quality.compare_values import Verdict, comparer, verdict
from pipeline.quality.gold import GoldReader
from pipeline.quality.pair_tally import values_of
from pipeline.sink.gold import GoldTable
from pipeline.sink.gold_rows import gold_rows
from pipeline.sink.sides import Key, SideAnswer
from pipeline.state.database import Database
from pipeline.states import RowState

REMEMBERED = 50_000  # answers whose verdict is remembered


class GoldLookup:
    """The gold of a job, by key, to judge single answers with."""

    def __init__(
        self, database: Database, job: Job, reader: GoldReader, table: GoldTable, names: Sequence[str]
    ) -> None:
        """names: the columns of the answers that are judged, in their order; all columns with gold are among them."""
        assert job.gold is not None
        self.is_random = job.gold.random  #: whether the rows with gold are a random sample
        self._database, self._table = database, table
        self._nulls = job.gold.empty == "null"
        self._columns = [(names.index(c.name), comparer(c.kind, c.match)) for c in reader.columns]
        self._known: dict[Any, bool | None] = {}

    def of(self, keys: Sequence[Key], order: str) -> dict[Key, tuple[Any, ...]]:
        """Return the gold of the rows with these keys, for `is_right`, and perhaps of others. keys: in this order."""
        return gold_rows(self._database, self._table, keys, order)

    def is_right(self, answer: SideAnswer, gold: Sequence[Any]) -> bool | None:
        """Return whether an answer is right in all columns with gold; None if no column has gold."""
        asked = (answer.status == RowState.SUCCEEDED, answer.values, gold)
        if asked not in self._known:
            if len(self._known) > REMEMBERED:
                self._known.clear()
            self._known[asked] = self._judged(answer, gold)
        return self._known[asked]

    def _judged(self, answer: SideAnswer, gold: Sequence[Any]) -> bool | None:
        values = values_of(answer)
        found = [
            verdict(equal, values[place], wanted) is Verdict.RIGHT
            for (place, equal), wanted in zip(self._columns, gold, strict=True)
            if wanted is not None or self._nulls
        ]
        return all(found) if found else None
