"""The command line. Thin: each command reads its options, calls one function, and prints what it returns.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline import memory
from pipeline.errors import Completed, InputError, Interrupted, PipelineError
from pipeline.terminal import (
    Teller,
    any_text,
    command_line,
    confirmed,
    is_utf8,
    log_format,
    put,
    put_json,
    put_request,
    same_words,
    say,
    say_next,
    signals,
    terminated,
)

if TYPE_CHECKING:
    from datetime import date

    from sqlalchemy import Row

    from pipeline.answers import Wanted
    from pipeline.counting import Counts
    from pipeline.database import Database
    from pipeline.job import Job
    from pipeline.plan import Plan
    from pipeline.quote import Quote
    from pipeline.quoting import Known
    from pipeline.retry import Retry
    from pipeline.runner import Finished
    from pipeline.sink import Columns, Sink
    from pipeline.where import Where

app = typer.Typer(
    name="batch-pipeline",
    help="Rows in, a SQL table of answers out, at batch price, through Anthropic's Message Batches API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job file, or the name of a job the database knows.")]
# Each command takes the same options, so that a script may give them to all; some have no use for one of them.
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database", envvar="BATCH_DATABASE_URL", help="State database. Default: batches.db beside the job file."
    ),
]
SpoolOption = Annotated[
    str | None,
    typer.Option(
        "--spool",
        envvar="BATCH_SPOOL",
        help="Folder for request bodies, or s3://, gs://, az://BUCKET/PREFIX. Default: beside the database.",
    ),
]
LogOption = Annotated[
    str,
    typer.Option(
        "--log-format", metavar="text|json", callback=lambda value: log_format(value), help="Of what stderr says."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per line on stdout.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
EmulatorOption = Annotated[
    bool, typer.Option("--emulator", help="Speak to an emulator started for this command: no key, no network, no bill.")
]
VarOption = Annotated[list[str] | None, typer.Option("--var", metavar="NAME=VALUE", help="Override a var of the job.")]
LastVarOption = Annotated[
    list[str] | None,
    typer.Option("--var", metavar="NAME=VALUE", help="Override a var. Default: what the last run had."),
]
YesOption = Annotated[
    bool,
    typer.Option(
        "--yes", help="Do not ask after the quote. Without a terminal, or with --json, nothing is asked anyway."
    ),
]
DetachOption = Annotated[bool, typer.Option("--detach", help="End once all is sent; `collect` takes it to its end.")]
PollOption = Annotated[
    float | None,
    typer.Option(
        "--poll-seconds",
        envvar="BATCH_POLL_SECONDS",
        min=0,
        help="Between polls. Default: as the API says, growing to 60.",
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        sys.stdout.write(f"batch-pipeline {metadata.version('batch-pipeline')}\n")
        raise typer.Exit(0)


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version, and end.")
    ] = False,
) -> None:
    """Rows in, a SQL table of answers out, at batch price, through Anthropic's Message Batches API."""


# -- commands ----------------------------------------------------------------------------------------------------------


@app.command()
def init(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A data file: CSV, TSV, Parquet, NDJSON or Arrow.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The job file to write. Default: FILE's name .yaml")
    ] = None,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a commented job file for a data file; never overwrites."""
    from pipeline.starter import write_job_file

    written = write_job_file(file, output, _newest_haiku())
    if as_json:
        put_json({"event": "init", "file": str(written)})
    else:
        say(f"wrote {written}")
    say_next("check", str(written))


@app.command()
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

    from pipeline import budget, checks, quoting, report
    from pipeline.driver import Settings
    from pipeline.known import Lookup
    from pipeline.plan import Plan
    from pipeline.sink import Columns

    path = _job_file(job, database, emulated=emulator)
    loaded = _load(path, var)
    checks.check_params(loaded)
    budget.require_bound(loaded, Settings.from_environment().monthly_budget)
    plan = Plan(loaded)
    Columns.of(loaded, plan.kinds()).over(_columns_before(loaded.name, path, database, emulated=emulator))
    warnings = _look_at_spool(loaded, path, database, spool, emulated=emulator)
    quote = plan.quote(Lookup(None, None))
    warnings += quoting.require_rows(plan, quote)
    warnings += _asked_of_models(loaded, quote, emulated=emulator)
    first = None if quote.first_params is None else orjson.loads(quote.first_params)
    if as_json:
        facts = {"first_params": first, "warnings": warnings, **report.quote_facts(quote)}
        put_json({"event": "check", "job": loaded.name, **facts})
    else:
        say(f"job      {loaded.name} is right: {report.count(quote.total, 'row')} with unique keys")
        for warning in warnings:
            say(f"warning  {warning}")
        if quote.problems:
            say(f"warning  {report.invalid_share(quote)}")
        for line in report.limit_means(quote):
            say(line)
        if first is not None:
            put_request(report.shortened(first))
    say_next("run", str(path))


@app.command()
def estimate(
    job: JobArgument,
    var: VarOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows of the source.")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Also what an older recipe answered.")] = False,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """What a run would send, how many tokens and how much money that takes, and how long. Sends nothing."""
    from pipeline import checks, report
    from pipeline.plan import Plan

    path = _job_file(job, database, emulated=emulator)
    loaded = _load(path, var)
    checks.check_params(loaded)
    plan = Plan(loaded, limit=limit, refresh=refresh)
    quote, warnings = _quoted(plan, path, database, emulated=emulator)
    if as_json:
        put_json({"event": "estimate", "job": loaded.name, "warnings": warnings, **report.quote_facts(quote)})
    else:
        for line in report.estimate_lines(quote):
            put(line)
        sys.stdout.flush()
        for warning in warnings:
            say(f"warning  {warning}")
    say_next("run", str(path))


@app.command()
def preview(
    job: JobArgument,
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, max=100, help="How many rows.")] = 3,
    key: Annotated[
        list[str] | None, typer.Option("--key", help="The row with this key; commas between several columns.")
    ] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Rows from all over the source instead of its first ones.")
    ] = False,
    var: VarOption = None,
    yes: YesOption = False,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """A few rows through the realtime API, live, at full price: the same requests as in a batch. Stores nothing."""
    if key and (sample or len(key) > 100):
        raise InputError("--key names the rows, up to 100: leave --sample out" if sample else "--key: give up to 100")
    from rich.console import Console

    from pipeline import checks, where
    from pipeline import preview as live
    from pipeline.plan import Plan

    path = _job_file(job, database, emulated=emulator)
    loaded = _load(path, var)
    checks.check_params(loaded)
    picked = live.pick(Plan(loaded), rows, keys=key or (), sample=sample)
    for line in picked.problem_lines():
        say(line)
    say(f"preview  {live.announcement(picked, loaded)}")
    if not confirmed(yes=yes, ask=not as_json):
        raise typer.Exit(0)
    with where.reaching(loaded.api.client, emulated=emulator) as reached:
        client = live.async_client(reached)
        if as_json:
            code = live.tell(client, picked, loaded, lambda facts: put_json({"event": "preview", **facts}))
        else:
            code = live.show(client, picked, loaded, Console(highlight=False, soft_wrap=True))
    say_next("run", str(path))
    raise typer.Exit(code)


@app.command()
def models(
    client: Annotated[str, typer.Option(help="Which of the SDK's clients asks: default, aws or google.")] = "default",
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """The models that the key can use: batches, limits, retirement dates, batch prices, capabilities."""
    from pipeline import catalogue, where
    from pipeline.clients import CLIENTS
    from pipeline.pricing import LISTED

    if client not in CLIENTS:
        raise InputError(f"--client {client}: write one of {', '.join(CLIENTS)}")
    with where.asking(client, emulated=emulator) as api:
        found = catalogue.facts(api.models(), LISTED)
    if as_json:
        for facts in found:
            put_json({"event": "model", **facts})
        return
    for line in catalogue.lines(found):
        put(line)


@app.command()
def run(
    job: JobArgument,
    var: VarOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows of the source.")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Also what an older recipe answered.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what a run would send and cost; send nothing.")
    ] = False,
    detach: DetachOption = False,
    yes: YesOption = False,
    no_canary: Annotated[
        bool, typer.Option("--no-canary", help="Send all at once, also with a recipe that never succeeded before.")
    ] = False,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    poll_seconds: PollOption = None,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Plan, submit, poll and collect until every row has an outcome. The same command again just continues.

    On a terminal it asks after the quote. Without one (cron, CI, a pipe) it goes on unasked: limits.max_cost_usd bounds
    what it may cost, and --dry-run only says it.
    """
    with _many_objects_that_stay():
        from pipeline.runner import Options
        from pipeline.runner import run as run_job
    path = _job_file(job, database, emulated=emulator)
    loaded = _load(path, var)
    if loaded.vars and not as_json:
        say("vars     " + ", ".join(f"{name}={value}" for name, value in loaded.vars.items()))
    options = Options(
        limit=limit,
        refresh=refresh,
        detach=detach,
        dry_run=dry_run,
        canary=not no_canary,
        confirm=_confirm(yes=yes, ask=not as_json),
    )
    with contextlib.closing(_open(path.parent, database, emulated=emulator)) as opened:
        with _where(opened, spool, emulated=emulator, poll_seconds=poll_seconds, as_json=as_json, job=job) as where:
            ended = _ended(where, loaded, job, run_job(loaded, where, options, file=path))
        _report_run(opened, loaded, ended, as_json=as_json)
    raise typer.Exit(ended.finished.exit_code)


@app.command()
def retry(
    job: JobArgument,
    status: Annotated[
        list[str] | None,
        typer.Option(help="Only rows with this status; succeeded, canceled and lost ones go only when named."),
    ] = None,
    error_type: Annotated[list[str] | None, typer.Option(help="Only rows with this error_type.")] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="Only the row with this key; commas between several columns.")
    ] = None,
    predicate: Annotated[
        str | None, typer.Option("--where", help="Only rows for whose answers this SQL predicate holds.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Ask otherwise: request.max_tokens=1000.")
    ] = None,
    var: LastVarOption = None,
    detach: DetachOption = False,
    yes: YesOption = False,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    poll_seconds: PollOption = None,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Send rows that did not succeed once more, as they are in the source now; then go on as `run` does."""
    with _many_objects_that_stay():
        from pipeline import naming
        from pipeline.retry import Retry, change
        from pipeline.runner import Options
        from pipeline.runner import run as run_job
    wanted = Retry(
        statuses=tuple(status or ()),
        error_types=tuple(error_type or ()),
        keys=tuple(key or ()),
        where=predicate,
        changes=dict(change(pair) for pair in changes or ()),
    )
    folder, name = _job_and_folder(job)
    with contextlib.closing(_open(folder, database, emulated=emulator, must_exist=True)) as opened:
        with _where(opened, spool, emulated=emulator, poll_seconds=poll_seconds, as_json=as_json, job=job) as where:
            row = naming.known_job(opened, name)
            loaded, path = _load_as_last(opened, row, job, var)
            if loaded.vars and not as_json:
                say("vars     " + ", ".join(f"{name}={value}" for name, value in loaded.vars.items()))
            confirm = _confirm_retry(opened, row, wanted, yes=yes, as_json=as_json)
            options = Options(retry=wanted, detach=detach, confirm=confirm)
            ended = _ended(where, loaded, job, run_job(loaded, where, options, file=path))
        _report_run(opened, loaded, ended, as_json=as_json)
    raise typer.Exit(ended.finished.exit_code)


@app.command()
def collect(
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="One job only. Default: all jobs of the database.")
    ] = None,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """One sweep, for a scheduler: poll, collect, and submit what became due. Plans no new rows."""
    with _many_objects_that_stay():
        from pipeline.runner import sweep

    folder, name = (Path(), None) if job is None else _job_and_folder(job)
    with (
        contextlib.closing(_open(folder, database, emulated=emulator, must_exist=True)) as opened,
        _where(opened, spool, emulated=emulator, poll_seconds=None, as_json=as_json, job=job) as where,
    ):
        swept = sweep(where, name)
        for swept_name, problem in swept:
            if as_json:
                put_json({"event": "swept", "job": swept_name, "problem": problem})
            else:
                say(f"job      {swept_name}: " + (problem or "swept"))
        if not swept and not as_json:
            say("nothing to do: no run is open")
        _tell_ends(where, name)
        if name is not None:
            _print_status(opened, name, as_json=as_json, job=job)
    if any(problem for _, problem in swept):
        raise typer.Exit(3)


@app.command()
def cancel(
    job: JobArgument,
    abandon: Annotated[
        bool,
        typer.Option(
            "--abandon",
            help="Give up batches that another account has sent, or that the API does not end: their rows are lost.",
        ),
    ] = False,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """End the open runs of a job for all drivers, and cancel its batches. What had succeeded is still collected."""
    with _many_objects_that_stay():
        from pipeline import naming
        from pipeline.cancel import cancel as cancel_job

    folder, name = _job_and_folder(job)
    with (
        contextlib.closing(_open(folder, database, emulated=emulator, must_exist=True)) as opened,
        _where(opened, spool, emulated=emulator, poll_seconds=None, as_json=as_json, job=job) as where,
    ):
        row = naming.known_job(opened, name)
        canceled = cancel_job(where, row, abandon=abandon)
    if canceled.open > canceled.foreign:
        say_next("collect", job)
    elif canceled.foreign:
        say_next("cancel", job, "--abandon")
    else:
        say_next("status", job)


@app.command()
def status(
    job: JobArgument,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """How a job stands: rows, batches, money, and what to do next."""
    with _known_job(job, database, emulated=emulator) as (opened, row):
        _print_status(opened, row.name, as_json=as_json, job=job)


@app.command()
def errors(
    job: JobArgument,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Failed rows by cause, with example keys and what mends them."""
    from pipeline import report
    from pipeline.sink import Sink

    with _known_job(job, database, emulated=emulator) as (opened, row), opened.read() as conn:
        causes = report.errors(conn, row, Sink.of(row), job)
    mends = causes[0]["command"] if causes else ["export", job]
    for cause in causes:
        cause["command"] = command_line(*cause["command"])
    if as_json:
        for cause in causes:
            put_json({"event": "error", **cause})
        return
    for line in report.error_lines(causes):
        put(line)
    if not causes:
        say("no row has failed")
    say_next(*mends)


@app.command()
def show(
    job: JobArgument,
    key: Annotated[str, typer.Option("--key", help="Of the row; commas between several columns.")],
    var: LastVarOption = None,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """All that is known of one row: source values, the request as sent or as it would be, attempts, answers."""
    from pipeline import show as shows

    with contextlib.ExitStack() as stack:
        opened, row, loaded = _job_as_far_as_known(stack, job, database, var, emulated=emulator)
        shown = shows.show(loaded, key, opened, row, spool)
    if as_json:
        put_json({"event": "show", "job": loaded.name, **shown.facts()})
    else:
        for line in shows.lines(shown, ascii_only=not is_utf8()):
            put(line)
        sys.stdout.flush()
    status = "succeeded" if shown.answer is None else str(shown.answer["status"])
    failed = status not in ("succeeded", "invalid")
    say_next(*(["retry", job, "--status", status, "--key", shown.key] if failed else ["status", job]))


@app.command()
def verify(
    job: JobArgument,
    source: Annotated[
        bool, typer.Option("--source", help="Also that each row of the whole source has an outcome as it is now.")
    ] = False,
    var: LastVarOption = None,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Prove that a job is complete: states, answers and the API's counts agree. Exit 1 with the keys that do not."""
    from pipeline import report
    from pipeline import verify as proof

    with _known_job(job, database, emulated=emulator) as (opened, row):
        found = proof.verify(opened, row)
        if source:
            loaded, _ = _load_as_last(opened, row, job, var)
            proof.verify_source(opened, row, loaded, found)
        next_words = _next_by_status(opened, row.name, job)
    if as_json:
        for of, problem in found.shown:
            put_json({"event": "problem", "of": of, "problem": problem})
        put_json({"event": "verify", "job": row.name, **report.verify_facts(found)})
    else:
        for line in report.verify_lines(found):
            put(line)
        sys.stdout.flush()
    if found.holds:
        say_next("export", job)
        return
    if found.unplanned:
        say_next("run", job)
    else:
        say_next(*(next_words if found.waiting else ["status", job]))
    raise typer.Exit(1)


@app.command()
def export(
    job: JobArgument,
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]",
            help="A .parquet, .csv or .ndjson file, also s3:// gs:// az://. Default: NDJSON to stdout.",
        ),
    ] = None,
    status: Annotated[str | None, typer.Option(help="Only rows with this status.")] = None,
    where: Annotated[str | None, typer.Option(help="Only rows for which this SQL predicate holds.")] = None,
    since: Annotated[
        int | None, typer.Option(metavar="RUN", min=0, help="Only answers of runs after this one.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="At most N rows.")] = None,
    partition_by: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Make FILE a folder, with a folder COLUMN=VALUE for each value."),
    ] = None,
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="parquet|csv|ndjson", help="Of the files of --partition-by. Default: parquet."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Answers in the order of their keys: to a file, to a folder of files, or as NDJSON to stdout."""
    from pipeline.answers import Wanted

    wanted = Wanted(status, where, since, limit)
    if file is None and partition_by:
        raise InputError("--partition-by makes a folder of files: name it after the job")
    ending = _ending_of_parts(file_format, partition_by)
    with _known_job(job, database, emulated=emulator) as (opened, row):
        if file is None:
            _answers_to_stdout(opened, row, wanted)
        else:
            _answers_to_file(opened, row, file, wanted, by=partition_by, ending=ending, overwrite=overwrite)


@app.command()
def emulator(
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")] = 8787,
    processing_seconds: Annotated[float, typer.Option(min=0, help="How long a batch takes.")] = 2.0,
    faults: Annotated[Path | None, typer.Option(help="A YAML or JSON file of faults; see docs/emulator.md.")] = None,
    data: Annotated[Path, typer.Option(help="Folder that keeps its batches; it goes on from there.")] = Path(
        "emulator-data"
    ),
    debug: DebugOption = False,
) -> None:
    """Run an emulator of the Messages and Message Batches API, for tests of your own pipelines."""
    from pipeline.emulator import EmulatorError, serve

    try:
        serve(data, port=port, processing_seconds=processing_seconds, faults_file=faults)
    except EmulatorError as exc:
        raise InputError(str(exc)) from exc


# -- what is asked of the API before anything is sent ------------------------------------------------------------------


PATIENCE_SECONDS = 10.0  # with an API that is only asked which models it has


def _newest_haiku() -> str:
    """The newest Haiku, which is the cheapest line, that the key can use; without a key, that the price list has."""
    from pipeline import capabilities, pricing
    from pipeline.api import Api
    from pipeline.clients import Reach
    from pipeline.errors import Stopped

    listed: list[str] = []
    with (
        contextlib.suppress(InputError, Stopped),
        contextlib.closing(Api.connect(Reach("default", PATIENCE_SECONDS))) as api,
    ):
        listed = [info.id for info in api.models()]
    found = capabilities.newest(listed, "haiku") or capabilities.newest(pricing.windows(), "haiku")
    assert found is not None, "the price list has a Haiku"
    return found


def _asked_of_models(loaded: "Job", quote: "Quote", *, emulated: bool) -> list[str]:
    """Warnings by the Models API, if it can be asked. Raises JobError for what a model would refuse."""
    from datetime import UTC, datetime

    from pipeline import checks, where
    from pipeline.errors import JobError

    try:
        with where.asking(loaded.api.client, emulated=emulated) as api:
            warnings = checks.check_models(loaded, quote, api, datetime.now(UTC))
            return warnings + checks.cache_warnings(loaded, quote, checks.shared_tokens(loaded, quote, api))
    except JobError:
        raise
    except InputError as exc:
        return [f"the models were not checked: {exc}"]


def _look_at_spool(loaded: "Job", path: Path, database: str | None, spool: str | None, *, emulated: bool) -> list[str]:
    """Warnings about what could not be looked at. Raises DatabaseError when a run could not use its spool."""
    from pipeline import spools, store
    from pipeline.database import Database, default_url

    url = database or default_url(path.parent, emulated=emulated)
    if not Database.exists(url):
        spools.look_at(spools.address_of(Database.folder_of(url), spool, None))
        return []
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(contextlib.closing(Database(url)))
            with opened.read() as conn:
                row = store.job_named(conn, loaded.name)
        except PipelineError as exc:
            return [f"the spool was not looked at: {exc}"]
        if row is None:
            spools.look_at(spools.address_of(opened.folder, spool, None))
        else:
            spools.check(opened, row, spool)
    return []


def _columns_before(name: str, path: Path, database: str | None, *, emulated: bool) -> "Columns | None":
    """The columns of the job's results table as it is; None for a job that has none yet."""
    from pipeline import store
    from pipeline.database import Database, default_url
    from pipeline.sink import Columns

    url = database or default_url(path.parent, emulated=emulated)
    if not Database.exists(url):
        return None
    try:
        with contextlib.closing(Database(url)) as opened, opened.read() as conn:
            row = store.job_named(conn, name)
    except PipelineError:  # what looks at the spool says it
        return None
    return None if row is None else Columns(**row.columns)


def _quoted(plan: "Plan", path: Path, database: str | None, *, emulated: bool) -> "tuple[Quote, list[str]]":
    """What `run` would say before it sends anything, and warnings; makes no database."""
    from pipeline import store
    from pipeline.database import Database, default_url
    from pipeline.sink import Sink

    url = database or default_url(path.parent, emulated=emulated)
    if not Database.exists(url):
        return _quote_of(plan, None, None, emulated=emulated)
    with contextlib.closing(Database(url)) as opened:
        with opened.read() as conn:
            row = store.job_named(conn, plan.job.name)
        if row is None:
            return _quote_of(plan, None, None, emulated=emulated)
        return _quote_of(plan, opened, (row, Sink.of(row)), emulated=emulated)


def _quote_of(
    plan: "Plan", database: "Database | None", job: "tuple[Row[Any], Sink] | None", *, emulated: bool
) -> "tuple[Quote, list[str]]":
    """job: as the database has it; None: there is none, so what the API counts is not stored either."""
    from datetime import UTC, datetime

    from pipeline import quoting
    from pipeline.driver import Settings
    from pipeline.known import Lookup

    known, lookup = quoting.Known(), Lookup(None, None)
    if database is not None and job is not None:
        with database.read() as conn:
            known = quoting.known(conn, *job, plan)
        lookup = Lookup(database, job[0].id, job[1])
    quote = plan.quote(lookup, known.unsent)
    warnings = quoting.require_rows(plan, quote)
    counts, problem = _counted(plan, quote, known, emulated=emulated)
    if database is not None and job is not None and known.counts is None:
        with database.write() as conn:
            quoting.store_counts(conn, job[0].id, plan, counts, datetime.now(UTC))
    quoting.complete(plan, quote, known, counts, canary=True, queue=Settings.from_environment().max_in_flight)
    if problem is not None:
        warnings.append(f"tokens were not counted by the API: {problem}")
    return quote, warnings


def _counted(plan: "Plan", quote: "Quote", known: "Known", *, emulated: bool) -> "tuple[Counts, str | None]":
    """Tokens of the sample, and why the API was not asked for them."""
    from pipeline import quoting, where

    if known.counts is not None or not quote.samples:
        return quoting.counted(plan, quote, known, None)
    try:
        with where.asking(plan.job.api.client, emulated=emulated) as api:
            return quoting.counted(plan, quote, known, api)
    except InputError as exc:
        return quoting.counted(plan, quote, known, None)[0], str(exc)


# -- where answers go --------------------------------------------------------------------------------------------------


def _ending_of_parts(file_format: str | None, partition_by: list[str] | None) -> str | None:
    """The ending of the files of --partition-by as --format says it; None if it does not."""
    if file_format is None:
        return None
    if not partition_by:
        raise InputError(f"--format {file_format}: without --partition-by the name of the file says it")
    if file_format not in ("parquet", "csv", "ndjson"):
        raise InputError(f"--format {file_format}: write parquet, csv or ndjson")
    return f".{file_format}"


def _answers_to_file(
    database: "Database",
    row: "Row[Any]",
    place: str,
    wanted: "Wanted",
    *,
    by: list[str] | None,
    ending: str | None,
    overwrite: bool,
) -> None:
    """To one file, or by the values of some columns to a folder of files."""
    from pipeline import report
    from pipeline.exports import export as export_to
    from pipeline.partitions import export_partitioned

    with terminated():
        if by:
            exported = export_partitioned(database, row, place, by, wanted, ending=ending, overwrite=overwrite)
        else:
            exported = export_to(database, row, place, wanted, overwrite=overwrite)
    files = f" in {report.count(exported.files, 'file')}" if by else ""
    say(f"wrote    {report.count(exported.rows, 'row')} to {exported.place}{files}")


def _answers_to_stdout(database: "Database", row: "Row[Any]", wanted: "Wanted") -> None:
    from pipeline.answers import ndjson

    try:
        for line in ndjson(database, row, wanted):
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# -- what the commands share -------------------------------------------------------------------------------------------


#: After this long another thread has its turn. With Python's own 5 ms a download or upload, which has work for a moment
#: after each piece only, as good as stood still while another thread computed.
TURN_SECONDS = 0.0005


def main() -> None:
    """The console script: runs a command, turns our errors into one sentence and an exit code."""
    sys.setswitchinterval(TURN_SECONDS)
    memory.sparing()
    any_text()
    try:
        code = app(standalone_mode=False)
    except typer.Exit as exc:
        code = exc.exit_code
    except Completed as exc:
        say(f"interrupted: {exc}")
        code = exc.exit_code
    except Interrupted:
        say("interrupted: everything is resumable; run the same command again and it goes on")
        code = Interrupted.exit_code
    except PipelineError as exc:
        if "--debug" in sys.argv:
            raise
        say(f"error: {exc}")
        code = exc.exit_code
    except (typer.Abort, KeyboardInterrupt):
        say("aborted; the same command again goes on")
        code = Interrupted.exit_code
    except Exception as exc:
        code = _said_usage(exc)
        if code is None:
            if "--debug" in sys.argv:
                raise
            say(f"error: unforeseen: {type(exc).__name__}: {exc}; safe to run again; --debug shows where it came from")
            code = 3  # what is committed is right, and the same command goes on from there
    sys.exit(code if isinstance(code, int) else 0)


def _said_usage(exc: Exception) -> int | None:
    """Say what is wrong with the words of a command: exit code 2; None for any other error."""
    message = getattr(exc, "format_message", None)
    if message is None:
        return None
    context = getattr(exc, "ctx", None)
    for line in () if context is None else context.get_usage().splitlines():
        say(line)
    for line in f"error: {message()}".splitlines():
        say(line)
    return 2


def _today() -> "date":
    from datetime import UTC, datetime

    return datetime.now(UTC).date()


def _load(path: Path, var: list[str] | None, *, before: dict[str, Any] | None = None) -> "Job":
    """The job of this file. var: as given by --var; before: the vars of an earlier run, instead of the file's."""
    from pipeline.job import load

    given = {}
    for pair in var or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--var {pair}: write NAME=VALUE")
        given[name] = value
    return load(path, variables=given, today=_today(), before=before)


def _load_as_last(database: "Database", row: "Row[Any]", job: str, var: list[str] | None) -> "tuple[Job, Path]":
    """The job with the vars of its last run, and its file. row: as the database has it; job: as it was named."""
    from pipeline import naming, store

    with database.read() as conn:
        last = store.last_run(conn, row.id)
    path = Path(job) if naming.is_path(job) else naming.file_of(row)
    return _load(path, var, before=None if last is None else last.vars), path


def _job_file(job: str, database: str | None, *, emulated: bool) -> Path:
    """The job file that JOB names, by the database if it is a name."""
    from pipeline import naming

    if naming.is_path(job):
        return Path(job)
    with _known_job(job, database, emulated=emulated) as (_, row):
        return naming.file_of(row)


def _job_and_folder(job: str) -> tuple[Path, str]:
    """Where the default database is, and the name of the job; for commands that do not need the job file itself."""
    from pipeline import naming

    return (Path(job).parent, naming.name_in(Path(job))) if naming.is_path(job) else (Path(), job)


def _job_as_far_as_known(
    stack: contextlib.ExitStack, job: str, database: str | None, var: list[str] | None, *, emulated: bool
) -> "tuple[Database | None, Row[Any] | None, Job]":
    """The database and the job in it, None where there is none yet, and the job with the vars of its last run."""
    from pipeline import naming, store
    from pipeline.database import Database, default_url

    folder, name = _job_and_folder(job)
    if naming.is_path(job) and not Database.exists(database or default_url(folder, emulated=emulated)):
        return None, None, _load(Path(job), var)
    opened = stack.enter_context(contextlib.closing(_open(folder, database, emulated=emulated, must_exist=True)))
    with opened.read() as conn:
        row = store.job_named(conn, name)
    if row is None and naming.is_path(job):
        return opened, None, _load(Path(job), var)
    row = naming.known_job(opened, name)
    return opened, row, _load_as_last(opened, row, job, var)[0]


@contextlib.contextmanager
def _known_job(job: str, database: str | None, *, emulated: bool) -> "Iterator[tuple[Database, Row[Any]]]":
    from pipeline import naming

    folder, name = _job_and_folder(job)
    with contextlib.closing(_open(folder, database, emulated=emulated, must_exist=True)) as opened:
        yield opened, naming.known_job(opened, name)


def _open(folder: Path, database: str | None, *, emulated: bool, must_exist: bool = False) -> "Database":
    from pipeline.database import Database, default_url

    url = database or default_url(folder, emulated=emulated)
    if must_exist and not Database.exists(url):
        raise InputError(f"there is no database {url}; run a job first, or name another one by --database")
    opened = Database(url)
    say(f"database {opened.shown}{' (new)' if opened.new else ''}")
    return opened


@contextlib.contextmanager
def _where(
    opened: "Database", spool: str | None, *, emulated: bool, poll_seconds: float | None, as_json: bool, job: str | None
) -> "Iterator[Where]":
    """API (or emulator), settings and signal handlers for a command that drives a job. job: what commands call it."""
    from pipeline import where
    from pipeline.driver import Stop

    stop = Stop()
    with (
        Teller(as_json=as_json, job=job) as teller,
        signals(stop),
        where.at(
            opened, spool=spool, emulated=emulated, poll_seconds=poll_seconds, tell=teller.tell, stop=stop
        ) as here,
    ):
        yield here


@contextlib.contextmanager
def _many_objects_that_stay() -> Iterator[None]:
    """Imports without the garbage collector, which would look through all the new objects again and again.

    They stay, so it need not look at them later either; and rows come and go by the thousand without cycles.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(50_000)
        gc.enable()


def _confirm(*, yes: bool, ask: bool) -> "Callable[[Quote], bool]":
    return lambda quote: not quote.to_send or confirmed(yes=yes, ask=ask)


def _confirm_retry(
    database: "Database", row: "Row[Any]", wanted: "Retry", *, yes: bool, as_json: bool
) -> "Callable[[Quote], bool]":
    """What is said of a retry after its quote: what does not go, and why; and what it may cost twice."""
    from pipeline.retry import left_out
    from pipeline.sink import Sink

    ask = _confirm(yes=yes, ask=not as_json)
    sink = Sink.of(row)

    def confirm(quote: "Quote") -> bool:
        with database.read() as conn:
            reasons = left_out(conn, row.id, sink, wanted, quote)
        if as_json and reasons:
            put_json({"event": "left_out", "reasons": reasons})
        for reason in () if as_json else reasons:
            say(f"         {reason}")
        if quote.to_send and "lost" in wanted.statuses:
            say("warning  what is lost may have been answered and paid for: sending it again may pay twice")
        return ask(quote)

    return confirm


@dataclass(frozen=True)
class _Ended:
    """How a run ended. budget, month, money: see report.budget_facts, month_facts, money_facts.

    lines: what else is said; then: the next command; database: as it is shown; retry: whether it is a retry.
    """

    finished: "Finished"
    budget: dict[str, float | None] | None
    month: dict[str, Any] | None
    lines: list[str]
    money: dict[str, Any]
    then: list[str]
    database: str
    retry: bool = False


def _ended(where: "Where", loaded: "Job", job: str, finished: "Finished") -> _Ended:
    """What is to be said at the end of a run, read from the database. job: what commands call it."""
    from pipeline import report, store
    from pipeline.estimate import usage_of
    from pipeline.tables import batches

    shown = where.database.shown
    if finished.run_id is None:  # only quoted, or the answer was no
        return _Ended(finished, None, None, [], {}, [word for word in same_words() if word != "--dry-run"], shown)
    with where.database.read() as conn:
        ran = store.run(conn, finished.run_id)
        budget = report.budget_facts(conn, ran)
        month = report.month_facts(conn, ran, where.settings.monthly_budget, where.now())
        usage = usage_of(conn, batches.c.run_id == ran.id)
        money = (ran.estimate, finished.cost_usd, usage)
        lines = list(report.money_lines(*money))
    if finished.reason == "budget":
        then = same_words()
    elif finished.state == "finished" and sum(finished.rows.values()) > finished.rows.get("succeeded", 0):
        then = ["errors", job]
    else:
        then = _next_by_status(where.database, loaded.name, job)
    retry = ran.retry is not None
    return _Ended(finished, budget, month, lines, report.money_facts(*money), then, shown, retry)


def _report_run(database: "Database", loaded: "Job", ended: _Ended, *, as_json: bool) -> None:
    """Say how a `run` or `retry` ended, and the next command; then note that it was told."""
    from datetime import UTC, datetime

    from pipeline import ends

    _say_ended(loaded, ended, as_json=as_json)
    ends.note_told(database, ended.finished.told, datetime.now(UTC))


def _say_ended(loaded: "Job", ended: _Ended, *, as_json: bool) -> None:
    from pipeline import report

    finished = ended.finished
    if finished.state == "quoted":
        if as_json:
            put_json({"event": "run", "run_id": None, "state": "quoted", "reason": None, "rows": {}, "cost_usd": 0.0})
        say_next(*ended.then)
        return
    if as_json:
        if ended.budget is not None:
            put_json({"event": "budget", "run_id": finished.run_id, **ended.budget})
        if ended.month is not None:
            put_json({"event": "month", **ended.month})
        put_json({"event": "money", "run_id": finished.run_id, **ended.money})
        facts = {"run_id": finished.run_id, "state": finished.state, "reason": finished.reason}
        put_json({"event": "run", **facts, "rows": finished.rows, "cost_usd": finished.cost_usd})
        return
    reason = f" ({finished.reason})" if finished.reason else ""
    counted = report.counts_line(finished.rows)
    say(f"run {finished.run_id:<4} {finished.state}{reason}: {counted}, {report.money(finished.cost_usd)}")
    for line in ended.lines:
        say(f"         {line}")
    stopped = report.stopped_line(finished.reason, ended.budget, ended.month, retry=ended.retry)
    if stopped is not None:
        say(f"         {stopped}")
    if finished.state == "open":
        say("         what is at the API goes on there; a sweep collects it")
    else:
        say(f"answers  in table {loaded.sink.table} of {ended.database}")
    say_next(*ended.then)


def _tell_ends(where: "Where", name: str | None) -> None:
    """Tell the bad ends of a job's runs, or of all jobs' runs, that nobody was told of, and note all ends as told."""
    from pipeline import ends, store

    with where.database.read() as conn:
        row = None if name is None else store.job_named(conn, name)
        found = ends.untold(conn, None if row is None else row.id)
    for end in found:
        if end.exit_code:
            where.tell("run_ended", when=None, **end.facts)
    ends.note_told(where.database, {end.run_id: end.ended_at for end in found}, where.now())


def _print_status(database: "Database", name: str, *, as_json: bool, job: str | None = None) -> None:
    from datetime import UTC, datetime

    from pipeline import report, store

    with database.read() as conn:
        row = store.job_named(conn, name)
        assert row is not None
        facts = report.status(conn, row, datetime.now(UTC))
    if as_json:
        put_json({"event": "status", **facts})
        return
    for line in report.status_lines(facts):
        put(line)
    sys.stdout.flush()
    say_next(*report.next_command(facts, job or name))


def _next_by_status(database: "Database", name: str, job: str) -> list[str]:
    """The command that comes next by how the job stands. job: what commands call it."""
    from datetime import UTC, datetime

    from pipeline import report, store

    with database.read() as conn:
        row = store.job_named(conn, name)
        assert row is not None
        return report.next_command(report.status(conn, row, datetime.now(UTC)), job)


if __name__ == "__main__":
    main()
