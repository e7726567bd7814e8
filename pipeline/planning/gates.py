"""Choose the gate that a run waits for: the canary of a new recipe, or the primer of the prompt cache. Edge: SQL.

The API validates a request only while it processes the batch, so 100,000 wrong requests would be noticed an hour later.
The gate is in the state database, not in a process: the driver that has collected the first batch opens the gate or
ends the run. If we die after the collecting and before the gate is opened, the next pass of any driver finds that the
gate has nothing left to wait for, and opens it or ends the run.
"""

from typing import NamedTuple

from pipeline.job.canary import Canary
from pipeline.job.model import Job
from pipeline.planning.packer import First
from pipeline.state.database import Connection
from pipeline.state.gates import canary_failed, has_sent, has_succeeded, keeps_gate
from pipeline.state.runs import RunRecord
from pipeline.states import Gate

PRIMED_ROWS = 3  # a run with fewer rows gains nothing by waiting for its first row


def wanted(job: Job, *, rows: int, proven: bool, failed: bool, primes: bool, gold: bool = False) -> Gate | None:
    """Return the gate that a run needs; None if all its batches may be sent at once. Pure.

    rows: how many the run is going to send; proven: whether no canary is needed, because a row has succeeded with this
    recipe or the run's canary has passed; failed: whether a canary of this recipe has failed; primes: whether one row
    should write the shared prefix to the prompt cache first. A canary writes it as well, so it needs no primer.
    gold: whether rows with gold were chosen, whose accuracy decides; then a run of any size has a canary.
    """
    if isinstance(job.canary, Canary) and not proven and (failed or gold or job.canary.applies_to(rows)):
        return Gate.CANARY
    return Gate.PRIMER if primes and rows >= PRIMED_ROWS else None


class Standing(NamedTuple):
    """What is known of a run before it is planned; the defaults are those of a new run.

    gate: the gate that the run waits for; None: it waits for none. keeps_gate: whether it has anything that opens the
    gate, see `state.gates.keeps_gate`. no_canary: whether a person wants it sent without a canary. passed: whether its
    canary was sent. proven: whether a row has succeeded with its recipe. failed: whether a canary of its recipe has
    failed. sent: whether a batch of it may have been sent.
    """

    gate: str | None = None
    keeps_gate: bool = False
    no_canary: bool = False
    passed: bool = False
    proven: bool = False
    failed: bool = False
    sent: bool = False


def standing(conn: Connection, job_id: int, recipe: str, run: RunRecord | None) -> Standing:
    """Read the standing of a run. run: the one that the same command continues; None: it begins a new one."""
    proven, failed = has_succeeded(conn, job_id, recipe), canary_failed(conn, job_id, recipe)
    if run is None:
        return Standing(proven=proven, failed=failed)
    keeps = run.gate is not None and keeps_gate(conn, run.id, run.gate)
    passed = has_sent(conn, run.id, Gate.CANARY)  # only used once the gate is open: a run sends one canary
    return Standing(
        gate=run.gate,
        keeps_gate=keeps,
        no_canary=run.no_canary,
        passed=passed,
        proven=proven,
        failed=failed,
        sent=has_sent(conn, run.id),
    )


def gate_of(job: Job, known: Standing, *, rows: int, canary: bool, primes: bool, gold: bool = False) -> Gate | None:
    """Return the gate that a run waits for from now on; None if it waits for none. Pure.

    canary: whether this command allows one; rows, primes, gold: see `wanted`.
    """
    allowed = canary and not known.no_canary and job.canary is not False
    if known.gate is not None and (known.gate == Gate.PRIMER or allowed):
        return Gate(known.gate)
    if known.gate is not None:  # a canary that is no longer allowed: its gate is opened
        return None
    return wanted(
        job,
        rows=rows,
        proven=not allowed or known.passed or known.proven,
        failed=known.failed,
        primes=primes and not known.sent,
        gold=gold,
    )


def chooses_gold(job: Job, known: Standing, *, canary: bool) -> bool:
    """Return whether a run has to choose rows with gold for its canary. Pure. canary: whether this command allows one.

    It has to until the canary is planned.
    """
    if not isinstance(job.canary, Canary) or job.canary.min_accuracy is None or not canary or known.no_canary:
        return False
    if known.gate is not None:
        return known.gate == Gate.CANARY and not known.keeps_gate
    return not (known.passed or known.proven)


def first(job: Job, gate: str) -> First:
    """Return the limits of the first batch, which opens this gate. Pure."""
    canary = job.canary.rows if isinstance(job.canary, Canary) else 1
    return First(canary if gate == Gate.CANARY else 1, gate)
