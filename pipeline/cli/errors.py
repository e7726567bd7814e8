"""`errors`: which rows did not succeed, and why?"""

from pipeline.cli.opening import open_known_job
from pipeline.cli.options import EVERYWHERE, JobArgument, SharedOptions, takes
from pipeline.cli.running import command_line
from pipeline.cli.terminal import put, put_json, say, say_next


@takes(*EVERYWHERE)
def errors(
    job: JobArgument,
    *,
    shared: SharedOptions,
) -> None:
    """List failed rows by cause, with example keys and the command that corrects them."""
    from pipeline.report.errors import error_facts, error_lines
    from pipeline.sink.table import ResultsTable

    with open_known_job(job, shared) as (database, job_record), database.read() as conn:
        causes = error_facts(conn, job_record, ResultsTable.of(job_record), job)
    next_words = causes[0]["command"] if causes else ["export", job]
    for cause in causes:
        cause["command"] = command_line(*cause["command"])
    if shared.as_json:
        for cause in causes:
            put_json({"event": "error", **cause})
        return
    for line in error_lines(causes):
        put(line)
    if not causes:
        say("no row has failed")
    say_next(*next_words)
