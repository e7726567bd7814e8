"""Builders of requests and clients for the emulator's tests."""

import base64
from dataclasses import dataclass
from typing import Any

import anthropic
import httpx2
import orjson

from pipeline.emulator import Emulator

MODEL = "claude-haiku-4-5"
HEADERS = {"x-api-key": "emulated", "anthropic-version": "2026-10-21"}
BATCHES = "/v1/messages/batches"


def params(text: str = "Summarize. The ship sank.", **fields: Any) -> dict[str, Any]:
    """Return valid params of a Messages call, with these fields replaced. A field given as None is left out."""
    whole = {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": text}], **fields}
    return {name: value for name, value in whole.items() if value is not None}


def request(number: int, **fields: Any) -> Any:
    return {"custom_id": f"row-{number}", "params": params(f"Summarize. Ship {number} sank.", **fields)}


def requests(number: int, **fields: Any) -> Any:
    return [request(n, **fields) for n in range(number)]


def client_of(emulator: Emulator, **options: Any) -> anthropic.Anthropic:
    """Return a client of the SDK that calls the emulator in the same process and does not retry."""
    http = httpx2.Client(transport=emulator.transport())
    options = {"api_key": "emulated", "base_url": "http://emulator.test", "max_retries": 0, **options}
    return anthropic.Anthropic(http_client=http, **options)


def http_of(emulator: Emulator, **headers: str) -> httpx2.Client:
    """Return a plain HTTP client that sends a key and an API version."""
    return httpx2.Client(
        transport=emulator.transport(), base_url="http://emulator.test", headers={**HEADERS, **headers}
    )


@dataclass
class Served:
    """An emulator and a plain HTTP client that calls it."""

    emulator: Emulator
    http: httpx2.Client

    def create(self, number: int = 2, first: int = 0) -> httpx2.Response:
        body = {"requests": [request(first + n) for n in range(number)]}
        return self.http.post(BATCHES, content=orjson.dumps(body))

    def ended(self, number: int = 10) -> str:
        """Create a batch, wait until it has ended, and return its id."""
        batch_id: str = self.create(number).raise_for_status().json()["id"]
        self.emulator.wait_idle()
        return batch_id

    def batch(self, batch_id: str) -> dict[str, Any]:
        whole: dict[str, Any] = self.http.get(f"{BATCHES}/{batch_id}").raise_for_status().json()
        return whole

    def accepted(self) -> int:
        return len(list(self.emulator.accepted()))


def result_lines(client: anthropic.Anthropic, batch_id: str) -> list[dict[str, Any]]:
    """Return the raw result lines of an ended batch."""
    raw = client.messages.batches.with_raw_response.results(batch_id).http_response.read()
    return [orjson.loads(line) for line in raw.split(b"\n")]


def result_of(emulator: Emulator, /, **fields: Any) -> dict[str, Any]:
    """Send one request with these params in a batch and return its `result` as the API sends it."""
    client = client_of(emulator)
    batch = client.messages.batches.create(requests=[{"custom_id": "only", "params": params(**fields)}])  # type: ignore[typeddict-item]
    emulator.wait_idle()
    result: dict[str, Any] = result_lines(client, batch.id)[0]["result"]
    return result


PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
JPEG = b"\xff\xd8\xff\xe0" + bytes(8)
PDF = b"%PDF-1.7 nothing"


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def image(content: bytes = PNG, media_type: str = "image/png") -> dict[str, Any]:
    """Return an image block."""
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": base64_of(content)}}


def pdf(content: bytes = PDF, /, **fields: Any) -> dict[str, Any]:
    """Return a document block with a PDF."""
    source = {"type": "base64", "media_type": "application/pdf", "data": base64_of(content)}
    return {"type": "document", "source": source, **fields}


def text_document(text: str, **fields: Any) -> dict[str, Any]:
    """Return a document block with plain text."""
    return {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": text}, **fields}


def asking(*blocks: dict[str, Any], prompt: str = "What is it?") -> list[dict[str, Any]]:
    """Return messages with one user turn: these blocks, then the prompt."""
    return [{"role": "user", "content": [*blocks, {"type": "text", "text": prompt}]}]
