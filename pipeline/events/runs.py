"""Define the events that are not about one batch: before a run, gates, files, waiting, and the ends of runs. Pure."""

import logging
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.events.event import Event
from pipeline.states import Gate, RunReason, RunState, failed_rows
from pipeline.text import count, counted, later, size


@dataclass(frozen=True, kw_only=True)
class EmulatorStarted(Event):
    """An emulator was started for this command."""

    name = "emulator"
    changes_job = False

    url: str

    def line(self) -> str:
        return f"emulator {self.url}"


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """The settings or the job file hold something that a person should know before the run continues."""

    name = "warning"
    level = logging.WARNING
    changes_job = False

    warning: str

    def line(self) -> str:
        return f"warning  {self.warning}"


@dataclass(frozen=True, kw_only=True)
class NotCounted(Event):
    """The API did not count the tokens of the sample, so the quote is estimated from bytes."""

    name = "not_counted"
    level = logging.WARNING
    changes_job = False

    problem: str

    def line(self) -> str:
        return (
            f"warning  the API did not count the tokens: {self.problem}; the quote is estimated from bytes, "
            "and a budget reserves money for one token per byte"
        )


@dataclass(frozen=True, kw_only=True)
class WaitsForRetry(Event):
    """A retry is not finished, and this run leaves that retry's rows to it.

    run: the retry's number. vars, retry: the vars and the selection of rows that the retry was started with. command:
    the line for the shell that continues the retry; it may hold keys of rows. None: the line refers to `status`.
    """

    name = "waits_for_retry"
    level = logging.WARNING

    run: int
    rows: int
    vars: Mapping[str, Any]
    retry: Mapping[str, Any] | None
    command: str | None = None

    def line(self) -> str:
        waiting = f"{count(self.rows, 'row')} {'waits' if self.rows == 1 else 'wait'} for a retry that is not finished"
        by_status = f"run {self.run}, `batch-pipeline status {self.job}` says how to continue it"
        return f"retry    {waiting}: {self.command or by_status}"

    def logged_facts(self) -> dict[str, Any]:
        """Return the facts without the vars, the selection and the command of the retry: they may hold keys of rows."""
        return {"job": self.job, "run": self.run, "rows": self.rows}


@dataclass(frozen=True, kw_only=True)
class SpoolMoved(Event):
    """The job uses another spool from now on."""

    name = "spool_moved"

    spool: str

    def line(self) -> str:
        return f"spool    job {self.job} now uses {self.spool}"


@dataclass(frozen=True, kw_only=True)
class PlannedElsewhere(Event):
    """Another driver plans the job, and this driver waits for it. The driver repeats this event with each look."""

    name = "planned_elsewhere"
    level = logging.DEBUG
    changes_job = False

    problem: str

    def line(self) -> str:
        return f"waiting: {self.problem}"


@dataclass(frozen=True, kw_only=True)
class CanaryFailed(Event):
    """Too many of the canary's rows failed. rows: how many rows the canary has; rows that share a request are one."""

    name = "canary_failed"
    level = logging.WARNING

    run: int
    failed: int
    rows: int

    def line(self) -> str:
        return f"canary: {self.failed:,} of its {count(self.rows, 'row')} failed"


@dataclass(frozen=True, kw_only=True)
class CanaryMissed(Event):
    """The answers of the canary do not reach `canary.min_accuracy`.

    right, judged: its right answers, and those that are right or wrong. figure: what the judge compares with the
    minimum; opens_at: how many right answers would do; None if all are too few. confused: the most frequent confusions
    in words. tries: how many canaries of the job have not passed, with this one.
    """

    name = "canary_missed"
    level = logging.WARNING

    run: int
    right: int
    judged: int
    min_accuracy: float
    judge: str
    figure: float
    opens_at: int | None
    confused: tuple[str, ...]
    tries: int

    def line(self) -> str:
        is_only = {"bound": "is shown", "point": "is right", "alarm": "is possible"}[self.judge]
        opens = f"; {self.opens_at:,} would open it" if self.opens_at is not None else "; so few rows cannot open it"
        confused = f"; most confused: {', '.join(self.confused)}" if self.confused else ""
        tries = f"; this is try {self.tries}" if self.tries > 1 else ""
        return (
            f"canary: {self.right:,} of {self.judged:,} right ({self.right / self.judged:.1%}), canary.min_accuracy is "
            f"{self.min_accuracy:.1%}: only {self.figure:.1%} {is_only}{opens}{confused}{tries}"
        )


@dataclass(frozen=True, kw_only=True)
class ToolsCalled(Event):
    """The tools that answers of a run asked for were called. failed: calls whose result is an error for the model."""

    name = "tools_called"

    run: int
    calls: int
    failed: int

    def line(self) -> str:
        failed = f", {self.failed:,} gave an error" if self.failed else ""
        return f"tools    {count(self.calls, 'call')}{failed}"


@dataclass(frozen=True, kw_only=True)
class WaitsForTools(Event):
    """Rows of a run wait for calls of tools, which this driver does not make."""

    name = "waits_for_tools"
    level = logging.WARNING
    changes_job = False

    run: int
    rows: int

    def line(self) -> str:
        return (
            f"run {self.run}: {count(self.rows, 'row')} {'waits' if self.rows == 1 else 'wait'} for tools, which are "
            "not called here (--no-tools); a `run` or `collect` on a machine that has them goes on"
        )


@dataclass(frozen=True, kw_only=True)
class GateOpened(Event):
    """The rows that wait behind a gate may be sent now.

    gate: one of `states.Gate`. failed, rows: how many of the canary's rows failed, and how many it has, where rows that
    share a request are one; None for a primer. right, judged: its right answers, and those that are right or wrong;
    None if its accuracy does not matter.
    """

    name = "gate_opened"

    run: int
    gate: str
    failed: int | None = None
    rows: int | None = None
    right: int | None = None
    judged: int | None = None

    def line(self) -> str:
        if self.gate == Gate.PRIMER:
            return "primer succeeded: the prefix is in the prompt cache, the other rows are sent now"
        rows = self.rows or 0
        good = rows - (self.failed or 0)
        right = "" if self.judged is None else f", {self.right or 0:,} of {self.judged:,} are right"
        return f"canary passed: {good:,} of {count(rows, 'row')} succeeded{right}, the other rows are sent now"


@dataclass(frozen=True, kw_only=True)
class Uploaded(Event):
    """A file was uploaded, so that requests can name it."""

    name = "uploaded"

    file_id: str
    bytes: int

    def line(self) -> str:
        return f"file uploaded as {self.file_id}, {size(self.bytes)}"


@dataclass(frozen=True, kw_only=True)
class FileRemoved(Event):
    """A file was deleted at the API."""

    name = "file_removed"

    file_id: str

    def line(self) -> str:
        return f"file {self.file_id} deleted at the API"


@dataclass(frozen=True, kw_only=True)
class FileNotRemoved(Event):
    """A file could not be deleted at the API."""

    name = "file_not_removed"
    level = logging.WARNING

    file_id: str
    problem: str

    def line(self) -> str:
        return f"file {self.file_id} not deleted at the API yet: {self.problem}"


@dataclass(frozen=True, kw_only=True)
class Unreachable(Event):
    """The API did not respond. wait: seconds until the driver asks again; 0 if no time is set."""

    name = "unreachable"
    level = logging.WARNING
    changes_job = False

    problem: str
    wait: float

    def line(self) -> str:
        return self.problem + later(self.wait)


@dataclass(frozen=True, kw_only=True)
class Waiting(Event):
    """A driver has nothing to do for some seconds. The driver repeats this event with each look.

    progress: the number of the run's batches by state, under `batches`. held_by: the other drivers that this driver
    must wait for, each with its `process` and with `until`, the end of its lease; empty if it waits for no driver.
    """

    name = "waiting"
    level = logging.DEBUG
    changes_job = False

    seconds: float
    progress: Mapping[str, Mapping[str, int]]
    held_by: Sequence[Mapping[str, str]]

    def line(self) -> str:
        return f"waiting: {counted(self.progress['batches'])}{self._held()}; next look in {math.ceil(self.seconds)} s"

    def _held(self) -> str:
        if not self.held_by:
            return ""
        who = ", ".join(sorted({other["process"] for other in self.held_by}))
        until = max(other["until"] for other in self.held_by)
        return (
            f", held by {who}: wait, or stop the process; if it has died, its lease runs out at {until} at the latest"
        )


@dataclass(frozen=True, kw_only=True)
class NoRunOpen(Event):
    """No run is open yet, and the driver waits for the first one. job: None: a run of any job will do."""

    name = "no_run_open"
    changes_job = False

    def line(self) -> str:
        which = "run" if self.job is None else f"run of {self.job}"
        return f"waiting: no {which} is open yet; a `run` or `retry` opens one, Ctrl-C ends the waiting"


@dataclass(frozen=True, kw_only=True)
class AwaitsPlanning(Event):
    """Only a `run` or `retry` can continue an open run, because its source must be read, and no driver reads it now."""

    name = "awaits_planning"
    level = logging.WARNING
    changes_job = False

    run: int

    def line(self) -> str:
        return (
            f"run {self.run} of {self.job} waits for its source to be read, and no process reads it now; "
            f"`batch-pipeline status {self.job}` says how to continue it"
        )


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """Every row of a run has its outcome."""

    name = "finished"

    run: int

    def line(self) -> str:
        return f"run {self.run} is finished"


@dataclass(frozen=True, kw_only=True)
class RunIncomplete(Event):
    """A run stopped early."""

    name = "incomplete"
    level = logging.ERROR

    run: int
    reason: str

    def line(self) -> str:
        return f"run {self.run} stopped early: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class JobCanceled(Event):
    """All open runs of a job were canceled. open: number of batches still at the API; foreign: of another account."""

    name = "canceled"

    runs: int
    open: int
    foreign: int

    def line(self) -> str:
        return f"canceled {count(self.runs, 'open run')}; {self._at_the_api()}"

    def _at_the_api(self) -> str:
        if not self.open:
            return "no batch of the job is at the API any more"
        still_there = f"{count(self.open, 'batch')} {'is' if self.open == 1 else 'are'} still at the API"
        if not self.foreign:
            return f"{still_there}, which was asked to cancel: requests that succeeded before are collected"
        return (
            f"{still_there}, {self.foreign:,} of them sent by another account: use that account's key, "
            "or give them up by `cancel --abandon`"
        )


#: For each reason why a run is incomplete: the reason in words, and the command that tells more.
STOPPED: dict[str, tuple[str, str]] = {
    RunReason.BUDGET: ("the budget is used up", "status"),
    RunReason.CANARY: ("the canary did not pass", "errors"),
    RunReason.FAILURES: ("too many of its rows failed", "errors"),
    RunReason.CANCELED: ("it was canceled", "status"),
}


@dataclass(frozen=True, kw_only=True)
class RunEnded(Event):
    """A run ended with too many failures or stopped early, and its end has not been announced yet.

    when: in words, as `before this command`; None if the command is about several jobs. rows: their number by state.
    """

    name = "run_ended"
    level = logging.ERROR
    changes_job = False

    when: str | None
    run: int
    state: str
    reason: str | None
    rows: Mapping[str, int]
    cost_usd: float

    def facts(self) -> dict[str, Any]:
        """Return the facts with `when` and `run` before the job, the order that readers of the JSON know."""
        return {"when": self.when, "run": self.run, **super().facts()}

    def line(self, command: str | None = None) -> str:
        """Return `run 3 ended before this command: 2 of 5 rows failed; next: COMMAND`. command: None: see `then`."""
        if self.state == RunState.INCOMPLETE and self.reason is not None:
            how = f"it stopped early, {STOPPED[self.reason][0]}"
        else:
            how = f"{failed_rows(self.rows):,} of {count(sum(self.rows.values()), 'row')} failed"
        when = f"of {self.job} ended" if self.when is None else f"ended {self.when}"
        return f"run {self.run} {when}: {how}; next: {command or shlex.join(['batch-pipeline', *self.then()])}"

    def then(self, job: str | None = None) -> list[str]:
        """Return the words of the command that tells more. job: its name or file for the command; None: its name."""
        says = STOPPED[self.reason][1] if self.state == RunState.INCOMPLETE and self.reason is not None else "errors"
        return [says, job or self.job or ""]
