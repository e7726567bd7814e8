"""Define the options of a run, and its result. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from pipeline.planning.quote import Quote
from pipeline.planning.selection import Selection
from pipeline.planning.shards import ShardRunner
from pipeline.planning.trial import Sampled
from pipeline.runner.processes import PlannerProcesses
from pipeline.state import ends
from pipeline.state.ends import End, Ended


@dataclass(frozen=True)
class Finished:
    """How a run stands when its driver ends.

    run_id: None: no run was begun, because only the quote was asked for or it was declined; then state is `quoted`.
    state: `open`: rows are still pending or at the API. reason: why the run stopped early; None: it did not. rows: the
    numbers of the run's rows by state. quote: as shown before the run. ended_at: None while the run is open.
    earlier: ends of earlier runs of the job that were not announced yet. meanwhile: ends of other runs of the job that
    this driver has ended.
    """

    run_id: int | None
    state: str
    reason: str | None
    rows: dict[str, int]
    cost_usd: float
    quote: Quote = field(repr=False)  # it holds texts of rows, too long for the output of a notebook cell
    max_failed: float
    ended_at: datetime | None = field(default=None, repr=False)
    earlier: tuple[End, ...] = field(default=(), repr=False)
    meanwhile: tuple[End, ...] = field(default=(), repr=False)

    @property
    def exit_code(self) -> int:
        """Return 0 if at most the share max_failed of the run's rows failed, 1 if more failed, 3 if it stopped early.

        If an end in `earlier` has a higher code, return the highest.
        """
        return max([ends.exit_code(self.state, self.rows, self.max_failed), *(end.exit_code for end in self.earlier)])

    @property
    def told(self) -> Ended:
        """Return the ends that the caller announces by showing this result, for `ends.note_told`."""
        others = {end.run_id: end.ended_at for end in (*self.earlier, *self.meanwhile)}
        own = {} if self.run_id is None or self.ended_at is None else {self.run_id: self.ended_at}
        return {**others, **own}


@dataclass(frozen=True)
class Options:
    """What one `run` is asked to do.

    limit: only the first so many rows of the source; None: all rows. refresh: send rows again that succeeded with an
    older recipe. detach: end when nothing can be sent now, and do not wait. dry_run: make only the quote. canary:
    whether a new recipe may have a canary, if the job wants one. retry: send only these rows again; None: the command
    is no retry. confirm: gets the quote and returns whether to continue. share: lets other processes plan a source of
    several files, file by file, if all of it is planned; None: this driver plans it. processes: how many processes
    of this machine work, the driver and those that plan for it; None: as many as the job wants, or as pay for its
    source. planners: processes that are started already, if the run should need them; None: it starts them.
    trial: the trial that is run; None: the job itself.
    """

    limit: int | None = None
    refresh: bool = False
    detach: bool = False
    dry_run: bool = False
    canary: bool = True
    retry: Selection | None = None
    confirm: Callable[[Quote], bool] = lambda quote: True
    share: ShardRunner | None = None
    processes: int | None = 1
    planners: PlannerProcesses | None = None
    trial: Sampled | None = None
