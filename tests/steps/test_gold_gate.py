"""The canary of a job with `canary.min_accuracy` is rows with gold, and their accuracy decides what is sent."""

import random
from typing import Any

import pytest
from sqlalchemy import select

from pipeline.errors import InputError, Interrupted, JobError
from pipeline.job.model import Job
from pipeline.planning import gold_canary
from pipeline.source import identity
from pipeline.state.tables import batches
from tests.conftest import World, event_line
from tests.quality.test_review_gold import SAMPLE, said

POSTGRESQL_IS_LONG = True

LABELS = ["billing", "outage", "how_to", "bug"]
RECIPE: dict[str, Any] = {"output": {"labels": LABELS}}
CANARY = {"rows": 40, "min_accuracy": 0.85}


def job(world: World, rows: int = 100, gold: int = 60, wrong: int = 0, **changes: Any) -> Job:
    """Return a job over rows of which some, anywhere in the source, have gold; `wrong` of the first ones is not what
    the emulator answers."""
    plain: list[dict[str, object]] = [{"id": f"r{i:03d}", "text": f"Text number {i}."} for i in range(rows)]
    world.rows(plain)
    world.run(world.job(name="truth", sink={"table": "truth"}, canary=False, **RECIPE))
    truth = world.answers("truth")
    having = sorted(random.Random(1).sample(range(rows), gold))
    for n, i in enumerate(having):
        right = truth[f"r{i:03d}"]["label"]
        plain[i]["truth"] = right if n >= wrong else LABELS[(LABELS.index(right) + 1) % len(LABELS)]
    world.rows([{"truth": "", **row} for row in plain])
    world.events.clear()
    return gated(world, **changes)


def gated(world: World, canary: Any = CANARY, **changes: Any) -> Job:
    return world.job(canary=canary, gold={"columns": {"label": "truth"}}, **{**RECIPE, **changes})


def sizes(world: World) -> list[int]:
    return [facts["requests"] for facts in world.told("submitted")]


def canary_of(world: World) -> list[str]:
    """The keys of the rows in the batch that opens the gate."""
    with world.database.read() as conn:
        ids = set(conn.scalars(select(batches.c.api_id).where(batches.c.gate.is_not(None))))
    return [key for key, answer in world.answers().items() if answer["batch_id"] in ids]


def lines(world: World, event: str) -> list[str]:
    return [event_line(event, facts) for facts in world.told(event)]


def test_rows_with_gold_go_first_however_small_the_run_is(world: World) -> None:
    work = job(world)

    finished = world.run(work)

    assert (finished.state, finished.rows) == ("finished", {"succeeded": 100})
    assert sizes(world) == [40, 60]
    assert lines(world, "gate_opened") == [
        "canary passed: 40 of 40 rows succeeded, 40 of 40 are right, the other rows are sent now"
    ]
    assert canary_of(world) == gold_rows(world)[:40]
    assert world.run(work).rows == {}
    assert world.accepted() == 100 + 100  # with those that tell the truth


def test_nothing_more_is_sent_when_too_few_answers_are_right(world: World) -> None:
    stopped = world.run(job(world, wrong=5))

    assert (stopped.state, stopped.reason, stopped.exit_code) == ("incomplete", "canary", 3)
    assert sizes(world) == [40]
    assert set(world.batch_states()[-2:]) == {"collected", "dropped"}
    [said] = lines(world, "canary_missed")
    assert said.startswith(
        "canary: 35 of 40 right (87.5%), canary.min_accuracy is 85.0%: only 76.5% is shown; 38 would open it; "
        "most confused: "
    )
    assert "; this is try" not in said


def test_a_judge_by_point_opens_where_the_bound_does_not(world: World) -> None:
    finished = world.run(job(world, wrong=5, canary={**CANARY, "judge": "point"}))

    assert finished.state == "finished"


def test_the_next_command_judges_the_next_rows_and_says_which_try_it_is(world: World) -> None:
    work = job(world, rows=200, gold=120, wrong=50)
    world.run(work)

    again = world.run(work)

    assert (again.reason, sizes(world)) == ("canary", [40, 40])
    assert lines(world, "canary_missed")[1].endswith("; this is try 2")


def test_a_recipe_whose_canary_did_not_pass_is_refused_when_no_other_row_has_gold(world: World) -> None:
    work = job(world, gold=40, wrong=10)
    world.run(work)

    with pytest.raises(InputError, match="the canary of this recipe did not pass, and no other row with gold"):
        world.run(work)
    finished = world.run(work, canary=False)

    assert finished.state == "finished"
    assert sizes(world) == [40, 60]


def test_rows_that_a_sample_chooses_are_those_with_the_smallest_hash_of_the_key(world: World) -> None:
    work = job(world, canary={**CANARY, "sample": True})

    world.run(work)

    chosen = canary_of(world)
    assert len(chosen) == 40
    every = sorted(gold_rows(world), key=lambda key: identity.key_rank(f'["{key}"]'))
    assert sorted(every[:40]) == sorted(chosen)


def gold_rows(world: World) -> list[str]:
    with (world.folder / "rows.csv").open() as file:
        header = file.readline().strip().split(",")
        rows = [dict(zip(header, line.rstrip("\r\n").split(","), strict=True)) for line in file]
    return [row["id"] for row in rows if row["truth"]]


def test_without_gold_among_its_rows_a_canary_is_judged_by_its_failures(world: World) -> None:
    work = job(world, rows=500, gold=0, canary={**CANARY, "rows": 20})

    finished = world.run(work)

    assert finished.state == "finished"
    assert sizes(world) == [20, 480]
    assert lines(world, "warning") == [
        "warning  canary.min_accuracy was not looked at: no answer of the canary has gold"
    ]


def test_a_small_run_without_gold_says_that_nothing_is_judged(world: World) -> None:
    finished = world.run(job(world, gold=0))

    assert (finished.state, sizes(world)) == ("finished", [100])
    assert lines(world, "warning") == ["warning  canary.min_accuracy is not looked at: no row with gold is to be sent"]


def test_answers_that_expired_are_neither_right_nor_wrong(world: World) -> None:
    work = job(world, canary={**CANARY, "max_failed": 0.5}, retry={"max_attempts": 1})
    world.emulator.add_fault(on="item", do="expire", times=10)

    world.run(work)

    [opened] = world.told("gate_opened")
    assert (opened["failed"], opened["right"], opened["judged"]) == (10, 30, 30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gold": None}, "canary.min_accuracy: the job has no gold"),
        ({"canary": {"rows": 15, "min_accuracy": 0.85}}, "canary.rows: 15 rows can never show 85.0%.* 16 is the least"),
        (
            {"gold": {"columns": {"label": "truth"}, "random": False}},
            "canary.min_accuracy: the rows with gold were chosen",
        ),
    ],
    ids=["no gold", "too few rows", "chosen rows"],
)
def test_a_gate_that_could_never_be_judged_is_refused(world: World, changes: dict[str, Any], message: str) -> None:
    world.rows([{"id": "r0", "text": "Text.", "truth": "bug"}])
    work = world.job(**{**RECIPE, "canary": CANARY, "gold": {"columns": {"label": "truth"}}, **changes})

    with pytest.raises(JobError, match=message):
        world.run(work)

    assert world.accepted() == 0


def test_fewer_rows_with_gold_than_could_ever_pass_are_refused(world: World) -> None:
    work = job(world, gold=15)

    with pytest.raises(InputError, match="15 rows with gold are to be sent, and fewer than 16 can"):
        world.run(work)

    assert sizes(world) == []


# -- crashes ---------------------------------------------------------------------------------------------------------


def test_a_driver_that_dies_before_the_canary_is_planned_leaves_the_choice_to_the_next_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = job(world, wrong=10)

    def dead(*_: Any) -> Any:
        raise Interrupted("dead")

    with monkeypatch.context() as broken:
        broken.setattr(gold_canary, "pack", dead)
        with pytest.raises(Interrupted):
            world.run(work)

    stopped = world.run(work)

    assert (stopped.reason, sizes(world)) == ("canary", [40])


def test_a_driver_that_dies_after_the_canary_is_planned_keeps_it(world: World) -> None:
    work = job(world, wrong=10)
    world.dies_at(work, "planned")
    world.events.clear()

    stopped = world.run(work)

    assert (stopped.reason, sizes(world)) == ("canary", [40])
    assert world.accepted() == 100 + 40  # with those that tell the truth


def test_a_sweep_judges_the_canary_of_a_driver_that_is_gone(world: World) -> None:
    world.run(job(world, wrong=10), detach=True)

    for _ in range(4):
        world.clock.advance(61)
        world.sweep()

    assert len(world.told("canary_missed")) == 1
    assert sizes(world) == [40]


def test_two_drivers_at_the_gate_judge_it_once(world: World) -> None:
    finished = world.run_beside(job(world), "collected")

    assert [each.state for each in finished] == ["finished", "finished"]
    assert len(world.told("gate_opened")) == 1
    assert world.accepted() == 100 + 100  # with those that tell the truth


# -- gold by reviews -------------------------------------------------------------------------------------------------

OTHER = {"prompt": "Say what it is about, in one word: {{ text }}"}


def reviewed(world: World, rows: int = 60, wrong: int = 0, *, first: int = 0, **others: Any) -> Job:
    """Return a job with another prompt than the one whose answers were reviewed.

    The first `wrong` reviews say another label than the emulator answers to the new prompt.
    """
    world.rows([{"id": f"r{i:03d}", "text": f"Text number {i}."} for i in range(100)])
    world.run(world.job(name="truth", sink={"table": "truth"}, canary=False, request=asked(world), **RECIPE))
    truth = {key: answer["label"] for key, answer in world.answers("truth").items()}
    world.run(world.job(canary=False, **RECIPE))
    given = []
    for n, key in enumerate(sorted(truth)[first : first + rows]):
        right = truth[key] if n >= wrong else LABELS[(LABELS.index(truth[key]) + 1) % len(LABELS)]
        said_of = "right" if right == world.answers()[key]["label"] else "wrong"
        given.append({"key": key, "verdict": said_of, "new": None if said_of == "right" else right, **SAMPLE, **others})
    said(world, *given)
    world.events.clear()
    return world.job(canary=CANARY, gold="reviews", request=asked(world), **RECIPE)


def asked(world: World) -> dict[str, Any]:
    """Return the request of the usual job with the prompt of OTHER."""
    return {**world.job().request.model_dump(mode="json", exclude_unset=True), **OTHER}


def test_reviewed_rows_go_first_when_a_new_recipe_asks_them_again(world: World) -> None:
    work = reviewed(world)
    before = world.accepted()

    finished = world.run(work, refresh=True)

    assert (finished.state, finished.rows) == ("finished", {"succeeded": 100})
    assert sizes(world) == [40, 60]
    assert sorted(canary_of(world)) == [f"r{i:03d}" for i in range(40)]
    assert lines(world, "gate_opened") == [
        "canary passed: 40 of 40 rows succeeded, 40 of 40 are right, the other rows are sent now"
    ]
    assert world.accepted() == before + 100


def test_what_people_corrected_stops_a_recipe_that_does_not_answer_it(world: World) -> None:
    work = reviewed(world, wrong=5)

    stopped = world.run(work, refresh=True)

    assert (stopped.state, stopped.reason, sizes(world)) == ("incomplete", "canary", [40])
    [said_of] = lines(world, "canary_missed")
    assert said_of.startswith("canary: 35 of 40 right (87.5%), canary.min_accuracy is 85.0%: only 76.5% is shown")


def test_a_reviewed_row_whose_values_have_changed_is_no_row_with_gold(world: World) -> None:
    work = reviewed(world)
    world.rows([{"id": f"r{i:03d}", "text": f"{'Another text' if i < 10 else 'Text number'} {i}."} for i in range(100)])

    world.run(work, refresh=True)

    assert sorted(canary_of(world)) == [f"r{i:03d}" for i in range(10, 50)]


def test_a_job_without_reviews_says_that_nothing_is_judged(world: World) -> None:
    world.rows([{"id": f"r{i:03d}", "text": f"Text number {i}."} for i in range(100)])

    finished = world.run(world.job(canary=CANARY, gold="reviews", **RECIPE))

    assert finished.state == "finished"
    assert lines(world, "warning") == ["warning  canary.min_accuracy is not looked at: no row with gold is to be sent"]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"drawn": "where", "weight": None}, "the reviewed rows are no plain random sample of all answers"),
        (
            {"verdict": "wrong", "new": None},
            "of 60 of 60 rows of the reviewed sample it is not known which other",
        ),
    ],
)
def test_reviews_that_cannot_judge_other_answers_are_refused(
    world: World, others: dict[str, Any], message: str
) -> None:
    work = reviewed(world, **others)
    before = world.accepted()

    with pytest.raises(InputError, match=f"canary.min_accuracy: {message}"):
        world.run(work, refresh=True)

    assert world.accepted() == before
    assert world.run(work, refresh=True, canary=False).rows == {"succeeded": 100}


def test_reviews_that_cannot_judge_are_not_looked_at_when_nothing_is_sent(world: World) -> None:
    work = reviewed(world, verdict="wrong", new=None)

    assert world.run(work).rows == {}
    assert sizes(world) == []


def test_a_sweep_judges_a_canary_of_reviewed_rows(world: World) -> None:
    world.run(reviewed(world, wrong=10), refresh=True, detach=True)

    for _ in range(4):
        world.clock.advance(61)
        world.sweep()

    assert len(world.told("canary_missed")) == 1
    assert sizes(world) == [40]


def test_a_canary_without_reviewed_rows_is_not_judged_by_reviews_of_other_values(world: World) -> None:
    work = reviewed(world, rows=40, wrong=40, row_hash="of other values")
    world.rows([{"id": f"r{i:03d}", "text": f"Quite another text {i}."} for i in range(500)])

    finished = world.run(world.job(canary=CANARY, gold="reviews", request=work.request, **RECIPE))

    assert (finished.state, sizes(world)) == ("finished", [40, 460])
    assert lines(world, "warning") == [
        "warning  canary.min_accuracy was not looked at: no answer of the canary has gold"
    ]
