"""How does `review` show what it wrote and stored: as lines for people, and as JSON? Pure."""

from collections.abc import Iterator
from typing import Any

from pipeline.escapes import inline
from pipeline.quality.review_export import ExportedReviews
from pipeline.quality.review_import import ImportedReviews
from pipeline.sink.reviews import VERDICTS
from pipeline.text import count

SHOWN = 20  # refused rows that are named


def export_facts(found: ExportedReviews) -> dict[str, Any]:
    """Return what an export wrote as JSON."""
    return {
        "file": str(found.place),
        "rows": found.rows,
        "lines": found.lines,
        "rows_not_in_source": None if found.problem else found.missing,
    }


def export_lines(found: ExportedReviews) -> Iterator[str]:
    """Yield what an export wrote as lines."""
    yield f"wrote    {count(found.lines, 'line')} of {count(found.rows, 'row')} to {found.place}"
    if found.problem is not None:
        yield f"warning: without the columns of the source: {found.problem}"
    elif found.missing:
        yield f"warning: the source does not have {count(found.missing, 'row')} of these any more"


def import_facts(found: ImportedReviews) -> dict[str, Any]:
    """Return what an import did as JSON."""
    wins = found.wins
    return {
        "added": found.added,
        "unchanged": found.unchanged,
        "not_filled_in": found.not_filled_in,
        "verdicts": {verdict: found.verdicts[verdict] for verdict in VERDICTS} if wins is None else None,
        "refused": found.refused,
        "wins": wins
        and {
            "sides": list(wins.sides),
            "first": wins.first,
            "second": wins.second,
            "ties": wins.ties,
            "p": wins.p,
        },
    }


def import_lines(found: ImportedReviews) -> Iterator[str]:
    """Yield what an import did as lines. Keys stand in them on one line."""
    again = f"; {found.unchanged:,} were stored before" if found.unchanged else ""
    are = "is" if found.not_filled_in == 1 else "are"
    rest = f"; {count(found.not_filled_in, 'line')} {are} not filled in" if found.not_filled_in else ""
    yield f"reviews  {count(found.added, 'review')} stored{again}{rest}"
    if found.wins is None:
        yield "verdicts " + ", ".join(f"{found.verdicts[verdict]:,} {verdict}" for verdict in VERDICTS)
    else:
        wins = found.wins
        first, second = map(inline, wins.sides)
        yield f"better   {first} {wins.first:,}, {second} {wins.second:,}, ties {wins.ties:,}; p = {wins.p:.4f}"
    for refused in found.refused[:SHOWN]:
        yield f"refused  {inline(refused)}"
    if len(found.refused) > SHOWN:
        yield f"refused  and {len(found.refused) - SHOWN:,} more"
