"""A trial asks some rows otherwise, keeps their answers apart, and leaves the job as it is."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from PIL import Image
from sqlalchemy import select, text

from pipeline.errors import InputError, Interrupted, JobError, PipelineError
from pipeline.job.model import Job
from pipeline.planning.selection import Selection
from pipeline.planning.trial import Trial, change
from pipeline.quality.compare import compare
from pipeline.quality.evaluate import evaluate
from pipeline.report.next_command import next_command
from pipeline.report.status import status_facts
from pipeline.runner.options import Finished, Options
from pipeline.runner.trial import run_trial
from pipeline.runner.verify import verify
from pipeline.source import identity
from pipeline.state import ends
from pipeline.state.jobs import all_jobs
from pipeline.state.tables import requests
from tests.conftest import World, texts

POSTGRESQL_IS_LONG = True

LABELS = ["garden", "house"]
TRIAL = "summaries:t"


def try_it(world: World, job: Job | None = None, name: str = "t", *, detach: bool = False, **asked: Any) -> Finished:
    """Do what `batch-pipeline trial` does."""
    finished = run_trial(job or world.job(), Trial(name, **asked), world.where(), Options(detach=detach))
    ends.note_told(world.database, finished.told, world.clock())
    return finished


def labelled(world: World, rows: int = 40, **changes: Any) -> Job:
    """Return a job with labels, over rows of which all but the last ten have gold."""
    world.rows(
        [
            {"id": f"r{i:02d}", "text": f"Text {i}.", "truth": LABELS[i % 2] if i < rows - 10 else ""}
            for i in range(rows)
        ]
    )
    return world.job(output={"labels": LABELS}, gold={"columns": {"label": "truth"}}, **changes)


def ranked(keys: list[str]) -> list[str]:
    return sorted(keys, key=lambda key: identity.key_rank(f'["{key}"]'))


def stored(world: World, query: str) -> list[tuple[Any, ...]]:
    with world.database.read() as conn:
        return [tuple(row) for row in conn.execute(text(query))]


# -- which rows are asked, and what stays as it is --------------------------------------------------------------------


def test_it_asks_the_rows_with_the_smallest_hash_of_the_key_before_the_first_run(world: World) -> None:
    world.rows(texts(40))
    every = ranked([f"r{i}" for i in range(40)])

    small = try_it(world, sample=10)
    large = try_it(world, name="larger", sample=20)

    assert (small.rows, large.rows) == ({"succeeded": 10}, {"succeeded": 20})
    assert sorted(world.answers(TRIAL)) == sorted(every[:10])
    assert sorted(world.answers("summaries:larger")) == sorted(every[:20])
    assert world.answers() == {}
    assert world.run(world.job()).rows == {"succeeded": 40}


def test_answers_and_rows_of_the_job_are_not_touched(world: World) -> None:
    world.rows(texts(20))
    world.run(world.job())
    known = select(requests).where(requests.c.job_id == world.known().id)
    with world.database.read() as conn:
        before, recipe = (conn.execute(known).all(), world.answers()), world.job().recipe

    try_it(world, changes={"request.prompt": "In one word: {{ text }}", "request.model": "claude-sonnet-4-6"})

    with world.database.read() as conn:
        assert (conn.execute(known).all(), world.answers()) == before
    assert {answer["recipe"] for answer in world.answers().values()} == {recipe}
    trial = world.answers(TRIAL)
    assert len(trial) == 20
    assert {answer["model"] for answer in trial.values()} == {"claude-sonnet-4-6"}
    assert {answer["trial"] for answer in trial.values()} == {"t"}
    assert all(answer["recipe"] != recipe for answer in trial.values())
    assert world.run(world.job()).rows == {}


def test_each_answer_has_the_row_hash_that_the_row_has_in_the_job(world: World) -> None:
    world.rows([{**row, "other": "x"} for row in texts(5)])
    world.run(world.job())
    with world.database.read() as conn:
        hashes = dict(conn.execute(select(requests.c.key, requests.c.row_hash)).tuples().all())

    try_it(world, changes={"request.prompt": "{{ other }} {{ text }}"})

    assert {f'["{key}"]': answer["row_hash"] for key, answer in world.answers(TRIAL).items()} == {
        key: row_hash.hex() for key, row_hash in hashes.items()
    }
    with world.database.read() as conn:
        own = dict(
            conn.execute(select(requests.c.key, requests.c.row_hash).where(requests.c.job_id == 2)).tuples().all()
        )
    assert set(own.values()).isdisjoint(hashes.values())


def test_only_rows_that_meet_the_predicate_or_have_gold_are_asked(world: World) -> None:
    job = labelled(world)

    try_it(world, job, gold_only=True, sample=500)
    try_it(world, job, name="some", where="id < 'r05'")

    assert sorted(world.answers(TRIAL)) == [f"r{i:02d}" for i in range(30)]
    assert sorted(world.answers("summaries:some")) == [f"r{i:02d}" for i in range(5)]


def test_it_adds_its_predicate_to_that_of_the_source(world: World) -> None:
    world.rows(texts(9))

    try_it(world, world.job(source={"where": "id <> 'r1' -- not this"}), where="id < 'r3' OR id = 'r8'")

    assert sorted(world.answers(TRIAL)) == ["r0", "r2", "r8"]


# -- the same command again ------------------------------------------------------------------------------------------


def test_the_same_command_continues_and_pays_nothing_twice(world: World) -> None:
    world.rows(texts(30))
    job = world.job(limits={"max_batch_requests": 4})
    first = try_it(world, job, detach=True, sample=20)

    again = try_it(world, job, sample=20)
    third = try_it(world, job, sample=20)

    assert (first.state, again.run_id, again.rows) == ("open", first.run_id, {"succeeded": 20})
    assert third.rows == {}
    assert (world.accepted(), world.sent_twice()) == (20, [])


def test_a_sweep_collects_a_detached_trial(world: World) -> None:
    world.rows(texts(10))
    try_it(world, detach=True)

    for _ in range(4):
        world.clock.advance(61)
        swept = world.sweep()

    assert (swept, len(world.answers(TRIAL))) == ([], 10)
    assert set(world.statuses(TRIAL).values()) == {"succeeded"}


def test_a_job_and_its_trials_run_at_the_same_time(world: World) -> None:
    world.rows(texts(12))
    begun: list[Finished] = []

    def begin(event: str, facts: dict[str, Any]) -> None:
        if event == "planned" and not begun:
            world.on_event = None
            begun.extend([try_it(world), try_it(world, name="u")])

    world.on_event = begin
    whole = world.run(world.job())

    assert [each.rows for each in (whole, *begun)] == [{"succeeded": 12}] * 3
    assert world.accepted() == 36


def test_two_drivers_share_a_trial(world: World) -> None:
    world.rows(texts(12))
    job, beside = world.job(limits={"max_batch_requests": 3}), list[Finished]()

    def begin(event: str, facts: dict[str, Any]) -> None:
        if event == "submitted":
            world.on_event = None
            beside.append(try_it(world, job))

    world.on_event = begin
    first = try_it(world, job)

    assert [each.state for each in (first, *beside)] == ["finished", "finished"]
    assert (world.accepted(), world.sent_twice(), len(world.answers(TRIAL))) == (12, [], 12)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"sample": 5}, r"another --sample \(400\)"),
        ({"where": "id > 'r1'"}, r"another --where \(not given\)"),
        ({"changes": {"request.max_tokens": 7}}, r"another --set \(not given\)"),
        ({"gold_only": True}, "another --gold-only"),
    ],
)
def test_the_same_name_with_other_settings_is_refused(world: World, other: dict[str, Any], said: str) -> None:
    job = labelled(world)
    try_it(world, job)

    with pytest.raises(InputError, match=f"--name t: this trial of job summaries was begun with {said}"):
        try_it(world, job, **other)

    assert world.accepted() == 40


def test_a_trial_of_a_request_that_has_changed_since_is_refused(world: World) -> None:
    try_it(world)

    with pytest.raises(InputError, match="was begun before the job's request or output was changed"):
        try_it(world, world.job(request={"prompt": "Other: {{ text }}"}))


def test_a_row_that_changed_is_asked_again(world: World) -> None:
    world.rows(texts(5))
    try_it(world)
    world.rows([{"id": "r0", "text": "Quite another text."}, *texts(5)[1:]])

    again = try_it(world)

    assert again.rows == {"succeeded": 1}
    assert world.accepted() == 6


def test_the_status_of_a_job_names_its_newest_trials_and_those_at_work(world: World) -> None:
    world.rows(texts(2))
    try_it(world, name="first", detach=True)
    for i in range(11):
        try_it(world, name=f"n{i}", detach=i == 10)

    with world.database.read() as conn:
        facts = status_facts(conn, world.known(), world.clock())
        of_trial = status_facts(conn, world.known("summaries:n0"), world.clock())

    assert [(trial["name"], trial["open"]) for trial in facts["trials"]] == [
        ("first", True),
        *((f"n{i}", i == 10) for i in range(1, 11)),
    ]
    assert next_command(facts, "job.yaml") == ["collect", "job.yaml"]
    assert (of_trial["trial"]["name"], of_trial["trials"]) == ("n0", [])


def test_a_trial_whose_planning_has_not_ended_is_continued_by_its_own_command(world: World) -> None:
    world.rows(texts(9))
    job, asked = world.job(limits={"max_batch_requests": 2}), {"request.prompt": "Say: {{ text }}"}
    where = world.where()
    world.stop_at(where, "planned")
    with pytest.raises(Interrupted):
        run_trial(job, Trial("t", asked, sample=8, where="id <> 'x'"), where)
    world.on_event = None

    with world.database.read() as conn:
        facts = status_facts(conn, world.known(TRIAL), world.clock())
    words = ["trial", "job.yaml", "--name", "t", "--set", 'request.prompt="Say: {{ text }}"', "--sample", "8"]
    assert next_command(facts, "job.yaml:t") == [*words, "--where", "id <> 'x'"]
    assert change(words[5]) == ("request.prompt", "Say: {{ text }}")
    assert try_it(world, job, changes=asked, sample=8, where="id <> 'x'").rows == {"succeeded": 8}
    assert (world.accepted(), world.sent_twice()) == (8, [])


# -- money -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "own", "budget"), [(5.0, None, 0.5), (5.0, 2.0, 2.0), (None, 2.0, 2.0), (None, None, None)]
)
def test_its_budget_is_a_tenth_of_the_jobs(limit: float | None, own: float | None, budget: float | None) -> None:
    sections = {
        "name": "a",
        "source": {"path": "a.csv", "key": "id"},
        "request": {"model": "claude-haiku-4-5", "max_tokens": 9, "prompt": "x"},
        "sink": {"table": "a"},
    }
    job = Job.model_validate({**sections, "limits": {"max_cost_usd": limit}})

    assert Trial("t", max_cost_usd=own).asked(job).limits.max_cost_usd == budget


def test_a_trial_whose_budget_is_used_up_stops_and_goes_on_with_a_higher_one(world: World) -> None:
    world.rows(texts(8))
    job = world.job(limits={"max_batch_requests": 2, "max_cost_usd": 0.006})

    stopped = try_it(world, job)
    finished = try_it(world, job, max_cost_usd=1.0)

    assert (stopped.state, stopped.reason, stopped.exit_code) == ("incomplete", "budget", 3)
    assert (finished.run_id, finished.rows) == (stopped.run_id, {"succeeded": 8})
    assert world.accepted() == 8


def test_it_counts_in_the_month(world: World) -> None:
    world.rows(texts(8))
    world.with_settings(monthly_budget=1.0)
    spent = try_it(world).cost_usd
    world.with_settings(monthly_budget=spent)

    assert world.run(world.job()).reason == "budget"


# -- what a trial may change -----------------------------------------------------------------------------------------


def test_a_value_is_yaml_or_the_text_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Sort: {{ text }}\n- [x]: yes\n")

    assert change("request.max_tokens=30") == ("request.max_tokens", 30)
    assert change("request.params.stop_sequences=[a, b]") == ("request.params.stop_sequences", ["a", "b"])
    assert change(f"request.prompt=@{tmp_path}/prompt.txt") == ("request.prompt", "Sort: {{ text }}\n- [x]: yes\n")


@pytest.mark.parametrize("pair", ["output.labels=[a, b]", "request=x", "request.modle=x", "model=x", "request.model"])
def test_only_fields_of_the_request_are_changed(pair: str) -> None:
    with pytest.raises(InputError, match=r"write FIELD=VALUE, where FIELD is one of request.model, "):
        change(pair)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"=@missing\.txt: missing.txt cannot be read as UTF-8 text"):
        change("request.prompt=@missing.txt")


def test_vars_are_filled_in_as_in_the_job_file(world: World) -> None:
    asked = Trial("t", {"request.system": "Be {{ vars.tone }}."}).asked(world.job(vars={"tone": "calm"}))

    assert asked.request.system == "Be calm."


@pytest.mark.parametrize("prompt", ["{{ truth }}", "{{ row }}", '{{ row["truth"] }}'])
def test_the_model_never_sees_gold(world: World, prompt: str) -> None:
    job = labelled(world)

    with pytest.raises(InputError, match=r"--set: .*(the model would see the right answer|use[s]? row as a whole)"):
        try_it(world, job, changes={"request.prompt": prompt})

    assert world.accepted() == 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"gold_only": True}, "--gold-only: the job has no gold"),
        ({"where": "id = 'nobody'"}, "the source has no row that meets --where"),
        ({"where": "id ="}, "--where 'id =': .* is not a SQL predicate"),
        ({"changes": {"request.max_tokens": 0}}, "--set request.max_tokens"),
        ({"max_cost_usd": 0.0}, r"--max-cost-usd 0\.0: a budget is an amount of dollars above 0"),
        ({"name": "current"}, "--name current: a trial has a name"),
        ({"name": "a b"}, "--name a b: a trial has a name"),
        ({"name": "old.parquet"}, "--name old.parquet: a trial has a name"),
    ],
)
def test_bad_input_writes_nothing(world: World, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        try_it(world, **asked)

    assert world.accepted() == 0
    with world.database.read() as conn:
        assert all_jobs(conn) == []


@pytest.mark.parametrize(
    "sections", [{"source": {"keep": {"text": "trial"}}}, {"source": {"keep": {"text": "row_hash"}}}]
)
def test_columns_of_the_table_of_trials_are_no_columns_of_the_job(world: World, sections: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="clashes with a column of the table of trials, so this job can have no trial"):
        try_it(world, world.job(**sections))


def test_another_jobs_table_is_not_taken(world: World) -> None:
    world.run(world.job(name="other", sink={"table": "answers_trials"}))

    with pytest.raises(PipelineError, match="'answers_trials' belongs to job other"):
        try_it(world)


# -- every kind of source ---------------------------------------------------------------------------------------------


def test_rows_with_late_fields_attachments_and_keys_of_several_columns_are_asked(world: World, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [{"team": "a", "id": i, "text": f"Text {i}.", "photo": "a.png"} for i in range(6)]
    lines = [orjson.dumps(row | ({"late": "yes"} if row["id"] == 5 else {})) for row in rows]
    (tmp_path / "rows.ndjson").write_bytes(b"\n".join(lines))
    job = world.job(
        source={"path": str(tmp_path / "rows.ndjson"), "key": ["team", "id"], "keep": ["photo"]},
        request={"prompt": "{{ row }}", "attachments": [{"image": "photo"}]},
    )
    world.run(job)

    tried = try_it(world, job, sample=4)

    assert tried.rows == {"succeeded": 4}
    [side] = compare(world.database, world.known(), job, ["current", "t"]).sides
    assert (side.tally.pairs, side.tally.changed, side.tally.alone) == (4, 0, 2)


def test_rows_of_a_trial_share_requests_and_copy_answers_among_themselves_only(world: World) -> None:
    world.rows([{"id": f"r{i}", "text": f"Text {i % 3}."} for i in range(12)])
    job = world.job(limits={"max_batch_requests": 2})

    for name in ("t", "u"):
        assert try_it(world, job, name=name).rows == {"succeeded": 12}

    assert world.accepted() == 6
    for name in ("t", "u"):
        answers = world.answers(f"summaries:{name}")
        assert {answer["trial"] for answer in answers.values()} == {name}
        assert len({(answer["message_id"], answer["text"]) for answer in answers.values()}) == 3


def test_failed_rows_are_retried_with_the_trials_of_the_same_table_beside_them(world: World) -> None:
    world.rows(texts(4))
    try_it(world)
    world.emulator.add_fault(on="item", do="error", error_type="invalid_request_error", times=2)
    failed = try_it(world, name="u")

    again = run_trial(world.job(), Trial("u"), world.where(), Options(retry=Selection(statuses=("errored",))))

    assert (failed.exit_code, again.rows) == (1, {"succeeded": 2})
    assert set(world.statuses("summaries:u").values()) == {"succeeded"}
    assert verify(world.database, world.known("summaries:u")).holds
    assert verify(world.database, world.known(TRIAL)).holds
    assert world.accepted() == 10


# -- its answers are evaluated and compared --------------------------------------------------------------------------


def test_its_answers_are_evaluated_by_gold_before_the_first_run(world: World) -> None:
    job = labelled(world)
    world.emulator.add_fault(on="item", do="other_label", share=0.3, seed=1)
    try_it(world, job)

    found = evaluate(world.database, world.known(), job, side="t")

    truth = stored(world, "SELECT id, label FROM answers_gold ORDER BY id")
    answers = {key: answer["label"] for key, answer in world.answers(TRIAL).items()}
    assert (found.gold_rows, found.figures.accuracy.rows, len(truth)) == (30, 30, 30)
    assert found.figures.accuracy.right == sum(answers[key] == label for key, label in truth)


def test_rows_that_changed_since_are_no_pairs(world: World) -> None:
    world.rows([{**row, "other": "x"} for row in texts(10)])
    job = world.job()
    try_it(world, job, changes={"request.prompt": "{{ other }}"})
    try_it(world, job, name="same")
    world.rows(
        [{**row, "other": "y"} if i else {"id": "r0", "text": "New.", "other": "x"} for i, row in enumerate(texts(10))]
    )
    world.run(job)

    by_trial = compare(world.database, world.known(), job, ["current", "t", "same"])
    between = compare(world.database, world.known(), job, ["t", "same"])

    assert [(side.tally.pairs, side.tally.changed, side.checked) for side in by_trial.sides] == [(9, 1, True)] * 2
    assert (between.sides[0].tally.pairs, between.sides[0].tally.changed) == (10, 0)
    try_it(world, job, name="same")
    [again] = compare(world.database, world.known(), job, ["t", "same"]).sides
    assert (again.tally.pairs, again.tally.changed) == (9, 1)


def test_a_row_that_only_the_job_would_ask_anew_is_a_pair_after_the_next_trial(world: World) -> None:
    world.rows([{**row, "other": "x"} for row in texts(4)])
    job = world.job()
    try_it(world, job, changes={"request.prompt": "{{ other }} {{ id }}"})
    world.rows([{"id": "r0", "text": "New.", "other": "x"}, *({**row, "other": "x"} for row in texts(4)[1:])])
    world.run(job)
    before = compare(world.database, world.known(), job, ["current", "t"]).sides[0].tally

    try_it(world, job, changes={"request.prompt": "{{ other }} {{ id }}"})
    after = compare(world.database, world.known(), job, ["current", "t"]).sides[0].tally

    assert (before.pairs, before.changed) == (3, 1)
    assert (after.pairs, after.changed) == (4, 0)
    assert world.accepted() == 8


def test_answers_of_trials_get_new_columns_together(world: World) -> None:
    world.rows([{**row, "day": "1"} for row in texts(4)])
    try_it(world)

    try_it(world, world.job(source={"keep": ["day"]}), name="u")
    try_it(world)

    assert {answer["day"] for answer in world.answers("summaries:u").values()} == {"1"}
    assert len(world.answers(TRIAL)) == 4
