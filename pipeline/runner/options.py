"""What a run was asked for, and how it ended."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from pipeline.planning.quote import Quote
from pipeline.planning.selection import Selection
from pipeline.planning.shards import ShardRunner
from pipeline.state import ends
from pipeline.state.ends import End, Ended


@dataclass(frozen=True)
class Finished:
    """How a run stands when its driver ends. state open: rows are still waiting or at the API.

    rows: of this run by state. kept: rows that had their outcome before. quote: what was said before. ended_at: None
    while it is open. earlier: how earlier runs of the job ended, where nobody had been told; meanwhile: other runs of
    the job that this driver has ended.
    """

    run_id: int | None
    state: str
    reason: str | None
    rows: dict[str, int]
    cost_usd: float
    quote: Quote = field(repr=False)  # it holds texts of rows, which nobody wants to see under a cell
    max_failed: float
    ended_at: datetime | None = field(default=None, repr=False)
    earlier: tuple[End, ...] = field(default=(), repr=False)
    meanwhile: tuple[End, ...] = field(default=(), repr=False)

    @property
    def exit_code(self) -> int:
        """0 when the rows of this run succeeded, up to max_failed of them; 1 when more did not; 3 when it stopped.

        The worst code of an earlier run, when that is worse and nobody had been told.
        """
        return max([ends.exit_code(self.state, self.rows, self.max_failed), *(end.exit_code for end in self.earlier)])

    @property
    def told(self) -> Ended:
        """The ends that whoever shows this tells, for `ends.note_told`."""
        others = {end.run_id: end.ended_at for end in (*self.earlier, *self.meanwhile)}
        own = {} if self.run_id is None or self.ended_at is None else {self.run_id: self.ended_at}
        return {**others, **own}


@dataclass(frozen=True)
class Options:
    """What one `run` is asked to do. confirm: shown the quote, says whether to go on; retry: only these rows.

    canary: whether a new recipe's first rows go first, if the job says so.

    share: who else plans, file by file, where the source has several and all of it is planned.
    """

    limit: int | None = None
    refresh: bool = False
    detach: bool = False
    dry_run: bool = False
    canary: bool = True
    retry: Selection | None = None
    confirm: Callable[[Quote], bool] = lambda quote: True
    share: ShardRunner | None = None
