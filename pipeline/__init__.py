"""Send rows to Anthropic's Message Batches API and store the answers in a SQL table. This is the public API.

from pipeline import Job, results, run

job = Job(name=..., source=..., ...)    # or load_job("tickets.yaml")
run(job, database="sqlite:///batches.db")
frame = results(job, database="sqlite:///batches.db")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.job.model import Job
    from pipeline.library import load_job, results, run

__all__ = ["Job", "load_job", "results", "run"]


def __getattr__(name: str) -> Any:
    """Import a name of the public API when it is first used, so that `--help` does not wait for the imports."""
    if name == "Job":
        from pipeline.job.model import Job

        return Job
    if name in __all__:
        from pipeline import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
