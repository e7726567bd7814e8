"""When does the emulated model ask for client tools, or pause, and for how many rounds? The prompt decides."""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.emulator.ids import derived_id
from pipeline.emulator.model.conversation import Progress
from pipeline.emulator.model.schema import Inventor, words
from pipeline.emulator.model.server_tools import is_server_tool
from pipeline.emulator.model.wording import MARK


@dataclass(frozen=True)
class Habits:
    """How often an answer asks for client tools, or pauses: from 1, or 0 for pauses, up to these numbers.

    rounds: turns that ask for client tools. calls: tools that one turn asks for side by side. pauses: of an answer that
    uses a server tool.
    """

    rounds: int = 3
    calls: int = 3
    pauses: int = 0


def pauses(source: str, done: Progress, habits: Habits) -> bool:
    """Return whether an answer that uses a server tool pauses once more. source: the text of the prompt."""
    return done.server_uses < _number(source) % (habits.pauses + 1)


def tool_calls(
    params: dict[str, Any], source: str, done: Progress, habits: Habits, seed: str
) -> list[dict[str, Any]] | None:
    """Return the content of an answer that asks for client tools; None if it asks for none, or for no more.

    Tools are asked for that the system prompt or the prompt names, unless tool_choice is `none`. source: the text of
    the prompt. done: what has happened since then. seed: the SHA-256 of the params in hex, for the ids.
    """
    number, choice = _number(source), params.get("tool_choice") or {}
    tools = list(_named(params, done)) if habits.rounds and choice.get("type") != "none" else []
    if not tools or done.rounds > number % habits.rounds:
        return None
    calls = 1 if choice.get("disable_parallel_tool_use") else 1 + (number // 7 + done.rounds) % habits.calls
    blocks = []
    for n in range(calls):
        place = number + done.rounds * habits.calls + n
        tool = tools[place % len(tools)]
        call = {"id": derived_id("toolu", seed, str(n)), "name": tool["name"], "input": _input(tool, source, place)}
        blocks.append({"type": "tool_use", **call})
    return [{"type": "text", "text": f"{MARK} I need {calls} more."}, *blocks]


def _named(params: dict[str, Any], done: Progress) -> Iterator[dict[str, Any]]:
    """Yield the client tools whose names occur in the system prompt or the prompt."""
    told = f"{_texts(params.get('system'))}\n{_texts(params['messages'][done.until - 1]['content'])}"
    for tool in params.get("tools") or ():
        name = tool.get("name")
        if name and not is_server_tool(tool) and re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", told):
            yield tool


def _texts(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(block["text"] for block in content if block.get("type") == "text")
    return content or ""


def _input(tool: dict[str, Any], source: str, place: int) -> dict[str, Any]:
    """Return an input that follows the schema of the tool. Its texts are words of the prompt, another one each time."""
    named = words(source) or ["nothing"]

    def pick(values: list[Any], _: str) -> Any:
        return values[place % len(values)]

    try:
        value = Inventor(tool.get("input_schema", {}), pick, named[place % len(named)], place).value()
    except (AttributeError, KeyError, TypeError):  # the API does not check tool schemas, so they may be malformed
        return {}
    return value if isinstance(value, dict) else {}


def _number(source: str) -> int:
    return zlib.crc32(source.encode())
