"""Process one batch: answer its requests and store the results in the order in which they are delivered."""

import os
import random
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import orjson

from pipeline.emulator.core import Core
from pipeline.emulator.ids import derived_id
from pipeline.emulator.model.answers import Answer, Usage, message, output_schema, text_of, with_text
from pipeline.emulator.model.caching import FirstWave, breakpoint_problem, plain_usage
from pipeline.emulator.model.catalogue import find_model
from pipeline.emulator.model.compaction import answered
from pipeline.emulator.model.schema import resolve
from pipeline.emulator.model.validate import problem
from pipeline.emulator.rules import Fault
from pipeline.emulator.store.batches import RESULT_CODES, Batch

CHUNK = 500
WRONG_LABEL = "no_such_label"
ITEM_MESSAGES = {
    "api_error": "Internal server error",
    "overloaded_error": "Overloaded",
    "rate_limit_error": "This request would exceed your organization's rate limit.",
    "timeout_error": "Request timed out",
    "authentication_error": "invalid x-api-key",
    "permission_error": "Your API key does not have permission to use the specified resource.",
    "billing_error": "There is an issue with your billing or payment information.",
    "not_found_error": "The requested resource could not be found.",
    "request_too_large": "Request exceeds the maximum size",
}


def process(core: Core, batch: Batch, stopping: Callable[[], bool]) -> bool:
    """Answer all requests of a batch and mark it ended. Return False if `stopping` returned True before that.

    A batch that was not finished is processed again from its beginning at the next start.
    """
    work = _Work(core, batch)
    folder = core.store.path(batch.id, "requests").parent
    outcomes = bytearray(batch.requests)
    counts: Counter[str] = Counter(dict.fromkeys(RESULT_CODES, 0))
    unfinished = folder / "results.tmp"
    with (folder / "requests").open("rb") as file, unfinished.open("wb") as out:
        starts = _line_starts(file)
        for rank, position in enumerate(_order(batch)):
            if rank % CHUNK == 0:
                if stopping():
                    return False
                time.sleep(0.0002)  # gives other threads the interpreter
            start, end = starts[position], starts[position + 1] - 1
            # not mmap: its pages would count as memory of this process
            text, kind = work.result_line(os.pread(file.fileno(), end - start, start), position, rank)
            out.write(text if rank == 0 else b"\n" + text)  # no newline after the last line, as in the API
            outcomes[position] = RESULT_CODES[kind][0]
            counts[kind] += 1
        out.flush()
        os.fsync(out.fileno())
    (folder / "outcomes").write_bytes(outcomes)
    unfinished.rename(folder / "results")
    core.store.mark_ended(batch.id, counts, max(core.due_us(batch), core.clock.now_us()))
    return True


def _order(batch: Batch) -> "array[int]":
    """Return the positions of the requests in a random order, which is always the same for a batch.

    It is the order of processing and of delivery.
    """
    order = array("L", range(batch.requests))
    random.Random(batch.id).shuffle(order)
    return order


def _line_starts(file: BinaryIO) -> "array[int]":
    """Return the byte at which each line starts, and the size of the file."""
    starts = array("Q", [0])
    for line in file:
        starts.append(starts[-1] + len(line))
    return starts


@dataclass
class _Work:
    """The processing of one batch."""

    core: Core
    batch: Batch

    def __post_init__(self) -> None:
        batch = self.batch
        betas = frozenset(filter(None, batch.betas.split(",")))
        now_us = self.core.due_us(batch)
        self.context = self.core.context(batch.workspace, batch.version, betas, in_batch=True, now_us=now_us)
        self.wave = FirstWave(self.core.settings.cache_first_wave)
        self.faulty = self.core.faults.has("item")

    def result_line(self, line: bytes, position: int, rank: int) -> tuple[bytes, str]:
        """Return the result of one request as a line of JSON, and the result type that it is counted as.

        line: the request as it is stored. position: its place in the create call. rank: its place in the processing.
        """
        sha, custom_id, params = line.split(b" ", 2)
        sha256, name = sha.decode(), custom_id.decode()
        if unprocessed := self._unprocessed(custom_id, rank):
            result: dict[str, Any] = {"type": unprocessed}
        else:
            fault = self.core.faults.for_item(self.batch.id, params, sha256, position) if self.faulty else None
            maker = RESULT_MAKERS.get(fault.do) if fault else None
            result = maker(fault) if fault and maker else self._answered(params, sha256, name, rank, fault)
        kind = result["type"] if result["type"] in RESULT_CODES else "errored"
        return orjson.dumps({"custom_id": name, "result": result}), kind

    def _unprocessed(self, custom_id: bytes, rank: int) -> str | None:
        """Return `canceled` or `expired` if the batch ended before this request was processed, otherwise None."""
        core, batch = self.core, self.batch
        turn_us = batch.created_us + core.processing_us * (rank + 1) // batch.requests
        if batch.cancel_initiated_us is not None and turn_us > batch.cancel_initiated_us:
            chosen = zlib.crc32(custom_id) < core.settings.canceled_share * 2**32
            if chosen:
                return "canceled"
            turn_us = batch.cancel_initiated_us  # it was already being processed and completes
        return "expired" if turn_us > batch.expires_us else None

    def _answered(self, encoded: bytes, sha256: str, custom_id: str, rank: int, fault: Fault | None) -> dict[str, Any]:
        """Return the result of a request that is processed: succeeded, or errored if its params are wrong."""
        params = orjson.loads(encoded)
        usage: Usage | None = None

        def tokens() -> int:
            nonlocal usage
            usage = plain_usage(params)
            return usage.input_tokens

        wrong = problem(params, self.context, tokens)
        if wrong is not None:
            return errored(wrong.type, wrong.message)
        model = find_model(params["model"])
        assert model is not None
        assert usage is not None
        if b'"cache_control"' in encoded:
            if refused := breakpoint_problem(params):
                return errored("invalid_request_error", refused)
            turn_us = self.batch.created_us + self.core.processing_us * (rank + 1) // self.batch.requests
            usage = self.core.cache.usage(params, model, self.batch.workspace, turn_us, self.wave, rank)
        made, usage = answered(params, model, sha256, usage, self.context.files, self.core.habits)
        if fault is not None:
            made = with_answer_fault(made, fault, params, sha256)
        message_id = derived_id("msg", self.batch.id, custom_id)
        return {"type": "succeeded", "message": message(made, model, usage, message_id, "batch")}


def errored(error_type: str, text: str) -> dict[str, Any]:
    """Return an errored result, with its error nested twice as the API sends it."""
    inner = {"details": {"error_visibility": "user_facing"}, "type": error_type, "message": text}
    return {"type": "errored", "error": {"type": "error", "error": inner, "request_id": None}}


def _item_error(fault: Fault) -> dict[str, Any]:
    """Return the errored result that an `error` rule asks for."""
    assert fault.error_type is not None
    text = fault.message or ITEM_MESSAGES.get(fault.error_type, f"{fault.error_type} by a fault rule")
    if fault.flat:
        return {"type": "errored", "error": {"type": fault.error_type, "message": text}}
    return errored(fault.error_type, text)


#: faults that give a result without an answer
RESULT_MAKERS: dict[str, Callable[[Fault], dict[str, Any]]] = {
    "error": _item_error,
    "expire": lambda _: {"type": "expired"},
    "cancel": lambda _: {"type": "canceled"},
    "result_type": lambda fault: {"type": fault.result_type},
}


def with_answer_fault(made: Answer, fault: Fault, params: dict[str, Any], sha256: str) -> Answer:
    """Return the answer changed by a fault: refused, cut, empty, or with a wrong text. sha256: of the params."""
    text = text_of(made)
    match fault.do:
        case "refuse":
            details = {"type": "refusal", "category": fault.category, "explanation": fault.explanation}
            return replace(made, content=[], stop_reason="refusal", stop_details=details, output_tokens=1)
        case "max_tokens":
            cut = with_text(made, text[: len(text) // 2], stop_reason="max_tokens")
            return replace(cut, output_tokens=max(params["max_tokens"], 1))
        case "context_window":
            return with_text(made, text[: len(text) // 2], stop_reason="model_context_window_exceeded")
        case "pause_turn":
            return paused(made)
        case "empty":
            return replace(made, content=[], output_tokens=1)
        case "not_json":
            return with_text(made, f"[emulated] Here is what I found: {text[: len(text) // 2]}")
        case "strange_text":
            return with_text(made, _with_strange_breaks(text))
        case "wrong_label":
            return with_text(made, _relabeled(text, params, lambda *_: WRONG_LABEL))
        case "wrong_case":
            return with_text(made, _relabeled(text, params, lambda v, _: v.swapcase() if isinstance(v, str) else v))
        case "other_label":
            return _with_other_labels(made, text, params, f"{fault.seed} {sha256}".encode())
        case _:
            raise AssertionError(fault.do)


def paused(made: Answer) -> Answer:
    """Return the answer as it is when it pauses: it ends with the use of a server tool, if it has one."""
    place = next((i for i, block in enumerate(made.content) if block["type"] == "server_tool_use"), len(made.content))
    return replace(made, content=made.content[: place + 1], stop_reason="pause_turn")


def _with_strange_breaks(text: str) -> str:
    """Return the text with spaces replaced by characters at which careless code ends a line.

    JSON from orjson has spaces in strings only, so it stays valid.
    """
    return text.replace(" ", "\u2028", 1).replace(" ", "\x85", 1)


#: returns another value in place of a value and the values that the schema declares for it; none for free text
Change = Callable[[Any, list[Any]], Any]


def _with_other_labels(made: Answer, text: str, params: dict[str, Any], seed: bytes) -> Answer:
    """Return the answer with another declared value in place of each enum value; unchanged if it has none.

    It changes the JSON of a structured output, or the input of a forced tool.
    """

    def other(value: Any, declared: list[Any]) -> Any:
        others = [each for each in declared if each != value]
        return others[zlib.crc32(seed) % len(others)] if others and value in declared else value

    if output_schema(params) is not None:
        return with_text(made, _relabeled(text, params, other))
    schemas = {tool.get("name"): tool.get("input_schema") for tool in params.get("tools") or []}
    content = [
        {**block, "input": _with_enums(block["input"], schemas.get(block["name"]), schemas.get(block["name"]), other)}
        if block["type"] == "tool_use"
        else block
        for block in made.content
    ]
    return replace(made, content=content)


def _relabeled(text: str, params: dict[str, Any], change: Change) -> str:
    """Return the text with `change` applied to each enum value, or to the whole text if it has no schema."""
    schema = output_schema(params)
    if schema is None:
        return str(change(text, []))
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:  # the text was cut at max_tokens
        return text
    return orjson.dumps(_with_enums(value, schema, schema, change)).decode()


def _with_enums(value: Any, node: Any, root: Any, change: Change) -> Any:
    """Return the value with `change` applied to each part for which the schema has an enum."""
    if not isinstance(node, dict):
        return value
    if "$ref" in node:
        return _with_enums(value, resolve(node["$ref"], root), root, change)
    if "enum" in node:
        return change(value, node["enum"])
    if isinstance(value, dict):
        properties = node.get("properties", {})
        return {key: _with_enums(inner, properties.get(key), root, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_enums(inner, node.get("items"), root, change) for inner in value]
    for branch in node.get("anyOf", ()):
        value = _with_enums(value, branch, root, change)
    return value
