"""Plain answers are taken in by one loop as the general way takes in all answers."""

import contextlib
import datetime
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.answer.outcome import ResultReader, output_columns
from pipeline.driver.settle import SettledRows
from pipeline.money.prices import PriceList
from pipeline.sink.columns import ResultColumns
from pipeline.sink.table import ResultsTable
from pipeline.state.rows import BatchRow
from pipeline.steps import collect
from tests.support.result_lines import LINE, OUTPUTS, job_of, result_lines

KEY = {"id": "text", "part": "integer"}
#: rows at five positions, of which the fourth has three rows
ROWS = [
    BatchRow(100 + i, n, i - 1, f'["r{i}",{i}]', None if i == 0 else f'{{"noted":"2026-11-0{i}"}}')
    for i, n in enumerate((0, 1, 2, 3, 3, 3, 4))
]
BATCH: Any = SimpleNamespace(id=1, recipe="abc", nonce="n" * 26, api_id="msgbatch_1", run_id=7, rows=7, requests=5)


def taken(monkeypatch: pytest.MonkeyPatch, lines: list[bytes], output: str, *, plain: bool, lose: bool) -> Any:
    """Take in lines, one for each of the first positions, and return the chunk. plain: whether the loop is used."""
    job = job_of(output)
    columns = ResultColumns(key=KEY, keep={"noted": "date"}, output=output_columns(job), history=False)
    driver: Any = SimpleNamespace(
        sink=ResultsTable("answers", columns),
        now=lambda: datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC),
        reading=contextlib.nullcontext,
    )
    monkeypatch.setattr(collect, "batch_rows", lambda *_: ROWS)
    chunk = collect._Chunk(
        driver=driver, batch=BATCH, reader=ResultReader(job), prices=PriceList(), first=0, last=4, lose=lose
    )
    chunk._takes_plain = plain and chunk._takes_plain
    chunk.read(dict(enumerate(lines)))
    return chunk


def seen(chunk: Any) -> dict[str, Any]:
    """Return all that a chunk writes and tells."""
    settled: SettledRows = chunk._settled
    return {
        "rows": sorted(settled.rows),
        "moves": sorted((str(kind), sorted(rows)) for kind, rows in settled.moves.items()),
        "left": settled.left,
        "sums": [sorted((+counts).items()) for counts in (settled.outcomes, settled.usage)],
        "told": (chunk.missing, chunk.unpriced, chunk.failed),
    }


@given(lines=st.lists(result_lines(), max_size=5), output=st.sampled_from(sorted(OUTPUTS)), lose=st.booleans())
@example(lines=[orjson.dumps(LINE)] * 5, output="text", lose=False)
def test_the_loop_writes_what_the_general_way_writes(lines: list[bytes], output: str, lose: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        quick = taken(patch, lines, output, plain=True, lose=lose)
        general = taken(patch, lines, output, plain=False, lose=lose)

    assert repr(seen(quick)) == repr(seen(general))
    settled = quick._settled
    assert settled.cost_usd == pytest.approx(general._settled.cost_usd, rel=1e-12)
    again = [settled.sink.row(*answer) for answer in (*settled.answers, *settled.unmade())]
    assert repr(sorted(again)) == repr(sorted(settled.rows))  # if the table has got other columns meanwhile


def test_usual_answers_are_taken_in_by_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    settled = taken(monkeypatch, [orjson.dumps(LINE)] * 5, "text", plain=True, lose=False)._settled

    assert len(settled.unmade()) == 7
    assert settled.answers == []
    assert settled.usage["input_tokens"] == 5 * 312  # rows that share a request have it once
