"""Choose the state in which a flow ends in Prefect. Pure."""

from collections.abc import Iterable
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.standing import Standing
from pipeline.states import RunState
from pipeline.text import count


def run_state(run: Standing, bad: list[Standing]) -> State[dict[str, Any]]:
    """Return the end state of a flow that has driven one run. bad: other runs that ended badly while it ran."""
    if bad or not run.is_well:
        return _failed([*([] if run.is_well else [run]), *bad])
    if run.state != RunState.OPEN:
        return Completed(message=run.sentence, data=run.facts)
    said = f"Submitted {count(run.sent.batches, 'batch')}, {count(run.sent.rows, 'row')}"
    waiting = sum(run.rows.values()) - run.sent.rows
    if waiting > 0:  # they wait for room at the API, for money, or because a batch was not accepted
        said += f"; {count(waiting, 'row')} still to be sent"
    message = f"{said}; collect_results finishes {run.title}"
    return Completed(name="Submitted", message=message, data=run.facts)


def sweep_state(swept: list[tuple[str, str | None]], ended: list[Standing]) -> State[list[dict[str, Any]]]:
    """Return the end state of a sweep.

    swept: the name of each job, and why it could not be swept, or None if it was. ended: the runs whose end the state
    announces.
    """
    facts = [run.facts for run in ended]
    bad = [run for run in ended if not run.is_well]
    problems = [f"{job} could not be swept: {problem}" for job, problem in swept if problem is not None]
    if bad or problems:
        return _failed(bad, problems)
    if not swept and not ended:
        return Completed(name="Nothing due", message="no run is open", data=facts)
    said = "; ".join(run.sentence for run in ended) or "no run ended"
    jobs = f"swept {', '.join(job for job, _ in swept)}: " if swept else ""
    return Completed(message=f"{jobs}{said}", data=facts)


def _failed(runs: list[Standing], problems: Iterable[str] = ()) -> State[Any]:
    reasons = {run.reason for run in runs}
    only = f"Incomplete ({reasons.pop()})" if len(reasons) == 1 and None not in reasons and not problems else "Failed"
    sentences = [*(run.sentence for run in runs), *problems]
    return Failed(name=only, message="; ".join(sentences))  # no data: Prefect would take it for an exception
