"""Rows that call tools, and the live loop with the SDK whose answers they must have."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anthropic

MODEL = "claude-haiku-4-5"
TOOLS = ("lookup", "other")  # as many as one answer asks for side by side, so each is called once for an answer
MAX_TOKENS = 300
_WORD = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}


def declared(names: Sequence[str] = TOOLS) -> list[Any]:
    """Return tools as a request names them; each takes a word."""
    return [{"name": name, "description": "Look a word up.", "input_schema": _WORD} for name in names]


def answer_of(tool: str, word: str) -> str:
    """Return what a tool returns."""
    return f"{tool} knows {len(word)} letters of {word}"


def talking(name: str) -> list[str]:
    """Return the texts of three rows: one asks for tools, one does so and fails once in each round, one pauses."""
    asking = [f"Use lookup and other for {word} of {name}" for word in ("snow", "again")]
    return [*asking, f"The sea of {name} is still. {'A long one. ' * 25}It pauses"]


def sections(folder: Path, before_tool: Callable[[], None]) -> dict[str, Any]:
    """Return the sections of a job whose tools note each of their calls in a file of the folder.

    before_tool: called before each call.
    """

    def noting(tool: str) -> Callable[[str], str]:
        def called(word: str) -> str:
            before_tool()
            with open(folder / f"{tool}.calls", "a") as calls:
                calls.write(f"{word}\n")
            return answer_of(tool, word)

        called.__qualname__ = tool
        return called

    return {
        "request": {"model": MODEL, "max_tokens": MAX_TOKENS, "prompt": "{{ text }}", "params": {"tools": declared()}},
        "rounds": {"tools": {tool: noting(tool) for tool in TOOLS}},
        "retry": {"change": {"paused": {"continue": True}}},
    }


class Said(NamedTuple):
    """How a live loop ended: its last text, its rounds, and how often each tool was asked."""

    text: str
    rounds: int
    asked: Counter[str]


def live_loop(
    client: anthropic.Anthropic,
    prompt: str,
    call: Callable[[str, dict[str, Any]], str] = lambda tool, given: answer_of(tool, str(given["word"])),
    params: Mapping[str, Any] | None = None,
) -> Said:
    """Answer a row by live calls, as a script does. call: gets the name and the input of a tool.

    params: of the request, without messages; None: those of `sections`. A ValueError of a tool is told to the model.
    """
    asking: dict[str, Any] = dict(params or {"model": MODEL, "max_tokens": MAX_TOKENS, "tools": declared()})
    messages: list[Any] = [{"role": "user", "content": prompt}]
    asked: Counter[str] = Counter()
    rounds = 0
    while True:
        rounds += 1
        message = client.messages.create(messages=messages, **asking)
        if message.stop_reason != "tool_use":
            return Said("".join(block.text for block in message.content if block.type == "text"), rounds, asked)
        messages.append({"role": "assistant", "content": [block.to_dict() for block in message.content]})
        results = []
        for block in message.content:
            if block.type == "tool_use":
                asked[block.name] += 1
                result: dict[str, Any] = {"type": "tool_result", "tool_use_id": block.id}
                try:
                    result["content"] = call(block.name, dict(block.input))
                except ValueError as exc:
                    result |= {"content": f"{block.name} failed: ValueError: {exc}", "is_error": True}
                results.append(result)
        messages.append({"role": "user", "content": results})
