"""`verify`: is a job provably complete?"""

import sys
from typing import Annotated

import typer

from pipeline.cli.opening import load_with_last_vars, open_known_job
from pipeline.cli.options import EVERYWHERE, JobArgument, LastVarOption, SharedOptions, takes
from pipeline.cli.summary import next_words_by_status
from pipeline.cli.terminal import put, put_json, say_next
from pipeline.errors import InputError


@takes(*EVERYWHERE)
def verify(
    job: JobArgument,
    source: Annotated[
        bool,
        typer.Option("--source", help="Also prove that each row of the source has an outcome for its present values."),
    ] = False,
    var: LastVarOption = None,
    *,
    shared: SharedOptions,
) -> None:
    """Prove that a job is complete: states, answers and the API's counts agree. Else list the keys and exit with 1."""
    from pipeline.report.verify import verify_facts, verify_lines
    from pipeline.runner import verify as proof

    with open_known_job(job, shared) as (database, job_record):
        if source and job_record.trial is not None:
            raise InputError("--source: a trial asks a sample of the source; leave the option out")
        found = proof.verify(database, job_record)
        if source:
            loaded, _ = load_with_last_vars(database, job_record, job, var)
            proof.verify_source(database, job_record, loaded, found)
        next_words = next_words_by_status(database, job_record.name, job=job)
    if shared.as_json:
        for of, problem in found.shown:
            put_json({"event": "problem", "of": of, "problem": problem})
        put_json({"event": "verify", "job": job_record.name, **verify_facts(found)})
    else:
        for line in verify_lines(found):
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
