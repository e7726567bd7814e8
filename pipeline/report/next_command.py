"""Which command a person runs next. Pure."""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from pipeline.report.status import is_open
from pipeline.states import FAILURES, RowState, RunReason


def next_command(facts: Mapping[str, Any], job: str) -> list[str]:
    """What to do next."""
    rows, last = facts["rows"], facts["last_run"]
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
    """The command that goes on with a run: `run`, or the `retry` that it was."""
    texts = {name: value for name, value in run["vars"].items() if isinstance(value, str)}  # --var gives only these
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
    """A value as it is written behind --set: model names as they are, all else as JSON, which is YAML."""
    plain = isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in ("true", "false", "null")
    return value if plain else orjson.dumps(value).decode()


def retry_words(run: Mapping[str, Any], job: str) -> list[str]:
    """The command that goes on with a retry: a person has said yes to it before."""
    return [*same_command(run, job), "--yes"]
