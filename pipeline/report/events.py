"""Each event as a line of text. Pure."""

import math
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.report.errors import failed_at_the_api
from pipeline.report.next_command import STOPPED, after_end, same_command
from pipeline.state.ends import failed_rows
from pipeline.states import Gate, RunState
from pipeline.text import count, counted, later, money, size

_EVENTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "emulator": lambda e: f"emulator {e['url']}",
    "warning": lambda e: f"warning  {e['warning']}",
    "waits_for_retry": lambda e: _waits_for_retry(e),
    "planned": lambda e: f"batch {e['batch']} planned: {count(e['requests'], 'request')}, {size(e['bytes'])}",
    "submitting": lambda e: f"batch {e['batch']} submitting",
    "submitted": lambda e: f"batch {e['batch']} submitted as {e['api_id']}",
    "adopted": lambda e: f"batch {e['batch']} found at the API as {e['api_id']}: it had been accepted",
    "found_late": lambda e: f"batch {e['batch']} is at the API after all, as {e['api_id']}: it is not sent again",
    "counts_disagree": lambda e: (
        f"batch {e['batch']} is ours by its results, though the API counts {count(e['counted'], 'request')} in it, "
        f"and {e['requests']:,} were sent"
    ),
    "absent": lambda e: f"batch {e['batch']} is not at the API: it is sent again",
    "rejected": lambda e: f"batch {e['batch']} was not accepted: {e['problem']}" + later(e["wait"]),
    "unknown_end": lambda e: (
        f"batch {e['batch']}: no answer that says whether the API took it ({e['problem']}); "
        f"the API's listing will tell, within {e['grace']:.0f} s"
    ),
    "watching": lambda e: f"batch {e['batch']}: {e['problem']}",
    "dropped": lambda e: f"batch {e['batch']} dropped: {e['problem']}",
    "spool_moved": lambda e: f"spool    of job {e['job']} is {e['spool']} from now on",
    "body_lost": lambda e: f"batch {e['batch']}: its body is gone or was altered; `run` plans its rows anew",
    "body_left": lambda e: f"batch {e['batch']}: its body is left until `run` plans again ({e['problem']})",
    "canceling": lambda e: f"batch {e['batch']} is being canceled at the API",
    "overdue": lambda e: f"batch {e['batch']}: {e['problem']}",
    "ended": lambda e: f"batch {e['batch']} ended: {e['succeeded']:,} of {count(e['requests'], 'request')} succeeded",
    "collected": lambda e: (
        f"batch {e['batch']} collected: {counted(e['outcomes'])}, {money(e['cost_usd'])}{failed_at_the_api(e)}"
    ),
    "results_missing": lambda e: f"batch {e['batch']}: {e['problem']}",
    "unknown_results": lambda e: f"batch {e['batch']}: {e['lines']} result lines name no request of ours",
    "not_found": lambda e: f"batch {e['batch']}: {e['problem']}",
    "lost": lambda e: f"batch {e['batch']} is lost: {e['problem']}",
    "found_again": lambda e: f"batch {e['batch']} was lost and is there again; {count(e['rows'], 'row')} wait for it",
    "twin": lambda e: f"batch {e['batch']}: {e['problem']}",
    "held_back": lambda e: f"batch {e['batch']} {e['problem']}",
    "taken_over": lambda e: f"batch {e['batch']} was taken over by another driver",
    "planned_elsewhere": lambda e: f"waiting: {e['problem']}",
    "not_counted": lambda e: (
        f"warning  tokens were not counted by the API: {e['problem']}; the quote goes by bytes, "
        "and a budget reserves for one token a byte"
    ),
    "canary_failed": lambda e: f"canary: {e['failed']:,} of its {count(e['rows'], 'row')} failed",
    "gate_opened": lambda e: _gate_opened(e),
    "uploaded": lambda e: f"file put up as {e['file_id']}, {size(e['bytes'])}",
    "file_removed": lambda e: f"file {e['file_id']} removed at the API",
    "file_not_removed": lambda e: f"file {e['file_id']} not removed at the API yet: {e['problem']}",
    "finished": lambda e: f"run {e['run']} is finished",
    "run_ended": lambda e: run_ended_line(e, f"batch-pipeline {shlex.join(after_end(e, e['job']))}"),
    "incomplete": lambda e: f"run {e['run']} ends before its end: {e['reason']}",
    "canceled": lambda e: f"canceled {count(e['runs'], 'open run')}; {_at_the_api(e['open'], e['foreign'])}",
    "deleted": lambda e: f"batch {e['batch']} deleted at the API",
    "not_deleted": lambda e: f"batch {e['batch']} not deleted at the API yet: {e['problem']}",
    "other_account": lambda e: f"batch {e['batch']} belongs to another account and is left alone",
    "unreachable": lambda e: e["problem"] + later(e["wait"]),
    "waiting": lambda e: f"waiting: {_waited_for(e)}; next look in {math.ceil(e['seconds'])} s",
}


def event_line(event: str, facts: Mapping[str, Any]) -> str:
    """One line for an event of a driver."""
    return _EVENTS[event](facts)


def _waited_for(facts: Mapping[str, Any]) -> str:
    """Batches by state; and the drivers that have them, where this one has nothing to do until they have ended."""
    said, others = counted(facts["progress"]["batches"]), facts["held_by"]
    if not others:
        return said
    who = ", ".join(sorted({other["process"] for other in others}))
    return (
        f"{said}, held by {who}: wait, or stop the process; what a process that has died holds is free when its lease "
        f"runs out, at {max(other['until'] for other in others)} at the latest"
    )


def _waits_for_retry(facts: Mapping[str, Any]) -> str:
    """command: that goes on with it, where keys of rows may be said; else the line names none, for it may be logged."""
    rows = count(facts["rows"], "row")
    waiting = f"{rows} {'waits' if facts['rows'] == 1 else 'wait'} for a retry that is not finished"
    way_on = f"run {facts['run']}, `batch-pipeline status {facts['job']}` says how it goes on"
    return f"retry    {waiting}: {facts.get('command', way_on)}"


def retry_words(run: Mapping[str, Any], job: str) -> list[str]:
    """The command that goes on with a retry: a person has said yes to it before."""
    return [*same_command(run, job), "--yes"]


def _gate_opened(facts: Mapping[str, Any]) -> str:
    if facts["gate"] == Gate.PRIMER:
        return "primer is back: the prefix is in the prompt cache, the rest goes"
    good = facts["rows"] - facts["failed"]
    return f"canary is back: {good:,} of {count(facts['rows'], 'row')} succeeded, the rest goes"


def _at_the_api(still: int, foreign: int) -> str:
    if not still:
        return "nothing of the job is at the API any more"
    said = f"{count(still, 'batch')} {'is' if still == 1 else 'are'} at the API still"
    if not foreign:
        return f"{said}, asked to cancel: what had succeeded by then is collected"
    return f"{said}, {foreign:,} of them sent by another account: use its key, or give them up by --abandon"


def run_ended_line(end: Mapping[str, Any], command: str) -> str:
    """`run 3 ended before this command: 2 of 5 rows failed; next: COMMAND`, of a run that ended badly.

    end: the facts of an `ends.End`, and when: in words; None where the command is about several jobs.
    """
    if end["state"] == RunState.INCOMPLETE:
        how = f"it stopped early, {STOPPED[end['reason']][0]}"
    else:
        how = f"{failed_rows(end['rows']):,} of {count(sum(end['rows'].values()), 'row')} failed"
    when = f"of {end['job']} ended" if end["when"] is None else f"ended {end['when']}"
    return f"run {end['run']} {when}: {how}; next: {command}"
