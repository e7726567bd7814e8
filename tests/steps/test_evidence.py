"""Responses that prove nothing change nothing: pages of proxies, wrong counts and listings, damaged or late results."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import select, update

from pipeline.api.client import Api
from pipeline.errors import AccountStopped, ApiUnreachable, InputError, Stopped
from pipeline.report.status import status_facts, status_lines
from pipeline.runner.options import Options
from pipeline.runner.run import run
from pipeline.runner.sweep import sweep
from pipeline.state.jobs import job_named
from pipeline.state.moves import Late, record_api_id
from pipeline.state.spending import spending
from pipeline.state.tables import batches, identified, leases, requests, runs, sendings, stretches, tallies
from pipeline.steps.cancel import cancel
from pipeline.steps.reconcile import find_twins, reconcile_due
from tests.conftest import World
from tests.runner.test_verify import proof, said

POSTGRESQL_IS_LONG = True

DAY = 86_400.0


def ends(world: World) -> list[str | None]:
    """Return how each sending ended, in order."""
    with world.database.read() as conn:
        return list(conn.scalars(select(sendings.c.end).order_by(sendings.c.id)))


def theirs(world: World, requests: int) -> str:
    """Send a batch as another program in our workspace and return its id."""
    params = {
        "model": "claude-haiku-4-5",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": os.urandom(8).hex()}],
    }
    items: Any = [{"custom_id": f"theirs-{i}", "params": params} for i in range(requests)]
    return world.client().messages.batches.create(requests=items).id


def status_of(world: World) -> list[str]:
    """Return what `status` says."""
    with world.database.read() as conn:
        return list(status_lines(status_facts(conn, world.known(), world.clock())))


# -- whose a batch is ------------------------------------------------------------------------------------------------

FOREIGN_RESULTS = [
    pytest.param({"do": "first_line"}, id="a blank first line"),
    pytest.param({"do": "first_line", "text": "<html>"}, id="a strange first line"),
    pytest.param({"do": "first_line", "text": '{"note":"maintenance"}'}, id="a JSON line without a custom_id"),
    pytest.param({"do": "unknown_lines", "count": 3}, id="lines of nobody first"),
    *(
        pytest.param({"do": "foreign_page", "kind": kind}, id=f"a foreign page: {kind}")
        for kind in ("html", "empty", "json", "cut", "null")
    ),
]


@pytest.mark.parametrize("fault", FOREIGN_RESULTS)
def test_a_batch_is_not_adopted_before_its_results_carry_our_nonce(world: World, fault: dict[str, Any]) -> None:
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    world.emulator.add_fault(on="results", times=2, **fault)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert (world.accepted(), ends(world)) == (5, ["adopted"])


def test_a_batch_whose_results_never_show_an_owner_is_given_up_and_not_sent_again(world: World) -> None:
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    world.emulator.add_fault(on="results", do="foreign_page", kind="html")

    world.run(world.job(), detach=True)
    world.clock.advance(3600)
    world.sweep()
    watched = [facts["problem"] for facts in world.told("watching")][-1]
    world.clock.advance(26 * 3600)
    world.sweep()

    assert "no line of its results has a custom_id" in watched
    assert (world.batch_states(), world.accepted()) == (["lost"], 5)


@pytest.mark.parametrize("fault", FOREIGN_RESULTS)
def test_a_body_unknown_to_the_database_is_kept_while_results_do_not_show_their_owner(
    world: World, fault: dict[str, Any]
) -> None:
    world.run(world.job(), detach=True)
    [body] = (world.folder / "spool" / "summaries").glob("*.json")
    kept = body.read_bytes()
    world.clock.advance(100)
    world.run(world.job())
    forget_batches(world)
    body.write_bytes(kept)
    world.emulator.add_fault(on="results", **fault)

    with pytest.raises(Stopped if fault["do"] == "foreign_page" else InputError, match="does not know"):
        world.run(world.job())

    assert body.exists()
    assert world.accepted() == 5


def forget_batches(world: World) -> None:
    """Empty the tables of the job, as if an older backup had been restored."""
    with world.database.write() as conn:
        for table in (stretches, tallies, identified, requests, sendings, batches, runs, leases):
            conn.execute(table.delete())


def test_the_results_of_another_programs_batch_are_read_only_once(world: World) -> None:
    asked: list[str] = []

    class Watched(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            if request.url.path.endswith("/results"):
                asked.append(request.url.path.split("/")[-2])
            return world.emulator.transport().handle_request(request)

    strangers = {theirs(world, 5), theirs(world, 2)}
    world.clock.advance(60)
    world.emulator.add_fault(on="create", do="drop_before", times=1)

    finished = run(world.job(), world.where(Watched()))

    assert finished.rows == {"succeeded": 5}
    assert len(world.told("watching")) > 1
    assert sorted(api_id for api_id in asked if api_id in strangers) == sorted(strangers)


# -- counts and lists that lie ---------------------------------------------------------------------------------------


def test_our_batch_is_found_by_its_nonce_although_its_counts_are_wrong(world: World) -> None:
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    for on in ("list", "retrieve"):
        world.emulator.add_fault(on=on, do="counts", add=1)

    finished = world.run(world.job())
    found = proof(world)

    assert finished.rows == {"succeeded": 5}
    assert (world.accepted(), ends(world)) == (5, ["adopted"])
    assert world.told("counts_disagree") == [{"job": "summaries", "batch": 1, "requests": 5, "counted": 6}]
    assert any("has 5 requests, and the API counts 6" in line for line in said(found))


def test_a_running_batch_with_a_different_count_is_not_taken_for_ours(world: World) -> None:
    world.emulator._core.processing_seconds = 3000
    theirs(world, 4)
    world.emulator.add_fault(on="create", do="drop_before", times=1)

    world.run(world.job(), detach=True)
    world.clock.advance(200)
    world.sweep()

    assert world.told("absent")


@pytest.mark.parametrize("order", ["oldest_first", "shuffled"])
def test_a_listing_that_is_not_newest_first_is_read_to_its_end(
    world: World, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.api.client.PAGE", 2)
    for _ in range(7):
        theirs(world, 1)
        world.clock.advance(DAY / 2)
    before = world.accepted()
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    world.emulator.add_fault(on="list", do="disorder", order=order)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert (world.accepted() - before, ends(world)) == (5, ["adopted"])


def test_an_ended_batch_with_our_nonce_is_ours_although_it_was_created_hours_outside_our_window(world: World) -> None:
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    world.run(world.job(), detach=True)
    with world.database.write() as conn:  # as a driver writes it whose idea of the API's time was wrong
        wrong = timedelta(hours=5)
        [sending] = conn.execute(select(sendings)).all()
        moved = {name: getattr(sending, name) + wrong for name in ("started_at", "deadline")}
        conn.execute(update(sendings).values(**moved))
    world.clock.advance(6 * 3600)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert (world.accepted(), ends(world)) == (5, ["adopted"])


def test_a_listing_is_as_old_as_its_own_date_says(world: World) -> None:
    """A listing proves absence only if it was begun after the grace time; a cached one was begun long before."""
    cached: list[bytes] = []

    class Cache(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            response = world.emulator.transport().handle_request(request)
            if request.method == "GET" and request.url.path.endswith("/batches"):
                date = response.headers["date"]
                if not cached and request.url.params.get("limit") == "1000":
                    cached.extend([response.read(), date.encode()])
                if cached and request.url.params.get("limit") == "1000":
                    headers = {**dict(response.headers), "date": cached[1].decode()}
                    headers.pop("content-length", None)
                    return httpx2.Response(200, headers=headers, content=cached[0], request=request)
            return response

    world.emulator.add_fault(on="list", do="lag", seconds=10)
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    run(world.job(), world.where(Cache()), Options(detach=True))
    world.clock.advance(30)
    for _ in range(4):
        world.clock.advance(40)
        sweep(world.where(Cache()))
    states = world.batch_states()
    world.emulator.clear_faults()

    finished = world.run(world.job())

    assert states == ["submitting"]
    assert finished.rows == {"succeeded": 5}
    assert world.accepted() == 5


def test_a_listing_that_repeats_itself_proves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.api.client.PAGE", 2)

    class FirstPageOnly(httpx2.BaseTransport):
        """A cache that ignores the query string."""

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            if request.method == "GET" and "after_id" in request.url.params:
                request = httpx2.Request("GET", request.url.copy_remove_param("after_id"), headers=request.headers)
            return world.emulator.transport().handle_request(request)

    world.emulator.add_fault(on="create", do="drop_after", times=1)
    world.run(world.job(), detach=True)
    for _ in range(5):
        theirs(world, 1)
    world.clock.advance(3600)

    sweep(world.where(FirstPageOnly()))

    assert world.batch_states() == ["submitting"]
    assert "comes from a cache" in world.told("watching")[-1]["problem"]


# -- pages that are not the API's ------------------------------------------------------------------------------------

KINDS = ("html", "empty", "json", "cut", "null")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on", ["create", "retrieve", "list", "results", "count_tokens", "models"])
def test_a_page_of_a_proxy_is_not_taken_for_a_response_of_the_api(world: World, on: str, kind: str) -> None:
    world.emulator.add_fault(on=on, do="foreign_page", kind=kind, times=2, after=1 if on == "list" else 0)
    job = world.job(limits={"max_cost_usd": 10.0, "max_batch_requests": 2})

    finished = world.run(job)

    assert finished.rows == {"succeeded": 5}
    assert (world.accepted(), world.sent_twice()) == (5, [])


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_that_does_not_come_from_the_api_at_the_first_call_means_a_wrong_address(
    world: World, kind: str
) -> None:
    world.emulator.add_fault(on="list", do="foreign_page", kind=kind)

    with pytest.raises(InputError, match="does not answer as the Messages API does"):
        world.run(world.job())

    assert world.accepted() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_whose_create_returned_a_page_of_a_proxy_is_found_in_the_listing(world: World, kind: str) -> None:
    world.emulator.add_fault(on="create", do="foreign_page", kind=kind, accept=True, times=1)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert (world.accepted(), ends(world)) == (5, ["adopted"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_delete_that_returned_a_page_of_a_proxy_is_tried_again(world: World, kind: str) -> None:
    world.emulator.add_fault(on="delete", do="foreign_page", kind=kind, times=1)

    world.run(world.job(privacy={"delete_remote": True}))
    kept = world.told("not_deleted")
    world.clock.advance(60)
    world.sweep()

    assert len(kept) == 1
    assert world.told("deleted")


def test_a_404_of_a_proxy_is_not_taken_for_one_of_the_api(world: World) -> None:
    world.run(world.job(), detach=True)
    world.emulator.add_fault(on="retrieve", do="status", status=404, page="html")
    world.emulator.add_fault(on="results", do="status", status=404, page="html")
    for _ in range(5):
        world.clock.advance(3600)
        with pytest.raises(ApiUnreachable, match="does not answer as the Messages API does"):
            world.run(world.job())
    world.emulator.clear_faults()

    finished = world.run(world.job())

    assert not world.told("lost")
    assert finished.rows == {"succeeded": 5}


@pytest.mark.parametrize("accept", [True, False], ids=["accepted", "not accepted"])
def test_a_create_that_returns_a_batch_we_already_know_has_an_unknown_end(world: World, *, accept: bool) -> None:
    world.emulator.add_fault(on="create", do="repeat_answer", accept=accept, after=1, times=1)

    finished = world.run(world.job(limits={"max_batch_requests": 2}))

    assert finished.rows == {"succeeded": 5}
    assert (world.accepted(), world.sent_twice()) == (5, [])
    assert "a batch that is older than this sending" in world.told("unknown_end")[0]["problem"]


def test_a_create_that_returns_a_batch_older_than_its_sending_has_an_unknown_end(world: World) -> None:
    theirs(world, 5)
    world.clock.advance(3600)
    world.emulator.add_fault(on="create", do="repeat_answer", accept=True, times=1)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert (world.accepted() - 5, ends(world)) == (5, ["adopted"])


def test_a_job_that_cannot_be_read_does_not_stop_the_sweep_of_other_jobs(world: World) -> None:
    world.run(world.job(), detach=True)
    world.run(world.job(name="other", sink={"table": "others"}, request={"prompt": "Again: {{ text }}"}), detach=True)
    with world.database.write() as conn:
        conn.execute(update(runs).where(runs.c.id == 1).values(job={"name": "summaries", "api": None}))
    world.clock.advance(100)

    swept = dict(world.sweep())

    assert "run 1 was stored with a job that this version cannot read" in str(swept["summaries"])
    assert swept["other"] is None
    assert set(world.statuses("other").values()) == {"succeeded"}


# -- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "binary"])
def test_a_damaged_line_is_downloaded_again_and_the_other_lines_are_stored(world: World, damage: str) -> None:
    world.emulator.add_fault(on="results", do="damaged_lines", damage=damage, every=2, times=1)
    world.run(world.job(), detach=True)
    world.clock.advance(100)
    world.sweep()
    first = sorted(world.states().values())
    said_meanwhile = status_of(world)

    finished = world.run(world.job())

    assert "         batch 1: 3 of 5 rows answered" in said_meanwhile
    assert not any("rows answered" in line for line in status_of(world))
    assert first == ["in_flight", "in_flight", "succeeded", "succeeded", "succeeded"]
    assert finished.rows == {"succeeded": 5}
    assert (world.accepted(), world.batch_states()) == (5, ["collected"])


def test_a_line_damaged_in_three_downloads_is_lost_and_its_batch_stays_at_the_api(world: World) -> None:
    world.emulator.add_fault(on="results", do="damaged_lines", damage="cut", every=5)

    finished = world.run(world.job(privacy={"delete_remote": True}))
    lost = (finished.rows, world.batch_states(), len(world.told("results_missing")))
    world.emulator.clear_faults()
    world.clock.advance(7 * 3600)
    for _ in range(2):
        world.clock.advance(100)
        world.sweep()

    assert lost == ({"succeeded": 4, "lost": 1}, ["lost"], 3)
    assert set(world.statuses().values()) == {"succeeded"}
    assert world.told("deleted")
    assert world.accepted() == 5


def test_a_damaged_line_is_ignored_when_an_intact_one_has_the_same_custom_id(world: World) -> None:
    world.emulator.add_fault(on="results", do="damaged_lines", damage="cut", every=2)
    world.emulator.add_fault(on="results", do="duplicate_lines", share=1.0)

    finished = world.run(world.job())

    assert sum(finished.rows.values()) == 5


@pytest.mark.parametrize("damage", ["surrogate", "huge_number", "usage_text"])
def test_an_unexpected_line_makes_only_its_own_row_unparsable_and_keeps_its_text(world: World, damage: str) -> None:
    world.emulator.add_fault(on="results", do="damaged_lines", damage=damage, every=3)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 4, "unparsable": 1}
    assert not world.told("results_missing")
    [odd] = [answer for answer in world.answers().values() if answer["status"] == "unparsable"]
    assert odd["error_type"] == "odd_result"
    assert odd["text"].startswith("[emulated]")
    assert odd["input_tokens"] > 0
    assert ("\ufffd" in odd["text"]) == (damage == "surrogate")
    assert world.accepted() == 5


@pytest.mark.parametrize("kind", ["html", "json"])
def test_results_that_name_no_request_of_ours_are_not_counted_as_a_download(world: World, kind: str) -> None:
    world.emulator.add_fault(on="results", do="foreign_page", kind=kind)
    world.run(world.job(), detach=True)
    for _ in range(6):
        world.clock.advance(700)
        world.sweep()
    states = world.batch_states()
    world.emulator.clear_faults()

    finished = world.run(world.job())

    assert states == ["ended"]
    assert finished.rows == {"succeeded": 5}


def test_the_29_days_of_results_are_counted_from_the_sending(world: World) -> None:
    world.emulator.add_fault(on="create", do="status", status=429, error_type="rate_limit_error", retry_after=50)
    world.run(world.job(), detach=True)
    world.emulator.clear_faults()
    world.clock.advance(20 * DAY)
    world.run(world.job(), detach=True)
    world.clock.advance(10 * DAY)
    world.emulator.add_fault(on="results", do="status", status=404, error_type="not_found_error", times=1)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert not world.told("lost")


class Dripping(httpx2.BaseTransport):
    """Sends results a few bytes at a time, each after some seconds, until it is repaired."""

    def __init__(self, world: World, seconds: float) -> None:
        self.world, self.seconds, self.drips = world, seconds, True

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self.world.emulator.transport().handle_request(request)
        if not (request.url.path.endswith("/results") and self.drips):
            return response
        content = response.read()

        def drip() -> Any:
            for byte in content:
                self.world.clock.advance(self.seconds)
                yield bytes([byte])

        return httpx2.Response(200, headers={"date": response.headers["date"]}, content=drip(), request=request)


def test_a_download_that_is_too_slow_is_stopped_and_started_again(world: World) -> None:
    slow = Dripping(world, 10.0)

    def mend(event: str, facts: dict[str, Any]) -> None:
        if event == "unreachable":
            slow.drips = False

    world.on_event = mend
    finished = run(world.job(), world.where(slow))

    assert "gives results too slowly: 30 bytes in 300 s" in world.told("unreachable")[0]["problem"]
    assert finished.rows == {"succeeded": 5}
    assert world.accepted() == 5


@pytest.mark.parametrize(
    ("error_type", "message"),
    [
        ("invalid_request_error", "Your credit balance is too low to access the API. Please go to Plans & Billing."),
        ("invalid_request_error", "You have reached your specified API usage limits. You will regain access later."),
        ("rate_limit_error", "You have reached your API usage limits: your organization has crossed its threshold."),
    ],
    ids=["credit balance", "own limit", "the tier's limit"],
)
def test_an_account_error_under_another_type_is_retried_without_counting_an_attempt(
    world: World, error_type: str, message: str
) -> None:
    world.emulator.add_fault(on="item", do="error", error_type=error_type, message=message, every=2)

    with pytest.raises(AccountStopped, match="submitting has stopped"):
        world.run(world.job())
    waiting = world.states()
    world.emulator.clear_faults()
    finished = world.run(world.job())

    assert sorted(waiting.values()) == ["in_flight"] * 2 + ["succeeded"] * 3  # packed, and not sent
    assert finished.rows == {"succeeded": 5}
    assert {answer["attempts"] for answer in world.answers().values()} == {1}


# -- answers that come late ------------------------------------------------------------------------------------------


def late(world: World, meanwhile: Callable[[], object]) -> None:
    """Run a driver that is suspended after the API accepted its batch, while `meanwhile` happens."""

    class Suspended(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            response = world.emulator.transport().handle_request(request)
            if request.method == "POST" and request.url.path.endswith("/batches"):
                response.read()
                meanwhile()
            return response

    run(world.job(), world.where(Suspended()))


def conclude_absent(world: World) -> None:
    """Let another driver claim the batch and miss it in the listing for longer than the grace time."""
    fault = world.emulator.add_fault
    fault(on="list", do="lag", seconds=10_000)
    world.clock.advance(world.settings.timeout + world.settings.lease)
    for _ in range(2):
        world.clock.advance(100)
        with ExitStack() as stack:
            reconcile_due(world.driver(stack))


def test_a_late_response_is_adopted_unless_its_batch_was_sent_again(
    world: World,
) -> None:
    late(world, lambda: conclude_absent(world))

    assert world.told("absent")
    assert world.told("found_late")
    assert (world.accepted(), ends(world)) == (5, ["adopted"])
    assert set(world.statuses().values()) == {"succeeded"}


def test_a_batch_that_appears_late_in_the_listing_is_adopted_unless_it_was_sent_again(world: World) -> None:
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    world.run(world.job(), detach=True)
    conclude_absent(world)
    planned = world.batch_states()
    world.emulator.clear_faults()

    with ExitStack() as stack:
        find_twins(world.driver(stack))
    finished = world.run(world.job())

    assert planned == ["planned"]
    assert finished.rows == {"succeeded": 5}
    assert (world.accepted(), ends(world)) == (5, ["adopted"])


def test_a_late_response_to_a_batch_that_was_sent_again_is_a_twin_and_its_cost_is_counted(world: World) -> None:
    limited = world.job(limits={"max_cost_usd": 10.0})

    def send_again() -> None:
        conclude_absent(world)
        world.on_event = None
        run(limited, world.where())

    class Suspended(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            response = world.emulator.transport().handle_request(request)
            if request.method == "POST" and request.url.path.endswith("/batches"):
                response.read()
                send_again()
            return response

    run(limited, world.where(Suspended()))

    with world.database.read() as conn:
        rows = conn.execute(select(sendings).order_by(sendings.c.id)).all()
        spent, reserved = spending(conn, 1, 1.0)
    assert [row.end for row in rows] == ["twin", "accepted"]
    assert "paid twice" in world.told("twin")[0]["problem"]
    assert rows[0].reserved_usd == pytest.approx(reserved)
    assert rows[1].settled_usd == pytest.approx(spent)


def test_a_batch_whose_first_sending_appears_late_is_not_sent_a_third_time(world: World) -> None:
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    world.run(world.job(), detach=True)
    conclude_absent(world)
    world.emulator.add_fault(on="create", do="drop_before", times=1)
    world.run(world.job(), detach=True)  # the second sending does not arrive
    with world.database.write() as conn:
        assert record_api_id(conn, 1, newest(world), None, world.clock()) is Late.TWIN
    world.emulator.clear_faults()

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert world.accepted() == 5


def newest(world: World) -> str:
    """Return the id of the newest batch at the API, even if the listing does not show it."""
    return world.emulator._store.all()[-1].id


# -- batches that do not end -----------------------------------------------------------------------------------------


def test_a_cancel_that_never_ends_is_reported_and_can_be_abandoned(world: World) -> None:
    world.emulator.add_fault(on="cancel", do="never_ends")
    world.emulator._core.processing_seconds = 3000
    world.run(world.job(), detach=True)
    with world.database.read() as conn:
        job = job_named(conn, "summaries")
    assert job is not None
    cancel(world.where(), job)
    world.clock.advance(60)
    world.sweep()
    early = cancel(world.where(), job, abandon=True)
    world.clock.advance(2 * 3600)
    world.sweep()
    told = world.told("overdue")

    abandoned = cancel(world.where(), job, abandon=True)

    assert early.open == 1
    assert len(told) == 1
    assert "`cancel --abandon` gives it up" in told[0]["problem"]
    assert (abandoned.open, world.batch_states()) == (0, ["lost"])


def test_a_batch_that_the_api_does_not_end_within_24_hours_is_reported(world: World) -> None:
    world.run(world.job(), detach=True)

    class Frozen(httpx2.BaseTransport):
        """Repeats the API's first response."""

        def __init__(self) -> None:
            self.first = world.emulator.transport().handle_request(self.asked())
            self.first.read()

        def asked(self) -> httpx2.Request:
            headers = {"x-api-key": "test", "anthropic-version": "2023-06-01"}
            return httpx2.Request("GET", f"http://emulator/v1/messages/batches/{newest(world)}", headers=headers)

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            response = world.emulator.transport().handle_request(request)
            if request.method == "GET" and request.url.path.endswith(newest(world)):
                return httpx2.Response(200, headers=response.headers, content=self.first.content, request=request)
            return response

    frozen = Frozen()
    world.clock.advance(26 * 3600)

    for _ in range(2):
        world.clock.advance(100)
        sweep(world.where(frozen))

    assert len(world.told("overdue")) == 1
    assert world.batch_states() == ["in_progress"]


def test_a_wall_clock_that_jumps_by_days_changes_nothing(world: World) -> None:
    """The clock is set back and forth by days while the response to a create call is lost."""
    steps = iter([3 * DAY, -3 * DAY, 400.0, -2000.0, 50 * DAY] * 100)
    off = [0.0]

    def step(event: str, facts: object) -> None:
        off[0] += next(steps)

    world.on_event = step
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    where = replace(world.where(), now=lambda: world.clock() + timedelta(seconds=off[0]))

    finished = run(world.job(limits={"max_batch_requests": 2}), where)

    assert finished.rows == {"succeeded": 5}
    assert (world.accepted(), world.sent_twice()) == (5, [])


def test_a_driver_starts_when_it_knows_the_time_although_the_first_responses_have_no_date(world: World) -> None:
    world.emulator.add_fault(on="list", do="date", text="", times=2)
    off = timedelta(hours=2)  # its wall clock, by which it would go if it knew nothing better
    client = world.client()
    where = replace(world.where(), connect=lambda _: Api(client, now=lambda: world.clock() + off))

    run(world.job(), where, Options(detach=True))

    with world.database.read() as conn:
        [started_at] = conn.scalars(select(sendings.c.started_at)).all()
    assert abs(started_at - world.clock()) < timedelta(minutes=2)


@pytest.mark.parametrize("on", ["retrieve", "results"])
def test_a_batch_that_cannot_be_retrieved_does_not_stop_the_sweep_of_other_batches(
    world: World, on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run(world.job(limits={"max_batch_requests": 1}), detach=True)
    with world.database.read() as conn:
        api_id = conn.scalar(select(batches.c.api_id).where(batches.c.id == 1))
    world.emulator.add_fault(on=on, do="status", status=500, error_type="api_error", match=api_id)
    monkeypatch.setattr("pipeline.driver.listing.LEAST", 100)  # each is asked after by itself
    for _ in range(3):
        world.clock.advance(100)
        [(_, problem)] = world.sweep()

    assert "500" in str(problem)
    assert world.batch_states() == ["in_progress" if on == "retrieve" else "ended", *["collected"] * 4]
