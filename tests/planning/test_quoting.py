"""A quote shows the same figures before a run, in the middle of one, and at its end."""

import re
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import select

from pipeline.cli.app import main
from pipeline.errors import AccountStopped, InputError
from pipeline.job.model import Job
from pipeline.money.budget import tokens_per_byte
from pipeline.planning.quote import Quote
from pipeline.planning.verdict import Verdict
from pipeline.report.money import money_lines
from pipeline.report.quote import quote_lines
from pipeline.report.words import cost_range
from pipeline.state.runs import get_run
from pipeline.state.tables import batches, token_counts
from pipeline.text import money
from tests.conftest import World, event_line, said_of, texts

POSTGRESQL_IS_LONG = True

JOBS = Path(__file__).parents[2] / "sample_data" / "jobs"


def quote_of(world: World, job: Any, **options: Any) -> Quote:
    return world.run(job, dry_run=True, **options).quote


def lines(quote: Quote) -> list[str]:
    """Return the quote's lines about what will be sent, without those on rows by verdict and batches at the API."""
    return [line for line in quote_lines(quote) if not line.startswith(("rows", "at API"))]


def first_of(quote: Quote) -> str:
    return next(iter(quote_lines(quote)))


def with_canary(world: World, **changes: Any) -> Any:
    """Return a job over 60 rows: 5 are the canary, the others are planned in 3 batches."""
    world.rows(texts(60))
    return world.job(canary={"rows": 5}, limits={"max_batch_requests": 20}, **changes)


# -- four ways to the quote of a run that is open ----------------------------------------------------------------------


def killed_before_it_sends(world: World, job: Job, nth: int) -> None:
    """Run the job, which dies when it has planned its n-th batch; the thread that sends has sent none by then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.runner.submitter.submit_due", lambda _: 0)
        world.dies_at(job, "planned", nth=nth)


def test_a_run_killed_after_planning_is_quoted_as_before(world: World) -> None:
    job = with_canary(world)
    before = quote_of(world, job)
    killed_before_it_sends(world, job, nth=4)

    again = quote_of(world, job)

    assert first_of(again) == "rows     60 in the source: 60 planned before and not sent yet"
    assert lines(again) == lines(before)
    assert said_of(again) == said_of(before)
    assert "sends    60 requests in 4 batches (the first 5 rows are sent first), " in "\n".join(lines(again))


def test_a_detached_run_is_quoted_by_its_rows_that_are_not_sent(world: World) -> None:
    job = with_canary(world)
    world.run(job, detach=True)

    again = quote_of(world, job)

    assert again.rows == {Verdict.IN_FLIGHT: 5, Verdict.PLANNED: 55}
    assert (again.to_send, again.requests, again.batches) == (55, 55, 3)
    reserved = batch_reserve(world)
    assert f"at API   1 batch with 5 rows: at most {money(reserved)} is reserved for it" in list(quote_lines(again))
    assert "(they wait for the first 5 rows of the run)" in "\n".join(lines(again))
    world.rows(texts(60)[5:], "left.csv")
    alone = quote_of(
        world, world.job(name="left", sink={"table": "left_answers"}, source={"path": str(world.folder / "left.csv")})
    )
    assert said_of(again).low == pytest.approx(said_of(alone).low, rel=0.02)
    assert said_of(again).worst == pytest.approx(said_of(alone).worst, rel=0.02)


def batch_reserve(world: World) -> float:
    """Return the money reserved for the batch of the gate, by the bound from the API's token count."""
    with world.database.read() as conn:
        row = conn.execute(select(batches).where(batches.c.gate.is_not(None))).one()
        pairs = conn.execute(select(token_counts.c.sample)).scalar_one()
    return float(row.max_output_usd + row.max_input_usd * tokens_per_byte([(pair[2], pair[1]) for pair in pairs]))


def test_the_quote_of_a_second_run_covers_the_rows_that_are_left(world: World) -> None:
    job = with_canary(world)
    said: list[Quote] = []

    def look(event: str, facts: dict[str, Any]) -> None:
        if event == "submitted" and not said:
            world.on_event = None
            said.append(quote_of(world, job))

    world.on_event = look
    world.run(job)

    assert said[0].to_send + said[0].rows[Verdict.IN_FLIGHT] == 60
    assert said[0].in_flight is not None
    assert said[0].requests == said[0].to_send
    assert said_of(said[0]).worst > 0


def test_a_run_that_the_api_refused_is_quoted_as_before(world: World) -> None:
    job = with_canary(world)
    before = quote_of(world, job)
    world.emulator.add_fault(on="create", do="status", status=401, error_type="authentication_error")
    with pytest.raises(AccountStopped):
        world.run(job)
    world.emulator.clear_faults()

    again = quote_of(world, job)

    assert again.rows[Verdict.PLANNED]
    assert lines(again) == lines(before)


def test_equal_rows_are_quoted_as_one_request_before_and_after_planning(world: World) -> None:
    world.rows([{"id": f"r{i}", "text": f"Text {i // 2}"} for i in range(60)])
    job = world.job(limits={"max_batch_requests": 20})
    before = quote_of(world, job)
    killed_before_it_sends(world, job, nth=2)

    again = quote_of(world, job)

    assert "sends    30 requests for 60 rows (30 equal to another) in 2 batches" in "\n".join(lines(before))
    assert lines(again) == lines(before)
    with world.database.read() as conn:
        assert sum(conn.scalars(select(batches.c.requests))) == before.requests


def test_the_quote_of_equal_rows_matches_what_is_sent(world: World) -> None:
    world.rows([{"id": f"r{i}", "text": f"Text {i % 7}"} for i in range(200)])
    job = world.job(canary={"rows": 5}, limits={"max_batch_requests": 6})

    finished = world.run(job)

    assert finished.rows == {"succeeded": 200}
    assert finished.quote.requests == world.accepted()
    with world.database.read() as conn:
        assert len(list(conn.scalars(select(batches.c.id)))) == finished.quote.batches


# -- one estimate ------------------------------------------------------------------------------------------------------

SAMPLES = ["classify_tickets", "few_shot", "invoices", "summarize_documents", "retry_changes"]


@pytest.mark.parametrize("name", SAMPLES)
def test_the_estimate_the_quote_and_the_end_of_a_run_show_the_same_figures(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    database = f"sqlite:///{tmp_path}/emulated.db"
    file = str(JOBS / f"{name}.yaml")

    said = events(
        capsys, monkeypatch, "estimate", file, "--limit", "12", "--emulator", "--json", "--database", database
    )
    ran = events(
        capsys, monkeypatch, "run", file, "--limit", "12", "--emulator", "--json", "--database", database,
        "--poll-seconds", "0.05",
    )  # fmt: skip

    figures = said["estimate"]["cost_usd"]
    assert figures["worst"] > figures["low"] > 0
    assert ran["quote"]["cost_usd"] == figures
    assert ran["money"]["estimate_usd"] == figures
    assert all(ran["quote"][name] == said["estimate"][name] for name in ("requests", "batches", "input_tokens"))
    assert said["estimate"]["input_tokens"]["counted"] > 0
    assert figures["low"] <= ran["money"]["cost_usd"] <= figures["worst"]
    words = cost_range(figures)
    assert f"estimated {words}; spent" in next(money_lines({"cost_usd": figures}, 0.0, {}))


def events(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> dict[str, dict[str, Any]]:
    """Run the command and return the last event of each kind that it prints as JSON."""
    monkeypatch.setattr("sys.argv", ["batch-pipeline", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, 1)
    found = [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {facts["event"]: facts for facts in found}


# -- the API's count ---------------------------------------------------------------------------------------------------


def counts_asked(world: World) -> int:
    """Return how often the API was asked to count tokens."""
    return sum(call["path"].endswith("/count_tokens") for call in world.emulator.log())


def test_tokens_are_counted_once_for_a_recipe(world: World) -> None:
    job = world.job(limits={"max_cost_usd": 5})

    world.run(job)
    counted = counts_asked(world)
    world.rows(texts(9))
    world.run(job)
    world.run(job, dry_run=True)
    other = world.run(world.job(request={"max_tokens": 120}, limits={"max_cost_usd": 5}), dry_run=True, refresh=True)

    assert counted == 5
    assert said_of(other.quote).worst > 0
    assert counts_asked(world) == counted + 9


def test_a_token_count_that_was_not_stored_is_requested_again(world: World) -> None:
    def die(event: str, facts: dict[str, Any]) -> None:
        if event == "quote":
            raise RuntimeError("killed")

    world.on_event = die
    with pytest.raises(RuntimeError):
        world.run(world.job())
    world.on_event = None
    with world.database.read() as conn:
        assert conn.execute(select(token_counts)).all() == []

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 5}
    with world.database.read() as conn:
        assert len(conn.execute(select(token_counts)).all()) == 1


def test_without_a_count_of_the_api_the_quote_uses_bytes_and_says_so_everywhere(world: World) -> None:
    world.emulator.add_fault(on="count_tokens", do="status", status=404, error_type="not_found_error", times=1000)

    quoted = quote_of(world, world.job())
    finished = world.run(world.job())

    assert "(estimated from bytes, the API did not count)" in "\n".join(lines(quoted))
    assert "estimated from bytes" in event_line("not_counted", world.told("not_counted")[0])
    assert said_of(finished.quote) == said_of(quoted)
    with world.database.read() as conn:
        assert conn.execute(select(token_counts)).all() == []
        stored = get_run(conn, 1).estimate
    assert stored is not None
    assert stored["cost_usd"] == said_of(quoted)._asdict()


# -- too few rows ------------------------------------------------------------------------------------------------------


def test_an_empty_source_is_a_warning(world: World) -> None:
    world.rows([])

    finished = world.run(world.job())

    assert finished.rows == {}
    warned = [facts["warning"] for facts in world.told("warning")]
    assert "the source has no rows; set limits.min_rows to make this an error" in warned


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({}, "the source has 5 rows, fewer than limits.min_rows (6); nothing was sent", id="rows"),
        pytest.param(
            {"source": {"where": "id <> 'r0'"}},
            "the source has 4 rows that source.where lets through, fewer than limits.min_rows (6)",
            id="a predicate",
        ),
    ],
)
def test_fewer_rows_than_the_limit_are_refused_with_both_numbers(
    world: World, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        world.run(world.job(limits={"min_rows": 6}, **fields))

    assert world.accepted() == 0
    assert world.states() == {}


def test_a_run_with_a_limit_is_not_refused_because_of_min_rows(world: World) -> None:
    assert world.run(world.job(limits={"min_rows": 5}), limit=2).rows == {"succeeded": 2}
