"""Invent the answer of an emulated model to a request.

Equal requests get equal answers. Free text begins with [emulated], so that it is not mistaken for the text of a model.
Structured output follows the schema of the request, and the input of a forced tool follows the schema of the tool.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from pipeline.emulator.ids import derived_id
from pipeline.emulator.model import server_tools
from pipeline.emulator.model.catalogue import Model
from pipeline.emulator.model.client_tools import Habits, pauses, tool_calls
from pipeline.emulator.model.conversation import Progress, progress
from pipeline.emulator.model.documents import citation, document_text
from pipeline.emulator.model.files import FileFinder, no_files
from pipeline.emulator.model.schema import Inventor, words
from pipeline.emulator.model.wording import GIST_CHARACTERS, MARK, SENTENCE

BYTES_PER_TOKEN = 4
IMAGE_TOKENS, DOCUMENT_TOKENS = 1600, 3000
TAGGED = re.compile(r"<([A-Za-z][\w-]*)(?:\s[^<>]*)?>(.*?)</\1\s*>", re.DOTALL)
TAG = re.compile(r"</?[A-Za-z][\w-]*(?:\s[^<>]*)?/?>")
THOUGHT = f"{MARK} Looked at the request before answering it."
TOLD_CHARACTERS = 400  #: of what tools said, in a free text
SHORT_WORD = 3  #: words of labels up to this length, as in "how_to", say little alone


@dataclass(frozen=True)
class Answer:
    """The parts of a Message that the model makes: all but ids and input tokens.

    output_tokens includes thinking_tokens.
    """

    content: list[dict[str, Any]]
    stop_reason: str = "end_turn"
    stop_sequence: str | None = None
    stop_details: dict[str, Any] | None = None
    output_tokens: int = 1
    thinking_tokens: int = 0
    server_tool_use: dict[str, int] | None = None  #: as in usage; None: no server tool was used
    iterations: list[dict[str, Any]] | None = None  #: as in usage; None: the model was sampled once


@dataclass
class Usage:
    """The input tokens of a request: uncached ones, those read from the cache and those written to it."""

    input_tokens: int
    cache_read: int = 0
    cache_write: dict[str, int] = field(default_factory=dict)  #: by time to live, `5m` or `1h`


def answer(
    params: dict[str, Any], model: Model, seed: str, files: FileFinder = no_files, habits: Habits | None = None
) -> Answer:
    """Return the answer to valid params.

    seed: the SHA-256 of the params in hex. files: finds the uploaded files that the params may name. habits: how often
    the model asks for client tools and pauses; None: the defaults.
    """
    habits = habits or Habits()
    done = progress(params["messages"])
    source = _source_text(params["messages"][: done.until], files)
    number = int(seed[:12], 16)
    thinking, thinking_tokens = _thinking(params, model)
    tool = _forced_tool(params, number)
    if tool is not None and not server_tools.is_server_tool(tool):
        made = _invent(tool.get("input_schema", {}), source, number)
        value = made if isinstance(made, dict) else {}
        block = {"type": "tool_use", "id": derived_id("toolu", seed), "name": tool["name"], "input": value}
        return _asking([*thinking, block], thinking_tokens)
    used = _used_tool(params, tool, source, seed)
    completed = _completed(used, done)
    if used and pauses(source, done, habits):
        return _paused([*thinking, *completed, used[0]], thinking_tokens)
    asked = tool_calls(params, source, done, habits, seed) if tool is None else None
    if asked is not None:
        return _within(_asking([*thinking, *completed, *asked], thinking_tokens), params["max_tokens"])
    schema = output_schema(params)
    told = " ".join(done.results)
    text = _text(source, told) if schema is None else _json(_invent(schema, f"{source} {told}".rstrip(), number))
    used = completed or used
    limited = _limited(text, params, thinking_tokens, -(-server_tools.size_of(used) // BYTES_PER_TOKEN))
    _cite(limited, citation(params["messages"], files))
    counts = server_tools.requests_of(used) if used else None
    return replace(limited, content=[*thinking, *used, *limited.content], server_tool_use=counts)


def _text(source: str, told: str) -> str:
    """Return the free text of an answer. told: what the client tools returned; empty if nothing."""
    text = f"{MARK} {gist(source)}".rstrip()
    return f"{text} The tools said: {told[:TOLD_CHARACTERS]}" if told else text


def _asking(content: list[dict[str, Any]], thinking_tokens: int) -> Answer:
    """Return an answer that ends with uses of client tools."""
    tokens = sum(
        text_tokens(orjson.dumps(block["input"]).decode()) + 20 for block in content if block["type"] == "tool_use"
    )
    return Answer(content, "tool_use", output_tokens=tokens + thinking_tokens, thinking_tokens=thinking_tokens)


def _within(made: Answer, max_tokens: int) -> Answer:
    """Return the answer, or what is left of it without its uses of tools if it has more tokens than max_tokens."""
    if made.output_tokens <= max_tokens:
        return made
    kept = [block for block in made.content if block["type"] != "tool_use"]
    thought = min(made.thinking_tokens, max_tokens)
    return replace(made, content=kept, stop_reason="max_tokens", output_tokens=max_tokens, thinking_tokens=thought)


def _paused(content: list[dict[str, Any]], thinking_tokens: int) -> Answer:
    """Return an answer that pauses while a server tool is in use. content: its last block is the use."""
    tokens = max(-(-server_tools.size_of(content) // BYTES_PER_TOKEN), 1) + thinking_tokens
    counts = server_tools.requests_of(content)
    return Answer(content, "pause_turn", None, None, tokens, thinking_tokens, counts)


def _completed(used: list[dict[str, Any]], done: Progress) -> list[dict[str, Any]]:
    """Return the result of the use of a server tool with which the conversation paused; empty if it did not pause."""
    if done.pending is None or not used:
        return []
    return [{**used[1], "tool_use_id": done.pending["id"]}]


def _used_tool(params: dict[str, Any], forced: dict[str, Any] | None, source: str, seed: str) -> list[dict[str, Any]]:
    """Return the blocks of the use of a server tool: the forced one, otherwise the first one; empty if none is used."""
    may = (params.get("tool_choice") or {}).get("type") != "none"
    tool = forced or (server_tools.server_tool(params.get("tools") or []) if may else None)
    return server_tools.use(tool, gist(source), source, seed) if tool else []


def _cite(made: Answer, cited: dict[str, Any] | None) -> None:
    if cited is not None and made.content:
        made.content[-1]["citations"] = [cited]


def output_schema(params: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema of the structured output that the params ask for; None if they ask for free text."""
    wanted = (params.get("output_config") or {}).get("format") or params.get("output_format")
    return wanted["schema"] if wanted else None


def with_text(made: Answer, text: str, **changes: Any) -> Answer:
    """Return the answer with another text and the token count of that text. changes: further fields to replace."""
    kept = [block for block in made.content if block["type"] not in ("text", "tool_use")]
    tokens = text_tokens(text) + made.thinking_tokens
    return replace(made, content=[*kept, {"type": "text", "text": text}], output_tokens=tokens, **changes)


def text_of(made: Answer) -> str:
    """Return the text of an answer; empty if it has none."""
    return "".join(block["text"] for block in made.content if block["type"] == "text")


def gist(text: str) -> str:
    """Return the first sentence of the longest paragraph, without tags and cut to about GIST_CHARACTERS characters."""
    paragraph = max(text.split("\n\n"), key=len)
    plain = " ".join(TAG.sub(" ", paragraph[: 4 * GIST_CHARACTERS]).split())
    end = SENTENCE.search(plain)
    sentence = plain[: end.start() + 1] if end else plain
    if len(sentence) <= GIST_CHARACTERS:
        return sentence
    return sentence[:GIST_CHARACTERS].rsplit(" ", 1)[0] + "..."


def _source_text(messages: list[dict[str, Any]], files: FileFinder) -> str:
    """Return the longest tagged part of the longest text of the last user turn, or that text if nothing is tagged.

    Texts are those of the prompt and of documents.
    """
    last = next(m for m in reversed(messages) if m["role"] == "user")
    content = last["content"]
    longest = content if isinstance(content, str) else max(_texts(content, files), key=len, default="")
    return max((part for _, part in TAGGED.findall(longest)), key=len, default="") or longest


def _texts(content: list[dict[str, Any]], files: FileFinder) -> Iterator[str]:
    """Yield the texts of text blocks and documents."""
    for block in content:
        if block["type"] == "text":
            yield block["text"]
        elif block["type"] == "document":
            yield document_text(block, files) or ""


def _thinking(params: dict[str, Any], model: Model) -> tuple[list[dict[str, Any]], int]:
    """Return the thinking block of an answer, if the model thinks, and its tokens."""
    thinking = params.get("thinking") or {}
    kind = thinking.get("type")
    on = kind in ("enabled", "adaptive") or (kind is None and model.thinks_by_default)
    if not on:
        return [], 0
    shown = thinking.get("display", "summarized" if kind == "enabled" else "omitted") == "summarized"
    block = {"type": "thinking", "thinking": THOUGHT if shown else "", "signature": "ZW11bGF0ZWQ="}
    return [block], text_tokens(THOUGHT)


def _forced_tool(params: dict[str, Any], number: int) -> dict[str, Any] | None:
    """Return the tool that tool_choice forces; None if it forces none."""
    choice = params.get("tool_choice") or {}
    tools: list[dict[str, Any]] = [t for t in params.get("tools") or [] if "name" in t]
    if choice.get("type") == "tool":
        return next(t for t in tools if t["name"] == choice["name"])
    return tools[number % len(tools)] if choice.get("type") == "any" and tools else None


def _invent(schema: dict[str, Any], source: str, number: int) -> Any:
    """Return a value that follows a schema, by the words of the source; {} if the schema is malformed."""
    counted: Counter[str] | None = None

    def pick(values: list[Any], path: str) -> Any:
        nonlocal counted
        if counted is None:
            counted = Counter(words(source))
        return _fitting(values, counted, number + len(path))

    try:
        return Inventor(schema, pick, f"{MARK} {gist(source)}", number).value()
    except (AttributeError, KeyError, TypeError):  # the API does not check tool schemas, so they may be malformed
        return {}


def _fitting(values: Sequence[Any], counted: Counter[str], number: int) -> Any:
    """Return the value whose words occur most often in the text; `number` chooses among equals."""
    scores = [_score(value, counted) for value in values]
    best = max(scores)
    candidates = [value for value, score in zip(values, scores, strict=True) if score == best]
    return candidates[number % len(candidates)]


def _score(value: Any, counted: Counter[str]) -> int:
    """Return how often the long words of a value occur in the text; without long words, its rarest word."""
    parts = words(value) if isinstance(value, str) else []
    telling = [part for part in parts if len(part) > SHORT_WORD]
    if telling:
        return sum(counted[part] for part in telling)
    return min((counted[part] for part in parts), default=0)


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _limited(text: str, params: dict[str, Any], thinking_tokens: int, tool_tokens: int) -> Answer:
    """Return an answer with the text cut at a stop sequence, then at the max_tokens that thinking and tools left."""
    reason, sequence = "end_turn", None
    for stop in params.get("stop_sequences") or ():
        at = text.find(stop)
        if at >= 0:
            text, reason, sequence = text[:at], "stop_sequence", stop
    spent = min(thinking_tokens + tool_tokens, params["max_tokens"])
    room = params["max_tokens"] - spent
    if text_tokens(text) > room:
        text = text.encode()[: room * BYTES_PER_TOKEN].decode(errors="ignore")
        reason, sequence = "max_tokens", None
    tokens = min(text_tokens(text) + spent, params["max_tokens"])
    content: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    thought = min(thinking_tokens, params["max_tokens"])
    return Answer(content, reason, sequence, output_tokens=max(tokens, 1), thinking_tokens=thought)


def text_tokens(text: str) -> int:
    """Return the token count of a text: a fourth of its UTF-8 bytes, rounded up."""
    size = len(text) if text.isascii() else len(text.encode())
    return -(-size // BYTES_PER_TOKEN)


def input_tokens(params: dict[str, Any]) -> int:
    """Return the token count of the whole prompt: system, tools, output schema and messages."""
    total = 7 + prompt_part_tokens(params.get("system"))
    for message in read_turns(params["messages"]):
        total += 3 + prompt_part_tokens(message["content"])
    for name in ("tools", "output_config"):
        if params.get(name):
            total += -(-len(orjson.dumps(params[name])) // BYTES_PER_TOKEN)
    return total


def read_turns(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the turns that the model reads: from the last compaction block with a summary on; all without one."""
    for turn in range(len(messages) - 1, -1, -1):
        content = messages[turn]["content"]
        blocks = content if isinstance(content, list) else []
        for i in range(len(blocks) - 1, -1, -1):
            if isinstance(blocks[i], dict) and blocks[i].get("type") == "compaction" and blocks[i].get("content"):
                return [{**messages[turn], "content": blocks[i:]}, *messages[turn + 1 :]]
    return messages


def prompt_part_tokens(content: Any) -> int:
    """Return the token count of a text or a list of blocks. Each image and each document has a fixed count.

    content None or of another type: 0.
    """
    if content is None:
        return 0
    if isinstance(content, str):
        return text_tokens(content)
    if not isinstance(content, list):
        return 0
    total = 0
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            total += text_tokens(str(block.get("text", "")))
        elif kind == "image":
            total += IMAGE_TOKENS
        elif kind == "document":
            total += DOCUMENT_TOKENS
        elif kind == "tool_result":
            total += prompt_part_tokens(block.get("content"))
        elif kind is not None:
            total += -(-len(orjson.dumps(block)) // BYTES_PER_TOKEN)
    return total


def message(made: Answer, model: Model, usage: Usage, message_id: str, tier: str) -> dict[str, Any]:
    """Return the Message as the API sends it. tier: the service tier, `batch` or `standard`."""
    written = usage.cache_write
    counts: dict[str, Any] = {
        "input_tokens": usage.input_tokens,
        "cache_creation_input_tokens": sum(written.values()),
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": written.get("5m", 0),
            "ephemeral_1h_input_tokens": written.get("1h", 0),
        },
        "output_tokens": made.output_tokens,
        "service_tier": tier,
        "inference_geo": "not_available",
    }
    if made.thinking_tokens:
        counts["output_tokens_details"] = {"thinking_tokens": made.thinking_tokens}
    if made.server_tool_use is not None:
        counts["server_tool_use"] = made.server_tool_use
    if made.iterations is not None:
        counts["iterations"] = made.iterations
    return {
        "model": model.id,
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "content": made.content,
        "stop_reason": made.stop_reason,
        "stop_sequence": made.stop_sequence,
        "stop_details": made.stop_details,
        "usage": counts,
    }
