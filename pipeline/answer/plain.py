"""Read the usual line of the API's results, a succeeded request with one text, by types made for it. Pure.

Decoding such a line into these types takes half the time of decoding it into dicts and looking at each field. A line
that differs in any way, such as a field that is not named here, is refused: `outcome.ResultReader` then reads it in the
general way. So each of these types refuses unknown fields, of which a decoder would check nothing.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=0, lt=2**53)]


class CacheCreation(Struct, gc=False, forbid_unknown_fields=True):
    """Tokens that were written to the prompt cache, by how long they are kept."""

    ephemeral_1h_input_tokens: Count | None = None
    ephemeral_5m_input_tokens: Count | None = None


class ServerTools(Struct, gc=False, forbid_unknown_fields=True):
    """How often the API's own tools were used."""

    web_search_requests: Count | None = None
    web_fetch_requests: Count | None = None


class Usage(Struct, gc=False, forbid_unknown_fields=True):
    """The tokens that a request used."""

    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_creation: CacheCreation | None = None
    server_tool_use: ServerTools | None = None
    inference_geo: str | None = None
    service_tier: str | None = None
    speed: str | None = None
    output_tokens_details: dict[str, Count | None] | None = None


class Text(Struct, gc=False, forbid_unknown_fields=True):
    """A block of content that is a text, without citations."""

    type: Literal["text"]
    text: str
    citations: None = None


class PlainMessage(Struct, gc=False, forbid_unknown_fields=True):
    """An answer that is one text, and that the model has finished."""

    content: tuple[Text]
    stop_reason: Literal["end_turn", "stop_sequence"]
    usage: Usage
    model: str | None = None
    id: str | None = None
    stop_sequence: str | None = None
    type: str | None = None
    role: str | None = None
    stop_details: None = None
    container: None = None
    diagnostics: None = None
    context_management: None = None


class _Result(Struct, gc=False, forbid_unknown_fields=True):
    type: Literal["succeeded"]
    message: PlainMessage


class _Line(Struct, gc=False, forbid_unknown_fields=True):
    custom_id: str
    result: _Result


_decode = msgspec.json.Decoder(_Line).decode


def plain_message(line: bytes) -> PlainMessage:
    """Return the answer in a plain line. Raises ValueError for any other line."""
    return _decode(line).result.message
