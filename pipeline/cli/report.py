"""`report`: make one page of what a job answered, how good that is and what it cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from pipeline.cli.opening import heavy_imports, load_with_last_vars, open_known_job, refuse_trial
from pipeline.cli.options import EVERYWHERE, JobArgument, LastVarOption, SharedOptions, takes
from pipeline.cli.running import command_line
from pipeline.cli.terminal import put_json, say, say_next
from pipeline.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.job.model import Job
    from pipeline.state.database import Database
    from pipeline.state.jobs import JobRecord

COMPARE = "--compare"


class SidesCommand(TyperCommand):
    """The command, whose --compare takes all words up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line. ctx: click's context, of click itself or of typer's copy of it."""
        return super().parse_args(ctx, spread(args))


def spread(words: list[str]) -> list[str]:
    """Return the words of a command line with the option before each of the sides that follow it."""
    found: list[str] = []
    of_option = False
    for word in words:
        if word.startswith("-"):
            of_option = word == COMPARE
            found += [] if of_option else [word]
        else:
            found += [COMPARE, word] if of_option else [word]
    return found


@takes(*EVERYWHERE)
def report(
    job: JobArgument,
    run: Annotated[
        int | None, typer.Argument(metavar="[RUN]", min=1, help="Only this run of the job. Default: all answers.")
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(COMPARE, metavar="BASE SIDE...", help="Also compare these sides, as `compare` does."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.html", help="The file. Default: JOB.html here.")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, max=100, help="Sample rows to show for each status and label.")] = 5,
    no_text: Annotated[bool, typer.Option("--no-text", help="Leave out keys and texts of rows and answers.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
    var: LastVarOption = None,
    *,
    shared: SharedOptions,
) -> None:
    """Write one HTML page about a job: accuracy, failures, answers, money, tokens, batches and samples."""
    if compare is not None and len(compare) < 2:
        raise InputError("--compare: give two sides: the base first, then what is compared with it")
    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"-o {output}: the name must end in .html")  # --overwrite never replaces a job file
    with heavy_imports():
        from pipeline.report.page.file import refuse_taken, write
        from pipeline.report.page.page import Wanted, report_page
    from pipeline.text import size

    wanted = Wanted(run, compare or (), rows, texts=not no_text)
    with open_known_job(job, shared) as (database, job_record):
        refuse_trial(job, "give `report {job} --compare current {trial}`")
        path = output or Path(f"{job_record.name}{'' if run is None else f'-run-{run}'}.html")
        refuse_taken(path, overwrite=overwrite)
        page = report_page(
            database, job_record, _job(database, job_record, job, var), wanted, _command_of(job, job_record.name)
        )
        written = write(path, page, overwrite=overwrite)
    if shared.as_json:
        put_json({"event": "report", "job": job_record.name, "file": str(path), "bytes": written, "texts": not no_text})
    else:
        holds = "no keys and texts" if no_text else "keys and texts of rows and answers; --no-text leaves them out"
        say(f"wrote    {path} ({size(written)}): it holds {holds}")
    say_next("status", job)


def _job(database: "Database", job_record: "JobRecord", job: str, var: list[str] | None) -> "Job":
    """Return the job as its file declares it; as its last run stored it if the file no longer exists."""
    from pipeline.driver.job_of_run import stored_job
    from pipeline.job.name import is_path
    from pipeline.state.runs import last_run

    if not is_path(job) and not (job_record.file and Path(job_record.file).exists()):
        with database.read() as conn:
            last = last_run(conn, job_record.id)
        if last is not None:
            return stored_job(last)
    return load_with_last_vars(database, job_record, job, var)[0]


def _command_of(job: str, name: str) -> "Callable[..., str]":
    """Return what makes a line for the shell of a command's words. It calls the job as our command line does."""

    def line(command: str, *words: str) -> str:
        called = [job if word == name and i == 0 else word for i, word in enumerate(words)]
        return command_line(command, *called, names_database=False)  # the page may be sent to others

    return line
