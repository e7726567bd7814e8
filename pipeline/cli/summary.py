"""What does a command say at its end: the counts, the money, the next command?"""

import sys
from collections.abc import Container
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.cli.options import SharedOptions
from pipeline.cli.running import running_command
from pipeline.cli.terminal import put, put_json, say, say_next

if TYPE_CHECKING:
    from pipeline.driver.environment import Environment
    from pipeline.job.model import Job
    from pipeline.runner.follow import Followed
    from pipeline.runner.options import Finished
    from pipeline.state.database import Database
    from pipeline.state.ends import End


# -- the end of `run` and `retry` ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ending:
    """How a run ended, as far as it is said.

    budget, month, money: as budget_facts, month_facts and money_facts of report/money.py give them; lines: what else
    is said of the money; next_words: the next command; table: where the answers are; database: its URL for people;
    retry: whether it is a retry; trial: the name of the trial; None: it is none.
    """

    finished: "Finished"
    budget: dict[str, float | None] | None
    month: dict[str, Any] | None
    lines: list[str]
    money: dict[str, Any]
    next_words: list[str]
    table: str
    database: str
    retry: bool = False
    trial: str | None = None


def read_ending(
    environment: "Environment", loaded: "Job", finished: "Finished", *, job: str, trial: str | None = None
) -> _Ending:
    """Return what there is to say at the end of a run, by the database.

    job: what commands call the job. trial: the name of the trial of it that was run; None: it was no trial.
    """
    from pipeline.job.name import with_trial
    from pipeline.report.money import budget_facts, money_facts, money_lines, month_facts
    from pipeline.state.runs import get_run
    from pipeline.state.spending import usage_of_run

    shown = environment.database.shown
    table = loaded.sink.table if trial is None else loaded.sink.trials_table
    if finished.run_id is None:  # it was only quoted, or a person did not confirm the quote
        return _Ending(
            finished=finished,
            budget=None,
            month=None,
            lines=[],
            money={},
            next_words=running_command(without=["dry_run"]),
            table=table,
            database=shown,
        )
    with environment.database.read() as conn:
        ran = get_run(conn, finished.run_id)
        budget = budget_facts(conn, ran)
        month = month_facts(conn, ran, environment.settings.monthly_budget, environment.now())
        usage = usage_of_run(conn, ran.id)
        money = (ran.estimate, finished.cost_usd, usage)
        lines = list(money_lines(*money))
    if finished.reason == "budget":
        next_words = running_command()
    elif trial is not None and finished.state == "finished" and loaded.gold is not None:
        next_words = ["evaluate", job, trial]
    elif finished.state == "finished" and sum(finished.rows.values()) > finished.rows.get("succeeded", 0):
        next_words = ["errors", with_trial(job, trial)]
    else:
        name = with_trial(loaded.name, trial)
        next_words = next_words_by_status(environment.database, name, job=with_trial(job, trial))
    retry = ran.retry is not None
    return _Ending(
        finished=finished,
        budget=budget,
        month=month,
        lines=lines,
        money=money_facts(*money),
        next_words=next_words,
        table=table,
        database=shown,
        retry=retry,
        trial=trial,
    )


def tell_ending(database: "Database", ending: _Ending, shared: SharedOptions) -> None:
    """Say how a run ended, and the next command; then note in the database that the end was told."""
    from datetime import UTC, datetime

    from pipeline.state import ends

    if ending.finished.state == "quoted":
        _tell_quoted(ending, as_json=shared.as_json)
    elif shared.as_json:
        _put_ending(ending)
    else:
        _say_ending(ending)
    ends.note_told(database, ending.finished.told, datetime.now(UTC))


def _tell_quoted(ending: _Ending, *, as_json: bool) -> None:
    if as_json:
        put_json({"event": "run", "run_id": None, "state": "quoted", "reason": None, "rows": {}, "cost_usd": 0.0})
    say_next(*ending.next_words)


def _put_ending(ending: _Ending) -> None:
    finished = ending.finished
    if ending.budget is not None:
        put_json({"event": "budget", "run_id": finished.run_id, **ending.budget})
    if ending.month is not None:
        put_json({"event": "month", **ending.month})
    put_json({"event": "money", "run_id": finished.run_id, **ending.money})
    facts = {"run_id": finished.run_id, "state": finished.state, "reason": finished.reason}
    facts |= {} if ending.trial is None else {"trial": ending.trial}
    put_json({"event": "run", **facts, "rows": finished.rows, "cost_usd": finished.cost_usd})


def _say_ending(ending: _Ending) -> None:
    from pipeline.report.money import stopped_line
    from pipeline.text import counts_line, money

    finished = ending.finished
    reason = f" ({finished.reason})" if finished.reason else ""
    counted = counts_line(finished.rows)
    say(f"run {finished.run_id:<4} {finished.state}{reason}: {counted}, {money(finished.cost_usd)}")
    for line in ending.lines:
        say(f"         {line}")
    is_trial = ending.trial is not None
    stopped = stopped_line(finished.reason, ending.budget, ending.month, retry=ending.retry, trial=is_trial)
    if stopped is not None:
        say(f"         {stopped}")
    if finished.state == "open":
        say("         batches in progress continue at the API; `collect` collects them")
    else:
        trial = "" if ending.trial is None else f" (trial {ending.trial})"
        say(f"answers  in table {ending.table}{trial} of {ending.database}")
    say_next(*ending.next_words)


def tell_earlier_ends(environment: "Environment", name: str | None, *, without: Container[int] = ()) -> "list[End]":
    """Tell how runs of a job, or of all jobs, ended badly, if that was not told yet; note all ends as told.

    name: the job's; None for all jobs. without: runs that the caller tells. Returns the ends, also the good ones.
    """
    from pipeline.state import ends
    from pipeline.state.jobs import with_trials

    with environment.database.read() as conn:
        untold = ends.untold(conn, *(() if name is None else (job.id for job in with_trials(conn, name))))
    found = [end for end in untold if end.run_id not in without]
    ends.tell_bad(environment.tell, found, when=None)
    ends.note_told(environment.database, {end.run_id: end.ended_at for end in found}, environment.now())
    return found


# -- the end of `collect` --------------------------------------------------------------------------------------------


def tell_swept(name: str, problem: str | None, *, as_json: bool) -> None:
    """Say that a job was swept. problem: why it could not be swept; None: it was."""
    if as_json:
        put_json({"event": "swept", "job": name, "problem": problem})
    else:
        say(f"job      {name}: " + (problem or "swept"))


def tell_followed(database: "Database", followed: "Followed", shared: SharedOptions) -> None:
    """Say how the followed runs ended and which jobs had a problem, then note that the ends were told."""
    from datetime import UTC, datetime

    from pipeline.state import ends

    for end in followed.ends:
        _tell_end(end, as_json=shared.as_json)
    for name, problem in followed.problems.items():
        tell_swept(name, problem, as_json=shared.as_json)
    ends.note_told(database, {end.run_id: end.ended_at for end in followed.ends}, datetime.now(UTC))


def _tell_end(end: "End", *, as_json: bool) -> None:
    from pipeline.text import counts_line, money

    if as_json:
        facts = {"run_id": end.run_id, "state": end.state, "reason": end.reason}
        put_json({"event": "run", "job": end.job, **facts, "rows": end.rows, "cost_usd": end.cost_usd})
        return
    reason = f" ({end.reason})" if end.reason else ""
    say(f"run {end.run_id:<4} of {end.job} {end.state}{reason}: {counts_line(end.rows)}, {money(end.cost_usd)}")


# -- the status of a job ---------------------------------------------------------------------------------------------


def print_status(database: "Database", name: str, shared: SharedOptions, *, job: str) -> None:
    """Write the status of a job that the database knows, and say the next command. job: what commands call the job."""
    from pipeline.report.next_command import next_command
    from pipeline.report.status import status_lines

    facts = _status_facts(database, name)
    if shared.as_json:
        put_json({"event": "status", **facts})
        return
    for line in status_lines(facts):
        put(line)
    sys.stdout.flush()
    say_next(*next_command(facts, job))


def next_words_by_status(database: "Database", name: str, *, job: str) -> list[str]:
    """Return the words of the command that a job's status asks for. job: what commands call the job."""
    from pipeline.report.next_command import next_command

    return next_command(_status_facts(database, name), job)


def _status_facts(database: "Database", name: str) -> dict[str, Any]:
    from datetime import UTC, datetime

    from pipeline.report.status import status_facts
    from pipeline.state.jobs import job_named

    with database.read() as conn:
        job_record = job_named(conn, name)
        assert job_record is not None
        return status_facts(conn, job_record, datetime.now(UTC))
