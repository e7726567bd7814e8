"""Run a job: show the quote, ask for confirmation, then work until it is done. Edge: SQL, HTTP, files."""

import contextlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

from pipeline.driver.environment import Environment
from pipeline.driver.line import Line
from pipeline.events.runs import NotCounted, WaitsForRetry, Warned
from pipeline.job.canary import Canary
from pipeline.job.model import Job
from pipeline.money import budget
from pipeline.planning import gates, gold_canary, quoting
from pipeline.planning.known_rows import KnownRows
from pipeline.planning.model_checks import cache_warnings, check_models
from pipeline.planning.plan import Plan
from pipeline.planning.quote import Quote, Quoted
from pipeline.planning.quote_source import ToQuote
from pipeline.planning.sample import Counts
from pipeline.planning.trial import Sampled
from pipeline.planning.verdict import Verdict
from pipeline.quality.gold import RowsWithGold, check_table, read_gold
from pipeline.quality.review_gold import reviewed_sample
from pipeline.request.check import check_fields, check_types
from pipeline.runner.begin import Work
from pipeline.runner.loop import Run
from pipeline.runner.options import Finished, Options
from pipeline.runner.planners import Planners, number_of_planners
from pipeline.runner.processes import PlannerProcesses
from pipeline.runner.register import known_to_database, register
from pipeline.runner.trial_of import check_trial, register_job_of
from pipeline.sink.columns import ResultColumns
from pipeline.sink.table import ResultsTable
from pipeline.state import ends
from pipeline.state.batches import Unsent
from pipeline.state.database import Connection
from pipeline.state.jobs import JobRecord
from pipeline.state.rows import is_at_rest
from pipeline.state.runs import get_run
from pipeline.state.tallies import note_gone
from pipeline.tools.proof import load_tools


def run(job: Job, where: Environment, options: Options | None = None, *, file: Path | None = None) -> Finished:
    """Plan, submit, poll and collect until every row of the source has an outcome for its present content.

    The same call again continues the work of an earlier one, and several calls at a time share the work. Ends of
    earlier runs that were not announced are told first. The caller that shows the ends in the result must note this by
    `ends.note_told`. options: None: the defaults. file: the job file; None: the job was declared in Python.
    Raises InputError before anything is sent, and Stopped or Interrupted when it is safe to call again.
    """
    options = options or Options()
    trial = options.trial
    plan = Plan(job, limit=options.limit, refresh=options.refresh, retry=options.retry, trial=trial)
    check_fields(plan.asked)
    load_tools(job)  # proves that they can be called
    budget.require_bound(plan.asked, where.settings.monthly_budget)
    columns = ResultColumns.of(job, plan.source.kinds()) if trial is None else trial.columns.of_trials()
    gold: RowsWithGold | None = read_gold(job, columns)
    with where.driving(job.api.endpoint, lazily=True) as driving, contextlib.ExitStack() as stack:
        with where.database.read() as conn:
            job_record, sink = known_to_database(conn, where.database, job, columns, trial)
            if gold is not None:
                check_table(conn, sink, gold)
            of_job = None if trial is None else check_trial(conn, where.database, trial)
            known = quoting.known(conn, job_record, sink, plan)
            earlier = [] if job_record is None else ends.untold(conn, job_record.id)
            may_be_idle = job_record is not None and _may_be_idle(conn, job_record.id, plan, earlier, where.now())
        job_id = None if job_record is None else job_record.id
        plan.continues = known.run_id is not None

        def prepare_work() -> Planners | None:
            """Start the planners, which import what they need while the SDK is imported here; connect to the API."""
            planners = _planners(stack, plan, where, options)
            if planners is not None and not may_be_idle:
                planners.begin_to_quote(ToQuote.of(plan, job_id, known.unsent))
            check_types(plan.asked)
            driving.line.open()
            return planners

        planners = None if may_be_idle else prepare_work()
        plan.run_id = known.run_id if options.retry is not None else None
        ends.tell_bad(where.tell, earlier, "before this command")
        where.look_at_spool(job_record or of_job)
        known_rows = KnownRows(where.database, job_id, sink)
        quote = _quote(plan, planners, known_rows, known.unsent)
        if may_be_idle and not _is_idle(plan, quote):
            planners = prepare_work()
        canary = list[str]()
        if quote.to_send and gates.chooses_gold(job, known.standing, canary=options.canary and not options.retry):
            gold = gold or reviewed_sample(where.database, job_record, job, clear=True)
            canary = _canary_keys(where, plan, quote, known_rows, gold, sink, failed=known.standing.failed)
        counts = _complete_quote(where, plan, quote, known, driving.line, canary=options.canary, gold=len(canary))
        if job_record is not None:
            _store_counts(where, job_record.id, plan, quote, counts)
        where.tell(Quoted(quote=quote))
        _tell_open_retries(where, job, quote)
        if options.dry_run or not options.confirm(quote):
            return Finished(None, "quoted", None, {}, 0.0, quote, job.limits.max_failed)
        driver = driving.driver(*_registered(where, job, columns, file, gold, trial), tries_account=True)
        if job_record is None:
            _store_counts(where, driver.job_id, plan, quote, counts)
        return Run(Work(driver, job, plan, quote, counts, options, planners, canary), earlier).to_the_end()


def _registered(
    where: Environment,
    job: Job,
    columns: ResultColumns,
    file: Path | None,
    gold: RowsWithGold | None,
    trial: Sampled | None,
) -> tuple[JobRecord, ResultsTable]:
    """Store the job, and the one that it is a trial of; make its results table, and store its gold if it has any."""
    if trial is not None:
        register_job_of(where, trial, file)
    job_record, sink = register(where, job, columns, file, trial)
    if gold is not None:
        gold.store(where.database, sink)
    return job_record, sink


def _canary_keys(
    where: Environment,
    plan: Plan,
    quote: Quote,
    known_rows: KnownRows,
    gold: RowsWithGold | None,
    sink: ResultsTable,
    *,
    failed: bool,
) -> list[str]:
    """Return the keys of the rows with gold that are the canary of the run; [] and tell it if no such row is sent.

    gold: None: no row has any. failed: whether a canary of this recipe has failed. Raises InputError as
    `gold_canary.choose` does.
    """
    canary = plan.job.canary
    chosen = list[str]()
    if gold is not None:
        chosen = gold_canary.choose(plan, known_rows, gold, sink, failed=failed)
    if not chosen and isinstance(canary, Canary) and not canary.applies_to(quote.to_send):
        where.tell(Warned(warning="canary.min_accuracy is not looked at: no row with gold is to be sent"))
    return chosen


def _planners(stack: contextlib.ExitStack, plan: Plan, where: Environment, options: Options) -> Planners | None:
    """Return the planners of the run, which are ended with the stack; None: the driver plans.

    Processes that were started ahead are ended if none is needed.
    """
    pool = stack.enter_context(options.planners or PlannerProcesses())
    number = number_of_planners(plan, where, options)
    if not number:
        pool.end()
        return None
    return stack.enter_context(Planners(number, pool, where, plan.job.api.endpoint))


def _may_be_idle(conn: Connection, job_id: int, plan: Plan, earlier: Iterable[ends.End], now: datetime) -> bool:
    """Return whether the run has nothing to do if pass one finds all rows settled: then the API need not be asked.

    The job has no open work, and all of its bad ends were announced.
    """
    return plan.is_whole and is_at_rest(conn, job_id, now=now) and not any(end.exit_code for end in earlier)


def _quote(plan: Plan, planners: Planners | None, known_rows: KnownRows, unsent: Mapping[int, Unsent]) -> Quote:
    """Do pass one, or take what a planner has found in it. unsent: as for `Plan.quote`."""
    quoted = None if planners is None else planners.quoted()
    if quoted is None:
        return plan.quote(known_rows, unsent)
    plan.take_findings(quoted.findings, quoted.suspects)
    return quoted.quote


def _is_idle(plan: Plan, quote: Quote) -> bool:
    """Return whether pass one found that no row needs anything, and that no recipe is new."""
    return plan.is_settled and not quote.rows[Verdict.KEPT_OLDER]


def _complete_quote(
    where: Environment, plan: Plan, quote: Quote, known: quoting.Known, line: Line, *, canary: bool, gold: int
) -> Counts:
    """Complete the quote with the API's token counts, tell warnings, and return the counts.

    Raises InputError when the source has too few rows, and JobError when a model would refuse the requests.
    """
    warnings = quoting.require_rows(plan, quote)
    warnings += check_models(plan.asked, quote, line.api, where.now()) if quote.to_send else []
    counts, problem = quoting.counted(plan, quote, known, line.api if quote.samples else None)
    if quote.to_send:
        warnings += cache_warnings(plan.asked, quote, counts.prefix)
    for warning in warnings:
        where.tell(Warned(warning=warning))
    if problem is not None:
        where.tell(NotCounted(problem=problem))
    plan.tokens_per_byte = counts.tokens_per_byte
    quoting.complete(plan, quote, known, counts, canary=canary, queue=where.settings.max_in_flight, gold=gold)
    return counts


def _tell_open_retries(where: Environment, job: Job, quote: Quote) -> None:
    """Tell for each unfinished retry how many rows are left to it, with its variables and options."""
    if not quote.for_retries:
        return
    with where.database.read() as conn:
        retries = [get_run(conn, run_id) for run_id in sorted(quote.for_retries)]
    for run in retries:
        rows = quote.for_retries[run.id]
        where.tell(WaitsForRetry(job=job.name, run=run.id, rows=rows, vars=run.vars, retry=run.retry))


def _store_counts(where: Environment, job_id: int, plan: Plan, quote: Quote, counts: Counts) -> None:
    """Store what is used after the quote, too: the API's token counts, and how many rows are gone from the source."""
    with where.database.write() as conn:
        quoting.store_counts(conn, job_id, plan, counts, where.now())
        if quote.gone is not None:
            note_gone(conn, job_id, quote.gone, where.now())
