"""Start drivers as real processes, read their events, and kill them; and a job for them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

ROWS = 100


def put_job(folder: Path, *, rows: int = ROWS, max_batch_requests: int = 40) -> Path:
    """Write a job over so many rows with ids 0, 1, 2, ..., and return its file."""
    notes = "".join(f'{i},"Note {i}: water the plant number {i}."\n' for i in range(rows))
    (folder / "notes.csv").write_text(f"id,text\n{notes}")
    file = folder / "notes.yaml"
    file.write_text(
        "name: notes\n"
        "source: {path: notes.csv, key: id}\n"
        'request: {model: claude-haiku-4-5, max_tokens: 60, prompt: "Summarize: {{ text }}"}\n'
        f"limits: {{max_batch_requests: {max_batch_requests}}}\n"
        "sink: {table: note_summaries}\n"
    )
    return file


def environment(api: str, **settings: str) -> dict[str, str]:
    """Return the environment of drivers that call the API at this address and wait only briefly."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("BATCH_", "ANTHROPIC_"))}
    ours |= {"ANTHROPIC_BASE_URL": api, "ANTHROPIC_API_KEY": "test"}
    return ours | {"BATCH_GRACE_SECONDS": "0.5", "BATCH_POLL_SECONDS": "0.1"} | settings


def begin(
    environment: dict[str, str],
    *arguments: str,
    stdout: int = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
    preexec_fn: Callable[[], Any] | None = None,
    program: tuple[str, ...] = ("-m", "pipeline.cli"),
) -> "subprocess.Popen[str]":
    """Start the command line with these arguments. program: what Python runs."""
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        env=environment,
        stdout=stdout,
        stderr=stderr,
        preexec_fn=preexec_fn,
        text=True,
    )


def until(process: "subprocess.Popen[str]", event: str, times: int = 1) -> None:
    """Read the output of a driver with --json until it has shown `event` so many times."""
    assert process.stdout is not None
    for line in process.stdout:
        times -= json.loads(line)["event"] == event
        if times == 0:
            return
    raise AssertionError(f"the driver ended without telling {event}: {process.communicate()}")


def kill(process: "subprocess.Popen[str]") -> None:
    """Kill a process by SIGKILL and wait for it."""
    process.kill()
    process.communicate()
