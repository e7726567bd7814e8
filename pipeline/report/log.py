"""Write the events of drivers to the standard library's logging, one record for each event. Edge: logging.

A record holds numbers and ids. It never holds a row's key, a row's text or an API key, at any level. It holds the API's
message of an error, and the id by which Anthropic's support finds the request.
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
    """Log one event of a driver, with its name and its facts, if the logger takes the event's level."""
    if not logger.isEnabledFor(event.level):
        return
    facts = quote_facts(event.quote) if isinstance(event, Quoted) else event.logged_facts()
    logger.log(event.level, "%s", event.line(), extra={"pipeline_event": event.name, "pipeline_facts": facts})


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time (UTC), level, event, and the facts of the event.

    A record that is not an event has the event `message`, and its text under `message`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a newline at its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "pipeline_event", "message"),
        }
        facts = getattr(record, "pipeline_facts", None)
        line |= {"message": record.getMessage()} if facts is None else facts
        return json_text(line, ascii_only=True)  # the encoding of the reader is not known
