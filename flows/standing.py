"""Describe how a run stands, for titles and artifacts of Prefect. Edge: SQL."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from pipeline.report.money import budget_facts, stopped_line
from pipeline.state.batch_facts import Sent, sent_of_run
from pipeline.state.database import Connection
from pipeline.state.ends import exit_code
from pipeline.state.jobs import name_of
from pipeline.state.runs import get_run, run_cost, run_rows
from pipeline.states import RunState, failed_rows
from pipeline.text import count, counts_line, money


@dataclass(frozen=True)
class Standing:
    """How a run stands. title: job and day; rows: their number by state; sent: number of batches, and of rows in them.

    estimate: the cost in US dollars that was estimated when the run began, see estimate.Money; None if a price is not
    known.
    """

    run_id: int
    job: str
    title: str
    state: str
    reason: str | None
    rows: dict[str, int]
    sent: Sent
    cost_usd: float
    estimate: Mapping[str, float | None] | None
    max_failed: float
    budget: dict[str, float | None] | None
    ended_at: datetime | None

    @property
    def is_well(self) -> bool:
        """Return whether the run is open, or has ended with exit code 0."""
        return self.state == RunState.OPEN or exit_code(self.state, self.rows, self.max_failed) == 0

    @property
    def sentence(self) -> str:
        """Return how the run ended or how far it is, and the remedy if it did not end well."""
        if self.state == RunState.INCOMPLETE:
            return f"{self.title}: {stopped_line(self.reason, self.budget)}"
        if not self.is_well:
            failed = f"{failed_rows(self.rows):,} of {count(sum(self.rows.values()), 'row')} failed"
            return f"{self.title}: {failed}; batch-pipeline errors {self.job}"
        return f"{self.title}: {counts_line(self.rows)}, {money(self.cost_usd)}"

    @property
    def facts(self) -> dict[str, Any]:
        """Return the job, the run, its state, its rows and its cost as JSON."""
        facts = {"job": self.job, "run_id": self.run_id, "title": self.title, "state": self.state}
        return {**facts, "reason": self.reason, "rows": self.rows, "cost_usd": self.cost_usd}


def standing(conn: Connection, run_id: int) -> Standing:
    """Return how the run with this number stands, from the database."""
    run = get_run(conn, run_id)
    name = name_of(conn, run.job_id)
    return Standing(
        run_id=run_id,
        job=name,
        title=title(name, run.vars, run.created_at.date()),
        state=run.state,
        reason=run.reason,
        rows=run_rows(conn, run),
        sent=sent_of_run(conn, run_id),
        cost_usd=run_cost(conn, run_id),
        estimate=(run.estimate or {}).get("cost_usd"),
        max_failed=run.max_failed,
        budget=budget_facts(conn, run),
        ended_at=run.ended_at,
    )


def title(job: str, variables: Mapping[str, Any], day: date) -> str:
    """Return `ticket_triage 2026-11-20`: the job, and the days that its vars hold, or else the day of the run."""
    days = [value for value in variables.values() if isinstance(value, str) and _is_day(value)]
    return " ".join([job, *(days or [day.isoformat()])])


def _is_day(value: str) -> bool:
    return re.fullmatch(r"\d{4}-\d\d-\d\d", value) is not None
