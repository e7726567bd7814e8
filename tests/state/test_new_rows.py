"""New rows are inserted with their batch, in one step, in the order of the source."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import select

from pipeline.state.database import Connection, Database
from pipeline.state.new_rows import KeyKnown, NewRows, insert_new_rows, known_key
from pipeline.state.tables import requests
from pipeline.state.tallies import run_counts
from tests.support.records import put_batch, put_run


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with closing(Database(database_url)) as database:
        with database.write() as conn:
            put_run(conn)
            put_batch(conn)
        yield database


def rows(keys: list[str], positions: list[int | None], keeps: list[str | None] | None = None) -> NewRows:
    """Return new rows, whose hashes tell their index."""
    hashes = [bytes([i % 256]) * 16 for i in range(len(keys))]
    sent = [b"" if position is None else bytes([255 - i % 256]) * 16 for i, position in enumerate(positions)]
    return NewRows(keys, keeps or [None] * len(keys), hashes, sent, positions)


def inserted(conn: Connection, new: NewRows) -> list[int]:
    return insert_new_rows(conn, new, job_id=1, run_id=1, recipe="r", batch=1)


KEEPS = ['{"a": "x\\ny"}', None, '{"a": "ä\\u0000"}']


@pytest.mark.parametrize("keeps", [None, KEEPS], ids=["no kept values", "kept values"])
@pytest.mark.parametrize(
    "positions",
    [
        pytest.param([0, 1, 2], id="in a row"),
        pytest.param([4, 4, 7], id="shared"),
        pytest.param([3, None, 4], id="one invalid"),
    ],
)
def test_new_rows_are_stored_as_they_are(
    database: Database, positions: list[int | None], keeps: list[str | None] | None
) -> None:
    new = rows(['["a\\"b"]', '["ä",17]', "[3]"], positions, keeps)

    with database.write() as conn:
        numbers = inserted(conn, new)

    with database.read() as conn:
        stored = conn.execute(select(requests).order_by(requests.c.id)).all()
        counts = run_counts(conn, 1)
    assert numbers == sorted(numbers) == [row.id for row in stored]
    assert [row.key for row in stored] == new.keys
    assert [row.keep for row in stored] == new.keeps
    assert [row.row_hash for row in stored] == new.row_hashes
    assert [row.sent_hash or b"" for row in stored] == new.sent_hashes
    assert [row.n for row in stored] == [row.body_n for row in stored] == positions
    assert (
        [row.batch_id for row in stored]
        == [row.body_id for row in stored]
        == [None if n is None else 1 for n in positions]
    )
    assert [row.state for row in stored] == ["invalid" if n is None else "in_flight" for n in positions]
    assert [row.outcome_hash for row in stored] == [
        h if n is None else None for h, n in zip(new.row_hashes, positions, strict=True)
    ]
    assert {row.attempts for row in stored} == {0}
    invalid = positions.count(None)
    assert counts == {"in_flight": 3 - invalid} | ({"invalid": invalid} if invalid else {})


def test_very_many_rows_get_ascending_numbers_in_their_order(database: Database) -> None:
    keys = [f"[{i}]" for i in range(3_000)]
    positions: list[int | None] = [None if i % 7 == 3 else i for i in range(3_000)]

    with database.write() as conn:
        numbers = inserted(conn, rows(keys, positions))

    with database.read() as conn:
        stored = conn.execute(select(requests.c.id, requests.c.key, requests.c.n).order_by(requests.c.id)).all()
    assert [tuple(row) for row in stored] == list(zip(numbers, keys, positions, strict=True))


@pytest.mark.parametrize("keys", [["[1]", "[2]", "[1]"], ["[5]", "[0]"]], ids=["twice", "known"])
def test_a_key_that_is_there_already_is_refused_and_named(database: Database, keys: list[str]) -> None:
    with database.write() as conn:
        inserted(conn, rows(["[0]"], [0]))
    new = rows(keys, list(range(len(keys))))

    with pytest.raises(KeyKnown), database.write() as conn:
        inserted(conn, new)

    with database.read() as conn:
        assert known_key(conn, 1, new) == keys[-1]
        assert list(conn.scalars(select(requests.c.key))) == ["[0]"]
        assert run_counts(conn, 1) == {"in_flight": 1}


def test_no_rows_are_no_work(database: Database) -> None:
    with database.write() as conn:
        assert inserted(conn, NewRows.none()) == []
