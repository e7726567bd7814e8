"""The command line. Thin: each command reads its options, calls one function, and prints what it returns.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

import contextlib
import gc
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import InputError, Interrupted, PipelineError

if TYPE_CHECKING:
    from datetime import date

    from sqlalchemy import Row

    from pipeline.database import Database
    from pipeline.job import Job
    from pipeline.quote import Quote
    from pipeline.run import Finished
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
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database", envvar="BATCH_DATABASE_URL", help="State database. Default: batches.db beside the job file."
    ),
]
SpoolOption = Annotated[
    str | None,
    typer.Option("--spool", envvar="BATCH_SPOOL", help="Folder for request bodies. Default: beside the database."),
]
LogOption = Annotated[
    str,
    typer.Option(
        "--log-format", metavar="text|json", callback=lambda value: _log_format(value), help="Of what stderr says."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per line on stdout.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
EmulatorOption = Annotated[
    bool, typer.Option("--emulator", help="Speak to an emulator started for this command: no key, no network, no bill.")
]
VarOption = Annotated[list[str] | None, typer.Option("--var", metavar="NAME=VALUE", help="Override a var of the job.")]
PollOption = Annotated[
    float | None,
    typer.Option(
        "--poll-seconds",
        envvar="BATCH_POLL_SECONDS",
        min=0,
        help="Between polls. Default: as the API says, growing to 60.",
    ),
]


# -- commands --------------------------------------------------------------------------------------------------------


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A data file: CSV, TSV, Parquet or NDJSON.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The job file to write. Default: FILE's name .yaml")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Write a commented job file for a data file; never overwrites."""
    from pipeline.starter import write_job_file

    written = write_job_file(file, output)
    _say(f"wrote {written}")
    _next(f"batch-pipeline check {written}")


@app.command()
def check(
    job: JobArgument,
    var: VarOption = None,
    database: DatabaseOption = None,
    emulator: EmulatorOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Validate a job file and its source, and show the first request. Sends nothing."""
    import orjson

    from pipeline import checks, report
    from pipeline.plan import Lookup, Plan
    from pipeline.sink import Columns

    path = _job_file(job, database, emulated=emulator)
    loaded = _load(path, var)
    checks.check_params(loaded)
    plan = Plan(loaded)
    Columns.of(loaded, plan.kinds())
    quote = plan.quote(Lookup(None, None))
    first = None if quote.first_params is None else orjson.loads(quote.first_params)
    if as_json:
        _json({"event": "check", "job": loaded.name, "first_params": first, **report.quote_facts(quote)})
    else:
        _say(f"job      {loaded.name} is right: {report.count(quote.total, 'row')} with unique keys")
        if quote.first_problem is not None:
            share = f"{quote.invalid_in_sample} of {quote.sampled} sampled rows"
            _say(f"warning  {share} cannot be sent: {quote.first_problem}")
        if first is not None:
            sys.stdout.write(orjson.dumps(first, option=orjson.OPT_INDENT_2).decode() + "\n")
    _next(f"batch-pipeline run {path}")


@app.command()
def run(
    job: JobArgument,
    var: VarOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows of the source.")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Also what an older recipe answered.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what a run would send and cost; send nothing.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="End once all is sent; `collect` takes it to its end.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask after the quote.")] = False,
    no_canary: Annotated[bool, typer.Option("--no-canary", hidden=True)] = False,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    poll_seconds: PollOption = None,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Plan, submit, poll and collect until every row has an outcome. The same command again just continues."""
    with _many_objects_that_stay():
        from pipeline.run import Options
        from pipeline.run import run as run_job
    path = _job_file(job, database, emulated=emulator)
    loaded = _load(path, var)
    if loaded.vars and not as_json:
        _say("vars     " + ", ".join(f"{name}={value}" for name, value in loaded.vars.items()))
    options = Options(
        limit=limit, refresh=refresh, detach=detach, dry_run=dry_run, confirm=_confirm(yes=yes, ask=not as_json)
    )
    with _where(path.parent, database, spool, emulated=emulator, poll_seconds=poll_seconds, as_json=as_json) as where:
        finished = run_job(loaded, where, options, file=path)
    _report_run(loaded, job, finished, where.database.shown, as_json=as_json)
    raise typer.Exit(finished.exit_code)


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
        from pipeline.run import sweep

    folder, name = _job_and_folder(job)
    with _where(
        folder, database, spool, emulated=emulator, poll_seconds=None, as_json=as_json, must_exist=True
    ) as where:
        swept = sweep(where, name)
        for swept_name, problem in swept:
            if as_json:
                _json({"event": "swept", "job": swept_name, "problem": problem})
            else:
                _say(f"job      {swept_name}: " + (problem or "swept"))
        if not swept and not as_json:
            _say("nothing to do: no run is open")
        if name is not None:
            _print_status(where.database, name, as_json=as_json)
    if any(problem for _, problem in swept):
        raise typer.Exit(3)


@app.command()
def status(
    job: JobArgument,
    database: DatabaseOption = None,
    emulator: EmulatorOption = False,
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
    emulator: EmulatorOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Failed rows by cause, with example keys and what mends them."""
    from pipeline import report
    from pipeline.sink import Columns, Sink

    with _known_job(job, database, emulated=emulator) as (opened, row), opened.read() as conn:
        columns = Columns(**row.columns)
        causes = report.errors(conn, Sink(row.results_table, columns).table, list(columns.key))
    if as_json:
        for cause in causes:
            _json({"event": "error", **cause})
        return
    for line in report.error_lines(causes):
        sys.stdout.write(line + "\n")
    if not causes:
        _say("no row has failed")
    _next(f"batch-pipeline {'run' if causes else 'export'} {job}")


@app.command()
def export(
    job: JobArgument,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Not yet: answers go to stdout as NDJSON.")
    ] = None,
    status: Annotated[str | None, typer.Option(help="Only rows with this status.")] = None,
    where: Annotated[str | None, typer.Option(help="Only rows for which this SQL predicate holds.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="At most N rows.")] = None,
    database: DatabaseOption = None,
    emulator: EmulatorOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Answers as NDJSON on stdout, in the order of their keys."""
    from pipeline.answers import ndjson

    if file is not None:
        raise InputError(
            "export writes to stdout only so far: leave FILE out and redirect, for example > answers.ndjson"
        )
    with _known_job(job, database, emulated=emulator) as (opened, row):
        try:
            for line in ndjson(opened, row, status=status, where=where, limit=limit):
                sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # whoever reads has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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


# -- what the commands share -----------------------------------------------------------------------------------------


def main() -> None:
    """The console script: runs a command, turns our errors into one sentence and an exit code."""
    try:
        code = app(standalone_mode=False)
    except typer.Exit as exc:
        code = exc.exit_code
    except Interrupted:
        _say("interrupted: everything is resumable; run the same command again and it goes on")
        code = Interrupted.exit_code
    except PipelineError as exc:
        if "--debug" in sys.argv:
            raise
        _say(f"error: {exc}")
        code = exc.exit_code
    except (typer.Abort, KeyboardInterrupt):
        _say("aborted; the same command again goes on")
        code = Interrupted.exit_code
    except Exception as exc:
        code = _said_usage(exc)
        if code is None:
            if "--debug" in sys.argv:
                raise
            _say(f"error: unforeseen: {type(exc).__name__}: {exc}; safe to run again; --debug shows where it came from")
            code = 3  # what is committed is right, and the same command goes on from there
    sys.exit(code if isinstance(code, int) else 0)


def _said_usage(exc: Exception) -> int | None:
    """Say what is wrong with the words of a command: exit code 2; None for any other error."""
    message = getattr(exc, "format_message", None)
    if message is None:
        return None
    context = getattr(exc, "ctx", None)
    if context is not None:
        _say(context.get_usage())
    _say(f"error: {message()}")
    return 2


_log_events: "Callable[..., None] | None" = None  # with --log-format json: what logs an event


def _log_format(value: str) -> str:
    """Let stderr be what --log-format says."""
    global _log_events
    if value not in ("text", "json"):
        raise InputError(f"--log-format {value}: write text or json")
    if value == "json":
        import logging

        from pipeline import log

        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(log.JsonFormatter())
        log.logger.addHandler(handler)
        log.logger.setLevel(logging.INFO)
        _log_events = log.tell
    return value


def _say(text: str) -> None:
    """A line for people: progress and errors go to stderr."""
    if _log_events is not None:
        import logging

        error = text.startswith("error: ")
        logging.getLogger("pipeline").log(logging.ERROR if error else logging.INFO, "%s", text)
        return
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _next(command: str) -> None:
    """Say the next command, with the options of this one that it needs to find the same things."""
    words = command.split()
    reads_source = words[1:2] in (["run"], ["check"])
    given = iter(sys.argv[2:])
    for option in given:
        name, equals, value = option.partition("=")
        if name == "--emulator" and words[1:2] != ["init"]:
            words.append(option)
        elif name == "--database" or (name == "--var" and reads_source):
            words += [name, shlex.quote(value if equals else next(given, ""))]
    _say(f"next: {' '.join(words)}")


def _json(value: dict[str, Any]) -> None:
    import orjson

    sys.stdout.write(orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode() + "\n")
    sys.stdout.flush()


def _today() -> "date":
    from datetime import UTC, datetime

    return datetime.now(UTC).date()


def _load(path: Path, var: list[str] | None) -> "Job":
    from pipeline.job import load

    given = {}
    for pair in var or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--var {pair}: write NAME=VALUE")
        given[name] = value
    return load(path, variables=given, today=_today())


def _is_name(job: str) -> bool:
    """Whether JOB is a job's name rather than a path."""
    return not Path(job).exists() and "/" not in job and not job.endswith((".yaml", ".yml"))


def _job_file(job: str, database: str | None, *, emulated: bool) -> Path:
    """The job file that JOB names, by the database if it is a name."""
    if not _is_name(job):
        return Path(job)
    with _known_job(job, database, emulated=emulated) as (_, row):
        if row.file is None or not Path(row.file).exists():
            raise InputError(f"job {job}: its job file {row.file} is gone; give the path of one")
        return Path(row.file)


def _job_and_folder(job: str | None) -> tuple[Path, str | None]:
    """Where the default database is, and the name of the job; for commands that do not need the job file itself."""
    from pipeline import yamlfile

    if job is None or _is_name(job):
        return Path(), job
    path = Path(job)
    try:
        fields, _ = yamlfile.parse(path.read_text(encoding="utf-8"), job)
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"{job}: cannot read the job file: {exc}") from exc
    if not isinstance(fields.get("name"), str):
        raise InputError(f"{job}: name: this field is required")
    return path.parent, str(fields["name"])


@contextlib.contextmanager
def _known_job(job: str, database: str | None, *, emulated: bool) -> "Iterator[tuple[Database, Row[Any]]]":
    from pipeline import store

    folder, name = _job_and_folder(job)
    opened = _open(folder, database, emulated=emulated, must_exist=True)
    try:
        with opened.read() as conn:
            row = store.job_named(conn, name or "")
            known = ", ".join(each.name for each in store.all_jobs(conn)) or "none"
        if row is None:
            raise InputError(
                f"{opened.shown} knows no job {name!r} (it knows: {known}); run it first, or name another database"
            )
        yield opened, row
    finally:
        opened.close()


def _open(folder: Path, database: str | None, *, emulated: bool, must_exist: bool = False) -> "Database":
    from pipeline.database import Database, default_url

    url = database or default_url(folder, emulated=emulated)
    if must_exist and not Database.exists(url):
        raise InputError(f"there is no database {url}; run a job first, or name another one by --database")
    opened = Database(url)
    _say(f"database {opened.shown}{' (new)' if opened.new else ''}")
    return opened


@contextlib.contextmanager
def _where(
    folder: Path,
    database: str | None,
    spool: str | None,
    *,
    emulated: bool,
    poll_seconds: float | None,
    as_json: bool,
    must_exist: bool = False,
) -> "Iterator[Where]":
    """Database, API (or emulator), settings and signal handlers for a command that drives a job."""
    from pipeline import where
    from pipeline.driver import Stop

    opened = _open(folder, database, emulated=emulated, must_exist=must_exist)
    stop = Stop()
    with (
        contextlib.closing(opened),
        _Teller(as_json=as_json) as teller,
        _signals(stop),
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


@contextlib.contextmanager
def _signals(stop: Any) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the driver to stop between two transactions; a second one leaves at once."""

    def handle(number: int, frame: object) -> None:
        if stop.event.is_set():
            os._exit(Interrupted.exit_code)
        stop.event.set()
        _say("stopping: waiting for what is under way (again to leave at once)")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _confirm(*, yes: bool, ask: bool) -> "Callable[[Quote], bool]":
    def confirm(quote: "Quote") -> bool:
        if yes or not ask or not quote.to_send or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return True
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # here Ctrl-C is a no
        try:
            return typer.confirm("send this?", err=True)
        finally:
            signal.signal(signal.SIGINT, handler)

    return confirm


def _report_run(loaded: "Job", job: str, finished: "Finished", database: str, *, as_json: bool) -> None:
    from pipeline import report

    if finished.state == "quoted":
        if as_json:
            _json({"event": "run", "run_id": None, "state": "quoted", "reason": None, "rows": {}, "cost_usd": 0.0})
        _next(f"batch-pipeline run {job}")
        return
    if as_json:
        facts = {"run_id": finished.run_id, "state": finished.state, "reason": finished.reason}
        _json({"event": "run", **facts, "rows": finished.rows, "cost_usd": finished.cost_usd})
        return
    counted = report.counts_line(finished.rows)
    _say(f"run {finished.run_id:<4} {finished.state}: {counted}, {report.money(finished.cost_usd)}")
    if finished.state == "open":
        _say("         what is at the API goes on there; a sweep collects it")
        _next(f"batch-pipeline collect {job}")
        return
    _say(f"answers  in table {loaded.sink.table} of {database}")
    failed = sum(finished.rows.values()) - finished.rows.get("succeeded", 0)
    _next(f"batch-pipeline {'errors' if failed else 'export'} {job}")


def _print_status(database: "Database", name: str, *, as_json: bool, job: str | None = None) -> None:
    from datetime import UTC, datetime

    from pipeline import report, store

    with database.read() as conn:
        row = store.job_named(conn, name)
        assert row is not None
        facts = report.status(conn, row, datetime.now(UTC))
    if as_json:
        _json({"event": "status", **facts})
        return
    for line in report.status_lines(facts):
        sys.stdout.write(line + "\n")
    sys.stdout.flush()
    _next(report.next_command(facts, job or name))


@dataclass
class _Teller:
    """Tells what a driver does: as JSON on stdout, as lines on stderr, and on a terminal with a live last line."""

    as_json: bool
    _status: Any = None
    _last: str = ""

    def __enter__(self) -> "_Teller":
        if sys.stderr.isatty() and not self.as_json and _log_events is None:
            from rich.console import Console

            self._status = Console(stderr=True, highlight=False).status("working")
            self._status.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._quiet()

    def tell(self, event: str, **facts: Any) -> None:
        """One event of the driver."""
        from pipeline import report

        if _log_events is not None:
            _log_events(event, **facts)
        if event == "quote":
            self._quote(facts["quote"])
        elif self.as_json:
            if event not in ("waiting", "watching"):  # these are no moves
                _json({"event": event, **facts})
        elif _log_events is not None:
            pass
        elif event == "waiting":
            self._wait(report.event_line(event, facts))
        else:
            self._last = ""
            self._line(report.event_line(event, facts))

    def _quote(self, quote: "Quote") -> None:
        from pipeline import report

        if self.as_json:
            _json({"event": "quote", **report.quote_facts(quote)})
            return
        if _log_events is not None:
            return
        self._quiet()  # a question may follow, which a live line would hide
        for line in report.quote_lines(quote):
            _say(line)

    def _wait(self, line: str) -> None:
        if self._status is not None:
            self._status.update(line)
            self._status.start()
        elif line.partition(";")[0] != self._last:  # a log need not say every minute that nothing has changed
            self._last = line.partition(";")[0]
            _say(line)

    def _line(self, line: str) -> None:
        if self._status is not None:
            self._status.console.print(line, markup=False, soft_wrap=True)
        else:
            _say(line)

    def _quiet(self) -> None:
        if self._status is not None:
            self._status.stop()


if __name__ == "__main__":
    main()
