"""The first rows of a job asked live: what a prompt does, before a batch takes its hour. Edge: HTTP.

The same requests as in the batch, through the Messages API at its full price. Nothing is stored. What a model says is
not trusted: no control character of it reaches the terminal.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import anthropic
import httpx2
import orjson
from anthropic import AsyncAnthropic, AsyncStream
from rich.console import Console

from pipeline import identity, pricing, report, templates
from pipeline.api import SPEND_CODES, beta_header, in_words
from pipeline.clients import Reach, made, of_credentials
from pipeline.errors import AccountStopped, ApiUnreachable, InputError, JobError, PipelineError, SourceError
from pipeline.job import Job
from pipeline.outcomes import Outcome, ResultReader, run_by_the_api, thinking
from pipeline.plan import SHOWN, Plan
from pipeline.pricing import PriceList, Prices
from pipeline.quote import Quote
from pipeline.requests import Built
from pipeline.rows import Chunk
from pipeline.states import RowState
from pipeline.verdicts import Verdict

ACCOUNT_STATUSES = frozenset({401, 402, 403})  # in a live call only these speak of the account: 400 is of the request
SERVER_USES = ("server_tool_use", "mcp_tool_use")  # blocks of tools that the API runs by itself
LONGEST_INPUT = 200  # characters of such a tool's input that its line shows
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # surrogates: no terminal can be given them

Event = dict[str, Any]  # as the API sends it: what this version does not know passes through


# -- which rows ------------------------------------------------------------------------------------------------------


class PreviewRow(NamedTuple):
    """A row to be asked. key: as people write it; place: where it stands, for a message."""

    key: str
    place: str
    built: Built


@dataclass(frozen=True)
class Picked:
    """The rows of a preview. problems: rows before them that cannot be sent, the first few; left_out: how many."""

    rows: Sequence[PreviewRow]
    problems: Sequence[str] = ()
    left_out: int = 0

    def problem_lines(self) -> Iterator[str]:
        """A line for each row that cannot be sent: its place and the reason."""
        for problem in self.problems:
            yield f"row      {clean(problem)}"
        if self.left_out > len(self.problems):
            yield f"         and {self.left_out - len(self.problems):,} more"


def pick(plan: Plan, n: int) -> Picked:
    """The first n rows that can be sent; files that would be put up are carried by the requests.

    Raises SourceError when there is none, JobError when the template may not run at all.
    """
    found: list[PreviewRow] = []
    problems: list[str] = []
    left_out = 0
    for row in _rendered(plan):
        if isinstance(row, PreviewRow):
            found.append(row)
        else:
            left_out += 1
            problems += [row] if len(problems) < SHOWN else []
        if len(found) == n:
            break
    if found:
        return Picked(found, problems, left_out)
    if problems:
        more = f" (and {left_out - 1:,} more)" if left_out > 1 else ""
        raise SourceError(f"no row can be sent: {problems[0]}{more}")
    raise SourceError("there is no row to preview: the source is empty, or source.where leaves none")


def _rendered(plan: Plan) -> Iterator[PreviewRow | str]:
    """Each row of the source with its request, or why it has none."""
    attached = plan.builder.columns.attachments
    for chunk in plan.rows.chunks(plan.columns):
        keys = identity.keys(chunk.frame, plan.job.source.key)
        for i, values in enumerate(identity.named_rows(chunk.frame, plan.columns, as_bytes=attached)):
            yield _built(plan, chunk, i, identity.shown(keys[i]), values)


def _built(plan: Plan, chunk: Chunk, i: int, key: str, values: dict[str, Any]) -> PreviewRow | str:
    try:
        return PreviewRow(key, chunk.place(i), plan.builder.params(values, chunk.folder, carried=True))
    except templates.RowProblem as exc:
        return f"{chunk.place(i)} cannot be sent: {exc}"
    except templates.TemplateProblem as exc:
        raise JobError(f"request.prompt: {exc}") from exc


# -- what it costs ---------------------------------------------------------------------------------------------------


class Realtime(PriceList):
    """The prices of live calls. A job's own `prices` are of batches and do not count here."""

    def of(self, model: str) -> Prices | None:
        """The price of live calls of a model; None when it is not known."""
        return pricing.prices(model, batch=False)


def announcement(picked: Picked, job: Job) -> str:
    """What is about to be asked and what it costs, in one sentence; said before anything is sent."""
    quote = Quote.of(job, Realtime())
    quote.rows[Verdict.NEW] = len(picked.rows)
    for slot, row in enumerate(picked.rows):
        quote.put(slot, row.built, b"")
    said = f"{report.count(len(picked.rows), 'request')} through the Messages API now, at its full price"
    if quote.unpriced is not None:
        said += f": no price is known for {quote.unpriced}"
    else:
        about, most = (cost or 0.0 for cost in (quote.cost_input, quote.cost_most))
        said += (
            f" (not the batch price, which is half of it): {_about(about)} for the input, "
            f"at most {_about(most)} if every answer takes its max_tokens"
        )
    unbounded = run_by_the_api(job.request.params)
    if unbounded is not None:
        said += f", and on top what {unbounded} costs and reads at the API"
    if job.prices:
        said += "; `prices` of the job file are of batches and do not count here"
    return said


def _money(usd: float | None) -> str:
    """As report.money, but the little that one answer costs is not said to be nothing."""
    return "under $0.0001" if usd is not None and 0 < usd < 0.0001 else report.money(usd)


def _about(usd: float) -> str:
    said = _money(usd)
    return said if said.startswith("under") else f"about {said}"


# -- asking ----------------------------------------------------------------------------------------------------------


def async_client(reach: Reach) -> AsyncAnthropic:
    """The async twin of the client that Api.connect makes; `show` and `tell` close it. Raises as `api.made` does."""
    client: AsyncAnthropic = made(reach, of="Async")
    return client


class Answered(NamedTuple):
    """How one row ended. message: as far as it came, None if nothing did; cost_usd: None when it has no known price."""

    row: PreviewRow
    outcome: Outcome
    message: dict[str, Any] | None
    cost_usd: float | None


class View(Protocol):
    """Who watches a preview: row after row, each with its events as they come."""

    def begin(self, row: PreviewRow) -> None:
        """A row's turn to be shown."""

    def event(self, event: Event, block: Event | None) -> None:
        """Something came of it. block: the content block that it belongs to, as far as that has come."""

    def end(self, answered: Answered) -> None:
        """That was all of it."""


def show(client: AsyncAnthropic, picked: Picked, job: Job, console: Console) -> int:
    """Ask the rows and draw their answers: 0 when all succeeded, else 1. Closes the client.

    Raises InputError when no row could be asked, and AccountStopped or ApiUnreachable when some could not.
    """
    return asyncio.run(stream(client, picked, job, Screen(console)))


def tell(client: AsyncAnthropic, picked: Picked, job: Job, each: Callable[[dict[str, Any]], None]) -> int:
    """As `show`, but each row goes to `each` as facts when it has ended, in the order of the rows."""
    return asyncio.run(stream(client, picked, job, _Facts(each)))


async def stream(client: AsyncAnthropic, picked: Picked, job: Job, view: View) -> int:
    """Ask all rows at once, and show them to the view one after another, the first of them live. As `show` says."""
    async with client:
        lives = [_Live(row) for row in picked.rows]
        asking = [asyncio.create_task(_ask(client, live, job.request.betas)) for live in lives]
        try:
            return await _watched(lives, ResultReader(job), view)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)


class _Live:
    """One row while it is being answered."""

    def __init__(self, row: PreviewRow) -> None:
        self.row = row
        self.message = _Message()
        self.begun = asyncio.Event()  #: something came of it, or it failed
        self.heard = False  #: the API said something of this row
        self.failure: Exception | None = None
        self._events: asyncio.Queue[tuple[Event, Event | None] | None] = asyncio.Queue()

    def take(self, event: Event) -> None:
        """An event of its answer. Raises ValueError for one that is not as the API sends it."""
        self.heard = True
        self.begun.set()
        try:
            block = self.message.add(event)
        except (AttributeError, KeyError, TypeError):
            raise ValueError(f"an event {event.get('type')!r} that is not understood") from None
        self._events.put_nowait((event, block))

    def finish(self, failure: Exception | None) -> None:
        """No more comes."""
        self.failure = failure
        self.heard = self.heard or (failure is not None and not isinstance(failure, PipelineError))
        self._events.put_nowait(None)
        self.begun.set()

    async def show(self, view: View) -> None:
        """Give the view all that has come and what is coming. Raises what is no failure of a call."""
        while (came := await self._events.get()) is not None:
            view.event(*came)
        if not (self.failure is None or isinstance(self.failure, _FORESEEN)):
            raise self.failure


_FORESEEN = (anthropic.AnthropicError, httpx2.HTTPError, OSError, ValueError, PipelineError)


async def _ask(client: AsyncAnthropic, live: _Live, betas: Sequence[str]) -> None:
    """One row's call. Its end is in `live`, also when it fails."""
    failure: Exception | None = None
    try:
        async with await _sent(client, live.row.built.params, betas) as events:
            async for event in events:
                if isinstance(event, dict):
                    live.take(event)
    except Exception as exc:  # noqa: BLE001  # it is raised where the row is shown
        failure = _of_all(exc, client) or exc if not live.heard else exc
    live.finish(failure)


async def _sent(client: AsyncAnthropic, params: bytes, betas: Sequence[str]) -> AsyncStream[object]:
    """The call, with the bytes of the batch's request: no field of them is read, left out or renamed on the way."""
    return await client.post(
        "/v1/messages",
        cast_to=object,
        content=params[:-1] + b',"stream":true}',
        options={"headers": {"content-type": "application/json", **beta_header(betas)}, "follow_redirects": False},
        stream=True,
        stream_cls=AsyncStream[object],
    )


def _of_all(exc: Exception, client: AsyncAnthropic) -> PipelineError | None:
    """What a failed call says of all of them; None when it is about its row."""
    translated: PipelineError | None = None
    problem = of_credentials(exc)
    if problem is not None:
        translated = InputError(problem)
    elif isinstance(exc, anthropic.APIStatusError):
        own_envelope = exc.type is not None and exc.api_message is not None
        if own_envelope and (exc.status_code in ACCOUNT_STATUSES or exc.error_code in SPEND_CODES):
            translated = AccountStopped(f"the API refuses this account: {in_words(exc)}")
        elif not own_envelope and exc.status_code != 413:  # 413: a proxy may say it in the API's place
            translated = ApiUnreachable(f"the API answers {in_words(exc)}; check ANTHROPIC_BASE_URL")
    elif isinstance(exc, anthropic.APIConnectionError | httpx2.HTTPError | OSError):
        said = f"no answer from {str(client.base_url).rstrip('/')}: {in_words(exc)}"
        translated = ApiUnreachable(f"{said}; check ANTHROPIC_BASE_URL and the network")
    if translated is not None:
        translated.__cause__ = exc
    return translated


async def _watched(lives: Sequence[_Live], reader: ResultReader, view: View) -> int:
    """Show the rows in their order. What fails all of them is raised, at the end if any was answered."""
    outcomes = []
    for live in lives:
        await live.begun.wait()
        if isinstance(live.failure, PipelineError):
            await asyncio.gather(*(other.begun.wait() for other in lives))
            if not any(other.heard for other in lives):
                raise InputError(f"{live.failure}; no row was answered") from live.failure
        view.begin(live.row)
        await live.show(view)
        outcome = _judged(live, reader)
        outcomes.append(outcome)
        view.end(Answered(live.row, outcome, live.message.whole, Realtime().cost(outcome)))
    stopped = next((live.failure for live in lives if isinstance(live.failure, PipelineError)), None)
    if stopped is not None:
        raise stopped
    return int(any(outcome.state != RowState.SUCCEEDED for outcome in outcomes))


def _judged(live: _Live, reader: ResultReader) -> Outcome:
    """What the pipeline would make of this answer in a batch."""
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
    """A Message as its events complete it. whole: as a batch's result has it; None before it begins."""

    def __init__(self) -> None:
        self.whole: dict[str, Any] | None = None
        self.complete = False
        self._blocks: dict[int, dict[str, Any]] = {}
        self._inputs: dict[int, str] = {}

    def add(self, event: Event) -> Event | None:
        """The next event; the block that it belongs to, None if to none. An event that is not known changes nothing."""
        index = event.get("index")
        match event.get("type"):
            case "message_start":
                self.whole = {**event["message"], "content": []}
            case "content_block_start" if self.whole is not None and isinstance(index, int):
                self._blocks[index] = dict(event["content_block"])
                self.whole["content"].append(self._blocks[index])
            case "content_block_delta" if index in self._blocks:
                self._grow(index, event["delta"])
            case "content_block_stop" if index in self._inputs:
                with contextlib.suppress(orjson.JSONDecodeError):  # cut off at max_tokens: the outcome says that
                    self._blocks[index]["input"] = orjson.loads(self._inputs[index])
            case "message_delta" if self.whole is not None:
                self.whole |= event.get("delta") or {}
                used = {name: value for name, value in (event.get("usage") or {}).items() if value is not None}
                self.whole["usage"] = {**(self.whole.get("usage") or {}), **used}
            case "message_stop":
                self.complete = True
        return self._blocks.get(index) if isinstance(index, int) else None

    def _grow(self, index: int, delta: Event) -> None:
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
            case "input_json_delta":
                self._inputs[index] = self._inputs.get(index, "") + delta["partial_json"]


# -- showing ---------------------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """Text that is not ours, without the characters that command a terminal; newline and tab stay."""
    return _CONTROL.sub("", text)


class Screen:
    """Draws a preview: thinking dimmed, tool input as it comes, tools that the API runs as a line each."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._kind: str | None = None  # of the block before
        self._at_start = True  # of a line

    def begin(self, row: PreviewRow) -> None:
        """Its key and place."""
        self._kind = None
        self._line(f"{row.key} ({row.place})", "bold")

    def event(self, event: Event, block: Event | None) -> None:
        """A piece of its answer."""
        if block is None:
            return
        match event["type"]:
            case "content_block_start":
                self._open(event["content_block"])
            case "content_block_delta":
                self._piece(event["delta"], str(block.get("type")))
            case "content_block_stop":
                self._close(block)

    def end(self, answered: Answered) -> None:
        """How it ended, and an empty line."""
        self._end_line()
        succeeded = answered.outcome.state == RowState.SUCCEEDED
        self._line(ended_line(answered), "green" if succeeded else "red")
        self._out("\n")

    def _open(self, block: Event) -> None:
        kind = str(block.get("type"))
        if kind != "text" or self._kind != "text":  # an answer with citations is many blocks of one text
            self._end_line()
        self._kind = kind
        if kind == "tool_use":
            self._out(f"{block.get('name')} ", "cyan")
        elif kind in ("text", "thinking"):
            self._out(str(block.get(kind) or ""), "dim" if kind == "thinking" else None)

    def _piece(self, delta: Event, kind: str) -> None:
        match delta.get("type"):
            case "text_delta":
                self._out(str(delta.get("text")))
            case "thinking_delta":
                self._out(str(delta.get("thinking")), "dim")
            case "input_json_delta" if kind not in SERVER_USES:
                self._out(str(delta.get("partial_json")))

    def _close(self, block: Event) -> None:
        kind, content = str(block.get("type")), block.get("content")
        if kind in SERVER_USES:
            given = orjson.dumps(block.get("input"), default=str).decode()
            cut = given if len(given) <= LONGEST_INPUT else given[:LONGEST_INPUT] + "..."
            self._line(f"{block.get('name')} {cut}", "cyan")
        elif kind.endswith("_tool_result") and isinstance(content, dict) and content.get("error_code"):
            self._line(f"{kind}: {content['error_code']}", "cyan")

    def _line(self, text: str, style: str) -> None:
        self._out(" ".join(text.split()), style)
        self._out("\n")

    def _end_line(self) -> None:
        if not self._at_start:
            self._out("\n")

    def _out(self, text: str, style: str | None = None) -> None:
        shown = clean(text)
        if shown:
            self._console.out(shown, style=style, end="", highlight=False)
            self._at_start = shown.endswith("\n")


def ended_line(answered: Answered) -> str:
    """`succeeded; 28 tokens in, 14 out; $0.0001`."""
    outcome = answered.outcome
    state = f"{outcome.state}: {outcome.error_message}" if outcome.error_message else str(outcome.state)
    if outcome.state == RowState.ERRORED:
        return f"errored: {outcome.error_type}: {outcome.error_message}"
    read, written = outcome.cache_read_tokens, outcome.cache_write_tokens
    cached = [f"{n:,} {what} the cache" for n, what in ((read, "read from"), (written, "written to")) if n]
    said = f" ({', '.join(cached)})" if cached else ""
    tokens = f"{outcome.input_tokens + read + written:,} tokens in{said}, {outcome.output_tokens:,} out"
    return f"{state}; {tokens}; {_money(answered.cost_usd)}"


class _Facts:
    """Tells each row as facts."""

    def __init__(self, each: Callable[[dict[str, Any]], None]) -> None:
        self._each = each

    def begin(self, row: PreviewRow) -> None:
        pass

    def event(self, event: Event, block: Event | None) -> None:
        pass

    def end(self, answered: Answered) -> None:
        self._each(facts(answered))


def facts(answered: Answered) -> dict[str, Any]:
    """One row as JSON. text, thinking and values are None where there are none; cost_usd for one without a price."""
    outcome = answered.outcome
    return {
        "key": answered.row.key,
        "place": answered.row.place,
        "text": outcome.text,
        "thinking": thinking(answered.message or {}),
        "values": outcome.values,
        "status": str(outcome.state),
        "error_type": outcome.error_type,
        "error_message": outcome.error_message,
        "model": outcome.model,
        "tokens": {
            "input": outcome.input_tokens,
            "output": outcome.output_tokens,
            "cache_read": outcome.cache_read_tokens,
            "cache_write": outcome.cache_write_tokens,
        },
        "cost_usd": answered.cost_usd,
    }
