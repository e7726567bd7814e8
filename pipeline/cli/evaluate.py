"""`evaluate`: how good are the answers, by the job's gold?"""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.opening import heavy_imports, load_with_last_vars, open_known_job, refuse_trial
from pipeline.cli.options import EVERYWHERE, JobArgument, LastVarOption, SharedOptions, takes
from pipeline.cli.terminal import put, put_json, say_next
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.quality.judges import Judge


@takes(*EVERYWHERE)
def evaluate(
    job: JobArgument,
    side: Annotated[
        str,
        typer.Argument(metavar="[SIDE]", help="Whose answers: current (default), the name of a trial, or job:NAME."),
    ] = "current",
    min_accuracy: Annotated[
        float | None,
        typer.Option(metavar="SHARE", min=0, max=1, help="Exit with 1 if the accuracy misses this, as in 0.85."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="bound|point|alarm",
            help="What misses --min-accuracy: the lower bound (default), the accuracy itself, or the upper bound.",
        ),
    ] = None,
    where: Annotated[str | None, typer.Option(help="Only answers that meet this SQL predicate.")] = None,
    by: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Also count the rows apart by a kept column's values.")
    ] = None,
    var: LastVarOption = None,
    *,
    shared: SharedOptions,
) -> None:
    """Compare answers with the gold of the job: accuracy, figures by class, confusions. Exit 1 below --min-accuracy."""
    with heavy_imports():
        from pipeline.quality.evaluate import evaluate as measured
        from pipeline.quality.evaluate import judged, of_side
        from pipeline.report.evaluate import evaluation_facts, evaluation_lines

    by_judge = _judge(judge, min_accuracy)
    with open_known_job(job, shared) as (database, job_record):
        refuse_trial(job, "give `evaluate {job} {trial}`")
        loaded, _ = load_with_last_vars(database, of_side(database, job_record, [side]), job, var)
        found = measured(database, job_record, loaded, side=side, where=where, by=by or ())
    minimum = None if min_accuracy is None else judged(found, min_accuracy, by_judge)
    if shared.as_json:
        put_json({"event": "evaluate", **evaluation_facts(found, minimum)})
    else:
        for line in evaluation_lines(found, minimum):
            put(line)
        sys.stdout.flush()
    say_next("export", job)
    if minimum is not None and not minimum.passed:
        raise typer.Exit(1)


def _judge(judge: str | None, min_accuracy: float | None) -> "Judge":
    """Return the judge that --judge names. Raises InputError for an unknown one, and without --min-accuracy."""
    from pipeline.quality.judges import JUDGES

    if judge is not None and min_accuracy is None:
        raise InputError(f"--judge {judge}: this is for --min-accuracy, which is not given")
    for known in JUDGES:
        if known == (judge or "bound"):
            return known
    raise InputError(f"--judge {judge}: write bound, point or alarm")
