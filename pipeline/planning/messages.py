"""Define what a driver and its planners say to each other. Pure.

The classes are in a module of their own, because pickle finds a class by its module, and a planner's is `__main__`.
"""

import logging
from dataclasses import dataclass
from datetime import timedelta

from pipeline.api.reach import Reach
from pipeline.driver.settings import Settings
from pipeline.errors import PipelineError
from pipeline.events.event import Event
from pipeline.planning.quote_source import QuotedSource, ToQuote
from pipeline.planning.shards import Planned, Shard


@dataclass(frozen=True)
class ApiSide:
    """How a planner reaches the API, and how far its time is ahead of this machine's steady clock.

    account_id: the number of our account there.
    """

    reach: Reach
    ahead: timedelta
    account_id: int


@dataclass(frozen=True)
class Assignment:
    """What a planner shall do. It is pickled. database: its URL, with the password. api: None: it is not needed."""

    task: ToQuote | Shard
    database: str
    spool: str | None
    settings: Settings
    api: ApiSide | None = None


@dataclass(frozen=True)
class Failed:
    """A task could not be done. error: raised in the driver; None: an unexpected error, whose text is `trace`."""

    error: PipelineError | None
    trace: str = ""


#: How an assignment was done.
Done = Planned | QuotedSource

#: What a planner writes: events and log records while it works, and at the end of each assignment how that ended.
Message = Event | logging.LogRecord | Done | Failed
