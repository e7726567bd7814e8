"""Choose the command that a person should run next. Pure."""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from pipeline.report.status import is_open
from pipeline.states import FAILURES, RowState, RunReason


def next_command(facts: Mapping[str, Any], job: str) -> list[str]:
    """Return the words of the command that a person should run next.

    facts: of the job, see `status_facts`. job: its name or file, as commands take it.
    """
    rows, last = facts["rows"], facts["last_run"]
    if last is None:  # of a job that has only trials yet
        return ["run", job]
    unplanned = next((run for run in facts["open_runs"] if not run["planned"]), None)
    if unplanned is not None:
        return same_command(unplanned, job)
    if facts["open_runs"] or is_open(facts["batches"]):
        return ["collect", job]
    failed = any(rows.get(state) for state in FAILURES)
    stopped = last is not None and last["reason"] in (RunReason.FAILURES, RunReason.CANARY)
    if rows.get(RowState.PENDING) and not (failed and stopped):
        waited_for = [run for run in (last, *facts["stopped_retries"]) if run["rows"].get(RowState.PENDING)]
        return same_command(waited_for[0] if waited_for else last, job)
    return ["errors" if failed else "export", job]


def same_command(run: Mapping[str, Any], job: str) -> list[str]:
    """Return the words of the command that continues a run: `run`, or for a retry `retry` with the same options."""
    texts = {name: value for name, value in run["vars"].items() if isinstance(value, str)}  # --var can give only texts
    given = [word for name, value in texts.items() for word in ("--var", f"{name}={value}")]
    wanted = run["retry"]
    if wanted is None:
        return ["run", job, *given]
    words = [word for status in wanted["statuses"] for word in ("--status", status)]
    words += [word for error_type in wanted["error_types"] for word in ("--error-type", error_type)]
    words += [word for key in wanted["keys"] for word in ("--key", key)]
    words += [] if wanted["where"] is None else ["--where", wanted["where"]]
    words += [word for name, value in wanted["changes"].items() for word in ("--set", f"{name}={_yaml(value)}")]
    return ["retry", job, *words, *given]


_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


def _yaml(value: Any) -> str:
    """Return a value as text for --set: a plain name, such as a model's, unchanged; all else as JSON, which is YAML."""
    plain = isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in ("true", "false", "null")
    return value if plain else orjson.dumps(value).decode()


def retry_words(run: Mapping[str, Any], job: str) -> list[str]:
    """Return the words of the command that continues a retry, with --yes: a person has confirmed this retry before."""
    return [*same_command(run, job), "--yes"]
