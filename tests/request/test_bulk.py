"""Params that are built for many rows at once are those that are built row by row."""

from typing import Any

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.job.model import Job
from pipeline.request import bulk
from pipeline.request.build import RequestBuilder

PROMPTS = [
    "{{ body }}",
    "\n{{ body }} {{ body }}\x1f",
    "100%s of {{ number }}%%: {{ body }}",
    "{{ number }}{{ body }}{}",
]


def builder(prompt: str, **request: Any) -> RequestBuilder:
    return RequestBuilder(
        Job.model_validate(
            {
                "name": "summaries",
                "source": {"path": "rows.csv", "key": "id"},
                "request": {"model": "claude-haiku-4-5", "max_tokens": 100, "prompt": prompt, **request},
                "sink": {"table": "answers"},
            }
        )
    )


@pytest.mark.parametrize("prompt", PROMPTS)
@settings(deadline=None)  # machines differ
@given(
    rows=st.lists(st.tuples(st.text(st.characters(codec="utf-8")), st.integers(-(2**63), 2**63 - 1)), min_size=1),
)
@example(rows=[("", 1), (" \t\x1c\x85\u2003", 2), ("\u200b", 3), ('"\\\x00\x7f\u2028\U0001f600', 4)])
def test_params_built_in_bulk_are_those_built_row_by_row(prompt: str, rows: list[tuple[str, int]]) -> None:
    made = builder(prompt, system='Say "yes"\n', cache="5m")
    assert made.plain_prompt is not None
    of_places = [list(column) for column in zip(*rows, strict=True)]
    values = [of_places[place.column == "number"] for place in made.plain_prompt.places]

    in_bulk = made.bulk_params([pl.Series(each) for each in values])

    assert in_bulk == made.plain_params(values)


def test_a_row_with_a_null_is_left_to_the_general_way() -> None:
    in_bulk = builder("Sum up: {{ body }}").bulk_params([pl.Series(["a", None, "b"])])

    assert in_bulk is not None
    assert [bool(params) for params in in_bulk] == [True, False, True]


@pytest.mark.parametrize("values", [[1.5], [True], [b"x"]], ids=["a double", "a boolean", "bytes"])
def test_types_that_polars_prints_in_another_way_are_not_built_in_bulk(values: list[Any]) -> None:
    assert builder("{{ body }}").bulk_params([pl.Series(values)]) is None


def test_the_json_of_this_version_of_polars_is_exact() -> None:
    assert bulk.is_possible([pl.Series(["a"])])
