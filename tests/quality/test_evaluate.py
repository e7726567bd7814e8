"""`evaluate` compares answers with gold: which rows count, which figures it gives, and what it refuses."""

import datetime
import importlib
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from pipeline.errors import InputError
from pipeline.job.load import load
from pipeline.job.model import Job
from pipeline.quality.evaluate import Evaluation, evaluate, judged
from pipeline.quality.figures import Figures, Share
from pipeline.quality.statistics import wilson
from pipeline.report.evaluate import evaluation_facts, evaluation_lines
from tests.conftest import World

POSTGRESQL_IS_LONG = True
GOLD = {"columns": {"label": "truth"}}
SCHEMA = {
    "type": "object",
    "properties": {
        "amount": {"type": ["number", "null"]},
        "area": {"type": ["string", "null"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["amount", "area", "tags"],
    "additionalProperties": False,
}


def answered(world: World, answers: list[tuple[str, str | None, str]], **sections: Any) -> Job:
    """Run a job over rows with these gold labels, then give them these answers. answers: gold, label and status."""
    labels = sorted({label for gold, label, _ in answers for label in (gold, label) if label})
    world.rows(
        [
            {"id": f"r{i:03d}", "text": f"Text number {i}.", "truth": gold, "team": "red" if i % 3 else "blue"}
            for i, (gold, _, _) in enumerate(answers)
        ]
    )
    job = world.job(
        source={"keep": ["team"]}, output={"labels": labels}, **{"gold": GOLD, "request": {"dedupe": False}, **sections}
    )
    world.run(job)
    rows = [{"id": f"r{i:03d}", "label": label, "status": status} for i, (_, label, status) in enumerate(answers)]
    change(world, "SET label = :label, status = :status WHERE id = :id", rows)
    return job


def change(world: World, change_: str, rows: list[dict[str, Any]]) -> None:
    schema = "" if world.database.is_sqlite else f"{world.database.default_schema}."
    with world.database.write() as conn:
        conn.execute(text(f"UPDATE {schema}answers {change_}"), rows)


def evaluation(world: World, job: Job, **options: Any) -> Evaluation:
    return evaluate(world.database, world.known(job.name), job, **options)


def lines(found: Evaluation) -> list[str]:
    return list(evaluation_lines(found, None))


# -- which rows count ------------------------------------------------------------------------------------------------


def test_answers_that_failed_are_wrong_and_rows_without_an_answer_do_not_count(world: World) -> None:
    job = answered(
        world,
        [
            ("a", "a", "succeeded"),
            ("a", "b", "succeeded"),
            ("b", None, "truncated"),
            ("b", None, "refused"),
            ("b", None, "unparsable"),
            ("b", None, "expired"),
            ("b", None, "errored"),
            ("b", None, "lost"),
            ("b", None, "canceled"),
            ("b", None, "invalid"),
        ],
    )

    found = evaluation(world, job)

    assert found.figures.accuracy == Share(right=1, rows=5, requests=5)
    assert found.gold_rows == 10
    facts = evaluation_facts(found, None)
    assert (facts["answered"], facts["failed"]) == (2, 3)
    assert facts["without_answer"] == {"expired": 1, "errored": 1, "lost": 1, "canceled": 1, "invalid": 1}
    assert lines(found)[0] == (
        "gold     10 rows with gold: 2 succeeded, 1 truncated, 1 refused, 1 unparsable; without an answer: "
        "1 errored, 1 expired, 1 canceled, 1 lost, 1 invalid"
    )


def test_rows_that_were_answered_by_one_request_count_once_in_intervals(world: World) -> None:
    world.rows([{"id": f"r{i:03d}", "text": "Thanks!" if i < 60 else f"Text {i}.", "truth": "a"} for i in range(100)])
    job = world.job(output={"labels": ["a", "b"]}, gold=GOLD)
    world.run(job)
    change(world, "SET label = :label", [{"label": "a"}])
    change(world, "SET label = 'b' WHERE id = :id", [{"id": f"r{i:03d}"} for i in range(90, 100)])

    found = evaluation(world, job)

    assert found.figures.accuracy == Share(right=90, rows=100, requests=41)
    assert found.figures.accuracy.interval == wilson(0.9 * 41, 41)
    [column] = found.figures.columns
    assert column.classes is not None
    assert column.classes.classes[0].recall.requests == 41
    assert column.classes.classes[0].precision == Share(right=90, rows=90, requests=31)
    assert "; 41 requests count in the interval" in lines(found)[1]


def test_rows_with_gold_that_were_not_sent_yet_are_counted(world: World) -> None:
    job = answered(world, [("a", "a", "succeeded"), ("b", "b", "succeeded")])
    world.rows([{"id": f"r{i:03d}", "text": f"Text number {i}.", "truth": "a", "team": "red"} for i in range(5)])

    found = evaluation(world, job)

    assert (found.gold_rows, found.without_answer, found.figures.accuracy.rows) == (5, 3, 2)


def test_a_row_without_gold_does_not_count(world: World) -> None:
    job = answered(world, [("a", "a", "succeeded"), ("", "b", "succeeded"), ("b", "b", "succeeded")])

    assert evaluation(world, job).figures.accuracy == Share(right=2, rows=2, requests=2)


def test_a_predicate_may_name_a_column_that_gold_has_as_well(world: World) -> None:
    job = answered(world, [("a", "a", "succeeded"), ("a", "b", "succeeded"), ("b", "b", "succeeded")])

    found = evaluation(world, job, where="label = 'b'")

    assert found.figures.accuracy == Share(right=1, rows=2, requests=2)


# -- figures ---------------------------------------------------------------------------------------------------------


def test_classes_have_the_figures_of_scikit_learn(world: World) -> None:
    metrics = importlib.import_module("sklearn.metrics")
    gold = [*"aaaaaabbbbbccccd"]
    given = [*"aaaabcbbbacccabd"]
    answers = [(g, label, "succeeded") for g, label in zip(gold, given, strict=True)] + [("a", None, "truncated")]
    job = answered(world, answers)
    gold, given = [*gold, "a"], [*given, "(failed)"]

    [column] = evaluation(world, job).figures.columns

    assert column.classes is not None
    labels = [of.value for of in column.classes.classes]
    assert labels == ["a", "b", "c", "d"]
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        gold, given, labels=labels, zero_division=0
    )
    assert [of.precision.value for of in column.classes.classes] == pytest.approx(list(precision), abs=1e-12)
    assert [of.recall.value for of in column.classes.classes] == pytest.approx(list(recall), abs=1e-12)
    assert [of.f1 for of in column.classes.classes] == pytest.approx(list(f1), abs=1e-12)
    assert [of.recall.rows for of in column.classes.classes] == list(support)
    matrix = metrics.confusion_matrix(gold, given, labels=[*labels, "(failed)"])
    assert column.classes.matrix == matrix[:-1].tolist()
    assert column.classes.macro_f1 is not None
    assert column.classes.macro_f1.value == pytest.approx(sum(f1) / 4, abs=1e-12)
    assert column.classes.kappa is not None
    assert column.classes.kappa.value == pytest.approx(metrics.cohen_kappa_score(gold, given), abs=1e-12)


def test_each_property_has_figures_and_a_row_is_right_if_all_of_its_gold_is(world: World) -> None:
    world.rows(
        [
            {"id": "r0", "text": "0", "amount": "10", "area": "North", "tags": '["x","y"]'},
            {"id": "r1", "text": "1", "amount": "10", "area": "", "tags": '["x"]'},
            {"id": "r2", "text": "2", "amount": "", "area": "South", "tags": "[]"},
            {"id": "r3", "text": "3", "amount": "5", "area": "South", "tags": ""},
        ]
    )
    names = ["amount", "area", "tags"]
    match = {"amount": {"rel": 0.05}, "area": "casefold", "tags": "set"}
    job = world.job(output={"schema": SCHEMA}, gold={"columns": {n: n for n in names}, "match": match})
    world.run(job)
    given = [(10.4, "NORTH", '["y","x"]'), (11.0, "West", '["x","z"]'), (1.0, None, "[]"), (5.0, "south ", "[]")]
    change(
        world,
        "SET amount = :amount, area = :area, tags = :tags WHERE id = :id",
        [{"id": f"r{i}", **dict(zip(names, values, strict=True))} for i, values in enumerate(given)],
    )

    found = evaluation(world, job).figures

    verdicts = {column.name: list(column.verdicts.values()) for column in found.columns}
    assert verdicts == {"amount": [2, 1, 0, 0], "area": [2, 0, 1, 0], "tags": [2, 1, 0, 0]}
    assert found.accuracy == Share(right=2, rows=4, requests=4)
    values = {of.value: (of.precision[:2], of.recall[:2]) for of in found.columns[2].values}
    assert values == {"x": ((2, 2), (2, 2)), "y": ((1, 1), (1, 1)), "z": ((0, 1), (0, 0))}
    assert found.columns[0].classes is None
    assert [(one.gold, one.answer, one.keys) for one in found.columns[0].confusions] == [(10.0, 11.0, [("r1",)])]

    with_nulls = job.model_copy(update={"gold": job.gold and job.gold.model_copy(update={"empty": "null"})})
    verdicts = {column.name: list(column.verdicts.values()) for column in evaluation(world, with_nulls).figures.columns}

    assert verdicts == {"amount": [2, 1, 0, 1], "area": [2, 0, 1, 1], "tags": [2, 1, 0, 1]}


def test_slices_are_ordered_by_the_upper_end_of_their_intervals(world: World) -> None:
    job = answered(world, [("a", "a" if i % 3 else "b", "succeeded") for i in range(99)])

    found = evaluation(world, job, by=["team"])

    assert [(one.value, *one.accuracy[:2]) for one in found.figures.slices["team"]] == [
        ("blue", 0, 33),
        ("red", 66, 66),
    ]
    assert [one["few"] for one in evaluation_facts(found, None)["slices"]["team"]] == [False, False]


def test_a_small_slice_is_named_as_such(world: World) -> None:
    job = answered(world, [("a", "a", "succeeded"), ("b", "b", "succeeded")])

    shown = lines(evaluation(world, job, by=["team"]))

    assert shown[-3:] == [
        "blue        1  100.0% (20.7% to 100.0%)  fewer than 30 rows",
        "red         1  100.0% (20.7% to 100.0%)  fewer than 30 rows",
        "of many small slices, the worst looks bad by chance",
    ]


def test_a_run_of_the_emulator_has_the_accuracy_that_its_fault_leaves(world: World) -> None:
    rows: list[dict[str, object]] = [{"id": f"r{i:04d}", "text": f"Text number {i}."} for i in range(1_000)]
    world.rows(rows)
    output = {"labels": ["billing", "outage", "how_to", "bug"]}
    world.run(world.job(name="truth", output=output, sink={"table": "truth"}))
    truth = world.answers("truth")
    world.rows([{**row, "truth": truth[str(row["id"])]["label"]} for row in rows])
    world.emulator.add_fault(on="item", do="other_label", share=0.2, seed=7)
    job = world.job(output=output, gold=GOLD)
    world.run(job)

    found = evaluation(world, job).figures

    interval = found.accuracy.interval
    assert interval is not None
    assert interval.low <= 0.8 <= interval.high
    answers = world.answers()
    assert found.accuracy.right == sum(answers[key]["label"] == truth[key]["label"] for key in truth)


# -- a minimum -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "judge", "passed"),
    [
        (179, "bound", True),
        (178, "bound", False),
        (170, "point", True),
        (169, "point", False),
        (162, "alarm", True),
        (160, "alarm", False),
    ],
)
def test_a_minimum_is_reached_by_the_judge(right: int, judge: Any, passed: bool) -> None:
    figures = Figures(Share(right, 200, 200), {"succeeded": 200}, 0.1, [], {})

    found = judged(Evaluation("job", 200, 0, True, figures), 0.85, judge)

    assert found.passed is passed


def test_chosen_rows_make_no_accuracy_of_the_job(world: World) -> None:
    job = answered(world, [("a", "a", "succeeded"), ("b", "b", "succeeded")], gold={**GOLD, "random": False})

    found = evaluation(world, job)

    facts = evaluation_facts(found, None)
    assert (facts["accuracy"], facts["chosen"]["right"]) == (None, 2)
    assert lines(found)[1].startswith("chosen   2 of 2 right")
    with pytest.raises(InputError, match="the rows with gold were chosen"):
        judged(found, 0.5, "bound")


# -- what is refused -------------------------------------------------------------------------------------------------


def test_what_cannot_be_evaluated_is_refused(world: World, tmp_path: Path) -> None:
    job = answered(world, [("a", "a", "succeeded"), ("b", "b", "succeeded")])

    with pytest.raises(InputError, match="job summaries has no gold"):
        evaluation(world, job.model_copy(update={"gold": None}))
    with pytest.raises(InputError, match="has no column 'teem'"):
        evaluation(world, job, by=["teem"])
    with pytest.raises(InputError, match="is not a SQL predicate over answers"):
        evaluation(world, job, where="label ==== 'b'")
    with pytest.raises(InputError, match="no row of job summaries has gold and an answer and meets --where"):
        evaluation(world, job, where="label = 'c'")
    world.rows([{"id": "r000", "text": "Text.", "truth": "", "team": "red"}])
    with pytest.raises(InputError, match="none of 1 rows has gold"):
        evaluation(world, job)


# -- a terminal ------------------------------------------------------------------------------------------------------


def test_texts_of_the_model_and_keys_give_a_terminal_no_commands(world: World) -> None:
    world.rows([{"id": "\x1b[31mred", "text": "Text.", "truth": "[bold]gold[/bold]"}])
    job = world.job(gold={"columns": {"text": "truth"}})
    world.run(job)
    change(
        world, "SET text = :text", [{"text": ":boom: [red]\x1b]0;title\x07 and\nmuch more text than a cell can show"}]
    )

    shown = "\n".join(lines(evaluation(world, job)))

    assert "[bold]gold[/bold]" in shown
    assert ":boom: [red]\\x1b]0;title\\x07 and\\nmuc..." in shown
    assert "\\u001b[31mred" in shown
    assert "\x1b" not in shown


# -- the guide -------------------------------------------------------------------------------------------------------


def test_the_guide_shows_what_the_sample_tickets_give(world: World) -> None:
    root = Path(__file__).parents[2]
    job = load(root / "sample_data/jobs/classify_tickets.yaml", variables={}, today=datetime.date(2026, 11, 20))
    world.run(job)

    shown = lines(evaluation(world, job))

    guide = (root / "docs/evaluate.md").read_text(encoding="utf-8")
    assert "```\n" + "\n".join(shown) + "\n```\n" in guide
