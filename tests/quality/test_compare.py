"""`compare` tells how the answers of sides differ: pairs, agreement, flips, and accuracy by gold."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.job.load import load
from pipeline.job.model import Job
from pipeline.planning.trial import Trial
from pipeline.planning.trial import change as change_of
from pipeline.quality.compare import Comparison, compare
from pipeline.quality.evaluate import evaluate
from pipeline.quality.statistics import paired_difference, pairs_needed, sign_test
from pipeline.report.adopt import adoption, adoption_lines
from pipeline.report.compare import comparison_facts, comparison_lines, passes
from pipeline.runner.trial import run_trial
from pipeline.sink.export import export
from pipeline.sink.read import AnswerFilter
from tests.conftest import World
from tests.quality.test_evaluate import change

POSTGRESQL_IS_LONG = True
GOLD = {"columns": {"label": "truth"}}
Given = list[tuple[str, str | None, str | None]]  # gold, label of the other job, and label of the job


def both(world: World, given: Given, **sections: Any) -> Job:
    """Run a job and another one over the same rows, and give both these answers; None for one that was truncated."""
    labels = ["a", "b", "c"]
    world.rows(
        [{"id": f"r{i:03d}", "text": f"Text number {i}.", "truth": gold} for i, (gold, _, _) in enumerate(given)]
    )
    of_both: dict[str, Any] = {"output": {"labels": labels}, "gold": GOLD, **sections}
    for name, place in (("other", 1), ("summaries", 2)):
        job = world.job(name=name, sink={"table": "answers" if place == 2 else "others"}, **of_both)
        world.run(job)
        rows = [
            {"id": f"r{i:03d}", "label": of[place], "status": "succeeded" if of[place] else "truncated"}
            for i, of in enumerate(given)
        ]
        change(world, "SET label = :label, status = :status WHERE id = :id", rows, table=job.sink.table)
    return job


def compared(world: World, job: Job, *sides: str, **options: Any) -> Comparison:
    return compare(world.database, world.known(), job, sides, **options)


GIVEN: Given = [
    *[("a", "a", "a")] * 50,
    *[("a", "b", "a")] * 12,  # only the job is right
    *[("b", "b", "c")] * 4,  # only the other one is right
    *[("c", "a", "b")] * 3,
    ("c", None, "c"),
    ("", "a", "b"),
]


def test_pairs_are_counted_with_their_flips_and_by_gold(world: World) -> None:
    job = both(world, GIVEN)
    rows: list[Any] = []

    found = compared(world, job, "job:other", "current", differing=lambda *row: rows.append(row))

    [side] = found.sides
    tally, gold = side.tally, side.gold
    assert (tally.pairs, tally.agree, tally.alone, tally.changed, side.checked) == (71, 50, 0, 0, True)
    assert tally.statuses == {("truncated", "succeeded"): 1}
    column = tally.columns["label"]
    assert column.flips.most_common(2) == [(("b", "a"), 12), (("b", "c"), 4)]
    assert column.keys["b", "a"] == [("r050",), ("r051",), ("r052",)]
    assert gold is not None
    assert (gold.only_base, gold.only_other, gold.requests) == (4, 13, 70)
    assert [share.right for share in gold.accuracies] == [54, 63]
    assert gold.difference == paired_difference(13, 4, 70)
    assert gold.p == sign_test(13, 4) == gold.p_adjusted
    assert gold.needed == pairs_needed(17 / 70, 9 / 70)
    assert len(rows) == 21


def test_the_answers_of_another_job_are_evaluated_by_the_gold_of_this_one(world: World) -> None:
    job = both(world, GIVEN)

    ours = evaluate(world.database, world.known(), job)
    theirs = evaluate(world.database, world.known(), job, side="job:other")

    assert [found.figures.accuracy.right for found in (theirs, ours)] == [54, 63]
    with pytest.raises(InputError, match="unknown side 'cheap': write current, job:NAME, or the name of a trial"):
        evaluate(world.database, world.known(), job, side="cheap")


def test_identical_sides_show_no_difference(world: World) -> None:
    job = both(world, GIVEN)

    [side] = compared(world, job, "current", "current").sides

    assert side.tally.agree == side.tally.pairs == 71
    assert side.gold is not None
    assert (side.gold.p, side.gold.only_base, side.gold.only_other) == (1.0, 0, 0)
    assert "no difference is shown" in "\n".join(comparison_lines(compared(world, job, "current", "current"), None))


def test_a_parquet_file_of_answers_is_a_side(world: World, tmp_path: Path) -> None:
    job = both(world, GIVEN)
    file = str(tmp_path / "before.parquet")
    export(world.database, world.known("other"), file, AnswerFilter(), overwrite=False)

    [by_file] = compared(world, job, file, "current").sides
    [by_job] = compared(world, job, "job:other", "current").sides

    assert (by_file.checked, by_job.checked) == (False, True)
    assert (by_file.tally.pairs, by_file.tally.agree, by_file.gold) == (71, 50, by_job.gold)


def test_several_sides_are_adjusted_for_each_other(world: World) -> None:
    job = both(world, GIVEN)

    found = compared(world, job, "job:other", "current", "job:other")

    first, second = (side.gold for side in found.sides)
    assert first is not None
    assert second is not None
    assert first.p_adjusted == pytest.approx(2 * first.p)
    assert second.p_adjusted == 1.0
    assert list(comparison_lines(found, None))[-1].startswith("the best of several sides")


def test_a_row_that_changed_between_both_answers_is_no_pair(world: World) -> None:
    job = both(world, [("a", "a", "a"), ("a", "b", "a")])
    world.rows(
        [{"id": f"r{i:03d}", "text": f"Other text {i}." if i else "Text number 0.", "truth": "a"} for i in (0, 1)]
    )
    world.run(job)

    [side] = compared(world, job, "job:other", "current").sides

    assert (side.tally.pairs, side.tally.changed) == (1, 1)
    assert "1 changed since" in "\n".join(comparison_lines(compared(world, job, "job:other", "current"), None))


def test_numbers_have_a_mean_difference(world: World) -> None:
    schema = {
        "type": "object",
        "properties": {"amount": {"type": "number"}},
        "required": ["amount"],
        "additionalProperties": False,
    }
    world.rows([{"id": f"r{i}", "text": f"Text number {i}."} for i in range(10)])
    for name, table in (("other", "others"), ("summaries", "answers")):
        job = world.job(name=name, sink={"table": table}, output={"schema": schema})
        world.run(job)
    differences = [1, 2, -1, 0.5, 3, 0, 1.5, -0.5, 2.5, 1]
    for table, values in (("others", [10.0] * 10), ("answers", [10 + d for d in differences])):
        rows = [{"id": f"r{i}", "amount": value} for i, value in enumerate(values)]
        change(world, "SET amount = :amount WHERE id = :id", rows, table=table)

    found = compared(world, job, "job:other", "current")

    mean = comparison_facts(found, None)["sides"][0]["columns"]["amount"]["mean_difference"]
    assert (mean["value"], mean["low"], mean["high"]) == pytest.approx((1.0, 0.076478, 1.923522), abs=5e-7)


def test_a_drop_is_allowed_only_if_a_larger_one_is_excluded(world: World) -> None:
    job = both(world, [*[("a", "a", "a")] * 100, ("a", "a", "b")])

    gold = compared(world, job, "job:other", "current").sides[0].gold

    assert gold is not None
    assert passes(gold, 0.05)
    assert not passes(gold, 0.01)


def test_the_guide_shows_what_trials_of_the_sample_tickets_give(world: World) -> None:
    root = Path(__file__).parents[2]
    job = load(root / "sample_data/jobs/classify_tickets.yaml", variables={}, today=date(2026, 11, 20))
    prompt = change_of(f"request.prompt=@{root}/sample_data/prompts/short.txt")
    trials = {"base": {}, "again": {}, "short": dict([prompt]), "sonnet": {"request.model": "claude-sonnet-5"}}
    for name, changes in trials.items():
        run_trial(job, Trial(name, changes), world.where())

    found = compare(world.database, world.known(job.name), job, list(trials))

    guide = (root / "docs/evaluate.md").read_text(encoding="utf-8")
    blocks = "\n".join(comparison_lines(found, None)).split("\n\n")
    assert "\n\n".join(blocks[:4]) + "\n```\n" in guide
    adopted = adoption(found, None)
    assert adopted is not None
    assert "```" + "\n".join(adoption_lines(adopted)) + "\n```\n" in guide


def test_what_cannot_be_compared_is_refused(world: World, tmp_path: Path) -> None:
    job = both(world, [("a", "a", None), ("a", "b", "a")])
    (tmp_path / "no.parquet").write_text("no")

    for side, message in (
        ("cheap", "unknown side 'cheap': write current, job:NAME, a .parquet file, or the name of a trial"),
        ("job:nobody", "knows no job 'nobody'"),
        ("missing.parquet", "missing.parquet does not exist"),
        (str(tmp_path / "no.parquet"), "cannot be read as a Parquet file"),
    ):
        with pytest.raises(InputError, match=message):
            compared(world, job, "current", side)
    change(world, "SET status = :status", [{"status": "expired"}], table="others")
    with pytest.raises(InputError, match="have no pair of answers in common"):
        compared(world, job, "job:other", "current")
