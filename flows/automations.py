"""Install the Prefect automation that ends flow runs whose process is gone. Edge: HTTP.

    python -m flows.automations

It is safe to install it twice. A worker that is stopped kills its flows, and Prefect is not told: it shows them as
Running for ever. No work is lost, because the next sweep continues it. But such a run occupies a place of its
deployment, and a person should not wait for it.
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
SILENT = timedelta(seconds=540)  # three times the default time between heartbeats of a flow
FLOWS = [flow.name for flow in (run_job, collect_results, reprocess_failed, collect_ended, plan_files)]
# Prefect names the event of a state after the state's name, so our own names are expected, too.
ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended", "TimedOut")
OUR_ENDS = ("Submitted", "Quoted", "Nothing due", "Incomplete*")


def silent_runs(within: timedelta = SILENT) -> Automation:
    """Return the automation. It sets a flow run of ours to Crashed when the run has sent no sign of life for too long.

    within: the time after a heartbeat in which the run must send another heartbeat, or end.
    """
    return Automation(
        name=NAME,
        description="The process of such a run is gone. Nothing is lost: the next collect_results continues its work.",
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
                message="This run sent no heartbeat for too long: its process is gone. Nothing is lost: "
                "the next collect_results continues its work.",
            )
        ],
    )


def install() -> bool:
    """Install the automation; return False if an automation of this name is installed already."""
    automations: Any = Automation  # its types say that calls must be awaited; here they must not be
    try:
        automations.read(name=NAME)
    except ValueError:
        automations.create(silent_runs())
        return True
    return False


if __name__ == "__main__":
    sys.stdout.write(f"{NAME}: {'installed' if install() else 'already installed'}\n")
