"""Apply a call fault to an answer: delay it, drop it, or replace it with something else."""

from collections.abc import Callable, Iterator
from contextlib import suppress

from pipeline.emulator.core import Core
from pipeline.emulator.errors import ApiError, ConnectionCut
from pipeline.emulator.operations import batches
from pipeline.emulator.rules import Fault
from pipeline.emulator.wire import Call, Reply, http_date, json_reply, reply_or_error

LOGIN_PAGE = (
    b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body><form action='/login' method='post'>"
    b"<p>Your session has expired. Sign in to use the network.</p><input name='user'></form></body></html>\n"
)
JSON = {"content-type": "application/json"}
MESSAGES = {
    "400": "Invalid request",
    "401": "invalid x-api-key",
    "402": "There is an issue with your billing or payment information.",
    "403": "Your API key does not have permission to use the specified resource.",
    "404": "The requested resource could not be found.",
    "408": "Request timed out",
    "409": "The request conflicts with another one.",
    "413": "Request exceeds the maximum size",
    "429": "This request would exceed your organization's rate limit.",
    "500": "Internal server error",
    "502": "Bad gateway",
    "503": "Service unavailable",
    "504": "Request timed out",
    "529": "Overloaded",
    "enforced_spend_limit_reached": (
        "You have reached your API usage limits: your organization has crossed its monthly API usage threshold, set "
        "based on your organization's API tier. You will regain access on 2026-12-01 at 00:00 UTC."
    ),
    "storage_quota_exceeded": "Your organization's file storage quota is exhausted.",
    "contract_spend_limit_reached": "You have reached your API usage limits: the limit of your contract.",
}
#: body and headers of foreign pages, by `kind`
FOREIGN: dict[str, tuple[bytes, dict[str, str]]] = {
    "html": (LOGIN_PAGE, {"content-type": "text/html"}),
    "empty": (b"", {}),
    "json": (b'{"status":"ok"}', JSON),
    "null": (b"null", JSON),
}


def with_fault(fault: Fault, core: Core, call: Call, work: Callable[[], Reply], request_id: str) -> Reply:
    """Answer a call with a fault. work: answers the call without it. Raises ApiError for an error of the fault."""
    match fault.do:
        case "drop_before":
            return Reply(dropped=True)
        case "drop_after":
            reply_or_error(work, request_id).close()
            return Reply(dropped=True)
        case "status":
            if fault.accept:
                reply_or_error(work, request_id).close()
            raise _error(fault)
        case "delay":
            reply = reply_or_error(work, request_id)
            reply.delay_seconds = fault.seconds or 0
            return reply
        case "foreign_page":
            return _foreign(fault, work, request_id)
        case "repeat_answer":
            return _repeated(fault, core, call, work, request_id)
        case _:
            raise AssertionError(fault.do)


def shown_date(now_us: int, rule: Fault | None) -> str:
    """Return the Date header; empty: send none. rule: the fault that changes it; None: the clock's time."""
    if rule is None:
        return http_date(now_us)
    return rule.text if rule.text is not None else http_date(now_us + round((rule.seconds or 0) * 1e6))


def _foreign(fault: Fault, work: Callable[[], Reply], request_id: str) -> Reply:
    """Return the page of another server, or the cut answer, that a `foreign_page` rule asks for."""
    if fault.kind == "cut":
        return _cut(reply_or_error(work, request_id))
    if fault.accept:
        reply_or_error(work, request_id).close()
    assert fault.kind is not None
    body, headers = FOREIGN[fault.kind]
    return Reply(200, body, headers)


def _cut(reply: Reply) -> Reply:
    """Return the first half of an answer; of a chunked answer, the first half of its first line."""
    whole = reply.body if isinstance(reply.body, bytes) else _first_line(reply.body)
    reply.close()
    return Reply(reply.status, whole[: len(whole) // 2], reply.headers)


def _first_line(chunks: Iterator[bytes]) -> bytes:
    """Return the first line of a chunked answer."""
    read = b""
    with suppress(ConnectionCut):
        while b"\n" not in read and (chunk := next(chunks, b"")):
            read += chunk
    return read.partition(b"\n")[0]


def _repeated(fault: Fault, core: Core, call: Call, work: Callable[[], Reply], request_id: str) -> Reply:
    """Return the answer to the previous create call; if there was none, the answer of this call."""
    earlier = core.store.newest(call.workspace)
    if earlier is None:
        return work()
    if fault.accept:
        reply_or_error(work, request_id).close()
    return json_reply(batches.message_batch(batches.as_created(earlier), call, core))


def _error(fault: Fault) -> ApiError:
    """Return the error that a `status` rule asks for."""
    assert fault.status is not None
    headers = dict(fault.headers)
    if fault.retry_after is not None:
        headers["retry-after"] = f"{fault.retry_after:g}"
    if fault.should_retry is not None:
        headers["x-should-retry"] = str(fault.should_retry).lower()
    details = {"error_code": fault.error_code} if fault.error_code else None
    text = fault.message or MESSAGES.get(fault.error_code or "") or MESSAGES.get(str(fault.status), "Error")
    return ApiError(
        fault.status,
        text,
        error_type=fault.error_type,
        details=details,
        headers=headers,
        html=fault.page == "html",
    )
