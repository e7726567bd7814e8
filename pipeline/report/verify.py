"""Format the proof of the command `verify` as lines of text and as JSON facts. Pure."""

from collections.abc import Iterator
from typing import Any

from pipeline.report.words import gone_words
from pipeline.runner.verify import Verified
from pipeline.text import count, counted


def verify_facts(found: Verified) -> dict[str, Any]:
    """Return a proof as JSON. It has the number of problems, but not the problems themselves."""
    return {
        "holds": found.holds,
        "problems": found.problems,
        "rows": found.rows,
        "statuses": dict(found.statuses),
        "waiting": found.waiting,
        "source_rows": found.source_rows,
        "gone": found.gone,
        "vanished": found.vanished,
        "batches": found.batches,
        "requests": found.requests,
        "lost": [lost._asdict() for lost in found.lost],
        "twins": [twin._asdict() for twin in found.twins],
    }


def verify_lines(found: Verified) -> Iterator[str]:
    """Yield the lines of a proof: what was proven, or the problems that were found."""
    if found.holds:
        same = "each has one final status, and one answer with that status in table"
        yield f"holds    {count(found.rows, 'row')}: {same} {found.table}"
        yield f"         {counted(found.statuses) or 'none'}"
        collected = f"{count(found.batches, 'collected batch')} ({count(found.requests, 'request')})"
        yield f"         the API's counts of {collected} agree"
        if found.source_rows is not None:
            rows = count(found.source_rows, "row")
            yield f"         {rows} of the source: each has an outcome for its present content"
    else:
        of_rows = (
            f"{count(found.rows, 'row')}, {found.waiting:,} of them without an outcome" if found.waiting else "the job"
        )
        yield f"does not hold: {count(found.problems, 'problem')} with {of_rows}"
        for of, problem in found.shown:
            yield f"    {of} {problem}"
        if found.problems > len(found.shown):
            yield f"    and {found.problems - len(found.shown):,} more"
    if found.gone:
        yield f"         {gone_words(found.gone)}"
    if found.vanished:
        rows = count(found.vanished, "row")
        yield f"         {rows} left the source before they had an answer, and no longer belong to the job"
    for lost in found.lost:
        yield f"warning  batch {lost.batch} is lost: {lost.problem}"
    for twin in found.twins:
        yield f"warning  batch {twin.batch}: {twin.problem}"
