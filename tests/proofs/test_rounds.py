"""Two drivers work on 1,000 rows of one to five rounds and are killed again and again: every answer is that of a live
loop, no round is paid twice, and a tool is called at most once more for each death.
"""

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import anthropic
import pytest

from pipeline.emulator import RunningEmulator, start
from pipeline.emulator.settings import Settings
from pipeline.runner.verify import verify
from pipeline.sink.read import ndjson
from pipeline.state.database import Database
from pipeline.state.jobs import job_named
from tests.support.processes import begin, environment, kill
from tests.support.talking import MAX_TOKENS, MODEL, TOOLS, declared, live_loop

pytestmark = pytest.mark.long

ROWS = 1_000
MODULE = """\
from pathlib import Path


def called(tool, word):
    with open(Path(__file__).with_name(f"{tool}.calls"), "a") as calls:
        calls.write(f"{word}\\n")
    return f"{tool} knows {len(word)} letters of {word}"


def lookup(word):
    return called("lookup", word)


def other(word):
    return called("other", word)
"""


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "PostgreSQL":
        return str(request.getfixturevalue("migrated_url"))
    return f"sqlite:///{tmp_path}/batches.db"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[RunningEmulator]:
    settings = Settings(tool_rounds=4, tool_calls=2)
    with start(tmp_path / "emulator", processing_seconds=0.2, settings=settings) as running:
        yield running


def prompt(number: int) -> str:
    """Return the prompt of a row: of each ten, one names no tool and has one round."""
    tools = "Look at" if number % 10 == 0 else "Use lookup and other for"
    return f"{tools} the plant {number}"


def put_job(folder: Path) -> Path:
    (folder / "plants.csv").write_text("id,text\n" + "".join(f"{i},{prompt(i)}\n" for i in range(ROWS)))
    (folder / "plant_tools.py").write_text(MODULE)
    file = folder / "plants.yaml"
    job = {
        "name": "plants",
        "source": {"path": "plants.csv", "key": "id"},
        "request": {"model": MODEL, "max_tokens": MAX_TOKENS, "prompt": "{{ text }}", "params": {"tools": declared()}},
        "rounds": {"tools": {"lookup": "plant_tools.lookup", "other": "plant_tools.other"}},
        "limits": {"max_batch_requests": 250},
        "canary": False,
        "sink": {"table": "plant_answers"},
    }
    file.write_text(json.dumps(job))  # JSON is YAML
    return file


#: The events at which a driver is killed, each the next one: calls of tools follow each batch that is collected.
DEATHS = ("planned", "collected", "collected", "submitting", "collected", "ended", "collected")


def reaches(driver: "subprocess.Popen[str]", event: str) -> bool:
    """Wait until a driver tells this event; return False if it ends before."""
    assert driver.stdout is not None
    return any(json.loads(line)["event"] == event for line in driver.stdout)


def test_the_answers_are_those_of_a_live_loop_although_drivers_are_killed(
    tmp_path: Path, url: str, api: RunningEmulator
) -> None:
    file = str(put_job(tmp_path))
    given = {"BATCH_DATABASE_URL": url, "BATCH_SPOOL": str(tmp_path / "spool")}
    drives = environment(api.url, **given, BATCH_GRACE_SECONDS="1", BATCH_LEASE_SECONDS="5")
    deaths = 0
    for event in DEATHS:
        beside = begin(drives, "collect", file, "--follow", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        driver = begin(drives, "run", file, "--json")
        has_work = reaches(driver, event)
        for one in (driver, beside):
            kill(one)
        if not has_work:
            break
        deaths += 2
    assert deaths >= 4
    last = begin(drives, "run", file, "--json")
    said, problems = last.communicate(timeout=600)

    assert last.returncode == 0, problems
    assert json.loads(said.splitlines()[-1])["state"] == "finished"
    with closing(Database(url)) as database:
        with database.read() as conn:
            job = job_named(conn, "plants")
        assert job is not None
        found = verify(database, job)
        answers = {int(answer["id"]): answer for answer in map(json.loads, ndjson(database, job))}
    assert (found.holds, found.statuses) == (True, {"succeeded": ROWS}), found.shown
    api.emulator.wait_idle()
    audit = api.emulator.audit()
    assert audit["accepted_twice"] == []
    assert audit["requests_accepted"] == sum(answer["rounds"] for answer in answers.values())

    client = anthropic.Anthropic(api_key="test", base_url=api.url)
    with ThreadPoolExecutor(4) as pool:
        live = list(pool.map(lambda i: live_loop(client, prompt(i)), range(ROWS)))
    assert [(answers[i]["text"], answers[i]["rounds"]) for i in range(ROWS)] == [
        (each.text, each.rounds) for each in live
    ]
    assert {each.rounds for each in live} == {1, 2, 3, 4, 5}
    for tool in TOOLS:
        asked = sum(each.asked[tool] for each in live)
        made = len((tmp_path / f"{tool}.calls").read_text().splitlines())
        assert asked <= made <= asked + deaths, tool
