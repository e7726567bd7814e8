"""What drivers do, as records of the standard library's logging: one event a move, with numbers and ids.

A record never holds a row's key, a row's text or an API key, at any level. What the API said of an error is in it,
with the id by which Anthropic's support finds the request.
"""

import logging
from datetime import UTC, datetime
from typing import Any

from pipeline.escapes import json_text
from pipeline.events.event import Event
from pipeline.planning.quote import Quoted
from pipeline.report.quote import quote_facts

logger = logging.getLogger("pipeline")


def tell(event: Event) -> None:
    """Log one event of a driver."""
    if not logger.isEnabledFor(event.level):
        return
    facts = quote_facts(event.quote) if isinstance(event, Quoted) else event.logged_facts()
    logger.log(event.level, "%s", event.line(), extra={"pipeline_event": event.name, "pipeline_facts": facts})


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
