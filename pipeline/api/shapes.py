"""Does a response have the shape of the API's own? A page of a proxy or a login has another one. Pure."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anthropic.types.messages import MessageBatch

_COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")


def is_batch(value: Any) -> bool:
    """Return whether this is a MessageBatch with all fields that we use; the SDK makes one of any JSON object."""
    from anthropic.types.messages import MessageBatch

    if not isinstance(value, MessageBatch) or getattr(value, "type", None) != "message_batch":
        return False
    counts = getattr(value, "request_counts", None)
    return (
        _is_text(getattr(value, "id", None))
        and _is_text(getattr(value, "processing_status", None))
        and isinstance(getattr(value, "created_at", None), datetime)
        and value.created_at.tzinfo is not None
        and all(isinstance(getattr(counts, name, None), int) for name in _COUNTS)
    )


def is_page(value: Any) -> bool:
    """Return whether this is a page of the listing of batches. A page that announces more is not empty."""
    batches, has_more = getattr(value, "data", None), getattr(value, "has_more", None)
    if not isinstance(batches, list) or not isinstance(has_more, bool):
        return False
    return all(map(is_batch, batches)) and (bool(batches) or not has_more)


def is_named(value: Any) -> bool:
    """Return whether this is an object with an id: a model, a file."""
    return _is_text(getattr(value, "id", None))


def is_list(value: Any) -> bool:
    """Return whether this is a page of any listing."""
    return isinstance(getattr(value, "data", None), list)


def is_count(value: Any) -> bool:
    """Return whether this is a count of tokens."""
    return isinstance(getattr(value, "input_tokens", None), int)


def is_deleted(value: Any, kind: str) -> bool:
    """Return whether this says that an object was deleted. kind: the API's type of such a response."""
    return getattr(value, "type", None) == kind


def requests_of(batch: "MessageBatch") -> int:
    """Return how many requests the API counts in a batch."""
    return sum(getattr(batch.request_counts, name) for name in _COUNTS)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
