"""Rows in, a SQL table of answers out, through Anthropic's Message Batches API.

from pipeline import Job, results, run

job = Job.model_validate({...})          # or load_job("tickets.yaml")
run(job, database="sqlite:///batches.db")
frame = results(job, database="sqlite:///batches.db")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.job.model import Job
    from pipeline.library import load_job, results, run

__all__ = ["Job", "load_job", "results", "run"]


def __getattr__(name: str) -> Any:
    """What the package offers, imported where it is used: a command that only says its options need not wait for it."""
    if name == "Job":
        from pipeline.job.model import Job

        return Job
    if name in __all__:
        from pipeline import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
