"""Citations of documents in the answers of the emulated model."""

from typing import Any

import anthropic
import pytest

from pipeline.emulator import Emulator
from tests.emulator.builders import asking, client_of, image, params, pdf, result_of, text_document

CITED: dict[str, Any] = {"citations": {"enabled": True}}
TEXT = "\n The ship sank at noon, près de la côte. Nobody knew why."
SENTENCE = "The ship sank at noon, près de la côte."


def citations_of(emulator: Emulator, *blocks: dict[str, Any]) -> Any:
    message = result_of(emulator, messages=asking(*blocks))["message"]
    return message["content"][-1].get("citations")


def test_a_text_is_cited_by_the_characters_of_its_first_sentence(emulator: Emulator) -> None:
    (cited,) = citations_of(emulator, text_document(TEXT, title="Log", **CITED))

    assert cited == {
        "type": "char_location",
        "cited_text": SENTENCE,
        "start_char_index": 2,
        "end_char_index": 2 + len(SENTENCE),
        "document_index": 0,
        "document_title": "Log",
        "file_id": None,
    }
    assert TEXT[cited["start_char_index"] : cited["end_char_index"]] == cited["cited_text"]


def test_a_pdf_is_cited_by_its_first_page(emulator: Emulator) -> None:
    (cited,) = citations_of(emulator, pdf(**CITED))

    assert (cited["type"], cited["start_page_number"], cited["end_page_number"]) == ("page_location", 1, 2)
    assert cited["cited_text"].startswith("[emulated]")


def test_a_document_of_blocks_is_cited_by_its_first_text(emulator: Emulator) -> None:
    parts = [image(), {"type": "text", "text": TEXT}]
    block = {"type": "document", "source": {"type": "content", "content": parts}, **CITED}

    (cited,) = citations_of(emulator, block)

    assert (cited["type"], cited["cited_text"]) == ("content_block_location", TEXT)
    assert (cited["start_block_index"], cited["end_block_index"]) == (1, 2)


@pytest.mark.parametrize(
    ("media_type", "kind"),
    [("text/plain", "char_location"), ("application/pdf", "page_location")],
    ids=["text", "PDF"],
)
def test_a_file_is_cited_by_its_id(emulator: Emulator, client: anthropic.Anthropic, media_type: str, kind: str) -> None:
    file = client.files.upload(file=("log", TEXT.encode(), media_type))
    block = {"type": "document", "source": {"type": "file", "file_id": file.id}, **CITED}

    (cited,) = citations_of(emulator, block)

    assert (cited["type"], cited["file_id"]) == (kind, file.id)
    assert (cited["cited_text"] == SENTENCE) == (media_type == "text/plain")


def test_the_document_index_counts_all_documents(emulator: Emulator) -> None:
    (cited,) = citations_of(emulator, text_document("Not me."), pdf(), text_document("Me. Yes.", **CITED))

    assert (cited["document_index"], cited["cited_text"]) == (2, "Me.")


@pytest.mark.parametrize(
    "block",
    [
        text_document(TEXT),
        text_document(TEXT, citations={"enabled": False}),
        text_document(" ", **CITED),
    ],
    ids=["not asked", "not enabled", "nothing in it"],
)
def test_without_a_document_to_cite_there_are_no_citations(emulator: Emulator, block: dict[str, Any]) -> None:
    assert citations_of(emulator, block) is None


def test_citations_are_streamed(emulator: Emulator) -> None:
    fields = params(messages=asking(text_document(TEXT, **CITED)))

    plain = client_of(emulator).messages.create(**fields)
    with client_of(emulator).messages.stream(**fields) as stream:
        kinds = [event.delta.type for event in stream if event.type == "content_block_delta"]
        streamed = stream.get_final_message()

    assert kinds[-1] == "citations_delta"
    whole, pieced = plain.content[0], streamed.content[0]
    assert whole.type == pieced.type == "text"
    assert whole.citations is not None
    assert whole.citations[0].type == "char_location"
    assert (pieced.text, pieced.citations) == (whole.text, whole.citations)
