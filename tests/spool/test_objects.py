"""The spool on object storage, with moto's S3 server over HTTP, injected faults, and drivers that die."""

import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from sqlalchemy import select

from pipeline.driver.spools import open_at
from pipeline.emulator import RunningEmulator, start
from pipeline.errors import DatabaseError, Stopped
from pipeline.request import packing
from pipeline.request.packing import Packing
from pipeline.spool import objects as object_spool
from pipeline.spool.body import BodyReader, BodyWriter, params_at
from pipeline.spool.local import LocalSpool
from pipeline.spool.objects import _COPIES, ObjectSpool
from pipeline.spool.spool import KnownBody, Spool
from pipeline.state.database import Database
from pipeline.state.tables import batches
from pipeline.storage import objects, tempdir
from pipeline.storage.folders import MARKER
from tests.conftest import World
from tests.support.bodies import one_request
from tests.support.object_storage import S3
from tests.support.processes import ROWS, begin, environment, kill, put_job, until

POSTGRESQL_IS_LONG = True


def params(text: str) -> bytes:
    return orjson.dumps(
        {"model": "claude-haiku-4-5", "max_tokens": 10, "messages": [{"role": "user", "content": text}]}
    )


def filled(spool: Spool, texts: list[str]) -> BodyWriter:
    """A finished body of these texts, one request each."""
    body = BodyWriter(spool, Packing(packing.new_nonce(), 100_000, 256_000_000))
    for row, text in enumerate(texts):
        assert body.fill(one_request(params(text)), dedupe=False) == [row]
    body.finish()
    return body


def known(body: BodyWriter) -> KnownBody:
    return KnownBody(body.contents.nonce, body.digest, body.contents.size)


def on_another_machine() -> None:
    """What follows has no copies of bodies at hand."""
    for nonce in list(_COPIES._files):
        copy = _COPIES.take(nonce)
        assert copy is not None
        copy.unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def no_copies() -> None:
    on_another_machine()


@pytest.fixture
def far(s3: S3) -> ObjectSpool:
    return ObjectSpool.open(f"{s3.url}/spool", "tickets")


@pytest.fixture(params=["a folder", "object storage"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Spool:
    """A spool of either kind: what holds for one holds for the other."""
    if request.param == "a folder":
        return LocalSpool.open(tmp_path / "spool", "tickets")
    spool: Spool = request.getfixturevalue("far")
    return spool


def written(spool: Spool, body: BodyWriter) -> bytes | None:
    """What another driver finds of a body."""
    on_another_machine()
    with spool.local_copy(body.contents.nonce, body.digest) as file:
        return None if file is None else file.read_bytes()


# -- one spool as the other ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [["one"], ["ä€😀", "\u2028b\n"], ["x" * 700_000] * 30], ids=["one", "two", "20 MB"])
def test_a_finished_body_is_read_back_as_it_was_written(either: Spool, texts: list[str]) -> None:
    body = filled(either, texts)

    found = written(either, body)

    assert found is not None
    assert len(found) == body.contents.size
    sent = orjson.loads(found)["requests"]
    assert [request["params"]["messages"][0]["content"] for request in sent] == texts
    with either.local_copy(body.contents.nonce, body.digest) as file:
        assert file is not None
        assert list(params_at(file, [len(texts) - 1])) == [params(texts[-1])]
        with BodyReader(file, lambda: None) as reader:
            assert reader.seek(0, 2) == body.contents.size


def test_a_missing_body_counts_as_damaged_and_has_no_local_copy(either: Spool) -> None:
    body, other = filled(either, ["one"]), filled(either, ["two"])

    either.remove(body.contents.nonce)
    either.remove(body.contents.nonce)

    assert either.damaged([known(body), known(other)]) == {body.contents.nonce}
    assert written(either, body) is None
    assert either.damaged([]) == set()


def test_bodies_are_listed_with_their_sizes_and_times(either: Spool) -> None:
    body = filled(either, ["one", "two"])
    now = datetime.now(UTC)
    [(nonce, found)] = either.bodies(now).items()

    assert nonce == body.contents.nonce
    assert found.size == body.contents.size
    assert abs((found.written_at - now).total_seconds()) < 60
    assert nonce in found.location
    assert either.count_requests(nonce) == 2


def test_a_discarded_body_leaves_nothing(either: Spool) -> None:
    unfinished = BodyWriter(either, Packing(packing.new_nonce(), 100, 1_000_000))
    unfinished.fill(one_request(params("x" * 2_000_000)), dedupe=False)
    finished = filled(either, ["one"])

    unfinished.discard()
    finished.discard()

    assert either.bodies(datetime.now(UTC)) == {}
    assert not either.begin(finished.contents.nonce).exists()
    assert not either.begin(unfinished.contents.nonce).exists()


# -- what only the store has -----------------------------------------------------------------------------------------


def test_two_drivers_that_open_a_new_spool_get_the_same_id_and_another_spool_is_refused(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = objects.get
    beside: list[ObjectSpool] = []

    def look(url: str) -> bytes:
        try:
            return content(url)
        except objects.NotFound:  # and before it makes one, another driver has
            monkeypatch.setattr(objects, "get", content)
            beside.append(ObjectSpool.open(f"{s3.url}/spool", "tickets"))
            raise

    monkeypatch.setattr(objects, "get", look)
    spool = ObjectSpool.open(f"{s3.url}/spool", "tickets")

    assert [spool] == beside
    assert ObjectSpool.open(f"{s3.url}/spool", "notes").id == spool.id
    assert s3.keys() == [f"spool/{MARKER}"]
    with pytest.raises(DatabaseError, match=r"spool s3://bucket/other is not the one that job tickets has used"):
        ObjectSpool.open(f"{s3.url}/other", "tickets", expected=spool.id)
    assert s3.keys() == [f"spool/{MARKER}"]


def test_an_altered_body_has_no_local_copy_whatever_its_size(far: ObjectSpool, s3: S3) -> None:
    body, longer = filled(far, ["one"]), filled(far, ["two"])
    s3.put(f"spool/tickets/{body.contents.nonce}.json", b"x" * body.contents.size)
    s3.put(f"spool/tickets/{longer.contents.nonce}.json", b"x" * 1000)

    assert far.damaged([known(body), known(longer)]) == {longer.contents.nonce}  # the sizes, by one listing
    assert (written(far, body), written(far, longer)) == (None, None)
    assert list(tempdir.folder().glob(f"{body.contents.nonce}*")) == []


def test_the_process_that_wrote_a_body_sends_it_without_a_download_and_others_download_it_once(
    far: ObjectSpool, s3: S3
) -> None:
    body = filled(far, ["one"])
    s3.requests.clear()

    with far.local_copy(body.contents.nonce, body.digest) as file:
        assert file is not None
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert s3.requests == []

    on_another_machine()
    for _ in range(2):  # held back the first time
        with far.local_copy(body.contents.nonce, body.digest) as file:
            assert file is not None
    path = f"/bucket/spool/tickets/{body.contents.nonce}.json"
    assert s3.requests == [f"HEAD {path}", f"GET {path}"]


def test_local_copies_stay_below_their_limit_of_bytes(far: ObjectSpool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_spool, "COPIES_BYTES", 2_500_000)

    bodies = [filled(far, ["x" * 1_000_000]) for _ in range(4)]

    there = [far.begin(body.contents.nonce).exists() for body in bodies]
    assert there == [False, False, True, True]


TWENTY_MB = ["x" * 1_000_000] * 20  # one request begins the upload, three bring its parts, one ends it


@pytest.mark.parametrize("nth", range(5))
@pytest.mark.parametrize("fault", ["503", "cut"])
def test_a_body_is_uploaded_whole_although_a_request_for_a_part_fails(
    far: ObjectSpool, s3: S3, fault: str, nth: int
) -> None:
    s3.faults += ["ok"] * nth + [fault]

    body = filled(far, TWENTY_MB)

    assert s3.faults == []
    assert written(far, body) is not None
    assert len(s3.unfinished()) == ((fault, nth) == ("cut", 0))  # nobody knows the name of the one that began unheard

    far.remove_unfinished()

    assert s3.unfinished() == []


def test_an_upload_that_a_killed_driver_left_is_aborted_by_the_next_planning(there: "World", s3: S3) -> None:
    there.run(there.job(), limit=1)
    for key in ("spool/summaries/a.json", "spool/notes/b.json"):
        s3.client.create_multipart_upload(Bucket=s3.bucket, Key=key)

    there.run(there.job())

    assert s3.unfinished() == ["spool/notes/b.json"]  # another job's, which its own planning ends


def test_the_temporary_folder_of_a_killed_process_is_removed_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "from pipeline.storage import tempdir; (tempdir.folder() / 'x').write_text('x'); "
        "print(tempdir.folder(), flush=True); "
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def begun(then: str) -> tuple["subprocess.Popen[str]", Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", code + then],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    living, kept = begun("input()")
    killed, left = begun("input()")
    killed.kill()
    killed.communicate()
    assert (left / "x").exists()

    ended, own = begun("")
    ended.communicate()
    there = (left.exists(), kept.exists(), own.exists())
    living.communicate("\n")

    assert there == (False, True, False)
    assert not kept.exists()


# -- the pipeline over it --------------------------------------------------------------------------------------------


@pytest.fixture
def there(world: World, s3: S3) -> World:
    """A world, on either database, whose spool is on S3."""
    world.spool = f"{s3.url}/spool"
    return world


def run_on_another_machine(world: World) -> None:
    """A driver that has nothing at hand takes the job to its end."""
    on_another_machine()
    finished = world.run(world.job(limits=SMALL))
    assert finished.state == "finished"


SMALL = {"max_batch_requests": 2}


def all_is_well(world: World, s3: S3, rows: int = 5) -> None:
    """Each row was accepted once and has its answer, and nothing is left in the bucket."""
    assert world.statuses() == {f"r{i}": "succeeded" for i in range(rows)}
    assert world.accepted() == rows
    assert world.sent_twice() == []
    assert s3.keys() == [f"spool/{MARKER}"]
    assert s3.unfinished() == []


def test_a_run_leaves_nothing_in_the_bucket_and_a_second_run_sends_few_requests(there: World, s3: S3) -> None:
    there.run(there.job(limits=SMALL))
    all_is_well(there, s3)
    s3.requests.clear()

    again = there.run(there.job(limits=SMALL))

    assert again.exit_code == 0
    all_is_well(there, s3)
    assert len(s3.requests) < 10  # none for each batch of before


@pytest.mark.parametrize("moment", ["planned", "submitting", "submitted", "ended", "collected"])
@pytest.mark.parametrize("nth", [1, 3])
def test_another_machine_continues_after_a_driver_dies_at_any_moment(
    there: World, s3: S3, moment: str, nth: int
) -> None:
    there.dies_at(there.job(limits=SMALL), moment, nth)

    run_on_another_machine(there)

    all_is_well(there, s3)


def test_a_sweep_on_another_machine_sends_and_collects_what_the_first_planned(there: World, s3: S3) -> None:
    there.emulator.add_fault(on="create", do="status", status=429, error_type="rate_limit_error", retry_after=100)
    there.run(there.job(limits=SMALL), detach=True)
    there.emulator.clear_faults()
    assert there.accepted() == 0

    on_another_machine()
    for _ in range(4):
        there.clock.advance(200)
        assert there.sweep() == [("summaries", None)] or there.batch_states() == ["collected"] * 3

    assert there.batch_states() == ["collected"] * 3
    all_is_well(there, s3)


def test_two_drivers_share_a_spool_at_the_same_time(there: World, s3: S3) -> None:
    there.run_beside(there.job(limits=SMALL), "planned")

    all_is_well(there, s3)


@pytest.mark.parametrize("fault", ["503", "cut"])
def test_a_run_survives_a_failure_at_any_request_to_the_store(there: World, s3: S3, fault: str) -> None:
    s3.faults += ["ok", fault] * 60

    there.run(there.job(limits=SMALL))

    assert len(s3.requests) > 20
    s3.faults.clear()
    all_is_well(there, s3)


def test_a_store_that_is_down_during_planning_stops_the_run_and_the_next_run_continues(
    there: World, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "RETRY_SECONDS", 0.2)
    objects.forget_stores()
    there.on_event = lambda event, facts: s3.faults.extend(["503"] * 1000) if event == "planned" else None

    with pytest.raises(Stopped, match=r"s3://bucket/spool/summaries/.*cannot be reached.*503.*safe to run again"):
        there.run(there.job(limits=SMALL))

    s3.faults.clear()
    there.on_event = None
    assert there.accepted() <= 2  # what was planned before
    run_on_another_machine(there)
    all_is_well(there, s3)


def test_a_store_that_is_down_when_a_body_is_to_be_sent_leaves_its_batch_planned(
    there: World, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "RETRY_SECONDS", 0.2)
    there.dies_at(there.job(), "planned")
    on_another_machine()
    objects.forget_stores()
    download = objects.download

    def broken(obj: objects.Object, file: object) -> None:
        s3.faults.extend(["503"] * 1000)
        download(obj, file)  # type: ignore[arg-type]

    monkeypatch.setattr(objects, "download", broken)
    problem = there.sweep()[0][1]
    s3.faults.clear()

    assert problem is not None
    assert "the store cannot be reached" in problem
    assert there.batch_states() == ["planned"]
    assert (there.accepted(), there.told("submitting")) == (0, [])
    monkeypatch.setattr(objects, "download", download)
    run_on_another_machine(there)
    all_is_well(there, s3)


def test_a_body_that_is_removed_while_it_is_sent_is_still_sent_whole(there: World, s3: S3) -> None:
    def remove(event: str, facts: dict[str, object]) -> None:
        if event == "submitting":
            for key in s3.keys("spool/summaries/"):
                s3.client.delete_object(Bucket=s3.bucket, Key=key)

    there.on_event = remove
    there.run(there.job())

    all_is_well(there, s3)


@pytest.mark.parametrize("altered", [True, False], ids=["altered", "gone"])
@pytest.mark.parametrize("by", ["run", "sweep"])
def test_an_altered_body_is_not_sent_and_its_rows_are_rendered_again(
    there: World, s3: S3, by: str, altered: bool
) -> None:
    there.dies_at(there.job(), "planned")
    on_another_machine()
    [key] = s3.keys("spool/summaries/")
    if altered:
        s3.put(key, s3.get(key).replace(b"Summarize", b"Summarise"))
    else:
        s3.client.delete_object(Bucket=s3.bucket, Key=key)

    if by == "sweep":
        there.sweep()
        assert (there.accepted(), there.batch_states()) == (0, ["dropped"])
    run_on_another_machine(there)

    assert "is missing or was altered" in there.told("dropped")[0]["problem"]
    all_is_well(there, s3)


def test_a_row_that_is_sent_again_is_read_back_from_the_bucket(there: World, s3: S3) -> None:
    there.emulator.add_fault(on="item", do="error", error_type="api_error", match="number 1", times=1, per="params")
    there.dies_at(there.job(), "collected")
    assert len(s3.keys("spool/summaries/")) == 1
    (there.folder / "rows.csv").rename(there.folder / "gone.csv")  # the source is not needed

    on_another_machine()
    for _ in range(4):
        there.clock.advance(100)
        there.sweep()

    assert set(there.statuses().values()) == {"succeeded"}
    assert there.accepted() == 6
    assert s3.keys() == [f"spool/{MARKER}"]


def test_the_body_of_a_batch_that_must_wait_is_downloaded_only_before_it_is_sent(there: World, s3: S3) -> None:
    limits = {"max_batch_requests": 2, "max_in_flight_requests": 2}
    there.run(there.job(limits=limits), detach=True)
    assert there.accepted() == 2
    on_another_machine()
    s3.requests.clear()

    there.clock.advance(20)
    there.sweep()

    assert there.told("held_back")
    assert [request for request in s3.requests if request.endswith(".json")] == []


def test_a_body_whose_driver_died_before_its_commit_is_removed(there: World, s3: S3) -> None:
    there.run(there.job(), limit=1)
    orphan = filled(open_at(f"{s3.url}/spool", "summaries"), ["x"])
    assert len(s3.keys()) == 2
    on_another_machine()

    there.run(there.job())

    assert orphan.contents.nonce not in str(s3.keys())
    all_is_well(there, s3)


def test_a_database_restored_from_before_a_batch_was_planned_is_refused(there: World, s3: S3) -> None:
    there.run(there.job(privacy={"keep_spool": True}), detach=True)
    with there.database.write() as conn:  # as if it had never been planned
        nonce = conn.scalar(select(batches.c.nonce))
    there.run(there.job(privacy={"keep_spool": True}))
    other = there.folder / "other.db"
    there.database.close()
    there.database = Database(f"sqlite:///{other}")

    with pytest.raises(DatabaseError, match=f"does not know .*, which was sent from s3://.*{nonce}.json: it seems"):
        there.run(there.job())

    assert there.accepted() == 5


def test_bodies_stay_in_the_spool_with_keep_spool(there: World, s3: S3) -> None:
    there.run(there.job(limits=SMALL, privacy={"keep_spool": True}))

    assert len(s3.keys("spool/summaries/")) == 3


def test_a_run_succeeds_although_a_body_cannot_be_removed(
    there: World, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(url: str) -> None:
        raise Stopped(f"{url}: the store cannot be reached; safe to run again")

    with monkeypatch.context() as patch:
        patch.setattr(objects, "remove", down)
        finished = there.run(there.job())

    assert finished.exit_code == 0
    assert there.told("body_left")
    run_on_another_machine(there)
    all_is_well(there, s3)


# -- which spool it is -----------------------------------------------------------------------------------------------


def test_the_address_of_the_spool_is_stored_unchanged(there: World, s3: S3) -> None:
    there.run(there.job(), detach=True)
    there.spool = f"{s3.url}/spool/"  # the same one
    there.run(there.job(), detach=True)
    there.spool = None  # the job's own
    there.clock.advance(100)
    there.sweep()
    all_is_well(there, s3)


@pytest.mark.parametrize("spool", ["s3a://bucket/x", "https://bucket.s3.amazonaws.com/x", "abfs://x/y"])
def test_an_address_of_another_kind_is_refused(there: World, spool: str) -> None:
    there.spool = spool

    with pytest.raises(DatabaseError, match="a spool is a folder, or an address that begins with s3://, gs://, az://"):
        there.run(there.job())


def test_a_wrong_store_is_reported_before_anything_is_sent(
    there: World, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.spool = "s3://buckett/spool"
    with pytest.raises(DatabaseError, match=r"spool s3://buckett/.*: there is no bucket s3://buckett; check its name"):
        there.run(there.job())

    there.spool = f"{s3.url}/a//b"
    with pytest.raises(DatabaseError, match="no object can have this name"):
        there.run(there.job())

    there.spool = f"{s3.url}/spool"
    s3.faults += ["403"]
    with pytest.raises(DatabaseError, match=r"refuses the credentials \(InvalidAccessKeyId\); tried AWS_ACCESS_KEY_ID"):
        there.run(there.job())

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    objects.forget_stores()
    with pytest.raises(DatabaseError, match=r"there are no credentials; tried AWS_ACCESS_KEY_ID, .*set: none"):
        there.run(there.job())
    assert there.told("quote") == []


# -- with real processes ---------------------------------------------------------------------------------------------


@pytest.fixture
def api(tmp_path: Path) -> Iterator[RunningEmulator]:
    with start(tmp_path / "emulator", processing_seconds=0.2) as running:
        yield running


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return put_job(tmp_path)


@pytest.fixture
def command(api: RunningEmulator, s3: S3, tmp_path: Path, migrated_url: str) -> "Command":
    return Command(api.url, migrated_url, f"{s3.url}/spool", tmp_path)


#: The command line; it downloads all results to files, also small ones.
RESULTS_TO_FILES = """\
from pipeline.cli.app import main
from pipeline.steps import results_file
results_file.MEMORY_BYTES = 0
main()
"""


class Command:
    """Starts the command line with PostgreSQL and a spool on S3, as a machine of this name."""

    def __init__(self, api: str, database: str, spool: str, folder: Path) -> None:
        self.api, self.database, self.spool, self.folder = api, database, spool, folder

    def start(self, machine: str, *arguments: str, most: int | None = None) -> "subprocess.Popen[str]":
        """most: bytes that a file may have there, as on a disk that is full; results are then downloaded to files."""
        temporary = self.folder / machine
        temporary.mkdir(exist_ok=True)

        def fill() -> None:
            if most is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

        settings = {"BATCH_DATABASE_URL": self.database, "BATCH_SPOOL": self.spool, "TMPDIR": str(temporary)}
        program = ("-m", "pipeline.cli") if most is None else ("-c", RESULTS_TO_FILES)
        return begin(environment(self.api, **settings), *arguments, preexec_fn=fill, program=program)

    def run(self, machine: str, *arguments: str, most: int | None = None) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        process = self.start(machine, *arguments, most=most)
        said, errors = process.communicate(timeout=120)
        return process.returncode, said, errors


def every_row_once(api: RunningEmulator, s3: S3, command: Command, job: Path) -> None:
    code, said, errors = command.run("last", "export", str(job))
    assert code == 0, errors
    rows = [json.loads(line) for line in said.splitlines()]
    assert sorted((int(row["id"]), row["status"]) for row in rows) == [(i, "succeeded") for i in range(ROWS)]
    api.emulator.wait_idle()
    audit = api.emulator.audit()
    assert (audit["requests_accepted"], audit["accepted_twice"]) == (ROWS, [])
    if objects.is_url(command.spool):
        assert s3.keys() == [f"spool/{MARKER}"]
    else:
        assert [path.name for path in (Path(command.spool) / "notes").iterdir()] == []


# the short one is `test_another_machine_continues_after_a_driver_dies_at_any_moment`
@pytest.mark.long  # kills real processes
@pytest.mark.parametrize(
    ("event", "times"), [("quote", 1), ("planned", 2), ("submitting", 3), ("submitted", 2), ("collected", 1)], ids=str
)
def test_a_driver_on_another_machine_continues_after_one_is_killed(
    api: RunningEmulator, s3: S3, command: Command, job: Path, event: str, times: int
) -> None:
    killed = command.start("one", "run", str(job), "--json")
    until(killed, event, times)
    kill(killed)

    code, _, errors = command.run("two", "run", str(job))

    assert code == 0, errors
    every_row_once(api, s3, command, job)
    assert list((command.folder / "two").iterdir()) == []  # and of the disk it has left nothing, either


@pytest.mark.long
@pytest.mark.parametrize("most", [3_000, 10_000], ids=["a body", "results"])
@pytest.mark.parametrize("kind", ["a folder", "object storage"])
def test_a_full_local_disk_stops_with_nothing_half_done_and_is_safe_to_run_again(
    api: RunningEmulator, s3: S3, command: Command, job: Path, kind: str, most: int
) -> None:
    disk = f"temporary folder {command.folder / 'one'} (TMPDIR names another)"
    if kind == "a folder":
        command.spool = str(command.folder / "spool")
        disk = f"spool {command.folder / 'spool' / 'notes'}"

    code, _, errors = command.run("one", "run", str(job), most=most)

    assert code == 3, errors
    assert f"{disk}: File too large" in errors
    assert ("safe to run again" if most == 3_000 else "run the same command again") in errors
    assert "Traceback" not in errors
    assert api.emulator.audit()["requests_accepted"] == (0 if most == 3_000 else ROWS)

    code, _, errors = command.run("one", "run", str(job))

    assert code == 0, errors
    every_row_once(api, s3, command, job)


@pytest.mark.long
def test_a_wrong_bucket_gives_exit_code_2_and_a_store_that_is_down_gives_3(
    s3: S3, command: Command, job: Path, api: RunningEmulator
) -> None:
    command.spool = "s3://buckett/spool"
    code, _, errors = command.run("one", "run", str(job))
    assert (code, "there is no bucket s3://buckett" in errors, "Traceback" in errors) == (2, True, False), errors

    command.spool = f"{s3.url}/spool"
    s3.faults += ["403"] * 5
    code, _, errors = command.run("one", "run", str(job))
    assert (code, "tried AWS_ACCESS_KEY_ID" in errors, "Traceback" in errors) == (2, True, False), errors
    assert api.emulator.audit()["requests_accepted"] == 0

    s3.faults.clear()
    code, _, errors = command.run("one", "run", str(job), "--emulator")
    assert (code, "keeps its data beside a SQLite database or in a folder" in errors) == (2, True), errors
