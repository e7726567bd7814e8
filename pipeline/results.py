"""What the API says of one request, and what we make of it. Pure."""

from typing import Any, NamedTuple

import orjson

from pipeline.job import Job, fold
from pipeline.states import RowState

_SUCCEEDED: str = RowState.SUCCEEDED.value
_TRUNCATED = {
    "max_tokens": "the answer stopped at max_tokens",
    "model_context_window_exceeded": "the answer stopped at the end of the model's context window",
    "pause_turn": "the model paused its turn before it had finished",
}


class Outcome(NamedTuple):  # ten times cheaper to make than a frozen dataclass, and one is made for each row
    """How one request ended. tokens are 0 where nothing was billed; error_type None where nothing went wrong."""

    state: str  #: a RowState; plain text for the usual one, which database drivers store faster
    error_type: str | None = None
    error_message: str | None = None
    text: str | None = None
    label: str | None = None
    stop_reason: str | None = None
    model: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0  #: how many of cache_write_tokens live for an hour


def without_usage(outcome: Outcome) -> Outcome:
    """The outcome of a row that shares a request with another one, which bears what it used."""
    nothing = {name: 0 for name in Outcome._fields if name.endswith("_tokens")}
    return outcome._replace(**nothing)  # type: ignore[arg-type]


def _is_text(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str)


class ResultReader:
    """Reads result lines of one job."""

    def __init__(self, job: Job) -> None:
        self._labels = None if job.output.labels is None else {fold(label): label for label in job.output.labels}
        self._retried = frozenset(job.retry.errors)
        self._max_attempts = job.retry.max_attempts

    def outcome(self, line: dict[str, Any]) -> Outcome:
        """The outcome that a result line stands for.

        Kinds are told by their `type` texts, and what is unknown is an error that names it: the API may grow.
        """
        result = line.get("result")
        kind = result.get("type") if isinstance(result, dict) else None
        if isinstance(result, dict) and kind == "succeeded" and isinstance(result.get("message"), dict):
            return self._answered(result["message"])
        if isinstance(result, dict) and kind == "errored":
            return _errored(result.get("error"))
        if kind == "canceled":
            return Outcome(RowState.CANCELED, "canceled", "the batch was canceled before this request's turn")
        if kind == "expired":
            return Outcome(RowState.EXPIRED, "expired", "the batch's 24 hours ended before this request's turn")
        return Outcome(RowState.ERRORED, "unknown_result", f"the API says {kind!r} of it, which is not known here")

    def again(self, outcome: Outcome, attempts: int) -> bool:
        """Whether a row with this outcome after so many attempts is sent again as it is."""
        retryable = outcome.state in (RowState.ERRORED, RowState.EXPIRED) and outcome.error_type in self._retried
        return retryable and attempts < self._max_attempts

    def _answered(self, message: dict[str, Any]) -> Outcome:
        blocks = message.get("content") or ()
        texts = [block["text"] for block in blocks if _is_text(block)]
        text = texts[0] if len(texts) == 1 else "".join(texts)
        usage = message.get("usage") or {}
        one_hour = (usage.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0
        state, error_type, error_message, label = self._judged(message, text)
        return Outcome(
            state,
            error_type,
            error_message,
            text,
            label,
            message.get("stop_reason"),
            message.get("model"),
            usage.get("input_tokens") or 0,
            usage.get("output_tokens") or 0,
            usage.get("cache_read_input_tokens") or 0,
            usage.get("cache_creation_input_tokens") or 0,
            one_hour,
        )

    def _judged(self, message: dict[str, Any], text: str) -> tuple[str, str | None, str | None, str | None]:
        stop = message.get("stop_reason")
        if stop == "refusal":
            details = message.get("stop_details") or {}
            said = details.get("explanation") or details.get("category") or "the model refused"
            return RowState.REFUSED, "refusal", str(said), None
        if stop in _TRUNCATED:
            return RowState.TRUNCATED, stop, _TRUNCATED[stop], None
        if self._labels is None:
            return _SUCCEEDED, None, None, None
        label, problem = _label(text, self._labels)
        if label is None:
            return RowState.UNPARSABLE, "unparsable", problem, None
        return _SUCCEEDED, None, None, label


def _label(text: str, labels: dict[str, str]) -> tuple[str | None, str]:
    """The declared label that an answer names, or None and what is wrong with the answer."""
    try:
        answer = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None, "the answer is not JSON"
    named = answer.get("label") if isinstance(answer, dict) else None
    if not isinstance(named, str):
        return None, "the answer has no text field 'label'"
    label = labels.get(fold(named))
    return label, f"the answer's label {named[:80]!r} is none of the declared ones"


def _errored(error: Any) -> Outcome:
    """The error is nested twice in the API's answer; some gateways flatten it."""
    inner = error.get("error") if isinstance(error, dict) else None
    said = inner if isinstance(inner, dict) else error if isinstance(error, dict) else {}
    message = said.get("message")
    request = f" ({error['request_id']})" if isinstance(error, dict) and error.get("request_id") else ""
    return Outcome(RowState.ERRORED, str(said.get("type") or "unknown_error"), f"{message or 'no message'}{request}")
