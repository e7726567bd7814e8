"""The states of a batch, the listing of batches, and their requests and results, by the emulator's clock."""

import re
from datetime import datetime, timedelta

import anthropic
import pytest

from pipeline.emulator import Emulator, Settings
from pipeline.emulator.wire import ORGANIZATION_ID
from tests.emulator.builders import client_of, http_of, requests, result_lines

DAY = 24 * 3600


def test_counts_do_not_change_until_the_batch_has_ended(slow: Emulator) -> None:
    client = client_of(slow)
    batch = client.messages.batches.create(requests=requests(10))

    slow.clock.advance(1800)
    half_way = client.messages.batches.retrieve(batch.id)
    slow.clock.advance(1800)
    ended = client.messages.batches.retrieve(batch.id)

    assert (half_way.processing_status, half_way.request_counts.processing) == ("in_progress", 10)
    assert (ended.processing_status, ended.request_counts.succeeded) == ("ended", 10)


@pytest.mark.parametrize(("processing_seconds", "hint"), [(3600, "10"), (60, "10"), (6, "1"), (0.3, "0.05")], ids=str)
def test_a_running_batch_says_when_to_poll_again(slow: Emulator, processing_seconds: float, hint: str) -> None:
    slow._core.processing_seconds = processing_seconds
    client = client_of(slow)
    created = client.messages.batches.with_raw_response.create(requests=requests(1))
    batch_id = created.parse().id
    running = client.messages.batches.with_raw_response.retrieve(batch_id)

    slow.clock.advance(3600)
    ended = client.messages.batches.with_raw_response.retrieve(batch_id)

    assert running.headers["retry-after"] == hint
    assert "retry-after" not in created.headers
    assert "retry-after" not in ended.headers


def test_times_and_ids_have_the_form_of_the_api(emulator: Emulator) -> None:
    raw = client_of(emulator).messages.batches.with_raw_response.create(requests=requests(1)).http_response
    batch = raw.json()

    assert re.fullmatch(r"msgbatch_01[1-9A-HJ-NP-Za-km-z]{22}", batch["id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", batch["created_at"])
    assert datetime.fromisoformat(batch["expires_at"]) - datetime.fromisoformat(batch["created_at"]) == timedelta(
        days=1
    )
    assert raw.headers["anthropic-organization-id"] == ORGANIZATION_ID
    assert raw.headers["anthropic-workspace-id"].startswith("wrkspc_01")
    assert raw.headers["request-id"].startswith("req_01")


def test_the_date_header_follows_the_emulators_clock(emulator: Emulator) -> None:
    before = http_of(emulator).get("/v1/messages/batches").headers["date"]
    emulator.clock.advance(3 * DAY)
    after = http_of(emulator).get("/v1/messages/batches").headers["date"]

    parse = "%a, %d %b %Y %H:%M:%S GMT"
    turned = datetime.strptime(after, parse) - datetime.strptime(before, parse)  # noqa: DTZ007  # only the difference
    assert timedelta(days=3) <= turned < timedelta(days=3, minutes=1)


def test_results_are_shuffled_the_same_way_each_time(emulator: Emulator, client: anthropic.Anthropic) -> None:
    batch = client.messages.batches.create(requests=requests(50))
    emulator.wait_idle()

    first = [line["custom_id"] for line in result_lines(client, batch.id)]
    second = [line["custom_id"] for line in result_lines(client, batch.id)]

    assert first == second
    assert first != [f"row-{n}" for n in range(50)]
    assert sorted(first) == sorted(f"row-{n}" for n in range(50))


def test_results_are_sent_in_chunks_as_jsonl(emulator: Emulator, client: anthropic.Anthropic) -> None:
    batch = client.messages.batches.create(requests=requests(2))

    response = http_of(emulator).get(f"/v1/messages/batches/{batch.id}/results")

    assert response.headers["content-type"] == "application/x-jsonl"
    assert "content-length" not in response.headers


def test_results_url_has_the_host_that_the_client_called(emulator: Emulator, client: anthropic.Anthropic) -> None:
    batch = client.messages.batches.create(requests=requests(1))

    here = client.messages.batches.retrieve(batch.id)
    there = client_of(emulator, base_url="https://gateway.test:8443").messages.batches.retrieve(batch.id)

    assert here.results_url == f"http://emulator.test/v1/messages/batches/{batch.id}/results"
    assert there.results_url == f"https://gateway.test:8443/v1/messages/batches/{batch.id}/results"


def test_requests_that_are_not_processed_in_24_hours_expire(slow: Emulator) -> None:
    slow._core.processing_seconds = 2 * DAY
    client = client_of(slow)
    batch = client.messages.batches.create(requests=requests(10))

    slow.clock.advance(DAY)
    ended = client.messages.batches.retrieve(batch.id)
    expired = [line for line in result_lines(client, batch.id) if line["result"] == {"type": "expired"}]

    assert ended.processing_status == "ended"
    assert (ended.request_counts.succeeded, ended.request_counts.expired) == (5, 5)
    assert len(expired) == 5


def test_a_canceled_batch_ends_soon_with_some_requests_succeeded_and_some_canceled(slow: Emulator) -> None:
    client = client_of(slow)
    batch = client.messages.batches.create(requests=requests(100))

    slow.clock.advance(1800)
    canceling = client.messages.batches.cancel(batch.id)
    slow.clock.advance(5)
    ended = client.messages.batches.retrieve(batch.id)

    assert canceling.processing_status == "canceling"
    assert canceling.request_counts.processing == 100
    assert ended.processing_status == "ended"
    assert 50 <= ended.request_counts.succeeded < 100  # half were done, and some could not be interrupted
    assert ended.request_counts.succeeded + ended.request_counts.canceled == 100
    assert result_lines(client, batch.id)[-1]["result"]["type"] in ("canceled", "succeeded")


@pytest.mark.parametrize(("share", "canceled"), [(1.0, 20), (0.0, 0)])
def test_the_share_of_canceled_requests_can_be_set(slow: Emulator, share: float, canceled: int) -> None:
    slow.settings.canceled_share = share
    client = client_of(slow)
    batch = client.messages.batches.create(requests=requests(20))

    client.messages.batches.cancel(batch.id)
    slow.clock.advance(5)

    assert client.messages.batches.retrieve(batch.id).request_counts.canceled == canceled


def test_a_second_cancel_changes_nothing(slow: Emulator) -> None:
    client = client_of(slow)
    batch = client.messages.batches.create(requests=requests(1))

    first = client.messages.batches.cancel(batch.id)
    slow.clock.advance(1)
    second = client.messages.batches.cancel(batch.id)

    assert second == first


def test_moves_from_the_wrong_state_are_refused_with_a_status_from_the_settings(slow: Emulator) -> None:
    client, http = client_of(slow), http_of(slow)
    slow.settings.delete_running_status = 409
    slow.settings.early_results_status = 400
    batch = client.messages.batches.create(requests=requests(1))

    deleted = http.delete(f"/v1/messages/batches/{batch.id}")
    early = http.get(f"/v1/messages/batches/{batch.id}/results")
    slow.clock.advance(3600)
    canceled = http.post(f"/v1/messages/batches/{batch.id}/cancel")
    slow.settings.cancel_ended_status = 200
    echoed = http.post(f"/v1/messages/batches/{batch.id}/cancel")

    assert (deleted.status_code, early.status_code, canceled.status_code) == (409, 400, 400)
    assert deleted.json()["error"]["type"] == "conflict_error"
    assert echoed.json()["processing_status"] == "ended"


def test_results_are_archived_29_days_after_the_create(slow: Emulator) -> None:
    client = client_of(slow)
    batch = client.messages.batches.create(requests=requests(1))
    slow.clock.advance(3600)
    client.messages.batches.retrieve(batch.id)

    slow.clock.advance(29 * DAY - 3601)
    before = client.messages.batches.retrieve(batch.id)
    slow.clock.advance(2)
    after = client.messages.batches.retrieve(batch.id)
    gone = http_of(slow).get(f"/v1/messages/batches/{batch.id}/results")

    assert before.results_url is not None
    assert after.archived_at == batch.created_at + timedelta(days=29)
    assert after.results_url is None
    assert after.request_counts.succeeded == 1
    assert gone.status_code == 404


def test_a_deleted_batch_is_not_listed_and_its_requests_and_results_are_removed(
    emulator: Emulator, client: anthropic.Anthropic
) -> None:
    batch = client.messages.batches.create(requests=requests(1))
    client.messages.batches.retrieve(batch.id)

    client.messages.batches.delete(batch.id)

    assert client.messages.batches.list().data == []
    assert http_of(emulator).get(f"/v1/messages/batches/{batch.id}/results").status_code == 404
    assert http_of(emulator).delete(f"/v1/messages/batches/{batch.id}").status_code == 404
    assert sorted(path.name for path in (emulator.data / "batches" / batch.id).iterdir()) == ["accepted", "outcomes"]
    assert [entry["result"] for entry in emulator.accepted()] == ["succeeded"]


def test_a_listing_pages_through_all_batches(emulator: Emulator, client: anthropic.Anthropic) -> None:
    ids = [client.messages.batches.create(requests=requests(1)).id for _ in range(25)]

    default = client.messages.batches.list()
    everything = [batch.id for batch in client.messages.batches.list(limit=7)]

    assert len(default.data) == 20
    assert everything == ids[::-1]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "after_id=msgbatch_no", "before_id=msgbatch_no"])
def test_a_wrong_page_is_refused(emulator: Emulator, query: str) -> None:
    refused = http_of(emulator).get(f"/v1/messages/batches?{query}")

    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith(query.split("=", maxsplit=1)[0])


def test_workspaces_do_not_see_each_others_batches(emulator: Emulator) -> None:
    ours, theirs = client_of(emulator), client_of(emulator, api_key="sk-test@team-b")
    batch = ours.messages.batches.create(requests=requests(1))

    seen = theirs.messages.batches.with_raw_response.list()

    assert seen.parse().data == []
    assert (
        seen.headers["anthropic-workspace-id"] != http_of(emulator).get("/v1/models").headers["anthropic-workspace-id"]
    )
    with pytest.raises(anthropic.NotFoundError):
        theirs.messages.batches.retrieve(batch.id)


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        pytest.param({"anthropic-version": "2026-10-21"}, 401, "x-api-key header is required", id="no key"),
        pytest.param({"x-api-key": "k"}, 400, "anthropic-version: header is required", id="no version"),
        pytest.param(
            {"x-api-key": "k", "anthropic-version": "2020-01-01"},
            400,
            'anthropic-version: "2020-01-01" is not a valid version',
            id="unknown version",
        ),
    ],
)
def test_key_and_version_are_required(emulator: Emulator, headers: dict[str, str], status: int, message: str) -> None:
    http = http_of(emulator)
    http.headers.pop("x-api-key")
    http.headers.pop("anthropic-version")

    refused = http.get("/v1/messages/batches", headers=headers)

    assert refused.status_code == status
    assert refused.json()["error"]["message"] == message
    assert refused.json()["request_id"] == refused.headers["request-id"]
    assert ("anthropic-workspace-id" in refused.headers) == (status != 401)


def test_a_bearer_token_is_a_key_too_and_the_beta_query_is_ignored(emulator: Emulator) -> None:
    http = http_of(emulator)
    http.headers.pop("x-api-key")

    answer = http.get("/v1/messages/batches?beta=true", headers={"authorization": "Bearer emulated"})

    assert answer.status_code == 200


def test_the_queue_limit_refuses_a_batch_until_it_fits(slow: Emulator) -> None:
    slow.settings.queue_limit = 3
    client = client_of(slow)
    client.messages.batches.create(requests=requests(2))

    with pytest.raises(anthropic.RateLimitError) as full:
        client.messages.batches.create(requests=requests(2))
    slow.clock.advance(3600)

    assert full.value.response.headers["retry-after"] == "10"
    assert client.messages.batches.create(requests=requests(2)).request_counts.processing == 2


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="no_such_switch"):
        Settings(no_such_switch=1)  # type: ignore[call-arg]
