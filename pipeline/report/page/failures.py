"""What does a page say of failed rows: by cause, with keys and the command that mends them? Pure."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.page.shapes import Bar, bars
from pipeline.report.page.words import LONGEST_VALUE, cut

MOST = 10
LONGEST_MESSAGE = 300

Command = Callable[..., str]  #: makes a line for the shell of the words of a command


@dataclass(frozen=True)
class FailureLine:
    """Rows that failed for one cause. message, keys: empty if the page holds no texts."""

    bar: Bar
    status: str
    error_type: str
    message: str
    keys: list[str]
    remedy: str
    command: str


@dataclass(frozen=True)
class Failures:
    """Failed rows by cause. more: rows with causes that are not shown."""

    lines: list[FailureLine]
    more: int


def failures(causes: Sequence[Mapping[str, Any]], failed: int, command: Command, *, texts: bool) -> Failures:
    """Return the failed rows by cause. causes: see errors.error_facts; failed: all failed rows."""
    shown = list(causes)[:MOST] if texts else _without_messages(causes)[:MOST]
    drawn = bars([(str(cause["status"]), cause["rows"]) for cause in shown], failed)
    lines = [
        FailureLine(
            bar=bar,
            status=cause["status"],
            error_type=cause["error_type"] or "",
            message=cut(cause["error_message"] or "", LONGEST_MESSAGE) if texts else "",
            keys=[cut(key, LONGEST_VALUE) for key in cause["keys"]] if texts else [],
            remedy=cause["remedy"][:1].upper() + cause["remedy"][1:],
            command=command(*cause["command"]),
        )
        for bar, cause in zip(drawn, shown, strict=True)
    ]
    return Failures(lines, max(0, failed - sum(cause["rows"] for cause in shown)))


def _without_messages(causes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the causes without their messages, which may quote texts: those with equal remedies are one."""
    rows: Counter[tuple[Any, ...]] = Counter()
    first: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for cause in causes:
        same = (cause["status"], cause["error_type"], cause["remedy"], tuple(cause["command"]))
        rows[same] += cause["rows"]
        first.setdefault(same, cause)
    return [{**first[same], "rows": n} for same, n in rows.most_common()]
