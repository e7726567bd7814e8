"""Report the status of a job and its runs, as JSON facts and as lines of text. Edge: SQL."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from pipeline.reasons import BEHIND_GATE, in_words
from pipeline.report.money import budget_facts, budget_line, money_lines
from pipeline.report.words import gone_words
from pipeline.state import recipes
from pipeline.state.batch_facts import batch_states, batches_in_trouble, oldest_uncollected, twins
from pipeline.state.batches import RESULTS_KEPT
from pipeline.state.database import Connection
from pipeline.state.jobs import JobRecord, trials_of
from pipeline.state.runs import (
    RunRecord,
    last_run,
    open_runs,
    partly_collected,
    rows_for_planning,
    run_cost,
    run_rows,
    unended_runs,
    unfinished_retries,
)
from pipeline.state.spending import cost_of_job, usage_of_run
from pipeline.state.tallies import job_rows
from pipeline.states import OPEN_BATCHES, BatchState, RunState
from pipeline.text import count, counted, counts_line, duration, money


def status_facts(conn: Connection, job: JobRecord, now: datetime) -> dict[str, Any]:
    """Return the status of a job as JSON: rows and batches by state, its open runs and its last run, cost and problems.

    results_vanish_at: when the API removes the results of the oldest batch that is still there; None if none is there.
    """
    last = last_run(conn, job.id)
    oldest = oldest_uncollected(conn, job.id)
    return {
        "job": job.name,
        "table": job.results_table,
        "trial": None if job.trial is None else asdict(job.trial),
        "trials": _trials_facts(conn, job.id),
        "rows": job_rows(conn, job.id),
        "gone": job.gone,
        "gone_at": None if job.gone_at is None else job.gone_at.isoformat(),
        "recipes": [one._asdict() | {"since": one.since.isoformat()} for one in recipes.answered(conn, job.id)],
        "batches": batch_states(conn, job.id),
        "collecting": [batch._asdict() for batch in partly_collected(conn, job.id)],
        "cost_usd": cost_of_job(conn, job.id),
        "open_runs": [_run_facts(conn, run) for run in open_runs(conn, job.id)],
        "stopped_retries": [
            _run_facts(conn, run) for run in unfinished_retries(conn, job.id) if run.state != RunState.OPEN
        ],
        "last_run": None if last is None else _run_facts(conn, last),
        "swept_seconds_ago": None if job.swept_at is None else max(0, round((now - job.swept_at).total_seconds())),
        "results_vanish_at": None if oldest is None else (oldest + RESULTS_KEPT).isoformat(),
        "results_vanish_days": None if oldest is None else (oldest + RESULTS_KEPT - now).days,
        "problems": [
            {"batch": batch.id, "state": batch.state, "problem": batch.trouble}
            for batch in batches_in_trouble(conn, job.id)
        ],
        "twins": [twin._asdict() for twin in twins(conn, job.id)],
    }


NEWEST_TRIALS = 10  # a gate for every night leaves hundreds


def _trials_facts(conn: Connection, job_id: int) -> list[dict[str, Any]]:
    """Return how the newest trials of a job stand, and all that are at work, as JSON, oldest first."""
    trials = trials_of(conn, job_id)
    at_work = {run.job_id for run in unended_runs(conn)} if trials else set()
    shown = [each for i, each in enumerate(trials) if i >= len(trials) - NEWEST_TRIALS or each.id in at_work]
    return [_trial_facts(conn, each, is_open=each.id in at_work) for each in shown]


def _trial_facts(conn: Connection, trial: JobRecord, *, is_open: bool) -> dict[str, Any]:
    """Return how a trial of a job stands, as JSON. is_open: whether it has an open run, or a batch at the API."""
    assert trial.trial is not None
    facts = {"name": trial.trial.name, "changes": trial.trial.changes, "open": is_open}
    return {**facts, "rows": job_rows(conn, trial.id), "cost_usd": cost_of_job(conn, trial.id)}


def _run_facts(conn: Connection, run: RunRecord) -> dict[str, Any]:
    return {
        "run_id": run.id,
        "state": run.state,
        "reason": run.reason,
        "vars": run.vars,
        "retry": run.retry,
        "rows": run_rows(conn, run),
        "planned": run.planned_at is not None and not rows_for_planning(conn, run.id),
        "cost_usd": run_cost(conn, run.id),
        "budget": budget_facts(conn, run),
        "estimate": run.estimate,
        "usage": usage_of_run(conn, run.id),
        "gate": run.gate if run.state == RunState.OPEN else None,
        "created_at": run.created_at.isoformat(),
    }


def status_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the command `status`. facts: see `status_facts`."""
    yield f"job      {facts['job']}, answers in table {facts['table']}"
    yield f"rows     {counts_line(facts['rows'])}"
    if facts["gone"]:
        yield f"         {gone_words(facts['gone'])}, as of {facts['gone_at'][:10]}"
    yield from _recipe_lines(facts["recipes"])
    yield f"batches  {counted(facts['batches']) or 'none'}"
    for batch in facts["collecting"]:
        yield f"         batch {batch['batch']}: {batch['answered']:,} of {count(batch['rows'], 'row')} answered"
    yield f"cost     {money(facts['cost_usd'])} for all answers so far"
    for run in facts["open_runs"] or ([facts["last_run"]] if facts["last_run"] else []):
        yield from _run_lines(run, trial=facts["trial"] is not None)
    for trial in facts["trials"]:
        state = "open, " if trial["open"] else ""
        yield f"trial    {trial['name']}: {state}{counts_line(trial['rows'])}, {money(trial['cost_usd'])}"
    if (facts["open_runs"] or is_open(facts["batches"])) and facts["swept_seconds_ago"] is not None:
        yield f"swept    {duration(facts['swept_seconds_ago'])} ago"
    for problem in facts["problems"]:
        lost = "is lost: " if problem["state"] == BatchState.LOST else ""
        yield f"         batch {problem['batch']}: {lost}{problem['problem']}"
    for twin in facts["twins"]:
        yield f"warning  batch {twin['batch']}: {twin['problem']}"
    if facts["results_vanish_days"] is not None and facts["results_vanish_days"] < 7:
        yield f"warning  the API removes results on {facts['results_vanish_at'][:10]}; run `collect` before that day"


def _recipe_lines(by_recipe: list[Mapping[str, Any]]) -> Iterator[str]:
    """Yield for each recipe how many rows were answered with it; nothing if the job has had one recipe only."""
    for recipe in by_recipe:
        rows, since = count(recipe["rows"], "row"), recipe["since"][:10]
        if recipe["present"]:
            yield f"recipe   {rows} answered with the present recipe, used since {since}"
        else:
            differs = f": {recipe['differs']}" if recipe["differs"] else ""
            yield f"recipe   {rows} answered with an older recipe, used since {since}{differs}"


def is_open(batches_by_state: Mapping[str, int]) -> bool:
    return any(batches_by_state.get(state) for state in OPEN_BATCHES)


def _run_lines(run: Mapping[str, Any], *, trial: bool) -> Iterator[str]:
    """Yield the lines of a run. trial: whether it is that of a trial, whose budget an option gives."""
    given = " ".join(f"{name}={value}" for name, value in run["vars"].items())
    state = run["state"] + (f": {run['reason']}" if run["reason"] else "")
    planning = "" if run["planned"] or run["state"] != RunState.OPEN else ", planning not finished"
    when = run["created_at"][:16].replace("T", " ")
    begun = f"{'a retry ' if run['retry'] else ''}begun {when}{' with ' + given if given else ''}"
    yield f"run {run['run_id']:<4} {state}{planning}, {begun}: {counts_line(run['rows'])}"
    if run["gate"] is not None:
        yield f"         the rest {in_words(BEHIND_GATE[run['gate']])}"
    if run["budget"] is not None:
        yield f"         {budget_line(run['budget'], trial=trial)}"
    for line in money_lines(run["estimate"], run["cost_usd"], run["usage"]):
        yield f"         {line}"
