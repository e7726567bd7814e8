"""`check`: is a job valid, before anything is paid?"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.opening import database_url, default_folder, load_job, open_known_job, refuse_trial
from pipeline.cli.options import EVERYWHERE, JobArgument, SharedOptions, VarOption, takes
from pipeline.cli.terminal import put_json, put_request, say, say_next
from pipeline.errors import InputError, PipelineError

if TYPE_CHECKING:
    from pipeline.job.model import Job
    from pipeline.planning.plan import Plan
    from pipeline.planning.quote import Quote
    from pipeline.quality.gold import GoldCount
    from pipeline.sink.columns import ResultColumns
    from pipeline.state.database import Database
    from pipeline.state.jobs import JobRecord


@takes(*EVERYWHERE)
def check(
    job: JobArgument,
    var: VarOption = None,
    *,
    shared: SharedOptions,
) -> None:
    """Validate a job file, its source and its spool, and show the first request. Sends nothing."""
    from pipeline.driver.settings import Settings
    from pipeline.money import budget
    from pipeline.planning import quoting
    from pipeline.planning.known_rows import KnownRows
    from pipeline.planning.plan import Plan
    from pipeline.request.check import check_params

    with _open_job(job, shared) as (path, database):
        loaded = load_job(path, var)
        check_params(loaded)
        _check_tools(loaded)
        budget.require_bound(loaded, Settings.from_environment().monthly_budget)
        plan = Plan(loaded)
        warnings = _check_against_state(plan, database, default_folder(job), shared)
        gold = _check_gold(plan)
    quote = plan.quote(KnownRows(None, None))
    warnings += quoting.require_rows(plan, quote)
    warnings += _check_models(loaded, quote, emulated=shared.emulator)
    _say_checked(loaded, quote, warnings, gold, as_json=shared.as_json)
    say_next("run", job)


@contextlib.contextmanager
def _open_job(job: str, shared: SharedOptions) -> "Iterator[tuple[Path, Database | None]]":
    """Yield the job file that JOB names, and the open database that knows it; None for a job given by its file."""
    from pipeline.job.name import is_path
    from pipeline.state.jobs import job_file_of

    refuse_trial(job)
    if is_path(job):
        yield Path(job), None
        return
    with open_known_job(job, shared) as (database, job_record):
        yield job_file_of(job_record), database


def _check_tools(loaded: "Job") -> None:
    """Raise JobError if a tool of the job has no function that takes its arguments."""
    if loaded.rounds.tools:
        from pipeline.tools.proof import load_tools

        load_tools(loaded)


def _check_gold(plan: "Plan") -> "GoldCount | None":
    """Return how many rows have gold; None if the job has none. Raises JobError or SourceError for wrong gold."""
    if plan.job.gold is None:
        return None
    from pipeline.quality.gold import read_gold
    from pipeline.sink.columns import ResultColumns

    reader = read_gold(plan.job, ResultColumns.of(plan.job, plan.source.kinds()))
    return None if reader is None else reader.found


def _say_checked(
    loaded: "Job", quote: "Quote", warnings: list[str], gold: "GoldCount | None", *, as_json: bool
) -> None:
    import orjson

    from pipeline.job.canary import Canary
    from pipeline.report.canary import canary_chances
    from pipeline.report.quote import invalid_share, limit_means, quote_facts, shortened
    from pipeline.text import count

    first = None if quote.first_params is None else orjson.loads(quote.first_params)
    if as_json:
        facts = {"first_params": first, "warnings": warnings, **quote_facts(quote)}
        if gold is not None:
            facts["gold_rows"] = gold.with_gold
        put_json({"event": "check", "job": loaded.name, **facts})
        return
    say(f"job      {loaded.name} is valid: {count(quote.total, 'row')} with unique keys")
    if gold is not None:
        say(f"gold     {gold.with_gold:,} of {count(gold.rows, 'row')} {'has' if gold.rows == 1 else 'have'} gold")
        for line in canary_chances(loaded, gold.with_gold):
            say(line)
    elif isinstance(loaded.canary, Canary):  # by reviews, of which a database knows, which `check` does not open
        for line in canary_chances(loaded, loaded.canary.rows):
            say(line)
    for warning in warnings:
        say(f"warning  {warning}")
    if quote.problems:
        say(f"warning  {invalid_share(quote)}")
    for line in limit_means(quote):
        say(line)
    if first is not None:
        put_request(shortened(first))


def _check_models(loaded: "Job", quote: "Quote", *, emulated: bool) -> list[str]:
    """Return warnings about the models, as the Models API describes them, or that it could not be asked.

    Raises JobError for what a model would refuse.
    """
    from datetime import UTC, datetime

    from pipeline.driver import environment
    from pipeline.errors import JobError
    from pipeline.planning.model_checks import cache_warnings, check_models, shared_tokens

    try:
        with environment.asking(loaded.api.endpoint, emulated=emulated) as api:
            warnings = check_models(loaded, quote, api, datetime.now(UTC))
            return warnings + cache_warnings(loaded, quote, shared_tokens(loaded, quote, api))
    except JobError:
        raise
    except InputError as exc:
        return [f"the models were not checked: {exc}"]


# -- the state database ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _State:
    """What the state database at `url` says of the job.

    database: None where there is none yet; job_record: the job, None where the database does not know it yet; problem:
    why the database could not be read, None if it could.
    """

    url: str
    database: "Database | None" = None
    job_record: "JobRecord | None" = None
    problem: str | None = None

    @property
    def columns(self) -> "ResultColumns | None":
        """The columns of the job's results table as it is; None for a job that has none yet."""
        from pipeline.sink.columns import ResultColumns

        return None if self.job_record is None else ResultColumns.from_stored(self.job_record.columns)


def _check_against_state(plan: "Plan", database: "Database | None", folder: Path, shared: SharedOptions) -> list[str]:
    """Check that a run could write to the job's results table and spool; return warnings about what was not checked.

    database: None if it is not open yet. folder: that of the default database. Raises JobError when the columns of the
    table do not fit, DatabaseError when the spool cannot be used.
    """
    from pipeline.sink.columns import ResultColumns

    with _read_state(database_url(folder, shared), database, plan.job.name) as state:
        ResultColumns.of(plan.job, plan.source.kinds()).added_to(state.columns)
        return _check_spool(state, shared.spool)


@contextlib.contextmanager
def _read_state(url: str, opened: "Database | None", job: str) -> Iterator[_State]:
    """Read the job of this name from the state database, and keep the database open for the block.

    opened: the database; None: open it here, if there is one.
    """
    from pipeline.state.database import Database
    from pipeline.state.jobs import job_named

    if opened is None and not Database.exists(url):
        yield _State(url)
        return
    with contextlib.ExitStack() as stack:
        try:
            database = opened or stack.enter_context(contextlib.closing(Database(url)))
            with database.read() as conn:
                state = _State(url, database, job_named(conn, job))
        except PipelineError as exc:
            state = _State(url, problem=str(exc))
        yield state


def _check_spool(state: _State, spool: str | None) -> list[str]:
    """Return a warning if the spool was not checked. Raises DatabaseError when a run could not use it.

    spool: what --spool gives; None: the job's own, or the default one.
    """
    from pipeline.driver import spools
    from pipeline.state.database import Database

    if state.problem is not None:
        return [f"the spool was not checked: {state.problem}"]
    if state.database is None or state.job_record is None:
        spools.read_id(spools.address_of(Database.folder_of(state.url), spool, None))
    else:
        spools.check(state.database, state.job_record, spool)
    return []
