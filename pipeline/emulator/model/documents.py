"""Read the text of a request's documents and invent a citation of one of them."""

from typing import Any

from pipeline.emulator.model.files import FileFinder
from pipeline.emulator.model.wording import GIST_CHARACTERS, MARK, SENTENCE


def document_text(block: dict[str, Any], files: FileFinder) -> str | None:
    """Return the plain text of a document; None for a PDF, or for a URL, which the emulator does not fetch."""
    source = block["source"]
    match source.get("type"):
        case "text":
            return str(source["data"])
        case "content" if isinstance(source["content"], str):
            return str(source["content"])
        case "content":
            return "\n\n".join(part["text"] for part in source["content"] if part["type"] == "text")
        case "file":
            file = files(source["file_id"])
            return file.text() if file is not None and file.mime_type == "text/plain" else None
    return None


def citation(messages: list[dict[str, Any]], files: FileFinder) -> dict[str, Any] | None:
    """Return a citation of the first document with citations enabled; None if there is none or it has no text.

    The citation names the first sentence, block or page. Its document_index counts all documents of the request.
    """
    documents = [
        block
        for message in messages
        if isinstance(message["content"], list)
        for block in message["content"]
        if block["type"] == "document"
    ]
    for index, block in enumerate(documents):
        wanted = block.get("citations")
        if isinstance(wanted, dict) and wanted.get("enabled") is True:
            place = _place(block, files)
            file_id = block["source"].get("file_id")
            return place and {
                **place,
                "document_index": index,
                "document_title": block.get("title"),
                "file_id": file_id,
            }
    return None


def _place(block: dict[str, Any], files: FileFinder) -> dict[str, Any] | None:
    """Return the place in a document that a citation names, and its text; None if the document has no text."""
    source = block["source"]
    text = document_text(block, files)
    if text is None:
        cited = f"{MARK} The first page of the document."
        return {"type": "page_location", "cited_text": cited, "start_page_number": 1, "end_page_number": 2}
    if not text.strip():
        return None
    if source["type"] == "content":
        at, cited = _first_block(source["content"])
        return {
            "type": "content_block_location",
            "cited_text": cited,
            "start_block_index": at,
            "end_block_index": at + 1,
        }
    start, end = _first_sentence(text)
    return {
        "type": "char_location",
        "cited_text": text[start:end],
        "start_char_index": start,
        "end_char_index": end,
    }


def _first_block(content: Any) -> tuple[int, str]:
    if isinstance(content, str):
        return 0, content
    return next(
        (at, part["text"]) for at, part in enumerate(content) if part["type"] == "text" and part["text"].strip()
    )


def _first_sentence(text: str) -> tuple[int, int]:
    """Return the start and end of the first sentence, in characters; a long sentence ends at GIST_CHARACTERS."""
    start = len(text) - len(text.lstrip())
    stop = SENTENCE.search(text, start)
    end = stop.start() + 1 if stop else len(text.rstrip())
    return start, min(end, start + GIST_CHARACTERS)
