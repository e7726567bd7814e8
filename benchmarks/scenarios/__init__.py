"""The scenarios of the benchmark, one module each: `measure(bench)` prints progress and yields lines of the table."""

from __future__ import annotations

from collections.abc import Iterator

from harness import Bench, Line

from scenarios import (
    documents,
    equal,
    judging,
    kinds,
    locks,
    poll,
    postgres,
    profile,
    quote,
    second_run,
    start,
    whole_run,
)

SCENARIOS = {  # in this order, because some use the data of an earlier one
    "run": whole_run,
    "second": second_run,
    "start": start,
    "quote": quote,
    "postgres": postgres,
    "locks": locks,
    "poll": poll,
    "documents": documents,
    "kinds": kinds,
    "equal": equal,
    "judging": judging,
    "profile": profile,
}


def title(name: str) -> str:
    """Return the name and the description of a scenario."""
    return f"{name}: {(SCENARIOS[name].__doc__ or '').splitlines()[0]}"


def measure(name: str, bench: Bench) -> Iterator[Line]:
    """Measure one scenario."""
    lines: Iterator[Line] = SCENARIOS[name].measure(bench)
    return lines
