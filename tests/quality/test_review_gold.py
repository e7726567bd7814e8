"""`gold: reviews` measures answers by what people said: chosen rows make no headline, and strata are weighed."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline import load_job
from pipeline.errors import InputError, JobError
from pipeline.job.model import Job
from pipeline.quality.compare import compare
from pipeline.quality.evaluate import judged
from pipeline.quality.figures import Share
from pipeline.report.compare import comparison_lines, verdict_words
from pipeline.report.evaluate import evaluation_facts, evaluation_lines, judged_words
from pipeline.sink.reviews import Review, ReviewsTable
from pipeline.sink.table import ResultsTable
from tests.conftest import World
from tests.quality.test_evaluate import answered, change, evaluation, lines
from tests.quality.test_gold import gold_of
from tests.quality.test_review import by_id, exported, fill, imported, sheet, two_jobs
from tests.runner.test_trial import try_it

POSTGRESQL_IS_LONG = True
REVIEWS = {"gold": "reviews"}
SAMPLE = {"drawn": "sample", "weight": 1.0}


def said(world: World, *given: dict[str, Any], job: str = "summaries") -> None:
    """Store reviews of answers, of which is given what matters; the rest is as an import has it."""
    sink = ResultsTable.of(world.known(job))
    usual = {"new": None, "by": None, "note": None, "drawn": "all", "weight": None, "column": "label", "row_hash": None}
    answers = world.answers(job)
    found = []
    for one in given:
        whole = {**usual, "answer": answers[one["key"]][one.get("column", "label")], **one, "key": (one["key"],)}
        found.append(Review(**whole, custom_id=None, at=world.clock()))
    table = ReviewsTable(sink)
    with world.database.write() as conn:
        table.make(conn)
        table.add(conn, found, world.clock())


def verdicts(text: str, **others: Any) -> list[dict[str, Any]]:
    """Return reviews of the first rows: r right, w wrong, u unsure. others: of all of them."""
    words = {"r": "right", "w": "wrong", "u": "unsure"}
    return [{"key": f"r{i:03d}", "verdict": words[letter], **others} for i, letter in enumerate(text) if letter != "-"]


# -- the job file ----------------------------------------------------------------------------------------------------


def test_the_job_file_takes_reviews_as_gold_and_how_they_are_compared(world: World, tmp_path: Path) -> None:
    job = world.job(output={"labels": ["a", "b"]}, **REVIEWS)
    again = Job.model_validate(job.model_dump(mode="json"))
    (tmp_path / "job.yaml").write_text(
        "name: notes\nsource: {path: rows.csv, key: id}\nsink: {table: answers}\ngold: reviews\n"
        'request: {model: claude-haiku-4-5, max_tokens: 60, prompt: "{{ row }}"}\n'
    )

    assert job.gold is not None
    assert (job.gold.reviews, again.gold) == (True, job.gold)
    assert load_job(tmp_path / "job.yaml").gold == job.gold  # the request may use any column
    assert world.job(gold={"reviews": True, "match": {"label": "casefold"}}).gold != job.gold


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ({"reviews": True, "columns": {"label": "truth"}}, "takes its values from reviews"),
        ({"reviews": True, "empty": "null"}, "takes its values from reviews"),
        ({}, "names no columns"),
        ("review", "gold"),
    ],
)
def test_gold_that_stands_in_two_places_or_in_none_is_refused(world: World, gold: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        world.job(gold=gold)


def test_a_job_runs_before_anything_is_reviewed(world: World) -> None:
    job = world.job(output={"labels": ["a", "b"]}, **REVIEWS)

    assert world.run(job).state == "finished"
    with pytest.raises(InputError, match="job summaries has no reviews that say what is right; write a sheet with"):
        evaluation(world, job)


# -- which rows count, and how much ----------------------------------------------------------------------------------


def test_strata_count_by_their_share_of_all_answers(world: World) -> None:
    shares, right = [0.60, 0.20, 0.10, 0.07, 0.03], [39, 36, 32, 26, 20]
    job = answered(world, [("abcde"[i // 40], "abcde"[i // 40], "succeeded") for i in range(200)], **REVIEWS)
    for i, (share, k) in enumerate(zip(shares, right, strict=True)):
        text = "-" * (40 * i) + "r" * k + "w" * (40 - k)
        said(world, *verdicts(text, drawn=f"sample by label: {'abcde'[i]}", weight=share))

    found = evaluation(world, job)

    assert found.reviews is not None
    assert found.reviews.weighted is not None
    assert found.reviews.weighted.share == pytest.approx(0.9055, abs=5e-5)
    assert found.reviews.weighted.n_effective == pytest.approx(217.9, abs=0.05)
    assert found.reviews.weighted.interval == pytest.approx((0.8593, 0.9376), abs=5e-5)
    assert lines(found)[1] == (
        "accuracy 90.5% of all answers (85.9% to 93.8%): 153 of 200 reviewed rows are right, weighed by strata; as "
        "good as 218 rows drawn at random"
    )
    accuracy = evaluation_facts(found, None)["accuracy"]
    assert (accuracy["value"], accuracy["right"], accuracy["rows"]) == (found.reviews.weighted.share, 153, 200)
    bound = judged(found, 0.85, "bound")
    assert (bound.passed, round(bound.figure, 3), bound.opens_at) == (True, 0.868, 194)
    assert "194 of 217 effective rows reach it" in judged_words(bound, found.figures.accuracy, found.reviews.weighted)


def test_strata_without_reviewed_rows_are_missed(world: World) -> None:
    job = answered(world, [("a", "a", "succeeded"), ("b", "b", "succeeded")] * 5, **REVIEWS)
    said(world, *verdicts("r-r-r-r-r-", drawn="sample by label: a", weight=0.5))

    found = evaluation(world, job)

    assert "warning  the reviewed rows stand for 50.0% of all answers only" in lines(found)
    with pytest.raises(InputError, match=r"stand for 50.0% of all answers only"):
        judged(found, 0.5, "bound")


def test_chosen_rows_stand_beside_the_accuracy_of_the_sample(world: World) -> None:
    job = answered(world, [("a", "b", "succeeded")] * 12, **REVIEWS)
    said(world, *verdicts("rrrrrrrw", **SAMPLE))
    said(world, *verdicts("--------wwwr", drawn='disagree ["current","job:other"]'))
    said(world, *verdicts("r", drawn="where id = 'r000'"))  # a row of the sample that was looked at again

    found = evaluation(world, job)

    assert found.random
    assert found.figures.accuracy == Share(7, 8, 8)
    assert lines(found)[1:3] == [
        "accuracy 7 of 8 right: 87.5% (52.9% to 97.8%)",
        "chosen   1 of 4 right: 25.0% (4.6% to 69.9%); not drawn at random, so not part of the accuracy",
    ]
    facts = evaluation_facts(found, None)
    assert (facts["accuracy"]["right"], facts["chosen"]["right"], facts["chosen"]["rows"]) == (7, 1, 4)
    assert judged(found, 0.5, "point").passed


@pytest.mark.parametrize("gold", [{"reviews": True, "random": False}, "reviews"])
def test_rows_that_were_only_chosen_make_no_headline(world: World, gold: Any) -> None:
    job = answered(world, [("a", "b", "succeeded")] * 6, gold=gold)
    said(world, *verdicts("rrrrww", **(SAMPLE if gold != "reviews" else {})))

    found = evaluation(world, job)

    assert lines(found)[1].startswith("chosen   4 of 6 right: 66.7%")
    assert evaluation_facts(found, None)["accuracy"] is None
    with pytest.raises(InputError, match="the reviewed rows are no random sample of all answers"):
        judged(found, 0.5, "bound")


def test_the_larger_of_two_samples_is_the_one_that_counts(world: World) -> None:
    job = answered(world, [("a", "b", "succeeded")] * 9, **REVIEWS)
    said(world, *verdicts("rrr", drawn="sample by label: b", weight=1.0))
    said(world, *verdicts("---rrrrw", **SAMPLE))

    found = evaluation(world, job)

    assert found.figures.accuracy == Share(4, 5, 5)
    assert found.reviews is not None
    assert (found.reviews.weighted, found.reviews.chosen) == (None, Share(3, 3, 3))


def test_a_predicate_changes_what_strata_weigh_so_there_is_no_headline(world: World) -> None:
    job = answered(world, [("a", "a", "succeeded"), ("b", "b", "succeeded")] * 3, **REVIEWS)
    said(world, *verdicts("r-r-w-", drawn="sample by label: a", weight=0.5))
    said(world, *verdicts("-r-r-r", drawn="sample by label: b", weight=0.5))

    assert not evaluation(world, job, where="team = 'red'").random
    assert evaluation(world, job, by=["team"]).random


# -- what a review tells ---------------------------------------------------------------------------------------------


def test_of_a_wrong_answer_without_a_correction_another_answer_is_not_known_to_be_right(world: World) -> None:
    labels = [("a", "a"), ("a", "b"), ("b", "b"), ("b", "a"), ("a", "c"), ("c", "c")]
    job = two_jobs(world, labels, output={"labels": ["a", "b", "c"]}, **REVIEWS)
    said(world, *verdicts("rwww-r", **SAMPLE), {"key": "r004", "verdict": "wrong", "new": "c", **SAMPLE})

    ours, theirs = evaluation(world, job), evaluation(world, job, side="job:other")

    assert ours.figures.accuracy == Share(2, 6, 6)
    [column] = ours.figures.columns
    assert column.classes is not None
    assert column.classes.another == [1, 2, 0, 0]
    assert (column.classes.kappa, column.classes.macro_f1) == (None, None)
    assert [one.precision for one in column.classes.classes] == [Share(1, 3, 3), Share(0, 2, 2), Share(1, 1, 1)]
    assert "(another)             1  2  .         ." in lines(ours)
    assert theirs.figures.accuracy == Share(3, 4, 4)  # not r001 and r003
    assert (theirs.random, theirs.reviews and theirs.reviews.undecided) == (False, 2)
    with pytest.raises(InputError, match="for 2 reviewed rows it is not known whether this other answer is right"):
        judged(theirs, 0.5, "bound")


def test_for_free_text_the_verdict_is_enough_and_holds_for_this_text_only(world: World) -> None:
    job = two_jobs(world, [("Good.", "Good."), ("Bad.", "Better."), ("Fine.", "Also fine.")], **REVIEWS)
    said(world, *verdicts("rwr", column="text", **SAMPLE))

    ours, theirs = evaluation(world, job), evaluation(world, job, side="job:other")

    assert ours.figures.accuracy == Share(2, 3, 3)
    assert theirs.figures.accuracy == Share(1, 1, 1)
    assert not theirs.random


def test_answers_that_failed_are_wrong_and_unsure_rows_are_left_out(world: World) -> None:
    job = answered(
        world,
        [("a", "a", "succeeded"), ("a", "b", "succeeded"), ("b", None, "truncated"), ("b", "b", "succeeded")],
        **REVIEWS,
    )
    exported(world, job, sample=4)
    fill(world, by_id(r000="right", r001="unsure", r003="right"))
    imported(world, job)

    found = evaluation(world, job)

    assert found.figures.accuracy == Share(2, 3, 3)
    assert "left out 1 row of which a person was not sure" in lines(found)
    assert [row["label"] for row in gold_of(world)] == ["a", None, "b"]


def test_a_review_of_a_column_that_had_another_type_tells_nothing(world: World) -> None:
    schema: dict[str, Any] = {"type": "object", "required": ["amount"], "additionalProperties": False}
    text, number = ({"schema": {**schema, "properties": {"amount": {"type": kind}}}} for kind in ("string", "number"))
    world.rows([{"id": "r0", "text": "One."}, {"id": "r1", "text": "Two."}])
    job = world.job(output=text, request={"dedupe": False}, **REVIEWS)
    world.run(job)
    change(world, "SET amount = :amount WHERE id = :id", [{"id": "r0", "amount": "many"}, {"id": "r1", "amount": "5"}])
    said(world, *[{"key": key, "column": "amount", "verdict": "right", **SAMPLE} for key in ("r0", "r1")])

    found = evaluation(world, world.job(output=number, request={"dedupe": False}, **REVIEWS), where="amount = '5'")

    assert found.gold_rows == 1


def test_a_review_of_a_row_whose_source_has_changed_counts_no_more(world: World) -> None:
    job = answered(world, [("a", "a", "succeeded"), ("a", "b", "succeeded"), ("b", "b", "succeeded")], **REVIEWS)
    exported(world, job, sample=3)
    fill(world, by_id(r000="right", r001={"new": "a"}, r002="right"))
    imported(world, job)
    rows = [{"id": f"r{i:03d}", "text": "New." if i == 2 else f"Text number {i}.", "team": "red"} for i in range(3)]
    world.rows(rows)
    world.run(job)
    change(world, "SET label = 'a' WHERE id <> 'r002'", [{}])

    found = evaluation(world, job)

    assert found.figures.accuracy == Share(2, 2, 2)
    assert "left out 1 row whose source values have changed since" in lines(found)


def test_a_match_decides_whether_a_corrected_number_is_right(world: World) -> None:
    schema = {
        "type": "object",
        "properties": {"amount": {"type": "number"}, "area": {"type": "string"}},
        "required": ["amount", "area"],
        "additionalProperties": False,
    }
    gold = {"reviews": True, "match": {"amount": {"abs": 0.5}}}
    world.rows([{"id": "r0", "text": "One."}, {"id": "r1", "text": "Two."}])
    job = world.job(output={"schema": schema}, gold=gold)
    world.run(job)
    change(world, "SET amount = 10, area = 'north'", [{}])
    exported(world, job, sample=2, blind=True)
    fill(
        world, lambda cells: {"new": {"r0amount": "10.4", "r1amount": "11"}.get(cells["id"] + cells["column"], "north")}
    )
    imported(world, job)

    found = evaluation(world, job)

    assert [column.accuracy for column in found.figures.columns] == [Share(1, 2, 2), Share(2, 2, 2)]
    assert found.figures.accuracy == Share(1, 2, 2)
    with pytest.raises(JobError, match=r"gold.match: 'weight' is no column of the output"):
        evaluation(world, world.job(output={"schema": schema}, gold={"reviews": True, "match": {"weight": "exact"}}))


def test_a_row_is_not_right_while_one_of_its_columns_is_not_known_to_be(world: World) -> None:
    text = {"type": "string"}
    schema = {"type": "object", "properties": {"area": text, "team": text}, "required": ["area", "team"]}
    output = {"schema": {**schema, "additionalProperties": False}}
    world.rows([{"id": "r0", "text": "One."}, {"id": "r1", "text": "Two."}])
    for name, table, team in (("other", "others", "blue"), ("summaries", "answers", "red")):
        job = world.job(name=name, sink={"table": table}, output=output, request={"dedupe": False}, **REVIEWS)
        world.run(job)
        change(world, "SET area = 'north', team = :team", [{"team": team}], table=table)
    both = [{"key": key, "column": column, **SAMPLE} for key in ("r0", "r1") for column in ("area", "team")]
    said(world, *[{**one, "verdict": "right" if one["column"] == "area" else "wrong"} for one in both])
    said(world, {**both[3], "verdict": "wrong", "new": "blue"})

    ours, theirs = evaluation(world, job), evaluation(world, job, side="job:other")
    [side] = compare(world.database, world.known(), job, ["current", "job:other"]).sides

    assert ours.figures.accuracy == Share(0, 2, 2)
    assert theirs.figures.accuracy == Share(1, 1, 1)  # of r0 it is not known whether its team is right
    assert (theirs.reviews and theirs.reviews.undecided, side.tally.undecided) == (1, 1)


@pytest.mark.parametrize(
    ("draw", "counted", "chosen"),
    [
        (SAMPLE, (8, 2, 2), False),
        ({"drawn": "sample by label: a", "weight": 0.5}, (12, 2, 2), True),
        ({"drawn": "all"}, (12, 2, 2), True),
    ],
    ids=["sample", "strata", "chosen"],
)
def test_sides_are_compared_by_the_reviews_of_a_plain_sample_if_there_is_one(
    world: World, draw: dict[str, Any], counted: tuple[int, int, int], chosen: bool
) -> None:
    labels = [("a", "a"), ("a", "b"), ("b", "b"), ("b", "a")] * 2 + [("a", "a")] * 4
    job = two_jobs(world, labels, output={"labels": ["a", "b"]}, **REVIEWS)
    said(world, *[{**one, "new": "a" if one["verdict"] == "wrong" else None} for one in verdicts("rrrwrrrw", **draw)])
    said(world, *verdicts("--------rrrr"))

    found = compare(world.database, world.known(), job, ["current", "job:other"])

    gold = found.sides[0].gold
    assert gold is not None
    assert (gold.requests, gold.only_base, gold.only_other) == counted
    assert found.chosen == chosen
    assert any("the rows with gold were chosen" in line for line in comparison_lines(found, None)) == chosen


def test_sides_are_not_compared_by_verdicts_that_tell_of_one_of_them_only(world: World) -> None:
    job = two_jobs(
        world, [("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")], output={"labels": ["a", "b", "c"]}, **REVIEWS
    )
    said(world, *verdicts("rrwu", **SAMPLE))  # of r002 it is not known whether a is right, and r001 alone would win

    [side] = compare(world.database, world.known(), job, ["current", "job:other"]).sides
    said(world, {"key": "r002", "verdict": "wrong", "new": "a", **SAMPLE})
    [corrected] = compare(world.database, world.known(), job, ["current", "job:other"]).sides

    assert (side.gold, side.tally.undecided) == (None, 1)
    assert verdict_words(side).startswith("not known: the reviews of 1 row do not tell whether both answers are right")
    assert corrected.gold is not None
    assert (corrected.gold.requests, corrected.gold.only_base, corrected.gold.only_other) == (3, 1, 1)


def test_a_trial_asks_the_reviewed_rows_and_is_reviewed_and_compared_as_a_side(world: World) -> None:
    job = answered(world, [("a", "b", "succeeded")] * 12, **REVIEWS)
    with pytest.raises(InputError, match="has no reviews that say what is right"):
        try_it(world, job, gold_only=True)
    said(world, *[{**one, "new": "a"} for one in verdicts("wwwwww", **SAMPLE)])

    try_it(world, job, gold_only=True, changes={"request.max_tokens": 40})
    table = ResultsTable.of(world.known("summaries:t")).table.name
    change(world, "SET label = CASE id WHEN 'r000' THEN 'b' ELSE 'a' END", [{}], table=table)
    found = evaluation(world, job, side="t")
    exported(world, job, disagree=("current", "t"))

    assert sorted(world.answers("summaries:t")) == [f"r{i:03d}" for i in range(6)]
    assert found.random
    assert judged(found, 0.4, "bound").passed
    assert {line["id"]: (line["answer"], line["answer of t"]) for line in sheet(world)} == {
        f"r{i:03d}": ("b", "a") for i in range(1, 6)
    }


def test_a_trial_of_other_source_values_is_not_judged_by_reviews_of_the_earlier_ones(world: World) -> None:
    job = answered(world, [("a", "b", "succeeded")] * 6, **REVIEWS)
    said(world, *[{**one, "new": "a"} for one in verdicts("wwwwww", **SAMPLE)])
    texts = ["Another text.", "Yet another."] + [f"Text number {i}." for i in range(2, 6)]
    world.rows([{"id": f"r{i:03d}", "text": text, "truth": "a", "team": "red"} for i, text in enumerate(texts)])
    try_it(world, job, gold_only=True)
    try_it(world, job, name="u", gold_only=True)

    found = evaluation(world, job, side="t")
    [side] = compare(world.database, world.known(), job, ["t", "u"]).sides

    assert found.reviews is not None
    assert (found.figures.accuracy.rows, found.reviews.changed, found.gold_rows) == (4, 2, 4)
    assert side.gold is not None
    assert side.gold.requests == 4


def test_keys_and_texts_of_reviewed_rows_are_shown_without_escapes(world: World) -> None:
    world.rows([{"id": "\x1b[31mred", "text": "One."}, {"id": "[bold]b", "text": "Two."}])
    job = world.job(output={"labels": ["a", "b"]}, request={"dedupe": False}, **REVIEWS)
    world.run(job)
    change(world, "SET label = 'a'", [{}])
    exported(world, job, sample=2)
    fill(world, lambda cells: {"new": "b"})
    imported(world, job)

    shown = "\n".join(evaluation_lines(evaluation(world, job), None))

    assert "\\u001b[31mred" in shown or "\\x1b[31mred" in shown
    assert "[bold]b" in shown
    assert "\x1b" not in shown + "".join(line["id"] for line in sheet(world))
