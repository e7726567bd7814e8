"""How `status` counts rows: by recipe, planned apart from in flight, and those that left the source."""

from typing import Any

import pytest

from pipeline.planning.selection import Selection
from pipeline.report.quote import quote_lines
from pipeline.report.status import status_facts, status_lines
from pipeline.report.verify import verify_lines
from pipeline.runner.verify import verify, verify_source
from pipeline.state import recipes
from pipeline.state.tallies import job_rows
from tests.conftest import World, texts

POSTGRESQL_IS_LONG = True


def asking(prompt: str, **request: Any) -> dict[str, Any]:
    return {"request": {"model": "m", "max_tokens": 9, "prompt": prompt, **request}, "output": {}, "vars": {}}


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (asking("a\nb\nc"), asking("a\nB\nc"), "request.prompt line 2 was 'b', is 'B'"),
        (asking("a"), asking("b"), "request.prompt was 'a', is 'b'"),
        (asking("a"), asking("a\nb"), "request.prompt line 2 was not there, is 'b'"),
        (asking("a"), asking("a", model="n"), "request.model was 'm', is 'n'"),
        (asking("a", params={"stop": ["x"]}), asking("a", params={}), "request.params.stop[0] was 'x', is not there"),
        (asking("a"), asking("a") | {"output": {"labels": ["x"]}}, "output.labels[0] was not there, is 'x'"),
        (asking("a") | {"vars": {"v": 1}}, asking("a") | {"vars": {"v": 2}}, "vars.v was 1, is 2"),
        (asking("a" * 99), asking("b"), f"request.prompt was '{'a' * 56}..., is 'b'"),
        (asking("a"), asking("a"), None),
    ],
    ids=["a line", "one line", "a line more", "model", "a param less", "output", "a var", "a long line", "the same"],
)
def test_the_first_line_that_differs_is_shown(before: dict[str, Any], now: dict[str, Any], said: str | None) -> None:
    assert recipes.first_difference(before, now) == said


def test_rows_are_counted_by_recipe_if_there_are_several_recipes(world: World) -> None:
    world.run(world.job())
    alone = answered(world)
    world.rows(texts(6))
    world.run(world.job(request={"prompt": "In one word: {{ text }}"}))

    differs = "request.prompt was 'Summarize: {{ text }}', is 'In one word: {{ text }}'"
    assert alone == []
    assert [(one.rows, one.present, one.differs) for one in answered(world)] == [(1, True, None), (5, False, differs)]


def answered(world: World) -> list[recipes.Answered]:
    with world.database.read() as conn:
        return recipes.answered(conn, world.known().id)


def test_rows_of_a_planned_batch_are_not_called_in_flight(world: World) -> None:
    world.dies_at(world.job(limits={"max_batch_requests": 2}), "submitted")

    with world.database.read() as conn:
        rows = job_rows(conn, world.known().id)

    assert rows == {"in_flight": 2, "planned": 3}


def test_rows_that_left_the_source_are_named_by_run_status_and_verify(world: World) -> None:
    world.run(world.job())
    world.rows(texts(3))

    quote = world.run(world.job()).quote
    found = verify(world.database, world.known())
    verify_source(world.database, world.known(), world.job(), found)

    assert "         2 rows of the job are no longer in its source; their answers stay" in list(quote_lines(quote))
    assert "         2 rows of the job are no longer in its source" in list(verify_lines(found))
    with world.database.read() as conn:
        said = list(status_lines(status_facts(conn, world.known(), world.clock())))
    assert f"         2 rows of the job are no longer in its source, as of {world.clock():%Y-%m-%d}" in said


@pytest.mark.parametrize("options", [{"limit": 2}, {"retry": Selection()}], ids=["of a part", "of a retry"])
def test_a_run_of_a_part_of_the_source_names_no_missing_rows(world: World, options: dict[str, Any]) -> None:
    world.run(world.job())

    assert world.run(world.job(), **options).quote.gone is None


def test_rows_of_other_vars_do_not_count_as_missing(world: World) -> None:
    world.run(world.job(vars={"day": "1"}))
    world.rows(texts(3))

    assert world.run(world.job(vars={"day": "2"})).quote.gone is None
