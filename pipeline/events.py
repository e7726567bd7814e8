"""What a driver tells whoever listens: the type of a listener, and the level of each event."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.states import BatchState

Tell = Callable[..., None]  #: tell(event, **facts): what happened, for progress and logs


def nothing(event: str, **facts: Any) -> None:
    """Tell nobody."""


#: Events that a person should see who looks for what went wrong, and those that are no moves; all others are INFO.
LEVELS: Mapping[str, int] = {
    **dict.fromkeys(("rejected", "unknown_end", "unreachable", "not_found", "results_missing"), logging.WARNING),
    **dict.fromkeys(("unknown_results", "other_account", "body_lost", "not_deleted", "not_counted"), logging.WARNING),
    **dict.fromkeys(
        ("counts_disagree", "overdue", "warning", "canary_failed", "file_not_removed", "body_left"), logging.WARNING
    ),
    "waits_for_retry": logging.WARNING,
    **dict.fromkeys(("lost", "twin", "incomplete", "run_ended"), logging.ERROR),
    **dict.fromkeys(("waiting", "watching", "planned_elsewhere"), logging.DEBUG),
}

#: What an event says of its batch: the state before, unless that is known, and the one after.
MOVES: dict[str, tuple[BatchState | None, BatchState]] = {
    "planned": (None, BatchState.PLANNED),
    "submitting": (BatchState.PLANNED, BatchState.SUBMITTING),
    "submitted": (BatchState.SUBMITTING, BatchState.IN_PROGRESS),
    "adopted": (BatchState.SUBMITTING, BatchState.IN_PROGRESS),
    "found_late": (BatchState.PLANNED, BatchState.IN_PROGRESS),
    "absent": (BatchState.SUBMITTING, BatchState.PLANNED),
    "rejected": (BatchState.SUBMITTING, BatchState.PLANNED),
    "canceling": (BatchState.IN_PROGRESS, BatchState.CANCELING),
    "ended": (BatchState.IN_PROGRESS, BatchState.ENDED),
    "collected": (BatchState.ENDED, BatchState.COLLECTED),
    "dropped": (BatchState.PLANNED, BatchState.DROPPED),
    "lost": (BatchState.IN_PROGRESS, BatchState.LOST),
    "found_again": (BatchState.LOST, BatchState.IN_PROGRESS),
}
