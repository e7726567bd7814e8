"""An unchanged source is not read again, and every change of it is found, without a mark that it is settled."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from sqlalchemy import delete, select, update

from pipeline.errors import SourceError
from pipeline.job.model import Source
from pipeline.planning.selection import Selection
from pipeline.source import frames
from pipeline.source.fingerprint import fingerprint
from pipeline.source.rows import Chunk, Rows
from pipeline.state import segments, settled
from pipeline.state.tables import requests
from pipeline.state.tables import stretches as stretches_table
from pipeline.storage import digests
from tests.conftest import World, texts
from tests.support.object_storage import S3

POSTGRESQL_IS_LONG = True

KEEP = {"source": {"keep": ["seen"]}}


@pytest.fixture(autouse=True)
def _nothing_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the rows of the database compared: test_settled.py looks at the mark, with which they are not."""
    monkeypatch.setattr(settled, "mark_settled", lambda *_: None)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list that gets the name of a file for each chunk of 4 rows read."""
    monkeypatch.setattr(frames, "CHUNK_ROWS", 4)
    found: list[str] = []
    chunks = Rows.chunks

    def noted(self: Rows, *args: Any, **options: Any) -> Iterator[Chunk]:
        for chunk in chunks(self, *args, **options):
            found.append(chunk.input.name)
            yield chunk

    monkeypatch.setattr(Rows, "chunks", noted)
    return found


def again(world: World, read: list[str], **job: Any) -> dict[str, int]:
    """Run the same command again and return the number of rows by status."""
    read.clear()
    return world.run(world.job(**job)).rows


def kept(world: World) -> int:
    """Return how many rows are kept according to the last quote."""
    return sum(n for kind, n in world.told("quote")[-1]["quote"].rows.items() if kind in ("kept", "kept_older"))


def seen(n: int, what: str) -> list[dict[str, object]]:
    return [{**row, "seen": what} for row in texts(n)]


def test_a_file_of_the_same_bytes_is_not_read_again(world: World, read: list[str]) -> None:
    path = world.rows(texts(10))
    world.run(world.job())
    os.utime(path, (0, 0))

    assert again(world, read) == {}

    assert read == []
    assert (kept(world), world.accepted()) == (10, 10)


def test_of_several_files_only_the_new_one_is_read(world: World, read: list[str]) -> None:
    world.rows(texts(10), "a.csv")
    job = {"source": {"path": str(world.folder / "*.csv")}}
    os.unlink(world.folder / "rows.csv")
    world.run(world.job(**job))
    world.rows([{"id": "new", "text": "A new text."}], "b.csv")

    assert again(world, read, **job) == {"succeeded": 1}

    assert set(read) == {"b.csv"}
    assert (kept(world), world.accepted()) == (10, 11)
    assert again(world, read, **job) == {}
    assert read == []
    assert kept(world) == 11


def test_one_row_that_changed_in_a_file_is_sent_alone(world: World, read: list[str]) -> None:
    world.rows(texts(10))
    world.run(world.job())
    changed = texts(10)
    changed[5]["text"] = "Text numbex 5 is about the number 5."  # as long as before
    world.rows(changed)

    assert again(world, read) == {"succeeded": 1}

    assert world.accepted() == 11
    assert "numbex" in world.answers()["r5"]["text"]
    assert again(world, read) == {}
    assert read == []


def test_changed_rows_of_a_file_that_gets_its_earlier_content_again_are_sent(world: World, read: list[str]) -> None:
    world.rows(texts(10))
    world.run(world.job())
    changed = texts(10)
    changed[5]["text"] = "Something else."
    world.rows(changed)
    world.run(world.job())
    world.rows(texts(10))

    assert again(world, read) == {"succeeded": 1}

    assert "Text number 5" in world.answers()["r5"]["text"]


def test_equal_rows_in_a_rewritten_file_are_read_once_and_not_sent(world: World, read: list[str]) -> None:
    world.rows(texts(10))
    world.run(world.job())
    world.rows([{"text": row["text"], "id": row["id"]} for row in texts(10)])

    assert again(world, read) == {}
    assert len(read) == 3  # by pass one

    assert again(world, read) == {}
    assert read == []
    assert world.accepted() == 10


def test_reordered_rows_are_recognised(world: World, read: list[str]) -> None:
    world.rows(texts(10))
    world.run(world.job())
    world.rows(texts(10)[::-1])

    assert again(world, read) == {}

    assert (kept(world), world.accepted()) == (10, 10)


@pytest.mark.parametrize("recipe", ["the same", "newer"])
@pytest.mark.parametrize("places", [(0, 9), (1, 4), (3, 12), (20, 21)], ids=str)
def test_new_rows_between_the_old_ones_are_sent_alone(
    world: World, read: list[str], places: tuple[int, int], recipe: str
) -> None:
    world.rows(texts(20))
    world.run(world.job())
    between = texts(20)
    for place in places:
        between.insert(place, {"id": f"n{place}", "text": f"A new text at {place}."})
    between.pop(16)  # which keeps its answer
    world.rows(between)

    assert again(world, read, request={"max_tokens": 100 if recipe == "the same" else 200}) == {"succeeded": 2}

    assert (kept(world), world.accepted()) == (19, 22)
    assert len(world.answers()) == 22
    assert again(world, read, request={"max_tokens": 100 if recipe == "the same" else 200}) == {}


@pytest.mark.parametrize("column", ["row_hash", "outcome_hash", "changed_hash"])
def test_a_file_is_read_when_the_state_of_one_of_its_rows_differs_from_the_note(
    world: World, read: list[str], column: str
) -> None:
    world.rows(texts(10))
    world.run(world.job())
    with world.database.write() as conn:
        conn.execute(update(requests).where(requests.c.key == '["r7"]').values({column: b"another"}))

    again(world, read)

    assert read != []


def test_a_row_that_is_gone_from_the_database_is_sent_again(world: World, read: list[str]) -> None:
    world.rows(texts(10))
    world.run(world.job())
    with world.database.write() as conn:
        conn.execute(delete(requests).where(requests.c.key == '["r7"]'))

    assert again(world, read) == {"succeeded": 1}


def test_a_row_that_failed_for_good_is_kept_without_reading(world: World, read: list[str]) -> None:
    world.rows(texts(10))
    world.emulator.add_fault(on="item", do="error", error_type="invalid_request_error", match="Text number 3 ")
    world.run(world.job())

    assert again(world, read) == {}

    assert (read, kept(world)) == ([], 10)


def test_a_failed_row_of_an_unchanged_file_is_sent_again_with_a_new_recipe(world: World, read: list[str]) -> None:
    world.rows(texts(10))
    world.emulator.add_fault(on="item", do="error", error_type="invalid_request_error", match="Text number 3 ", times=1)
    world.run(world.job())

    assert again(world, read, request={"max_tokens": 200}) == {"succeeded": 1}

    assert world.accepted() == 11


def test_answers_of_an_older_recipe_are_kept_until_refreshed(world: World, read: list[str]) -> None:
    world.rows(texts(10))
    world.run(world.job())
    newer = world.job(request={"max_tokens": 200})

    read.clear()
    assert (world.run(newer).rows, read, kept(world)) == ({}, [], 10)

    assert world.run(newer, refresh=True).rows == {"succeeded": 10}


def test_a_file_is_read_again_when_the_template_uses_other_columns(world: World, read: list[str]) -> None:
    world.rows(seen(10, "today"))
    world.run(world.job())

    rows_now = again(world, read, request={"prompt": "{{ text }} {{ seen }}"})

    assert rows_now == {"succeeded": 10}  # these columns were not among those that the answers are of


def test_a_change_of_only_a_kept_column_updates_the_answers(world: World, read: list[str]) -> None:
    world.rows(seen(10, "yesterday"))
    world.run(world.job(**KEEP))
    assert (again(world, read, **KEEP), read) == ({}, [])
    world.rows(seen(10, "today"))

    assert again(world, read, **KEEP) == {}

    assert {answer["seen"] for answer in world.answers().values()} == {"today"}
    assert world.accepted() == 10


def test_a_row_that_becomes_pending_after_the_quote_is_sent_and_not_vanished(world: World, read: list[str]) -> None:
    world.rows(texts(10))
    world.run(world.job())

    def requeue(event: str, facts: dict[str, Any]) -> None:
        if event == "quote":
            waiting = {"state": "pending", "waits": "spool", "batch_id": None, "n": None, "outcome_hash": b"older"}
            with world.database.write() as conn:
                conn.execute(update(requests).where(requests.c.key == '["r4"]').values(waiting))

    world.on_event = requeue

    assert again(world, read) == {"succeeded": 1}

    assert world.states()["r4"] == "succeeded"
    assert world.accepted() == 11


def test_rows_of_a_retry_are_read_from_an_unchanged_file(world: World, read: list[str]) -> None:
    world.rows(texts(10))
    world.run(world.job())
    read.clear()

    finished = world.run(world.job(), retry=Selection(keys=("r2",), statuses=("succeeded",)))

    assert finished.rows == {"succeeded": 1}
    assert read != []


def test_only_the_rows_within_the_limit_are_counted(world: World, read: list[str]) -> None:
    world.rows(texts(10))
    world.run(world.job())

    read.clear()
    assert world.run(world.job(), limit=3).rows == {}

    assert kept(world) == 3


def test_a_key_in_two_files_is_refused_although_one_file_is_known(world: World, read: list[str]) -> None:
    os.unlink(world.rows(texts(1)))
    job = {"source": {"path": str(world.folder / "*.csv")}}
    world.rows(texts(10), "a.csv")
    world.run(world.job(**job))
    world.rows([{"id": "r3", "text": "Another text."}], "b.csv")

    with pytest.raises(SourceError, match=r"r3 in a.csv row 4, b.csv row 1"):
        world.run(world.job(**job))


def test_a_key_given_as_number_and_as_text_is_refused_although_both_files_are_unchanged(
    world: World, read: list[str]
) -> None:
    """17 and "17" are two rows of the database, but the same key for a user who looks for an answer."""
    number, text = world.folder / "number.ndjson", world.folder / "text.ndjson"
    number.write_text('{"id": 17, "text": "A number."}\n{"id": "a", "text": "A letter."}\n')
    text.write_text('{"id": "17", "text": "A text."}\n')
    for path in (number, text):
        world.run(world.job(vars={"file": path.stem}, source={"path": str(path)}))

    with pytest.raises(SourceError, match=r"17 in number.ndjson row 1, text.ndjson row 1"):
        world.run(world.job(source={"path": str(world.folder / "*.ndjson")}))


def test_a_file_that_is_altered_during_planning_is_not_noted(world: World, read: list[str]) -> None:
    path = world.rows(texts(10))

    def touch(event: str, facts: dict[str, Any]) -> None:
        if event == "planned":
            os.utime(path, (1, 1))

    world.on_event = touch
    world.run(world.job())

    assert again(world, read) == {}
    assert read != []


def test_a_file_altered_within_one_tick_of_the_clock_is_not_noted(world: World, read: list[str]) -> None:
    path = world.rows(texts(10))
    time = os.stat(path).st_mtime_ns

    def alter(event: str, facts: dict[str, Any]) -> None:
        if event == "planned":
            content = path.read_bytes()
            with open(path, "r+b") as file:
                file.write(content.replace(b"number 3 is", b"nummer 3 is"))
            os.utime(path, ns=(time, time))

    world.on_event = alter
    world.run(world.job())
    world.on_event = None

    assert again(world, read) == {"succeeded": 1}
    assert "nummer" in world.answers()["r3"]["text"]


def test_a_driver_that_died_while_planning_leaves_no_note(world: World, read: list[str]) -> None:
    world.rows(texts(10))
    world.dies_at(world.job(limits={"max_batch_requests": 2}), "planned")

    with world.database.read() as conn:
        assert conn.scalar(select(stretches_table.c.n).limit(1)) is None
    assert world.run(world.job()).rows == {"succeeded": 10}


def test_an_unchanged_parquet_file_is_recognised_by_its_bytes(world: World, read: list[str]) -> None:
    pl.DataFrame(texts(10)).write_parquet(world.folder / "rows.parquet")
    job = {"source": {"path": str(world.folder / "rows.parquet")}}
    world.run(world.job(**job))

    assert again(world, read, **job) == {}
    assert (read, kept(world)) == ([], 10)


def test_notes_of_rows_that_were_planned_again_are_removed(world: World) -> None:
    for text_of_r0 in ("one", "two", "three"):
        world.rows([{"id": "r0", "text": text_of_r0}, *texts(10)[1:]])
        world.run(world.job())

    with world.database.read() as conn:
        assert len(set(conn.scalars(select(stretches_table.c.source)))) == 1


# -- stretches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_of_a_stretch", [1, 3, 10, 100])
def test_the_digest_of_a_note_equals_the_digest_of_its_rows(
    world: World, monkeypatch: pytest.MonkeyPatch, rows_of_a_stretch: int
) -> None:
    monkeypatch.setattr(segments, "MOST_ROWS", rows_of_a_stretch)
    monkeypatch.setattr(segments, "FEWEST_ROWS", 1)
    world.rows([{**row, "id": f"ä{i}\n"} for i, row in enumerate(seen(10, "a\nb"))])
    world.run(world.job(**KEEP))

    with world.database.read() as conn:
        source = conn.scalars(select(stretches_table.c.source)).first()
        assert source is not None
        notes = segments.notes_of(conn, 1, source)
        found = [segments.segment_from(conn, 1, n.first, n.last, n.rows, recipe="other") for n in notes]

    assert [each.digest for each in found] == [note.digest for note in notes]
    assert b"".join(each.states for each in found) == b"2" * 10
    assert sum(note.rows for note in notes) == 10


def test_rows_of_other_jobs_are_not_part_of_a_segment(world: World) -> None:
    world.rows(texts(6))
    world.run(world.job())
    world.run(world.job(name="others", sink={"table": "others"}))
    with world.database.write() as conn:  # every second number is another job's
        for job, offset in ((1, 100), (2, 101 - 12)):
            of_job = update(requests).where(requests.c.job_id == job)
            conn.execute(of_job.values(id=requests.c.id * 2 + offset))

    with world.database.read() as conn:
        found = segments.beginning_with(conn, 2, '["r1"]', 4, recipe="")

    assert found.keys.decode().split("\n") == [f'["r{i}"]' for i in range(1, 5)]


def test_a_file_of_more_than_one_block_has_one_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.csv"
    pl.DataFrame(texts(1000)).write_csv(path)
    job = {"path": str(path), "key": "id"}
    source = Source.model_validate(job)
    file = Rows(source).inputs[0]
    monkeypatch.setattr(digests, "_READ_BYTES", 100)
    monkeypatch.setattr(digests, "_BLOCK_BYTES", 1000)

    one = fingerprint(file, source, ["text"])

    assert one == fingerprint(file, source, ["text"])
    assert one != fingerprint(file, source, ["id"])
    content = path.read_bytes()
    path.write_bytes(content[:-2] + b"!\n")
    assert fingerprint(file, source, ["text"]) != one


def test_an_object_with_the_same_etag_is_not_read_again(world: World, s3: S3, read: list[str]) -> None:
    def rows(text: str) -> bytes:
        return ("id,text\n" + "".join(f"r{i},{text} {i}\n" for i in range(10))).encode()

    job = {"source": {"path": s3.put("rows.csv", rows("text"))}}
    world.run(world.job(**job))

    assert again(world, read, **job) == {}
    assert read == []
    assert kept(world) == 10
    s3.put("rows.csv", rows("other"))
    assert again(world, read, **job) == {"succeeded": 10}
    assert read != []
