"""The rows whose answers `compare` found to differ, each with both answers and its input. Edge: files, SQL."""

from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from pipeline.job.json_values import dump
from pipeline.job.model import Job
from pipeline.planning.job_source import JobSource
from pipeline.planning.trial import Trial
from pipeline.quality.pair_tally import Pair
from pipeline.request.build import RequestBuilder
from pipeline.sink.differing import Differing, DifferingRows
from pipeline.sink.sides import SideAnswer
from pipeline.sink.table import ResultsTable
from pipeline.source import identity
from pipeline.source.frames import LATE_FIELDS
from pipeline.state.jobs import TrialRecord


class DifferingWithInput:
    """Collects rows whose answers differ, then reads the source once for their input."""

    def __init__(self, job: Job, trials: Sequence[TrialRecord], sink: ResultsTable) -> None:
        """Read the headers of the source. trials: those that are compared, whose requests may use other columns.

        sink: the results table of the job. Raises JobError and SourceError as a run does.
        """
        self._source, self._sink, self._rows = JobSource(job, RequestBuilder(job)), sink, DifferingRows()
        columns = list(self._source.request_columns)
        for each in trials:
            asked = Trial.of(each).asked(job)
            columns += JobSource(asked, RequestBuilder(asked)).request_columns
        self._columns = list(dict.fromkeys(columns))

    def add(self, side: str, columns: Sequence[str], pair: Pair) -> None:
        """Add a row whose answers differ. side: the name of the other side; columns: those that are compared."""
        facts: dict[str, Any] = {
            "side": side,
            "base": _answer(columns, pair.base),
            "answer": _answer(columns, pair.other),
            "right": None if pair.right is None else dict(zip(("base", "answer"), pair.right, strict=True)),
        }
        self._rows.add(Differing(dump(list(pair.key)), orjson.dumps(facts, default=str)))

    def lines(self) -> Iterator[bytes]:
        """Yield each row as a line of JSON, in the order of the source; last those that are no longer in it."""
        needed = list(dict.fromkeys([*self._source.key, *self._columns]))
        for chunk in self._source.chunks(columns=needed):
            inputs = identity.named_rows(chunk.frame, self._columns)
            values = dict(zip(self._texts(self._source.keys(chunk).to_list()), inputs, strict=True))
            for row in self._rows.take(list(values)):
                yield _line(row, values[row.key])
        for row in self._rows.rest():
            yield _line(row, None)

    def close(self) -> None:
        """Remove the temporary file."""
        self._rows.close()

    def _texts(self, keys: list[str]) -> list[str]:
        """Return keys of the source as the results table has them, as JSON."""
        if self._sink.columns.has_plain_key:
            return keys
        return [dump(list(self._sink.key_values(key))) for key in keys]


def _answer(columns: Sequence[str], answer: SideAnswer) -> dict[str, Any]:
    return {"status": answer.status, **dict(zip(columns, answer.values, strict=True))}


def _line(row: Differing, values: dict[str, Any] | None) -> bytes:
    facts = orjson.loads(row.facts)
    shown = None if values is None else {name: value for name, value in values.items() if name != LATE_FIELDS}
    ordered = {"side": facts.pop("side"), "key": orjson.loads(row.key), "input": shown, **facts}
    return orjson.dumps(ordered, default=str) + b"\n"
