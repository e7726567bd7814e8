"""Columns of the user may have any names, and are never confused with each other."""

import csv
from typing import Any

from sqlalchemy import column, select, text

from tests.conftest import World

POSTGRESQL_IS_LONG = True

KEEP = ["Ticket_ID", "Ticket.ID", "Ticket[ID", "a b", "a.b", "a]b", "100%", ":at", "c0", "(x)"]


def rows(world: World, suffix: str = "") -> dict[str, dict[str, str]]:
    """Two rows whose columns differ in a blank, a point or a bracket only; by key."""
    found = {
        key: {"Ticket ID": key, "text": f"text {key}", **{name: f"{name} of {key}{suffix}" for name in KEEP}}
        for key in ("r1", "r2")
    }
    with open(world.folder / "rows.csv", "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(found["r1"]))
        writer.writeheader()
        writer.writerows(found.values())
    return found


def answers(world: World, name: str = "answers") -> dict[str, dict[str, Any]]:
    """What stands in the kept columns, by key."""
    with world.database.read() as conn:
        columns: list[Any] = [column(name) for name in ("Ticket ID", *KEEP)]
        found = conn.execute(select(*columns).select_from(text(name))).all()
        return {row[0]: dict(zip(KEEP, row[1:], strict=True)) for row in found}


def kept(source: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """What should stand there."""
    return {key: {name: row[name] for name in KEEP} for key, row in source.items()}


def test_kept_columns_whose_names_differ_in_punctuation_keep_their_own_values(world: World) -> None:
    source = rows(world)
    job = world.job(source={"key": "Ticket ID", "keep": KEEP}, sink={"history": True})
    world.run(job)
    first = answers(world)
    changed = rows(world, " later")
    world.run(job)
    second = answers(world)

    world.run(world.job(source={"key": "Ticket ID", "keep": KEEP}, sink={"history": True}, request={"max_tokens": 99}))
    world.run(
        world.job(source={"key": "Ticket ID", "keep": KEEP}, sink={"history": True}, request={"max_tokens": 99}),
        refresh=True,
    )

    assert first == kept(source)
    assert second == kept(changed)
    assert answers(world) == answers(world, "answers_history") == kept(changed)


def test_properties_whose_names_differ_in_punctuation_keep_their_own_values(world: World) -> None:
    properties = {name: {"type": "string"} for name in ("a b", "a.b", "a_b")}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}

    finished = world.run(world.job(output={"schema": schema}))
    answer = world.answers()["r1"]

    assert finished.rows == {"succeeded": 5}
    assert all(answer[name] for name in properties)
