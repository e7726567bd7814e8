"""Change the request of a row that did not succeed, as the job's `retry.change` says. Pure."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson

from pipeline.job.retrying import AskAgain, LongerAnswer, OtherModel, Retry
from pipeline.states import RowState

AnyChange = LongerAnswer | OtherModel | AskAgain


class Answer(NamedTuple):
    """An answer that could not be used. text: of the answer; problem: why it could not be used."""

    text: str
    problem: str


#: Error types with which the API refuses the account, so that it would refuse every other request, too.
ACCOUNT_ERRORS = frozenset({"authentication_error", "permission_error", "billing_error"})


def change_for(retry: Retry, outcome: str | None, error_type: str | None, attempts: int) -> AnyChange | None:
    """Return the change with which a row of this outcome is sent again; None if it is not sent again with a change.

    attempts: how often the row was sent. Whether it may be sent again at all, `most_attempts` says.
    """
    if outcome == RowState.TRUNCATED and error_type != "max_tokens":
        return None  # the context window is full, or the model paused: a higher max_tokens does not help
    if outcome in _NOT_ANSWERED and (error_type in ACCOUNT_ERRORS or is_sent_unchanged(retry, error_type, attempts)):
        return None
    return retry.change.of(outcome)


_NOT_ANSWERED = (RowState.ERRORED, RowState.EXPIRED)


def is_sent_unchanged(retry: Retry, error_type: str | None, attempts: int) -> bool:
    """Return whether an errored or expired row is sent again unchanged. attempts: how often it was sent."""
    return error_type in retry.errors and attempts < retry.max_attempts


def most_attempts(retry: Retry, outcome: str | None) -> int:
    """Return how often a row of this outcome may have been sent in all.

    Each model that is asked after an errored or expired request has one attempt beyond `max_attempts`. So does each
    model after a refusal but the first one.
    """
    change = retry.change.of(outcome)
    if not isinstance(change, OtherModel):
        return retry.max_attempts
    return retry.max_attempts + len(change.models) - (outcome not in _NOT_ANSWERED)


def may_send_again(retry: Retry, outcome: str | None, error_type: str | None, attempts: int) -> bool:
    """Return whether a row of this outcome is sent again, unchanged or with a change. attempts: how often it was sent.

    Whether a change makes a difference, only its request shows.
    """
    if outcome in _NOT_ANSWERED and is_sent_unchanged(retry, error_type, attempts):
        return True
    has_change = change_for(retry, outcome, error_type, attempts) is not None
    return has_change and attempts < most_attempts(retry, outcome)


def needs_answer(change: AnyChange | None) -> bool:
    """Return whether the change needs the answer that the row got."""
    return isinstance(change, AskAgain)


def changed_params(
    params: Mapping[str, Any],
    change: AnyChange,
    answer: Answer | None,
    limit: Callable[[str], int | None],
) -> dict[str, Any] | None:
    """Return the changed params of a request; None if the change makes no difference, or its answer is missing.

    params: as they were sent. answer: to that request; None if there is none, or the change does not need it.
    limit: gives a model's limit for max_tokens, None if it is unknown.
    """
    match change:
        case LongerAnswer():
            before, model_limit = params["max_tokens"], limit(params["model"])
            tokens = int(before * change.factor)
            tokens = tokens if model_limit is None else min(tokens, model_limit)
            return None if tokens <= before else {**params, "max_tokens": tokens}
        case OtherModel():
            following = change.after(params["model"])
            return None if following is None else {**params, "model": following}
        case AskAgain():
            return None if answer is None else {**params, "messages": [*params["messages"], *_turns(params, answer)]}


def _turns(params: Mapping[str, Any], answer: Answer) -> list[dict[str, Any]]:
    """Return two more turns: the answer, and its problem. An empty answer gives only the second turn."""
    complaint = f"That answer cannot be used: {answer.problem}. Answer again, so that it fits."
    tool = (params.get("tool_choice") or {}).get("name")
    tool_input = _object(answer.text) if tool else None
    if tool_input is not None:  # the request forced a tool, and the API wants a result for each use of a tool
        use_id = f"toolu_01reasked{len(params['messages']):015}"  # the number of turns makes the id unique
        use = {"type": "tool_use", "id": use_id, "name": tool, "input": tool_input}
        result = {"type": "tool_result", "tool_use_id": use_id, "is_error": True, "content": complaint}
        return [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    answered = [{"role": "assistant", "content": answer.text.rstrip()}] if answer.text.strip() else []
    return [*answered, {"role": "user", "content": complaint}]


def _object(text: str) -> dict[str, Any] | None:
    """Return the JSON object in a text; None if the text is not one."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
