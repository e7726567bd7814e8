"""The Prefect flow: the same steps, with no server to set up."""

import json
import os
import subprocess
import sys
from pathlib import Path

from prefect.cli.deploy._models import PrefectYamlModel  # private; there is no public way to check the file
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent

JOB = """\
name: notes
source: {path: notes.csv, key: id}
request: {model: claude-haiku-4-5, max_tokens: 60, prompt: "Summarize: {{ text }}"}
sink: {table: note_summaries}
"""


def flow(tmp_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "ANTHROPIC_", "BATCH_"))}
    environment |= {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60",
    }
    return subprocess.run(
        [sys.executable, "-m", "flows.run_job", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_flow_takes_a_job_to_its_end_without_a_server(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("id,text\n1,one\n2,two\n")
    job = tmp_path / "notes.yaml"
    job.write_text(JOB)

    ran = flow(tmp_path, str(job), "--emulator")

    assert ran.returncode == 0, ran.stderr
    assert "Completed('notes: 2 rows: 2 succeeded" in ran.stdout + ran.stderr
    exported = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "export", str(job), "--emulator"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [json.loads(line)["status"] for line in exported.stdout.splitlines()] == ["succeeded", "succeeded"]


def test_a_wrong_job_fails_the_flow_with_the_sentence_of_the_command_line(tmp_path: Path) -> None:
    job = tmp_path / "notes.yaml"
    job.write_text(JOB.replace("max_tokens", "max_token"))

    ran = flow(tmp_path, str(job), "--emulator")

    assert ran.returncode == 1
    assert "request.max_token: unknown field; did you mean 'max_tokens'?" in ran.stdout + ran.stderr


def test_the_deployments_are_what_prefect_takes_and_name_flows_and_jobs_that_exist() -> None:
    declared = YAML(typ="safe").load(ROOT / "prefect.yaml")

    PrefectYamlModel.model_validate(declared)
    for deployment in declared["deployments"]:
        file, _, name = deployment["entrypoint"].partition(":")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")
        assert (ROOT / deployment["parameters"]["job"]).exists()
