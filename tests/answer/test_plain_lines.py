"""The quick reading of a plain result line, and the general reading of all lines, give equal outcomes."""

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.answer.outcome import ResultReader
from pipeline.answer.plain import plain_message
from tests.support.result_lines import LINE, OUTPUTS, job_of, result_lines

READERS = {output: ResultReader(job_of(output)) for output in OUTPUTS}


@given(line=result_lines(), output=st.sampled_from(sorted(OUTPUTS)))
@example(line=orjson.dumps(LINE), output="text")
def test_a_line_has_the_same_outcome_by_both_readings(line: bytes, output: str) -> None:
    quick, general = READERS[output].read(line), READERS[output].read_any(line)

    assert repr(quick) == repr(general)


@pytest.mark.parametrize("cut", range(0, 700, 7))
def test_a_line_that_was_cut_has_the_same_outcome_by_both_readings(cut: int) -> None:
    line = orjson.dumps(LINE)[:cut]

    assert READERS["text"].read(line) == READERS["text"].read_any(line)


def test_a_usual_line_is_read_the_quick_way() -> None:
    message = plain_message(orjson.dumps(LINE))

    assert message.content[0].text == "good"
    assert message.usage.cache_creation is not None
    assert READERS["text"].read(orjson.dumps(LINE)) == READERS["text"].outcome(LINE)
