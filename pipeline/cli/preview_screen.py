"""How does `preview` show answers: on the screen while they come, or as facts?"""

from collections.abc import Callable
from typing import Any

import orjson
from rich.console import Console

from pipeline.answer.outcome import answer_text, thinking
from pipeline.api.realtime import Answered, Event, PreviewRow
from pipeline.escapes import stripped
from pipeline.report.quote import shortened
from pipeline.states import RowState
from pipeline.text import count, money

SERVER_USES = ("server_tool_use", "mcp_tool_use")  # blocks of tools that the API itself runs
LONGEST_INPUT = 200  # the characters of such a tool's input that its line shows
INPUT_LINES = 12  # the lines of a row's prompt that are shown before its answer
LONGEST_LINE = 400  # the characters of such a line that are shown


def _small_money(usd: float | None) -> str:
    """Return an amount as `text.money` does, but `under $0.0001` instead of `$0.0000` for what one answer costs."""
    return "under $0.0001" if usd is not None and 0 < usd < 0.0001 else money(usd)


def about(usd: float) -> str:
    """Return `about $0.02`, or `under $0.0001`."""
    said = _small_money(usd)
    return said if said.startswith("under") else f"about {said}"


class Screen:
    """Draw a preview: thinking is dimmed, tool input is drawn while it comes, a tool of the API is one line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._kind: str | None = None  # the type of the previous block
        self._at_start = True  # whether the next character starts a line

    def begin(self, row: PreviewRow) -> None:
        """Draw the key and place of a row, and its prompt."""
        self._kind = None
        self._line(f"{row.key} ({row.place})", "bold")
        for line in input_lines(row.built.params):
            self._out(f"> {line}", "dim")
            self._out("\n")

    def event(self, event: Event, block: Event | None) -> None:
        """Draw a piece of its answer. block: what the answer's block holds so far; None for events of no block."""
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
        """Draw how the row ended, and an empty line."""
        self._end_line()
        succeeded = answered.outcome.state == RowState.SUCCEEDED
        self._line(ended_line(answered), "green" if succeeded else "red")
        self._out("\n")

    def _open(self, block: Event) -> None:
        kind = str(block.get("type"))
        if kind != "text" or self._kind != "text":  # the text of an answer with citations comes in many blocks
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
        shown = stripped(text)
        if shown:
            self._console.out(shown, style=style, end="", highlight=False)
            self._at_start = shown.endswith("\n")


def input_lines(params: bytes) -> list[str]:
    """Return the first lines of a request's last turn: its text, and `[image]` for an image or other content."""
    content = orjson.loads(params)["messages"][-1]["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    texts = [str(block["text"]) if block["type"] == "text" else f"[{block['type']}]" for block in blocks]
    lines = "\n".join(texts).splitlines()
    cut = [
        line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}... ({len(line):,} characters)" for line in lines
    ]
    more = len(lines) - INPUT_LINES
    return cut if more <= 0 else [*cut[:INPUT_LINES], f"... ({count(more, 'more line')})"]


def ended_line(answered: Answered) -> str:
    """Return how a row ended, as `succeeded; 28 tokens in, 14 out; $0.0001`."""
    outcome = answered.outcome
    state = f"{outcome.state}: {outcome.error_message}" if outcome.error_message else str(outcome.state)
    if outcome.state == RowState.ERRORED:
        request = "" if outcome.request_id is None else f" ({outcome.request_id})"
        return f"errored: {outcome.error_type}: {outcome.error_message}{request}"
    read, written = outcome.cache_read_tokens, outcome.cache_write_tokens
    cached = [f"{n:,} {what} the cache" for n, what in ((read, "read from"), (written, "written to")) if n]
    said = f" ({', '.join(cached)})" if cached else ""
    tokens = f"{outcome.input_tokens + read + written:,} tokens in{said}, {outcome.output_tokens:,} out"
    return f"{state}; {tokens}; {_small_money(answered.cost_usd)}"


class FactsView:
    """Call a function with the facts of each row."""

    def __init__(self, each: Callable[[dict[str, Any]], None]) -> None:
        self._each = each

    def begin(self, row: PreviewRow) -> None:
        pass

    def event(self, event: Event, block: Event | None) -> None:
        pass

    def end(self, answered: Answered) -> None:
        self._each(_answer_facts(answered))


def _answer_facts(answered: Answered) -> dict[str, Any]:
    """Return a row for --json. text, thinking, values: None if the answer has none; cost_usd: None without a price."""
    outcome = answered.outcome
    return {
        "key": answered.row.key,
        "place": answered.row.place,
        "request": shortened(orjson.loads(answered.row.built.params)),
        "text": answer_text(answered.message or {}) or outcome.text,
        "thinking": thinking(answered.message or {}),
        "values": outcome.values,
        "status": str(outcome.state),
        "error_type": outcome.error_type,
        "error_message": outcome.error_message,
        "model": outcome.model,
        "message_id": outcome.message_id,
        "stop_reason": outcome.stop_reason,
        "stop_sequence": outcome.stop_sequence,
        "request_id": outcome.request_id,
        "tokens": {
            "input": outcome.input_tokens,
            "output": outcome.output_tokens,
            "cache_read": outcome.cache_read_tokens,
            "cache_write": outcome.cache_write_tokens,
        },
        "cost_usd": answered.cost_usd,
    }
