"""What can be measured, a module each: `measure(bench)` prints what it does and yields its lines of the table."""

from __future__ import annotations

from collections.abc import Iterator

from harness import Bench, Line

from scenarios import documents, poll, postgres, profile, quote, second_run, start, whole_run

SCENARIOS = {  # in this order: some use what an earlier one has made
    "run": whole_run,
    "second": second_run,
    "start": start,
    "quote": quote,
    "postgres": postgres,
    "poll": poll,
    "documents": documents,
    "profile": profile,
}


def title(name: str) -> str:
    """What a scenario says of itself."""
    return f"{name}: {(SCENARIOS[name].__doc__ or '').splitlines()[0]}"


def measure(name: str, bench: Bench) -> Iterator[Line]:
    """Measure one of them."""
    lines: Iterator[Line] = SCENARIOS[name].measure(bench)
    return lines
