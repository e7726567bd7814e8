"""What the emulator and the real API have in common, through the real SDK over real HTTP.

Against the real API too when BATCH_TEST_REAL_API=1 and ANTHROPIC_API_KEY are set; that costs a few cents and minutes.
"""

import asyncio
import base64
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types.messages import MessageBatch

from pipeline.emulator import start

MODEL = "claude-haiku-4-5"
REAL = os.environ.get("BATCH_TEST_REAL_API") == "1" and "ANTHROPIC_API_KEY" in os.environ
HOUR = 3600


@dataclass
class Api:
    client: anthropic.Anthropic
    async_client: Callable[[], anthropic.AsyncAnthropic]
    finish: Callable[[str], MessageBatch]  #: wait until the batch has ended

    def create(self, *texts: str, **fields: Any) -> MessageBatch:
        return self.client.messages.batches.create(requests=_requests(*texts, **fields))


def _requests(*texts: str, **fields: Any) -> Any:
    common = {"model": MODEL, "max_tokens": 60, **fields}
    return [
        {"custom_id": f"row-{n}", "params": {**common, "messages": [{"role": "user", "content": text}]}}
        for n, text in enumerate(texts)
    ]


@pytest.fixture(scope="module", params=["emulator", *(["real"] if REAL else [])])
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    if request.param == "real":
        yield _real()
    else:
        yield from _emulated(tmp_path_factory.mktemp("contract"))


def _emulated(data: Path) -> Iterator[Api]:
    with start(data, processing_seconds=HOUR) as running:
        options: dict[str, Any] = {"base_url": running.url, "api_key": "emulated", "max_retries": 0}

        def finish(batch_id: str) -> MessageBatch:
            running.emulator.clock.advance(HOUR)
            running.emulator.wait_idle()
            return client.messages.batches.retrieve(batch_id)

        with anthropic.Anthropic(**options) as client:
            yield Api(client, lambda: anthropic.AsyncAnthropic(**options), finish)


def _real() -> Api:  # pragma: no cover  # needs a key
    client = anthropic.Anthropic()

    def finish(batch_id: str) -> MessageBatch:
        until = time.monotonic() + HOUR
        while (batch := client.messages.batches.retrieve(batch_id)).processing_status != "ended":
            assert time.monotonic() < until
            time.sleep(10)
        return batch

    return Api(client, anthropic.AsyncAnthropic, finish)


def test_a_new_batch_is_in_progress_with_all_its_requests_processing(api: Api) -> None:
    batch = api.create("Say A.", "Say B.")

    assert batch.id.startswith("msgbatch_")
    assert (batch.type, batch.processing_status) == ("message_batch", "in_progress")
    assert batch.request_counts.to_dict() == {
        "processing": 2,
        "succeeded": 0,
        "errored": 0,
        "canceled": 0,
        "expired": 0,
    }
    assert batch.expires_at - batch.created_at == timedelta(hours=24)
    assert [batch.ended_at, batch.archived_at, batch.cancel_initiated_at, batch.results_url] == [None] * 4


def test_an_ended_batch_has_counts_and_one_result_per_request(api: Api) -> None:
    batch = api.finish(api.create("Say A.", "Say B.", "Say C.").id)

    results = {line.custom_id: line.result for line in api.client.messages.batches.results(batch.id)}

    assert batch.processing_status == "ended"
    assert batch.request_counts.succeeded == 3
    assert batch.request_counts.processing == 0
    assert batch.ended_at is not None
    assert batch.ended_at >= batch.created_at
    assert set(results) == {"row-0", "row-1", "row-2"}
    for result in results.values():
        assert result.type == "succeeded"
        assert result.message.role == "assistant"
        assert result.message.model.startswith(MODEL)
        assert result.message.stop_reason in ("end_turn", "max_tokens")
        assert result.message.usage.service_tier == "batch"
        assert result.message.usage.input_tokens > 0
        assert 0 < result.message.usage.output_tokens <= 60


def test_results_are_json_lines_without_a_newline_at_the_end(api: Api) -> None:
    batch = api.finish(api.create("Say A.", "Say B.").id)

    response = api.client.messages.batches.with_raw_response.results(batch.id).http_response
    body = response.read()

    assert body.count(b"\n") == 1
    assert not body.endswith(b"\n")
    assert response.headers["content-disposition"] == f'attachment; filename="{batch.id}_results.jsonl"'


def test_wrong_params_fail_their_own_request_and_no_other(api: Api) -> None:
    wrong: Any = {"custom_id": "wrong", "params": {"model": MODEL, "max_tokens": 60, "messages": []}}
    batch = api.client.messages.batches.create(requests=[*_requests("Say A."), wrong])

    batch = api.finish(batch.id)
    results = {line.custom_id: line.result for line in api.client.messages.batches.results(batch.id)}

    assert (batch.request_counts.succeeded, batch.request_counts.errored) == (1, 1)
    assert results["row-0"].type == "succeeded"
    failed = results["wrong"]
    assert failed.type == "errored"
    assert failed.error.type == "error"
    assert failed.error.request_id is None
    assert failed.error.error.type == "invalid_request_error"
    assert failed.error.error.message == "messages: at least one message is required"


def test_a_max_tokens_above_the_models_own_fails_the_request(api: Api) -> None:
    batch = api.finish(api.create("Say A.", max_tokens=100_000).id)

    (line,) = api.client.messages.batches.results(batch.id)

    assert line.result.type == "errored"
    assert line.result.error.error.message == (
        "max_tokens: 100000 > 64000, which is the maximum allowed number of output tokens for claude-haiku-4-5-20251001"
    )


@pytest.mark.parametrize(
    ("custom_ids", "text"),
    [
        pytest.param([], "requests: List should have at least 1 item", id="no requests"),
        pytest.param(["a b"], "requests.0.custom_id: String should match pattern '^[a-zA-Z0-9_-]{1,64}$'", id="space"),
        pytest.param(["ok", "x" * 65], "requests.1.custom_id: String should have at most 64 characters", id="long"),
    ],
)
def test_a_wrong_body_refuses_the_whole_batch(api: Api, custom_ids: list[str], text: str) -> None:
    params = _requests("Say A.")[0]["params"]

    with pytest.raises(anthropic.BadRequestError) as refused:
        api.client.messages.batches.create(requests=[{"custom_id": i, "params": params} for i in custom_ids])

    assert refused.value.type == "invalid_request_error"
    assert text in refused.value.message
    assert refused.value.body["request_id"] == refused.value.request_id  # type: ignore[index]


def test_an_unknown_batch_is_not_found(api: Api) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        api.client.messages.batches.retrieve("msgbatch_011111111111111111111111")

    assert missing.value.type == "not_found_error"


def test_a_call_without_a_valid_key_is_refused(api: Api) -> None:
    url = str(api.client.base_url).rstrip("/") + "/v1/messages/batches"

    response = httpx2.get(url, headers={"anthropic-version": "2023-06-01"})

    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"


def test_a_listing_is_newest_first_and_pages_in_both_directions(api: Api) -> None:
    ids = [api.create(f"Say {n}.").id for n in range(3)]

    first = api.client.messages.batches.list(limit=2)
    second = api.client.messages.batches.list(limit=2, after_id=first.last_id or "")
    back = api.client.messages.batches.list(limit=1, before_id=ids[1])

    assert [batch.id for batch in first.data] == [ids[2], ids[1]]
    assert (first.has_more, first.first_id, first.last_id) == (True, ids[2], ids[1])
    assert second.data[0].id == ids[0]
    assert [batch.id for batch in back.data] == [ids[2]]


def test_a_canceled_batch_ends_with_a_result_for_each_request(api: Api) -> None:
    batch = api.create(*(f"Say {n}." for n in range(20)))

    canceling = api.client.messages.batches.cancel(batch.id)
    ended = api.finish(batch.id)
    kinds = [line.result.type for line in api.client.messages.batches.results(batch.id)]

    assert canceling.processing_status == "canceling"
    assert canceling.cancel_initiated_at is not None
    assert canceling.request_counts.processing == 20
    assert ended.request_counts.canceled == kinds.count("canceled")
    assert ended.request_counts.succeeded == kinds.count("succeeded")
    assert len(kinds) == 20


def test_a_deleted_batch_is_not_found(api: Api) -> None:
    batch = api.finish(api.create("Say A.").id)

    deleted = api.client.messages.batches.delete(batch.id)

    assert deleted.to_dict() == {"id": batch.id, "type": "message_batch_deleted"}
    with pytest.raises(anthropic.NotFoundError):
        api.client.messages.batches.retrieve(batch.id)


def test_a_running_batch_cannot_be_deleted(api: Api) -> None:
    batch = api.create("Say A.")

    with pytest.raises(anthropic.APIStatusError) as refused:
        api.client.messages.batches.delete(batch.id)

    assert 400 <= refused.value.status_code < 500
    assert api.client.messages.batches.retrieve(batch.id).processing_status == "in_progress"


def test_a_running_batch_has_no_results(api: Api) -> None:
    batch = api.create("Say A.")

    with pytest.raises(anthropic.AnthropicError, match="No `results_url` for the given batch"):
        api.client.messages.batches.results(batch.id)


def test_a_structured_answer_follows_its_schema(api: Api) -> None:
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": ["billing", "outage"]}, "urgent": {"type": "boolean"}},
        "required": ["label", "urgent"],
        "additionalProperties": False,
    }
    config = {"format": {"type": "json_schema", "schema": schema}}
    batch = api.create("Classify: my billing is wrong, billing again.", output_config=config)

    api.finish(batch.id)
    (line,) = api.client.messages.batches.results(batch.id)

    assert line.result.type == "succeeded"
    block = line.result.message.content[0]
    assert block.type == "text"
    answer = json.loads(block.text)
    assert answer["label"] == "billing"
    assert set(answer) == {"label", "urgent"}


def test_a_forced_tool_is_called(api: Api) -> None:
    schema = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}
    batch = api.create(
        "Classify: my bill is wrong.",
        tools=[{"name": "file_under", "description": "File a ticket.", "input_schema": schema}],
        tool_choice={"type": "tool", "name": "file_under"},
    )

    api.finish(batch.id)
    (line,) = api.client.messages.batches.results(batch.id)

    assert line.result.type == "succeeded"
    assert line.result.message.stop_reason == "tool_use"
    block = line.result.message.content[-1]
    assert block.type == "tool_use"
    assert block.name == "file_under"
    assert isinstance(block.input["label"], str)


def test_the_async_client_creates_and_reads_a_batch(api: Api) -> None:
    async def there_and_back() -> tuple[MessageBatch, MessageBatch]:
        async with api.async_client() as client:
            batch = await client.messages.batches.create(requests=_requests("Say A."))
            return batch, await client.messages.batches.retrieve(batch.id)

    created, retrieved = asyncio.run(there_and_back())

    assert created.id == retrieved.id
    assert created.created_at == retrieved.created_at


def test_tokens_are_counted(api: Api) -> None:
    short = api.client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "Hello"}])
    long = api.client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "Hello there " * 100}])

    assert 0 < short.input_tokens < 20
    assert long.input_tokens > short.input_tokens + 100


def test_models_are_listed_with_what_they_can_do(api: Api) -> None:
    listed = {model.id: model for model in api.client.models.list(limit=1000)}
    model = api.client.models.retrieve(MODEL)

    assert model.id == "claude-haiku-4-5-20251001"
    assert model.id in listed
    assert (model.type, model.line, model.max_tokens, model.max_input_tokens) == ("model", "haiku", 64_000, 200_000)
    assert model.capabilities is not None
    assert model.capabilities.batch.supported
    with pytest.raises(anthropic.NotFoundError):
        api.client.models.retrieve("claude-nobody-9")


def test_a_message_is_answered_at_once(api: Api) -> None:
    message = api.client.messages.create(
        model=MODEL, max_tokens=60, messages=[{"role": "user", "content": "Say hello to the ship."}]
    )

    assert message.content[0].type == "text"
    assert message.content[0].text
    assert message.usage.service_tier == "standard"


def test_the_events_of_a_streamed_message_make_the_whole_message(api: Api) -> None:
    with api.client.messages.stream(
        model=MODEL, max_tokens=60, messages=[{"role": "user", "content": "Describe the ship in one short sentence."}]
    ) as stream:
        pieces = list(stream.text_stream)
        whole = stream.get_final_message()

    assert len(pieces) > 1
    assert whole.content[0].type == "text"
    assert "".join(pieces) == whole.content[0].text
    assert whole.stop_reason in ("end_turn", "max_tokens")
    assert whole.usage.output_tokens > 0


def test_a_wrong_message_call_is_refused_with_the_reason(api: Api) -> None:
    with pytest.raises(anthropic.BadRequestError, match="messages: at least one message is required"):
        api.client.messages.create(model=MODEL, max_tokens=60, messages=[])
    with pytest.raises(anthropic.NotFoundError, match="model: claude-nobody-9"):
        api.client.messages.create(
            model="claude-nobody-9", max_tokens=60, messages=[{"role": "user", "content": "Hello"}]
        )


def test_a_file_is_listed_named_in_a_request_and_deleted(api: Api) -> None:
    file = api.client.files.upload(file=("log.txt", b"The ship sank at noon. Nobody knew why.", "text/plain"))
    document: Any = {"type": "document", "source": {"type": "file", "file_id": file.id}}

    listed = api.client.files.list(ids=[file.id])
    message = api.client.messages.create(
        model=MODEL,
        max_tokens=60,
        messages=[{"role": "user", "content": [document, {"type": "text", "text": "Sum up."}]}],
    )
    deleted = api.client.files.delete(file.id)

    assert (file.type, file.filename, file.mime_type, file.size_bytes) == ("file", "log.txt", "text/plain", 39)
    assert [found.id for found in listed.data] == [file.id]
    assert "ship" in message.to_json()
    assert deleted.type == "file_deleted"
    with pytest.raises(anthropic.NotFoundError):
        api.client.files.retrieve_metadata(file.id)


def test_an_image_that_is_not_of_its_declared_type_is_refused(api: Api) -> None:
    data = base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(100)).decode()
    block: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}

    with pytest.raises(anthropic.BadRequestError) as caught:
        api.client.messages.create(model=MODEL, max_tokens=60, messages=[{"role": "user", "content": [block]}])

    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "invalid_request_error"
