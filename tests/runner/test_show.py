"""`show` prints all that is known of one row, in every state."""

from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.job.model import Job
from pipeline.report.show import lines
from pipeline.runner import show as shows
from pipeline.runner.show import Shown
from pipeline.state.jobs import job_named
from tests.conftest import World, texts

POSTGRESQL_IS_LONG = True


def shown(world: World, job: Job, key: str) -> Shown:
    with world.database.read() as conn:
        row = job_named(conn, job.name)
    return shows.show(job, key, world.database, row, world.spool)


def content(of: Shown) -> Any:
    return of.request["messages"][-1]["content"]


def test_show_prints_values_and_request_of_a_row_that_was_never_planned(world: World) -> None:
    found = shows.show(world.job(), "r1", None, None, None)

    assert (found.key, found.place, found.source) == ("r1", "rows.csv row 2", texts(2)[1])
    assert (found.request_is, content(found)) == ("now", f"Summarize: {texts(2)[1]['text']}")
    assert (found.row, found.batch, found.answer, found.sendings) == (None, None, None, [])


def test_show_prints_the_sent_request_of_a_row_at_the_api_although_the_source_changed(world: World) -> None:
    world.run(world.job(), detach=True)
    world.rows([{**row, "text": "Another text."} for row in texts(5)])

    found = shown(world, world.job(), "r1")

    assert found.source == {"id": "r1", "text": "Another text."}
    assert (found.request_is, content(found)) == ("sent", f"Summarize: {texts(2)[1]['text']}")
    assert found.row is not None
    assert (found.row["state"], found.row["attempts"]) == ("in_flight", 0)
    assert found.batch is not None
    assert found.batch["custom_id"].endswith("-1")
    [sending] = found.sendings
    assert (sending["end"], sending["api_id"]) == ("accepted", found.batch["api_id"])
    assert str(sending["request_id"]).startswith("req_")


def test_show_prints_the_answer_and_proves_that_the_rendered_request_was_the_one_sent(
    world: World,
) -> None:
    job = world.job(sink={"history": True})
    world.run(job)

    found = shown(world, job, "r1")
    assert (found.request_is, found.earlier) == ("sent", [])
    assert found.answer is not None
    assert found.answer["status"] == "succeeded"
    assert str(found.answer["message_id"]).startswith("msg_")

    world.rows([{**row, "text": f"Changed {row['id']}"} for row in texts(5)])
    assert shown(world, job, "r1").request_is == "now"
    world.run(job)
    found = shown(world, job, "r1")
    assert (found.request_is, content(found)) == ("sent", "Summarize: Changed r1")
    assert [answer["message_id"] for answer in found.earlier] != [found.answer and found.answer["message_id"]]
    assert len(found.earlier) == 1


def test_show_prints_the_reason_why_a_row_cannot_be_sent(world: World) -> None:
    world.rows([{"id": "r0", "text": ""}])
    job = world.job(request={"prompt": "{{ text }}"})
    world.run(job)

    found = shown(world, job, "r0")

    assert found.problems == ["the row cannot be sent: the prompt is empty"]
    assert (found.request, found.answer and found.answer["status"]) == (None, "invalid")


def test_show_prints_what_the_database_knows_of_a_row_that_left_the_source(world: World) -> None:
    world.run(world.job())
    world.rows(texts(1))

    found = shown(world, world.job(), "r3")

    assert found.problems == ["--key r3: no row of the source has this key"]
    assert (found.source, found.request) == (None, None)
    assert found.answer is not None


def test_an_unknown_row_is_refused(world: World) -> None:
    world.run(world.job())

    with pytest.raises(InputError, match="--key r9: no row of the source has this key"):
        shown(world, world.job(), "r9")


@pytest.mark.parametrize("key", ["acme,17", '["acme", 17]'])
def test_a_key_of_several_columns_is_given_as_it_is_shown(world: World, key: str) -> None:
    world.rows([{"team": "acme", "id": 16, "text": "One."}, {"team": "acme", "id": 17, "text": "Two."}])
    job = world.job(source={"key": ["team", "id"], "types": {"id": "Int64"}})

    found = shows.show(job, key, None, None, None)

    assert (found.key, found.source) == ("acme,17", {"team": "acme", "id": 17, "text": "Two."})


def test_show_prints_each_value_after_its_name(world: World) -> None:
    world.rows([{"id": "r0", "text": "One\nTwo"}])
    world.run(world.job())
    found = shown(world, world.job(), "r0")

    said = list(lines(found))

    assert said[:3] == ["row      r0 (rows.csv row 1)", "    id    r0", "    text  One\n          Two"]
    assert said[3] == "state    succeeded in run 1, 1 attempt so far"
    assert found.batch is not None
    assert said[4] == f"batch    1 collected, custom_id {found.batch['custom_id']}"
    assert "request  as it was sent" in said
    assert any(line.startswith("    cost_usd            0.0000") for line in said)
    assert not any("error_type" in line for line in said)


def test_show_names_a_spool_of_another_job_and_prints_the_other_facts(world: World, tmp_path_factory: Any) -> None:
    world.run(world.job(), detach=True)
    world.spool = str(tmp_path_factory.mktemp("elsewhere"))

    found = shown(world, world.job(), "r1")

    assert found.request_is == "sent"  # rendered again, and proven by its hash
    assert found.problems == [f"{world.spool} is not the spool of job summaries on this machine"]
