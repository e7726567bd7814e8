"""Sweeps run on a real Dask cluster, whose scheduler and workers are processes that get killed.

The tests share one Prefect server and one state database on PostgreSQL, and each uses jobs of its own.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from pipeline.state.tables import batches, leases
from tests.support.dask_cluster import cluster
from tests.support.prefect_site import Site
from tests.support.prefect_stack import PATIENCE

pytestmark = pytest.mark.prefect

TWELVE = tuple(f"text {n}" for n in range(12))  # two rows a batch
WHOLE = ("-m", "flows.collect_results")
IMPATIENT = """
from flows import collect_tasks
collect_tasks.QUIET_SECONDS = 10.0
from flows.collect_results import collect_results
collect_results()
"""


@pytest.fixture
def slow_results(site: Site) -> Iterator[None]:
    """Delay results so that a test can see which process collects them."""
    site.api.emulator.add_fault(on="results", do="delay", seconds=2)
    yield
    site.api.emulator.clear_faults()


def submitted(site: Site, name: str, texts: tuple[str, ...] = TWELVE) -> None:
    """Submit all rows of a job and let its batches end at the API."""
    job = site.job(name, texts)
    ran = site.prefect.python("-c", f"from flows.run_job import run_job; run_job({job!r})")
    assert ran.returncode == 0, ran.stderr
    site.let_batches_end()


def sweep(site: Site, runner: str, *command: str) -> "subprocess.CompletedProcess[str]":
    """Run one sweep with this task runner to its end."""
    return site.prefect.python(*command, BATCH_TASK_RUNNER=runner, DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="5s")


def test_workers_plan_files_and_a_worker_that_dies_loses_no_row(site: Site, tmp_path: Path) -> None:
    job = site.prefect.project / site.job("wide")
    for part in range(4):
        rows = "".join(f"p{part}r{n},wide row {n} of file {part}\n" for n in range(3_000))
        (job.parent / f"wide-{part}.csv").write_text(f"id,text\n{rows}")
    job.write_text(job.read_text().replace("wide.csv", "'wide-*.csv'").replace("requests: 2}", "requests: 100}"))
    run = [sys.executable, "-c", "from flows.run_job import run_job; run_job('jobs/wide.yaml')"]

    with cluster(tmp_path / "dask", site.prefect.environ, workers=2) as dask:
        environ = site.prefect.environ | {"BATCH_TASK_RUNNER": dask.address}
        with (tmp_path / "run.log").open("wb") as log:
            flow = subprocess.Popen(run, cwd=site.prefect.project, env=environ, stdout=log, stderr=log)
        site.prefect.until(lambda: len(site.batch_ids("wide")) >= 3, "planned batches")
        dask.processes[-1].kill()
        ended = flow.wait(PATIENCE)
    site.let_batches_end()
    swept = site.prefect.python("-m", "flows.collect_results")

    said = (tmp_path / "run.log").read_text()
    assert (ended, swept.returncode) == (0, 0), said + swept.stderr
    assert "without tasks" not in said
    tasks = site.prefect.ask("POST", "/task_runs/filter", {"task_runs": {"name": {"like_": "wide-"}}})
    assert {Path(each["name"]).name for each in tasks} == {f"wide-{part}.csv" for part in range(4)}
    assert site.statuses("wide_answers") == ["succeeded"] * 12_000
    assert site.api.emulator.audit()["accepted_twice"] == []


def held(site: Site) -> list[tuple[int, int]]:
    """Return which process is collecting which batch."""
    query = select(leases.c.holder, batches.c.id).where(
        leases.c.resource == batches.c.claimed_by, batches.c.state == "ended"
    )
    with site.database.read() as conn:
        return [(holder["pid"], batch) for holder, batch in conn.execute(query)]


def stopped_in_the_middle(site: Site, process: "subprocess.Popen[bytes]") -> bool:
    """Suspend a process and return whether it is collecting a batch; if not, let it continue."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    if process.pid in dict(held(site)):
        return True
    process.send_signal(signal.SIGCONT)
    return False


def numbers(site: Site, name: str) -> list[int]:
    """Return the number of each batch of a job, in order."""
    return sorted(site.batch_ids(name))


def fetched(site: Site, name: str) -> dict[int, int]:
    """Return how often the results of each batch of a job were requested."""
    query = select(batches.c.id, batches.c.api_id).where(batches.c.id.in_(numbers(site, name)))
    calls = [call["path"] for call in site.api.emulator.log()]
    with site.database.read() as conn:
        return {
            batch: sum(path.endswith(f"/{api_id}/results") for path in calls) for batch, api_id in conn.execute(query)
        }


def task_states(site: Site) -> dict[str, str]:
    """Return the state of each task by its name, as Prefect's server knows it."""
    tasks = site.prefect.ask("POST", "/task_runs/filter", {"task_runs": {"name": {"like_": "collect batch"}}})
    return {each["name"]: each["state_name"] for each in tasks}


def assert_all_is_stored_once(site: Site, name: str) -> None:
    assert site.batch_states(name) == ["collected"] * 6
    assert site.statuses(f"{name}_answers") == ["succeeded"] * 12
    assert site.run_states(name) == [("finished", None)]
    assert site.api.emulator.audit()["accepted_twice"] == []


class Watched:
    """The processes seen so far and the batches that each has collected."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.seen: dict[int, set[int]] = {}

    def look(self) -> dict[int, set[int]]:
        """Look once more and return all that was seen."""
        for pid, batch in held(self._site):
            self.seen.setdefault(pid, set()).add(batch)
        return self.seen


def test_two_workers_collect_and_a_worker_killed_in_the_middle_loses_nothing(
    site: Site, slow_results: None, tmp_path: Path
) -> None:
    submitted(site, "scattered")
    watched = Watched(site)

    with cluster(tmp_path / "dask", site.prefect.environ, 2) as dask, ThreadPoolExecutor(1) as pool:
        _, victim, survivor = dask.processes

        def victim_stopped_at_its_second() -> bool:
            seen = watched.look()
            return len(seen.get(victim.pid, ())) > 1 and survivor.pid in seen and stopped_in_the_middle(site, victim)

        sweeping = pool.submit(sweep, site, dask.address, *WHOLE)
        site.prefect.until(victim_stopped_at_its_second, "work of both")
        unfinished = dict(held(site))[victim.pid]
        victim.kill()
        victim.wait(PATIENCE)
        swept = sweeping.result()

    assert (swept.returncode, "left to the sweep" in swept.stderr) == (0, False), swept.stderr
    assert_all_is_stored_once(site, "scattered")
    times = fetched(site, "scattered")
    assert sorted(times) == numbers(site, "scattered")
    assert times.pop(unfinished) in (1, 2)  # it was stopped before or after it asked for the results
    assert set(times.values()) == {1}
    wanted = {f"collect batch {batch}": "Completed" for batch in numbers(site, "scattered")}
    site.prefect.until(lambda: task_states(site) == wanted, "the server's notice of each task's end")


def test_a_scheduler_that_dies_in_the_middle_costs_only_time(site: Site, slow_results: None, tmp_path: Path) -> None:
    submitted(site, "headless")
    watched = Watched(site)

    with cluster(tmp_path / "dask", site.prefect.environ, 2) as dask, ThreadPoolExecutor(1) as pool:
        sweeping = pool.submit(sweep, site, dask.address, "-c", IMPATIENT)
        site.prefect.until(lambda: len(watched.look()) == 2, "work of both")
        dask.processes[0].kill()
        swept = sweeping.result()

    assert swept.returncode == 0, swept.stderr
    assert_all_is_stored_once(site, "headless")


def test_a_sweep_collects_by_itself_when_the_cluster_has_no_workers(site: Site, tmp_path: Path) -> None:
    submitted(site, "deserted")

    with cluster(tmp_path / "dask", site.prefect.environ, 0) as dask:
        swept = sweep(site, dask.address, "-c", IMPATIENT)

    assert swept.returncode == 0, swept.stderr
    assert "no task has made progress for 10 seconds" in swept.stderr
    assert (
        f"not collected by tasks, left to the sweep: batches {', '.join(map(str, numbers(site, 'deserted')))}"
        in swept.stderr
    )
    assert_all_is_stored_once(site, "deserted")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("mistyped", "dask://scheduler:8786", "'dask://scheduler:8786': write threads, or a Dask scheduler's address"),
        ("away", "tcp://127.0.0.1:1", "OSError: Timed out trying to connect to tcp://127.0.0.1:1 "),
    ],
    ids=["mistyped", "away"],
)
def test_a_sweep_reports_an_unusable_task_runner_and_collects_by_itself(
    site: Site, name: str, value: str, said: str
) -> None:
    submitted(site, name)

    swept = sweep(site, value, *WHOLE)

    assert swept.returncode == 0, swept.stderr
    assert said in swept.stderr
    assert "the sweep collects without tasks" in swept.stderr
    assert_all_is_stored_once(site, name)
