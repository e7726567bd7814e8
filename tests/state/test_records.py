"""What leaves the state database are records: typed, frozen, with the fields of their tables."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from sqlalchemy import Table, update

from pipeline.driver.job_of_run import stored_job
from pipeline.errors import DatabaseError
from pipeline.job.endpoint import Endpoint
from pipeline.report.errors import error_facts
from pipeline.sink.table import ResultsTable
from pipeline.state.batch_facts import BatchFacts
from pipeline.state.batches import Batch, SendingRecord
from pipeline.state.jobs import JobRecord
from pipeline.state.row_facts import TracedRow
from pipeline.state.rows import KnownRow, Replanned
from pipeline.state.runs import RunRecord, get_run, last_run
from pipeline.state.tables import batches, jobs, requests, runs, sendings
from tests.conftest import World, texts

POSTGRESQL_IS_LONG = True


@pytest.mark.parametrize(
    ("record", "table"),
    [
        pytest.param(JobRecord, jobs, id="a job"),
        pytest.param(RunRecord, runs, id="a run"),
        pytest.param(SendingRecord, sendings, id="a sending"),
    ],
)
def test_a_record_has_all_columns_of_its_table(record: Any, table: Table) -> None:
    assert list(record.__dataclass_fields__) == [column for column in record.__dataclass_fields__ if column in table.c]
    assert set(record.__dataclass_fields__) == set(table.c.keys())


@pytest.mark.parametrize(
    ("fields", "table"),
    [
        pytest.param(tuple(Batch.__dataclass_fields__), batches, id="Batch"),
        pytest.param(BatchFacts._fields, batches, id="BatchFacts"),
        pytest.param(KnownRow._fields, requests, id="KnownRow"),
        pytest.param(Replanned._fields, requests, id="Replanned"),
        pytest.param(TracedRow._fields, requests, id="TracedRow"),
    ],
)
def test_each_field_of_a_record_is_a_column_of_its_table(fields: tuple[str, ...], table: Table) -> None:
    assert set(fields) <= set(table.c.keys())


def test_a_record_cannot_be_changed(world: World) -> None:
    world.rows(texts(1))
    world.run(world.job())

    with pytest.raises(FrozenInstanceError):
        world.known().gone = 3  # type: ignore[misc]


def test_a_run_record_says_what_was_declared(world: World) -> None:
    world.rows(texts(2))
    declared = world.job(limits={"max_cost_usd": 5, "max_failed": 0.5}, privacy={"delete_remote": True})
    world.run(declared)

    with world.database.read() as conn:
        run = get_run(conn, 1)

    assert (run.max_cost_usd, run.max_failed) == (5, 0.5)
    assert run.deletes_remote
    assert (run.endpoint, run.model) == (Endpoint(), declared.request.model)
    assert run.max_tokens == declared.request.max_tokens
    assert stored_job(run) == declared


def test_a_run_of_a_version_that_stored_less_has_the_defaults(world: World) -> None:
    world.rows(texts(1))
    world.run(world.job())
    with world.database.write() as conn:
        conn.execute(update(runs).values(job={"name": "summaries", "limits": None}))

    with world.database.read() as conn:
        run = get_run(conn, 1)

    assert (run.max_cost_usd, run.max_failed, run.deletes_remote) == (None, 0.0, False)
    assert (run.endpoint, run.model, run.max_tokens) == (Endpoint(), "", None)
    with pytest.raises(DatabaseError, match="run 1 was stored with a job that this version cannot read"):
        stored_job(run)


def test_a_template_for_max_tokens_is_no_number_of_a_run(world: World) -> None:
    world.rows(texts(1))
    world.run(world.job())

    with world.database.read() as conn:
        run = last_run(conn, world.known().id)

    assert run is not None
    by_template = {**run.job, "request": {**run.job["request"], "max_tokens": "{{ tokens }}"}}
    assert replace(run, job=by_template).max_tokens is None


def test_truncated_answers_are_mended_in_the_job_file_where_a_template_gives_max_tokens(world: World) -> None:
    rows = [{"id": f"r{i}", "text": "Go on and on and on.", "tokens": 1} for i in range(2)]
    world.rows(rows)
    world.run(world.job(request={"max_tokens": "{{ tokens }}"}))

    with world.database.read() as conn:
        [cause] = error_facts(conn, world.known(), ResultsTable.of(world.known()), "job.yaml")

    assert (cause["status"], cause["rows"]) == ("truncated", 2)
    assert cause["remedy"] == "raise request.max_tokens in the job file; then"
    assert cause["command"] == ["run", "job.yaml"]
