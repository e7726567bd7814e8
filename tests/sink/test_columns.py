"""Output columns that a job gets later are added to its tables, also while other drivers work or die."""

import threading
from typing import Any

import pytest
from sqlalchemy import inspect

from pipeline.errors import DatabaseError, JobError
from pipeline.job.model import Job
from pipeline.runner import register
from pipeline.runner import run as runner
from pipeline.sink.columns import ResultColumns
from pipeline.state.jobs import job_named
from tests.conftest import World, texts

POSTGRESQL_IS_LONG = True


def schema(*names: str, kind: str = "string") -> dict[str, Any]:
    """An output with these properties."""
    properties = {name: {"type": kind} for name in names}
    described = {"type": "object", "properties": properties, "required": list(names), "additionalProperties": False}
    return {"schema": described}


def noted(n: int, first: int = 0) -> list[dict[str, object]]:
    return [{**row, "team": f"team {i}", "size": i} for i, row in enumerate(texts(first + n))][first:]


def job(world: World, *keep: str, **changes: Any) -> Job:
    return world.job(source={"keep": list(keep)}, sink={"history": True}, **changes)


def columns(world: World, table: str = "answers") -> list[str]:
    with world.database.read() as conn:
        return [str(c["name"]) for c in inspect(conn).get_columns(table, schema=world.database.default_schema)]


def recorded(world: World) -> dict[str, Any]:
    with world.database.read() as conn:
        row = job_named(conn, "summaries")
    assert row is not None
    found: dict[str, Any] = row.columns
    return found


def qualified(world: World, table: str) -> str:
    return table if world.database.is_sqlite else f"{world.database.default_schema}.{table}"


# -- a column comes in -----------------------------------------------------------------------------------------------


def test_a_new_output_column_is_added_to_both_tables_and_is_null_for_old_answers(world: World) -> None:
    world.rows(noted(3))
    world.run(job(world, output=schema("title")))

    world.rows(noted(4))
    asked = job(world, "team", output={**schema("title", "mood"), "citations": True})
    world.run(asked)

    for table in ("answers", "answers_history"):
        assert {"team", "title", "mood", "citations"} <= set(columns(world, table))
    found = world.answers()
    assert [found[key]["mood"] is None for key in ("r0", "r1", "r2", "r3")] == [True, True, True, False]
    assert found["r3"]["team"] == "team 3"
    assert found["r0"]["title"] is not None
    world.run(asked, refresh=True)
    assert all(answer["mood"] is not None for answer in world.answers().values())


def test_an_output_column_that_the_job_drops_stays_and_is_null_for_new_answers(world: World) -> None:
    world.rows(noted(1))
    world.run(job(world, "team", output=schema("title", "mood")))
    before = world.answers()["r0"]

    world.rows(noted(2))
    world.run(job(world, output=schema("title")))

    found = world.answers()
    assert {name: found["r0"][name] for name in ("team", "mood")} == {name: before[name] for name in ("team", "mood")}
    assert (found["r1"]["title"] is None, found["r1"]["team"], found["r1"]["mood"]) == (False, None, None)


# -- several drivers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "output", "column", "of_older"),
    [(["team"], {}, "team", "team 0"), ([], schema("title"), "title", None)],
    ids=["a kept column", "an output column"],
)
def test_a_driver_that_started_before_a_column_was_added_fills_it_for_rows_of_another_driver(
    world: World, keep: list[str], output: dict[str, Any], column: str, of_older: str | None
) -> None:
    world.rows(noted(2))
    older, newer = job(world), job(world, *keep, **({"output": output} if output else {}))

    def add_a_row(event: str, facts: dict[str, Any]) -> None:
        if event == "waiting":
            world.on_event = None
            world.rows(noted(3))
            world.run(newer, detach=True)
            world.clock.advance(100)  # so that both batches have ended when the first driver looks

    world.on_event = add_a_row
    world.run(older)

    assert world.statuses() == {"r0": "succeeded", "r1": "succeeded", "r2": "succeeded"}
    collected = [facts["batch"] for facts in world.told("collected")]
    assert collected == [1, 2]  # both by the driver that knew of no such column
    assert world.answers()["r2"][column] is not None
    assert world.answers()["r0"][column] == of_older


def test_an_invalid_row_of_a_driver_that_started_before_fits_the_changed_table(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.rows([{"id": "good", "text": "A text.", "team": "red"}, {"id": "bad", "text": "", "team": "red"}])
    prompt = "{{ text if text else 1 // 0 }}"
    older, newer = (job(world, *keep, request={"prompt": prompt}) for keep in ([], ["team"]))
    registered = register.register

    def then_another(*args: Any) -> Any:
        found = registered(*args)
        registered(world.where(), newer, ResultColumns.of(newer, {"id": "text", "team": "text"}), None)
        return found

    monkeypatch.setattr(runner, "register", then_another)
    world.run(older)

    assert world.statuses() == {"good": "succeeded", "bad": "invalid"}
    assert "team" in columns(world)


def test_two_drivers_that_add_columns_at_once_add_both(world: World) -> None:
    world.rows(noted(1))
    world.run(job(world))
    together, failed = threading.Barrier(2), list[BaseException]()

    def add(name: str, kind: str) -> None:
        asked = job(world, name)
        try:
            together.wait()
            register.register(world.where(), asked, ResultColumns.of(asked, {"id": "text", name: kind}), None)
        except BaseException as exc:  # noqa: BLE001  # raised where the test sees it
            failed.append(exc)

    threads = [threading.Thread(target=add, args=of) for of in (("team", "text"), ("size", "integer"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert recorded(world)["keep"] == {"team": "text", "size": "integer"}
    for table in ("answers", "answers_history"):
        assert {"team", "size"} <= set(columns(world, table))


# -- deaths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("committed", [False, True], ids=["before the commit", "after it"])
def test_a_driver_that_dies_while_it_adds_a_column_leaves_no_half_change(
    world: World, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    world.rows(noted(2))
    world.run(job(world))
    asked = job(world, "team")
    module, name = (runner, "Run") if committed else (register, "put_job")

    with monkeypatch.context() as dying:
        dying.setattr(module, name, lambda *args, **values: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            world.run(asked)

    assert ("team" in columns(world), "team" in columns(world, "answers_history")) == (committed, committed)
    assert recorded(world)["keep"] == ({"team": "text"} if committed else {})
    world.run(asked)
    assert [answer["team"] for answer in world.answers().values()] == ["team 0", "team 1"]


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["answers", "answers_history"])
@pytest.mark.parametrize(
    ("keep", "output", "theirs", "said"),
    [
        (
            ["team"],
            {},
            "Team",
            "source.keep: table .* a column 'Team' that this job did not create; keep it as {team: so",
        ),
        (
            [],
            schema("mood"),
            "mood",
            "output: table .* 'mood' that .* write output.columns: {mood: answer_mood}, or dr",
        ),
    ],
    ids=["kept", "output"],
)
def test_a_column_that_another_program_added_is_left_unchanged(
    world: World, table: str, keep: list[str], output: dict[str, Any], theirs: str, said: str
) -> None:
    world.rows(noted(2))
    world.run(job(world))
    with world.database.write() as conn:
        conn.exec_driver_sql(f'ALTER TABLE {qualified(world, table)} ADD COLUMN "{theirs}" INTEGER')
    before, sent = columns(world, table), world.accepted()
    world.rows(noted(3))

    with pytest.raises(DatabaseError, match=said):
        world.run(job(world, *keep, **({"output": output} if output else {})))

    assert (columns(world, table), world.accepted()) == (before, sent)
    world.run(job(world))  # their column hinders nobody who does not want its name
    assert len(world.answers()) == 3


def test_a_property_that_differs_from_a_column_only_in_case_is_refused(world: World) -> None:
    world.run(job(world, output=schema("Title")))

    with pytest.raises(
        JobError,
        match=r"'title' clashes with the existing column 'Title' .* output.columns: \{title: Title\} to use",
    ):
        world.run(job(world, output=schema("title")))

    world.rows(texts(6))
    world.run(job(world, output={**schema("title"), "columns": {"title": "Title"}}))
    assert world.answers()["r5"]["Title"] is not None


def test_a_column_changes_its_kind_when_no_batch_is_open(world: World) -> None:
    asked = job(world, output=schema("score", kind="integer"))
    changed = job(world, output=schema("score", kind="string"))
    world.run(asked, detach=True)
    sent = world.accepted()

    with pytest.raises(
        DatabaseError, match=r"column 'score' of table 'answers' holds integer, the job now says text, and 1"
    ):
        world.run(changed)
    assert (world.accepted(), recorded(world)["output"]) == (sent, {"score": "integer"})

    world.run(asked)
    world.rows(texts(6))
    world.run(changed)
    found = world.answers()
    assert (recorded(world)["output"], isinstance(found["r5"]["score"], str)) == ({"score": "text"}, True)
    assert all(answer["score"] is not None for answer in found.values())
