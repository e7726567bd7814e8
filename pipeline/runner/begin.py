"""Begin the run of a command or continue an open one, and drop what must not be sent. Edge: SQL, HTTP, files."""

from collections.abc import Container, Sequence
from dataclasses import dataclass

from pipeline.driver.driver import Driver
from pipeline.job.model import Job
from pipeline.planning import gates
from pipeline.planning.drop import drop_of_ended_runs, drop_stale
from pipeline.planning.model_checks import primes_cache
from pipeline.planning.plan import Plan
from pipeline.planning.quote import Quote
from pipeline.planning.sample import Counts
from pipeline.runner.options import Options
from pipeline.runner.planners import Planners
from pipeline.state.database import Connection
from pipeline.state.gates import note_no_canary, open_gate, set_gate
from pipeline.state.rows import forget_waiting_bodies
from pipeline.state.runs import RunRecord, bound_tokens, get_run, join_run, save_estimate
from pipeline.steps.reconcile import refuse_unknown_bodies


@dataclass(frozen=True)
class Work:
    """What one `run` has to do.

    counts: the API's counts of tokens; their sample is empty if it was not asked. planners: processes that plan for the
    driver; None: it plans itself.
    """

    driver: Driver
    job: Job
    plan: Plan
    quote: Quote
    counts: Counts
    options: Options
    planners: Planners | None = None
    canary_keys: Sequence[str] = ()  #: of the rows with gold that were chosen for the canary; (): none were

    @property
    def plans_all(self) -> bool:
        """Whether the command plans all rows of the source."""
        return self.options.limit is None and self.options.retry is None

    @property
    def retries_all(self) -> bool:
        """Whether the command is a retry that reads all rows of the source."""
        return self.options.limit is None and self.options.retry is not None


def begin(work: Work, stale: Container[int]) -> int:
    """Begin the run of a command, or continue the open run of the same command. Return its number.

    Call it under the lease on planning. stale: planned batches with a row that must be sent with another request.
    Raises DatabaseError or Stopped as `refuse_unknown_bodies` does.
    """
    work.driver.spool.remove_unfinished()
    refuse_unknown_bodies(work.driver)
    with work.driver.planning_transaction() as conn:
        run_id = _join(conn, work)
        run = get_run(conn, run_id)
        _set_gate(conn, work, run)
        _store_quote(conn, work, run)
    _drop_unsendable(work, run_id, stale)
    return run_id


def _join(conn: Connection, work: Work) -> int:
    """Return the number of the open run of the same command, or of a new run."""
    retry = work.options.retry
    run_id = join_run(
        conn,
        work.driver.job_id,
        variables=work.job.vars,
        job=work.job.model_dump(mode="json"),
        recipe=work.plan.recipe,
        retry=None if retry is None else retry.facts(),
        now=work.driver.now(),
    )
    if not work.options.canary:
        # in the transaction that begins the run: if we die after it, the driver that continues the run knows it
        note_no_canary(conn, run_id)
    return run_id


def _set_gate(conn: Connection, work: Work, run: RunRecord) -> None:
    """Set the gate of the run if it has none; open it if the run need not wait for it now."""
    gate = gates.gate_of(
        work.job,
        gates.standing(conn, work.driver.job_id, work.plan.recipe, run),
        rows=work.quote.to_send,
        canary=work.options.canary and work.options.retry is None,
        primes=primes_cache(work.quote.models, work.counts.prefix),
        gold=bool(work.canary_keys),
    )
    if run.gate is None:
        set_gate(conn, run.id, gate)
    elif gate is None:
        open_gate(conn, run.id, run.gate, work.driver.now())


def _store_quote(conn: Connection, work: Work, run: RunRecord) -> None:
    """Store the quoted cost with the run, and the highest number of tokens per byte if there is a budget.

    Values that an earlier command has stored with the run are kept.
    """
    if run.estimate is None:
        estimate = work.quote.estimate
        assert estimate is not None
        save_estimate(
            conn, run.id, {"rows": estimate.rows, "requests": estimate.requests, "cost_usd": estimate.cost_facts}
        )
    budgeted = work.job.limits.max_cost_usd is not None or work.driver.settings.monthly_budget is not None
    if budgeted and run.tokens_per_byte is None:
        bound_tokens(conn, run.id, work.counts.tokens_per_byte)


def _drop_unsendable(work: Work, run_id: int, stale: Container[int]) -> None:
    """Drop planned batches that must not be sent. If all rows are planned, forget the spooled requests of pending rows.

    The planning renders the requests of these rows again.
    """
    drop_of_ended_runs(work.driver)
    drop_stale(work.driver, run_id, work.job, work.plan.recipe, stale, work.options.retry)
    if work.plans_all:
        with work.driver.planning_transaction() as conn:
            forget_waiting_bodies(conn, run_id, dict(work.job.vars))
