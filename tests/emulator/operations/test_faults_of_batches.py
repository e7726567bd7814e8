"""Faults of batches: listings out of order, wrong counts, and cancels that never end."""

from typing import Any

import httpx2
import pytest

from pipeline.emulator import Emulator, EmulatorError, start
from tests.emulator.builders import BATCHES, HEADERS, Served, client_of, http_of, requests


def pages(served: Served, limit: int) -> list[str]:
    """Return the ids of a whole listing, page by page."""
    seen: list[str] = []
    query: dict[str, Any] = {"limit": limit}
    while True:
        page = served.http.get(BATCHES, params=query).raise_for_status().json()
        seen += [batch["id"] for batch in page["data"]]
        if not page["has_more"]:
            return seen
        query["after_id"] = page["last_id"]


def made(served: Served, number: int) -> list[str]:
    """Create batches and return their ids, oldest first."""
    return [served.create(1, first=n).json()["id"] for n in range(number)]


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_a_listing_can_be_oldest_first(served: Served, limit: int) -> None:
    ids = made(served, 7)
    served.emulator.add_fault(on="list", do="disorder", order="oldest_first")

    assert pages(served, limit) == ids


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_a_listing_can_be_in_random_order_with_each_batch_once(served: Served, limit: int) -> None:
    ids = made(served, 9)
    served.emulator.add_fault(on="list", do="disorder", order="shuffled")

    listed = pages(served, limit)

    assert sorted(listed) == sorted(ids)
    assert listed not in (ids, ids[::-1])
    assert listed == pages(served, 4)


def test_a_new_batch_moves_no_other_in_a_shuffled_listing(served: Served) -> None:
    made(served, 6)
    served.emulator.add_fault(on="list", do="disorder", order="shuffled")
    before = pages(served, 2)

    new = served.create(1, first=6).json()["id"]

    assert [batch_id for batch_id in pages(served, 2) if batch_id != new] == before


def test_pages_of_a_disordered_listing_are_counted_in_its_order(served: Served) -> None:
    ids = made(served, 3)
    served.emulator.add_fault(on="list", do="disorder", order="oldest_first", times=2)
    served.emulator.add_fault(on="list", do="status", status=500, list_page=2)

    first = served.http.get(BATCHES, params={"limit": 1}).json()
    second = served.http.get(BATCHES, params={"limit": 1, "after_id": ids[0]})
    third = served.http.get(BATCHES, params={"limit": 1, "after_id": ids[1]}).json()

    assert first["first_id"] == ids[0]
    assert second.status_code == 500
    assert third["first_id"] == ids[2]
    assert served.http.get(BATCHES).json()["first_id"] == ids[2]  # disorder fired twice


# counts


@pytest.mark.parametrize(("add", "counted"), [(3, 5), (-1, 1), (-9, 0)])
def test_the_counts_of_an_ended_batch_can_disagree_with_its_results(served: Served, add: int, counted: int) -> None:
    batch_id = served.ended(2)
    served.emulator.add_fault(on="retrieve", do="counts", add=add)
    served.emulator.add_fault(on="list", do="counts", add=1)

    looked, listed = served.batch(batch_id), served.http.get(BATCHES).json()["data"][0]

    assert looked["request_counts"] == {
        "processing": 0,
        "succeeded": counted,
        "errored": 0,
        "canceled": 0,
        "expired": 0,
    }
    assert listed["request_counts"]["succeeded"] == 3


def test_the_counts_of_a_running_batch_can_disagree_with_its_requests(slow: Emulator) -> None:
    batch_id = client_of(slow).messages.batches.create(requests=requests(2)).id
    slow.add_fault(on="retrieve", do="counts", add=5)
    slow.add_fault(on="cancel", do="counts", add=-1)

    looked = http_of(slow).get(f"{BATCHES}/{batch_id}").json()["request_counts"]
    canceled = http_of(slow).post(f"{BATCHES}/{batch_id}/cancel").json()["request_counts"]

    assert (looked["processing"], looked["succeeded"]) == (7, 0)
    assert canceled["processing"] == 1


@pytest.mark.parametrize("fields", [{}, {"times": 1}, {"match": "ID"}], ids=["all", "one", "by id"])
def test_a_rule_about_counts_can_select_some_batches_of_a_listing(served: Served, fields: dict[str, Any]) -> None:
    ids = [served.ended(1) for _ in range(3)]
    rule = {name: ids[1] if value == "ID" else value for name, value in fields.items()}
    served.emulator.add_fault({"on": "list", "do": "counts", "add": 1, **rule})

    counts = {batch["id"]: batch["request_counts"]["succeeded"] for batch in served.http.get(BATCHES).json()["data"]}

    touched = [batch_id for batch_id, count in counts.items() if count == 2]
    assert touched == (ids[::-1] if not fields else [ids[2]] if "times" in fields else [ids[1]])


def test_results_url_of_one_batch_of_a_listing_can_name_another_host(served: Served) -> None:
    ids = [served.ended(1) for _ in range(2)]
    served.emulator.add_fault(on="list", do="results_url", host="https://results.example", match=ids[0])

    listed = served.http.get(BATCHES).json()["data"]

    assert [batch["id"] for batch in listed if "results.example" in batch["results_url"]] == ids[:1]


# cancels


def test_a_canceled_batch_can_stay_canceling_until_the_rules_are_cleared(slow: Emulator) -> None:
    client = client_of(slow)
    held, free = (client.messages.batches.create(requests=requests(2)).id for _ in range(2))
    slow.add_fault(on="cancel", do="never_ends", times=1)
    for batch_id in (held, free):
        assert client.messages.batches.cancel(batch_id).processing_status == "canceling"

    slow.clock.advance(3 * 24 * 3600)
    slow.wait_idle()
    during = [client.messages.batches.retrieve(batch_id).processing_status for batch_id in (held, free)]
    slow.clear_faults()
    after = client.messages.batches.retrieve(held)

    assert during == ["canceling", "ended"]
    assert after.processing_status == "ended"
    assert after.request_counts.processing == 0


def test_the_worker_ends_a_held_batch_after_the_rules_are_cleared(tmp_path: Any) -> None:
    with (
        start(tmp_path, processing_seconds=3600) as running,
        httpx2.Client(base_url=running.url, headers=HEADERS) as http,
    ):
        served = Served(running.emulator, http)
        batch_id = served.create(2).json()["id"]
        http.post("/_emulator/faults", json={"on": "cancel", "do": "never_ends", "match": batch_id}).raise_for_status()
        http.post(f"{BATCHES}/{batch_id}/cancel").raise_for_status()

        running.emulator.clock.advance(24 * 3600)
        running.emulator.wait_idle()
        during = served.batch(batch_id)["processing_status"]
        http.delete("/_emulator/faults").raise_for_status()
        running.emulator.wait_idle()

        assert during == "canceling"
        assert served.batch(batch_id)["processing_status"] == "ended"


# rules


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"on": "list", "do": "disorder"}, "faults[0]: do: disorder needs order"),
        ({"on": "list", "do": "disorder", "order": "up"}, "faults[0].order: Input should be 'oldest_first' or"),
        ({"on": "retrieve", "do": "disorder", "order": "shuffled"}, "faults[0]: do: disorder needs on: list"),
        ({"on": "list", "do": "counts"}, "faults[0]: do: counts needs add"),
        ({"on": "any", "do": "counts", "add": 1}, "faults[0]: do: counts needs on: cancel or list or retrieve"),
        ({"on": "list", "do": "lag", "seconds": 1, "add": 1}, "faults[0]: add cannot be used with do: lag"),
        ({"on": "retrieve", "do": "never_ends"}, "faults[0]: do: never_ends needs on: cancel, not retrieve"),
    ],
    ids=str,
)
def test_a_wrong_rule_is_refused(emulator: Emulator, rule: dict[str, Any], message: str) -> None:
    with pytest.raises(EmulatorError) as refused:
        emulator.add_fault(rule)

    assert str(refused.value).startswith(message)
