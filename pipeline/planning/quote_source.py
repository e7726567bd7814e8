"""Do pass one in a process of its own, for a driver of this machine. Edge: SQL, files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.job.model import Job
from pipeline.planning.known_rows import KnownRows
from pipeline.planning.plan import Plan
from pipeline.planning.quote import Quote
from pipeline.planning.suspects import Suspects
from pipeline.planning.unchanged import Findings
from pipeline.state.batches import Unsent
from pipeline.state.database import Database


@dataclass(frozen=True)
class ToQuote:
    """A source that another process shall read in pass one. It is pickled.

    job: the job as JSON has it. job_id: None: the database does not know the job. unsent: the job's batches that are
    planned and not sent. continues: see `Plan`.
    """

    job: dict[str, Any]
    refresh: bool
    continues: bool
    job_id: int | None
    unsent: Mapping[int, Unsent]

    @classmethod
    def of(cls, plan: Plan, job_id: int | None, unsent: Mapping[int, Unsent]) -> "ToQuote":
        """Return what a process needs for pass one of this plan."""
        return cls(plan.job.model_dump(mode="json"), plan.refresh, plan.continues, job_id, dict(unsent))


@dataclass(frozen=True)
class QuotedSource:
    """What pass one has found. findings: of the files; suspects: among the rows; both for the plan of the driver."""

    quote: Quote
    findings: Findings
    suspects: Suspects


def quote_source(database: Database, asked: ToQuote) -> QuotedSource:
    """Do pass one. Raises as `Plan` and `Plan.quote` do."""
    plan = Plan(Job.model_validate(asked.job), refresh=asked.refresh)
    plan.continues = asked.continues
    quote = plan.quote(KnownRows(database, asked.job_id), asked.unsent)
    return QuotedSource(quote, plan.findings, plan.suspects)
