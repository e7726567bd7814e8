"""Drivers overlap, stop and wake at bad moments; no row is lost or paid for twice."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import anthropic
import httpx2
import orjson
import pytest
from sqlalchemy import select, update

from pipeline.api import client as api_module
from pipeline.api.client import Api
from pipeline.errors import AccountStopped, DatabaseError
from pipeline.runner.options import Options
from pipeline.runner.run import run
from pipeline.runner.sweep import sweep
from pipeline.state.database import Database
from pipeline.state.jobs import job_named
from pipeline.state.moves import record_api_id
from pipeline.state.tables import batches, runs, sendings
from pipeline.steps.cancel import cancel
from tests.conftest import World, texts

POSTGRESQL_IS_LONG = True

Hook = Callable[[httpx2.Request], None]


class Between(httpx2.BaseTransport):
    """Calls `before` and `after` once, around the first matching request."""

    def __init__(self, inner: httpx2.BaseTransport, before: Hook | None = None, after: Hook | None = None) -> None:
        self._inner, self._before, self._after = inner, before, after

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        create = request.method == "POST" and request.url.path.endswith("/batches")
        if create and self._before is not None:
            before, self._before = self._before, None
            before(request)
        response = self._inner.handle_request(request)
        if create and self._after is not None:
            after, self._after = self._after, None
            response.read()
            after(request)
        return response


def suspended(world: World, *, before: Hook | None = None, after: Hook | None = None, skew: float = 0.0) -> None:
    """Run a driver that is suspended around its first create call while `before` or `after` happens."""
    transport = Between(world.emulator.transport(), before, after)
    client = world.client(transport)
    now = lambda: world.clock() + timedelta(seconds=skew)  # noqa: E731
    run(world.job(), replace(world.where(), connect=lambda _: Api(client, now=now), now=now))


def sent(world: World) -> list[tuple[str | None, bool]]:
    """Return the end of each sending, and whether it has a batch at the API."""
    with world.database.read() as conn:
        found = conn.execute(select(sendings.c.end, sendings.c.api_id).order_by(sendings.c.id))
        return [(end, api_id is not None) for end, api_id in found]


def other_program(world: World) -> anthropic.Anthropic:
    """Return a client of another program in the same workspace."""
    return world.client()


def send_of_theirs(client: anthropic.Anthropic, requests: int) -> str:
    params = {
        "model": "claude-haiku-4-5",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": os.urandom(8).hex()}],
    }
    items = [{"custom_id": f"theirs-{i}", "params": params} for i in range(requests)]
    return client.messages.batches.create(requests=items).id  # type: ignore[arg-type]


def test_a_driver_suspended_before_its_create_call_wakes_after_another_has_done_its_work(world: World) -> None:
    suspended(world, before=lambda request: _finish_with_another(world))

    assert (world.accepted(), world.sent_twice()) == (5, [])
    assert set(world.statuses().values()) == {"succeeded"}
    assert ("accepted", True) in sent(world)


def test_a_driver_suspended_after_the_api_accepted_its_batch_wakes_after_another_found_it(world: World) -> None:
    suspended(world, after=lambda request: _finish_with_another(world))

    assert world.accepted() == 5
    assert sent(world) == [("adopted", True)]
    assert set(world.statuses().values()) == {"succeeded"}


def _finish_with_another(world: World) -> None:
    world.clock.advance(world.settings.lease + 1)  # the sleeper's sign of life has run out
    assert world.run(world.job()).state == "finished"


def test_a_response_that_arrives_after_another_driver_claimed_the_batch_is_still_recorded(world: World) -> None:
    def take_over(request: httpx2.Request) -> None:
        world.clock.advance(world.settings.lease + 1)
        with world.database.write() as conn:
            conn.execute(update(batches).values(claim=batches.c.claim + 1, claimed_by="driver elsewhere"))

    suspended(world, after=take_over)

    assert sent(world) == [("accepted", True)]
    assert world.told("taken_over")
    assert (world.accepted(), set(world.statuses().values())) == (5, {"succeeded"})


def test_a_batch_whose_response_arrives_after_another_driver_read_the_listing_is_not_absent(world: World) -> None:
    """A reader of the listing skips batches that belong to a sending. Here that is the sending it looks for."""
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    world.run(world.job(), detach=True)
    world.clock.advance(3600)

    class Listed(httpx2.BaseTransport):
        def __init__(self) -> None:
            self.inner = world.emulator.transport()

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            response = self.inner.handle_request(request)
            if request.method == "GET" and request.url.params.get("limit") == str(api_module.PAGE):
                with world.database.write() as conn:  # as the driver does that sent it, when it wakes with the answer
                    record_api_id(conn, 1, orjson.loads(response.read())["data"][0]["id"], None, world.clock())
            return response

    sweep(world.where(Listed()))
    world.run(world.job())

    assert not world.told("absent")
    assert sent(world) == [("accepted", True)]
    assert (world.accepted(), set(world.statuses().values())) == (5, {"succeeded"})


def test_a_batch_that_was_not_accepted_leaves_no_row_in_flight_after_a_cancel(world: World) -> None:
    world.emulator.add_fault(on="create", do="drop_before", times=1)
    world.run(world.job(), detach=True)
    with world.database.read() as conn:
        job = job_named(conn, "summaries")
    assert job is not None
    cancel(world.where(), job)
    world.clock.advance(3600)
    world.rows(texts(1))

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 1}
    assert world.states() == {"r0": "succeeded"}
    assert sorted(set(world.batch_states())) == ["collected", "dropped"]


def test_a_create_call_slower_than_the_deadline_is_stopped_and_sent_again(world: World) -> None:
    world.rows([{"id": f"r{i}", "text": f"{i} " + "slow " * 20_000} for i in range(3)])

    class Slow(httpx2.BaseTransport):
        def __init__(self) -> None:
            self.inner, self.slow = world.emulator.transport(), True

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            if request.url.path.endswith("/batches") and self.slow and request.method == "POST":
                self.slow = False
                assert isinstance(request.stream, httpx2.SyncByteStream)
                content = b""
                for chunk in request.stream:
                    world.clock.advance(400)  # each one
                    content += chunk
                request = httpx2.Request(request.method, request.url, headers=request.headers, content=content)
            return self.inner.handle_request(request)

    run(world.job(), world.where(Slow()))

    assert "the upload took longer than 600 s" in world.told("rejected")[0]["problem"]
    assert [end for end, _ in sent(world)] == ["rejected", "accepted"]
    assert world.accepted() == 3


def test_a_listing_of_another_workspace_does_not_prove_that_a_batch_is_absent(world: World) -> None:
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    world.run(world.job(), detach=True)
    world.key = "test@other-team"
    world.clock.advance(3600)

    world.sweep()
    states = world.batch_states()
    world.key = "test"
    world.clock.advance(61)
    finished = world.run(world.job())

    assert states == ["submitting"]
    assert finished.rows == {"succeeded": 5}
    assert world.accepted() == 5


@pytest.mark.parametrize("hours", [1, -1], ids=["ahead", "behind"])
def test_a_driver_whose_clock_is_an_hour_wrong_finds_its_batch_and_delays_no_other_driver(
    world: World, hours: int
) -> None:
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    client = other_program(world)
    off = lambda: world.clock() + timedelta(hours=hours)  # noqa: E731
    run(world.job(), replace(world.where(), connect=lambda _: Api(client, now=off), now=off), Options(detach=True))

    before = world.clock()
    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert [end for end, _ in sent(world)] == ["adopted"]
    assert world.accepted() == 5
    assert (world.clock() - before).total_seconds() < 600


def test_batches_of_the_same_size_from_another_program_are_not_taken_for_ours(world: World) -> None:
    client = other_program(world)
    theirs = [send_of_theirs(client, 5)]
    world.emulator.add_fault(on="create", do="drop_before", times=1)

    def go_on(event: str, facts: object) -> None:
        if event in ("watching", "waiting") and len(theirs) < 20:
            theirs.append(send_of_theirs(client, 5))

    world.on_event = go_on
    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    assert [end for end, _ in sent(world)] == ["absent", "accepted"]
    assert world.accepted() == 5 + 5 * len(theirs)


@pytest.fixture
def pages_of_one() -> Iterator[None]:
    before, api_module.PAGE = api_module.PAGE, 1
    yield
    api_module.PAGE = before


@pytest.mark.usefixtures("pages_of_one")
def test_a_listing_that_fails_on_its_third_page_proves_nothing(world: World) -> None:
    world.emulator.add_fault(on="create", do="drop_after", times=1, match="number 1 ")
    world.emulator.add_fault(on="list", do="status", status=500, error_type="api_error", list_page=3, times=9)

    def bury_it(event: str, facts: object) -> None:  # below batches of others, so that it is on the third page
        if event == "unknown_end":
            for _ in range(3):
                send_of_theirs(other_program(world), 2)

    world.on_event = bury_it
    finished = world.run(world.job())

    assert any("could not be read" in told["problem"] for told in world.told("watching"))
    assert finished.rows == {"succeeded": 5}
    assert [end for end, _ in sent(world)] == ["adopted"]
    assert world.accepted() == 5 + 6


@pytest.mark.usefixtures("pages_of_one")
def test_a_listing_is_read_again_when_batches_are_deleted_while_it_is_read(world: World) -> None:
    client = other_program(world)
    world.emulator.add_fault(on="create", do="drop_after", times=1, match="number 1 ")
    theirs: list[str] = []

    def bury_it(event: str, facts: object) -> None:
        if event == "unknown_end":
            theirs.extend(send_of_theirs(client, 2) for _ in range(3))
            world.clock.advance(51)

    class Deleting(httpx2.BaseTransport):
        """Deletes the newest batch when its page has been read."""

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            response = world.emulator.transport().handle_request(request)
            first_page = (
                request.method == "GET" and request.url.path.endswith("/batches") and "after_id" not in str(request.url)
            )
            if first_page and len(theirs) > 1:
                client.messages.batches.delete(theirs.pop())
            return response

    world.on_event = bury_it
    finished = run(world.job(), world.where(Deleting()))

    assert finished.rows == {"succeeded": 5}
    assert [end for end, _ in sent(world)] == ["adopted"]
    assert len(theirs) == 1


def test_a_batch_with_a_candidate_whose_results_are_gone_is_not_presumed_absent(world: World) -> None:
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    world.emulator.add_fault(on="results", do="status", status=404, error_type="not_found_error")

    world.run(world.job(), detach=True)
    world.clock.advance(3600)
    world.sweep()
    waiting = world.batch_states()
    world.clock.advance(26 * 3600)
    world.sweep()

    lost = (world.batch_states(), set(world.statuses().values()))
    world.emulator.clear_faults()
    for _ in range(3):  # they are back
        world.clock.advance(6 * 3600)
        world.sweep()

    assert waiting == ["submitting"]
    assert lost == (["lost"], {"lost"})
    assert set(world.statuses().values()) == {"succeeded"}
    assert [end for end, _ in sent(world)] == ["adopted"]
    assert world.accepted() == 5


def test_a_batch_whose_body_is_missing_is_rendered_again(world: World) -> None:
    world.emulator.add_fault(on="create", do="status", status=429, error_type="rate_limit_error", retry_after=100)
    world.run(world.job(), detach=True)
    world.emulator.clear_faults()
    [body] = (world.folder / "spool" / "summaries").glob("*.json")
    body.unlink()
    world.clock.advance(200)

    world.sweep()
    after_sweep = world.batch_states()
    finished = world.run(world.job())

    assert after_sweep == ["dropped"]
    assert finished.rows == {"succeeded": 5}
    assert world.accepted() == 5


def test_a_database_restored_from_before_a_batch_was_planned_is_refused(world: World, tmp_path: Path) -> None:
    if world.database.file is None:  # what a backup is like does not depend on the database
        return
    world.rows(texts(1))
    world.run(world.job())
    shutil.copy(world.database.file, tmp_path / "backup.db")
    world.rows(texts(5))
    world.run(world.job(), detach=True)
    for name in ("batches.db-wal", "batches.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    world.database.close()
    shutil.copy(tmp_path / "backup.db", world.database.file)
    world.database = Database(str(world.database.url))
    world.clock.advance(120)

    with pytest.raises(DatabaseError, match="restored from an older backup"):
        world.run(world.job())

    assert world.accepted() == 5


def test_a_body_whose_driver_died_before_it_was_committed_is_removed(world: World) -> None:
    world.run(world.job(), limit=1)
    orphan = world.folder / "spool" / "summaries" / f"{'a' * 26}.json"
    orphan.write_text('{"requests":[\n{"custom_id":"x","params":{}}\n]}')

    finished = world.run(world.job())

    assert not orphan.exists()
    assert finished.rows == {"succeeded": 4}


def test_a_row_equal_to_one_at_the_api_gets_its_own_answer(world: World) -> None:
    world.rows([{"id": "a", "text": "The same text."}])
    world.run(world.job(), detach=True)
    world.rows([{"id": "a", "text": "The same text."}, {"id": "b", "text": "The same text."}])
    world.clock.advance(49)  # the first one ends while the second is planned

    finished = world.run(world.job())

    assert finished.state == "finished"
    assert world.statuses() == {"a": "succeeded", "b": "succeeded"}


@pytest.mark.parametrize("error", ["billing_error", "authentication_error", "permission_error"])
def test_requests_refused_because_of_the_account_stop_submitting_and_count_no_attempt(world: World, error: str) -> None:
    world.emulator.add_fault(on="item", do="error", error_type=error, match="number 1 ")

    with pytest.raises(AccountStopped, match="submitting has stopped") as stopped:
        world.run(world.job())
    states = world.batch_states()
    world.emulator.clear_faults()
    swept = world.sweep()
    finished = world.run(world.job())

    assert error in str(stopped.value)
    assert states == ["collected", "planned"]
    assert "submitting has stopped" in str(swept[0][1])
    assert finished.rows == {"succeeded": 5}
    assert world.answers()["r1"]["attempts"] == 1
    assert world.sent_twice() == []


def test_a_batch_unknown_to_the_api_for_an_hour_is_lost_and_is_collected_when_it_reappears(
    world: World,
) -> None:
    world.emulator.add_fault(on="retrieve", do="status", status=404, error_type="not_found_error")

    finished = world.run(world.job())
    lost = (finished.rows, world.batch_states(), set(world.statuses().values()))
    again = world.run(world.job())
    world.emulator.clear_faults()
    world.clock.advance(6 * 3600)
    world.sweep()
    world.clock.advance(60)
    world.sweep()

    assert lost == ({"lost": 5}, ["lost"], {"lost"})
    assert finished.exit_code == 1
    assert again.rows == {}
    assert set(world.statuses().values()) == {"succeeded"}
    assert world.answers()["r1"]["attempts"] == 1
    assert world.accepted() == 5


def test_a_batch_is_not_lost_because_of_404s_within_an_hour_of_its_create(world: World) -> None:
    world.emulator.add_fault(on="retrieve", do="status", status=404, error_type="not_found_error", times=60)

    finished = world.run(world.job())

    assert len(world.told("not_found")) == 60
    assert finished.rows == {"succeeded": 5}


def test_results_older_than_29_days_are_lost_and_not_requested_again(world: World) -> None:
    world.run(world.job(), detach=True)
    world.clock.advance(30 * 86_400)

    finished = world.run(world.job())
    calls = len(world.told("not_found"))
    world.clock.advance(86_400)
    swept = world.sweep()

    assert (finished.rows, world.batch_states()) == ({"lost": 5}, ["lost"])
    assert "29 days" in world.answers()["r1"]["error_message"]
    assert (swept, calls) == ([], 0)


def test_a_twin_that_appears_late_is_reported(world: World) -> None:
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    world.emulator.add_fault(on="list", do="lag", seconds=600)  # longer than the grace time: the promise ends here
    world.run(world.job())
    world.emulator.clear_faults()

    swept = [world.sweep(), world.sweep()]

    assert [end for end, _ in sent(world)] == ["twin", "accepted"]
    assert len(world.told("twin")) == 1
    assert "paid twice" in world.told("twin")[0]["problem"]
    assert swept == [[("summaries", None)], []]


def test_a_run_that_another_driver_ended_ends_for_this_driver_too(world: World) -> None:
    def end(event: str, facts: object) -> None:
        if event == "waiting":
            world.on_event = None
            with world.database.write() as conn:
                conn.execute(update(runs).values(state="incomplete", reason="canceled"))

    world.on_event = end
    finished = world.run(world.job())
    swept = sweep(world.where())
    world.clock.advance(60)
    sweep(world.where())

    assert (finished.state, finished.reason, finished.exit_code) == ("incomplete", "canceled", 3)
    assert swept == [("summaries", None)]
    assert set(world.statuses().values()) == {"succeeded"}


def test_a_row_that_becomes_pending_while_another_driver_plans_is_not_vanished(world: World) -> None:
    world.rows(texts(2))
    world.emulator.add_fault(on="item", do="error", error_type="billing_error", match="number 1 ", times=1)
    world.run(world.job(), detach=True)
    world.rows([*texts(2), {"id": "new", "text": "A new one."}])

    def collect(event: str, facts: dict[str, object]) -> None:
        if event == "planned":  # the rows of the first batch have been judged by being in flight
            world.on_event = None
            world.clock.advance(60)
            world.sweep()

    world.on_event = collect
    with suppress(AccountStopped):
        world.run(world.job())
    world.run(world.job())

    assert world.states() == {"r0": "succeeded", "r1": "succeeded", "new": "succeeded"}
    assert world.sent_twice() == []
