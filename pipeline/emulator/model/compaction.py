"""Summarize a conversation at a threshold of tokens, as the beta compact-2026-01-12 does.

The summary is a block of type compaction at the start of the answer. What a conversation holds before such a block is
not read again. The tokens of the summarizing are in `usage.iterations`, and not in the counts of the message itself.
"""

import hashlib
from dataclasses import replace
from typing import Any, NamedTuple

from pipeline.emulator.model.answers import Answer, Usage, answer, gist, input_tokens, text_tokens
from pipeline.emulator.model.catalogue import Model
from pipeline.emulator.model.client_tools import Habits
from pipeline.emulator.model.files import FileFinder, no_files
from pipeline.emulator.model.wording import MARK

BETA = "compact-2026-01-12"
EDIT = "compact_20260112"
DEFAULT_TRIGGER, LEAST_TRIGGER = 150_000, 50_000  # input tokens


class _Compacted(NamedTuple):
    """A conversation that was summarized. params: with the summary in place of all turns but the last one."""

    block: dict[str, Any]
    params: dict[str, Any]
    pauses: bool


def answered(
    params: dict[str, Any],
    model: Model,
    seed: str,
    usage: Usage,
    files: FileFinder = no_files,
    habits: Habits | None = None,
) -> tuple[Answer, Usage]:
    """Return the answer to valid params, after a compaction if they ask for one, and the usage of the message.

    usage: that of the params as they are. seed, files, habits: as for `answer`.
    """
    before = usage.input_tokens + usage.cache_read + sum(usage.cache_write.values())
    found = _compacted(params, before)
    if found is None:
        return answer(params, model, seed, files, habits), usage
    compaction = _iteration("compaction", before, text_tokens(found.block["content"]))
    if found.pauses:
        return Answer([found.block], "compaction", output_tokens=0, iterations=[compaction]), Usage(0)
    made, after = answer(found.params, model, seed, files, habits), input_tokens(found.params)
    iterations = [compaction, _iteration("message", after, made.output_tokens)]
    return replace(made, content=[found.block, *made.content], iterations=iterations), Usage(after)


def compaction_problem(params: dict[str, Any], betas: frozenset[str]) -> str | None:
    """Return the API's message about the edits of compaction, or a changed block of one; None if nothing is wrong."""
    for i, edit in _edits(params):
        where = f"context_management.edits.{i}"
        if BETA not in betas:
            return f"{where}: Input tag '{EDIT}' needs the beta header {BETA}"
        trigger = edit.get("trigger")
        if trigger is not None and not _is_trigger(trigger):
            return f"{where}.trigger.value: Input should be greater than or equal to {LEAST_TRIGGER}"
    for turn, message in enumerate(params["messages"]):
        for i, block in enumerate(message["content"] if isinstance(message["content"], list) else ()):
            if block["type"] == "compaction" and block.get("content") is not None and not _is_unchanged(block):
                return f"messages.{turn}.content.{i}: the compaction block was changed; send it back as it was returned"
    return None


def _edits(params: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    edits = (params.get("context_management") or {}).get("edits") or []
    return [(i, edit) for i, edit in enumerate(edits) if isinstance(edit, dict) and edit.get("type") == EDIT]


def _is_trigger(trigger: Any) -> bool:
    value = trigger.get("value") if isinstance(trigger, dict) else None
    return isinstance(value, int) and value >= LEAST_TRIGGER


def _compacted(params: dict[str, Any], tokens: int) -> _Compacted | None:
    """Return the conversation with a summary of its turns; None if the params ask for none, or it is too short."""
    edit = next((edit for _, edit in _edits(params)), None)
    if edit is None or tokens < (edit.get("trigger") or {}).get("value", DEFAULT_TRIGGER):
        return None
    turns = params["messages"]
    summary = f"{MARK} Summary of {len(turns)} turns: {gist(_text(turns[0]['content']))}"
    block = {"type": "compaction", "content": summary, "encrypted_content": _seal(summary)}
    question = {"role": "user", "content": [{"type": "text", "text": _text(turns[-1]["content"])[-2_000:]}]}
    short = {**params, "messages": [{"role": "user", "content": [block]}, question]}
    return _Compacted(block, short, bool(edit.get("pause_after_compaction")))


def _text(content: Any) -> str:
    """Return the texts of a turn."""
    if isinstance(content, str):
        return content
    return "\n\n".join(block["text"] for block in content if block.get("type") == "text")


def _seal(summary: str) -> str:
    """Return what shows whether a summary was changed."""
    return hashlib.sha256(f"sealed {summary}".encode()).hexdigest()


def _is_unchanged(block: dict[str, Any]) -> bool:
    return block.get("encrypted_content") == _seal(block["content"])


def _iteration(kind: str, input_count: int, output_count: int) -> dict[str, Any]:
    return {
        "type": kind,
        "input_tokens": input_count,
        "output_tokens": output_count,
        "cache_read_input_tokens": 0,
        "cache_creation_input_tokens": 0,
    }
