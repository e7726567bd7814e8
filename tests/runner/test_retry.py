"""A retry sends the selected rows again, with its changes, and leaves all other rows alone."""

import contextlib
import datetime
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson
import polars as pl
import pytest
from sqlalchemy import Connection, select, update

from pipeline.errors import InputError, Interrupted, Stopped
from pipeline.job.model import Job
from pipeline.planning.packer import Packer, Sendable
from pipeline.planning.selection import Selection, change, changed, left_out
from pipeline.planning.verdict import Verdict
from pipeline.report.next_command import next_command
from pipeline.report.status import status_facts
from pipeline.runner.options import Options
from pipeline.runner.run import run
from pipeline.runner.sweep import sweep
from pipeline.sink.table import ResultsTable
from pipeline.state.jobs import job_named
from pipeline.state.tables import batches, jobs, requests, runs
from pipeline.steps.cancel import cancel as cancel_job
from tests.conftest import World, event_line, said_of, texts

POSTGRESQL_IS_LONG = True

TIMES = pl.Series([f"2026-11-0{day}T01:30:00.000005" for day in (1, 2, 3)]).str.to_datetime()


def asked(world: World, job: str = "summaries") -> list[dict[str, Any]]:
    """Return the params of each request sent, in the order of the batches. The job must keep its spool."""
    with world.database.read() as conn:
        sent = (jobs.c.name == job, batches.c.account_id.is_not(None))
        query = select(batches.c.nonce).join(jobs, jobs.c.id == batches.c.job_id).where(*sent)
        nonces = list(conn.scalars(query.order_by(batches.c.id)))
    bodies = [orjson.loads((world.folder / "spool" / job / f"{nonce}.json").read_bytes()) for nonce in nonces]
    return [request["params"] for body in bodies for request in body["requests"]]


def kept(world: World, **changes: Any) -> Job:
    """Return the world's job with a spool that is kept, so that a test can read the bodies."""
    return world.job(privacy={"keep_spool": True}, **changes)


def fail(world: World, row: str, do: str, **fault: Any) -> None:
    """Let the first request for this row (`number 1`) fail."""
    world.emulator.add_fault(on="item", do=do, match=f"number {row} is", times=1, **fault)


def run_states(world: World) -> list[tuple[str, str | None]]:
    with world.database.read() as conn:
        return [(row.state, row.reason) for row in conn.execute(select(runs).order_by(runs.c.id))]


def test_a_retry_sends_failed_rows_unchanged_and_leaves_the_others_alone(world: World) -> None:
    fail(world, "1", "refuse")
    fail(world, "3", "error", error_type="invalid_request_error")
    world.run(world.job())

    retried = world.run(world.job(), retry=Selection())

    assert (retried.state, retried.exit_code, retried.rows) == ("finished", 0, {"succeeded": 2})
    assert retried.quote.to_send == 2
    assert world.accepted() == 7
    assert set(world.statuses().values()) == {"succeeded"}
    assert world.answers()["r1"]["run_id"] == retried.run_id
    assert world.answers()["r0"]["run_id"] != retried.run_id


def test_a_change_of_a_retry_does_not_make_rows_count_as_changed_later(world: World) -> None:
    job = kept(world)
    fail(world, "1", "max_tokens")
    world.run(job)

    retried = world.run(job, retry=Selection(statuses=("truncated",), changes={"request.max_tokens": 2000}))
    again = world.run(job)

    assert retried.rows == {"succeeded": 1}
    assert [params["max_tokens"] for params in asked(world)] == [100] * 5 + [2000]
    assert again.rows == {}
    assert world.accepted() == 6
    assert world.answers()["r1"]["recipe"] == world.answers()["r0"]["recipe"] == job.recipe


def test_another_model_answers_only_the_row_of_the_retry(world: World) -> None:
    fail(world, "1", "refuse")
    world.run(world.job())

    world.run(world.job(), retry=Selection(statuses=("refused",), changes={"request.model": "claude-sonnet-5"}))

    models = {key: answer["model"] for key, answer in world.answers().items()}
    assert models["r1"].startswith("claude-sonnet-5")
    assert models["r0"].startswith("claude-haiku-4-5")


def test_the_quote_of_a_retry_covers_only_its_rows_with_its_changes(world: World) -> None:
    fail(world, "1", "max_tokens")
    world.run(world.job())
    plain = world.run(world.job(), retry=Selection(), dry_run=True).quote

    changed = world.run(world.job(), retry=Selection(changes={"request.max_tokens": 1000}), dry_run=True).quote

    assert (plain.to_send, changed.to_send, plain.total) == (1, 1, 5)
    longer = 900 * 2.5 / 1e6  # tokens that its answer may have more, at the price of claude-haiku-4-5 in a batch
    assert said_of(changed).worst - said_of(plain).worst == pytest.approx(longer, rel=0.02)


def test_a_row_that_was_never_run_is_not_sent_by_a_retry(world: World) -> None:
    never = world.run(world.job(), retry=Selection())
    world.run(world.job(), limit=2)

    retried = world.run(world.job(), retry=Selection(statuses=("succeeded",)))

    assert (never.quote.to_send, never.rows) == (0, {})
    assert (retried.quote.to_send, retried.rows) == (2, {"succeeded": 2})
    assert world.accepted() == 4
    assert set(world.states()) == {"r0", "r1"}


@pytest.mark.parametrize(
    ("do", "status"),
    [("cancel", "canceled"), ("succeed", "succeeded")],
    ids=["a canceled row", "a row that succeeded"],
)
def test_succeeded_and_canceled_rows_are_retried_only_when_their_status_is_named(
    world: World, do: str, status: str
) -> None:
    if do == "cancel":
        fail(world, "1", "cancel")
    world.run(world.job())

    unnamed = world.run(world.job(), retry=Selection(keys=("r1",)))
    named = world.run(world.job(), retry=Selection(keys=("r1",), statuses=(status,)))

    assert (unnamed.quote.to_send, unnamed.rows) == (0, {})
    assert named.rows == {"succeeded": 1}
    assert world.accepted() == 6


def test_lost_rows_are_retried_only_when_their_status_is_named(world: World) -> None:
    world.emulator.add_fault(on="results", do="missing_lines", match="number 1 is")
    world.run(world.job())
    lost = [key for key, status in world.statuses().items() if status == "lost"]
    world.emulator.clear_faults()

    unnamed = world.run(world.job(), retry=Selection())
    named = world.run(world.job(), retry=Selection(statuses=("lost",)))

    assert lost
    assert unnamed.rows == {}
    assert named.rows == {"succeeded": len(lost)}
    assert set(world.statuses().values()) == {"succeeded"}


@pytest.mark.parametrize(
    ("retry", "goes"),
    [
        pytest.param(Selection(error_types=("refusal",)), {"r1"}, id="an error type"),
        pytest.param(Selection(error_types=("refusal", "max_tokens")), {"r1", "r2"}, id="two error types"),
        pytest.param(Selection(error_types=("invalid",)), set(), id="the error type of rows that cannot be sent"),
        pytest.param(Selection(statuses=("truncated", "errored")), {"r2", "r3"}, id="two statuses"),
        pytest.param(Selection(keys=("r1", '["r3"]', "r4", "r9")), {"r1", "r3"}, id="keys"),
        pytest.param(Selection(where="stop_reason = 'max_tokens' and output_tokens > 0"), {"r2"}, id="a predicate"),
        pytest.param(
            Selection(where="id like '%1' -- the first"), {"r1"}, id="a predicate with a percent and a comment"
        ),
        pytest.param(Selection(where="error_message = 'a: b' or id = 'r3'"), {"r3"}, id="a predicate with a colon"),
        pytest.param(
            Selection(statuses=("refused",), where="id = 'r2'"), set(), id="conditions that exclude each other"
        ),
    ],
)
def test_a_retry_sends_the_rows_that_its_conditions_select(world: World, retry: Selection, goes: set[str]) -> None:
    fail(world, "1", "refuse")
    fail(world, "2", "max_tokens")
    fail(world, "3", "error", error_type="invalid_request_error")
    first = world.run(world.job())

    retried = world.run(world.job(), retry=retry)

    assert retried.quote.to_send == len(goes)
    assert {key for key, answer in world.answers().items() if answer["run_id"] != first.run_id} == goes


def test_invalid_rows_can_be_selected_by_their_reason(world: World) -> None:
    world.rows([*texts(2), {"id": "empty", "text": ""}])
    world.run(world.job(request={"prompt": "{{ text }}"}))
    world.rows([*texts(2), {"id": "empty", "text": "no longer"}])

    retried = world.run(world.job(request={"prompt": "{{ text }}"}), retry=Selection(error_types=("invalid",)))

    assert retried.rows == {"succeeded": 1}
    assert world.accepted() == 3


def test_a_retried_row_that_still_cannot_be_sent_is_invalid_again(world: World) -> None:
    job = world.job(request={"prompt": "{{ text }}"})
    world.rows([*texts(2), {"id": "empty", "text": ""}])
    world.run(job)

    retried = world.run(job, retry=Selection())

    assert (retried.rows, retried.exit_code) == ({"invalid": 1}, 1)
    assert world.accepted() == 2


def test_a_retried_row_is_sent_with_its_current_source_values(world: World) -> None:
    fail(world, "1", "refuse")
    world.run(world.job())
    rows = texts(5)
    rows[1]["text"] = "Something else altogether."
    world.rows(rows)

    world.run(world.job(), retry=Selection())
    again = world.run(world.job())

    assert "Something else" in world.answers()["r1"]["text"]
    assert again.rows == {}


def test_rows_that_left_the_source_keep_their_answers(world: World) -> None:
    fail(world, "1", "refuse")
    fail(world, "2", "refuse")
    world.run(world.job())
    world.rows([row for row in texts(5) if row["id"] != "r1"])

    retried = world.run(world.job(), retry=Selection())

    assert retried.rows == {"succeeded": 1}
    assert world.statuses()["r1"] == "refused"


def test_a_retry_counts_attempts_from_the_start(world: World) -> None:
    world.emulator.add_fault(on="item", do="expire", match="number 1 is", times=3)
    job = world.job(retry={"max_attempts": 2})
    world.run(job)
    used_up = world.answers()["r1"]

    retried = world.run(job, retry=Selection())

    assert (used_up["status"], used_up["attempts"]) == ("expired", 2)
    assert retried.rows == {"succeeded": 1}
    assert world.answers()["r1"]["attempts"] == 2  # it expired once more, and went again by itself
    assert world.accepted() == 8


def test_a_row_that_fails_again_in_a_retry_is_sent_again_with_the_same_change(world: World) -> None:
    job = kept(world)
    fail(world, "1", "max_tokens")
    world.run(job)
    world.emulator.clear_faults()
    fail(world, "1", "error", error_type="api_error")

    retried = world.run(job, retry=Selection(changes={"request.max_tokens": 2000}))

    assert retried.rows == {"succeeded": 1}
    assert [params["max_tokens"] for params in asked(world)] == [100] * 5 + [2000] * 2


def test_a_row_with_a_permanent_error_is_sent_only_once_in_a_retry(world: World) -> None:
    world.emulator.add_fault(on="item", do="refuse", match="number 1 is")
    world.run(world.job())

    retried = world.run(world.job(), retry=Selection())
    again = world.run(world.job(), retry=Selection())

    assert (retried.rows, retried.exit_code) == ({"refused": 1}, 1)
    assert again.run_id != retried.run_id
    assert world.accepted() == 7


def test_an_interrupted_retry_continues_without_sending_a_row_twice(world: World) -> None:
    world.rows(texts(6))
    world.emulator.add_fault(on="item", do="refuse")
    job = world.job(limits={"max_batch_requests": 2, "max_in_flight_requests": 2})
    world.run(job)
    where = world.where()
    world.on_event = lambda event, facts: where.stop.event.set() if event == "collected" else None
    with pytest.raises(Interrupted):
        run(job, where, Options(retry=Selection()))
    world.on_event = None
    accepted = world.accepted()

    quoted = world.run(job, retry=Selection(), dry_run=True).quote
    finished = world.run(job, retry=Selection())

    assert 6 < accepted < 12
    assert quoted.to_send == 12 - accepted
    assert finished.rows == {"refused": 6}
    assert world.accepted() == 12
    assert run_states(world) == [("finished", None)] * 2


def test_a_retry_killed_while_planning_continues_with_the_rows_it_had_not_planned(world: World) -> None:
    world.rows(texts(6))
    world.emulator.add_fault(on="item", do="refuse")
    job = world.job(limits={"max_batch_requests": 2})
    world.run(job)
    world.emulator.clear_faults()
    world.dies_at(job, "planned", nth=len(world.told("planned")) + 1, retry=Selection())

    finished = world.run(job, retry=Selection())

    assert finished.rows == {"succeeded": 6}
    assert world.accepted() == 12
    assert len(run_states(world)) == 2


def test_a_detached_retry_is_finished_by_sweeps(world: World) -> None:
    fail(world, "1", "max_tokens")
    world.run(world.job())
    detached = world.run(world.job(), retry=Selection(changes={"request.max_tokens": 500}), detach=True)

    world.clock.advance(61)
    world.sweep()

    assert (detached.state, detached.rows) == ("open", {"in_flight": 1})
    assert set(world.statuses().values()) == {"succeeded"}
    assert run_states(world) == [("finished", None)] * 2


def test_a_retry_waits_for_rows_that_another_run_has_at_the_api(world: World) -> None:
    world.emulator.add_fault(on="item", do="error", error_type="overloaded_error", match="number 1 is", times=1)
    world.run(world.job(retry={"max_attempts": 1}))
    world.run(world.job(retry={"max_attempts": 2}), detach=True)

    retried = world.run(world.job(), retry=Selection())

    assert (retried.state, retried.rows) == ("finished", {})
    assert world.statuses()["r1"] == "succeeded"
    assert world.accepted() == 6


def test_a_retry_reports_rows_that_are_in_flight_already(world: World) -> None:
    fail(world, "1", "refuse")
    world.run(world.job())
    world.run(world.job(), retry=Selection(), detach=True)

    quote = world.run(world.job(), retry=Selection(keys=("r1",)), dry_run=True).quote
    with world.database.read() as conn:
        row = job_named(conn, "summaries")
        assert row is not None
        sink = ResultsTable.of(row)
        said = left_out(conn, row.id, sink, Selection(keys=("r1",)), quote)

    assert said == ["rows already in flight: 1; they are not sent again; the run waits for their answers"]


def test_a_retry_does_not_change_rows_that_an_open_run_has_in_flight(world: World) -> None:
    fail(world, "1", "error", error_type="invalid_request_error")
    world.run(world.job())
    rows = texts(5)
    rows[2]["text"], rows[3]["text"] = "Something else altogether.", "Something else, too."
    world.rows(rows)
    world.run(world.job(), detach=True)  # r2, r3 are at the API
    rows[3]["text"] = "And something else again."
    world.rows(rows)
    world.run(world.job(), detach=True)  # and r3 has changed meanwhile
    before = rows_of(world, "r2", "r3")

    world.run(world.job(), retry=Selection(keys=("r1", "r3")), detach=True)

    assert rows_of(world, "r2", "r3") == before
    finished = world.run(world.job())
    assert finished.state == "finished"
    assert "something else again" in world.answers()["r3"]["text"]
    assert world.sent_twice() == []


def test_a_retry_does_not_change_rows_that_are_pending_in_another_run(world: World) -> None:
    fail(world, "1", "refuse")
    world.emulator.add_fault(on="item", do="error", error_type="api_error", match="number 2 is", times=1)
    busy = {"on": "create", "do": "status", "status": 429, "error_type": "rate_limit_error", "retry_after": 100}
    world.emulator.add_fault(**busy, after=1)
    world.run(world.job(), detach=True)
    world.clock.advance(61)
    world.sweep()  # r2 goes again, and waits in a planned batch
    before = rows_of(world, "r2")

    world.run(world.job(), retry=Selection(keys=("r1",)), detach=True)
    world.emulator.clear_faults()
    world.clock.advance(200)

    assert rows_of(world, "r2") == before
    world.run(world.job())
    assert set(world.statuses().values()) == {"succeeded"}
    assert world.accepted() == 7


def rows_of(world: World, *keys: str) -> list[tuple[Any, ...]]:
    """Return all that the state database knows of these rows."""
    with world.database.read() as conn:
        wanted = [orjson.dumps([key]).decode() for key in keys]
        return [tuple(row) for row in conn.execute(select(requests).where(requests.c.key.in_(wanted)))]


def test_a_retry_stays_within_the_budget_of_the_job(world: World) -> None:
    world.rows(texts(20))
    world.emulator.add_fault(on="item", do="error", error_type="invalid_request_error", times=20)
    world.run(world.job())
    quote = world.run(world.job(), retry=Selection(), dry_run=True).quote
    limit = said_of(quote).worst / 12
    small = world.job(limits={"max_cost_usd": limit, "max_batch_requests": 4})

    stopped = world.run(small, retry=Selection())
    raised = world.run(world.job(limits={"max_cost_usd": 1}), retry=Selection())

    assert (stopped.state, stopped.reason, stopped.exit_code) == ("incomplete", "budget", 3)
    assert stopped.cost_usd <= limit
    assert (raised.run_id, raised.rows) == (stopped.run_id, {"succeeded": 20})
    assert world.accepted() == 40


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        pytest.param(pl.Series([1, 2, 3]), "integers", id="integers"),
        pytest.param(pl.Series([0.5, 1.0, -2.25]), "numbers", id="numbers"),
        pytest.param(pl.Series([datetime.date(2026, 11, day) for day in (1, 2, 3)]), "dates", id="dates"),
        pytest.param(TIMES, "times", id="times"),
        pytest.param(
            TIMES.dt.replace_time_zone("Asia/Tokyo"),
            "times with a zone",
            id="times with a zone",
        ),
        pytest.param(pl.Series([True, False, None]).fill_null(True), "truths", id="truths"),
        pytest.param(pl.Series(["a,b", "a'\"b", "ä\U0001f600"]), "texts", id="texts with commas and quotes"),
    ],
)
def test_keys_of_every_kind_are_found_in_the_results_table(world: World, column: pl.Series, kind: str) -> None:
    frame = pl.DataFrame({"id": column, "part": [1, 2, 3], "text": [f"{kind} {i}" for i in range(3)]})
    frame.write_parquet(world.folder / "rows.parquet")
    job = world.job(source={"path": str(world.folder / "rows.parquet"), "key": ["id", "part"]})
    world.emulator.add_fault(on="item", do="refuse", times=3)
    world.run(job)

    retried = world.run(job, retry=Selection(where="part <> 2"))

    assert retried.rows == {"succeeded": 2}


def test_numbers_among_texts_are_found_in_the_results_table(world: World) -> None:
    source = world.folder / "rows.ndjson"
    source.write_text('{"id": 17, "text": "number"}\n{"id": "b", "text": "text"}\n')
    job = world.job(source={"path": str(source)})
    world.emulator.add_fault(on="item", do="refuse", times=2)
    world.run(job)

    retried = world.run(job, retry=Selection(where="id in ('17', 'b')"))

    assert retried.rows == {"succeeded": 2}


def test_only_the_selected_of_thousands_of_rows_are_sent(world: World) -> None:
    world.rows([{"id": f"r{i}", "text": f"It is of kind {i % 100}."} for i in range(12_000)])
    world.emulator.add_fault(on="item", do="refuse", match="9.")
    world.run(world.job())
    world.emulator.clear_faults()

    retried = world.run(world.job(), retry=Selection(where="id like '%99'"))

    assert retried.rows == {"succeeded": 120}
    assert list(world.statuses().values()).count("refused") == 1_080
    assert world.accepted() == 101


def test_a_wrong_predicate_is_refused_before_anything_is_sent(world: World) -> None:
    fail(world, "1", "refuse")
    world.run(world.job())

    with pytest.raises(InputError, match="--where 'frobnicate = 1' is not a SQL predicate over answers") as refused:
        world.run(world.job(), retry=Selection(where="frobnicate = 1"))

    assert "\n" not in str(refused.value)
    assert world.accepted() == 5
    assert len(run_states(world)) == 1


def test_replaced_answers_move_to_the_history_when_a_retry_brings_new_ones(world: World) -> None:
    job = world.job(sink={"table": "answers", "history": True})
    fail(world, "1", "refuse")
    world.run(job)

    world.run(job, retry=Selection())

    with world.database.read() as conn:
        table = "answers_history" if world.database.default_schema is None else "public.answers_history"
        moved = [tuple(row) for row in conn.exec_driver_sql(f"SELECT id, status FROM {table}")]
    assert moved == [("r1", "refused")]


def test_a_retried_lost_row_keeps_its_new_answer_when_the_lost_batch_reappears(world: World) -> None:
    world.run(world.job(), detach=True)
    with world.database.write() as conn:  # as if it had been given up after its 404s
        conn.execute(update(batches).values(state="lost", due_at=world.clock()))
        lost = {"state": "lost", "outcome": "lost", "outcome_hash": requests.c.row_hash}
        conn.execute(update(requests).values(**lost, outcome_recipe=requests.c.recipe, attempts=1))

    retried = world.run(world.job(), retry=Selection(statuses=("lost",), keys=("r1",)))
    world.clock.advance(61)
    world.sweep()

    assert retried.rows == {"succeeded": 1}
    assert set(world.statuses().values()) == {"succeeded"}
    assert world.answers()["r1"]["run_id"] == retried.run_id
    assert world.accepted() == 6


# -- a retry that is not finished --------------------------------------------------------------------------------------

LONGER = Selection(statuses=("truncated",), changes={"request.max_tokens": 200})
LONGEST = Selection(statuses=("truncated",), changes={"request.max_tokens": 300})


@contextlib.contextmanager
def dying(world: World, monkeypatch: pytest.MonkeyPatch, nth: int) -> Iterator[None]:
    """Let a driver die in the block: its n-th writing transaction and all later ones fail."""
    had = 0
    write = world.database.write

    @contextlib.contextmanager
    def writing() -> Iterator[Connection]:
        nonlocal had
        had += 1
        if had >= nth:
            raise Interrupted("dead")
        with write() as conn:
            yield conn

    with monkeypatch.context() as patch:
        patch.setattr(world.database, "write", writing)
        yield


def cut_off(world: World, job: Job, *, rows: int = 2) -> None:
    """Run the job and let the answers of its first rows be truncated."""
    for i in range(rows):
        fail(world, str(i), "max_tokens")
    world.run(job)
    world.emulator.clear_faults()
    assert sorted(world.statuses(job.name).values()).count("truncated") == rows


def killed_while_planning(world: World, monkeypatch: pytest.MonkeyPatch, job: Job, retry: Selection) -> None:
    """Run a retry that dies after it has marked its rows and before it has put one into a batch."""

    def packed(self: Packer, rows: list[Sendable]) -> Iterator[int]:
        raise Interrupted("dead")

    with monkeypatch.context() as patch:
        patch.setattr(Packer, "add", packed)
        with pytest.raises(Interrupted):
            world.run(job, retry=retry)
    assert set(world.states().values()) == {"pending", "succeeded"}


def standing(world: World) -> dict[str, tuple[str, str | None, int]]:
    """Return state, outcome and attempts of each row in the state database."""
    with world.database.read() as conn:
        found = conn.execute(select(requests.c.key, requests.c.state, requests.c.outcome, requests.c.attempts))
        return {orjson.loads(row.key)[0]: (row.state, row.outcome, row.attempts) for row in found}


@pytest.mark.long
def test_a_retry_killed_while_planning_is_continued_by_the_same_command_and_not_by_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.rows(texts(3))
    died_with: Counter[int] = Counter()  # so many batches planned
    for nth in itertools.count(1):
        own = {"name": f"job_{nth}", "sink": {"table": f"answers_{nth}"}, "limits": {"max_batch_requests": 1}}
        job = kept(world, **own, request={"prompt": f"{nth}: {{{{ text }}}}"})
        cut_off(world, job)
        world.events.clear()
        with dying(world, monkeypatch, nth), contextlib.suppress(Interrupted):
            world.run(job, retry=LONGER, detach=True)
        planned, planned_to_the_end = len(world.told("planned")), bool(world.told("submitted"))
        died_with[planned] += 1

        plain = world.run(job)
        world.run(job, retry=LONGER)

        of_job = sorted(params["max_tokens"] for params in asked(world, job.name))
        assert of_job == [100] * 3 + [200] * 2, f"dead before its {nth}. transaction"
        assert plain.rows == {}
        assert set(world.statuses(job.name).values()) == {"succeeded"}
        if planned == 2 and planned_to_the_end:
            break
    assert died_with[0] > 5
    assert died_with[1] > 0
    assert world.sent_twice() == []


def test_a_run_names_an_unfinished_retry_and_ends_without_waiting_for_its_rows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.job()
    cut_off(world, job)
    killed_while_planning(world, monkeypatch, job, LONGER)
    world.rows(texts(6))

    ran = world.run(job)

    assert (ran.state, ran.exit_code, ran.rows) == ("finished", 0, {"succeeded": 1})
    assert (ran.quote.rows[Verdict.FOR_RETRY], ran.quote.to_send) == (2, 1)
    (told,) = world.told("waits_for_retry")
    assert (told["rows"], told["retry"]) == (2, LONGER.facts())
    assert event_line("waits_for_retry", told) == (
        "retry    2 rows wait for a retry that is not finished: run 2, "
        "`batch-pipeline status summaries` says how to continue it"
    )


def test_attempts_are_unchanged_until_the_batch_of_a_retry_is_committed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.emulator.add_fault(on="item", do="expire", match="number 1 is", times=2)
    job = world.job(retry={"max_attempts": 2})
    world.run(job)
    before = standing(world)["r1"]

    killed_while_planning(world, monkeypatch, job, Selection())
    planned = standing(world)["r1"]
    world.run(job)

    assert (before, planned) == (("expired", "expired", 2), ("pending", "expired", 2))
    assert standing(world)["r1"] == planned
    assert world.accepted() == 6


@pytest.mark.parametrize("moment", ["marked", "planned"], ids=["before its batch", "after its batch"])
def test_rows_of_a_canceled_retry_get_their_earlier_outcome_and_attempts_back(
    world: World, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    world.emulator.add_fault(on="item", do="expire", match="number 1 is", times=2)
    job = world.job(retry={"max_attempts": 2})
    world.run(job)
    before = standing(world)
    if moment == "marked":
        killed_while_planning(world, monkeypatch, job, LONGER_EXPIRED)
    else:
        busy(world)
        world.dies_at(job, "rejected", retry=LONGER_EXPIRED)
        world.emulator.clear_faults()

    cancel(world)
    after = standing(world)
    ran = world.run(job)

    assert after == before
    assert (ran.rows, world.accepted()) == ({}, 6)
    assert world.told("waits_for_retry") == []
    assert run_states(world)[1] == ("incomplete", "canceled")


LONGER_EXPIRED = Selection(statuses=("expired",), changes={"request.max_tokens": 200})


def busy(world: World) -> None:
    """Let the API refuse batches for now."""
    world.emulator.add_fault(on="create", do="status", status=429, error_type="rate_limit_error", retry_after=100)


def cancel(world: World) -> None:
    """Cancel the job, as `batch-pipeline cancel` does."""
    with world.database.read() as conn:
        row = job_named(conn, "summaries")
    assert row is not None
    cancel_job(world.where(), row)


def test_a_row_that_fails_in_a_canceled_retry_is_not_sent_again(world: World) -> None:
    job = world.job()
    cut_off(world, job)
    world.emulator.add_fault(on="item", do="error", error_type="overloaded_error", match="number 1 is")
    world.emulator.add_fault(on="item", do="error", error_type="billing_error", match="number 0 is")
    world.run(job, retry=LONGER, detach=True)
    world.clock.advance(61)

    cancel(world)
    with contextlib.suppress(Stopped):
        world.sweep()

    assert {row: standing(world)[row][:2] for row in ("r0", "r1")} == {
        "r0": ("truncated", "truncated"),
        "r1": ("errored", "errored"),
    }


def test_a_row_that_changes_while_it_waits_for_a_retry_leaves_the_retry(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = kept(world)
    cut_off(world, job)
    killed_while_planning(world, monkeypatch, job, LONGER)
    rows = texts(5)
    rows[0]["text"] = "Something else altogether."
    world.rows(rows)

    ran = world.run(job)
    retried = world.run(job, retry=LONGER)

    assert (ran.rows, retried.rows) == ({"succeeded": 1}, {"succeeded": 1})
    assert [params["max_tokens"] for params in asked(world)] == [100] * 6 + [200]
    assert "Something else" in world.answers()["r0"]["text"]


def test_a_row_that_changes_in_an_unsent_batch_of_a_retry_leaves_it_and_the_others_are_sent(world: World) -> None:
    job = kept(world)
    cut_off(world, job)
    busy(world)
    world.dies_at(job, "rejected", retry=LONGER)
    world.emulator.clear_faults()
    rows = texts(5)
    rows[0]["text"] = "Something else altogether."
    world.rows(rows)
    world.clock.advance(200)

    ran = world.run(job)
    world.clock.advance(200)
    world.sweep()
    world.clock.advance(61)
    world.sweep()

    assert ran.rows == {"succeeded": 1}
    assert set(world.statuses().values()) == {"succeeded"}
    assert world.accepted() == 7
    assert {answer["run_id"] for answer in world.answers().values()} == {1, 2, 3}


def test_a_row_that_changed_back_before_its_retry_is_sent_with_its_current_source_values(world: World) -> None:
    job = kept(world)
    cut_off(world, job)
    rows = texts(5)
    rows[0]["text"] = "Something else altogether."
    world.rows(rows)
    busy(world)
    world.dies_at(job, "rejected", retry=LONGER)
    world.emulator.clear_faults()
    world.rows(texts(5))
    world.clock.advance(200)

    ran = world.run(job)
    world.sweep()
    sent_by_sweep = world.accepted() - 5
    retried = world.run(job, retry=LONGER)

    assert (ran.rows, ran.exit_code) == ({}, 0)
    assert sent_by_sweep == 1  # the other row of that batch
    assert set(world.statuses().values()) == {"succeeded"}
    assert "Text number 0" in world.answers()["r0"]["text"]
    assert world.answers()["r0"]["run_id"] == retried.run_id
    assert world.accepted() == 7


def test_retries_with_different_changes_leave_each_others_rows_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = kept(world)
    cut_off(world, job)
    killed_while_planning(world, monkeypatch, job, LONGER)

    second = world.run(job, retry=LONGEST)
    first = world.run(job, retry=LONGER)

    assert (second.state, second.rows, second.quote.rows[Verdict.FOR_RETRY]) == ("finished", {}, 2)
    assert [told["retry"] for told in world.told("waits_for_retry")] == [LONGER.facts()]
    assert first.rows == {"succeeded": 2}
    assert [params["max_tokens"] for params in asked(world)] == [100] * 5 + [200] * 2
    assert [state for state, _ in run_states(world)] == ["finished"] * 3


def test_a_run_leaves_rows_of_a_retry_to_the_sweeps(world: World) -> None:
    job = kept(world)
    cut_off(world, job)
    world.emulator.add_fault(on="item", do="error", error_type="overloaded_error", match="number 0 is", times=1)
    world.run(job, retry=LONGER, detach=True)
    world.clock.advance(61)
    where = world.where()
    world.on_event = lambda event, facts: where.stop.event.set() if event == "collected" else None
    with contextlib.suppress(Interrupted):
        sweep(where)
    world.on_event = None
    waiting = standing(world)["r0"]

    ran = world.run(job)
    world.sweep()
    world.clock.advance(61)
    world.sweep()

    assert waiting == ("pending", "errored", 1)
    assert ran.rows == {}
    assert set(world.statuses().values()) == {"succeeded"}
    assert [params["max_tokens"] for params in asked(world)] == [100] * 5 + [200] * 3
    assert run_states(world) == [("finished", None)] * 3


def test_the_same_retry_with_another_recipe_continues_with_its_rows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(world, kept(world))
    killed_while_planning(world, monkeypatch, kept(world), LONGER)
    other = kept(world, request={"prompt": "In short: {{ text }}"})

    ran = world.run(other)
    retried = world.run(other, retry=LONGER)

    assert ran.rows == {}
    assert retried.rows == {"succeeded": 2}
    assert [params["max_tokens"] for params in asked(world)] == [100] * 5 + [200] * 2
    assert [state for state, _ in run_states(world)] == ["finished"] * 4


def test_rows_of_a_retry_that_left_the_source_keep_their_outcomes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.job()
    cut_off(world, job)
    before = standing(world)["r0"]
    killed_while_planning(world, monkeypatch, job, LONGER)
    world.rows(texts(5)[1:])

    ran = world.run(job)
    waiting = standing(world)["r0"]
    retried = world.run(job, retry=LONGER)

    assert ran.rows == {}
    assert waiting[:2] == ("pending", "truncated")
    assert (retried.state, retried.rows) == ("finished", {"succeeded": 1, "truncated": 1})
    assert standing(world)["r0"] == before


def test_a_kept_column_of_a_row_that_waits_for_a_retry_is_updated(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.rows([row | {"note": "old"} for row in texts(5)])
    job = world.job(source={"keep": ["note"]})
    cut_off(world, job)
    killed_while_planning(world, monkeypatch, job, LONGER)
    world.rows([row | {"note": "new"} for row in texts(5)])

    world.run(job)

    assert {answer["note"] for answer in world.answers().values()} == {"new"}
    assert list(world.states().values()).count("pending") == 2


def test_rows_of_a_retry_whose_budget_is_spent_wait_for_it_until_it_is_canceled(world: World) -> None:
    job = kept(world)
    cut_off(world, job)
    before = standing(world)
    small = kept(world, limits={"max_cost_usd": 0.00001})

    stopped = world.run(small, retry=LONGER)
    ran = world.run(job)
    cancel(world)
    after = standing(world)

    assert (stopped.state, stopped.reason) == ("incomplete", "budget")
    assert (ran.rows, ran.quote.rows[Verdict.FOR_RETRY]) == ({}, 2)
    assert after == before
    assert run_states(world)[1] == ("incomplete", "canceled")
    assert world.accepted() == 5


def test_only_the_same_command_renders_a_lost_body_of_a_retry_again(world: World) -> None:
    job = world.job()
    cut_off(world, job)
    busy(world)
    world.dies_at(job, "rejected", retry=LONGER)
    world.emulator.clear_faults()
    for body in world.folder.glob("spool/summaries/*.json"):
        body.unlink()
    world.clock.advance(200)

    ran = world.run(job)
    with world.database.read() as conn:
        row = job_named(conn, "summaries")
        assert row is not None
        then = next_command(status_facts(conn, row, world.clock()), "job.yaml")
    retried = world.run(job, retry=LONGER)

    assert ran.rows == {}
    assert then == ["retry", "job.yaml", "--status", "truncated", "--set", "request.max_tokens=200"]
    assert retried.rows == {"succeeded": 2}
    assert world.accepted() == 7


# -- what --set takes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "field", "value"),
    [
        ("request.max_tokens=1000", "request.max_tokens", 1000),
        ("request.model=claude-sonnet-5", "request.model", "claude-sonnet-5"),
        ("request.system=In one word.", "request.system", "In one word."),
        ("request.system='Answer: yes or no'", "request.system", "Answer: yes or no"),
        ("request.system=", "request.system", None),
        ("request.params.stop_sequences=[a, b]", "request.params.stop_sequences", ["a", "b"]),
        ("request.params.output_config.effort=low", "request.params.output_config.effort", "low"),
        ("request.params.metadata.user_id=2026-11-20", "request.params.metadata.user_id", "2026-11-20"),
    ],
)
def test_the_value_of_a_change_is_read_as_in_a_job_file(pair: str, field: str, value: object) -> None:
    assert change(pair) == (field, value)


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("request.max_tokens", "write FIELD=VALUE"),
        ("request.prompt=x", "write FIELD=VALUE"),
        ("request.max_tokens.x=1", "write FIELD=VALUE"),
        ("request.params..x=1", "write FIELD=VALUE"),
        ("max_tokens=1", "write FIELD=VALUE"),
        ("output.labels=[a, b]", "write FIELD=VALUE"),
        ("request.system=Answer: yes", "put quotes around a text"),
        ("request.system=a\nvalue: b", "put quotes around a text"),
        ("request.system=a\nb: c", "put quotes around a text"),
    ],
)
def test_a_change_of_a_field_that_cannot_be_changed_is_refused(pair: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        change(pair)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"request.max_tokens": 0}, r"--set request\.max_tokens: Input should be greater than or equal to 1"),
        ({"request.max_tokens": "lots"}, r"--set request\.max_tokens: Input should be a valid integer"),
        ({"request.model": None}, r"--set request\.model: Input should be a valid string"),
        ({"request.params": {"metadata": "x"}, "request.params.metadata.user_id": "y"}, "metadata is not a mapping"),
    ],
)
def test_a_change_to_a_wrong_value_is_refused(world: World, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        changed(world.job(), changes)


def test_a_change_leaves_the_other_fields_of_the_job_unchanged(world: World) -> None:
    job = world.job(source={"keep": [{"text": "said"}]}, output={"labels": ["a", "b"]}, vars={"day": "monday"})

    assert changed(job, {}) == job
    assert changed(job, {"request.params.thinking.type": "adaptive"}).request.params == {
        "thinking": {"type": "adaptive"}
    }


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(InputError, match="--status done: unknown status; choose one of succeeded, errored"):
        Selection(statuses=("done",))
