"""Many open batches are polled by one listing, few by a call each."""

from collections import Counter
from datetime import timedelta

import httpx2
import pytest
from sqlalchemy import insert, select, update

from pipeline.runner.options import Options
from pipeline.runner.run import run
from pipeline.runner.sweep import sweep
from pipeline.state.tables import batches, leases
from tests.conftest import World, texts

POSTGRESQL_IS_LONG = True


class Counting(httpx2.BaseTransport):
    """Counts the driver's calls."""

    def __init__(self, world: World) -> None:
        self._inner = world.emulator.transport()
        self.calls: Counter[str] = Counter()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path.removeprefix("/v1/messages/batches")
        if request.method == "GET" and not path and request.url.params["limit"] != "1":  # which asks who we are
            self.calls["list"] += 1
        elif request.method == "GET" and path.count("/") == 1:
            self.calls["retrieve"] += 1
        return self._inner.handle_request(request)


class Taking(httpx2.BaseTransport):
    """Lets another driver claim the first batch while the listing is read."""

    def __init__(self, world: World) -> None:
        self._world, self._inner = world, world.emulator.transport()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.params.get("limit") == "1000":
            with self._world.database.write() as conn:
                taken = {"claim": batches.c.claim + 1, "claimed_by": "another driver"}
                conn.execute(update(batches).where(batches.c.id == 1).values(**taken))
        return self._inner.handle_request(request)


def swept(world: World) -> Counter[str]:
    """Sweep once and return the calls."""
    counting = Counting(world)
    assert [problem for _, problem in sweep(world.where(counting))] in (
        [None],
        [None, None],
    )
    return counting.calls


def submitted(world: World, rows: int, name: str = "summaries") -> None:
    """Submit one batch for each row."""
    world.rows(texts(rows), f"{name}.csv")
    source = {"path": str(world.folder / f"{name}.csv"), "key": "id"}
    job = world.job(name=name, source=source, sink={"table": name}, limits={"max_batch_requests": 1})
    run(job, world.where(), Options(detach=True))


def test_fifty_open_batches_are_polled_by_one_listing(world: World) -> None:
    submitted(world, 30)
    submitted(world, 20, "others")
    world.clock.advance(31)  # while they are still running

    running = swept(world)
    world.clock.advance(31)
    ended = swept(world)

    assert running == {"list": 1}
    assert ended == {"list": 1}
    assert set(world.statuses().values()) | set(world.statuses("others").values()) == {"succeeded"}


def test_batches_that_run_longer_are_polled_less_often(world: World) -> None:
    world.with_settings(poll=None)
    submitted(world, 6)
    waits = []
    for _ in range(2):
        world.clock.advance(20)
        swept(world)
        with world.database.read() as conn:
            waits.append(conn.execute(select(batches.c.wait_seconds, batches.c.claimed_by).distinct()).all())

    (first, nobody), (second, _) = waits[0][0], waits[1][0]
    assert [len(each) for each in waits] == [1, 1]
    assert nobody is None
    assert 0 < first < second


def test_a_batch_that_another_driver_claimed_meanwhile_is_left_to_it(world: World) -> None:
    submitted(world, 6)
    world.clock.advance(31)
    with world.database.write() as conn:  # its sign of life
        until = world.clock() + timedelta(days=1)
        conn.execute(insert(leases).values(resource="another driver", token=1, expires_at=until))

    assert [problem for _, problem in sweep(world.where(Taking(world)))] == [None]

    with world.database.read() as conn:
        claimed = list(conn.scalars(select(batches.c.claimed_by).order_by(batches.c.id)))
    assert claimed == ["another driver", None, None, None, None, None]


def test_a_few_open_batches_are_retrieved_one_by_one(world: World) -> None:
    submitted(world, 3)
    world.clock.advance(61)

    assert swept(world) == {"retrieve": 3}
    assert set(world.statuses().values()) == {"succeeded"}


@pytest.mark.parametrize(
    "fault",
    [{"on": "list", "do": "status", "status": 500, "after": 1}, {"on": "list", "do": "lag", "seconds": 3600}],
    ids=["broken", "lagging"],
)
def test_batches_missing_in_the_listing_are_retrieved_one_by_one(world: World, fault: dict[str, object]) -> None:
    submitted(world, 6)
    world.clock.advance(61)
    world.emulator.add_fault(**fault)

    calls = swept(world)

    assert calls["retrieve"] == 6
    assert set(world.statuses().values()) == {"succeeded"}


def test_a_batch_deleted_at_the_api_is_retrieved_until_it_is_lost(world: World) -> None:
    submitted(world, 6)
    world.clock.advance(61)
    client = world.client()
    gone = next(iter(client.messages.batches.list())).id
    client.messages.batches.delete(gone)

    first = swept(world)
    for _ in range(4):
        world.clock.advance(1_800)
        world.sweep()

    assert first == {"list": 1, "retrieve": 1}
    assert sorted(world.statuses().values()) == ["lost"] + 5 * ["succeeded"]


def test_newer_batches_of_another_program_do_not_make_the_listing_endless(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.driver.listing.FOR_EACH", 1)
    submitted(world, 6)
    others = world.client()
    item = {
        "custom_id": "theirs",
        "params": {"model": "claude-haiku-4-5", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi."}]},
    }
    for _ in range(4):
        others.messages.batches.create(requests=[item])  # type: ignore[list-item]
    world.clock.advance(61)

    calls = swept(world)

    assert (calls["list"], calls["retrieve"]) == (1, 4)
    assert set(world.statuses().values()) == {"succeeded"}
