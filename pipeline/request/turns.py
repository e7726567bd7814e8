"""Which turns of a conversation does a column of the source hold? Pure."""

from typing import Any

import orjson
import polars as pl

from pipeline.errors import RowProblem

ROLES = ("user", "assistant")


def turns(column: str, value: Any) -> list[dict[str, Any]]:
    """Return the turns in a column's value, in the shape that the Messages API accepts.

    value: a list of {role, content}, as Parquet and NDJSON hold it, or its JSON text; null or empty: no turns. content
    is a text or a list of blocks. A turn may also be the whole message of an answer, as the column of `output.message`
    has it, and such a message alone is one turn. Raises RowProblem that names the turn and what is wrong with it.
    """
    if value is None or value == "":
        return []
    from_text = isinstance(value, str)
    listed = _parsed(column, value) if from_text else value
    listed = listed.to_list() if isinstance(listed, pl.Series) else listed
    listed = [listed] if _is_message(listed) else listed
    if not isinstance(listed, list):
        raise RowProblem(f"column {column!r} must hold a list of turns (it is {_short(listed)})")
    return [_turn(f"column {column!r}, turn {i}", turn, from_text) for i, turn in enumerate(listed, 1)]


def require_user_first(messages: list[dict[str, Any]]) -> None:
    """Raise RowProblem unless the conversation begins with a turn of the user."""
    if messages[0]["role"] != "user":
        raise RowProblem(f"the conversation begins with a turn of role {messages[0]['role']!r}; it must be 'user'")


def require_user_at_both_ends(messages: list[dict[str, Any]]) -> None:
    """Raise RowProblem unless a conversation without a prompt begins and ends with a turn of the user."""
    if not messages or messages[-1]["role"] != "user":
        raise RowProblem(
            "the conversation does not end with a turn of the user, and the job has no request.prompt"
            if messages
            else "the conversation has no turns, and the job has no request.prompt"
        )
    require_user_first(messages)


def _parsed(column: str, text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise RowProblem(f"column {column!r} must hold turns as JSON: {exc}") from exc


def _turn(where: str, turn: Any, from_text: bool) -> dict[str, Any]:
    """Return one turn in the API's shape.

    where: its column and number, for messages; from_text: whether it was read from JSON text. Raises RowProblem.
    """
    if not isinstance(turn, dict):
        raise RowProblem(f"{where}: must be {{role, content}} (it is {_short(turn)})")
    is_message = _is_message(turn)
    unknown = sorted(str(name) for name, value in turn.items() if name not in ("role", "content") and value is not None)
    if unknown and not is_message:
        raise RowProblem(f"{where}: unknown field {unknown[0]!r}; a turn has role and content")
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise RowProblem(f"{where}: role must be 'user' or 'assistant' (it is {_short(role)})")
    content = content.to_list() if isinstance(content, pl.Series) else content
    if isinstance(content, list) and content and all(_is_block(block) for block in content):
        if is_message and from_text:  # the API takes back the blocks of an answer only if they are unchanged
            return {"role": role, "content": content}
        # in Parquet all blocks have the same fields; those that a block does not use are null
        return {"role": role, "content": [{k: v for k, v in block.items() if v is not None} for block in content]}
    if not isinstance(content, str) or not content.strip():
        raise RowProblem(f"{where}: content must be a text or a list of blocks, not empty (it is {_short(content)})")
    return {"role": role, "content": content}


def _is_message(turn: Any) -> bool:
    """Return whether a turn is the whole message of an answer, whose other fields are not sent again."""
    return isinstance(turn, dict) and turn.get("type") == "message" and "content" in turn


def _is_block(block: Any) -> bool:
    return isinstance(block, dict) and isinstance(block.get("type"), str)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
