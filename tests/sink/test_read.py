"""Answers are read from the results table page by page."""

from collections.abc import Iterator

import orjson
import pytest

from pipeline.sink import read
from pipeline.sink.read import AnswerFilter
from pipeline.state.jobs import job_named
from tests.conftest import World


@pytest.fixture
def pages_of_three() -> Iterator[None]:
    before, read.PAGE = read.PAGE, 3
    yield
    read.PAGE = before


@pytest.mark.usefixtures("pages_of_three")
@pytest.mark.parametrize("key", [["id"], ["id", "n"]], ids=["one key column", "two"])
def test_every_answer_comes_once_and_in_order_whatever_the_pages(world: World, key: list[str]) -> None:
    world.rows([{"id": f"r{i % 4 if len(key) > 1 else i}", "n": i, "text": f"text {i}"} for i in range(10)])
    world.run(world.job(source={"key": key}))
    with world.database.read() as conn:
        job = job_named(conn, "summaries")
    assert job is not None

    everything = [orjson.loads(line) for line in read.ndjson(world.database, job)]
    first = list(read.ndjson(world.database, job, AnswerFilter(limit=7)))
    none = list(read.ndjson(world.database, job, AnswerFilter(limit=0)))
    some = list(read.ndjson(world.database, job, AnswerFilter(limit=6, where="status <> 'errored'")))

    keys = [tuple(answer[name] for name in key) for answer in everything]
    assert keys == sorted(set(keys))
    assert (len(keys), len(first), len(none), len(some)) == (10, 7, 0, 6)
