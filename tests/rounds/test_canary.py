"""Later rounds of a canary's rows belong to the canary, which is judged when they have outcomes."""

from sqlalchemy import select

from pipeline.state.tables import batches, runs
from tests.conftest import World, texts
from tests.rounds.builders import Counting, conversations, holds, with_tools

POSTGRESQL_IS_LONG = True
CANARY = {"rows": 2, "max_failed": 0.5}


def gates(world: World) -> list[str | None]:
    with world.database.read() as conn:
        return list(conn.scalars(select(batches.c.gate).where(batches.c.state != "dropped").order_by(batches.c.id)))


def test_the_rest_is_sent_when_all_rounds_of_the_canary_are_answered(world: World) -> None:
    world.rows(texts(20))

    finished = world.run(with_tools(world, {"lookup": Counting()}, canary=CANARY))

    ahead = gates(world).index(None, 1) if None in gates(world)[1:] else 0
    turns = [len(messages) for messages in conversations(world)]
    assert finished.rows == {"succeeded": 20}
    assert world.told("gate_opened")[0]["rows"] == 2
    assert gates(world)[0] == "canary"
    assert gates(world).count("canary") > 1
    assert ahead
    assert turns[:2] == [1, 1]
    assert turns[2] > 1  # a later round of the canary, before the first round of the others
    assert holds(world)


def test_a_canary_whose_rows_run_out_of_rounds_stops_the_run(world: World) -> None:
    world.rows(texts(20))

    finished = world.run(with_tools(world, {"lookup": Counting()}, canary=CANARY, rounds={"max": 1}))

    assert (finished.state, finished.reason) == ("incomplete", "canary")
    assert world.accepted() == 2


def test_a_primer_opens_its_gate_after_its_first_round(world: World) -> None:
    world.rows(texts(20))
    system = "All that is to be known of the words. " * 600
    job = with_tools(world, {"lookup": Counting()}, request={"cache": "1h", "system": system})

    finished = world.run(job)

    with world.database.read() as conn:
        assert conn.scalars(select(runs.c.gate)).all() == [None]
    assert finished.rows == {"succeeded": 20}
    assert gates(world).count("primer") == 1
    assert holds(world)
