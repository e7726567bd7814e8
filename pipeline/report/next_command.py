"""Choose the command that a person should run next. Pure."""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from pipeline.job.name import without_trial
from pipeline.report.status import is_open
from pipeline.states import FAILURES, RowState, RunReason


def next_command(facts: Mapping[str, Any], job: str) -> list[str]:
    """Return the words of the command that a person should run next.

    facts: of the job, see `status_facts`. job: its name or file, as commands take it.
    """
    rows, last = facts["rows"], facts["last_run"]
    unplanned = next((run for run in facts["open_runs"] if not run["planned"]), None)
    if unplanned is not None:
        return same_command(unplanned, job, facts["trial"])
    if facts["open_runs"] or is_open(facts["batches"]) or any(trial["open"] for trial in facts["trials"]):
        return ["collect", job]
    if last is None:  # of a job that has only trials yet
        return ["run", job]
    failed = any(rows.get(state) for state in FAILURES)
    if rows.get(RowState.PENDING) and not failed and last["reason"] == RunReason.CANARY:
        return ["evaluate", job]  # too few answers were right; the same run again would be refused
    stopped = last["reason"] in (RunReason.FAILURES, RunReason.CANARY)
    if rows.get(RowState.PENDING) and not (failed and stopped):
        waited_for = [run for run in (last, *facts["stopped_retries"]) if run["rows"].get(RowState.PENDING)]
        return same_command(waited_for[0] if waited_for else last, job, facts["trial"])
    return ["errors" if failed else "export", job]


def trial_words(trial: Mapping[str, Any], job: str) -> list[str]:
    """Return the words of the command that continues a trial, but for its vars, which are those it was begun with.

    trial: the fields of a TrialRecord. job: what commands call the trial, or its job.
    """
    words = ["trial", without_trial(job)[0], "--name", trial["name"]]
    words += [word for name, value in trial["changes"].items() for word in ("--set", f"{name}={yaml_value(value)}")]
    words += ["--sample", str(trial["sample"])]
    words += [] if trial["where"] is None else ["--where", trial["where"]]
    return [*words, *(["--gold-only"] if trial["gold_only"] else [])]


def same_command(run: Mapping[str, Any], job: str, trial: Mapping[str, Any] | None = None) -> list[str]:
    """Return the words of the command that continues a run: `run`, or for a retry `retry` with the same options.

    trial: of the trial whose run it is, see `trial_words`; None: it is the run of a job.
    """
    if trial is not None and run["retry"] is None:
        return trial_words(trial, job)
    texts = {name: value for name, value in run["vars"].items() if isinstance(value, str)}  # --var can give only texts
    given = [word for name, value in texts.items() for word in ("--var", f"{name}={value}")]
    wanted = run["retry"]
    if wanted is None:
        return ["run", job, *given]
    words = [word for status in wanted["statuses"] for word in ("--status", status)]
    words += [word for error_type in wanted["error_types"] for word in ("--error-type", error_type)]
    words += [word for key in wanted["keys"] for word in ("--key", key)]
    words += [] if wanted["where"] is None else ["--where", wanted["where"]]
    words += [word for name, value in wanted["changes"].items() for word in ("--set", f"{name}={yaml_value(value)}")]
    return ["retry", job, *words, *given]


_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


def yaml_value(value: Any) -> str:
    """Return a value as YAML on one line: a plain name, such as a model's, as it is; else as JSON, which is YAML."""
    plain = isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in ("true", "false", "null")
    return value if plain else orjson.dumps(value).decode()


def retry_words(run: Mapping[str, Any], job: str) -> list[str]:
    """Return the words of the command that continues a retry, with --yes: a person has confirmed this retry before."""
    return [*same_command(run, job), "--yes"]
