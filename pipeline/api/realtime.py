"""How are rows sent live through the Messages API, and their answers streamed? Edge: HTTP.

The text of a model is not trusted: none of its control characters reaches the terminal.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import anthropic
import httpx2
import orjson
from anthropic import AsyncAnthropic, AsyncStream

from pipeline.answer.outcome import Outcome, ResultReader
from pipeline.api import failures
from pipeline.api.client import beta_header
from pipeline.api.connect import make_client
from pipeline.api.failures import in_words
from pipeline.api.reach import Reach
from pipeline.errors import InputError, PipelineError
from pipeline.escapes import inline
from pipeline.job.model import Job
from pipeline.money.prices import PriceList, Prices, prices_of
from pipeline.request.build import Built
from pipeline.states import RowState

ACCOUNT_STATUSES = frozenset({401, 402, 403})  # a live call's 400 or 404 speaks of its request

Event = dict[str, Any]  # as the API sends it, with fields that this version does not know


class PreviewRow(NamedTuple):
    """A row to send. key: as people write it; place: of the row in its source, for a message."""

    key: str
    place: str
    built: Built


@dataclass(frozen=True)
class Picked:
    """The rows of a preview. problems: about the first rows that cannot be sent; left_out: how many there are."""

    rows: Sequence[PreviewRow]
    problems: Sequence[str] = ()
    left_out: int = 0

    def problem_lines(self) -> Iterator[str]:
        """Yield a line for each problem, with the row's place and the reason, and one that counts the others."""
        for problem in self.problems:
            yield f"row      {inline(problem)}"
        if self.left_out > len(self.problems):
            yield f"         and {self.left_out - len(self.problems):,} more"


class Realtime(PriceList):
    """The prices of live calls. A job's own `prices` are batch prices and do not apply."""

    def of(self, model: str) -> Prices | None:
        """Return the price of live calls of a model; None if it is unknown."""
        return prices_of(model, batch=False)


def async_client(reach: Reach) -> AsyncAnthropic:
    """Return the async twin of the client of Api.connect; `stream` closes it. Raises as `connect.make_client`."""
    client: AsyncAnthropic = make_client(reach, prefix="Async")
    return client


class Answered(NamedTuple):
    """How one row ended. message: as much as arrived, None if nothing did; cost_usd: None without a known price."""

    row: PreviewRow
    outcome: Outcome
    message: dict[str, Any] | None
    cost_usd: float | None


class View(Protocol):
    """What shows a preview: one row after another, each with its events as they arrive."""

    def begin(self, row: PreviewRow) -> None:
        """Start showing a row."""

    def event(self, event: Event, block: Event | None) -> None:
        """Show an event. block: the content block that it belongs to, as much as has arrived; None if to none."""

    def end(self, answered: Answered) -> None:
        """Show how the row ended."""


async def stream(client: AsyncAnthropic, picked: Picked, job: Job, view: View) -> int:
    """Send all rows at once, and show them in the view in order, the first one while it is answered.

    Returns 0 if all rows succeeded, else 1. Raises InputError if no row was answered. Raises the PipelineError that
    stopped the other calls after the last row is shown.
    """
    async with client:
        live_rows = [_LiveRow(row) for row in picked.rows]
        calls = [asyncio.create_task(_make_call(client, live, job.request.betas)) for live in live_rows]
        try:
            return await _show_in_order(live_rows, ResultReader(job), view)
        finally:
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)


class _LiveRow:
    """One row while it is being answered."""

    def __init__(self, row: PreviewRow) -> None:
        self.row = row
        self.message = _Message()
        self.begun = asyncio.Event()  #: an event arrived, or the call failed
        self.answered = False  #: the API answered this row, if only with an error
        self.failure: Exception | None = None
        self._events: asyncio.Queue[tuple[Event, Event | None] | None] = asyncio.Queue()

    def take(self, event: Event) -> None:
        """Add an event of the answer. Raises ValueError if it has not the shape that the API sends."""
        self.answered = True
        self.begun.set()
        try:
            block = self.message.add(event)
        except (AttributeError, KeyError, TypeError):
            raise ValueError(f"an event {event.get('type')!r} that is not understood") from None
        self._events.put_nowait((event, block))

    def finish(self, failure: Exception | None) -> None:
        """End the answer. failure: why the call failed; None if it did not."""
        self.failure = failure
        self.answered = self.answered or (failure is not None and not isinstance(failure, PipelineError))
        self._events.put_nowait(None)
        self.begun.set()

    async def show(self, view: View) -> None:
        """Show all events in the view, also those still to come. Raises a failure that no call explains."""
        while (item := await self._events.get()) is not None:
            view.event(*item)
        if not (self.failure is None or isinstance(self.failure, _EXPECTED)):
            raise self.failure


_EXPECTED = (anthropic.AnthropicError, httpx2.HTTPError, OSError, ValueError, PipelineError)


async def _make_call(client: AsyncAnthropic, live: _LiveRow, betas: Sequence[str]) -> None:
    """Make one row's call. Its events and its end, also a failure, go to `live`."""
    failure: Exception | None = None
    try:
        async with await _open_stream(client, live.row.built.params, betas) as events:
            async for event in events:
                if isinstance(event, dict):
                    live.take(event)
    except Exception as exc:  # noqa: BLE001  # it is raised or shown when its row is shown
        failure = _error_of_all_rows(exc, client) or exc if not live.answered else exc
    live.finish(failure)


async def _open_stream(client: AsyncAnthropic, params: bytes, betas: Sequence[str]) -> AsyncStream[object]:
    """Send the bytes of the batch's request: the SDK reads, drops and renames none of its fields."""
    return await client.post(
        "/v1/messages",
        cast_to=object,
        content=params[:-1] + b',"stream":true}',
        options={"headers": {"content-type": "application/json", **beta_header(betas)}, "follow_redirects": False},
        stream=True,
        stream_cls=AsyncStream[object],
    )


def _error_of_all_rows(exc: Exception, client: AsyncAnthropic) -> PipelineError | None:
    """Return what a failed call says of all of them; None when it is about its row."""
    base_url = str(client.base_url).rstrip("/")
    translated = failures.error_of_all_calls(exc, base_url, account_statuses=ACCOUNT_STATUSES)
    if translated is None and isinstance(exc, OSError):
        translated = failures.no_answer(base_url, exc)
    if translated is not None:
        translated.__cause__ = exc
    return translated


async def _show_in_order(live_rows: Sequence[_LiveRow], reader: ResultReader, view: View) -> int:
    """Show the rows in their order. Raises a failure of all calls, after the last row if any row was answered."""
    outcomes = []
    for live in live_rows:
        await live.begun.wait()
        if isinstance(live.failure, PipelineError):
            await asyncio.gather(*(other.begun.wait() for other in live_rows))
            if not any(other.answered for other in live_rows):
                raise InputError(f"{live.failure}; no row was answered") from live.failure
        view.begin(live.row)
        await live.show(view)
        outcome = _outcome_of(live, reader)
        outcomes.append(outcome)
        view.end(Answered(live.row, outcome, live.message.whole, Realtime().cost(outcome)))
    stopped = next((live.failure for live in live_rows if isinstance(live.failure, PipelineError)), None)
    if stopped is not None:
        raise stopped
    return int(any(outcome.state != RowState.SUCCEEDED for outcome in outcomes))


def _outcome_of(live: _LiveRow, reader: ResultReader) -> Outcome:
    """Return the outcome that this answer would have in a batch."""
    failure, message = live.failure, live.message
    if failure is None and message.whole is not None and message.complete:
        return reader.outcome({"result": {"type": "succeeded", "message": message.whole}})
    if isinstance(failure, anthropic.APIStatusError) and isinstance(failure.body, dict):
        return reader.outcome({"result": {"type": "errored", "error": failure.body}})
    if isinstance(failure, PipelineError):
        return Outcome(RowState.ERRORED, "not_asked", str(failure))
    if isinstance(failure, anthropic.APIStatusError):
        return Outcome(RowState.ERRORED, f"http_{failure.status_code}", in_words(failure))
    why = "" if failure is None else f" ({in_words(failure)})"
    return Outcome(RowState.ERRORED, "connection_error", f"the answer broke off before its end{why}")


class _Message:
    """A Message that grows by its events. whole: in the shape of a batch's result; None before message_start.

    The SDK's accumulate_event is not used, because a preview shows all that the API sends, also what this version of
    the SDK does not know. That function drops unknown fields of a message_delta and unknown counts of its usage,
    refuses an unknown event before message_start, and makes up an end for tool input that was cut off.
    """

    def __init__(self) -> None:
        self.whole: dict[str, Any] | None = None
        self.complete = False
        self._blocks: dict[int, dict[str, Any]] = {}
        self._inputs: dict[int, str] = {}

    def add(self, event: Event) -> Event | None:
        """Add an event, and return the content block it belongs to; None if to none. Unknown events change nothing."""
        index = event.get("index")
        match event.get("type"):
            case "message_start":
                self.whole = {**event["message"], "content": []}
            case "content_block_start" if self.whole is not None and isinstance(index, int):
                self._blocks[index] = dict(event["content_block"])
                self.whole["content"].append(self._blocks[index])
            case "content_block_delta" if index in self._blocks:
                self._add_delta(index, event["delta"])
            case "content_block_stop" if index in self._inputs:
                with contextlib.suppress(orjson.JSONDecodeError):  # cut off at max_tokens, which the outcome says
                    self._blocks[index]["input"] = orjson.loads(self._inputs[index])
            case "message_delta" if self.whole is not None:
                self.whole |= event.get("delta") or {}
                used = {name: value for name, value in (event.get("usage") or {}).items() if value is not None}
                self.whole["usage"] = {**(self.whole.get("usage") or {}), **used}
            case "message_stop":
                self.complete = True
        return self._blocks.get(index) if isinstance(index, int) else None

    def _add_delta(self, index: int, delta: Event) -> None:
        """Add a delta to the content block at this index. A delta of an unknown type changes nothing."""
        block = self._blocks[index]
        match delta.get("type"):
            case "text_delta":
                block["text"] = block.get("text", "") + delta["text"]
            case "thinking_delta":
                block["thinking"] = block.get("thinking", "") + delta["thinking"]
            case "signature_delta":
                block["signature"] = delta["signature"]
            case "citations_delta":
                block["citations"] = [*(block.get("citations") or ()), delta["citation"]]
            case "compaction_delta":
                block.update({name: value for name, value in delta.items() if name != "type"})
            case "input_json_delta":
                self._inputs[index] = self._inputs.get(index, "") + delta["partial_json"]
