"""Sweeps call the tools of a job in tasks, in threads and on a real Dask cluster, whose processes die.

The tests share one Prefect server and one state database on PostgreSQL, and each uses a job of its own.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anthropic
import pytest

from pipeline.sink.read import ndjson
from pipeline.state.jobs import job_named
from tests.support.dask_cluster import cluster
from tests.support.prefect_site import KEY, Site
from tests.support.prefect_stack import PATIENCE
from tests.support.talking import MAX_TOKENS, MODEL, declared, live_loop

pytestmark = pytest.mark.prefect

MOST_SWEEPS = 4  # to end a run whose calls are made
ROWS = 25  # three groups
TOOLS = declared(["lookup"])
LIVE = {"model": MODEL, "max_tokens": MAX_TOKENS, "tools": TOOLS}
WHOLE = ("-m", "flows.collect_results")
MODULE = """\
import os
import signal
from pathlib import Path

HERE = Path(__file__).parent


def lookup(word):
    with open(HERE / "{name}.calls", "a") as calls:
        calls.write(f"{{os.getpid()}} {{word}}\\n")
{during}
    return f"{{word}} has {{len(word)}} letters"
"""
DIES_ONCE = """\
    if len((HERE / "{name}.calls").read_text().splitlines()) >= 5:
        try:
            open(HERE / "{name}.died", "x").close()
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
"""
HANGS = "    signal.sigwait([signal.SIGUSR1])\n"


@pytest.fixture(autouse=True)
def one_round_with_tools(site: Site) -> Iterator[None]:
    """Let each row ask for tools once, so that two sweeps finish a job."""
    settings = site.api.emulator.settings
    before, settings.tool_rounds = settings.tool_rounds, 1
    yield
    settings.tool_rounds = before


def put_job(site: Site, name: str, during: str = "") -> str:
    """Add to the project a job whose rows ask for a tool, and return its file. during: more code of the tool."""
    folder = site.prefect.project / "jobs"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.csv").write_text("id,text\n" + "".join(f"{n},{prompt(name, n)}\n" for n in range(ROWS)))
    (folder / f"{name}_tools.py").write_text(MODULE.format(name=name, during=during.format(name=name)))
    job = {
        "name": name,
        "source": {"path": f"{name}.csv", "key": "id"},
        "request": {"model": MODEL, "max_tokens": MAX_TOKENS, "params": {"tools": TOOLS}, "prompt": "{{ text }}"},
        "rounds": {"tools": {"lookup": f"{name}_tools.lookup"}, "timeout": 3600},
        "canary": False,
        "sink": {"table": f"{name}_answers"},
    }
    (folder / f"{name}.yaml").write_text(json.dumps(job))  # JSON is YAML
    return f"jobs/{name}.yaml"


def prompt(name: str, number: int) -> str:
    return f"Use lookup for plant {number} of {name}"


def submitted(site: Site, name: str, during: str = "") -> None:
    """Submit all rows of a job with a tool, and let its batch end at the API."""
    ran = site.prefect.python("-c", f"from flows.run_job import run_job; run_job({put_job(site, name, during)!r})")
    assert ran.returncode == 0, ran.stderr
    site.let_batches_end()


def sweep(site: Site, runner: str = "") -> "subprocess.CompletedProcess[str]":
    """Run one sweep with this task runner to its end."""
    swept = site.prefect.python(*WHOLE, BATCH_TASK_RUNNER=runner, DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="5s")
    assert swept.returncode == 0, swept.stderr
    return swept


def calls(site: Site, name: str) -> list[tuple[int, str]]:
    """Return the calls of a job's tool: the process that made each, and the word."""
    lines = (site.prefect.project / "jobs" / f"{name}.calls").read_text().splitlines()
    return [(int(pid), word) for pid, word in (line.split(" ", 1) for line in lines)]


def task_states(site: Site, name: str) -> list[str]:
    """Return the state of each task that called tools of a job, as Prefect's server knows it."""
    wanted = {"task_runs": {"name": {"like_": f"call tools of {name},"}}}
    return [each["state_name"] for each in site.prefect.ask("POST", "/task_runs/filter", wanted)]


def assert_tasks_completed(site: Site, name: str, number: int) -> None:
    """See that exactly so many tasks called tools of a job, and that all have completed."""
    wanted = ["Completed"] * number
    site.prefect.until(lambda: task_states(site, name) == wanted, "the server's notice of each task's end")


def finish(site: Site, name: str, runner: str = "") -> int:
    """Sweep until the run has ended, a few times at most, and return how many calls all rows needed.

    Then all rows must have their answers, which must be those of a live loop. One sweep is not always enough: on a slow
    machine the next look at a batch may not be due yet.
    """
    for _ in range(MOST_SWEEPS):
        site.let_batches_end()
        sweep(site, runner)
        if site.run_states(name) == [("finished", None)]:
            break
    assert site.run_states(name) == [("finished", None)]
    with site.database.read() as conn:
        job = job_named(conn, name)
    assert job is not None
    answers = {int(answer["id"]): answer for answer in map(json.loads, ndjson(site.database, job))}
    needed = 0
    with closing(anthropic.Anthropic(api_key=KEY, base_url=site.api.url)) as api:
        for number in range(ROWS):
            said = live_loop(api, prompt(name, number), tool, LIVE)
            answer = answers[number]
            assert (answer["status"], answer["text"]) == ("succeeded", said.text)
            assert (answer["rounds"], answer["tool_calls"]) == (said.rounds, said.asked.total())
            needed += said.asked.total()
    assert site.api.emulator.audit()["accepted_twice"] == []
    return needed


def tool(name: str, given: dict[str, Any]) -> str:
    return f"{given['word']} has {len(given['word'])} letters"


def test_the_tools_of_waiting_rows_are_called_by_a_few_tasks_in_threads(site: Site) -> None:
    submitted(site, "potted")

    sweep(site, "threads")
    waiting = site.batch_states("potted")
    needed = finish(site, "potted", "threads")

    assert waiting == ["collected", "in_progress"]
    assert len(calls(site, "potted")) == needed
    assert_tasks_completed(site, "potted", 3)


def test_without_a_task_runner_the_sweep_calls_the_tools_itself(site: Site) -> None:
    submitted(site, "bedded")

    sweep(site)
    needed = finish(site, "bedded")

    assert task_states(site, "bedded") == []
    assert len(calls(site, "bedded")) == needed


def test_a_worker_that_dies_in_the_middle_of_a_call_loses_nothing(site: Site, tmp_path: Path) -> None:
    submitted(site, "grafted", DIES_ONCE)

    with cluster(tmp_path / "dask", site.prefect.environ, 2) as dask:
        swept = sweep(site, dask.address)
        killed = [worker.wait(PATIENCE) for worker in dask.processes[1:] if worker.poll() is not None]
        alive = {worker.pid for worker in dask.processes[1:]}
        by = {pid for pid, _ in calls(site, "grafted")}
    waiting = site.batch_states("grafted")
    needed = finish(site, "grafted")

    assert killed == [-signal.SIGKILL]
    assert by <= alive, "the sweep itself has called tools"
    assert "without tasks" not in swept.stderr
    assert waiting == ["collected", "in_progress"]
    again = len(calls(site, "grafted")) - needed
    assert 1 <= again <= 3  # the calls of one answer, which were under way side by side
    assert_tasks_completed(site, "grafted", 3)


def test_the_sweep_calls_tools_itself_when_all_tasks_fail(site: Site, tmp_path: Path) -> None:
    submitted(site, "pruned")
    elsewhere = site.prefect.environ | {"BATCH_DATABASE_URL": f"sqlite:///{tmp_path}/empty.db"}

    with cluster(tmp_path / "dask", elsewhere, 1) as dask:
        swept = sweep(site, dask.address)
        by = {pid for pid, _ in calls(site, "pruned")}
    needed = finish(site, "pruned")

    assert "its task failed, its remaining calls are made later" in swept.stderr
    assert "no task has called its tools; the flow calls tools without tasks" in swept.stderr
    assert by.isdisjoint({process.pid for process in dask.processes})
    assert len(calls(site, "pruned")) == needed


def test_a_sweep_that_is_canceled_does_not_wait_for_the_calls_of_its_threads(site: Site, tmp_path: Path) -> None:
    submitted(site, "sown", HANGS)
    environ = site.prefect.environ | {"BATCH_TASK_RUNNER": "threads"}
    noted = site.prefect.project / "jobs" / "sown.calls"

    with (tmp_path / "sweep.log").open("wb") as log:
        flow = subprocess.Popen([sys.executable, *WHOLE], cwd=site.prefect.project, env=environ, stdout=log, stderr=log)
        try:
            site.prefect.until(lambda: noted.exists() and len(calls(site, "sown")) >= 3, "calls of three tasks")
            flow.terminate()
            ended = flow.wait(PATIENCE)
        finally:
            flow.kill()
    under_way = len(calls(site, "sown"))
    (site.prefect.project / "jobs" / "sown_tools.py").write_text(MODULE.format(name="sown", during=""))
    sweep(site)
    needed = finish(site, "sown")

    assert ended not in (0, 1), (tmp_path / "sweep.log").read_text()
    assert len(calls(site, "sown")) == needed + under_way
