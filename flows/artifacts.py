"""Make the tables and texts that Prefect shows of a run. Edge: SQL."""

import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from flows.standing import Standing
from pipeline.planning.quote import Quote
from pipeline.report.errors import error_facts
from pipeline.report.money import budget_line
from pipeline.report.quote import quote_lines
from pipeline.report.words import cost_range
from pipeline.sink.table import ResultsTable
from pipeline.state.batch_facts import newest_batches
from pipeline.state.database import Connection, Database
from pipeline.state.jobs import JobRecord
from pipeline.states import OUTCOMES
from pipeline.text import count, money

LINK = "BATCH_RESULTS_URL"  # address of a page that shows a results table, as `https://bi.example.com/tables/{table}`
MOST_BATCHES = 100  # the most that a table shows: a browser renders them all


def batch_table(conn: Connection, job_id: int) -> list[dict[str, Any]]:
    """Return state, counts, cost and age of the job's newest batches, at most MOST_BATCHES, open batches first."""
    now = datetime.now(UTC)
    return [
        {
            "batch": batch.id,
            "state": batch.state,
            "requests": batch.requests,
            "rows": batch.rows,
            "outcomes": ", ".join(f"{count:,} {outcome}" for outcome, count in sorted((batch.outcomes or {}).items())),
            "cost": money(batch.cost_usd),
            "age": _age((batch.collected_at or now) - batch.created_at),
            "api_id": batch.api_id or "",
            "problem": escaped(batch.trouble or ""),
        }
        for batch in newest_batches(conn, job_id, limit=MOST_BATCHES)
    ]


def _age(elapsed: Any) -> str:
    minutes = int(elapsed.total_seconds()) // 60
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def summary_text(database: Database, conn: Connection, job: JobRecord, run: Standing) -> str:
    """Return the summary of a run as Markdown. Text that comes from models and from rows is escaped."""
    reason = f" ({run.reason})" if run.reason else ""
    parts = [
        f"# {escaped(run.title)}",
        f"Run {run.run_id} is **{run.state}{reason}**. {escaped(run.sentence)}",
        _rows_table(run.rows),
        _money(run),
    ]
    causes = error_facts(conn, job, ResultsTable.of(job), job.name)
    if causes:
        parts += [
            "## Failures by cause",
            "These are the failures of the whole job, not of this run alone.",
            *map(_cause, causes[:10]),
        ]
    name = job.results_table
    query = f"SELECT status, count(*), sum(cost_usd) FROM {name} WHERE run_id = {run.run_id} GROUP BY status"
    link = results_link(name)
    parts += ["## Answers", f"```sql\n{query};\n```", *([] if link is None else [f"[Table {escaped(name)}]({link})"])]
    return "\n\n".join(parts) + "\n"


def quoted(quote: Quote, reasons: list[str]) -> str:
    said = "\n".join(["```", *quoted_lines(quote), "```"])
    return "\n\n".join([said, *(escaped(reason) for reason in reasons)])


def quoted_lines(quote: Quote) -> list[str]:
    """Return the lines of the quote without its first problem, which may contain text of a row."""
    return list(quote_lines(quote, problems=False))


def _rows_table(rows: Mapping[str, int]) -> str:
    if not rows:
        return "No row had to be sent."
    order = [state for state in ("pending", "planned", "in_flight", *OUTCOMES) if rows.get(state)]
    lines = [f"| {state.replace('_', ' ')} | {rows[state]:,} |" for state in order]
    return "\n".join(["| rows | |", "| --- | ---: |", *lines])


def _money(run: Standing) -> str:
    said = f"Money: {money(run.cost_usd)} so far."
    if run.estimate is not None:
        said += f" Estimated: {cost_range(run.estimate)}."
    return said if run.budget is None else f"{said} {budget_line(run.budget)}."


def _cause(cause: Mapping[str, Any]) -> str:
    what = f"{cause['status']} ({cause['error_type']})" if cause["error_type"] else cause["status"]
    keys = ", ".join(escaped(str(key)) for key in cause["keys"])
    said = f"**{count(cause['rows'], 'row')} {escaped(what)}**: {escaped(str(cause['error_message']))}"
    said += f"\n\nFor example {keys}. {escaped(cause['remedy'])}"
    if cause["under_way"]:  # nothing to click: a second run would find no row to send
        return f"{said}."
    flow, parameters = parameters_of(cause["command"])
    mends = orjson.dumps(parameters, option=orjson.OPT_INDENT_2).decode()
    return f"{said}: `{flow}` with\n\n{_fenced(mends)}"


def parameters_of(words: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the flow that does the same as a command, and its parameters.

    words: of the command, such as `retry JOB --status errored` or `run JOB`.
    """
    command, job, *options = words
    if command != "retry":
        return "run_job", {"job": job}
    names = {"--status": "status", "--error-type": "error_type", "--key": "key", "--set": "set"}
    found: dict[str, Any] = {"job": job}
    for option, value in zip(options[::2], options[1::2], strict=True):
        if option == "--where":
            found["where"] = value
        elif option in names:
            found.setdefault(names[option], []).append(value)
    return "reprocess_failed", found


def results_link(table: str) -> str | None:
    """Return the address of the page that shows a results table; None if BATCH_RESULTS_URL is not set."""
    pattern = os.environ.get(LINK)
    return pattern.replace("{table}", table) if pattern else None


def escaped(text: str) -> str:
    """Return Markdown that shows a text, up to 500 characters, unchanged but for its white space.

    It has no markup, no HTML and no image that a browser would fetch.
    """
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split())[:500])


def _fenced(code: str) -> str:
    """Return a Markdown block of JSON with a fence that no text in it can close."""
    longest = max((len(ticks) for ticks in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}json\n{code}\n{fence}"


def artifact_key(what: str, job: str) -> str:
    return re.sub("[^a-z0-9]+", "-", f"{what}-{job}".lower()).strip("-")
