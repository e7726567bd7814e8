"""Files and folders are synced in an order that leaves a correct state after a power cut at any moment."""

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.request import packing
from pipeline.request.packing import Packing
from pipeline.sink.export import export
from pipeline.sink.partitions import export_partitioned
from pipeline.sink.read import AnswerFilter
from pipeline.spool.body import BodyWriter
from pipeline.spool.local import LocalSpool
from pipeline.state.jobs import JobRecord, job_named
from pipeline.storage import durable
from pipeline.storage.folders import MARKER
from tests.conftest import World
from tests.support.bodies import one_request

POSTGRESQL_IS_LONG = True

Steps = list[tuple[str, str]]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Steps:
    """What is synced, linked and renamed below the test's folder, as it happens: the call, and the path in there."""
    done: Steps = []

    def note(call: str, path: Any) -> None:
        absolute = Path(path).absolute()
        if absolute.is_relative_to(tmp_path):
            done.append((call, str(absolute.relative_to(tmp_path))))

    fsync, link, rename, replace = os.fsync, os.link, Path.rename, Path.replace

    def synced(handle: int) -> None:
        fsync(handle)
        note("sync", os.readlink(f"/proc/self/fd/{handle}"))

    def linked(source: Any, to: Any) -> None:
        link(source, to)
        note("name", to)

    def renamed(source: Path, to: Any) -> Path:
        note("name", to)
        return rename(source, to)

    def replaced(source: Path, to: Any) -> Path:
        note("name", to)
        return replace(source, to)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Path, "replace", replaced)
    return done


def named_durably(steps: Steps, name: str, *, content: str | None = None) -> bool:
    """Whether this got its name after its content was synced, and its folder was synced after that."""
    at = steps.index(("name", name))
    before = [path for call, path in steps[:at] if call == "sync"]
    return ("sync", str(Path(name).parent)) in steps[at:] and any(path.startswith(content or name) for path in before)


def test_a_new_spool_is_durable_with_its_marker_and_all_folders_above_it(tmp_path: Path, steps: Steps) -> None:
    LocalSpool.open(tmp_path / "a" / "b" / "spool", "tickets")

    synced = [path for call, path in steps if call == "sync"]
    assert {".", "a", "a/b", "a/b/spool"} <= set(synced)  # each has a new name in it
    assert named_durably(steps, f"a/b/spool/{MARKER}", content=f"a/b/spool/{MARKER}.")


def test_an_existing_spool_is_opened_without_a_sync(tmp_path: Path, steps: Steps) -> None:
    LocalSpool.open(tmp_path / "spool", "tickets")
    steps.clear()

    LocalSpool.open(tmp_path / "spool", "tickets")
    assert steps == []

    LocalSpool.open(tmp_path / "spool", "another")
    assert steps == [("sync", "spool")]


def test_the_driver_that_loses_the_race_for_a_marker_syncs_the_marker_before_it_uses_it(
    tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def late(source: Any, to: Any) -> None:
        Path(to).write_text("of the other driver\n")
        link(source, to)

    monkeypatch.setattr(os, "link", late)

    assert LocalSpool.open(tmp_path / "spool", "tickets").id == "of the other driver"
    assert steps[-1] == ("sync", "spool")


def test_a_body_is_durable_before_its_batch_is_committed(tmp_path: Path, steps: Steps) -> None:
    spool = LocalSpool.open(tmp_path / "spool", "tickets")
    body = BodyWriter(spool, Packing(packing.new_nonce(), 100, 1_000_000))
    body.fill(one_request(b"{}"), dedupe=False)
    body.finish()

    name = f"spool/tickets/{body.contents.nonce}"
    assert named_durably(steps, f"{name}.json", content=f"{name}.tmp")


def test_a_new_folder_has_the_permissions_that_were_asked_for(tmp_path: Path) -> None:
    durable.make_folder(tmp_path / "a" / "b", mode=durable.PRIVATE)

    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == durable.PRIVATE
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o777 & ~umask()


def umask() -> int:
    """The umask of this process."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


# -- answers ---------------------------------------------------------------------------------------------------------


def answered(world: World) -> "JobRecord":
    world.run(world.job())
    with world.database.read() as conn:
        row = job_named(conn, "summaries")
    assert row is not None
    return row


def test_an_exported_file_is_durable_with_its_name(world: World, tmp_path: Path, steps: Steps) -> None:
    export(world.database, answered(world), tmp_path / "answers.csv", AnswerFilter())

    assert named_durably(steps, "answers.csv", content=".answers.csv.")


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_exported_folder_is_durable_with_all_names_in_it(
    world: World, tmp_path: Path, steps: Steps, *, overwrite: bool
) -> None:
    job, place = answered(world), str(tmp_path / "answers")
    if overwrite:
        export_partitioned(world.database, job, place, ["status"], AnswerFilter(), ending=".csv", overwrite=False)
    steps.clear()

    export_partitioned(world.database, job, place, ["status"], AnswerFilter(), ending=".csv", overwrite=overwrite)

    at = steps.index(("name", "answers"))
    inside = [Path(path).relative_to(Path(path).parts[0]).as_posix() for call, path in steps[:at] if call == "sync"]
    assert {".", "status=succeeded"} <= set(inside)
    assert any(path.startswith("status=succeeded/part-") for path in inside)
    assert ("sync", ".") in steps[at:]
