"""The API and the network fail, and each row still gets its outcome."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from pipeline.cli.terminal import Teller
from pipeline.errors import AccountStopped, ApiUnreachable, DatabaseError, InputError
from pipeline.events.batches import Watching
from pipeline.events.runs import Waiting
from pipeline.state.tables import accounts, batches, sendings
from tests.conftest import World, texts

POSTGRESQL_IS_LONG = True


def ends(world: World) -> list[str | None]:
    with world.database.read() as conn:
        return list(conn.scalars(select(sendings.c.end).order_by(sendings.c.id)))


@pytest.mark.parametrize(
    "fault",
    [
        {"do": "drop_after"},
        {"do": "status", "accept": True, "status": 500, "error_type": "api_error"},
        {"do": "status", "accept": True, "status": 502, "page": "html"},
        {"do": "status", "accept": True, "status": 504, "error_type": "timeout_error"},
        {"do": "status", "accept": True, "status": 409, "error_type": "conflict_error"},
    ],
    ids=["no answer", "500", "a proxy's page", "504", "409"],
)
def test_a_batch_whose_response_was_lost_is_found_and_not_sent_again(world: World, fault: dict[str, Any]) -> None:
    world.emulator.add_fault(on="create", times=1, **fault)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert world.accepted() == 5
    assert ends(world) == ["adopted"]


@pytest.mark.parametrize(
    "fault",
    [{"do": "drop_before"}, {"do": "status", "status": 500, "error_type": "api_error"}],
    ids=["connection cut", "500"],
)
def test_a_batch_that_never_arrived_is_sent_again_after_the_grace_time(world: World, fault: dict[str, Any]) -> None:
    world.emulator.add_fault(on="create", times=1, **fault)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert world.accepted() == 5
    assert ends(world) in (["absent", "accepted"], ["rejected", "accepted"])


def test_a_batch_that_appears_late_in_the_listing_is_not_sent_again(world: World) -> None:
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    world.emulator.add_fault(on="list", do="lag", seconds=45)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert world.sent_twice() == []
    assert ends(world) == ["adopted"]


def test_a_listing_that_breaks_off_proves_nothing(world: World) -> None:
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    world.emulator.add_fault(on="list", do="status", status=500, error_type="api_error", after=1, times=6)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert world.accepted() == 5


def test_another_batch_of_the_same_size_is_not_taken_for_ours(world: World) -> None:
    other = world.job(name="other", sink={"table": "others"})
    world.emulator.add_fault(on="create", do="drop_before", times=1, after=1)

    world.run(other)
    finished = world.run(world.job(request={"prompt": "Differently: {{ text }}"}))

    assert finished.rows == {"succeeded": 5}
    assert world.accepted() == 10
    assert world.sent_twice() == []


def test_other_batches_proceed_while_the_end_of_one_sending_is_unknown(world: World) -> None:
    world.emulator.add_fault(on="create", do="drop_after", times=1)

    world.run(world.job(limits={"max_batch_requests": 2}))

    names = [name for name, _ in world.events]
    assert names.index("unknown_end") < names.index("submitted") < names.index("adopted")
    assert world.accepted() == 5


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "error_type": "rate_limit_error", "retry_after": 40},
        {"status": 429, "error_type": "rate_limit_error"},
        {"status": 529, "error_type": "overloaded_error", "should_retry": True},
    ],
    ids=["429 with retry-after", "429 without", "529"],
)
def test_a_create_call_to_a_busy_api_is_repeated_later(world: World, fault: dict[str, Any]) -> None:
    world.emulator.add_fault(on="create", do="status", times=2, **fault)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert world.accepted() == 5
    assert all(told["wait"] >= fault.get("retry_after", 1) for told in world.told("rejected"))


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 400, "error_type": "invalid_request_error", "message": "You have reached your specified API usage"},
        {"status": 401, "error_type": "authentication_error"},
        {"status": 402, "error_type": "billing_error"},
        {"status": 403, "error_type": "permission_error"},
        {"status": 429, "error_type": "rate_limit_error", "error_code": "enforced_spend_limit_reached"},
    ],
    ids=["own spend limit", "key refused", "payment", "permission", "the tier's spend limit"],
)
def test_a_refused_account_stops_submitting_and_a_later_run_continues(world: World, fault: dict[str, Any]) -> None:
    world.emulator.add_fault(on="create", do="status", **fault)

    with pytest.raises(AccountStopped, match="submitting has stopped"):
        world.run(world.job(limits={"max_batch_requests": 2}))
    attempts = len(ends(world))
    world.emulator.clear_faults()
    finished = world.run(world.job(limits={"max_batch_requests": 2}))

    assert attempts == 1
    assert finished.rows == {"succeeded": 5}
    assert world.accepted() == 5
    with world.database.read() as conn:
        assert conn.scalar(select(accounts.c.circuit_cause)) is None


def test_a_sweep_does_not_try_a_refused_account_again(world: World) -> None:
    world.emulator.add_fault(on="create", do="status", status=402, error_type="billing_error")
    with pytest.raises(AccountStopped):
        world.run(world.job())

    swept = world.sweep()

    assert swept[0][1] is not None
    assert "submitting has stopped" in swept[0][1]
    assert ends(world) == ["rejected"]


@pytest.mark.parametrize("page", ["json", "html"])
def test_a_batch_that_is_too_large_for_the_api_is_sent_as_smaller_ones(world: World, page: str) -> None:
    world.emulator.add_fault(on="create", do="status", status=413, page=page, times=2)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert world.accepted() == 5
    assert world.batch_states().count("dropped") == 2


def test_a_single_row_that_is_too_large_for_the_api_is_invalid_and_the_others_are_sent(world: World) -> None:
    world.rows([*texts(3), {"id": "large", "text": "x" * 3000}])
    world.emulator.settings.max_batch_bytes = 2000

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 3, "invalid": 1}
    assert "too large" in world.answers()["large"]["error_message"]
    assert world.accepted() == 3


def test_a_batch_whose_results_are_gone_does_not_delay_the_others(world: World) -> None:
    fault = {"status": 404, "error_type": "not_found_error"}
    world.emulator.add_fault(on="results", do="status", times=2, **fault)

    finished = world.run(world.job(limits={"max_batch_requests": 2}))

    order = [(name, facts["batch"]) for name, facts in world.events if name in ("not_found", "collected")]
    assert order[0] == ("not_found", 1)
    assert order.index(("collected", 3)) < order.index(("collected", 1))
    assert finished.rows == {"succeeded": 5}


def test_a_driver_waits_for_an_unreachable_api_and_then_ends(world: World) -> None:
    world.run(world.job(), detach=True)
    world.emulator.add_fault(on="retrieve", do="drop_before")
    world.with_settings(timeout=100.0)

    with pytest.raises(ApiUnreachable):
        world.run(world.job())
    world.emulator.clear_faults()
    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert world.told("unreachable")


def test_an_address_that_does_not_answer_the_first_call_is_wrong_input(world: World) -> None:
    world.emulator.add_fault(on="list", do="drop_before")

    with pytest.raises(InputError, match="no answer from http://emulator"):
        world.run(world.job())

    assert world.states() == {}


def test_a_single_404_for_a_batch_changes_nothing(world: World) -> None:
    world.emulator.add_fault(on="retrieve", do="status", status=404, error_type="not_found_error", times=1)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert world.accepted() == 5


@pytest.mark.parametrize(
    "fault",
    [
        {"do": "truncate", "keep": 0.4, "cut_at": "line", "end": "clean"},
        {"do": "truncate", "keep": 0.4, "cut_at": "mid_line", "end": "clean"},
        {"do": "truncate", "keep": 0.4, "cut_at": "mid_line", "end": "cut"},
        {"do": "truncate", "keep": 0.4, "cut_at": "line", "end": "reset"},
        {"do": "duplicate_lines", "share": 0.5},
        {"do": "unknown_lines", "count": 2},
        {"do": "conflicting_lines", "share": 0.5},
        {"do": "missing_lines", "share": 0.5},
    ],
    ids=[
        "ends after a line",
        "ends in a line",
        "cut in a line",
        "reset after a line",
        "lines twice",
        "lines of nobody",
        "lines that conflict",
        "lines missing",
    ],
)
def test_a_faulty_download_loses_no_row(world: World, fault: dict[str, Any]) -> None:
    world.emulator.add_fault(on="results", times=1, **fault)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert set(world.statuses().values()) == {"succeeded"}
    assert world.accepted() == 5


def test_a_line_missing_in_three_downloads_is_lost_and_is_not_sent_again(world: World) -> None:
    world.emulator.add_fault(on="results", do="missing_lines", match="number 1")

    finished = world.run(world.job())
    again = world.run(world.job())

    assert finished.rows.get("lost", 0) >= 1
    assert finished.rows.get("lost", 0) + finished.rows.get("succeeded", 0) == 5
    assert finished.exit_code == 1
    assert again.rows == {}
    with world.database.read() as conn:
        assert conn.scalar(select(batches.c.downloads)) == 2


@pytest.mark.parametrize(
    ("fault", "status", "error_type"),
    [
        ({"do": "refuse"}, "refused", "refusal"),
        ({"do": "max_tokens"}, "truncated", "max_tokens"),
        ({"do": "context_window"}, "truncated", "model_context_window_exceeded"),
        ({"do": "pause_turn"}, "truncated", "pause_turn"),
        ({"do": "cancel"}, "canceled", "canceled"),
        ({"do": "error", "error_type": "not_found_error", "flat": True}, "errored", "not_found_error"),
        ({"do": "error", "error_type": "a_new_error"}, "errored", "a_new_error"),
        ({"do": "result_type", "result_type": "postponed"}, "errored", "unknown_result"),
    ],
    ids=[
        "refusal",
        "max_tokens",
        "context window",
        "pause",
        "canceled",
        "flat error",
        "unknown error",
        "unknown result",
    ],
)
def test_a_row_that_failed_says_why(world: World, fault: dict[str, Any], status: str, error_type: str) -> None:
    world.emulator.add_fault(on="item", match="number 1", **fault)

    finished = world.run(world.job())

    answer = world.answers()["r1"]
    assert (answer["status"], answer["error_type"]) == (status, error_type)
    assert answer["error_message"]
    assert finished.rows == {"succeeded": 4, status: 1}


def test_line_separators_in_an_answer_do_not_split_its_line(world: World) -> None:
    world.emulator.add_fault(on="item", do="strange_text")

    world.run(world.job())

    assert all("\u2028" in answer["text"] for answer in world.answers().values())


def test_results_are_read_from_our_address_although_results_url_names_another(world: World) -> None:
    world.emulator.add_fault(on="retrieve", do="results_url", host="http://elsewhere.example")

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}


def test_a_batch_of_another_account_is_left_alone(world: World) -> None:
    world.run(world.job(), detach=True)
    world.key = "test@other-team"
    world.clock.advance(31)

    swept = world.sweep()
    states = world.batch_states()
    world.key = "test"
    finished = world.run(world.job())

    assert swept == [("summaries", None)]
    assert states == ["in_progress"]
    assert world.told("other_account")
    assert finished.rows == {"succeeded": 5}


def test_a_run_does_not_wait_for_batches_of_another_account(world: World) -> None:
    world.run(world.job(), detach=True)
    world.key = "test@other-team"

    with pytest.raises(AccountStopped, match="were sent by another account"):
        world.run(world.job())

    assert world.accepted() == 5


def test_a_database_of_the_emulator_is_refused_for_the_api_itself(world: World) -> None:
    world.run(world.job())
    with world.database.write() as conn:
        conn.execute(accounts.update().values(emulated=False, base_url="https://api.example"))
    world.rows(texts(6))  # so that there is something to send: otherwise the API is not asked

    with pytest.raises(DatabaseError, match="give another database"):
        world.run(world.job())


def test_a_body_that_was_altered_is_not_sent(world: World) -> None:
    world.emulator.add_fault(on="create", do="status", status=429, error_type="rate_limit_error", retry_after=100)
    world.run(world.job(), detach=True)
    world.emulator.clear_faults()
    [body] = (world.folder / "spool" / "summaries").glob("*.json")
    body.write_bytes(body.read_bytes().replace(b"Summarize", b"Summarise"))
    world.clock.advance(200)

    finished = world.run(world.job())

    assert "was altered" in world.told("dropped")[0]["problem"]
    assert finished.rows == {"succeeded": 5}
    assert world.accepted() == 5


def test_a_retried_row_whose_body_is_gone_is_rendered_again(world: World) -> None:
    world.emulator.add_fault(on="item", do="error", error_type="api_error", match="number 1", times=1, per="params")

    def lose_body(event: str, facts: dict[str, Any]) -> None:
        if event == "collected":
            world.on_event = None
            [body] = (world.folder / "spool" / "summaries").glob("*.json")
            body.unlink()

    world.on_event = lose_body
    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert world.told("body_lost")
    assert world.accepted() == 6


def test_a_batch_is_not_sent_again_before_the_deadline_of_a_suspended_driver(world: World) -> None:
    world.with_settings(timeout=1000.0)
    world.emulator.add_fault(on="create", do="drop_before", times=1)
    world.on_event = lambda event, facts: forget_end(world) if event == "unknown_end" else None
    world.run(world.job())

    [resent] = [facts for name, facts in world.events if name == "submitted"]
    waited = [facts["problem"] for name, facts in world.events if name == "watching"]
    assert resent["batch"] == 1
    with world.database.read() as conn:
        deadline = conn.scalars(select(sendings.c.deadline).order_by(sendings.c.id)).first()
    assert deadline is not None
    after = deadline + timedelta(seconds=world.settings.grace)
    assert waited[0] == (
        "asking the API whether it arrived: the process died while sending it; "
        f"if the listing does not show the batch by {after:%H:%M:%S} UTC, it is sent again"
    )
    assert world.accepted() == 5


def forget_end(world: World) -> None:
    """Remove the end of the sending, as if an unknown driver had been suspended in the create call."""
    with world.database.write() as conn:
        conn.execute(sendings.update().values(end=None, grace_from=None, driver=""))


def test_a_batch_canceled_in_the_console_keeps_what_had_succeeded(world: World) -> None:
    world.rows(texts(20))
    world.run(world.job(), detach=True)
    with world.database.read() as conn:
        api_id = conn.scalar(select(batches.c.api_id))
    with world.where().api() as (api, _):
        api._client.messages.batches.cancel(str(api_id))

    finished = world.run(world.job())

    assert set(finished.rows) == {"succeeded", "canceled"}
    assert sum(finished.rows.values()) == 20
    assert world.accepted() == 20


def test_the_spool_keeps_no_body_that_is_not_needed(world: World) -> None:
    world.run(world.job(limits={"max_batch_requests": 2}))

    assert list((world.folder / "spool" / "summaries").iterdir()) == []


def test_an_answer_without_any_content_is_an_empty_text(world: World) -> None:
    world.emulator.add_fault(on="item", do="empty", match="number 1")

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert world.answers()["r1"]["text"] == ""


def test_an_empty_answer_is_no_label(world: World) -> None:
    world.emulator.add_fault(on="item", do="empty", match="number 1")

    world.run(world.job(output={"labels": ["number", "letter"]}))

    assert world.answers()["r1"]["status"] == "unparsable"


def test_a_label_in_another_case_is_that_label(world: World) -> None:
    world.emulator.add_fault(on="item", do="wrong_case")

    finished = world.run(world.job(output={"labels": ["Number", "Letter"]}))

    assert finished.rows == {"succeeded": 5}
    assert {answer["label"] for answer in world.answers().values()} <= {"Number", "Letter"}


def test_a_batch_whose_response_comes_after_the_timeout_is_found_in_the_listing(world: World) -> None:
    world.emulator.add_fault(on="create", do="delay", seconds=700, times=1)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert ends(world) == ["adopted"]
    assert world.accepted() == 5


def test_the_problem_of_a_watched_batch_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    problem = "asking the API whether it arrived: the process died while sending it; sent again after 01:54:00 UTC"
    waits = Waiting(progress={"batches": {"submitting": 1}}, held_by=[], seconds=10.0)
    with Teller(as_json=False) as teller:
        for _ in range(3):
            teller.tell(Watching(batch=15, problem=problem))
            teller.tell(waits)

    assert capsys.readouterr().err == f"batch 15: {problem}\nwaiting: 1 submitting; next look in 10 s\n"
