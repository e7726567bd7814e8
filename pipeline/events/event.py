"""Define what every event has, and the type of the functions that receive events. Pure."""

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that a driver did or met.

    name: the event's name in JSON and in logs; no other event has it. level: one of the standard library's logging.
    changes_job: whether the event changed something of the job. job: the job's name; None if the event has no job.
    """

    name: ClassVar[str]
    level: ClassVar[int] = logging.INFO
    changes_job: ClassVar[bool] = True

    job: str | None = None

    def line(self) -> str:
        """Return the event as one line of text for people."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Return the fields by name, in their order. A field with its default value is left out: it is not known."""
        fields = dataclasses.fields(self)
        return {field.name: value for field in fields if (value := getattr(self, field.name)) != field.default}

    def logged_facts(self) -> dict[str, Any]:
        """Return the facts that a log may hold: no row's key and no row's text."""
        return self.facts()

    def of_job(self, job: str) -> Self:
        """Return the event with the name of this job; unchanged if it already names a job."""
        return self if self.job is not None else dataclasses.replace(self, job=job)


Tell = Callable[[Event], None]  #: receives each event, for progress and logs


def nothing(event: Event) -> None:
    """Ignore the event."""
