"""What a row that did not succeed is sent again with, as the job's `retry.change` says. Pure."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson

from pipeline.job.model import AskAgain, LongerAnswer, OtherModel, Retry
from pipeline.states import RowState

AnyChange = LongerAnswer | OtherModel | AskAgain


class Answer(NamedTuple):
    """What a row was answered, and what is wrong with that."""

    text: str
    problem: str


def of(retry: Retry, outcome: str | None, error_type: str | None) -> AnyChange | None:
    """The change for rows that ended so; None when they do not go again changed."""
    if outcome == RowState.TRUNCATED and error_type != "max_tokens":
        return None  # the context window is full, or the model has paused: more tokens do not help
    return retry.change.of(outcome)


def needs_answer(change: AnyChange | None) -> bool:
    """Whether the change is made of what was answered."""
    return isinstance(change, AskAgain)


def changed(
    params: Mapping[str, Any],
    change: AnyChange,
    answer: Answer | None,
    limit: Callable[[str], int | None],
) -> dict[str, Any] | None:
    """The request as it goes again; None when that would make no difference.

    params: as it was sent; answer: to it; limit: a model's most tokens of output, None when nobody knows.
    """
    match change:
        case LongerAnswer():
            before, most = params["max_tokens"], limit(params["model"])
            tokens = int(before * change.factor)
            tokens = tokens if most is None else min(tokens, most)
            return None if tokens <= before else {**params, "max_tokens": tokens}
        case OtherModel():
            return None if change.model == params["model"] else {**params, "model": change.model}
        case AskAgain():
            return None if answer is None else {**params, "messages": [*params["messages"], *_turns(params, answer)]}


def _turns(params: Mapping[str, Any], answer: Answer) -> list[dict[str, Any]]:
    """The answer and what was wrong with it, as two more turns; of an empty answer only the second."""
    wrong = f"That answer cannot be used: {answer.problem}. Answer again, so that it fits."
    tool = (params.get("tool_choice") or {}).get("name")
    given = _object(answer.text) if tool else None
    if given is not None:  # a tool was forced: its use is answered by a result that says it failed
        name = f"toolu_01reasked{len(params['messages']):015}"  # each use has an id of its own
        use = {"type": "tool_use", "id": name, "name": tool, "input": given}
        result = {"type": "tool_result", "tool_use_id": name, "is_error": True, "content": wrong}
        return [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    said = [{"role": "assistant", "content": answer.text.rstrip()}] if answer.text.strip() else []
    return [*said, {"role": "user", "content": wrong}]


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
