"""`verify` proves that a job is complete, and names what does not agree."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from sqlalchemy import Connection, delete, insert, select, update

from pipeline.errors import DatabaseError, SourceError
from pipeline.job.model import Job
from pipeline.planning.selection import Selection
from pipeline.runner.verify import SHOWN, Verified, disagreements, verify, verify_source
from pipeline.sink.table import ResultsTable
from pipeline.state.jobs import job_named
from pipeline.state.tables import batches, requests, sendings
from tests.conftest import World, texts

POSTGRESQL_IS_LONG = True


def proof(world: World, source: Job | None = None) -> Verified:
    """Verify the job as `batch-pipeline verify` does, with `--source` if a job is given."""
    with world.database.read() as conn:
        row = job_named(conn, "summaries")
    assert row is not None
    found = verify(world.database, row)
    if source is not None:
        verify_source(world.database, row, source, found)
    return found


def said(found: Verified) -> list[str]:
    """Return the problems as they are shown."""
    return [f"{of} {problem}" for of, problem in found.shown]


def answers_table(world: World) -> Any:
    with world.database.read() as conn:
        row = job_named(conn, "summaries")
    assert row is not None
    return ResultsTable.of(row).table


def spoil(world: World, statement: Callable[[Any], Any]) -> None:
    """Alter the results table or the state database without the pipeline."""
    with world.database.write() as conn:
        conn.execute(statement(answers_table(world)))


def test_a_finished_job_is_verified(world: World) -> None:
    world.emulator.add_fault(on="item", do="refuse", match="number 1 is")
    world.emulator.add_fault(on="item", do="error", error_type="invalid_request_error", match="number 3 is")
    world.run(world.job(limits={"max_batch_requests": 2}))

    found = proof(world)

    assert found.holds
    assert (found.rows, found.statuses) == (5, {"succeeded": 3, "refused": 1, "errored": 1})
    assert (found.batches, found.requests) == (3, 5)


def test_a_job_with_a_history_table_is_verified(world: World) -> None:
    world.run(world.job(sink={"history": True}))

    assert proof(world).holds


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"do": "cancel"}, id="canceled rows"),
        pytest.param({"do": "expire"}, id="expired rows"),
        pytest.param({"do": "max_tokens"}, id="truncated rows"),
        pytest.param({"do": "wrong_label"}, id="unparsable rows"),
        pytest.param({"do": "error", "error_type": "api_error"}, id="rows sent several times"),
        pytest.param({"do": "result_type", "result_type": "paused"}, id="a kind nobody knows"),
    ],
)
def test_rows_of_every_status_agree_with_the_counts_of_the_api(world: World, fault: dict[str, Any]) -> None:
    world.emulator.add_fault(on="item", match="number 1 is", **fault)
    world.rows([*texts(5), {"id": "same", "text": texts(3)[2]["text"]}, {"id": "odd", "text": ""}])
    labels = {"labels": ["a", "b"]} if fault["do"] == "wrong_label" else {}
    job = world.job(output=labels, request={"prompt": "{{ text }}"}, limits={"max_batch_requests": 3})
    world.run(job)

    found = proof(world, job)

    assert said(found) == []
    assert (found.rows, found.source_rows) == (7, 7)


def test_a_job_without_rows_is_verified(world: World) -> None:
    world.rows([])
    world.run(world.job())

    found = proof(world, world.job())

    assert (found.holds, found.rows, found.source_rows) == (True, 0, 0)


def test_rows_at_the_api_or_waiting_are_named_as_not_done(world: World) -> None:
    world.emulator.add_fault(on="create", do="status", status=429, error_type="rate_limit_error", after=1)
    world.run(world.job(limits={"max_batch_requests": 3}), detach=True)

    found = proof(world)

    assert said(found) == [
        *[f"r{i} is not done: it is in batch 1, which is in_progress" for i in range(3)],
        *[f"r{i} is not done: it is in batch 2, which is planned" for i in (3, 4)],
    ]
    assert found.waiting == 5


def test_rows_of_a_canceled_run_are_named_as_not_done(world: World) -> None:
    world.emulator.add_fault(on="create", do="status", status=429, error_type="rate_limit_error")
    world.run(world.job(), detach=True)
    with world.database.write() as conn:
        conn.execute(update(requests).values(state="pending", waits="spool", batch_id=None, n=None))
        conn.execute(update(batches).values(state="dropped"))

    found = proof(world)

    assert said(found) == [f"r{i} is not done: it waits to be sent" for i in range(5)]


def test_a_batch_left_open_though_its_rows_are_done_is_named(world: World) -> None:
    world.run(world.job())
    with world.database.write() as conn:
        conn.execute(update(batches).values(state="ended"))

    assert said(proof(world)) == ["batch 1 is not done: it is ended"]


def answer_of(table: Any, key: str) -> dict[str, Any]:
    return {**{column.name: None for column in table.c}, "id": key, "status": "succeeded"}


@pytest.mark.parametrize(
    ("statement", "problems"),
    [
        pytest.param(
            lambda table: delete(table).where(table.c.id == "r1"),
            ["r1 has the outcome succeeded and no row in table answers"],
            id="an answer that is gone",
        ),
        pytest.param(
            lambda table: update(table).where(table.c.id == "r1").values(status="errored"),
            ["r1 is errored in table answers and succeeded in the state database"],
            id="an answer that says something else",
        ),
        pytest.param(
            lambda table: insert(table).values(answer_of(table, "r9")),
            ["r9 has a row in table answers, and is not a row of the job"],
            id="an answer of nobody",
        ),
        pytest.param(
            lambda table: update(table).where(table.c.id == "r1").values(id="r9"),
            [
                "r1 has the outcome succeeded and no row in table answers",
                "r9 has a row in table answers, and is not a row of the job",
            ],
            id="an answer under another key",
        ),
        pytest.param(
            lambda _: delete(requests).where(requests.c.key == '["r1"]'),
            ["r1 has a row in table answers, and is not a row of the job"],
            id="a row that is gone",
        ),
        pytest.param(
            lambda _: update(requests).where(requests.c.key == '["r1"]').values(state="errored"),
            ["r1 is errored, and its outcome is succeeded"],
            id="a state that is not its outcome",
        ),
        pytest.param(
            lambda _: update(requests).where(requests.c.key == '["r1"]').values(outcome="refused"),
            [
                "r1 is succeeded in table answers and refused in the state database",
                "r1 is succeeded, and its outcome is refused",
            ],
            id="an outcome that is not its state",
        ),
        pytest.param(
            lambda _: update(requests).where(requests.c.key == '["r1"]').values(state="in_flight"),
            ["r1 is in flight in batch 1, which is collected"],
            id="a row that nobody will answer",
        ),
        pytest.param(
            lambda _: (
                update(requests).where(requests.c.key == '["r1"]').values(state="pending", waits="spool", batch_id=None)
            ),
            ["r1 is not done: it waits to be sent"],
            id="a row to be sent again",
        ),
        pytest.param(
            lambda _: update(batches).values(counts={"succeeded": 4, "errored": 0, "canceled": 0, "expired": 0}),
            ["batch 1 has 5 requests, and the API counts 4"],
            id="fewer requests at the API",
        ),
        pytest.param(
            lambda _: update(batches).values(counts={"succeeded": 4, "errored": 1}),
            [
                "batch 1 has 4 succeeded requests by the API's count, and 5 were collected",
                "batch 1 has 1 errored requests by the API's count, and 0 were collected",
            ],
            id="other results at the API",
        ),
        pytest.param(
            lambda _: update(batches).values(outcomes={"succeeded": 10}),
            ["batch 1 has 5 rows, and 10 outcomes were collected"],
            id="results that were counted twice",
        ),
    ],
)
def test_verify_names_what_does_not_agree(world: World, statement: Callable[[Any], Any], problems: list[str]) -> None:
    world.run(world.job())

    spoil(world, statement)

    found = proof(world)
    assert said(found) == problems
    assert found.problems == len(problems)


def test_verify_names_a_row_whose_key_is_stored_in_two_spellings(world: World) -> None:
    source = world.folder / "rows.ndjson"
    source.write_text('{"id": "17", "text": "number"}\n{"id": "b", "text": "text"}\n')
    world.run(world.job(source={"path": str(source)}))
    with world.database.write() as conn:
        copy = select(*[c for c in requests.c if c.name not in ("id", "key")]).where(requests.c.key == '["17"]')
        columns = [c.name for c in requests.c if c.name not in ("id", "key")]
        values = dict(zip(columns, conn.execute(copy).one(), strict=True))
        conn.execute(insert(requests).values(**values, id=99, key="[17]"))

    found = proof(world)

    one, other = '["17"]', "[17]"
    shares = "shares its row in table answers with"
    assert said(found) in ([f"{one} {shares} {other}"], [f"{other} {shares} {one}"])


def test_keys_of_different_types_are_told_apart(world: World) -> None:
    times = pl.Series([f"2026-11-0{day}T01:30:00.000005" for day in (1, 2, 3)]).str.to_datetime()
    frame = pl.DataFrame(
        {
            "number": [1, 2, 3],
            "share": [0.1, 1.0, -2.5],
            "day": [datetime.date(2026, 11, day) for day in (1, 2, 3)],
            "at": times.dt.replace_time_zone("Asia/Tokyo"),
            "is": [True, False, True],
            "id": ["a,b", "'\"", "ä\U0001f600"],
            "text": ["one", "two", "three"],
        }
    )
    frame.write_parquet(world.folder / "rows.parquet")
    key = ["number", "share", "day", "at", "is", "id"]
    job = world.job(source={"path": str(world.folder / "rows.parquet"), "key": key})
    world.run(job)

    holds = proof(world, job)
    spoil(world, lambda table: update(table).where(table.c.number == 2).values(share=1.5))
    spoiled = proof(world)

    assert said(holds) == []
    assert spoiled.problems == 2


def test_thousands_of_rows_are_read_in_pages_and_only_some_problems_are_shown(world: World) -> None:
    world.rows([{"id": f"r{i}", "text": "the same"} for i in range(12_000)])
    world.run(world.job())
    whole = proof(world)
    spoil(world, lambda table: delete(table).where(table.c.id.like("%99")))
    spoil(world, lambda _: delete(requests).where(requests.c.key.like('%98"]')))

    found = proof(world)

    assert (whole.holds, whole.rows) == (True, 12_000)
    assert (found.problems, len(found.shown)) == (240, SHOWN)


def test_verify_names_a_lost_batch_and_a_twin_and_succeeds(world: World) -> None:
    world.run(world.job(limits={"max_batch_requests": 3}))
    with world.database.write() as conn:
        conn.execute(update(batches).where(batches.c.id == 2).values(state="lost", problem="unknown to the API"))
        conn.execute(update(sendings).where(sendings.c.batch_id == 1).values(end="twin", problem="paid twice"))

    found = proof(world)

    assert found.holds
    assert found.lost == [(2, "unknown to the API")]
    assert found.twins == [(1, "paid twice")]


def test_rows_that_were_retried_before_their_lost_batch_was_found_are_verified(world: World) -> None:
    world.run(world.job(), detach=True)
    with world.database.write() as conn:
        give_up(conn, world)
    spoil(
        world, lambda table: insert(table).values([{**answer_of(table, f"r{i}"), "status": "lost"} for i in range(5)])
    )
    world.run(world.job(), retry=Selection(statuses=("lost",), keys=("r1",)))
    world.clock.advance(61)
    world.sweep()
    world.sweep()

    found = proof(world)

    assert said(found) == []
    assert found.statuses == {"succeeded": 5}


def give_up(conn: Connection, world: World) -> None:
    """Mark the batch as lost, as if the API had answered 404 for too long."""
    conn.execute(update(batches).values(state="lost", due_at=world.clock(), outcomes={"lost": 5}))
    lost = {"state": "lost", "outcome": "lost", "outcome_hash": requests.c.row_hash}
    conn.execute(update(requests).values(**lost, outcome_recipe=requests.c.recipe, attempts=1))


def test_verify_reports_a_missing_results_table(world: World) -> None:
    world.run(world.job())
    answers = answers_table(world)
    with world.database.write() as conn:
        answers.drop(conn)

    with pytest.raises(DatabaseError, match="table 'answers' does not exist any more"):
        proof(world)


# -- against the source ----------------------------------------------------------------------------------------------


def test_verify_checks_each_row_of_the_source(world: World) -> None:
    world.run(world.job())

    found = proof(world, world.job())

    assert (found.holds, found.source_rows) == (True, 5)


def test_rows_that_are_new_or_have_changed_at_the_source_are_named(world: World) -> None:
    world.run(world.job())
    rows = [*texts(6)]
    rows[2]["text"] = "Something else altogether."
    world.rows(rows)

    found = proof(world, world.job())

    assert said(found) == [
        "r2 has changed in the source since its outcome was stored",
        "r5 is in the source and was never planned",
    ]
    assert (found.unplanned, found.source_rows) == (2, 6)
    assert proof(world).holds


def test_a_row_that_changed_while_it_is_at_the_api_is_named(world: World) -> None:
    world.run(world.job(), detach=True)
    rows = texts(5)
    rows[2]["text"] = "Something else altogether."
    world.rows(rows)

    found = proof(world, world.job())

    assert "r2 has changed in the source since it was sent" in said(found)
    assert (found.waiting, found.unplanned) == (5, 1)


def test_rows_that_left_the_source_and_answers_of_an_older_recipe_are_verified(world: World) -> None:
    world.run(world.job())
    world.rows(texts(3))

    found = proof(world, world.job(request={"prompt": "In one word: {{ text }}"}))

    assert (found.holds, found.rows, found.source_rows) == (True, 5, 3)


def test_a_source_whose_keys_are_not_unique_proves_nothing(world: World) -> None:
    world.run(world.job())
    world.rows([*texts(5), *texts(1)])

    with pytest.raises(SourceError, match="several rows have the same key"):
        proof(world, world.job())


# -- the API's counts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "counts", "outcomes"),
    [
        pytest.param(
            6,
            {"processing": 0, "succeeded": 4, "errored": 1, "canceled": 0, "expired": 1},
            {"succeeded": 1, "truncated": 1, "refused": 1, "unparsable": 1, "errored": 1, "expired": 1},
            id="each outcome has its kind",
        ),
        pytest.param(6, {"succeeded": 6}, {"succeeded": 5, "lost": 1}, id="a result whose line could not be read"),
        pytest.param(6, {"succeeded": 6}, {"succeeded": 4}, id="rows that were sent again before it was found"),
    ],
)
def test_counts_that_agree_with_the_outcomes_give_no_problem(
    rows: int, counts: dict[str, int], outcomes: dict[str, int]
) -> None:
    assert list(disagreements(6, rows, counts, outcomes, outcomes)) == []


@pytest.mark.parametrize(
    ("answered", "agrees"),
    [
        pytest.param({"succeeded": 5, "errored": 1}, True, id="each request has the outcome of its rows"),
        pytest.param({"succeeded": 5}, True, id="the rows of one request were sent again"),
        pytest.param({"succeeded": 6}, False, id="an error taken for a success"),
        pytest.param({"succeeded": 4, "errored": 2}, False, id="a success taken for an error"),
    ],
)
def test_rows_that_share_a_request_are_compared_with_the_counts_as_one(answered: dict[str, int], agrees: bool) -> None:
    counts, outcomes = {"succeeded": 5, "errored": 1}, {"succeeded": 8, "errored": 1}

    assert (list(disagreements(6, 9, counts, outcomes, answered)) == []) is agrees


@pytest.mark.parametrize(
    ("rows", "counts", "outcomes"),
    [
        pytest.param(6, {}, {"succeeded": 6}, id="no counts at all"),
        pytest.param(6, {"succeeded": 7}, {"succeeded": 6}, id="more requests than were sent"),
        pytest.param(6, {"succeeded": 5, "processing": 0}, {"succeeded": 6}, id="fewer requests than were sent"),
        pytest.param(6, {"succeeded": 5, "errored": 1}, {"succeeded": 6}, id="an error taken for a success"),
        pytest.param(6, {"succeeded": 5, "expired": 1}, {"succeeded": 5, "canceled": 1}, id="the wrong failure"),
        pytest.param(9, {"succeeded": 6}, {"succeeded": 10}, id="more rows than share its requests"),
    ],
)
def test_counts_that_disagree_with_the_outcomes_are_a_problem(
    rows: int, counts: dict[str, int], outcomes: dict[str, int]
) -> None:
    assert list(disagreements(6, rows, counts, outcomes, outcomes)) != []


def test_verifying_reads_no_source_and_no_spool(world: World, tmp_path: Path) -> None:
    world.run(world.job())
    (tmp_path / "rows.csv").unlink()
    for file in (tmp_path / "spool" / "summaries").iterdir():
        file.unlink()

    assert proof(world).holds
