"""`compare`: how do the answers of several sides differ, and which are better?"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.opening import heavy_imports, load_with_last_vars, open_known_job, refuse_trial
from pipeline.cli.options import EVERYWHERE, JobArgument, LastVarOption, SharedOptions, takes
from pipeline.cli.terminal import put, put_json, say, say_next
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.job.model import Job
    from pipeline.quality.compare import Comparison, Differing
    from pipeline.state.database import Database
    from pipeline.state.jobs import JobRecord


@takes(*EVERYWHERE)
def compare(
    job: JobArgument,
    sides: Annotated[
        list[str],
        typer.Argument(
            metavar="BASE SIDE...",
            help="Two or more of: current, the name of a trial, job:NAME, a .parquet file of answers.",
        ),
    ],
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="SHARE", min=0, max=1, help="Exit with 1 unless a larger loss of accuracy is excluded."),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the rows whose answers differ, with their input, to this .ndjson file."
        ),
    ] = None,
    var: LastVarOption = None,
    *,
    shared: SharedOptions,
) -> None:
    """Compare answers of other sides with those of a base, row by row: agreement, flips, cost, and accuracy by gold."""
    with heavy_imports():
        from pipeline.quality.compare import compare as compared
        from pipeline.quality.evaluate import of_side
        from pipeline.report.adopt import adoption, adoption_lines
        from pipeline.report.compare import comparison_facts, comparison_lines

    if len(sides) < 2:
        raise InputError(
            "give two sides: the base first, then what is compared with it, as in `compare JOB current TRIAL`"
        )
    _refuse_place(rows)
    with open_known_job(job, shared) as (database, job_record):
        refuse_trial(job, "give `compare {job} current {trial}`")
        loaded, _ = load_with_last_vars(database, of_side(database, job_record, sides), job, var)
        if max_drop is not None and loaded.gold is None:
            raise InputError(f"--max-drop: job {loaded.name} has no gold by which accuracies could be compared")
        with _written(rows, loaded, database, job_record, sides) as differing:
            found = compared(database, job_record, loaded, sides, differing)
    adopted = adoption(found, max_drop)
    if shared.as_json:
        adopt = None if adopted is None else {"side": adopted.side, "changes": dict(adopted.changes)}
        put_json({"event": "compare", "job": loaded.name, **comparison_facts(found, max_drop), "adopt": adopt})
    else:
        for line in comparison_lines(found, max_drop):
            put(line)
        for line in () if adopted is None else adoption_lines(adopted):
            put(line)
        sys.stdout.flush()
    if adopted is not None:
        say_next("estimate", job, "--refresh")
    else:
        say_next("evaluate" if loaded.gold is not None else "export", job)
    if max_drop is not None and not _all_pass(found, max_drop):
        raise typer.Exit(1)


def _all_pass(found: "Comparison", max_drop: float) -> bool:
    """Return whether no side may lose more than this. Raises InputError if that cannot be said by gold."""
    from pipeline.report.compare import passes, verdict_words

    if found.chosen:
        raise InputError(
            "--max-drop: the rows with gold were chosen, so they say nothing about the other rows; give gold for a "
            "random sample"
        )
    for side in found.sides:
        if side.tally.undecided:
            raise InputError(f"--max-drop: {verdict_words(side)}")
        if side.gold is None:
            raise InputError(f"--max-drop: no row that {side.name} and {found.base} have answered has gold")
    return all(side.gold is not None and passes(side.gold, max_drop) for side in found.sides)


def _refuse_place(path: Path | None) -> None:
    """Raise InputError if --rows cannot be written there."""
    if path is not None and path.suffix != ".ndjson":
        raise InputError(f"--rows {path}: write the path of an .ndjson file")
    if path is not None and path.exists():
        raise InputError(f"--rows {path}: the file exists; choose another name, or remove it")
    if path is not None and not path.absolute().parent.is_dir():
        raise InputError(f"--rows {path}: there is no folder {path.parent}; make it first")


@contextlib.contextmanager
def _written(
    path: Path | None, job: "Job", database: "Database", job_record: "JobRecord", sides: list[str]
) -> "Iterator[Differing]":
    """Yield a function that takes a row whose answers differ; after the block, write all of them with their input.

    path: of the file; None: write none. job: as declared now; job_record: as the database has it.
    """
    if path is None:
        yield lambda *_: None
        return
    from pipeline.planning.differing import DifferingWithInput
    from pipeline.quality.evaluate import trials_by_name
    from pipeline.sink.export import whole_file
    from pipeline.sink.table import ResultsTable

    known = trials_by_name(database, job_record)
    trials = [each.trial for name, each in known.items() if name in sides and each.trial is not None]
    with contextlib.closing(DifferingWithInput(job, trials, ResultsTable.of(job_record))) as rows:
        yield rows.add
        with whole_file(path) as part, part.open("wb") as out:
            out.writelines(rows.lines())
    say(f"wrote    {path}")
