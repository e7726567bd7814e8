"""A command that dies at any commit or call loses no row, and nothing is accepted twice.

Every second crash point is tried on SQLite, and the others on PostgreSQL; with CRASH_POINTS=all each one on both. A
trial makes the same changes as `run`, so only every fourth of its points is tried on each.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import anthropic
import pytest

from pipeline.emulator import start
from pipeline.emulator.settings import Settings
from pipeline.storage.folders import MARKER
from tests.support.crash_points import SCRIPTS
from tests.support.object_storage import S3
from tests.support.point_rows import LOST, MAX_BATCH_BYTES

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def database(request: pytest.FixtureRequest) -> str:
    """Return the database of the points, in the form that crash_points expects."""
    return "sqlite" if request.param == "SQLite" else str(request.getfixturevalue("postgres_server"))


class Tried(NamedTuple):
    """The results of all points of one script. Each point has a job of its own."""

    deaths: int
    jobs: int
    problems: list[str]
    accepted: int
    accepted_twice: object
    left: int  #: number of batches that were not deleted at the API
    every: int  #: how far the points are apart


def try_every_point(
    folder: Path,
    database: str,
    script: str,
    *,
    processing_seconds: float = 0.0,
    spool: str | None = None,
    every: int = 2,
) -> Tried:
    """Try the points of a script with one emulator, which ends a canceled batch at once.

    spool: on object storage; every: how far the points are apart.
    """
    settings = Settings(max_batch_bytes=MAX_BATCH_BYTES, cancel_seconds=0.0, tool_rounds=2, tool_calls=2)
    (folder / "jobs").mkdir()
    with start(folder / "emulator", processing_seconds=processing_seconds, settings=settings) as api:
        api.emulator.add_fault(on="item", do="error", error_type="api_error", match="again", times=1, per="params")
        api.emulator.add_fault(on="create", do="drop_after", match=LOST)
        api.emulator.add_fault(on="item", do="pause_turn", match='pauses"}]}')
        first = 1 if database == "sqlite" else 2
        if os.environ.get("CRASH_POINTS") == "all":
            first = every = 1
        command = [sys.executable, "-m", "tests.support.crash_points", script, api.url, database, str(folder / "jobs")]
        command += [str(first), str(every), *([] if spool is None else [spool])]
        tried = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
        audit = api.emulator.audit()
        client = anthropic.Anthropic(api_key="test", base_url=api.url)
        left = len(list(client.messages.batches.list()))
    return Tried(
        **json.loads(tried.stdout),
        accepted=audit["requests_accepted"],
        accepted_twice=audit["accepted_twice"],
        left=left,
        every=every,
    )


def test_a_driver_may_die_at_any_commit_and_any_call(tmp_path: Path, database: str) -> None:
    tried = try_every_point(tmp_path, database, "run")

    assert tried.problems == []
    assert tried.deaths * tried.every > 70
    assert (tried.accepted_twice, tried.left) == ([], 0)
    assert tried.accepted == tried.jobs * SCRIPTS["run"].accepted


def test_a_driver_with_a_spool_on_object_storage_may_die_at_any_commit_and_any_call_to_it(
    tmp_path: Path, postgres_server: str, s3: S3
) -> None:
    tried = try_every_point(tmp_path, postgres_server, "run", spool=f"{s3.url}/spools")

    assert tried.problems == []
    assert tried.deaths * tried.every > 60
    assert (tried.accepted_twice, tried.left) == ([], 0)
    assert tried.accepted == tried.jobs * SCRIPTS["run"].accepted
    left = s3.keys()
    assert {key.rpartition("/")[2] for key in left} == {MARKER}  # no bodies
    assert len(left) == tried.jobs


def test_a_run_behind_a_canary_may_die_at_any_commit_and_any_call(tmp_path: Path, database: str) -> None:
    tried = try_every_point(tmp_path, database, "gated")

    assert tried.problems == []
    assert tried.deaths * tried.every > 100
    assert (tried.accepted_twice, tried.left) == ([], 0)
    assert tried.accepted == tried.jobs * SCRIPTS["gated"].accepted


def test_a_run_whose_rows_share_requests_may_die_at_any_commit_and_any_call(tmp_path: Path, database: str) -> None:
    tried = try_every_point(tmp_path, database, "shared")

    assert tried.problems == []
    assert tried.deaths * tried.every > 70
    assert (tried.accepted_twice, tried.left) == ([], 0)
    assert tried.accepted == tried.jobs * SCRIPTS["shared"].accepted


def test_a_run_whose_rows_copy_answers_may_die_at_any_commit_and_any_call(tmp_path: Path, database: str) -> None:
    tried = try_every_point(tmp_path, database, "copied")

    assert tried.problems == []
    assert tried.deaths * tried.every > 90
    assert (tried.accepted_twice, tried.left) == ([], 0)
    assert tried.accepted == tried.jobs * SCRIPTS["copied"].accepted


def test_a_trial_may_die_at_any_commit_and_any_call(tmp_path: Path, database: str) -> None:
    tried = try_every_point(tmp_path, database, "trial", every=4)

    assert tried.problems == []
    assert tried.deaths * tried.every > 70
    assert (tried.accepted_twice, tried.left) == ([], 0)
    assert tried.accepted == tried.jobs * SCRIPTS["trial"].accepted


def test_a_run_whose_rows_call_tools_may_die_at_any_commit_and_any_call(tmp_path: Path, database: str) -> None:
    tried = try_every_point(tmp_path, database, "tools")

    assert tried.problems == []
    assert tried.deaths * tried.every > 110
    assert (tried.accepted_twice, tried.left) == ([], 0)


def test_a_retry_may_die_at_any_commit_and_any_call(tmp_path: Path, database: str) -> None:
    tried = try_every_point(tmp_path, database, "retry")

    assert tried.problems == []
    assert tried.deaths * tried.every > 24
    assert (tried.accepted_twice, tried.left) == ([], 0)
    assert tried.accepted == tried.jobs * SCRIPTS["retry"].accepted


def test_a_run_after_a_retry_that_died_at_any_point_sends_none_of_its_rows_unchanged(
    tmp_path: Path, database: str
) -> None:
    tried = try_every_point(tmp_path, database, "retry then run")

    assert tried.problems == []
    assert tried.deaths * tried.every > 24
    assert (tried.accepted_twice, tried.left) == ([], 0)
    assert tried.accepted == tried.jobs * SCRIPTS["retry then run"].accepted


def test_a_cancel_may_die_at_any_commit_and_any_call(tmp_path: Path, database: str) -> None:
    tried = try_every_point(tmp_path, database, "cancel", processing_seconds=3.0)

    assert tried.problems == []
    assert tried.deaths * tried.every > 8
    assert (tried.accepted_twice, tried.left) == ([], 0)
    assert tried.accepted == tried.jobs * SCRIPTS["cancel"].accepted
