"""Equal requests of a run are sent once, also when they are in different batches."""

from sqlalchemy import func, select

from pipeline.state.tables import batches, requests, shared
from tests.conftest import World


def equal(rows: int, distinct: int) -> list[dict[str, object]]:
    """Return rows with so many distinct texts, which come one after the other and then again."""
    return [{"id": f"r{i}", "text": f"Text number {i % distinct}."} for i in range(rows)]


def most_rows_of_a_request(world: World) -> int:
    with world.database.read() as conn:
        of_each = select(func.count().label("rows")).group_by(requests.c.batch_id, requests.c.n).subquery()
        return int(conn.scalar(select(func.max(of_each.c.rows))) or 0)


def test_equal_requests_are_sent_once_across_small_batches(world: World) -> None:
    world.rows(equal(400, 40))

    finished = world.run(world.job(limits={"max_batch_requests": 10}))

    assert world.accepted() == finished.quote.requests == 40
    assert (finished.state, finished.rows) == ("finished", {"succeeded": 400})
    paid = [answer for answer in world.answers().values() if answer["cost_usd"] > 0]
    assert len(paid) == 40
    assert {answer["attempts"] for answer in world.answers().values()} == {1}
    with world.database.read() as conn:
        assert conn.scalar(select(func.sum(batches.c.rows))) == 400


def test_a_source_without_equal_rows_notes_no_shared_request(world: World) -> None:
    world.run(world.job(limits={"max_batch_requests": 2}))

    with world.database.read() as conn:
        assert conn.scalar(select(func.count()).select_from(shared)) == 0
