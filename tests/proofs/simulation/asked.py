"""What do the job of a schedule and its trial ask?"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.job.model import Job
from pipeline.job.name import OF_TRIAL
from pipeline.planning.trial import Trial
from tests.proofs.simulation.ways import Ways
from tests.support.talking import declared

JOB, TRIAL = "simulated", "t"
NAME_OF_TRIAL = f"{JOB}{OF_TRIAL}{TRIAL}"  #: among the jobs of the database
#: what a trial asks otherwise, by the kind of trial: its own prompt, or that of the job with a shorter answer
CHANGES: dict[str, dict[str, Any]] = {
    "prompt": {"request.prompt": "Trial | {{ text }}"},
    "tokens": {"request.max_tokens": 90},
}


def job_of(ways: Ways, folder: Path, recipe: int, tools: Mapping[str, Callable[[str], str]]) -> Job:
    """Return the job with this recipe. folder: of the source. tools: if it has rounds, the functions by name."""
    talks = ways.rounds > 1
    of_rounds = {"max": ways.rounds, "tools": dict(tools), "wait": ways.wait, "timeout": ways.tool_seconds}
    limits: dict[str, Any] = {"max_batch_requests": ways.batch_requests, "max_in_flight_requests": ways.in_flight}
    if ways.budget_usd is not None:
        limits["max_cost_usd"] = ways.budget_usd
    return Job.model_validate(
        {
            "name": JOB,
            "source": {"path": str(folder / "rows.csv"), "key": "id", "keep": ["note"]},
            "request": {
                "model": "claude-haiku-4-5",
                "max_tokens": 100,
                "prompt": f"Recipe {recipe} | {{{{ text }}}}",
                "dedupe": ways.dedupe,
                "params": {"tools": declared()} if talks else {},
            },
            "rounds": of_rounds if talks else {},
            "limits": limits,
            "retry": {
                "max_attempts": ways.attempts,
                "change": {"paused": {"continue": True}} if talks else {},
            },
            "privacy": {"delete_remote": ways.delete_remote},
            "sink": {"table": "answers", "history": ways.history},
            # one row is sent first, and the others are sent however it ends
            "canary": {"rows": 1, "max_failed": 1.0} if ways.canary else False,
        }
    )


def trial_of(ways: Ways) -> Trial:
    """Return the trial of the job, which has the job's budget."""
    assert ways.trial is not None
    return Trial(TRIAL, CHANGES[ways.trial], sample=ways.sample, max_cost_usd=ways.budget_usd)
