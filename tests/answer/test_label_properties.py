"""An answer with a label of any characters is stored as declared, or the job is refused."""

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.text import folded
from tests.answer.test_outcome import answered, reader

LABELS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=2, max_size=4)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(LABELS)
def test_a_label_of_any_unicode_is_stored_as_it_was_declared_or_refused(labels: list[str]) -> None:
    try:
        read = reader(labels)
    except ValidationError:
        assert any(not folded(label) for label in labels) or len({folded(label) for label in labels}) < len(labels)
        return

    for label in labels:
        outcome = read.outcome(answered(orjson.dumps({"label": label}).decode()))
        assert (outcome.state, (outcome.values or {}).get("label")) == ("succeeded", label)
