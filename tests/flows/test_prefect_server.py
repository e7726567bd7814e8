"""The deployments of prefect.yaml work on a real server with a real worker, also after failures.

The tests share one server and one state database on PostgreSQL, and each uses jobs of its own.
"""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.support import dying
from tests.support.prefect_site import KEY, Site
from tests.support.prefect_stack import PATIENCE

pytestmark = pytest.mark.prefect


@pytest.fixture(scope="module")
def scheduled(site: Site) -> dict[str, list[dict[str, Any]]]:
    """Return the runs that the server scheduled, by deployment; then pause the schedules, which would interfere."""
    names = {each["id"]: name for name, each in site.prefect.deployments().items()}
    wanted = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}

    def found() -> list[dict[str, Any]]:
        return [run for run in site.prefect.ask("POST", "/flow_runs/filter", wanted) if run["auto_scheduled"]]

    site.prefect.until(lambda: len({run["deployment_id"] for run in found()}) == 3, "runs of the three schedules")
    by_name: dict[str, list[dict[str, Any]]] = {}
    for run in found():
        by_name.setdefault(names[run["deployment_id"]], []).append(run)
    for each in site.prefect.deployments().values():
        site.prefect.ask("PATCH", f"/deployments/{each['id']}", {"paused": True})
    for each in site.prefect.deployments().values():
        site.prefect.ask("PATCH", f"/deployments/{each['id']}", {"paused": False, "schedules": []})
    for run in found():  # the server keeps those that were due already
        site.prefect.ask("DELETE", f"/flow_runs/{run['id']}")
    return by_name


@pytest.fixture
def worker(site: Site, scheduled: object) -> None:
    """Start a worker that the next tests share."""
    if not site.prefect.workers:
        site.prefect.start_worker()


def test_the_schedules_of_prefect_yaml_create_runs(scheduled: dict[str, list[dict[str, Any]]]) -> None:
    assert scheduled.keys() == {"nightly-document-summarization", "ticket-classification", "collect-results"}
    assert len(scheduled["collect-results"]) >= 3


def test_a_nightly_run_ends_when_every_row_is_sent_and_a_sweep_stores_the_answers(site: Site, worker: None) -> None:
    nightly = site.prefect.run("nightly-document-summarization", no_canary=True)
    site.let_batches_end()
    swept = site.prefect.run("collect-results")

    assert nightly["state"]["name"] == "Submitted"
    assert nightly["state"]["message"].startswith("Submitted 1 batch, 500 rows;")
    assert re.fullmatch(r"summarize_documents \d{4}-\d\d-\d\d", nightly["name"])
    assert (swept["state"]["type"], swept["state"]["name"]) == ("COMPLETED", "Completed")
    assert "500 rows: 500 succeeded" in swept["state"]["message"]
    with site.database.read() as conn:
        assert conn.scalar(text("SELECT count(*) FROM document_summaries WHERE status = 'succeeded'")) == 500

    before, after = site.prefect.artifacts(nightly["id"]), site.prefect.artifacts(swept["id"])
    names = ("progress", "batches", "summary", "report")
    progress, table, summary, report = (f"{what}-summarize-documents" for what in names)
    assert before.keys() == {progress, table, summary}
    assert after.keys() == {progress, table, summary, report}
    assert (float(before[progress]), float(after[progress])) == (0.0, 100.0)
    assert ("in_progress" in before[table], "collected" in after[table]) == (True, True)
    assert "| succeeded | 500 |" in after[summary]
    assert re.search(r"file:///\S+/summarize_documents-run-\d+\.html", after[report])
    assert any("batch 1 submitted as msgbatch_" in line for line in site.prefect.logs(nightly["id"]))


def test_a_run_that_ends_badly_fails_one_sweep_and_its_named_parameters_fix_it(site: Site, worker: None) -> None:
    job = site.job("failing", ("one", "![two](http://evil.example/x.png)", "three"))
    site.api.emulator.add_fault(on="item", do="error", error_type="permission_error_of_yours", match="failing", times=1)
    site.prefect.run("ticket-classification", job=job)
    site.let_batches_end()

    failed = site.prefect.run("collect-results")
    summary = site.prefect.artifacts(failed["id"])["summary-failing"]
    quoted = site.prefect.run("reprocess-failed", job=job, status=["errored"], dry_run=True)
    sent = site.prefect.run("reprocess-failed", job="failing", status=["errored"])
    site.let_batches_end()
    mended = site.prefect.run("collect-results")

    assert failed["state"]["type"] == "FAILED"
    day = time.strftime("%Y-%m-%d", time.gmtime())
    assert failed["state"]["message"] == f"failing {day}: 1 of 3 rows failed; batch-pipeline errors failing"
    assert '"status": [' in summary
    assert "evil.example/" not in summary
    site.prefect.until(lambda: site.prefect.events("batch-pipeline.job.finished"), "an event")
    finished = [each["payload"] for each in site.prefect.events("batch-pipeline.job.finished")]
    assert [run["rows"]["errored"] for run in finished if run["job"] == "failing" and "errored" in run["rows"]] == [1]
    ended = [each["payload"] for each in site.prefect.events("batch-pipeline.batch.ended")]
    assert {each["requests"] for each in ended if each["job"] == "failing"} == {1, 2}
    assert quoted["state"]["name"] == "Quoted"
    assert "1 to send again" in quoted["state"]["message"]
    assert "quote-failing" in site.prefect.artifacts(quoted["id"])
    assert sent["state"]["name"] == "Submitted"
    assert mended["state"]["type"] == "COMPLETED"
    assert site.statuses("failing_answers") == ["succeeded"] * 3


@pytest.mark.parametrize(("place", "what"), [("after", "end"), ("before", "note")], ids=["untold", "not noted"])
def test_the_next_sweep_fails_after_a_sweep_died_around_a_bad_end(
    site: Site, worker: None, place: str, what: str
) -> None:
    name = f"dies_{place}"
    site.job(name)
    site.api.emulator.add_fault(on="item", do="refuse", match=name, times=1)
    site.prefect.python("-c", f"from flows.run_job import run_job; run_job('jobs/{name}.yaml')")
    site.let_batches_end()

    sweep = ("-m", "tests.support.dying", place, what, "flows.collect_results")
    died = site.prefect.python(*sweep, PYTHONPATH=str(Path(__file__).parents[2]))
    failed = site.prefect.run("collect-results")
    after = site.prefect.run("collect-results")

    assert died.returncode == dying.DEAD, died.stderr
    assert ("in response to entering state 'Failed'" in died.stderr) == (what == "note")
    assert failed["state"]["type"] == "FAILED"
    assert f"1 of 3 rows failed; batch-pipeline errors {name}" in failed["state"]["message"]
    assert after["state"]["name"] == "Nothing due"


def test_wrong_parameters_and_jobs_fail_with_the_message_of_the_command_line(site: Site, worker: None) -> None:
    missing = site.prefect.start("ticket-classification", job="jobs/nowhere.yaml")
    no_block = site.prefect.start("reprocess-failed", job=site.job("varied"), set=["request.prompt=x"])
    unknown = site.prefect.client.post(
        f"/deployments/{site.prefect.deployments()['reprocess-failed']['id']}/create_flow_run",
        json={"parameters": {"job": "varied", "status": ["erored"]}},
    )

    said = [site.prefect.ended(run)["state"]["message"] for run in (missing, no_block)]
    assert "jobs/nowhere.yaml: cannot read the job file: No such file or directory" in said[0]
    assert "--set request.prompt=x: write FIELD=VALUE" in said[1]
    assert unknown.status_code == 409
    assert "'erored' is not one of" in unknown.text


WITH_BLOCKS = """
import os
from prefect.blocks.system import Secret
from flows.run_job import run_job

Secret(value=os.environ["THEIR_KEY"]).save("their-key")
Secret(value=os.environ["THEIR_DATABASE"]).save("their-database")
for key in ("their-key", "nobodys-key"):
    state = run_job("jobs/blocks.yaml", api_key_block=key, database_url_block="their-database", return_state=True)
    print(state.name, state.message)
"""


def test_named_secret_blocks_replace_variables_of_the_environment(site: Site, worker: None) -> None:
    site.job("blocks")

    ran = site.prefect.python(
        "-c",
        WITH_BLOCKS,
        without=("ANTHROPIC_API_KEY", "BATCH_DATABASE_URL"),
        THEIR_KEY=KEY,
        THEIR_DATABASE=site.database.url.render_as_string(hide_password=False),
    )

    assert "Submitted Submitted 2 batches, 3 rows" in ran.stdout, ran.stderr
    assert "Failed there is no Secret block 'nobodys-key': create it in Prefect, or set ANTHROPIC_API_KEY" in ran.stdout
    assert KEY not in ran.stdout + ran.stderr


def test_a_sweep_with_a_task_runner_collects_each_batch_in_a_task(site: Site, worker: None) -> None:
    site.job("spread", ("one", "two", "three", "four", "five", "six"))
    submitted = site.prefect.python("-c", "from flows.run_job import run_job; run_job('jobs/spread.yaml')")
    site.let_batches_end()

    swept = site.prefect.python("-m", "flows.collect_results", BATCH_TASK_RUNNER="threads")

    def ends() -> list[str | None]:
        tasks = site.prefect.ask("POST", "/task_runs/filter", {"task_runs": {"name": {"like_": "collect batch"}}})
        states = {each["name"]: each["state_name"] for each in tasks}
        return [states.get(f"collect batch {batch}") for batch in site.batch_ids("spread")]

    assert submitted.returncode == swept.returncode == 0, submitted.stderr + swept.stderr
    site.prefect.until(lambda: ends() == ["Completed"] * 3, "the end of three tasks")  # which the server hears later
    assert site.run_states("spread") == [("finished", None)]
    assert site.statuses("spread_answers") == ["succeeded"] * 6


@pytest.mark.parametrize("runner", ["threads", "treads"], ids=["threads", "a wrong one"])
def test_with_a_task_runner_the_files_of_a_source_are_planned_in_tasks(site: Site, worker: None, runner: str) -> None:
    job = site.prefect.project / site.job(f"wide_{runner}")
    for part in range(3):
        (job.parent / f"{runner}-{part}.csv").write_text(
            f"id,text\n{part}a,{runner} {part} one\n{part}b,{runner} {part} two\n"
        )
    job.write_text(job.read_text().replace(f"wide_{runner}.csv", f"'{runner}-*.csv'"))

    ran = site.prefect.python(
        "-c", f"from flows.run_job import run_job; run_job('jobs/wide_{runner}.yaml')", BATCH_TASK_RUNNER=runner
    )

    assert ran.returncode == 0, ran.stderr
    assert "Submitted 3 batches, 6 rows" in ran.stderr
    assert ("without tasks" in ran.stderr) == (runner != "threads")
    assert ("Beginning subflow run" in ran.stderr) == (runner == "threads")


def test_canceling_a_run_stops_it_at_once_and_cancels_its_batches_only_on_request(site: Site, worker: None) -> None:
    left, given_up = site.job("left"), site.job("given_up")
    leaves = site.prefect.start("ticket-classification", job=left, wait=True)
    gives_up = site.prefect.start(
        "nightly-document-summarization", job=given_up, wait=True, cancel_batches_on_cancel=True
    )
    for name in ("left", "given_up"):
        site.until_at_the_api(name)

    began = time.monotonic()
    for run in (leaves, gives_up):
        site.prefect.ask("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    states = [site.prefect.ended(run)["state"]["type"] for run in (leaves, gives_up)]
    took = time.monotonic() - began
    site.prefect.until(lambda: "in_progress" not in site.batch_states("given_up"), "the batches' cancellation")
    still = site.batch_states("left")
    site.let_batches_end()
    site.prefect.run("collect-results")

    assert states == ["CANCELLED", "CANCELLED"]
    assert took < 45  # on a machine with much else to do
    assert still == ["in_progress"] * 2
    assert site.run_states("left") == [("finished", None)]
    assert site.statuses("left_answers") == ["succeeded"] * 3
    assert site.run_states("given_up") == [("incomplete", "canceled")]
    assert set(site.statuses("given_up_answers")) <= {"canceled", "succeeded"}  # what was answered by then stays
    assert len([call for call in site.api.emulator.log() if call["path"].endswith("/cancel")]) == 2


def test_a_worker_stopped_or_killed_in_the_middle_loses_nothing(site: Site, worker: None) -> None:
    ends = {  # a dead run holds the place of its deployment
        "nightly-document-summarization": ("stopped", signal.SIGTERM),
        "ticket-classification": ("killed", signal.SIGKILL),
    }
    for deployment, (name, number) in ends.items():
        site.prefect.start(deployment, job=site.job(name), wait=True)
        site.until_at_the_api(name)
        site.prefect.stop_worker(site.prefect.workers[0], number)
        site.prefect.start_worker()

    site.let_batches_end()
    site.prefect.run("collect-results")

    assert {name: site.run_states(name) for name in ("stopped", "killed")} == {
        "stopped": [("finished", None)],
        "killed": [("finished", None)],
    }
    for name in ("stopped", "killed"):
        assert site.statuses(f"{name}_answers") == ["succeeded"] * 3
    assert site.api.emulator.audit()["accepted_twice"] == []


SILENT = """
from datetime import timedelta
from flows.automations import silent_runs
from flows.run_job import run_job

print(silent_runs(timedelta(seconds=10)).create().id)
run_job("jobs/silent.yaml", dry_run=True)
run_job("jobs/silent.yaml")
"""


def test_a_run_whose_process_is_gone_is_ended_and_finished_runs_are_left_alone(site: Site) -> None:
    site.job("silent")
    ended_well = site.prefect.python("-c", SILENT)  # as Quoted, and as Submitted
    waits = [sys.executable, "-c", "from flows.run_job import run_job; run_job('jobs/silent.yaml', wait=True)"]
    gone = subprocess.Popen(waits, cwd=site.prefect.project, env=site.prefect.environ, stderr=subprocess.DEVNULL)

    def heard_of() -> list[str]:
        heartbeats = [each["resource"] for each in site.prefect.events("prefect.flow-run.heartbeat")]
        named = [each for each in heartbeats if each["prefect.resource.name"].startswith("silent ")]
        return list(dict.fromkeys(each["prefect.resource.id"].removeprefix("prefect.flow-run.") for each in named))

    site.prefect.until(lambda: len(heard_of()) == 3, "a heartbeat of each run")
    gone.kill()
    gone.wait()
    site.prefect.until(lambda: site.prefect.events("prefect.automation.action.executed"), "the end of that run")
    site.prefect.ask("DELETE", f"/automations/{ended_well.stdout.split()[0]}")

    states = {site.prefect.flow_run(run)["state"]["name"]: site.prefect.flow_run(run)["state"] for run in heard_of()}
    assert states.keys() == {"Quoted", "Submitted", "Crashed"}
    assert states["Crashed"]["message"].startswith("This run sent no heartbeat for too long")
    assert len(site.prefect.events("prefect.automation.triggered")) == 1


def test_the_command_that_ends_silent_runs_installs_its_automation_once(site: Site) -> None:
    first = site.prefect.python("-m", "flows.automations")
    again = site.prefect.python("-m", "flows.automations")

    found = site.prefect.ask("POST", "/automations/filter", {})
    assert [each["name"] for each in found] == ["batch-pipeline: end silent runs"]
    assert "installed" in first.stdout
    assert "already installed" in again.stdout


def test_neither_key_nor_password_is_in_the_database_or_log_of_prefect(site: Site) -> None:
    url = site.database.url.render_as_string(hide_password=False)

    home = Path(site.prefect.environ["PREFECT_HOME"])
    held = {str(path): path.read_bytes() for path in [*home.rglob("*"), site.prefect.log] if path.is_file()}

    assert b"Submitted 1 batch, 500 rows" in held[str(home / "prefect.db")] + held[str(home / "prefect.db-wal")]
    assert [name for name, content in held.items() if KEY.encode() in content or url.encode() in content] == []


def test_a_run_ends_although_the_server_is_gone(site: Site) -> None:
    site.job("alone")
    run = [sys.executable, "-c", "from flows.run_job import run_job; run_job('jobs/alone.yaml', wait=True)"]
    with (site.prefect.project / "alone.log").open("wb") as log:
        flow = subprocess.Popen(run, cwd=site.prefect.project, env=site.prefect.environ, stdout=log, stderr=log)
    site.until_at_the_api("alone")

    site.prefect.kill_server()
    site.let_batches_end()
    site.prefect.until(lambda: site.run_states("alone") == [("finished", None)], "the end of the run")
    site.prefect.start_server()
    flow.wait(PATIENCE)

    assert site.statuses("alone_answers") == ["succeeded"] * 3
    assert site.api.emulator.audit()["accepted_twice"] == []
    assert site.prefect.python("-m", "flows.collect_results").returncode == 0
