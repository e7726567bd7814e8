"""Requests that are made in bulk are equal, byte for byte, to those that Jinja makes row by row."""

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import RowProblem
from pipeline.job import templates
from pipeline.job.model import Job
from pipeline.money.prices import PriceList
from pipeline.planning.render import Renderer
from pipeline.request.build import RequestBuilder
from pipeline.source.identity import named_rows

TEMPLATES = [
    "{{ title }}: {{ body }}",
    "100% {{ body }} %s {{ vars.tone }}",
    "{{ row.body }}{{ row['title'] }}",
    "{{ body[:5] }} {{ title[-3:] }} {{ body[1:9:2] }}",
    "{{ title | trim }} {{ body | upper }} {{ body | lower | capitalize }}",
    "{{ title | title }} {{ body | truncate(9) }} {{ body | truncate(6, true, '…', 0) }}",
    "{{ title or 'none' }}|{{ body | default('empty', true) }}|{{ title | d('x') }}",
    "{{ (body | trim)[:3] }}{{ number }}{{ share }}{{ sure }}",
    "{{ number + 1 }}{{ body }}",
    "{% if title %}{{ title }}{% endif %}{{ body }}",
    "{{ number | upper }}",
]
IN_BULK = 8  # of these templates need no Jinja

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "title": st.none() | st.text(max_size=12),
            "body": st.text(max_size=30),
            "number": st.integers(-(2**63), 2**63 - 1),
            "share": st.floats(),
            "sure": st.booleans(),
        }
    ),
    min_size=1,
    max_size=8,
)
TYPES = {"title": pl.String, "body": pl.String, "number": pl.Int64, "share": pl.Float64, "sure": pl.Boolean}


def renderer(template: str, **source: Any) -> Renderer:
    job = Job.model_validate(
        {
            "name": "summaries",
            "source": {"path": "rows.csv", "key": "id", **source},
            "vars": {"tone": "50% calm"},
            "request": {"model": "claude-haiku-4-5", "max_tokens": 100, "prompt": template},
            "sink": {"table": "answers"},
        }
    )
    return Renderer(job, RequestBuilder(job), PriceList({}))


def one_by_one(made: Renderer, row: dict[str, Any]) -> bytes:
    """Return the params of one row as `built` makes them; empty if the row cannot be sent."""
    try:
        return made.built(row, None).params  # type: ignore[arg-type]  # there are no attachments
    except RowProblem:
        return b""


@pytest.mark.parametrize("nulls", ["invalid", "empty"])
@pytest.mark.parametrize("template", TEMPLATES)
@settings(deadline=None)  # machines differ
@given(rows=ROWS)
def test_requests_made_in_bulk_are_those_that_are_made_row_by_row(
    template: str, nulls: str, rows: list[dict[str, Any]]
) -> None:
    made = renderer(template, nulls=nulls)
    frame = pl.DataFrame(rows, schema=TYPES)

    in_bulk = made.plain(frame)

    assert len(in_bulk) == len(rows)
    for params, row in zip(in_bulk, named_rows(frame, list(TYPES)), strict=True):
        assert not params or params == one_by_one(made, row)
    if template in TEMPLATES[:IN_BULK]:  # only rows with a null, and those that cannot be sent, are left out
        for params, row in zip(in_bulk, named_rows(frame, list(TYPES)), strict=True):
            assert None in row.values() or params == one_by_one(made, row)


def test_templates_of_columns_slices_and_common_filters_need_no_jinja() -> None:
    plain = [templates.plain(template, {"tone": "calm"}) is not None for template in TEMPLATES]

    assert plain == [True] * IN_BULK + [False, False, True]


def test_a_request_that_is_too_long_for_certain_limits_is_left_to_the_general_way() -> None:
    frame = pl.DataFrame({"body": ["short", "x" * 200_000, "   "]})

    in_bulk = renderer("{{ body }}").plain(frame)

    assert [bool(params) for params in in_bulk] == [True, False, False]


@pytest.mark.parametrize("template", ["{{ body | truncate(1) }}", "{{ number | upper }}"])
def test_a_filter_that_fails_is_left_to_jinja_which_says_why(template: str) -> None:
    frame = pl.DataFrame({"body": ["a long text"], "number": [1]})

    assert renderer(template).plain(frame) == [b""]
