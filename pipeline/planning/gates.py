"""What a run sends first and waits for: the canary of a new recipe, and the row that fills the prompt cache.

The API looks at a request only while it works on its batch, so 100,000 wrong ones are known an hour later. The gate
stands in the state database, not in a process: whoever has collected what went first opens it, or ends the run. If we
die between the two, the next pass of any driver finds the gate with nothing left to wait for, and decides.
"""

from typing import NamedTuple

from pipeline.job.model import Canary, Job
from pipeline.planning.packer import First
from pipeline.state.database import Connection
from pipeline.state.gates import canary_failed, has_sent, has_succeeded, keeps_gate
from pipeline.state.runs import RunRecord
from pipeline.states import Gate

PRIMED_ROWS = 3  # a run that has fewer gains nothing by waiting for its first one


def wanted(job: Job, *, rows: int, proven: bool, failed: bool, primes: bool) -> Gate | None:
    """What a run has to wait for. Pure.

    rows: how many it is going to send; proven: whether a row has succeeded with its recipe, or the run's canary is
    past; failed: whether a canary of the recipe has; primes: whether what its requests share is to be written to the
    prompt cache. A canary does that as well.
    """
    if isinstance(job.canary, Canary) and not proven and (failed or job.canary.applies_to(rows)):
        return Gate.CANARY
    return Gate.PRIMER if primes and rows >= PRIMED_ROWS else None


class Standing(NamedTuple):
    """What is known of a run before it is planned. gate: that it waits behind; sent: whether anything of it was sent.

    passed: whether its canary was sent; proven, failed: see `wanted`; keeps_gate: see store.keeps_gate.
    """

    gate: str | None = None
    keeps_gate: bool = False
    no_canary: bool = False
    passed: bool = False
    proven: bool = False
    failed: bool = False
    sent: bool = False


def standing(conn: Connection, job_id: int, recipe: str, run: RunRecord | None) -> Standing:
    """How the open run stands that the same command goes on with; None: it begins a new one."""
    proven, failed = has_succeeded(conn, job_id, recipe), canary_failed(conn, job_id, recipe)
    if run is None:
        return Standing(proven=proven, failed=failed)
    keeps = run.gate is not None and keeps_gate(conn, run.id, run.gate)
    passed = has_sent(conn, run.id, Gate.CANARY)  # and its gate is open: once for each run
    return Standing(
        gate=run.gate,
        keeps_gate=keeps,
        no_canary=run.no_canary,
        passed=passed,
        proven=proven,
        failed=failed,
        sent=has_sent(conn, run.id),
    )


def gate_of(job: Job, known: Standing, *, rows: int, canary: bool, primes: bool) -> Gate | None:
    """The gate that a run waits behind from now on. Pure.

    canary: whether this command allows one; rows, primes: see `wanted`.
    """
    allowed = canary and not known.no_canary and job.canary is not False
    if known.gate is not None and (known.gate == Gate.PRIMER or allowed):
        return Gate(known.gate)
    if known.gate is not None:  # it is opened
        return None
    return wanted(
        job,
        rows=rows,
        proven=not allowed or known.passed or known.proven,
        failed=known.failed,
        primes=primes and not known.sent,
    )


def first(job: Job, gate: str) -> First:
    """The batch that opens this gate. Pure."""
    canary = job.canary.rows if isinstance(job.canary, Canary) else 1
    return First(canary if gate == Gate.CANARY else 1, gate)
