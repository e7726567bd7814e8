"""`check`: is the job right, before anything is paid?"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.opening import job_file, load_job
from pipeline.cli.options import (
    DatabaseOption,
    DebugOption,
    EmulatorOption,
    JobArgument,
    JsonOption,
    LogOption,
    SpoolOption,
    VarOption,
)
from pipeline.cli.terminal import put_json, put_request, say, say_next
from pipeline.errors import InputError, PipelineError

if TYPE_CHECKING:
    from pipeline.job.model import Job
    from pipeline.planning.quote import Quote
    from pipeline.sink.columns import ResultColumns


def check(
    job: JobArgument,
    var: VarOption = None,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Validate a job file, its source and its spool, and show the first request. Sends nothing."""
    import orjson

    from pipeline.driver.settings import Settings
    from pipeline.money import budget
    from pipeline.planning import quoting
    from pipeline.planning.known_rows import KnownRows
    from pipeline.planning.plan import Plan
    from pipeline.report.quote import invalid_share, limit_means, quote_facts, shortened
    from pipeline.request.check import check_params
    from pipeline.sink.columns import ResultColumns
    from pipeline.text import count

    path = job_file(job, database, emulated=emulator)
    loaded = load_job(path, var)
    check_params(loaded)
    budget.require_bound(loaded, Settings.from_environment().monthly_budget)
    plan = Plan(loaded)
    ResultColumns.of(loaded, plan.kinds()).added_to(_columns_before(loaded.name, path, database, emulated=emulator))
    warnings = _look_at_spool(loaded, path, database, spool, emulated=emulator)
    quote = plan.quote(KnownRows(None, None))
    warnings += quoting.require_rows(plan, quote)
    warnings += _asked_of_models(loaded, quote, emulated=emulator)
    first = None if quote.first_params is None else orjson.loads(quote.first_params)
    if as_json:
        facts = {"first_params": first, "warnings": warnings, **quote_facts(quote)}
        put_json({"event": "check", "job": loaded.name, **facts})
    else:
        say(f"job      {loaded.name} is right: {count(quote.total, 'row')} with unique keys")
        for warning in warnings:
            say(f"warning  {warning}")
        if quote.problems:
            say(f"warning  {invalid_share(quote)}")
        for line in limit_means(quote):
            say(line)
        if first is not None:
            put_request(shortened(first))
    say_next("run", str(path))


def _asked_of_models(loaded: "Job", quote: "Quote", *, emulated: bool) -> list[str]:
    """Warnings by the Models API, if it can be asked. Raises JobError for what a model would refuse."""
    from datetime import UTC, datetime

    from pipeline.driver import environment
    from pipeline.errors import JobError
    from pipeline.planning.model_checks import cache_warnings, check_models, shared_tokens

    try:
        with environment.asking(loaded.api.client, emulated=emulated) as api:
            warnings = check_models(loaded, quote, api, datetime.now(UTC))
            return warnings + cache_warnings(loaded, quote, shared_tokens(loaded, quote, api))
    except JobError:
        raise
    except InputError as exc:
        return [f"the models were not checked: {exc}"]


def _look_at_spool(loaded: "Job", path: Path, database: str | None, spool: str | None, *, emulated: bool) -> list[str]:
    """Warnings about what could not be looked at. Raises DatabaseError when a run could not use its spool."""
    from pipeline.driver import spools
    from pipeline.state.database import Database, default_url
    from pipeline.state.jobs import job_named

    url = database or default_url(path.parent, emulated=emulated)
    if not Database.exists(url):
        spools.read_id(spools.address_of(Database.folder_of(url), spool, None))
        return []
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(contextlib.closing(Database(url)))
            with opened.read() as conn:
                row = job_named(conn, loaded.name)
        except PipelineError as exc:
            return [f"the spool was not looked at: {exc}"]
        if row is None:
            spools.read_id(spools.address_of(opened.folder, spool, None))
        else:
            spools.check(opened, row, spool)
    return []


def _columns_before(name: str, path: Path, database: str | None, *, emulated: bool) -> "ResultColumns | None":
    """The columns of the job's results table as it is; None for a job that has none yet."""
    from pipeline.sink.columns import ResultColumns
    from pipeline.state.database import Database, default_url
    from pipeline.state.jobs import job_named

    url = database or default_url(path.parent, emulated=emulated)
    if not Database.exists(url):
        return None
    try:
        with contextlib.closing(Database(url)) as opened, opened.read() as conn:
            row = job_named(conn, name)
    except PipelineError:  # what looks at the spool says it
        return None
    return None if row is None else ResultColumns(**row.columns)
