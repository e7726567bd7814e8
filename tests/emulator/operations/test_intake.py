"""The checks of a create call, which accepts all requests of a body or none."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import orjson
import pytest

from pipeline.emulator import Emulator
from pipeline.emulator.operations import intake
from tests.emulator.builders import http_of, params, request

GOOD = request(0)


def body(*requests: Any, **extra: Any) -> bytes:
    return orjson.dumps({"requests": list(requests), **extra})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "The request body is not valid JSON", id="empty body"),
        pytest.param(b"{", "The request body is not valid JSON", id="cut short"),
        pytest.param(b'{"requests": [{"custom_id": "a", "params": {}}', "The request body is not valid JSON", id="cut"),
        pytest.param(body(GOOD) + b"x", "The request body is not valid JSON", id="something behind"),
        pytest.param(body(GOOD)[:-1] + b",}", "The request body is not valid JSON", id="comma at the end"),
        pytest.param(b'{"requests": [NaN]}', "The request body is not valid JSON", id="NaN"),
        pytest.param(b'{"requests": ["\xff"]}', "The request body is not valid JSON: it is not UTF-8", id="not UTF-8"),
        pytest.param(
            body({"custom_id": "a", "params": {"x": "LONE"}}).replace(b"LONE", rb"\ud800"),
            "The request body is not valid JSON",
            id="lone surrogate",
        ),
        pytest.param(b'{"requests": ' + b"[" * 100_000, "The request body is not valid JSON", id="too deep"),
        pytest.param(b"[]", "Input should be a valid dictionary", id="a list"),
        pytest.param(b"{}", "requests: Field required", id="no requests"),
        pytest.param(b'{"requests": 1}', "requests: Input should be a valid list", id="not a list"),
        pytest.param(body(), "requests: List should have at least 1 item after validation, not 0", id="no request"),
        pytest.param(body(GOOD, name="x"), "name: Extra inputs are not permitted", id="extra key"),
        pytest.param(body(1), "requests.0: Input should be a valid dictionary", id="not an object"),
        pytest.param(body({"params": {}}), "requests.0.custom_id: Field required", id="no custom_id"),
        pytest.param(body({"custom_id": "a"}), "requests.0.params: Field required", id="no params"),
        pytest.param(
            body(GOOD, {**request(1), "tag": 1}), "requests.1.tag: Extra inputs are not permitted", id="extra item key"
        ),
        pytest.param(
            body({"custom_id": 1, "params": {}}), "requests.0.custom_id: Input should be a valid string", id="number"
        ),
        pytest.param(
            body({"custom_id": "", "params": {}}),
            "requests.0.custom_id: String should have at least 1 character",
            id="empty id",
        ),
        pytest.param(
            body({"custom_id": "a\n", "params": {}}),
            "requests.0.custom_id: String should match pattern '^[a-zA-Z0-9_-]{1,64}$'",
            id="newline in id",
        ),
        pytest.param(body(GOOD, GOOD), "requests.1.custom_id: custom_id must be unique", id="twice the same id"),
        pytest.param(
            body({"custom_id": "a", "params": []}), "requests.0.params: Input should be a valid dictionary", id="params"
        ),
    ],
)
def test_a_wrong_body_is_refused_and_nothing_is_accepted(emulator: Emulator, content: bytes, message: str) -> None:
    refused = http_of(emulator).post("/v1/messages/batches", content=content)

    assert refused.status_code == 400
    assert refused.json()["error"]["type"] == "invalid_request_error"
    assert refused.json()["error"]["message"].startswith(message)
    assert list(emulator.accepted()) == []
    assert list((emulator.data / "batches").iterdir()) == []
    assert list((emulator.data / "uploads").iterdir()) == []


def test_at_most_100_000_requests_are_accepted(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MAX_REQUESTS", 3)

    three = http_of(emulator).post("/v1/messages/batches", content=body(*map(request, range(3))))
    four = http_of(emulator).post("/v1/messages/batches", content=body(*map(request, range(4))))

    assert three.status_code == 200
    assert four.json()["error"]["message"] == "requests: List should have at most 3 items after validation"


@pytest.mark.parametrize("spaced", [True, False], ids=["spaced", "compact"])
@pytest.mark.parametrize("window", [1, 2, 7, 100])
def test_params_are_stored_unchanged_wherever_a_window_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, spaced: bool
) -> None:
    monkeypatch.setattr(intake, "WINDOW", window)
    dice = random.Random(window)
    letters = 'a"\\/{}[],: \n\t\x00\x85\u2028é€😀'
    texts = ["".join(dice.choices(letters, k=dice.randrange(30))) for _ in range(40)]
    sent = [(f"row-{n}", {"text": text, "n": [n, -1.5e3, None, True]}) for n, text in enumerate(texts)]
    whole = {"requests": [{"custom_id": i, "params": p} for i, p in sent]}
    body = json.dumps(whole, indent=2 if spaced else None, ensure_ascii=not spaced)
    (tmp_path / "body").write_bytes(body.encode())

    assert list(intake.read_requests(tmp_path / "body", lambda index, params: None)) == sent


def test_a_body_above_the_limit_gets_a_proxys_page_or_an_error_of_the_api(emulator: Emulator) -> None:
    emulator.settings.max_batch_bytes = 1000
    content = body(request(0, system="x" * 1000))

    page = http_of(emulator).post("/v1/messages/batches", content=content)
    emulator.settings.too_large_as = "json"
    envelope = http_of(emulator).post("/v1/messages/batches", content=content)

    assert (page.status_code, page.headers["content-type"]) == (413, "text/html")
    assert page.text.startswith("<html>")
    assert (envelope.status_code, envelope.json()["error"]["type"]) == (413, "request_too_large")


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_a_compressed_batch_is_refused(emulator: Emulator, coding: str) -> None:
    content = gzip.compress(body(GOOD))

    refused = http_of(emulator).post("/v1/messages/batches", content=content, headers={"content-encoding": coding})

    assert refused.status_code == 400
    assert refused.json()["error"]["details"] == {"error_code": "request_body_encoding_unsupported"}


def test_gzip_can_be_allowed_and_the_limit_applies_to_the_decoded_body(emulator: Emulator) -> None:
    emulator.settings.gzip_on_batches = True
    packed = {"content-encoding": "gzip"}
    http = http_of(emulator)

    taken = http.post("/v1/messages/batches", content=gzip.compress(body(GOOD)), headers=packed)
    broken = http.post("/v1/messages/batches", content=body(GOOD), headers=packed)
    emulator.settings.max_batch_bytes = 1000
    large = http.post(
        "/v1/messages/batches", content=gzip.compress(body(request(1, system="x" * 9999))), headers=packed
    )

    assert taken.status_code == 200
    assert broken.json()["error"]["details"] == {"error_code": "request_body_encoding_invalid"}
    assert large.status_code == 413
    assert large.json()["error"]["details"] == {"error_code": "request_body_too_large_after_decoding"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stream": True}, "stream: Streaming is not supported in the Message Batches API"),
        ({"speed": "fast"}, "speed: Fast mode is not supported in the Message Batches API"),
        ({"max_tokens": 0}, "max_tokens: 0 is not supported in the Message Batches API"),
    ],
    ids=["stream", "speed", "max_tokens"],
)
def test_params_not_allowed_in_batches_fail_the_request_or_by_a_setting_the_create(
    emulator: Emulator, fields: dict[str, Any], message: str
) -> None:
    content = body(request(0, **fields))
    http = http_of(emulator)

    taken = http.post("/v1/messages/batches", content=content).json()
    lines = http.get(f"/v1/messages/batches/{taken['id']}/results").text
    emulator.settings.refuse_unbatchable_at_create = True
    refused = http.post("/v1/messages/batches", content=content)

    assert orjson.loads(lines)["result"]["error"]["error"]["message"] == message
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == f"requests.0.params.{message}"


def test_keys_in_any_order_and_spaces_are_accepted(emulator: Emulator) -> None:
    content = json.dumps({"requests": [{"params": params(), "custom_id": "a"}]}, indent=4)

    assert http_of(emulator).post("/v1/messages/batches", content=content).status_code == 200
