"""`estimate`: what would a run send and cost?"""

import contextlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.opening import database_url, default_folder, find_job_file, load_job
from pipeline.cli.options import EVERYWHERE, JobArgument, SharedOptions, VarOption, takes
from pipeline.cli.terminal import put, put_json, say, say_next
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.planning.known_rows import KnownRows
    from pipeline.planning.past import Past
    from pipeline.planning.plan import Plan
    from pipeline.planning.quote import Quote
    from pipeline.planning.quoting import Known
    from pipeline.planning.sample import Counts
    from pipeline.sink.table import ResultsTable
    from pipeline.state.database import Database
    from pipeline.state.jobs import JobRecord


@takes(*EVERYWHERE)
def estimate(
    job: JobArgument,
    var: VarOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows of the source.")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Also rows that succeeded with an older recipe.")] = False,
    models: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="What would all rows cost with these models? all: those the key may use."),
    ] = None,
    *,
    shared: SharedOptions,
) -> None:
    """Show what a run would send and estimate its tokens, its cost and its time. Sends nothing.

    With --models it shows a line for each model instead, the cheapest first, and what each refuses of the requests.
    """
    from pipeline.planning.plan import Plan
    from pipeline.report.canary import canary_chances
    from pipeline.report.quote import estimate_lines, quote_facts
    from pipeline.request.check import check_params

    loaded = load_job(find_job_file(job, shared), var)
    check_params(loaded)
    if models is not None:
        if refresh:
            raise InputError("--models estimates all rows, also those that have an answer; leave --refresh out")
        _estimate_models(Plan(loaded, limit=limit), models, job, shared)
        return
    quote, warnings = _quote_by_state(Plan(loaded, limit=limit, refresh=refresh), default_folder(job), shared)
    if shared.as_json:
        put_json({"event": "estimate", "job": loaded.name, "warnings": warnings, **quote_facts(quote)})
    else:
        for line in estimate_lines(quote):
            put(line)
        for line in canary_chances(loaded, quote.ahead) if quote.gold_ahead else ():
            put(line)
        sys.stdout.flush()
        for warning in warnings:
            say(f"warning  {warning}")
    say_next("run", job)


def _quote_by_state(plan: "Plan", folder: Path, shared: SharedOptions) -> "tuple[Quote, list[str]]":
    """Return the quote that `run` would show, and warnings. Makes no database where there is none.

    folder: that of the default database.
    """
    from pipeline.sink.table import ResultsTable
    from pipeline.state.database import Database
    from pipeline.state.jobs import job_named

    url = database_url(folder, shared)
    if not Database.exists(url):
        return _quote(plan, None, None, emulated=shared.emulator)
    with contextlib.closing(Database(url)) as database:
        with database.read() as conn:
            job_record = job_named(conn, plan.job.name)
        if job_record is None:
            return _quote(plan, None, None, emulated=shared.emulator)
        return _quote(plan, database, (job_record, ResultsTable.of(job_record)), emulated=shared.emulator)


def _quote(
    plan: "Plan", database: "Database | None", known_job: "tuple[JobRecord, ResultsTable] | None", *, emulated: bool
) -> "tuple[Quote, list[str]]":
    """Return a plan's quote and warnings. known_job: the job in the database; None: token counts are not stored."""
    from datetime import UTC, datetime

    from pipeline.driver.settings import Settings
    from pipeline.planning import quoting
    from pipeline.planning.known_rows import KnownRows

    known, lookup = quoting.Known(), KnownRows(None, None)
    if database is not None and known_job is not None:
        with database.read() as conn:
            known = quoting.known(conn, *known_job, plan)
        lookup = KnownRows(database, known_job[0].id, known_job[1])
    quote = plan.quote(lookup, known.unsent)
    warnings = quoting.require_rows(plan, quote)
    counts, problem = _count_tokens(plan, quote, known, emulated=emulated)
    if database is not None and known_job is not None and known.counts is None:
        with database.write() as conn:
            quoting.store_counts(conn, known_job[0].id, plan, counts, datetime.now(UTC))
    gold = _canary_rows(plan, quote, known, lookup, database, None if known_job is None else known_job[0])
    queue = Settings.from_environment().max_in_flight
    quoting.complete(plan, quote, known, counts, canary=True, queue=queue, gold=gold)
    if problem is not None:
        warnings.append(f"the API did not count the tokens: {problem}")
    return quote, warnings


def _estimate_models(plan: "Plan", models: str, job: str, shared: SharedOptions) -> None:
    """Print an estimate for each model, of all rows of the plan as if none had an answer. models, job: as given."""
    from datetime import UTC, datetime

    from pipeline.driver import environment
    from pipeline.planning import by_model
    from pipeline.planning.known_rows import KnownRows
    from pipeline.report.by_model import model_lines, next_model

    names = by_model.read_names(models)
    quote = plan.quote(KnownRows(None, None))
    before = _past(plan, default_folder(job), shared)
    with environment.asking(plan.job.api.endpoint, emulated=shared.emulator) as api:
        found = by_model.estimates(plan.job, quote, names, api, before=before, today=datetime.now(UTC).date())
    if shared.as_json:
        for each in found:
            put_json({"event": "model_estimate", "job": plan.job.name, **each.facts()})
    else:
        for line in model_lines(found, plan.job, before):
            put(line)
        sys.stdout.flush()
    other = next_model(found)
    if other is None:
        say_next("run", job)
    else:
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", other)  # the ids of clouds have other characters, too
        say_next("trial", job, "--name", name, "--set", f"request.model={other}")


def _past(plan: "Plan", folder: Path, shared: SharedOptions) -> "Past | None":
    """Return what is known of the job's past answers; None: it has none. folder: that of the default database."""
    from pipeline.planning.past import past
    from pipeline.sink.table import ResultsTable
    from pipeline.state.database import Database
    from pipeline.state.jobs import job_named

    url = database_url(folder, shared)
    if not Database.exists(url):
        return None
    with contextlib.closing(Database(url)) as database, database.read() as conn:
        record = job_named(conn, plan.job.name)
        return None if record is None else past(conn, record, ResultsTable.of(record), plan.recipe)


def _canary_rows(
    plan: "Plan",
    quote: "Quote",
    known: "Known",
    lookup: "KnownRows",
    database: "Database | None",
    job_record: "JobRecord | None",
) -> int:
    """Return how many rows with gold `run` would send first, as the canary of a new recipe; 0 if it would not.

    Raises InputError, as `run` does, if they are too few.
    """
    from pipeline.planning import gates, gold_canary
    from pipeline.quality.gold import RowsWithGold, read_gold
    from pipeline.quality.review_gold import reviewed_sample
    from pipeline.sink.columns import ResultColumns
    from pipeline.sink.table import ResultsTable

    if not quote.to_send or not gates.chooses_gold(plan.job, known.standing, canary=True):
        return 0
    columns = ResultColumns.of(plan.job, plan.source.kinds())
    gold: RowsWithGold | None = read_gold(plan.job, columns)
    if gold is None and database is not None:
        gold = reviewed_sample(database, job_record, plan.job, clear=True)
    if gold is None:
        return 0
    sink = ResultsTable(plan.job.sink.table, columns)
    return len(gold_canary.choose(plan, lookup, gold, sink, failed=known.standing.failed))


def _count_tokens(plan: "Plan", quote: "Quote", known: "Known", *, emulated: bool) -> "tuple[Counts, str | None]":
    """Return the tokens of the sample, and why the API did not count them; None if it did or need not."""
    from pipeline.driver import environment
    from pipeline.planning import quoting

    if known.counts is not None or not quote.samples:
        return quoting.counted(plan, quote, known, None)
    try:
        with environment.asking(plan.job.api.endpoint, emulated=emulated) as api:
            return quoting.counted(plan, quote, known, api)
    except InputError as exc:
        return quoting.counted(plan, quote, known, None)[0], str(exc)
