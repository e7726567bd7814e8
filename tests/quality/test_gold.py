"""Gold is read from the source or a file of its own, checked before anything is sent, and never shown to the model."""

import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError
from sqlalchemy import inspect, text

from pipeline.errors import DatabaseError, JobError, PipelineError, SourceError
from pipeline.job.load import load
from tests.conftest import World

POSTGRESQL_IS_LONG = True
LABELS = ["Billing", "Outage", "How to"]
OUTPUT = {"labels": LABELS}
SCHEMA = {
    "type": "object",
    "properties": {
        "amount": {"type": ["number", "null"]},
        "count": {"type": "integer"},
        "urgent": {"type": "boolean"},
        "day": {"type": "string", "format": "date"},
        "area": {"type": "string", "enum": ["north", "south"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}},
    },
    "required": ["count"],
    "additionalProperties": False,
    "$defs": {"part": {"type": "object", "properties": {"name": {"type": "string"}}, "additionalProperties": False}},
}


def rows(*truths: object) -> list[dict[str, object]]:
    return [{"id": f"r{i}", "text": f"Text number {i}.", "truth": truth} for i, truth in enumerate(truths)]


def gold_of(world: World) -> list[dict[str, Any]]:
    with world.database.read() as conn:
        found = conn.execute(text(f"SELECT * FROM {gold_table(world)} ORDER BY 1")).mappings().all()
    return [{name: value for name, value in row.items() if name != "gold_reading"} for row in found]


def gold_table(world: World) -> str:
    return "answers_gold" if world.database.is_sqlite else f"{world.database.default_schema}.answers_gold"


# -- the model never sees gold ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": "{{ text }} {{ truth }}"},
        {"prompt": "{{ row['truth'] }}"},
        {"prompt": "{{ row.truth }}"},
        {"prompt": "{% if truth == 'x' %}a{% else %}b{% endif %}"},
        {"prompt": "{{ row }}"},
        {"prompt": "{% for name, value in row.items() %}{{ value }}{% endfor %}"},
        {"prompt": "{% set all = row %}{{ all['tru' ~ 'th'] }}"},
        {"prompt": "{{ text }}", "model": "{{ truth }}"},
        {"prompt": "{{ text }}", "max_tokens": "{{ truth }}"},
        {"prompt": "{{ text }}", "messages": [{"role": "user", "content": [{"type": "text", "text": "{{ truth }}"}]}]},
        {"prompt": "{{ text }}", "turns": "truth"},
        {"prompt": "{{ text }}", "attachments": [{"document": "truth"}]},
    ],
    ids=lambda request: str(request)[:60],
)
def test_a_column_that_the_request_could_show_to_the_model_is_no_gold(world: World, request_: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="truth"):
        world.job(request=request_, output=OUTPUT, gold={"columns": {"label": "truth"}})


def test_a_job_file_names_the_line_of_gold_that_the_model_would_see(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "name: notes\nsource: {path: notes.csv, key: id}\n"
        'request: {model: claude-haiku-4-5, max_tokens: 60, prompt: "{{ text }} {{ truth }}"}\n'
        "output: {labels: [a, b]}\nsink: {table: answers}\ngold: {columns: {label: truth}}\n"
    )

    with pytest.raises(JobError) as raised:
        load(tmp_path / "job.yaml", variables={}, today=datetime.date(2026, 11, 20))

    assert str(raised.value) == (
        f"{tmp_path}/job.yaml line 6: gold: column 'truth' is used by request.prompt, so the model would see the right "
        "answer; take it out of the request, or give the gold in another column"
    )


def test_a_gold_file_that_is_the_source_is_no_way_around_that(world: World) -> None:
    source = world.rows(rows("Billing"))
    job = world.job(
        request={"prompt": "{{ truth }}"}, output=OUTPUT, gold={"columns": {"label": "truth"}, "path": str(source)}
    )

    with pytest.raises(JobError, match=r"column 'truth' is used by request\.prompt"):
        world.run(job)


def test_new_gold_sends_nothing(world: World) -> None:
    world.rows(rows("Billing", "Outage"))
    without = world.job(output=OUTPUT)
    world.run(without)
    world.rows(rows("Outage", "Outage"))
    job = world.job(output=OUTPUT, gold={"columns": {"label": "truth"}})

    finished = world.run(job)

    assert job.recipe == without.recipe
    assert finished.rows == {}
    assert world.accepted() == 2
    assert gold_of(world) == [{"id": "r0", "label": "Outage"}, {"id": "r1", "label": "Outage"}]


# -- where gold stands -----------------------------------------------------------------------------------------------


def test_gold_is_read_again_by_each_run(world: World) -> None:
    job = world.job(output=OUTPUT, gold={"columns": {"label": "truth"}})
    world.rows(rows("Billing", " outage ", "HOW TO", ""))
    world.run(job)
    first = gold_of(world)
    world.rows(rows("", "Billing", "How to", "How to"))
    world.run(job)

    assert first == [
        {"id": "r0", "label": "Billing"},
        {"id": "r1", "label": "Outage"},
        {"id": "r2", "label": "How to"},
    ]
    assert gold_of(world) == [
        {"id": "r1", "label": "Billing"},
        {"id": "r2", "label": "How to"},
        {"id": "r3", "label": "How to"},
    ]


def test_other_columns_of_gold_replace_the_table(world: World) -> None:
    world.rows([{"id": "r0", "text": "Text.", "n": 3, "u": "yes"}])
    job = world.job(output={"schema": SCHEMA}, gold={"columns": {"count": "n"}})
    world.run(job)
    world.run(world.job(output={"schema": SCHEMA}, gold={"columns": {"urgent": "u", "count": "n"}}))

    [row] = gold_of(world)

    assert {name: int(value) if name != "id" else value for name, value in row.items()} == {
        "id": "r0",
        "urgent": 1,
        "count": 3,
    }


@pytest.mark.parametrize("ending", ["csv", "parquet", "ndjson", "xlsx"])
def test_a_gold_file_is_joined_by_key_whatever_type_its_key_has(world: World, ending: str, tmp_path: Path) -> None:
    pl.DataFrame({"id": [1, 2, 3], "text": ["One.", "Two.", "Three."]}).write_parquet(tmp_path / "rows.parquet")
    gold = pl.DataFrame({"id": [2, 1, 99], "truth": ["outage", "Billing", "Outage"], "more": [1.5, 2.5, 3.5]})
    path = tmp_path / f"gold.{ending}"
    if ending == "xlsx":
        path.write_bytes((Path(__file__).parent / "gold.xlsx").read_bytes())
    else:
        getattr(gold, f"write_{ending}")(path)
    job = world.job(
        source={"path": str(tmp_path / "rows.parquet")},
        output=OUTPUT,
        gold={"columns": {"label": "truth"}, "path": str(path)},
    )

    world.run(job)

    assert gold_of(world) == [
        {"id": 1, "label": "Billing"},
        {"id": 2, "label": "Outage"},
        {"id": 99, "label": "Outage"},
    ]


def test_gold_is_read_as_the_type_of_its_output_column(world: World) -> None:
    world.rows(
        [
            {
                "id": "r0",
                "text": "Text.",
                "a": "12.5",
                "c": "+3",
                "u": "Yes",
                "d": "2026-11-20",
                "area": " North",
                "t": '["b", "a"]',
            }
        ]
    )
    columns = {"amount": "a", "count": "c", "urgent": "u", "day": "d", "area": "area", "tags": "t"}

    world.run(world.job(output={"schema": SCHEMA}, gold={"columns": columns, "match": {"tags": "set"}}))

    [row] = gold_of(world)
    assert (row["amount"], row["count"], bool(row["urgent"]), str(row["day"]), row["area"], row["tags"]) == (
        12.5,
        3,
        True,
        "2026-11-20",
        "north",
        '["b","a"]',
    )


def test_an_empty_value_can_mean_that_the_answer_must_be_null(world: World) -> None:
    world.rows(rows("1.5", ""))

    world.run(world.job(output={"schema": SCHEMA}, gold={"columns": {"amount": "truth"}, "empty": None}))

    assert gold_of(world) == [{"id": "r0", "amount": 1.5}, {"id": "r1", "amount": None}]


# -- gold that is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("truth", "gold", "message"),
    [
        (
            "Refund",
            {"columns": {"label": "truth"}},
            r"rows.csv row 2: column 'truth' is 'Refund', which is none of Bil",
        ),
        ("x", {"columns": {"labels": "truth"}}, r"'labels' is no column of the output \(it has: label\)"),
        ("x", {"columns": {"label": "truht"}}, r"did you mean 'truth'\?"),
        ("x", {"columns": {"label": "truth"}, "match": {"label": {"abs": 1}}}, "abs and rel are for numbers"),
        ("x", {"columns": {"label": "truth"}, "match": {"label": "set"}}, "set is for lists"),
        ("x", {"columns": {"label": "truth"}, "path": "missing.csv"}, r"gold\.path: missing\.csv does not exist"),
    ],
    ids=["outside the labels", "no such output", "no such column", "no number", "no list", "no such file"],
)
def test_gold_that_cannot_be_compared_is_refused(world: World, truth: str, gold: dict[str, Any], message: str) -> None:
    world.rows(rows("Billing", truth))

    with pytest.raises(PipelineError, match=message):
        world.run(world.job(output=OUTPUT, gold=gold))

    assert world.accepted() == 0
    with world.database.read() as conn:
        assert not inspect(conn).has_table("answers", schema=world.database.default_schema)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("count", "2.5", "is not a whole number"),
        ("amount", "n/a", "is not a number"),
        ("urgent", "maybe", "is neither true nor false"),
        ("day", "20.11.2026", "is not a date"),
        ("tags", "a, b", "is not a JSON list"),
        ("parts", "[]", "holds other values than lists of texts, numbers and booleans"),
    ],
)
def test_gold_that_cannot_be_read_is_refused(world: World, column: str, value: str, message: str) -> None:
    world.rows(rows(value))

    with pytest.raises(PipelineError, match=message):
        world.run(world.job(output={"schema": SCHEMA}, gold={"columns": {column: "truth"}}))


def test_rows_of_a_gold_file_with_the_same_key_are_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "gold.csv").write_text("id,truth\nr0,Billing\nr1,Outage\nr0,Outage\n")
    job = world.job(output=OUTPUT, gold={"columns": {"label": "truth"}, "path": str(tmp_path / "gold.csv")})

    with pytest.raises(SourceError) as raised:
        world.run(job)

    assert str(raised.value) == (
        "gold.path: rows of gold have the same key: gold.csv row 1 and gold.csv row 3; keep one of each"
    )


def test_a_table_of_somebody_else_is_not_replaced_by_gold(world: World) -> None:
    world.rows(rows("Billing"))
    with world.database.write() as conn:
        conn.execute(text(f"CREATE TABLE {gold_table(world)} (id INTEGER)"))

    with pytest.raises(DatabaseError, match="'answers_gold' exists and is no gold table"):
        world.run(world.job(output=OUTPUT, gold={"columns": {"label": "truth"}}))

    assert world.accepted() == 0
