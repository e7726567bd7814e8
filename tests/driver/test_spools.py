"""A job's spool may get another address at any time, and another place while no batch needs its body."""

import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Connection, select, update

from pipeline.driver import spools
from pipeline.errors import DatabaseError, Interrupted, Stopped
from pipeline.planning import packer
from pipeline.spool.body import BodyWriter
from pipeline.state.jobs import job_named
from pipeline.state.rows import note_sent
from pipeline.state.tables import batches, jobs, requests
from pipeline.steps.submit import submit_due
from pipeline.storage.folders import MARKER
from tests.conftest import World, texts
from tests.support.object_storage import S3
from tests.support.processes import begin, environment, put_job

POSTGRESQL_IS_LONG = True

SMALL = {"max_batch_requests": 2}


@pytest.fixture
def local(world: World, tmp_path: Path) -> World:
    """Return a world whose spool is a folder given by the user."""
    world.spool = str(tmp_path / "spool")
    return world


def place(world: World) -> tuple[str, str]:
    """Return the address and the id of the job's spool in the database."""
    with world.database.read() as conn:
        address, identifier = conn.execute(select(jobs.c.spool, jobs.c.spool_id)).one()
    return address, identifier


def marker(folder: Path) -> str:
    """Return the id of the spool in a folder."""
    return (folder / MARKER).read_text().strip()


def all_is_well(world: World, rows: int) -> None:
    """Assert that each row was accepted once and has its answer."""
    assert world.statuses() == {f"r{i}": "succeeded" for i in range(rows)}
    assert world.accepted() == rows
    assert world.sent_twice() == []


def test_a_run_continues_with_the_same_spool_at_another_address(local: World, tmp_path: Path) -> None:
    local.dies_at(local.job(limits=SMALL), "submitted")
    _, identifier = place(local)
    (tmp_path / "spool").rename(tmp_path / "moved")  # a disk that is mounted elsewhere now

    local.spool = str(tmp_path / "moved")
    local.run(local.job(limits=SMALL))

    all_is_well(local, 5)
    assert place(local) == (str(tmp_path / "moved"), identifier)
    assert not (tmp_path / "spool").exists()
    local.spool = None  # remembered
    local.rows(texts(7))
    local.run(local.job(limits=SMALL))
    all_is_well(local, 7)


def test_a_sweep_continues_with_the_same_spool_at_another_address(local: World, tmp_path: Path) -> None:
    local.run(local.job(limits=SMALL), detach=True)
    (tmp_path / "spool").rename(tmp_path / "moved")
    assert "is not the one that job summaries has used" in str(local.sweep()[0][1])

    local.spool = str(tmp_path / "moved")
    local.clock.advance(100)
    assert local.sweep() == [("summaries", None)]

    all_is_well(local, 5)
    assert place(local)[0] == str(tmp_path / "moved")


def test_a_renamed_bucket_is_the_same_spool(world: World, s3: S3) -> None:
    world.spool = f"{s3.url}/spool"
    world.dies_at(world.job(limits=SMALL), "submitted")
    s3.client.create_bucket(Bucket="renamed")
    for key in s3.keys("spool/"):
        s3.client.copy_object(Bucket="renamed", Key=key, CopySource={"Bucket": s3.bucket, "Key": key})
        s3.client.delete_object(Bucket=s3.bucket, Key=key)

    world.spool = "s3://renamed/spool"
    world.run(world.job(limits=SMALL))

    all_is_well(world, 5)
    assert place(world)[0] == "s3://renamed/spool"
    assert s3.keys() == []


@pytest.mark.parametrize("old_is_gone", [False, True], ids=["the folder is there", "the folder is gone"])
def test_a_spool_moves_from_a_folder_to_object_storage_when_every_batch_is_collected(
    local: World, tmp_path: Path, s3: S3, *, old_is_gone: bool
) -> None:
    local.run(local.job(limits=SMALL))
    _, before = place(local)
    if old_is_gone:
        shutil.rmtree(tmp_path / "spool")

    local.spool = f"{s3.url}/spool"
    local.rows(texts(7))
    local.run(local.job(limits=SMALL))

    all_is_well(local, 7)
    assert place(local) == (f"{s3.url}/spool", s3.get(f"spool/{MARKER}").decode().strip())
    assert place(local)[1] != before
    assert [facts["spool"] for facts in local.told("spool_moved")] == [f"{s3.url}/spool"]


@pytest.mark.parametrize("world", ["SQLite"], indirect=True)  # a database on a server has no folder
def test_a_spool_beside_the_database_can_move_too(world: World, tmp_path: Path) -> None:
    world.run(world.job())

    world.spool = str(tmp_path / "elsewhere")
    world.rows(texts(6))
    world.run(world.job())

    all_is_well(world, 6)
    assert place(world) == (str(tmp_path / "elsewhere"), marker(tmp_path / "elsewhere"))


def planned(world: World) -> None:
    """Leave batches planned, because the API refuses them for now."""
    world.emulator.add_fault(on="create", do="status", status=429, error_type="rate_limit_error", retry_after=100)
    world.run(world.job(limits=SMALL), detach=True)
    world.emulator.clear_faults()
    assert world.batch_states() == ["planned"] * 3


def at_the_api(world: World) -> None:
    """Leave batches at the API, whose rows may have to be sent again."""
    world.run(world.job(limits=SMALL), detach=True)
    assert world.batch_states() == ["in_progress"] * 3


def waiting(world: World) -> None:
    """Leave a row of the second batch pending, to be sent again from its body, with no run open."""
    world.run(world.job(limits=SMALL))
    with world.database.write() as conn:
        row = conn.execute(select(requests).where(requests.c.batch_id == 2).limit(1)).one()
        again = {"state": "pending", "waits": "spool", "batch_id": None, "n": None}
        conn.execute(update(requests).where(requests.c.id == row.id).values(**again))
    assert world.batch_states() == ["collected"] * 3


@pytest.mark.parametrize(
    ("before", "named"),
    [(planned, r"\(batches 1, 2, 3\)"), (at_the_api, r"\(batches 1, 2, 3\)"), (waiting, r"\(batch 2\)")],
    ids=["planned", "at the API", "waiting to be sent again"],
)
def test_another_spool_is_refused_while_a_batch_needs_its_body(
    local: World, tmp_path: Path, before: Callable[[World], None], named: str
) -> None:
    before(local)
    own, other = place(local), str(tmp_path / "other")

    local.spool = other
    with pytest.raises(DatabaseError, match=rf"--spool {other} is not the spool of job summaries.*{named}") as refused:
        local.run(local.job(limits=SMALL))

    assert f"`batch-pipeline collect summaries` has collected them, or copy all of {own[0]}" in str(refused.value)
    assert place(local) == own
    assert not (tmp_path / "other").exists()
    shutil.copytree(tmp_path / "spool", tmp_path / "other")  # as it says
    local.clock.advance(200)
    local.run(local.job(limits=SMALL))
    assert place(local) == (other, own[1])
    assert set(local.statuses().values()) == {"succeeded"}
    assert local.sent_twice() == []


def test_a_spool_is_not_moved_while_it_holds_bodies_unknown_to_a_restored_database(
    local: World, tmp_path: Path
) -> None:
    local.run(local.job(limits=SMALL, privacy={"keep_spool": True}))
    with local.database.write() as conn:
        conn.execute(update(batches).where(batches.c.id == 1).values(nonce="of-another-time"))

    local.spool = str(tmp_path / "other")
    with pytest.raises(DatabaseError, match=r"holds a body that .* does not know .*once without --spool"):
        local.run(local.job(limits=SMALL))


# -- two drivers, two spools -----------------------------------------------------------------------------------------


def move(world: World, folder: Path) -> str:
    """Make this folder the job's spool, as another driver does, and return the spool's id."""
    with world.database.read() as conn:
        job = job_named(conn, "summaries")
    assert job is not None
    return spools.open_for(world.database, job, str(folder))[0].id


def test_a_driver_whose_spool_is_moved_while_it_plans_commits_nothing(
    local: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.run(local.job(limits=SMALL))
    local.rows(texts(9))
    finish = BodyWriter.finish
    moved: list[str] = []

    def finished(body: BodyWriter) -> None:
        moved.extend([] if moved else [move(local, tmp_path / "other")])
        finish(body)  # it is there, and its batch is not committed yet

    monkeypatch.setattr(BodyWriter, "finish", finished)
    with pytest.raises(
        Stopped, match="another driver has moved the spool of job summaries; run the same command again"
    ):
        local.run(local.job(limits=SMALL))

    assert place(local) == (str(tmp_path / "other"), *moved)
    assert local.batch_states() == ["collected"] * 3
    assert list((tmp_path / "spool" / "summaries").iterdir()) == []
    local.spool = None
    local.run(local.job(limits=SMALL))
    all_is_well(local, 9)


def test_a_spool_is_not_moved_while_another_driver_commits_a_batch(
    local: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.run(local.job(limits=SMALL))
    own = place(local)
    local.rows(texts(9))
    said: list[str] = []

    def try_to_move() -> None:
        try:
            move(local, tmp_path / "other")
        except DatabaseError as exc:
            said.append(str(exc))

    other = threading.Thread(target=try_to_move)
    note = note_sent

    def noted(conn: Connection, rows: Sequence[tuple[int, bytes]]) -> None:
        note(conn, rows)
        if other.ident is None:  # the batch is in the database, and not committed
            other.start()
            other.join(0.5)  # which it would end in, if it did not have to wait

    monkeypatch.setattr(spools, "_refuse_unknown", lambda *_: None)  # as if the old spool were out of reach
    monkeypatch.setattr(packer, "note_sent", noted)
    local.emulator.add_fault(on="create", do="status", status=429, error_type="rate_limit_error", retry_after=100)
    local.run(local.job(limits=SMALL), detach=True)
    other.join()

    assert place(local) == own
    assert "bodies in that spool are still needed" in said[0]


def test_a_driver_with_the_old_spool_leaves_batches_of_the_new_spool_alone(local: World, tmp_path: Path) -> None:
    local.run(local.job(limits=SMALL))
    where = local.where()
    with local.database.read() as conn:
        job = job_named(conn, "summaries")
    assert job is not None
    with where.driving() as driving:
        late = driving.driver(job)
        local.spool = str(tmp_path / "other")
        local.rows(texts(9))
        local.emulator.add_fault(on="create", do="status", status=429, error_type="rate_limit_error", retry_after=100)
        local.run(local.job(limits=SMALL), detach=True)
        local.emulator.clear_faults()
        local.clock.advance(200)

        with pytest.raises(Stopped, match="another driver has moved the spool"):
            submit_due(late)

    assert local.batch_states() == ["collected"] * 3 + ["planned"] * 2
    local.run(local.job(limits=SMALL))
    all_is_well(local, 9)
    assert local.told("dropped") == []


@pytest.mark.parametrize("line", ["before", "after"])
def test_the_next_driver_finishes_the_move_of_a_spool_when_a_driver_died_in_it(
    local: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    local.run(local.job(limits=SMALL))
    own, other = place(local), tmp_path / "other"
    local.rows(texts(7))
    local.spool = str(other)

    def die(*_: object) -> None:
        raise Interrupted("as if it were killed before its commit")

    with monkeypatch.context() as patched:
        if line == "before":
            patched.setattr(spools, "set_spool", die)
            with pytest.raises(Interrupted):
                local.run(local.job(limits=SMALL))
        else:
            local.dies_at(local.job(limits=SMALL), "spool_moved")

    assert place(local) == (own if line == "before" else (str(other), marker(other)))
    local.run(local.job(limits=SMALL))
    all_is_well(local, 7)
    assert place(local) == (str(other), marker(other))


# -- check -----------------------------------------------------------------------------------------------------------


def checked(world: World, *options: str) -> tuple[int, str]:
    """Run `batch-pipeline check` of the job with the world's database and return exit code and stderr."""
    file = put_job(world.folder)
    file.write_text(file.read_text().replace("name: notes", "name: summaries").replace("note_summaries", "answers"))
    url = world.database.url.render_as_string(hide_password=False)
    process = begin(environment("http://127.0.0.1:9"), "check", str(file), "--database", url, *options)
    _, said = process.communicate(timeout=90)
    return process.returncode, said


@pytest.mark.long
def test_check_looks_at_the_spool_and_creates_nothing(local: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    code, said = checked(local, "--spool", str(tmp_path / "file"))
    assert code == 2
    assert f"spool {tmp_path}/file cannot be used" in said

    assert checked(local, "--spool", str(tmp_path / "new"))[0] == 0
    assert not (tmp_path / "new").exists()

    at_the_api(local)
    code, said = checked(local, "--spool", str(tmp_path / "new"))
    assert code == 2
    assert "still needed (batches 1, 2, 3)" in said

    (tmp_path / "spool").rename(tmp_path / "moved")
    code, said = checked(local)
    assert code == 2
    assert f"spool {tmp_path}/spool is not the one that job summaries has used" in said
    assert checked(local, "--spool", str(tmp_path / "moved"))[0] == 0
    assert place(local)[0] == str(tmp_path / "spool")
