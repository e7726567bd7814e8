"""The quote says what all rounds cost at worst, and counts rows that go on apart."""

import dataclasses

from pipeline.report.quote import estimate_lines, quote_facts, quote_lines
from pipeline.runner.sweep import sweep
from tests.conftest import World, said_of
from tests.rounds.builders import Counting, with_tools

POSTGRESQL_IS_LONG = True


def test_the_worst_case_is_that_of_all_rounds_and_what_was_said_is_read_again(world: World) -> None:
    quoted = {
        most: said_of(world.run(with_tools(world, {"lookup": Counting()}, rounds={"max": most}), dry_run=True).quote)
        for most in (1, 2, 6)
    }

    assert quoted[2].worst > 2 * quoted[1].worst
    assert quoted[6].worst > 6 * quoted[1].worst
    assert quoted[6].low == quoted[1].low
    assert quoted[6].expected is None


def test_the_dearest_model_of_a_chain_counts_in_each_round(world: World) -> None:
    chain = {"change": {"errored": {"model": ["claude-sonnet-5", "claude-opus-5"]}}}
    plain, dear = (
        said_of(world.run(with_tools(world, {"lookup": Counting()}, retry=retry), dry_run=True).quote).worst
        for retry in ({}, chain)
    )

    assert dear > 4 * plain


def test_the_quote_says_that_equal_rows_are_sent_apart(world: World) -> None:
    world.rows([{"id": f"r{i}", "text": "The same."} for i in range(4)])
    quote = world.run(with_tools(world, {"lookup": Counting()}), dry_run=True).quote

    lines = list(estimate_lines(quote))
    assert quote.requests == 4
    assert (
        "rounds   up to 6 of each row, all of them in the worst case; equal rows are sent apart, because each has its "
        "own conversation" in lines
    )
    assert any("at worst every row has 6 rounds" in line for line in lines)


def test_a_budget_below_the_worst_case_stops_the_run_between_two_rounds_and_a_higher_one_goes_on(world: World) -> None:
    job = with_tools(world, {"lookup": Counting()}, limits={"max_cost_usd": 0.00115})
    stopped = world.run(job)
    assert (stopped.state, stopped.reason) == ("incomplete", "budget")
    assert 0 < stopped.cost_usd < 0.00115
    assert "pending" in world.states().values()

    finished = world.run(with_tools(world, {"lookup": Counting()}, limits={"max_cost_usd": 1.0}))

    assert finished.state == "finished"
    assert set(world.statuses().values()) == {"succeeded"}
    assert world.sent_twice() == []


def test_rows_between_two_rounds_are_counted_apart(world: World) -> None:
    job = with_tools(world, {"lookup": Counting()})
    world.run(job, detach=True)
    world.clock.advance(120)
    sweep(dataclasses.replace(world.where(), runs_tools=False))

    quote = world.run(job, dry_run=True).quote

    assert (quote.to_send, quote_facts(quote)["rows"]["in_rounds"]) == (0, 5)
    assert "5 between two rounds" in next(quote_lines(quote))
