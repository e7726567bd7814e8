"""Every results table has the API's ids of answers, also a table that an older version created."""

import re
from typing import Any

import httpx2
import pytest
from sqlalchemy import inspect, select, update

from pipeline.errors import DatabaseError, JobError
from pipeline.report.errors import error_facts, error_lines
from pipeline.runner.verify import verify
from pipeline.sink.columns import IDS, ResultColumns
from pipeline.sink.table import ResultsTable
from pipeline.state.jobs import job_named
from pipeline.state.tables import jobs, requests
from tests.conftest import World, event_line, texts

POSTGRESQL_IS_LONG = True

NAMES = [name for name, _ in IDS]


class WithRequestIds(httpx2.BaseTransport):
    """Gives each request that failed an id, in the order of the results."""

    def __init__(self, world: World) -> None:
        self._inner = world.emulator.transport()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self._inner.handle_request(request)
        if not request.url.path.endswith("/results"):
            return response
        numbers = iter(range(1, 1000))
        found = re.sub(rb'"request_id":null', lambda _: b'"request_id":"req_%d"' % next(numbers), response.read())
        return httpx2.Response(200, content=found)


def columns(world: World, table: str = "answers") -> list[str]:
    with world.database.read() as conn:
        return [str(c["name"]) for c in inspect(conn).get_columns(table, schema=world.database.default_schema)]


def sink(world: World) -> ResultsTable:
    with world.database.read() as conn:
        row = job_named(conn, "summaries")
    assert row is not None
    return ResultsTable.of(row)


def make_older(world: World, **renamed: str) -> None:
    """Let the tables be as an older version made them: without the ids. renamed: what that version called columns."""
    present = sink(world)
    with world.database.write() as conn:
        for table in (present.table, present.history):
            for name in NAMES if table is not None else ():
                conn.exec_driver_sql(f"ALTER TABLE {table} DROP COLUMN {name}")
            for name, before in renamed.items() if table is not None else ():
                conn.exec_driver_sql(f"ALTER TABLE {table} RENAME COLUMN {name} TO {before}")
        stored: dict[str, Any] = conn.execute(select(jobs.c.columns)).scalar_one()
        stored = {name: value for name, value in stored.items() if name != "ids"}
        for kind in ("key", "keep", "output"):
            stored[kind] = {renamed.get(name, name): value for name, value in stored[kind].items()}
        conn.execute(update(jobs).values(columns=stored))


def test_every_answer_has_the_id_of_its_message_and_rows_that_share_a_request_share_it(world: World) -> None:
    world.rows([*texts(2), {**texts(2)[0], "id": "twin"}])

    world.run(world.job())

    found = world.answers()
    ids = {key: row["message_id"] for key, row in found.items()}
    assert all(str(value).startswith("msg_") for value in ids.values())
    assert ids["twin"] == ids["r0"] != ids["r1"]
    assert {row["request_id"] for row in found.values()} == {row["stop_sequence"] for row in found.values()} == {None}


def test_a_failed_row_has_the_id_of_its_request_which_errors_and_the_log_name(world: World) -> None:
    world.emulator.add_fault(on="item", do="error", error_type="invalid_request_error", message="too long")

    world.rows(texts(2))
    run_through(world, WithRequestIds(world))

    assert sorted(str(row["request_id"]) for row in world.answers().values()) == ["req_1", "req_2"]
    with world.database.read() as conn:
        row = job_named(conn, "summaries")
        assert row is not None
        [cause] = error_facts(conn, row, ResultsTable.of(row), "job.yaml")  # one cause, for all that differs is the id
    assert (cause["error_message"], cause["rows"]) == ("too long", 2)
    assert sorted(str(ids["request_id"]) for ids in cause["ids"]) == ["req_1", "req_2"]
    assert re.search(r"for example r\d \(req_\d\), r\d \(req_\d\)", "\n".join(error_lines([cause])))
    [collected] = world.told("collected")
    assert [failed["request_id"] for failed in collected["failed"]] != []
    assert re.search(r"; failed: req_\d \(invalid_request_error\)", event_line("collected", collected))


def run_through(world: World, transport: httpx2.BaseTransport) -> None:
    from pipeline.runner.options import Options
    from pipeline.runner.run import run

    run(world.job(), world.where(transport), Options())


def test_the_stop_sequence_of_an_answer_is_stored(world: World) -> None:
    world.rows(texts(1))

    world.run(world.job(request={"params": {"stop_sequences": ["about"]}}))

    [row] = world.answers().values()
    assert (row["stop_reason"], row["stop_sequence"]) == ("stop_sequence", "about")


# -- tables of older versions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["run", "sweep"])
def test_a_run_continues_after_an_upgrade_and_its_answers_have_ids(world: World, how: str) -> None:
    world.rows(texts(2))
    job = world.job(sink={"history": True})
    world.run(job)
    world.rows(texts(3))
    world.run(job, detach=True)
    make_older(world)
    assert set(NAMES).isdisjoint(columns(world))

    world.clock.advance(100)
    if how == "run":
        world.run(job)
    else:
        world.sweep()

    assert columns(world)[-3:] == NAMES
    assert set(NAMES) <= set(columns(world, "answers_history"))
    assert sink(world).columns.ids
    ids = {key: row["message_id"] for key, row in world.answers().items()}
    assert (ids["r0"], ids["r2"] is None) == (None, False)
    with world.database.read() as conn:
        known = job_named(conn, "summaries")
    assert known is not None
    assert verify(world.database, known).holds
    world.run(job, refresh=True)


def test_a_table_of_an_older_version_is_read_unchanged_before_its_next_run(world: World) -> None:
    world.rows(texts(1))
    world.emulator.add_fault(on="item", do="error", error_type="invalid_request_error")
    world.run(world.job())
    make_older(world)

    [row] = world.answers().values()
    with world.database.read() as conn:
        known = job_named(conn, "summaries")
        assert known is not None
        [cause] = error_facts(conn, known, ResultsTable.of(known), "job.yaml")

    assert set(NAMES).isdisjoint(row)
    assert "    for example r0" in list(error_lines([cause]))


KEPT = {"source": {"keep": [{"text": "message_id"}]}}
RENAMED = {"source": {"keep": [{"text": "source_message_id"}]}}


def test_a_kept_column_with_the_name_of_an_id_is_renamed_with_its_values(world: World) -> None:
    world.rows(texts(1))
    world.run(world.job(**RENAMED, sink={"history": True}))
    make_older(world, source_message_id="message_id")

    with pytest.raises(JobError, match=r"column 'message_id' clashes .* keep it under another name: \{text: source_"):
        world.run(world.job(**KEPT, sink={"history": True}))
    assert world.answers()["r0"]["message_id"] == texts(1)[0]["text"]
    world.rows(texts(2))
    world.run(world.job(**RENAMED, sink={"history": True}))

    found = world.answers()
    assert [found[key]["source_message_id"] for key in ("r0", "r1")] == [row["text"] for row in texts(2)]
    assert (found["r0"]["message_id"], found["r1"]["message_id"] is None) == (None, False)
    assert "source_message_id" in columns(world, "answers_history")


def test_a_column_is_not_renamed_while_batches_with_answers_for_it_are_open(world: World) -> None:
    world.rows(texts(1))
    world.run(world.job(**RENAMED), detach=True)
    make_older(world, source_message_id="message_id")
    with world.database.write() as conn:
        conn.execute(update(requests).values(keep='{"message_id":"Kept."}'))

    with pytest.raises(
        DatabaseError, match=r"'message_id' .* is to be renamed .* 1 of the job's batches are open: finish them"
    ):
        world.run(world.job(**RENAMED))
    world.clock.advance(100)
    world.sweep()

    [row] = world.answers().values()  # collected without the ids, into the column that the table had
    assert (row["status"], row["message_id"]) == ("succeeded", "Kept.")
    world.run(world.job(**RENAMED))
    assert world.answers()["r0"]["source_message_id"] is not None


def test_a_column_with_the_name_of_an_id_that_another_program_added_is_named_and_left_unchanged(world: World) -> None:
    world.rows(texts(1))
    world.run(world.job())
    world.rows(texts(2))
    world.run(world.job(), detach=True)
    make_older(world)
    table = sink(world).table
    with world.database.write() as conn:
        conn.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN request_id TEXT")

    with pytest.raises(
        DatabaseError, match=r"has a column 'request_id' that this job did not create; .* rename that col"
    ):
        world.run(world.job())
    world.clock.advance(100)
    world.sweep()

    assert world.statuses() == {"r0": "succeeded", "r1": "succeeded"}
    assert not sink(world).columns.ids


def test_a_key_with_the_name_of_an_id_is_refused_in_a_new_table_and_an_older_table_stays_without_ids(
    world: World,
) -> None:
    asked = world.job(source={"key": "message_id"})
    named = ResultColumns.of(asked, {"message_id": "text"})

    with pytest.raises(JobError, match=r"source.key: column 'message_id' clashes .* rename the column in the source"):
        named.added_to(None)
    older = ResultColumns({"message_id": "text"}, {}, {})
    assert named.added_to(older) == older


@pytest.mark.parametrize("name", [*NAMES, "Message_ID"])
def test_a_property_with_the_name_of_an_id_is_refused_with_another_name_for_it(world: World, name: str) -> None:
    described = {"type": "object", "properties": {name: {"type": "string"}}, "required": [name]}
    asked = world.job(output={"schema": {**described, "additionalProperties": False}})

    with pytest.raises(JobError, match=rf"output.columns: \{{{name}: answer_{name}\}}"):
        ResultColumns.of(asked, {"id": "text"})


def test_a_cost_has_no_more_digits_than_a_price(world: World) -> None:
    world.rows(texts(40))

    ended = world.run(world.job())

    costs = [row["cost_usd"] for row in world.answers().values()]
    assert all(cost == round(cost, 12) for cost in [*costs, ended.cost_usd])
    assert sum(costs) == pytest.approx(ended.cost_usd)
