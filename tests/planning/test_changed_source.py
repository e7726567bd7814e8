"""A source that changes between the pass that checks its keys and the pass that plans its rows."""

import sqlite3

import pytest

from pipeline.errors import Stopped
from tests.conftest import World, texts

POSTGRESQL_IS_LONG = True


@pytest.mark.parametrize("most", [2, 100], ids=["in another batch", "in the same batch"])
def test_a_key_that_comes_twice_by_then_stops_the_run_and_names_the_key(world: World, most: int) -> None:
    source = sqlite3.connect(world.folder / "source.db", isolation_level=None)
    source.execute("CREATE TABLE docs (id TEXT, text TEXT)")
    source.executemany("INSERT INTO docs VALUES (:id, :text)", texts(5))
    query = {"query": "SELECT id, text FROM docs", "database": f"sqlite:///{world.folder}/source.db"}
    job = world.job(source={"path": None, **query}, limits={"max_batch_requests": most})

    def twice(event: str, facts: object) -> None:
        if event == "quote":
            source.execute("INSERT INTO docs VALUES ('r1', 'another text')")

    world.on_event = twice
    with pytest.raises(Stopped, match="key r1 is in the source twice by now: the source has changed"):
        world.run(job)
    world.on_event = None
    source.execute("DELETE FROM docs WHERE text = 'another text'")
    finished = world.run(job)

    assert finished.rows == {"succeeded": 5}
    assert world.accepted() == 5
