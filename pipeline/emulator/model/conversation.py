"""Read a conversation: the prompt that is answered, and the rounds of tools since then; refuse what does not fit."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

Turn = dict[str, Any]  # {role, content}
Block = dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """What has happened since the last prompt, the last turn of the user that has more than results of tools.

    until: the number of turns up to the prompt, with it. rounds: the turns that asked for client tools. results: the
    texts of their results, in order. server_uses: the uses of server tools. pending: the use of a server tool without
    a result with which the conversation ends, because the answer paused; None if there is none.
    """

    until: int
    rounds: int = 0
    results: tuple[str, ...] = ()
    server_uses: int = 0
    pending: Block | None = None


def progress(messages: list[Turn]) -> Progress:
    """Return what has happened since the last prompt of a valid conversation."""
    if messages[-1]["role"] == "user" and isinstance(messages[-1]["content"], str):
        return Progress(until=len(messages))
    users = [i for i, turn in enumerate(messages) if turn["role"] == "user"]
    prompt = next((i for i in reversed(users) if not _has_only_results(turn_blocks(messages[i]))), users[-1])
    since = [turn_blocks(turn) for turn in messages[prompt + 1 :]]
    blocks = [block for turn in since for block in turn]
    last = blocks[-1] if blocks else {}
    return Progress(
        until=prompt + 1,
        rounds=sum(any(block["type"] == "tool_use" for block in turn) for turn in since),
        results=tuple(_result_text(block) for block in blocks if block["type"] == "tool_result"),
        server_uses=sum(block["type"] == "server_tool_use" for block in blocks),
        pending=last if last.get("type") == "server_tool_use" else None,
    )


def turn_blocks(turn: Turn) -> list[Block]:
    """Return the content of a turn as blocks."""
    content = turn["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def is_paused(messages: list[Turn]) -> bool:
    """Return whether a conversation ends with a turn of the assistant that paused while a server tool was in use."""
    if messages[-1]["role"] != "assistant":
        return False
    kind = str(next((block.get("type") for block in reversed(turn_blocks(messages[-1]))), ""))
    return kind == "server_tool_use" or kind.endswith("_tool_result")


def tools_problem(messages: list[Turn]) -> str | None:
    """Return the API's message about a use of a client tool without its result, or the reverse; None if all fit."""
    if all(isinstance(turn["content"], str) for turn in messages):
        return None
    open_ids: list[str] = []
    asked, seen = 0, set[str]()  # asked: the place of the turn with the open uses
    for run in _runs(messages):
        if run.role == "assistant":
            open_ids, asked = [], run.first
            for where, block in run.blocks:
                if block["type"] == "tool_use":
                    if block.get("id") in seen:
                        return f"{where}: `tool_use` ids must be unique"
                    open_ids.append(str(block.get("id")))
            seen.update(open_ids)
        else:
            if found := _results_problem(run, open_ids, asked):
                return found
            open_ids = []
    return _missing(asked, open_ids)


class _Run(NamedTuple):
    """Turns of one role that follow each other, which the API reads as one. blocks: each with its place."""

    role: str
    first: int
    blocks: list[tuple[str, Block]]


def _runs(messages: list[Turn]) -> Iterator[_Run]:
    run: _Run | None = None
    for i, turn in enumerate(messages):
        placed = [(f"messages.{i}.content.{n}", block) for n, block in enumerate(turn_blocks(turn))]
        if turn["role"] == "system":
            continue
        if run is not None and run.role == turn["role"]:
            run.blocks.extend(placed)
            continue
        if run is not None:
            yield run
        run = _Run(turn["role"], i, placed)
    if run is not None:
        yield run


def _results_problem(run: _Run, open_ids: list[str], asked: int) -> str | None:
    """Return what is wrong with the results of tools in turns of the user. open_ids: the uses that need a result."""
    found: list[str] = []
    first = 0  # results must come before everything else, or the API does not see them
    for at, (where, block) in enumerate(run.blocks):
        if block["type"] != "tool_result":
            continue
        use = str(block.get("tool_use_id"))
        if use not in open_ids:
            return (
                f"{where}: unexpected `tool_use_id` found in `tool_result` blocks: {use}. Each `tool_result` block "
                "must have a corresponding `tool_use` block in the previous message."
            )
        if use in found:
            return (
                f"{where}: each tool_use must have a single result. Found multiple `tool_result` blocks with id: {use}"
            )
        if at == first:
            found.append(use)
            first += 1
    return _missing(asked, [use for use in open_ids if use not in found])


def _missing(asked: int, ids: list[str]) -> str | None:
    if not ids:
        return None
    return (
        f"messages.{asked}: `tool_use` ids were found without `tool_result` blocks immediately after: "
        f"{', '.join(ids)}. Each `tool_use` block must have a corresponding `tool_result` block in the next message."
    )


def _has_only_results(blocks: list[Block]) -> bool:
    return bool(blocks) and all(block["type"] == "tool_result" for block in blocks)


def _result_text(block: Block) -> str:
    content = block.get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part.get("type") == "text")
