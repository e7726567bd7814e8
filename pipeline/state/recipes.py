"""The recipes with which a job's rows were answered, and how older ones differ from the current one. Edge: SQL."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select

from pipeline.state.tables import runs, tallies
from pipeline.states import OUTCOMES

PARTS = ("request", "output", "vars")  # the parts of a job that make its recipe
LONGEST = 60  # characters of a shown line; longer ones are cut


class Answered(NamedTuple):
    """The rows whose last outcome has one recipe.

    since: the start of the first run with the recipe. rows: their number. present: whether it is the current recipe.
    differs: its first difference from the current recipe; None: it is the current one, or no text differs.
    """

    recipe: str
    since: datetime
    rows: int
    present: bool
    differs: str | None


def answered(conn: Connection, job_id: int) -> list[Answered]:
    """Return the number of the job's rows with an outcome for each recipe, the current recipe first, then newest first.

    Empty if the job has had one recipe only. A row has the recipe of the run that planned it last, so that the rows
    themselves need not be read.
    """
    columns = (runs.c.recipe, runs.c.created_at, runs.c.job, runs.c.retry)
    found = conn.execute(select(*columns).where(runs.c.job_id == job_id).order_by(runs.c.id)).all()
    first = {run.recipe: run for run in reversed(found)}
    if len(first) < 2:
        return []
    present = next((run for run in reversed(found) if run.retry is None), found[-1])
    by_recipe = (
        select(runs.c.recipe, func.sum(tallies.c.rows))
        .join(runs, runs.c.id == tallies.c.run_id)
        .where(runs.c.job_id == job_id, tallies.c.state.in_(OUTCOMES))
        .group_by(runs.c.recipe)
    )
    return sorted(
        (
            Answered(
                recipe=recipe,
                since=first[recipe].created_at,
                rows=int(rows),
                present=recipe == present.recipe,
                differs=None if recipe == present.recipe else first_difference(first[recipe].job, present.job),
            )
            for recipe, rows in conn.execute(by_recipe).tuples()
            if rows
        ),
        key=lambda one: (one.present, one.since),
        reverse=True,
    )


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the first difference of two stored jobs, as `request.prompt line 2 was 'Summarise', is 'Classify'`.

    None: their recipes have no difference.
    """
    old, new = (dict(_lines({part: job.get(part) for part in PARTS})) for job in (before, now))
    for place in [*old, *(place for place in new if place not in old)]:
        if old.get(place) != new.get(place):
            return f"{place} was {_shown(old.get(place))}, is {_shown(new.get(place))}"
    return None


def _lines(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield (place, text) for each value inside a nested value, and for each line of a text value.

    A place is written as `request.params.temperature`.
    """
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _lines(inner, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _lines(inner, f"{place}[{number}]")
    elif isinstance(value, str):
        for number, line in enumerate(value.split("\n"), 1):
            yield (place if number == 1 else f"{place} line {number}"), repr(line)
    elif value is not None:
        yield place, repr(value)


def _shown(line: str | None) -> str:
    if line is None:
        return "not there"
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
