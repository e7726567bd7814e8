"""The operations of the Messages resource: create, with or without streaming, and count_tokens."""

import gzip
import zlib
from collections.abc import Iterator
from typing import Any

import orjson

from pipeline.emulator.core import Core
from pipeline.emulator.errors import ApiError, Problem
from pipeline.emulator.ids import params_sha256, random_id
from pipeline.emulator.model.answers import input_tokens, message
from pipeline.emulator.model.caching import breakpoint_problem, plain_usage
from pipeline.emulator.model.catalogue import find_model
from pipeline.emulator.model.compaction import answered
from pipeline.emulator.model.validate import Context, count_tokens_problem, problem
from pipeline.emulator.operations.batches import invalid_encoding, unsupported_encoding
from pipeline.emulator.wire import Call, Reply, json_reply

MAX_BYTES = 32_000_000
DELTA_CHARACTERS = 24


def create(core: Core, call: Call) -> Reply:
    """Answer a Messages call with a Message, or with its events if `stream` is set."""
    params = _params(call)
    context = _context(core, call)
    _refuse(problem(params, context, lambda: input_tokens(params)))
    if refused := breakpoint_problem(params):
        raise ApiError(400, refused)
    model = find_model(params["model"])
    assert model is not None
    usage = plain_usage(params)
    if b'"cache_control"' in orjson.dumps(params):
        usage = core.cache.usage(params, model, call.workspace, core.clock.now_us())
    made, usage = answered(params, model, params_sha256(params), usage, context.files, core.habits)
    answer_message = message(made, model, usage, random_id("msg"), "standard")
    if params.get("stream"):
        return Reply(
            200,
            events(answer_message),
            {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"},
        )
    return json_reply(answer_message)


def count_tokens(core: Core, call: Call) -> Reply:
    """Answer a count_tokens call."""
    params = _params(call)
    _refuse(count_tokens_problem(params, _context(core, call)))
    return json_reply({"input_tokens": input_tokens(params)})


def _context(core: Core, call: Call) -> Context:
    return core.context(call.workspace, call.version, call.betas, in_batch=False)


def _refuse(found: Problem | None) -> None:
    """Raise the ApiError for a problem; None raises nothing."""
    if found is not None:
        raise ApiError(404 if found.type == "not_found_error" else 400, found.message, error_type=found.type)


def _params(call: Call) -> dict[str, Any]:
    """Return the decoded params of a call. Raises ApiError if they are too large or not a JSON object."""
    body = call.read()
    coding = call.headers.get("content-encoding", "identity").lower()
    if coding == "gzip":
        try:
            body = gzip.decompress(body)
        except (OSError, EOFError, zlib.error):
            raise invalid_encoding() from None
    elif coding != "identity":
        raise unsupported_encoding()
    if len(body) > MAX_BYTES:
        raise ApiError(413, "Request exceeds the maximum size")
    try:
        params = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise ApiError(400, f"The request body is not valid JSON: {exc}") from None
    if not isinstance(params, dict):
        raise ApiError(400, "Input should be a valid dictionary or object to extract fields from")
    return params


def events(answer_message: dict[str, Any]) -> Iterator[bytes]:
    """Yield a Message as server-sent events, in the order in which the API sends them."""
    opening = {**answer_message, "content": [], "stop_reason": None, "stop_sequence": None, "stop_details": None}
    usage = {"output_tokens": answer_message["usage"]["output_tokens"]}
    opening["usage"] = {**answer_message["usage"], "output_tokens": 1}
    if used := opening["usage"].pop(
        "server_tool_use", None
    ):  # no server tool had been used at the start of the message
        usage["server_tool_use"] = used
    yield _event("message_start", message=opening)
    yield _event("ping")
    for index, block in enumerate(answer_message["content"]):
        start, deltas = _pieces(block)
        yield _event("content_block_start", index=index, content_block=start)
        for delta in deltas:
            yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
    delta = {key: answer_message[key] for key in ("stop_reason", "stop_sequence", "stop_details")}
    yield _event("message_delta", delta=delta, usage=usage)
    yield _event("message_stop")


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def _pieces(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a content block as it starts, and the deltas that complete it."""
    match block["type"]:
        case "text":
            deltas = [{"type": "text_delta", "text": part} for part in _parts(block["text"])]
            if not block.get("citations"):
                return {**block, "text": ""}, deltas
            cited = [{"type": "citations_delta", "citation": citation} for citation in block["citations"]]
            return {**block, "text": "", "citations": []}, [*deltas, *cited]
        case "thinking":
            deltas = [{"type": "thinking_delta", "thinking": part} for part in _parts(block["thinking"])]
            signature = {"type": "signature_delta", "signature": block["signature"]}
            return {**block, "thinking": "", "signature": ""}, [*deltas, signature]
        case "compaction":
            whole = {name: block[name] for name in ("content", "encrypted_content")}
            return {"type": "compaction", "content": None}, [{"type": "compaction_delta", **whole}]
        case "tool_use" | "server_tool_use":
            encoded = orjson.dumps(block["input"]).decode()
            deltas = [{"type": "input_json_delta", "partial_json": part} for part in _parts(encoded)]
            return {**block, "input": {}}, deltas
        case result if result.endswith("_tool_result"):
            return block, []  # a result is sent as a whole
        case other:
            raise AssertionError(other)


def _parts(text: str) -> list[str]:
    return [text[at : at + DELTA_CHARACTERS] for at in range(0, len(text), DELTA_CHARACTERS)]
