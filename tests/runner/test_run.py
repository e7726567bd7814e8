"""A run takes a job from rows to answers, with the real SDK and the emulator."""

from decimal import Decimal

import polars as pl
import pytest
from pydantic import ValidationError
from sqlalchemy import inspect, select, text

from pipeline.errors import DatabaseError, Interrupted, SourceError
from pipeline.state.tables import batches, runs
from tests.conftest import World, said_of, texts

POSTGRESQL_IS_LONG = True


def test_every_row_gets_an_answer(world: World) -> None:
    finished = world.run(world.job())

    assert (finished.state, finished.exit_code, finished.rows) == ("finished", 0, {"succeeded": 5})
    answer = world.answers()["r3"]
    assert answer["text"].startswith("[emulated]")
    assert answer["status"] == "succeeded"
    assert answer["model"].startswith("claude-haiku-4-5")
    assert answer["attempts"] == 1
    assert answer["batch_id"].startswith("msgbatch_")
    assert answer["run_id"] == finished.run_id
    assert sum(each["cost_usd"] for each in world.answers().values()) == pytest.approx(finished.cost_usd)


def test_the_same_command_again_sends_nothing(world: World) -> None:
    world.run(world.job())

    finished = world.run(world.job())

    assert (finished.exit_code, finished.rows) == (0, {})
    assert world.accepted() == 5


def test_only_a_row_that_changed_is_sent_again(world: World) -> None:
    world.run(world.job())
    rows = texts(5)
    rows[2]["text"] = "Something else altogether."
    world.rows(rows)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 1}
    assert world.accepted() == 6
    assert "Something else" in world.answers()["r2"]["text"]


def test_a_row_that_changes_back_before_it_is_sent_keeps_its_answer(world: World) -> None:
    world.run(world.job())
    rows = texts(5)
    rows[2]["text"] = "Something else altogether."
    world.rows(rows)
    world.emulator.add_fault(on="create", do="status", status=429, error_type="rate_limit_error", retry_after=100)
    world.run(world.job(), detach=True)
    world.rows(texts(5))

    world.run(world.job())

    assert world.accepted() == 5
    assert set(world.states().values()) == {"succeeded"}


def test_a_change_of_a_kept_column_updates_the_answer_without_sending(world: World) -> None:
    world.rows([{**row, "owner": "ann"} for row in texts(2)])
    job = world.job(source={"keep": ["owner"]})
    world.run(job)
    world.rows([{**row, "owner": "bob"} for row in texts(2)])

    world.run(job)

    assert [answer["owner"] for answer in world.answers().values()] == ["bob", "bob"]
    assert world.accepted() == 2


def test_succeeded_rows_of_an_older_recipe_are_kept_unless_asked_to_refresh(world: World) -> None:
    world.run(world.job())
    changed = world.job(request={"prompt": "In one word: {{ text }}"})

    kept = world.run(changed)
    refreshed = world.run(changed, refresh=True)

    assert kept.rows == {}
    assert refreshed.rows == {"succeeded": 5}
    assert {answer["recipe"] for answer in world.answers().values()} == {changed.recipe}


def test_a_failed_row_is_sent_again_when_the_recipe_has_changed(world: World) -> None:
    world.emulator.add_fault(on="item", do="error", error_type="invalid_request_error", match="number 1", times=1)
    world.run(world.job())
    assert world.statuses()["r1"] == "errored"

    unchanged = world.run(world.job())
    changed = world.run(world.job(request={"max_tokens": 200}))

    assert unchanged.rows == {}
    assert changed.rows == {"succeeded": 1}


def test_labels_are_stored_as_they_were_declared(world: World) -> None:
    job = world.job(output={"labels": ["Billing", "How To"]})

    finished = world.run(job)

    assert finished.rows == {"succeeded": 5}
    assert {answer["label"] for answer in world.answers().values()} <= {"Billing", "How To"}


@pytest.mark.parametrize("answer", ["wrong_label", "not_json"])
def test_an_answer_that_is_no_label_is_unparsable_and_keeps_its_text(world: World, answer: str) -> None:
    world.emulator.add_fault(on="item", do=answer, match="number 1")

    finished = world.run(world.job(output={"labels": ["a", "b"]}))

    assert (finished.rows, finished.exit_code) == ({"succeeded": 4, "unparsable": 1}, 1)
    assert world.answers()["r1"]["label"] is None
    assert world.answers()["r1"]["text"]


def test_rows_that_cannot_be_sent_are_invalid_with_the_reason_and_the_others_are_sent(world: World) -> None:
    rows = texts(4)
    rows[1]["text"] = ""
    rows[2]["text"] = "x" * 3000
    world.rows(rows)

    finished = world.run(world.job(limits={"max_batch_bytes": 2000}, request={"prompt": "{{ text }}"}))

    assert finished.rows == {"succeeded": 2, "invalid": 2}
    assert finished.exit_code == 1
    assert "empty" in world.answers()["r1"]["error_message"]
    assert "more than a batch can carry" in world.answers()["r2"]["error_message"]


def test_an_invalid_row_is_sent_when_its_values_have_been_corrected(world: World) -> None:
    rows = texts(2)
    rows[1]["text"] = ""
    world.rows(rows)
    job = world.job(request={"prompt": "{{ text }}"})
    world.run(job)
    world.rows(texts(2))

    finished = world.run(job)

    assert finished.rows == {"succeeded": 1}
    assert world.statuses() == {"r0": "succeeded", "r1": "succeeded"}


def test_equal_requests_are_sent_and_paid_once(world: World) -> None:
    world.rows([{"id": f"r{i}", "text": f"text {i % 2}"} for i in range(6)])

    finished = world.run(world.job())

    assert world.accepted() == 2
    assert finished.rows == {"succeeded": 6}
    costs = [answer["cost_usd"] for answer in world.answers().values()]
    assert sorted(cost > 0 for cost in costs) == [False] * 4 + [True] * 2
    assert len({answer["custom_id"] for answer in world.answers().values()}) == 2


def test_equal_requests_are_all_sent_when_dedupe_is_off(world: World) -> None:
    world.rows([{"id": f"r{i}", "text": "the same"} for i in range(3)])

    world.run(world.job(request={"dedupe": False}))

    assert world.accepted() == 3


@pytest.mark.parametrize("error", ["api_error", "overloaded_error", "timeout_error", "rate_limit_error"])
def test_a_row_with_a_retryable_error_is_sent_again_unchanged(world: World, error: str) -> None:
    world.emulator.add_fault(on="item", do="error", error_type=error, match="number 1", times=1, per="params")

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert world.answers()["r1"]["attempts"] == 2
    assert world.accepted() == 6
    assert world.sent_twice() == []


def test_expired_rows_are_sent_again_until_the_attempts_are_used_up(world: World) -> None:
    world.emulator.add_fault(on="item", do="expire", match="number 1")

    finished = world.run(world.job(retry={"max_attempts": 2}))

    assert finished.rows == {"succeeded": 4, "expired": 1}
    assert world.answers()["r1"]["attempts"] == 2
    assert world.accepted() == 6


def test_a_sweep_retries_a_row_without_the_source(world: World) -> None:
    world.emulator.add_fault(on="item", do="error", error_type="api_error", match="number 1", times=1, per="params")
    world.run(world.job(), detach=True)
    (world.folder / "rows.csv").unlink()

    for _ in range(3):
        world.clock.advance(60)
        world.sweep()

    assert world.statuses()["r1"] == "succeeded"


def test_a_row_with_an_error_of_its_own_request_is_not_sent_again(world: World) -> None:
    world.emulator.add_fault(on="item", do="error", error_type="invalid_request_error", match="number 1")

    finished = world.run(world.job())

    assert (finished.rows, finished.exit_code) == ({"succeeded": 4, "errored": 1}, 1)
    assert world.accepted() == 5


def test_a_share_of_failures_can_be_allowed(world: World) -> None:
    world.emulator.add_fault(on="item", do="refuse", match="number 1")

    finished = world.run(world.job(limits={"max_failed": 0.2}))

    assert (finished.rows, finished.exit_code) == ({"succeeded": 4, "refused": 1}, 0)


def test_the_limit_sends_the_first_rows_and_the_next_run_sends_the_others(world: World) -> None:
    first = world.run(world.job(), limit=2)
    again = world.run(world.job(), limit=2)
    rest = world.run(world.job())

    assert (first.rows, again.rows, rest.rows) == ({"succeeded": 2}, {}, {"succeeded": 3})


def test_batches_stay_within_the_limits(world: World) -> None:
    world.run(world.job(limits={"max_batch_requests": 2}))

    with world.database.read() as conn:
        assert list(conn.scalars(select(batches.c.requests).order_by(batches.c.id))) == [2, 2, 1]


def test_rows_that_vanish_keep_their_answers_and_those_without_any_are_removed(world: World) -> None:
    world.run(world.job(), limit=2)
    world.emulator.add_fault(on="create", do="status", status=429, error_type="rate_limit_error", retry_after=100)
    world.run(world.job(), detach=True)
    world.rows(texts(1))

    world.run(world.job(request={"max_tokens": 50}))

    assert set(world.states()) == {"r0", "r1"}
    assert set(world.statuses()) == {"r0", "r1"}


def test_a_detached_run_is_finished_by_sweeps(world: World) -> None:
    detached = world.run(world.job(), detach=True)
    assert (detached.state, detached.exit_code, detached.rows) == ("open", 0, {"in_flight": 5})

    world.clock.advance(61)
    swept = world.sweep()

    assert swept == [("summaries", None)]
    assert set(world.statuses().values()) == {"succeeded"}
    with world.database.read() as conn:
        assert conn.scalar(select(runs.c.state)) == "finished"
    assert world.sweep() == []


def test_a_row_that_changes_while_it_is_at_the_api_is_sent_again_afterwards(world: World) -> None:
    world.run(world.job(), detach=True)
    rows = texts(5)
    rows[2]["text"] = "Something else altogether."
    world.rows(rows)

    finished = world.run(world.job())

    assert world.accepted() == 6
    assert finished.rows == {"succeeded": 5}
    assert "Something else" in world.answers()["r2"]["text"]


def test_a_row_that_changes_before_its_batch_is_sent_is_sent_with_its_new_values(world: World) -> None:
    world.emulator.add_fault(on="create", do="status", status=429, error_type="rate_limit_error", retry_after=100)
    world.run(world.job(), detach=True)
    world.emulator.clear_faults()
    rows = texts(5)
    rows[2]["text"] = "Something else altogether."
    world.rows(rows)

    world.run(world.job())

    assert world.accepted() == 5
    assert "Something else" in world.answers()["r2"]["text"]
    assert world.batch_states()[0] == "dropped"


def test_planned_batches_of_an_older_recipe_are_dropped(world: World) -> None:
    world.emulator.add_fault(on="create", do="status", status=429, error_type="rate_limit_error", retry_after=100)
    world.run(world.job(), detach=True)
    world.emulator.clear_faults()

    finished = world.run(world.job(request={"max_tokens": 50}))

    assert finished.rows == {"succeeded": 5}
    assert world.accepted() == 5
    assert world.batch_states() == ["dropped", "collected"]


def test_runs_with_different_vars_are_open_at_the_same_time(world: World) -> None:
    world.rows(texts(2), "monday.csv")
    world.rows([{"id": "t1", "text": "Tuesday."}], "tuesday.csv")
    monday = world.job(vars={"day": "monday"}, source={"path": str(world.folder / "monday.csv")})
    tuesday = world.job(vars={"day": "tuesday"}, source={"path": str(world.folder / "tuesday.csv")})
    world.run(monday, detach=True)

    finished = world.run(tuesday)
    world.sweep()

    assert finished.rows == {"succeeded": 1}
    assert set(world.statuses()) == {"r0", "r1", "t1"}
    with world.database.read() as conn:
        assert set(conn.scalars(select(runs.c.state))) == {"finished"}


def test_a_dry_run_sends_and_writes_nothing(world: World) -> None:
    quoted = world.run(world.job(), dry_run=True)

    assert quoted.quote.to_send == 5
    assert quoted.quote.estimate is not None
    assert world.accepted() == 0
    assert world.states() == {}


def test_a_source_that_fails_half_way_sends_nothing(world: World) -> None:
    path = world.rows(texts(5))
    path.write_text(path.read_text() + "r9,one,too many\n")

    with pytest.raises(SourceError, match=r"rows\.csv row 6: the row has 3 fields, the header 2"):
        world.run(world.job(limits={"max_batch_requests": 1}))

    assert world.accepted() == 0


@pytest.mark.parametrize("moment", ["planned", "submitting", "submitted", "waiting", "ended", "collected"])
def test_a_second_driver_at_any_moment_shares_the_work_and_both_end(world: World, moment: str) -> None:
    both = world.run_beside(world.job(limits={"max_batch_requests": 2}), moment)

    assert [finished.state for finished in both] == ["finished", "finished"]
    assert (world.accepted(), world.sent_twice()) == (5, [])
    assert set(world.statuses().values()) == {"succeeded"}


@pytest.mark.parametrize("changed", ["the row", "the recipe"])
def test_a_row_that_failed_is_not_paid_again_after_a_change_that_was_planned_and_taken_back(
    world: World, changed: str
) -> None:
    rows = texts(2)
    world.rows(rows)
    world.emulator.add_fault(on="item", do="max_tokens")
    assert world.run(world.job()).rows == {"truncated": 2}
    before = world.answers()
    other = world.job()
    if changed == "the row":
        world.rows([{**row, "text": "Quite another text."} for row in rows])
    else:
        other = world.job(request={"prompt": "Otherwise: {{ text }}"})
    world.emulator.add_fault(**BUSY)
    world.run(other, detach=True)
    assert world.batch_states() == ["collected", "planned"]

    world.emulator.clear_faults()
    world.rows(rows)
    world.clock.advance(200)
    finished = world.run(world.job())

    assert finished.state == "finished"
    assert (world.accepted(), world.batch_states()) == (2, ["collected", "dropped"])
    assert world.answers() == before


def test_the_next_run_continues_after_a_driver_was_asked_to_stop(world: World) -> None:
    where = world.where()
    world.on_event = lambda event, facts: where.stop.event.set() if event == "planned" else None
    from pipeline.runner.options import Options
    from pipeline.runner.run import run

    with pytest.raises(Interrupted):
        run(world.job(limits={"max_batch_requests": 1}), where, Options())
    world.on_event = None
    accepted_before = world.accepted()
    finished = world.run(world.job(limits={"max_batch_requests": 1}))

    assert accepted_before < 5
    assert finished.rows == {"succeeded": 5}
    assert world.accepted() == 5


BUSY = {"on": "create", "do": "status", "status": 429, "error_type": "rate_limit_error", "retry_after": 100}


def test_a_row_that_changed_late_in_a_planned_batch_loses_no_row_before_it(world: World) -> None:
    rows = texts(11_000)
    world.rows(rows)
    world.emulator.add_fault(**BUSY)
    world.run(world.job(), detach=True)
    world.emulator.clear_faults()
    rows[10_500]["text"] = "Something else altogether."
    world.rows(rows)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 11_000}
    assert world.accepted() == 11_000


def test_rows_that_are_planned_and_not_sent_are_quoted_as_to_be_sent(world: World) -> None:
    world.emulator.add_fault(**BUSY)
    world.run(world.job(), detach=True)

    quoted = world.run(world.job(), dry_run=True)

    assert quoted.quote.to_send == 5


def test_a_run_waits_for_rows_that_an_older_recipe_has_at_the_api(world: World) -> None:
    world.run(world.job(), detach=True)

    finished = world.run(world.job(request={"max_tokens": 50}))

    assert set(world.statuses().values()) == {"succeeded"}
    assert finished.state == "finished"
    assert world.accepted() == 5


def test_a_row_that_fails_with_an_older_recipe_is_sent_again_with_the_new_one(world: World) -> None:
    world.emulator.add_fault(on="item", do="error", error_type="invalid_request_error", match="number 1", times=1)
    world.run(world.job(), detach=True)

    finished = world.run(world.job(request={"max_tokens": 50}))

    assert finished.rows == {"succeeded": 1}
    assert set(world.statuses().values()) == {"succeeded"}


def test_two_runs_with_the_same_keys_end_with_the_answers_of_the_later_run(world: World) -> None:
    world.rows(texts(3), "monday.csv")
    world.rows([{**row, "text": f"Tuesday: {row['text']}"} for row in texts(3)], "tuesday.csv")
    monday = world.job(vars={"day": "monday"}, source={"path": str(world.folder / "monday.csv")})
    tuesday = world.job(vars={"day": "tuesday"}, source={"path": str(world.folder / "tuesday.csv")})
    world.run(monday, detach=True)

    finished = world.run(tuesday)

    assert finished.rows == {"succeeded": 3}
    assert all("Tuesday" in answer["text"] for answer in world.answers().values())
    with world.database.read() as conn:
        assert set(conn.scalars(select(runs.c.state))) == {"finished"}


def test_the_limit_holds_when_an_older_recipe_had_planned_more(world: World) -> None:
    world.emulator.add_fault(**BUSY)
    world.run(world.job(), detach=True)
    world.emulator.clear_faults()
    changed = world.job(request={"prompt": "In one word: {{ text }}"})

    limited = world.run(changed, limit=2)
    accepted = world.accepted()
    rest = world.run(changed)

    assert (accepted, limited.rows.get("succeeded")) == (2, 2)
    assert rest.rows == {"succeeded": 5}
    assert {answer["recipe"] for answer in world.answers().values()} == {changed.recipe}


def test_a_row_whose_attempts_were_used_up_is_sent_again_when_more_are_allowed(world: World) -> None:
    world.emulator.add_fault(on="item", do="error", error_type="overloaded_error", match="number 1", times=1)
    used_up = world.run(world.job(retry={"max_attempts": 1}))
    again = world.run(world.job(retry={"max_attempts": 1}))

    more = world.run(world.job(retry={"max_attempts": 2}))

    assert (used_up.rows, again.rows) == ({"succeeded": 4, "errored": 1}, {})
    assert more.rows == {"succeeded": 1}
    assert world.answers()["r1"]["attempts"] == 2


def test_a_renamed_kept_column_is_filled_without_sending_and_the_old_one_stays(world: World) -> None:
    world.rows([{**row, "owner": "ann"} for row in texts(2)])
    world.run(world.job(source={"keep": ["owner"]}))

    world.run(world.job(source={"keep": [{"owner": "agent"}]}))

    assert [(a["owner"], a["agent"]) for a in world.answers().values()] == [("ann", "ann")] * 2
    assert world.accepted() == 2


def test_long_numeric_keys_that_differ_in_the_last_digit_are_two_rows(world: World) -> None:
    numbers = [Decimal("12345678901234567.01"), Decimal("12345678901234567.02")]
    pl.DataFrame({"id": numbers, "text": ["a", "b"]}).write_parquet(world.folder / "rows.parquet")

    world.run(world.job(source={"path": str(world.folder / "rows.parquet")}))

    assert set(world.answers()) == {str(number) for number in numbers}


def test_numbers_larger_than_any_column_of_numbers_are_kept_as_text(world: World) -> None:
    frame = pl.DataFrame({"id": [1], "text": ["a"], "hash": [2**64 - 1]}, schema_overrides={"hash": pl.UInt64})
    frame.write_parquet(world.folder / "rows.parquet")

    world.run(world.job(source={"path": str(world.folder / "rows.parquet"), "keep": ["hash"]}))

    assert world.answers()["1"]["hash"] == str(2**64 - 1)


def test_a_detached_command_that_collects_the_last_batch_ends_the_run(world: World) -> None:
    first = world.run(world.job(), detach=True)
    world.clock.advance(61)

    second = world.run(world.job(), detach=True)

    assert first.state == "open"
    assert (second.run_id, second.state, second.rows) == (first.run_id, "finished", {"succeeded": 5})


def test_answers_are_stored_in_the_declared_schema_if_the_database_has_schemas(world: World) -> None:
    job = world.job(sink={"table": "analytics.answers", "history": True})
    if world.database.is_sqlite:
        with pytest.raises(DatabaseError, match=r"sink.table: analytics.answers: a SQLite database has no schemas"):
            world.run(job)
        return

    world.run(job)
    world.run(world.job(sink={"table": "analytics.answers", "history": True}, request={"max_tokens": 90}), refresh=True)

    with world.database.read() as conn:
        assert {"answers", "answers_history"} <= set(inspect(conn).get_table_names(schema="analytics"))
        assert conn.scalar(text("SELECT count(*) FROM analytics.answers_history")) == 5
    assert set(world.statuses().values()) == {"succeeded"}


def test_the_pipelines_own_schema_is_refused(world: World) -> None:
    with pytest.raises(ValidationError, match="for the pipeline's own tables"):
        world.job(sink={"table": "batch_pipeline.answers"})


def test_a_quote_includes_the_surcharge_for_inference_in_the_us(world: World) -> None:
    world.rows([{"id": "1", "text": "one"}])
    request = {"model": "claude-sonnet-5", "params": {}}
    anywhere = world.run(world.job(request=request), dry_run=True).quote

    in_the_us = world.run(world.job(request={**request, "params": {"inference_geo": "us"}}), dry_run=True).quote

    assert said_of(anywhere).worst > 0
    assert said_of(in_the_us).worst == pytest.approx(1.1 * said_of(anywhere).worst)
