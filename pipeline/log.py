"""What drivers do, as records of the standard library's logging: one event a move, with numbers and ids.

A record never holds a row's key, a row's text or an API key, at any level. What the API said of an error is in it,
with the id by which Anthropic's support finds the request.
"""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pipeline import report
from pipeline.escapes import json_text

logger = logging.getLogger("pipeline")

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


def tell(event: str, **facts: Any) -> None:
    """Log one event of a driver."""
    level = LEVELS.get(event, logging.INFO)
    if not logger.isEnabledFor(level):
        return
    if event == "quote":
        facts = report.quote_facts(facts["quote"])
        line = f"quote: {facts['to_send']} requests to send"
    elif event == "waits_for_retry":  # which a person may have asked for by keys of rows
        facts = {name: facts[name] for name in ("job", "run", "rows")}
        line = report.event_line(event, facts)
    else:
        line = report.event_line(event, facts)
    logger.log(level, "%s", line, extra={"pipeline_event": event, "pipeline_facts": facts})


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time (UTC), level, event, and its facts; `message` for what is no event."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "pipeline_event", "message"),
        }
        facts = getattr(record, "pipeline_facts", None)
        line |= {"message": record.getMessage()} if facts is None else facts
        return json_text(line, ascii_only=True)  # for nobody knows the encoding of what takes it
