"""The Prefect flows do the steps of the command line, also without a server."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, get_args

import cloudpickle
import pytest
from prefect.cli.deploy._models import PrefectYamlModel  # private; there is no public way to check the file
from prefect.engine import handle_engine_signals
from prefect.exceptions import FailedRun
from prefect.flows import load_flow_from_entrypoint
from prefect.logging import disable_run_logger
from prefect.runtime import flow_run
from ruamel.yaml import YAML

from flows.artifacts import batch_table, parameters_of, summary_text
from flows.artifacts import escaped as escaped_text
from flows.collect_results import collect_results
from flows.collect_tasks import collect_batch, collect_ended
from flows.environment import Blocks, database_url, day, job_file, named
from flows.plan_tasks import plan_file, plan_files
from flows.reprocess_failed import Status, reprocess_failed
from flows.run_job import run_job
from flows.standing import standing
from flows.tool_tasks import call_in_tasks, call_tools_of
from pipeline.driver.environment import at
from pipeline.emulator import RunningEmulator, start
from pipeline.errors import InputError
from pipeline.job.load import load
from pipeline.planning.trial import Trial
from pipeline.runner.options import Options
from pipeline.runner.sweep import sweep
from pipeline.runner.trial import run_trial
from pipeline.state.database import Database
from pipeline.state.jobs import job_named
from pipeline.states import OUTCOMES
from tests.support.prefect_stack import environment

ROOT = Path(__file__).parents[2]

JOB = """\
name: notes
source: {path: notes.csv, key: id}
request: {model: claude-haiku-4-5, max_tokens: 60, prompt: "Summarize: {{ text }}"}
sink: {table: note_summaries}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "notes.csv").write_text("id,text\n1,one\n2,two\n")
    path = tmp_path / "notes.yaml"
    path.write_text(JOB)
    return path


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningEmulator]:
    """Run an emulator, and set its address, a key and a database in the environment."""
    for name in [name for name in os.environ if name.startswith(("ANTHROPIC_", "BATCH_", "PIPELINE_"))]:
        monkeypatch.delenv(name)
    with start(tmp_path / "emulator", processing_seconds=60) as running, disable_run_logger():
        monkeypatch.setenv("ANTHROPIC_BASE_URL", running.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "test")
        monkeypatch.setenv("BATCH_DATABASE_URL", f"sqlite:///{tmp_path}/batches.db")
        monkeypatch.setenv("BATCH_POLL_SECONDS", "0")
        yield running


def let_batches_end(api: RunningEmulator) -> None:
    api.emulator.clock.advance(61)
    api.emulator.wait_idle()


def told(state: Any) -> tuple[str, str, str]:
    """Return type, name and message of a flow's state."""
    return state.type.value, state.name, state.message


# -- a run, a sweep, and what failed once more -----------------------------------------------------------------------


def test_a_run_ends_as_submitted_and_a_sweep_finishes_it(api: RunningEmulator, job: Path) -> None:
    submitted = told(run_job.fn(str(job)))
    waiting = told(collect_results.fn())
    let_batches_end(api)
    ended = told(collect_results.fn())
    nothing = told(collect_results.fn())

    assert submitted[:2] == ("COMPLETED", "Submitted")
    assert submitted[2].startswith("Submitted 1 batch, 2 rows; collect_results finishes notes 20")
    assert waiting == ("COMPLETED", "Completed", "swept notes: no run ended")
    assert ended[:2] == ("COMPLETED", "Completed")
    assert "2 rows: 2 succeeded" in ended[2]
    assert nothing == ("COMPLETED", "Nothing due", "no run is open")


def test_a_sweep_before_the_first_run_has_nothing_to_do(api: RunningEmulator) -> None:
    assert told(collect_results.fn())[1:] == ("Nothing due", "there is no state database yet: no job has been run")


def test_late_sweeps_that_start_at_the_same_time_do_the_work_once(api: RunningEmulator, job: Path) -> None:
    run_job.fn(str(job))
    let_batches_end(api)

    with ThreadPoolExecutor(20) as pool:
        swept = [told(state) for state in pool.map(lambda _: collect_results.fn(), range(20))]
    before = len(list(api.emulator.log()))
    late = told(collect_results.fn())

    assert {kind for kind, *_ in swept} == {"COMPLETED"}
    # one has ended the run; another one that came before it had noted that it was told may say it, too
    assert any("2 succeeded" in message for *_, message in swept)
    assert late[1:] == ("Nothing due", "no run is open")
    assert len(list(api.emulator.log())) == before  # and ask nobody
    assert api.emulator.audit()["accepted_twice"] == []


def test_two_runs_of_one_job_at_the_same_time_send_each_row_once(api: RunningEmulator, job: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        ran = [told(state) for state in pool.map(lambda _: run_job.fn(str(job)), range(2))]
    let_batches_end(api)
    collect_results.fn()

    assert {kind for kind, *_ in ran} == {"COMPLETED"}
    assert api.emulator.audit()["requests_accepted"] == 2


def test_a_run_whose_tokens_the_api_did_not_count_is_submitted(api: RunningEmulator, job: Path) -> None:
    api.emulator.add_fault(on="count_tokens", do="status", status=404, error_type="not_found_error", times=1000)

    assert told(run_job.fn(str(job)))[:2] == ("COMPLETED", "Submitted")


def test_a_dry_run_says_what_it_would_cost_and_sends_nothing(api: RunningEmulator, job: Path) -> None:
    quoted = told(run_job.fn(str(job), dry_run=True))

    assert quoted[:2] == ("COMPLETED", "Quoted")
    assert "sends 2 requests in 1 batch" in quoted[2]
    assert list(api.emulator.accepted()) == []


def test_the_sweep_in_which_a_run_ends_badly_fails_and_the_next_one_does_not(api: RunningEmulator, job: Path) -> None:
    api.emulator.add_fault(on="item", do="refuse", match="one")
    other = job.with_name("other.yaml")
    other.write_text(JOB.replace("name: notes", "name: others").replace("note_summaries", "other_summaries"))

    run_job.fn(str(job))
    run_job.fn(str(other), vars={}, limit=1)
    let_batches_end(api)
    failed = told(collect_results.fn())
    after = told(collect_results.fn())

    assert failed[:2] == ("FAILED", "Failed")
    assert "1 of 2 rows failed; batch-pipeline errors notes" in failed[2]
    assert "1 of 1 row failed; batch-pipeline errors others" in failed[2]
    assert after[0] == "COMPLETED"


def test_the_run_that_ends_gets_a_report_without_keys_and_texts(
    api: RunningEmulator, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = tmp_path / "reports"
    reports.mkdir()
    monkeypatch.setenv("BATCH_REPORTS", str(reports))

    run_job.fn(str(job))
    before = list(reports.iterdir())
    let_batches_end(api)
    ended = told(collect_results.fn())

    page = reports / "notes-run-1.html"
    assert ended[:2] == ("COMPLETED", "Completed")
    assert before == []
    assert list(reports.iterdir()) == [page]
    assert "All 2 rows are answered" in page.read_text(encoding="utf-8")
    assert "emulated]" not in page.read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_leaves_the_flow_unchanged(
    api: RunningEmulator, job: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BATCH_REPORTS", str(job))  # a file, not a folder

    run_job.fn(str(job))
    let_batches_end(api)
    ended = told(collect_results.fn())

    assert ended[:2] == ("COMPLETED", "Completed")
    assert "no report of run 1 of notes" in caplog.text


def bad_end_that_nobody_was_told_of(api: RunningEmulator, job: Path) -> None:
    """Leave a run that a sweep has ended with a failed row without reporting it."""
    api.emulator.add_fault(on="item", do="refuse", match="one", times=1)
    run_job.fn(str(job))
    let_batches_end(api)
    with closing(Database(os.environ["BATCH_DATABASE_URL"])) as database, at(database) as here:
        sweep(here)


def test_an_unreported_bad_end_fails_the_next_sweep(api: RunningEmulator, job: Path) -> None:
    bad_end_that_nobody_was_told_of(api, job)

    failed = told(collect_results.fn())
    after = told(collect_results.fn())

    assert failed[0] == "FAILED"
    assert "1 of 2 rows failed; batch-pipeline errors notes" in failed[2]
    assert after == ("COMPLETED", "Nothing due", "no run is open")


def test_an_unreported_bad_end_fails_the_next_run_of_the_job(api: RunningEmulator, job: Path) -> None:
    bad_end_that_nobody_was_told_of(api, job)

    failed = told(run_job.fn(str(job)))
    after = told(run_job.fn(str(job)))

    assert failed[0] == "FAILED"
    assert "1 of 2 rows failed; batch-pipeline errors notes" in failed[2]
    assert after[0] == "COMPLETED"


def test_an_unreported_good_end_is_in_the_message_of_the_next_sweep(api: RunningEmulator, job: Path) -> None:
    run_job.fn(str(job))
    let_batches_end(api)
    with closing(Database(os.environ["BATCH_DATABASE_URL"])) as database, at(database) as here:
        sweep(here)

    ended = told(collect_results.fn())
    after = told(collect_results.fn())

    assert ended[:2] == ("COMPLETED", "Completed")
    assert "2 rows: 2 succeeded" in ended[2]
    assert after[1] == "Nothing due"


def test_failed_rows_are_sent_again_with_the_parameters_named_by_their_cause(api: RunningEmulator, job: Path) -> None:
    api.emulator.add_fault(on="item", do="refuse", match="one", times=1)
    run_job.fn(str(job))
    let_batches_end(api)
    collect_results.fn()

    quoted = told(reprocess_failed.fn("notes", status="refused", dry_run=True))
    none = told(reprocess_failed.fn(str(job), status=["expired"], dry_run=True))
    unknown = told(reprocess_failed.fn("notes", key=["four"]))
    sent = told(reprocess_failed.fn("notes", status=["refused"]))
    let_batches_end(api)
    ended = told(collect_results.fn())

    assert quoted[:2] == ("COMPLETED", "Quoted")
    assert "1 to send again" in quoted[2]
    assert "no row has the status expired" in none[2]
    assert "row four: the job knows no such row" in unknown[2]
    assert sent[:2] == ("COMPLETED", "Submitted")
    assert "1 row: 1 succeeded" in ended[2]


def test_a_run_that_stops_for_its_budget_says_so_in_the_name_of_its_state(api: RunningEmulator, job: Path) -> None:
    job.write_text(JOB + "limits: {max_cost_usd: 0.000001}\n")

    state = told(run_job.fn(str(job), wait=True))

    assert state[:2] == ("FAILED", "Incomplete (budget)")
    assert "raise it and run the same command again to send the remaining rows" in state[2]


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"job": "nowhere.yaml"}, "nowhere.yaml: cannot read the job file: No such file or directory"),
        ({"vars": {"nope": "1"}}, "--var nope: the job declares no such var"),
        ({"time_zone": "Europe/Berln"}, "time_zone 'Europe/Berln': there is no such time zone"),
    ],
    ids=["a missing file", "an unknown var", "a wrong time zone"],
)
def test_a_wrong_parameter_fails_the_run_with_one_sentence(
    api: RunningEmulator, job: Path, parameters: dict[str, Any], sentence: str
) -> None:
    state = told(run_job.fn(**{"job": str(job), **parameters}))

    assert state[0] == "FAILED"
    assert sentence in state[2]


def test_a_job_that_was_run_can_be_run_by_its_name(api: RunningEmulator, job: Path) -> None:
    run_job.fn(str(job))

    again = told(run_job.fn("notes"))
    unknown = told(run_job.fn("note"))

    assert again[:2] == ("COMPLETED", "Submitted")
    assert unknown[:2] == ("FAILED", "Failed")
    assert "knows no job 'note' (it knows: notes)" in unknown[2]


def test_a_retry_of_an_unknown_job_names_the_known_ones(api: RunningEmulator, job: Path) -> None:
    before = told(reprocess_failed.fn("notes"))
    run_job.fn(str(job))

    assert before[2] == "there is no state database yet: run the job first"
    assert "knows no job 'nodes' (it knows: notes)" in told(reprocess_failed.fn("nodes"))[2]
    assert (
        "--set request.prompt=x: write FIELD=VALUE" in told(reprocess_failed.fn("notes", set=["request.prompt=x"]))[2]
    )


def test_a_sweep_collects_a_trial_and_other_flows_refuse_it(api: RunningEmulator, job: Path) -> None:
    api.emulator.add_fault(on="item", do="refuse", match="one")
    loaded = load(job, variables={}, today=date(2026, 11, 20))
    with closing(Database(os.environ["BATCH_DATABASE_URL"])) as database, at(database) as here:
        run_trial(loaded, Trial("t"), here, Options(detach=True), file=job)
    let_batches_end(api)

    swept = told(collect_results.fn())
    refused = [told(flow.fn("notes:t"))[2] for flow in (run_job, reprocess_failed)]

    assert swept[0] == "FAILED"
    assert "1 of 2 rows failed; batch-pipeline errors notes:t" in swept[2]
    assert refused == ["notes:t is a trial; this flow is for jobs: `batch-pipeline trial` continues it"] * 2


# -- where a flow works ----------------------------------------------------------------------------------------------


def test_job_files_are_found_relative_to_the_project_in_any_working_directory(
    monkeypatch: pytest.MonkeyPatch, job: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    monkeypatch.chdir("/")

    assert job_file("notes.yaml") == job
    assert named("notes.yaml") == (job, "notes")
    assert named("notes") == (None, "notes")


def test_today_is_the_day_of_the_scheduled_start_in_the_schedules_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_run, "scheduled_start_time", datetime(2026, 11, 20, 23, 30, tzinfo=UTC), raising=False)

    assert day("UTC") == date(2026, 11, 20)
    assert day("Europe/Berlin") == date(2026, 11, 21)


def test_a_sweep_without_a_database_says_how_to_name_one(api: RunningEmulator, monkeypatch: Any) -> None:
    monkeypatch.delenv("BATCH_DATABASE_URL")

    state = told(collect_results.fn())

    assert state[0] == "FAILED"
    assert "Set BATCH_DATABASE_URL in the worker's environment, or put its URL into a Secret block" in state[2]


def test_a_variable_of_the_environment_wins_over_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_DATABASE_URL", "sqlite:///here.db")

    assert database_url(Blocks(database_url="a-block-that-nobody-asks-for")) == "sqlite:///here.db"


# -- what a person sees ----------------------------------------------------------------------------------------------


def test_text_of_a_model_is_escaped_and_shown_literally() -> None:
    hostile = (
        "![x](http://evil.example/x.png) <script>alert(1)</script> | `code` [a](javascript:b) # *b* www.evil.example"
    )

    escaped = escaped_text(hostile)

    assert escaped.replace("\\", "") == hostile  # which has no backslash itself
    assert not set("!()[]<>|`#*:/.") & set(re.sub(r"\\.", "", escaped))


def test_a_remedy_is_shown_as_parameters_of_the_flow() -> None:
    command = ["retry", "notes", "--status", "truncated", "--set", "request.max_tokens=120", "--key", "a", "--key", "b"]

    flow, parameters = parameters_of(command)

    assert flow == "reprocess_failed"
    assert parameters == {"job": "notes", "status": ["truncated"], "set": ["request.max_tokens=120"], "key": ["a", "b"]}
    assert parameters.keys() <= reprocess_failed.parameters.properties.keys()
    assert parameters_of(["run", "notes"]) == ("run_job", {"job": "notes"})


def test_the_summary_of_a_job_names_the_remedy_of_its_failures(api: RunningEmulator, job: Path) -> None:
    api.emulator.add_fault(on="item", do="refuse", match="one")
    run_job.fn(str(job), wait=False)
    let_batches_end(api)
    collect_results.fn()

    with closing(Database(os.environ["BATCH_DATABASE_URL"])) as database, database.read() as conn:
        row = job_named(conn, "notes")
        assert row is not None
        text = summary_text(database, conn, row, standing(conn, 1))
        table = batch_table(conn, row.id)

    assert "| refused | 1 |" in text
    assert '"status": [\n    "refused"\n  ]' in text
    assert "SELECT status, count(*), sum(cost_usd) FROM note_summaries" in text
    assert "Estimated: $" in text
    assert [(each["state"], each["requests"], each["outcomes"]) for each in table] == [
        ("collected", 2, "1 refused, 1 succeeded")
    ]


def test_rows_that_are_being_sent_again_are_not_offered_a_second_time(api: RunningEmulator, job: Path) -> None:
    api.emulator.add_fault(on="item", do="refuse", times=2)
    run_job.fn(str(job))
    let_batches_end(api)
    collect_results.fn()

    def shown() -> str:
        with closing(Database(os.environ["BATCH_DATABASE_URL"])) as database, database.read() as conn:
            row = job_named(conn, "notes")
            assert row is not None
            return summary_text(database, conn, row, standing(conn, 1))

    offered = shown()
    reprocess_failed.fn("notes", key=["1"])
    one_left = shown()
    reprocess_failed.fn("notes")
    under_way = shown()
    let_batches_end(api)
    collect_results.fn()

    assert "`reprocess_failed` with" in offered
    assert "`reprocess_failed` with" in one_left
    assert "these rows are being sent again; wait for their answers." in under_way.replace("\\", "")
    assert "reprocess_failed" not in under_way
    assert "## Failures by cause" not in shown()


def test_an_expected_failure_logs_no_traceback(api: RunningEmulator, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SystemExit), handle_engine_signals():
        raise FailedRun("jobs/nowhere.yaml: cannot read the job file: No such file or directory")
    expected = list(caplog.records)
    with pytest.raises(SystemExit), handle_engine_signals():
        raise ZeroDivisionError

    assert expected == []
    assert [record.exc_info is not None for record in caplog.records] == [True]


# -- deployments -----------------------------------------------------------------------------------------------------


def test_the_deployments_are_valid_and_name_existing_flows_parameters_and_jobs() -> None:
    declared = YAML(typ="safe").load(ROOT / "prefect.yaml")

    PrefectYamlModel.model_validate(declared)
    names = [each["name"] for each in declared["deployments"]]
    assert names == ["nightly-document-summarization", "ticket-classification", "collect-results", "reprocess-failed"]
    known = {"name", "description", "entrypoint", "parameters", "schedules", "concurrency_limit", "tags", "work_pool"}
    for deployment in declared["deployments"]:
        assert deployment.keys() <= known  # a key that Prefect does not know it drops silently
        deployed: Any = load_flow_from_entrypoint(deployment["entrypoint"])
        assert deployment["parameters"].keys() <= deployed.parameters.properties.keys()
        if "job" in deployment["parameters"]:
            assert (ROOT / deployment["parameters"]["job"]).exists()
            assert {each["timezone"] for each in deployment["schedules"]} == {deployment["parameters"]["time_zone"]}


def test_every_parameter_has_a_description_in_the_form() -> None:
    for flow in (run_job, collect_results, reprocess_failed):
        described = {name: "description" in each for name, each in flow.parameters.properties.items()}
        assert described == dict.fromkeys(described, True)
    assert set(get_args(Status)) == set(OUTCOMES)


def test_a_secret_is_never_a_parameter() -> None:
    with pytest.raises(InputError, match="Set BATCH_DATABASE_URL"):
        database_url(Blocks())
    names = {name for flow in (run_job, collect_results, reprocess_failed) for name in flow.parameters.properties}
    assert {name for name in names if "key" in name or "url" in name} == {"key", "api_key_block", "database_url_block"}


@pytest.mark.parametrize(
    "sent",
    [collect_ended, collect_batch, plan_files, plan_file, call_in_tasks, call_tools_of],
    ids=lambda each: each.name,
)
def test_what_runs_in_tasks_can_be_sent_to_other_processes(sent: Any) -> None:
    assert cloudpickle.loads(cloudpickle.dumps(sent)).name == sent.name


# -- without a server ------------------------------------------------------------------------------------------------


def flow(tmp_path: Path, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "flows.run_job", *arguments],
        cwd=ROOT,
        env=environment(tmp_path / "prefect", **settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_flow_finishes_a_job_without_a_server(tmp_path: Path, job: Path) -> None:
    ran = flow(tmp_path, str(job), "--emulator")

    assert ran.returncode == 0, ran.stderr
    assert ": 2 rows: 2 succeeded" in ran.stdout + ran.stderr
    exported = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "export", str(job), "--emulator"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [json.loads(line)["status"] for line in exported.stdout.splitlines()] == ["succeeded", "succeeded"]


@pytest.mark.long
def test_a_flow_with_an_emulator_of_its_own_plans_several_files_itself(tmp_path: Path, job: Path) -> None:
    (tmp_path / "notes2.csv").write_text("id,text\n3,three\n")
    job.write_text(JOB.replace("notes.csv", "notes*.csv"))

    ran = flow(tmp_path, str(job), "--emulator", BATCH_TASK_RUNNER="threads")

    assert ran.returncode == 0, ran.stderr
    assert ": 3 rows: 3 succeeded" in ran.stdout + ran.stderr
    assert "ERROR" not in ran.stderr


@pytest.mark.parametrize("module", ["flows.run_job", "flows.automations", "flows"])
def test_without_prefect_a_flow_says_what_to_install(module: str) -> None:
    hidden = "import sys, runpy; sys.modules['prefect'] = None; sys.argv[0] = '-m'\n"
    words = [sys.executable, "-c", f"{hidden}runpy.run_module({module!r}, run_name='__main__')"]

    ended = subprocess.run(words, capture_output=True, text=True, check=False)

    assert ended.returncode == 2
    assert ended.stderr == (
        "error: the flows need Prefect, which is not installed: pip install 'batch-pipeline[prefect]'\n"
    )
