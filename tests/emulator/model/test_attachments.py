"""Which images and documents are refused, in batches and in live calls, and with which message."""

from typing import Any

import anthropic
import pytest

from pipeline.emulator import Emulator
from pipeline.emulator.model.validate import Context, problem
from tests.emulator.builders import (
    JPEG,
    PDF,
    asking,
    base64_of,
    client_of,
    image,
    params,
    pdf,
    result_of,
    text_document,
)

IMAGE, DOCUMENT = "messages.0.content.0.image.source", "messages.0.content.0.document.source"


def said(*blocks: dict[str, Any]) -> str | None:
    uses = [{"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}]
    answered = any(block.get("type") == "tool_result" for block in blocks)
    before = [{"role": "user", "content": "Look."}, {"role": "assistant", "content": uses}] if answered else []
    found = problem(params(messages=[*before, *asking(*blocks)]), Context("2026-10-21"), lambda: 10)
    return found.message if found else None


def with_source(kind: str, **source: Any) -> dict[str, Any]:
    return {"type": kind, "source": source}


def in_a_tool_result(block: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_1", "content": [block]}


def of_blocks(*blocks: Any) -> dict[str, Any]:
    return with_source("document", type="content", content=list(blocks))


FINE: dict[str, dict[str, Any]] = {
    "PNG": image(),
    "JPEG": image(JPEG, "image/jpeg"),
    "GIF": image(b"GIF89a...", "image/gif"),
    "WebP": image(b"RIFF....WEBPVP8 ", "image/webp"),
    "image by URL": with_source("image", type="url", url="https://example.com/a.png"),
    "PDF": pdf(),
    "PDF by URL": with_source("document", type="url", url="http://example.com/a.pdf"),
    "text": text_document("The ship sank."),
    "blocks": of_blocks({"type": "text", "text": "a"}, image()),
    "one text as content": with_source("document", type="content", content="a"),
    "in a tool's result": in_a_tool_result(image()),
}


@pytest.mark.parametrize("block", FINE.values(), ids=FINE.keys())
def test_attachments_that_the_api_accepts_are_accepted(block: dict[str, Any]) -> None:
    assert said(block) is None


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("no source", {"type": "image"}, f"{IMAGE}: Field required"),
    ("source is text", {"type": "image", "source": "x"}, f"{IMAGE}: Input should be a valid dictionary"),
    ("no type", with_source("image"), f"{IMAGE}.type: Field required"),
    (
        "unknown type",
        with_source("image", type="text"),
        f"{IMAGE}: Input tag 'text' found using 'type' does not match any of the expected tags: 'base64', 'file', ",
    ),
    ("no data", with_source("image", type="base64", media_type="image/png"), f"{IMAGE}.base64.data: Field required"),
    ("no file id", with_source("document", type="file"), f"{DOCUMENT}.file.file_id: Field required"),
    (
        "data is a number",
        with_source("image", type="base64", media_type="image/png", data=1),
        f"{IMAGE}.base64.data: Input should be a valid string",
    ),
    (
        "extra field",
        with_source("image", type="url", url="https://a.example", data="x"),
        f"{IMAGE}.url.data: Extra inputs are not permitted",
    ),
    (
        "BMP",
        image(b"BM", "image/bmp"),
        f"{IMAGE}.base64.media_type: Input should be 'image/jpeg', 'image/png', 'image/gif' or 'image/webp'",
    ),
    (
        "document that is an image",
        with_source("document", type="base64", media_type="image/png", data="eA=="),
        f"{DOCUMENT}.base64.media_type: Input should be 'application/pdf'",
    ),
    (
        "HTML as text",
        with_source("document", type="text", media_type="text/html", data="<p>"),
        f"{DOCUMENT}.text.media_type: Input should be 'text/plain'",
    ),
    ("empty image", image(b""), f"{IMAGE}.base64: image cannot be empty"),
    (
        "no base64",
        with_source("image", type="base64", media_type="image/png", data="data:image/png;base64,eA=="),
        f"{IMAGE}.base64: invalid base64 data",
    ),
    (
        "base64 cut off",
        with_source("image", type="base64", media_type="image/png", data=base64_of(JPEG)[:-3]),
        f"{IMAGE}.base64: invalid base64 data",
    ),
    (
        "JPEG named PNG",
        image(JPEG),
        f"{IMAGE}.base64.data: The image was specified using the image/png media type, "
        "but the image appears to be a image/jpeg image",
    ),
    ("no image at all", image(b"hello, world"), "Could not process image"),
    (
        "large image",
        image(bytes(8 << 20)),
        f"{IMAGE}.base64: image exceeds 10 MB maximum: 11184812 bytes > 10485760 bytes",
    ),
    (
        "no PDF",
        pdf(b"hello"),
        "messages.0.content.0.pdf.source.base64.data: The PDF specified was not valid.",
    ),
    ("local URL", with_source("image", type="url", url="file:///etc/passwd"), f"{IMAGE}.url.url: Only HTTPS URLs"),
    (
        "content is a number",
        with_source("document", type="content", content=1),
        f"{DOCUMENT}.content.content: Input should be a valid string or list",
    ),
    (
        "document in a document",
        of_blocks(pdf()),
        f"{DOCUMENT}.content.content.0: Input should be a text or image block",
    ),
    ("text block without text", of_blocks({"type": "text"}), f"{DOCUMENT}.content.content.0.text.text: Field required"),
    (
        "image in a document",
        of_blocks({"type": "text", "text": "a"}, image(b"")),
        f"{DOCUMENT}.content.content.1.image.source.base64: image cannot be empty",
    ),
    (
        "image in a tool's result",
        in_a_tool_result(image(b"")),
        "messages.2.content.0.tool_result.content.0.image.source.base64: image cannot be empty",
    ),
]


@pytest.mark.parametrize(("block", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_attachments_that_the_api_refuses_are_refused_with_the_reason(block: dict[str, Any], message: str) -> None:
    assert (said(block) or "nothing").startswith(message)


def test_a_wrong_image_fails_its_request_in_a_batch_or_its_live_call(emulator: Emulator) -> None:
    turns: Any = asking(image(JPEG))

    result = result_of(emulator, messages=turns)
    with pytest.raises(anthropic.BadRequestError, match="appears to be a image/jpeg image"):
        client_of(emulator).messages.create(model="claude-haiku-4-5", max_tokens=9, messages=turns)

    assert result["type"] == "errored"
    assert result["error"]["error"]["type"] == "invalid_request_error"
    assert "appears to be a image/jpeg image" in result["error"]["error"]["message"]


# files


def by_file(kind: str, file_id: str) -> Any:
    return asking(with_source(kind, type="file", file_id=file_id))


def test_a_file_of_the_right_type_is_accepted(emulator: Emulator, client: anthropic.Anthropic) -> None:
    picture = client.files.upload(file=("a.png", b"x", "image/png"))
    paper = client.files.upload(file=("a.pdf", PDF, "application/pdf"))

    results = [
        result_of(emulator, messages=by_file("image", picture.id)),
        result_of(emulator, messages=by_file("document", paper.id)),
    ]

    assert [result["type"] for result in results] == ["succeeded", "succeeded"]


def test_an_unknown_file_is_not_found(emulator: Emulator, client: anthropic.Anthropic) -> None:
    elsewhere = client_of(emulator, api_key="sk-test@team-b").files.upload(file=("a.png", b"x", "image/png"))

    error = result_of(emulator, messages=by_file("image", elsewhere.id))["error"]["error"]
    with pytest.raises(anthropic.NotFoundError, match="File not found: file_none"):
        client.messages.create(model="claude-haiku-4-5", max_tokens=9, messages=by_file("document", "file_none"))

    assert error["type"] == "not_found_error"
    assert error["message"] == f"{IMAGE}.file.file_id: File not found: {elsewhere.id}"


def test_a_file_that_expires_before_the_batch_ends_fails_its_request(slow: Emulator) -> None:
    client = client_of(slow)
    brief = client.files.upload(file=("a.png", b"x", "image/png"), expires_in_seconds=3600)
    slow.clock.advance(1)
    batch = client.messages.batches.create(
        requests=[{"custom_id": "a", "params": params(messages=by_file("image", brief.id))}]  # type: ignore[typeddict-item]
    )

    slow.clock.advance(3600)
    (line,) = client.messages.batches.results(batch.id)

    assert line.result.type == "errored"
    assert line.result.error.error.message == f"{IMAGE}.file.file_id: File has expired: {brief.id}"


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [("image", "application/pdf"), ("document", "image/png"), ("image", "image/tiff")],
    ids=["PDF as image", "image as document", "TIFF"],
)
def test_a_file_of_another_type_is_refused(
    emulator: Emulator, client: anthropic.Anthropic, kind: str, media_type: str
) -> None:
    file = client.files.upload(file=("a", b"x", media_type))

    error = result_of(emulator, messages=by_file(kind, file.id))["error"]["error"]

    assert error["type"] == "invalid_request_error"
    assert error["message"].endswith(f"Invalid file type: {media_type} is not supported in {kind} blocks")
