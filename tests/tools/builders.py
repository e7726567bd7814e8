"""Builders of jobs with tools."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from pipeline.job.model import Job

SCHEMA = {
    "type": "object",
    "properties": {"number": {"type": "string"}, "year": {"type": "integer"}},
    "required": ["number"],
}
LOOKUP = {"name": "lookup", "description": "Look a number up.", "input_schema": SCHEMA}


def job_with(
    tools: dict[str, str | Callable[..., Any]],
    *,
    declared: list[dict[str, Any]] | None = None,
    folder: Path | None = None,
    params: dict[str, Any] | None = None,
    **fields: Any,
) -> Job:
    """Return a job whose rounds have these tools. declared: request.params.tools; None: only LOOKUP."""
    rounds = {"tools": tools, **({} if folder is None else {"folder": str(folder)})}
    asked = {"tools": [LOOKUP] if declared is None else declared, **(params or {})}
    return Job.model_validate(
        {
            "name": "j",
            "source": {"path": "a.csv", "key": "id"},
            "request": {"model": "m", "max_tokens": 1, "prompt": "{{ text }}", "params": asked},
            "sink": {"table": "t"},
            "rounds": rounds,
            **fields,
        }
    )


def stored(job: Job) -> Job:
    """Return the job as the database gives it back."""
    return Job.model_validate(orjson.loads(orjson.dumps(job.model_dump(mode="json"))))


def use(given: Any, name: str = "lookup", number: int = 1) -> dict[str, Any]:
    """Return a tool_use block."""
    return {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": given}
