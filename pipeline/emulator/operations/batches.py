"""The operations of the Message Batches resource."""

import gzip
import os
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.emulator.clock import wire_time
from pipeline.emulator.core import Core
from pipeline.emulator.errors import ApiError
from pipeline.emulator.faults import CallFacts
from pipeline.emulator.ids import params_sha256, random_id
from pipeline.emulator.model.validate import unbatchable
from pipeline.emulator.operations.delivery import deliver
from pipeline.emulator.operations.intake import encoded, read_requests
from pipeline.emulator.operations.models import page_limit
from pipeline.emulator.rules import RESULT_FAULTS, Fault
from pipeline.emulator.store.batches import Batch
from pipeline.emulator.wire import Call, Drip, Reply, json_reply

LISTING_FAULTS = frozenset({"lag", "disorder"})


def create(core: Core, call: Call) -> Reply:
    """Create a batch: check the body, store its requests durably, then answer. All requests are accepted, or none."""
    body = _decoded_body(core, call)
    batch_id = random_id("msgbatch")
    try:
        number = _store_requests(core, batch_id, body)
        _check_queue(core, call.workspace, number)
        batch = core.store.add(
            batch_id,
            workspace=call.workspace,
            version=call.version,
            betas=",".join(sorted(call.betas)),
            requests=number,
            now_us=core.clock.now_us(),
        )
    except BaseException:
        core.store.drop_folder(batch_id)
        raise
    core.wake()
    call.batch_id = batch_id
    return json_reply(message_batch(batch, call, core))


def _decoded_body(core: Core, call: Call) -> Path:
    """Return the file of the decoded body. Raises ApiError if it is too large or its encoding is not supported."""
    assert isinstance(call.body, Path)
    coding = call.headers.get("content-encoding", "identity").lower()
    body = call.body
    if coding != "identity":
        if coding != "gzip" or not core.settings.gzip_on_batches:
            raise unsupported_encoding()
        body = _decompressed(body, core.settings.max_batch_bytes)
    if body.stat().st_size > core.settings.max_batch_bytes:
        code = {"error_code": "request_body_too_large_after_decoding"} if body is not call.body else None
        html = code is None and core.settings.too_large_as == "html"
        raise ApiError(413, "Request exceeds the maximum size", details=code, html=html)
    return body


def unsupported_encoding() -> ApiError:
    """Return the error for a Content-Encoding that the API does not accept."""
    details = {"error_code": "request_body_encoding_unsupported"}
    return ApiError(400, "The request's `Content-Encoding` is not supported.", details=details)


def invalid_encoding() -> ApiError:
    """Return the error for a body that does not match its Content-Encoding."""
    details = {"error_code": "request_body_encoding_invalid"}
    return ApiError(400, "The request body is not valid for its `Content-Encoding`.", details=details)


def _decompressed(path: Path, limit: int) -> Path:
    """Decompress a body into a file next to it and return that file. It ends at most one chunk after the limit."""
    target = path.with_suffix(".plain")
    try:
        with gzip.open(path) as packed, target.open("wb") as plain:
            while plain.tell() <= limit and (chunk := packed.read(1 << 20)):
                plain.write(chunk)
    except (OSError, EOFError, zlib.error):
        raise invalid_encoding() from None
    return target


def _store_requests(core: Core, batch_id: str, body: Path) -> int:
    """Write the batch's folder from a body and return the number of requests. Raises ApiError if the body is wrong."""

    def check(index: int, params: dict[str, Any]) -> None:
        refused = core.settings.refuse_unbatchable_at_create and unbatchable(params)
        if refused:
            raise ApiError(400, f"requests.{index}.params.{refused}")

    folder = core.store.make_folder(batch_id)
    number = 0
    with (folder / "requests").open("wb") as requests, (folder / "accepted").open("wb") as accepted:
        for custom_id, params in read_requests(body, check):
            text = encoded(params)
            head = f"{params_sha256(params)} {custom_id}".encode()
            requests.write(b"%b %b\n" % (head, text))
            accepted.write(head + b"\n")
            number += 1
        for file in (requests, accepted):
            file.flush()
            os.fsync(file.fileno())
    return number


def _check_queue(core: Core, workspace: str, number: int) -> None:
    """Raise ApiError 429 if the workspace's queue has no room for so many more requests."""
    limit = core.settings.queue_limit
    if limit is not None and core.store.queued(workspace) + number > limit:
        text = f"Number of batch requests in the processing queue would exceed your organization's limit of {limit}."
        raise ApiError(429, text, headers={"retry-after": core.poll_hint})


def retrieve(core: Core, call: Call, batch_id: str) -> Reply:
    """Return one batch."""
    batch = _visible(core, call, batch_id)
    hint = {} if batch.status == "ended" else {"retry-after": core.poll_hint}
    return json_reply(message_batch(batch, call, core), hint)


def list_batches(core: Core, call: Call) -> Reply:
    """List batches, newest first. before_id: list the `limit` batches that are just newer than this one."""
    listed = _listed(core, call)
    limit = page_limit(call)
    ids = [batch.id for batch in listed]
    if after := call.query.get("after_id"):
        rest = listed[_index(ids, after, "after_id") + 1 :]
        page = rest[:limit]
    elif before := call.query.get("before_id"):
        rest = listed[: _index(ids, before, "before_id")]
        page = rest[-limit:]
    else:
        rest = listed
        page = rest[:limit]
    data = [message_batch(batch, call, core) for batch in page]
    first, last = (page[0].id, page[-1].id) if page else (None, None)
    return json_reply({"data": data, "has_more": len(rest) > limit, "first_id": first, "last_id": last})


def _listed(core: Core, call: Call) -> list[Batch]:
    """Return the batches that this listing shows, in its order; the fault rules of listings count the call."""
    return _shown(core, call, core.faults.for_call("list", LISTING_FAULTS, _call_facts(call)))


def _shown(core: Core, call: Call, faults: list[Fault]) -> list[Batch]:
    """Return the batches that a listing with these faults shows, in the order in which it shows them."""
    lag = max((fault.seconds or 0 for fault in faults if fault.do == "lag"), default=0)
    listed = core.store.listed(call.workspace, core.clock.now_us() - round(lag * 1e6))
    match next((fault.order for fault in faults if fault.do == "disorder"), None):
        case "oldest_first":
            return listed[::-1]
        case "shuffled":  # sorted by ids alone, so that a new batch does not move the others
            return sorted(listed, key=lambda batch: zlib.crc32(batch.id.encode()))
        case _:
            return listed


def _call_facts(call: Call, batch_id: str | None = None) -> CallFacts:
    """Return the facts of a call for fault rules. batch_id None: the call is about many batches.

    `match` is searched in the path of the call and in the path of the batch.
    """
    path = call.path if batch_id is None else f"{call.path} /v1/messages/batches/{batch_id}"
    return CallFacts(batch_id, 1, path.__contains__)


def list_page(core: Core, call: Call) -> int:
    """Return which page of a listing this call asks for, from 1."""
    after = call.query.get("after_id")
    faults = core.faults.would_fire("list", LISTING_FAULTS, _call_facts(call)) if after else []
    ids = [batch.id for batch in _shown(core, call, faults)] if after else []
    limit = call.query.get("limit", "20")
    if after not in ids or not limit.isdigit() or int(limit) == 0:
        return 1
    return 2 + ids.index(after) // int(limit)


def _index(ids: list[str], wanted: str, field: str) -> int:
    """Return the position of a cursor's batch. Raises ApiError 400, which names the field, for an unknown id."""
    if wanted not in ids:
        raise ApiError(400, f"{field}: no batch of that id")
    return ids.index(wanted)


def cancel(core: Core, call: Call, batch_id: str) -> Reply:
    """Cancel a batch: in_progress -> canceling. Raises ApiError if it has ended, unless the settings say otherwise."""
    batch = _visible(core, call, batch_id)
    if batch.status != "ended":
        # before the move, because the worker may end the batch at any time
        core.faults.hold("cancel", "never_ends", _call_facts(call, batch_id))
    moved = core.store.mark_canceling(batch_id, core.clock.now_us())
    if not moved and core.store.get(batch_id).status == "ended" and core.settings.cancel_ended_status != 200:
        text = f"Batch {batch_id} cannot be canceled because it has already ended."
        raise ApiError(core.settings.cancel_ended_status, text)
    batch = core.store.get(batch_id)
    core.wake()
    return json_reply(message_batch(batch, call, core))


def delete(core: Core, call: Call, batch_id: str) -> Reply:
    """Delete an ended batch. Raises ApiError if it has not ended."""
    _visible(core, call, batch_id)
    if not core.store.mark_deleted(batch_id, core.clock.now_us()):
        text = f"Batch {batch_id} cannot be deleted while it is being processed; cancel it first."
        raise ApiError(core.settings.delete_running_status, text)
    return json_reply({"id": batch_id, "type": "message_batch_deleted"})


def results(core: Core, call: Call, batch_id: str) -> Reply:
    """Stream the results of an ended batch. Raises ApiError if it has not ended or its results are archived."""
    batch = _visible(core, call, batch_id)
    if batch.status != "ended":
        text = f"Batch {batch_id} is still {batch.status}; results are available once it has ended."
        raise ApiError(core.settings.early_results_status, text)
    faults = core.faults.for_call("results", RESULT_FAULTS, _call_facts(call, batch_id))
    try:
        body = deliver(core.store.path(batch_id, "results"), faults)
    except FileNotFoundError:
        raise ApiError(404, f"The results of batch {batch_id} are no longer available.") from None
    disposition = f'attachment; filename="{batch_id}_results.jsonl"'
    headers = {"content-type": "application/x-jsonl", "content-disposition": disposition}
    drip = next((Drip(fault.bytes, fault.seconds or 0) for fault in faults if fault.do == "drip"), None)
    return Reply(200, body, headers, drip=drip)


def _visible(core: Core, call: Call, batch_id: str) -> Batch:
    """Return a batch. Raises ApiError 404 if this workspace does not have it or it was deleted."""
    call.batch_id = batch_id
    try:
        batch = core.store.get(batch_id)
    except KeyError:
        batch = None
    if batch is None or batch.deleted_us is not None or batch.workspace != call.workspace:
        raise ApiError(404, f"The requested resource could not be found: message batch {batch_id}.")
    return batch


def message_batch(batch: Batch, call: Call, core: Core) -> dict[str, Any]:
    """Return a MessageBatch as the API sends it. results_url has the address that the client called."""
    ended = batch.status == "ended"
    url = None
    if ended and batch.archived_us is None:
        url = f"{_results_origin(batch, call, core)}/v1/messages/batches/{batch.id}/results"
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": batch.status,
        "request_counts": _request_counts(batch, call, core),
        "ended_at": wire_time(batch.ended_us),
        "created_at": wire_time(batch.created_us),
        "expires_at": wire_time(batch.expires_us),
        "archived_at": wire_time(batch.archived_us),
        "cancel_initiated_at": wire_time(batch.cancel_initiated_us),
        "results_url": url,
    }


def as_created(batch: Batch) -> Batch:
    """Return the batch as it was right after its creation."""
    return replace(
        batch,
        status="in_progress",
        cancel_initiated_us=None,
        ended_us=None,
        archived_us=None,
        succeeded=0,
        errored=0,
        canceled=0,
        expired=0,
    )


def _request_counts(batch: Batch, call: Call, core: Core) -> dict[str, int]:
    """Return the counts that the API shows for a batch, changed by a `counts` rule."""
    ended = batch.status == "ended"
    counts = {
        "processing": 0 if ended else batch.requests,
        "succeeded": batch.succeeded,
        "errored": batch.errored,
        "canceled": batch.canceled,
        "expired": batch.expired,
    }
    fault = _field_fault("counts", batch, call, core)
    if fault is not None and fault.add is not None:
        name = "succeeded" if ended else "processing"
        counts[name] = max(counts[name] + fault.add, 0)
    return counts


def _results_origin(batch: Batch, call: Call, core: Core) -> str:
    """Return the scheme and host of results_url, changed by a `results_url` rule."""
    fault = _field_fault("results_url", batch, call, core)
    return call.origin if fault is None or fault.host is None else fault.host


def _field_fault(do: str, batch: Batch, call: Call, core: Core) -> Fault | None:
    """Return the first rule with this `do` that fires for one batch of an answer; None if none fires."""
    if core.faults.empty:
        return None
    return core.faults.first_for_call(call.operation, frozenset({do}), _call_facts(call, batch.id))
