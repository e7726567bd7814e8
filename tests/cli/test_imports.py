"""A command imports only what it needs: the libraries that take long to import stay away from the quick commands."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.emulator import RunningEmulator, start

JOB = """\
name: notes
source: {path: notes.csv, key: id, keep: [{text: note}]}
request: {model: claude-haiku-4-5, max_tokens: 60, prompt: "Summarize: {{ text }}"}
sink: {table: answers}
"""

#: Runs a command in this process, then writes the modules that it has imported into a file.
SCRIPT = """\
import atexit, json, sys
from pathlib import Path
atexit.register(lambda: Path("modules.json").write_text(json.dumps(sorted(sys.modules))))
from pipeline.cli.app import main
main()
"""

SDK = ["anthropic", "httpx2"]
PRICES = ["genai_prices"]
TABLES = ["polars", "pyarrow", "numpy", "pyarrow.compute"]
OTHERS = [
    "alembic",
    "jsonschema",
    "jsonschema_rs",
    "jinja2",
    "stamina",
    "obstore",
    "PIL",
    "pypdf",
    "starlette",
    "uvicorn",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a job of a few rows, all of which have succeeded."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "job.yaml").write_text(JOB)
    (folder / "notes.csv").write_text("id,text\n" + "".join(f"n{i},Note {i}\n" for i in range(6)))
    with start(folder / "api", processing_seconds=0.05) as api:
        ran = command(folder, "run", "--poll-seconds", "0.1", api=api)
    assert ran.returncode == 0, ran.stderr
    return folder


def command(
    folder: Path, name: str, *options: str, api: RunningEmulator | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command on the job in a process of its own. api None: there is no key, and the address answers nothing."""
    at = {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9"} if api is None else {"ANTHROPIC_BASE_URL": api.url}
    key = {} if api is None else {"ANTHROPIC_API_KEY": "test"}
    words = [sys.executable, "-c", SCRIPT, name, "job.yaml", *options]
    path = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
    return subprocess.run(words, cwd=folder, env={**path, **at, **key}, capture_output=True, text=True, check=False)


def imported(folder: Path, name: str, *options: str) -> set[str]:
    """Run a command without an API, and return the names of the modules that it has imported."""
    ran = command(folder, name, *options)
    assert ran.returncode == 0, ran.stderr
    return set(json.loads((folder / "modules.json").read_text()))


@pytest.mark.parametrize(
    ("words", "left_out"),
    [
        pytest.param(["status"], [*SDK, *PRICES, *TABLES, *OTHERS], id="status"),
        pytest.param(["export"], [*SDK, *PRICES, *TABLES, *OTHERS], id="export"),
        pytest.param(["export", "out.csv", "--overwrite"], [*SDK, *PRICES, *TABLES, *OTHERS], id="export to CSV"),
        pytest.param(["export", "out.ndjson", "--overwrite"], [*SDK, *PRICES, *TABLES, *OTHERS], id="export to NDJSON"),
        pytest.param(["export", "out.parquet", "--overwrite"], [*SDK, *PRICES, "polars", "alembic"], id="to Parquet"),
        pytest.param(["errors"], [*SDK, *PRICES, "alembic"], id="errors"),
        pytest.param(["run"], [*SDK, *PRICES, "pyarrow.compute", "alembic", "jsonschema"], id="nothing to do"),
    ],
)
def test_a_command_does_not_import_what_it_does_not_need(folder: Path, words: list[str], left_out: list[str]) -> None:
    modules = imported(folder, *words)

    assert modules >= {"pipeline.cli.app", "sqlalchemy"}
    assert sorted(modules & set(left_out)) == []


def test_a_run_with_something_to_do_asks_for_a_key_as_before(folder: Path, tmp_path: Path) -> None:
    work = shutil.copytree(folder, tmp_path / "work")
    with (work / "notes.csv").open("a") as notes:
        notes.write("n6,Note 6\n")

    ran = command(work, "run")

    assert ran.returncode == 2
    assert "no API key: set ANTHROPIC_API_KEY" in ran.stderr
