"""What a command says at its end: the counts, the money, the next command."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.cli.terminal import put, put_json, same_words, say, say_next

if TYPE_CHECKING:
    from pipeline.driver.environment import Environment
    from pipeline.job.model import Job
    from pipeline.runner.options import Finished
    from pipeline.state.database import Database


@dataclass(frozen=True)
class _Ended:
    """How a run ended. budget, month, money: see report.budget_facts, month_facts, money_facts.

    lines: what else is said; then: the next command; database: as it is shown; retry: whether it is a retry.
    """

    finished: "Finished"
    budget: dict[str, float | None] | None
    month: dict[str, Any] | None
    lines: list[str]
    money: dict[str, Any]
    then: list[str]
    database: str
    retry: bool = False


def ended_run(where: "Environment", loaded: "Job", job: str, finished: "Finished") -> _Ended:
    """What is to be said at the end of a run, read from the database. job: what commands call it."""
    from pipeline.report.money import budget_facts, money_facts, money_lines, month_facts
    from pipeline.state.runs import get_run
    from pipeline.state.spending import usage_of_run

    shown = where.database.shown
    if finished.run_id is None:  # only quoted, or the answer was no
        return _Ended(finished, None, None, [], {}, [word for word in same_words() if word != "--dry-run"], shown)
    with where.database.read() as conn:
        ran = get_run(conn, finished.run_id)
        budget = budget_facts(conn, ran)
        month = month_facts(conn, ran, where.settings.monthly_budget, where.now())
        usage = usage_of_run(conn, ran.id)
        money = (ran.estimate, finished.cost_usd, usage)
        lines = list(money_lines(*money))
    if finished.reason == "budget":
        then = same_words()
    elif finished.state == "finished" and sum(finished.rows.values()) > finished.rows.get("succeeded", 0):
        then = ["errors", job]
    else:
        then = next_by_status(where.database, loaded.name, job)
    retry = ran.retry is not None
    return _Ended(finished, budget, month, lines, money_facts(*money), then, shown, retry)


def report_run(database: "Database", loaded: "Job", ended: _Ended, *, as_json: bool) -> None:
    """Say how a `run` or `retry` ended, and the next command; then note that it was told."""
    from datetime import UTC, datetime

    from pipeline.state import ends

    _say_ended(loaded, ended, as_json=as_json)
    ends.note_told(database, ended.finished.told, datetime.now(UTC))


def _say_ended(loaded: "Job", ended: _Ended, *, as_json: bool) -> None:
    from pipeline.report.money import stopped_line
    from pipeline.text import counts_line, money

    finished = ended.finished
    if finished.state == "quoted":
        if as_json:
            put_json({"event": "run", "run_id": None, "state": "quoted", "reason": None, "rows": {}, "cost_usd": 0.0})
        say_next(*ended.then)
        return
    if as_json:
        if ended.budget is not None:
            put_json({"event": "budget", "run_id": finished.run_id, **ended.budget})
        if ended.month is not None:
            put_json({"event": "month", **ended.month})
        put_json({"event": "money", "run_id": finished.run_id, **ended.money})
        facts = {"run_id": finished.run_id, "state": finished.state, "reason": finished.reason}
        put_json({"event": "run", **facts, "rows": finished.rows, "cost_usd": finished.cost_usd})
        return
    reason = f" ({finished.reason})" if finished.reason else ""
    counted = counts_line(finished.rows)
    say(f"run {finished.run_id:<4} {finished.state}{reason}: {counted}, {money(finished.cost_usd)}")
    for line in ended.lines:
        say(f"         {line}")
    stopped = stopped_line(finished.reason, ended.budget, ended.month, retry=ended.retry)
    if stopped is not None:
        say(f"         {stopped}")
    if finished.state == "open":
        say("         what is at the API goes on there; a sweep collects it")
    else:
        say(f"answers  in table {loaded.sink.table} of {ended.database}")
    say_next(*ended.then)


def tell_ends(where: "Environment", name: str | None) -> None:
    """Tell the bad ends of a job's runs, or of all jobs' runs, that nobody was told of, and note all ends as told."""
    from pipeline.state import ends
    from pipeline.state.jobs import job_named

    with where.database.read() as conn:
        row = None if name is None else job_named(conn, name)
        found = ends.untold(conn, None if row is None else row.id)
    for end in found:
        if end.exit_code:
            where.tell("run_ended", when=None, **end.facts)
    ends.note_told(where.database, {end.run_id: end.ended_at for end in found}, where.now())


def print_status(database: "Database", name: str, *, as_json: bool, job: str | None = None) -> None:
    from datetime import UTC, datetime

    from pipeline.report.next_command import next_command
    from pipeline.report.status import status_facts, status_lines
    from pipeline.state.jobs import job_named

    with database.read() as conn:
        row = job_named(conn, name)
        assert row is not None
        facts = status_facts(conn, row, datetime.now(UTC))
    if as_json:
        put_json({"event": "status", **facts})
        return
    for line in status_lines(facts):
        put(line)
    sys.stdout.flush()
    say_next(*next_command(facts, job or name))


def next_by_status(database: "Database", name: str, job: str) -> list[str]:
    """The command that comes next by how the job stands. job: what commands call it."""
    from datetime import UTC, datetime

    from pipeline.report.next_command import next_command
    from pipeline.report.status import status_facts
    from pipeline.state.jobs import job_named

    with database.read() as conn:
        row = job_named(conn, name)
        assert row is not None
        return next_command(status_facts(conn, row, datetime.now(UTC)), job)
