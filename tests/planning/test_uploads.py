"""Files that rows name are uploaded once, remembered, and removed when no row needs them."""

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from PIL import Image
from pypdf import PdfWriter
from sqlalchemy import select

from pipeline.errors import AccountStopped, ApiUnreachable
from pipeline.job.model import Job
from pipeline.planning.selection import Selection
from pipeline.runner.options import Options
from pipeline.runner.run import run
from pipeline.state.jobs import job_named
from pipeline.state.tables import files
from pipeline.steps.cancel import cancel
from tests.conftest import World

POSTGRESQL_IS_LONG = True

DELETING = {"delete_remote": True}


def picture(colour: int = 200) -> bytes:
    """Return an image file of one colour."""
    out = BytesIO()
    Image.new("RGB", (4, 3), (colour, 30, 30)).save(out, "PNG")
    return out.getvalue()


def pdf(pages: int = 1) -> bytes:
    """Return a PDF of blank pages."""
    writer, out = PdfWriter(), BytesIO()
    for _ in range(pages):
        writer.add_blank_page(100, 100)
    writer.write(out)
    return out.getvalue()


def rows(world: World, named: Sequence[str]) -> None:
    """Write the source: a row for each of these files, each with its own question."""
    world.rows([{"id": f"r{i}", "text": f"Question {i}?", "file": name} for i, name in enumerate(named)])


def job(world: World, **changes: Any) -> Job:
    """Return a job whose rows name one document each, which is uploaded."""
    attachments = [{"document": "file", "upload": True}]
    return world.job(request={"attachments": attachments, "prompt": "{{ text }}"}, **changes)


def put_up(world: World) -> int:
    """Return the number of uploads, including those that failed."""
    return calls(world, "POST")


def calls(world: World, method: str) -> int:
    """Return the number of calls of the Files API with this method."""
    found = (call for call in world.emulator.log() if call["path"].startswith("/v1/files"))
    return sum(call["method"] == method for call in found)


def named(world: World) -> list[Any]:
    """Return the sources of all documents in requests that the API has accepted."""
    found = []
    for batch in dict.fromkeys(each["batch_id"] for each in world.emulator.accepted()):
        for line in (world.emulator.data / "batches" / batch / "requests").read_bytes().splitlines():
            content = orjson.loads(line.split(b" ", 2)[2])["messages"][0]["content"]
            found += [block["source"] for block in content if block["type"] in ("document", "image")]
    return found


def at_the_api(world: World) -> list[str]:
    """Return the ids of the files at the API."""
    return [each.id for each in world.client().files.list()]


def known(world: World) -> list[str]:
    """Return the ids of the files in the database."""
    with world.database.read() as conn:
        return list(conn.scalars(select(files.c.file_id).order_by(files.c.id)))


@pytest.fixture(autouse=True)
def lease(world: World) -> Path:
    """Write a document beside the source and return its path."""
    path = world.folder / "lease.pdf"
    path.write_bytes(pdf(2))
    return path


def test_rows_about_one_file_upload_it_once_and_share_its_id(world: World) -> None:
    rows(world, ["lease.pdf"] * 50)

    finished = world.run(job(world))

    assert finished.rows == {"succeeded": 50}
    assert put_up(world) == 1
    assert named(world) == [{"type": "file", "file_id": at_the_api(world)[0]}] * 50
    [metadata] = world.client().files.list()
    assert (metadata.filename, metadata.mime_type) == ("lease.pdf", "application/pdf")


def test_files_with_equal_content_are_uploaded_once(world: World) -> None:
    (world.folder / "copy.pdf").write_bytes((world.folder / "lease.pdf").read_bytes())
    (world.folder / "other.pdf").write_bytes(pdf(3))
    rows(world, ["lease.pdf", "copy.pdf", "other.pdf"])

    finished = world.run(job(world))

    assert finished.rows == {"succeeded": 3}
    assert put_up(world) == 2


def test_images_are_uploaded_too(world: World) -> None:
    (world.folder / "red.png").write_bytes(picture())
    rows(world, ["red.png"] * 3)
    request = {"attachments": [{"image": "file", "upload": True}], "prompt": "{{ text }}"}

    finished = world.run(world.job(request=request))

    assert finished.rows == {"succeeded": 3}
    assert put_up(world) == 1
    assert {source["type"] for source in named(world)} == {"file"}


def test_files_are_not_uploaded_unless_the_job_says_so(world: World) -> None:
    rows(world, ["lease.pdf"] * 2)

    world.run(world.job(request={"attachments": [{"document": "file"}], "prompt": "{{ text }}"}))

    assert put_up(world) == 0
    assert {source["type"] for source in named(world)} == {"base64"}


@pytest.mark.parametrize("options", [{"dry_run": True}, {"confirm": lambda quote: False}], ids=["dry", "declined"])
def test_a_quote_uploads_nothing(world: World, options: dict[str, Any]) -> None:
    rows(world, ["lease.pdf"] * 3)

    quoted = world.run(job(world), **options)

    assert quoted.quote.to_send == 3
    assert calls(world, "POST") == 0


def test_new_rows_about_an_uploaded_file_upload_nothing(world: World) -> None:
    rows(world, ["lease.pdf"] * 3)
    world.run(job(world))
    rows(world, ["lease.pdf"] * 5)

    finished = world.run(job(world))

    assert finished.rows == {"succeeded": 2}
    assert put_up(world) == 1
    assert len({source["file_id"] for source in named(world)}) == 1


def test_a_file_that_was_deleted_at_the_api_is_uploaded_again(world: World) -> None:
    rows(world, ["lease.pdf"] * 3)
    world.run(job(world))
    before = known(world)
    world.client().files.delete(before[0])
    rows(world, ["lease.pdf"] * 5)

    finished = world.run(job(world))

    assert finished.rows == {"succeeded": 2}
    assert put_up(world) == 2
    assert known(world) == at_the_api(world) != before


def test_another_account_uploads_its_own_copy_of_a_file(world: World) -> None:
    rows(world, ["lease.pdf"] * 3)
    world.run(job(world))
    world.key = "test@other-team"
    rows(world, ["lease.pdf"] * 5)

    finished = world.run(job(world))

    assert finished.rows == {"succeeded": 2}
    assert put_up(world) == 2


def test_each_job_uploads_its_own_copy_of_a_file(world: World) -> None:
    rows(world, ["lease.pdf"] * 2)
    world.run(job(world))
    world.run(job(world, name="other", sink={"table": "others"}, privacy=DELETING))

    assert put_up(world) == 2
    assert len(at_the_api(world)) == 1


def test_a_budget_counts_each_uploaded_file_as_the_longest_possible(world: World) -> None:
    rows(world, ["lease.pdf"] * 3)

    finished = world.run(job(world, limits={"max_cost_usd": 2.0}))
    stopped = world.run(small(world))

    assert finished.rows == {"succeeded": 3}
    assert stopped.reason == "budget"


def small(world: World) -> Job:
    """Return a job with another prompt and a very small budget."""
    attachments = [{"document": "file", "upload": True}]
    return world.job(
        name="other",
        sink={"table": "others"},
        request={"attachments": attachments, "prompt": "Now: {{ text }}"},
        limits={"max_cost_usd": 0.01},
    )


# -- what a row is ---------------------------------------------------------------------------------------------------


def test_a_row_whose_file_is_missing_is_invalid_with_the_reason(world: World) -> None:
    rows(world, ["lease.pdf", "gone.pdf", "lease.pdf"])

    finished = world.run(job(world))

    assert finished.rows == {"succeeded": 2, "invalid": 1}
    assert "gone.pdf" in world.answers()["r1"]["error_message"]
    assert put_up(world) == 1


def test_a_row_whose_missing_file_was_added_is_sent(world: World) -> None:
    rows(world, ["lease.pdf", "late.pdf"])
    world.run(job(world))
    (world.folder / "late.pdf").write_bytes(pdf(3))

    finished = world.run(job(world))

    assert finished.rows == {"succeeded": 1}
    assert put_up(world) == 2


def test_a_touched_file_makes_its_rows_changed_and_is_not_uploaded_again(world: World, lease: Path) -> None:
    (world.folder / "other.pdf").write_bytes(pdf(3))
    rows(world, ["lease.pdf", "lease.pdf", "other.pdf"])
    world.run(job(world))
    os.utime(lease, ns=(1, 1))

    finished = world.run(job(world))

    assert finished.rows == {"succeeded": 2}
    assert world.accepted() == 5
    assert put_up(world) == 2


def test_a_file_with_new_content_is_uploaded_in_addition_to_the_old_one(world: World, lease: Path) -> None:
    rows(world, ["lease.pdf"] * 2)
    world.run(job(world))
    lease.write_bytes(pdf(5))

    finished = world.run(job(world))

    assert finished.rows == {"succeeded": 2}
    assert (put_up(world), len(known(world))) == (2, 2)
    assert len({source["file_id"] for source in named(world)}) == 2


# -- removing --------------------------------------------------------------------------------------------------------


def test_uploaded_files_are_removed_when_the_run_is_collected_and_not_before(world: World) -> None:
    rows(world, ["lease.pdf"] * 4)
    there: list[tuple[str, int]] = []

    def look(event: str, facts: dict[str, Any]) -> None:
        if event in ("submitted", "ended", "collected", "finished"):
            there.append((event, len(at_the_api(world))))

    world.on_event = look
    finished = world.run(job(world, privacy=DELETING, limits={"max_batch_requests": 2}))

    assert finished.rows == {"succeeded": 4}
    assert {number for event, number in there if event != "finished"} == {1}
    assert (at_the_api(world), known(world)) == ([], [])
    assert len(world.told("file_removed")) == 1


def test_uploaded_files_stay_unless_the_job_removes_them(world: World) -> None:
    rows(world, ["lease.pdf"])

    world.run(job(world))
    world.sweep()

    assert len(at_the_api(world)) == 1


def test_sweeps_remove_uploaded_files(world: World) -> None:
    rows(world, ["lease.pdf"] * 4)
    world.run(job(world, privacy=DELETING, limits={"max_batch_requests": 2}), detach=True)
    before = len(at_the_api(world))

    for _ in range(3):
        world.clock.advance(61)
        world.sweep()

    assert before == 1
    assert (at_the_api(world), known(world)) == ([], [])
    assert world.sweep() == []


def test_a_file_stays_until_retried_rows_that_need_it_are_collected(world: World) -> None:
    rows(world, ["lease.pdf"] * 4)
    world.emulator.add_fault(on="item", do="error", error_type="overloaded_error", times=2)

    finished = world.run(job(world, privacy=DELETING))

    assert finished.rows == {"succeeded": 4}
    assert put_up(world) == 1
    assert at_the_api(world) == []


def test_removed_files_are_uploaded_again_for_new_rows(world: World) -> None:
    rows(world, ["lease.pdf"])
    world.run(job(world, privacy=DELETING))
    rows(world, ["lease.pdf"] * 3)

    finished = world.run(job(world, privacy=DELETING))

    assert finished.rows == {"succeeded": 2}
    assert put_up(world) == 2
    assert at_the_api(world) == []


def test_removed_files_are_uploaded_again_for_a_retry(world: World) -> None:
    rows(world, ["lease.pdf"] * 3)
    world.emulator.add_fault(on="item", do="refuse", times=1)
    world.run(job(world, privacy=DELETING))

    finished = world.run(job(world, privacy=DELETING), retry=Selection())

    assert finished.rows == {"succeeded": 1}
    assert put_up(world) == 2
    assert at_the_api(world) == []


def test_a_file_that_cannot_be_removed_now_is_removed_by_a_sweep(world: World) -> None:
    rows(world, ["lease.pdf"])
    world.emulator.add_fault(on="files_delete", do="status", status=529, error_type="overloaded_error", times=2)

    finished = world.run(job(world, privacy=DELETING))
    left = len(at_the_api(world))
    for _ in range(3):
        world.clock.advance(61)
        world.sweep()

    assert finished.exit_code == 0
    assert world.told("file_not_removed")
    assert left <= 1
    assert (at_the_api(world), known(world)) == ([], [])
    assert world.sweep() == []


def test_a_file_that_another_program_removed_is_forgotten(world: World) -> None:
    rows(world, ["lease.pdf"])
    work = job(world, privacy=DELETING)
    world.run(work, detach=True)
    world.clock.advance(61)
    world.emulator.add_fault(on="files_delete", do="status", status=404, error_type="not_found_error", times=1)

    world.sweep()
    world.sweep()

    assert known(world) == []


def test_a_file_is_not_removed_while_another_run_of_the_job_needs_it(world: World) -> None:
    rows(world, ["lease.pdf"] * 2)
    work = job(world, privacy=DELETING)
    world.run(work, detach=True)
    world.clock.advance(40)
    rows(world, ["lease.pdf"] * 4)
    request = {"attachments": [{"document": "file", "upload": True}], "prompt": "Otherwise: {{ text }}"}
    world.run(world.job(request=request, privacy=DELETING), detach=True)
    world.clock.advance(15)

    world.sweep()
    half_way = len(at_the_api(world))
    for _ in range(4):
        world.clock.advance(61)
        world.sweep()

    assert half_way == 1
    assert set(world.statuses().values()) == {"succeeded"}
    assert at_the_api(world) == []


def test_files_of_a_canceled_run_are_removed(world: World) -> None:
    rows(world, ["lease.pdf"] * 4)
    world.run(job(world, privacy=DELETING), detach=True)
    with world.database.read() as conn:
        row = job_named(conn, "summaries")
    assert row is not None
    cancel(world.where(), row)

    for _ in range(4):
        world.clock.advance(61)
        world.sweep()

    assert "pending" not in world.states().values()
    assert at_the_api(world) == []


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"do": "status", "status": 500}, id="500"),
        pytest.param({"do": "status", "status": 529}, id="529"),
        pytest.param({"do": "drop_before"}, id="cut before"),
        pytest.param({"do": "drop_after"}, id="cut after"),
    ],
)
def test_an_upload_without_a_response_stops_the_run_and_the_same_command_continues(
    world: World, fault: dict[str, Any]
) -> None:
    rows(world, ["lease.pdf"] * 3)
    world.emulator.add_fault(on="files_create", times=1, **fault)

    with pytest.raises(ApiUnreachable) as stopped:
        world.run(job(world))
    accepted = world.accepted()
    finished = world.run(job(world))

    assert (stopped.value.exit_code, accepted) == (3, 0)
    assert finished.rows == {"succeeded": 3}
    assert world.accepted() == 3
    assert len(known(world)) == 1


def test_a_file_that_is_refused_makes_only_its_rows_invalid_and_is_tried_once(world: World) -> None:
    (world.folder / "bad.pdf").write_bytes(pdf(3))
    rows(world, ["lease.pdf", "bad.pdf", "lease.pdf", "bad.pdf"])
    world.emulator.add_fault(on="files_create", do="status", status=400, match="bad.pdf", message="No such thing.")

    finished = world.run(job(world))

    assert finished.rows == {"succeeded": 2, "invalid": 2}
    assert "bad.pdf" in world.answers()["r1"]["error_message"]
    assert "No such thing." in world.answers()["r1"]["error_message"]
    assert put_up(world) == 2


def test_a_used_up_storage_quota_stops_the_run_and_makes_no_row_invalid(world: World) -> None:
    rows(world, ["lease.pdf"] * 3)
    full = {"on": "files_create", "do": "status", "status": 400, "error_code": "storage_quota_exceeded"}
    world.emulator.add_fault(**full, times=1)

    with pytest.raises(AccountStopped, match="storage quota"):
        world.run(job(world))
    finished = world.run(job(world))

    assert finished.rows == {"succeeded": 3}


def test_a_key_that_may_not_upload_files_stops_the_run(world: World) -> None:
    rows(world, ["lease.pdf"] * 3)
    world.emulator.add_fault(on="files_create", do="status", status=403, error_type="permission_error")

    with pytest.raises(AccountStopped):
        world.run(job(world))

    assert world.accepted() == 0


def test_an_api_without_files_stops_the_run(world: World) -> None:
    rows(world, ["lease.pdf"] * 3)
    world.emulator.add_fault(on="files_create", do="status", status=404, error_type="not_found_error")

    with pytest.raises(Exception, match="404") as stopped:
        world.run(job(world))

    assert getattr(stopped.value, "exit_code", None) == 3


@pytest.mark.parametrize("moment", ["uploaded", "planned", "collected"])
def test_another_driver_continues_after_one_died_while_uploading(world: World, moment: str) -> None:
    rows(world, ["lease.pdf"] * 4)
    work = job(world, privacy=DELETING)
    world.dies_at(work, moment)

    finished = world.run(work)

    assert set(world.statuses().values()) == {"succeeded"}
    assert finished.exit_code == 0
    assert (world.accepted(), put_up(world)) == (4, 1)
    assert at_the_api(world) == []


@pytest.mark.parametrize("moment", ["uploaded", "planned", "submitting", "waiting", "collected"])
def test_a_second_driver_at_any_moment_uploads_nothing(world: World, moment: str) -> None:
    rows(world, ["lease.pdf"] * 4)
    work = job(world, limits={"max_batch_requests": 2})
    both = world.run_beside(work, moment)

    assert [finished.state for finished in both] == ["finished", "finished"]
    assert (world.accepted(), put_up(world)) == (4, 1)
    assert set(world.statuses().values()) == {"succeeded"}


def test_a_file_removed_while_its_rows_are_in_flight_fails_them_and_a_retry_uploads_it_again(world: World) -> None:
    rows(world, ["lease.pdf"] * 2)
    world.run(job(world), detach=True)
    world.client().files.delete(known(world)[0])

    failed = world.run(job(world))
    again = world.run(job(world), retry=Selection())

    assert failed.rows == {"errored": 2}
    assert again.rows == {"succeeded": 2}
    assert put_up(world) == 2


def test_the_metadata_of_a_file_is_requested_once_per_planning(world: World) -> None:
    rows(world, ["lease.pdf"] * 3)
    world.run(job(world))
    rows(world, ["lease.pdf"] * 50)

    world.run(job(world))

    found = [c for c in world.emulator.log() if c["method"] == "GET" and c["path"].startswith("/v1/files/")]
    assert len(found) == 1


class Leaving(httpx2.BaseTransport):
    """Removes the local file as soon as it has been uploaded."""

    def __init__(self, world: World, path: Path) -> None:
        self._inner, self._path = world.emulator.transport(), path

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self._inner.handle_request(request)
        if request.url.path == "/v1/files":
            self._path.unlink(missing_ok=True)
        return response


def test_rows_that_are_sent_again_do_not_need_the_local_file(world: World, lease: Path) -> None:
    rows(world, ["lease.pdf"])
    world.emulator.add_fault(on="item", do="error", error_type="overloaded_error", times=1)

    finished = run(job(world), world.where(Leaving(world, lease)), Options())

    assert finished.rows == {"succeeded": 1}
    assert put_up(world) == 1
