"""Install the automation that ends runs of which nothing is heard any more; safe to call again.

    python -m flows.automations

A worker that is stopped kills its flows without a word, and Prefect shows them as Running for ever. The work loses
nothing by it: the next sweep goes on. But such a run holds its deployment's place, and a person should not wait for it.
"""

import sys
from datetime import timedelta
from typing import Any

from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from flows.collect_results import collect_results
from flows.collect_tasks import collect_ended
from flows.plan_tasks import plan_files
from flows.reprocess_failed import reprocess_failed
from flows.run_job import run_job

NAME = "batch-pipeline: end silent runs"
SILENT = timedelta(seconds=540)  # three heartbeats of a flow, by default
FLOWS = [flow.name for flow in (run_job, collect_results, reprocess_failed, collect_ended, plan_files)]
# The event of a state is named by the state's name, so that ours count beside those of Prefect.
ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended", "TimedOut")
OUR_ENDS = ("Submitted", "Quoted", "Nothing due", "Incomplete*")


def silent_runs(within: timedelta = SILENT) -> Automation:
    """The automation: a run of ours that has sent a heartbeat, and then neither another nor an end, is Crashed."""
    return Automation(
        name=NAME,
        description="The process of such a run is gone. Nothing is lost: the next collect_results goes on.",
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": FLOWS}),
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{state}" for state in ENDS + OUR_ENDS)},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                force=False,
                state=StateType.CRASHED,
                message="Nothing was heard of this run any more: its process is gone. Nothing is lost, "
                "the next collect_results goes on.",
            )
        ],
    )


def install() -> bool:
    """Install it unless one of its name is there; whether it was installed."""
    automations: Any = Automation  # typed as if its calls had to be awaited, which they must not here
    try:
        automations.read(name=NAME)
    except ValueError:
        automations.create(silent_runs())
        return True
    return False


if __name__ == "__main__":
    sys.stdout.write(f"{NAME}: {'installed' if install() else 'is there already'}\n")
