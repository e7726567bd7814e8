"""Which rows' tools does another process call for a driver? Groups of rows, split by number. Pure.

A group carries only names and numbers: the process that works on it opens the state database itself, and claims each
row there, as a driver does that calls tools itself.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

MOST_GROUPS = 16  # for one step of a driver: to begin with a group takes a process up to a second
LEAST_ROWS = 10  # of a group, unless fewer rows wait
ROWS_AT_A_TIME = 32_000  # that one step of a driver gives to others


@dataclass(frozen=True)
class ToolGroup:
    """Rows of a run that wait for calls of tools: those with numbers from `first` to `last`.

    job: the name of the job. timeout: seconds that one call may take.
    """

    job: str
    run_id: int
    first: int
    last: int
    timeout: float


@dataclass(frozen=True)
class Called:
    """Calls of tools that were made. failed: those whose result is an error for the model."""

    calls: int = 0
    failed: int = 0

    @classmethod
    def sum(cls, made: Iterable["Called"]) -> "Called":
        """Return all these calls together."""
        every = list(made)
        return cls(sum(each.calls for each in every), sum(each.failed for each in every))


#: A function that lets other processes call the tools of groups, and returns when none of them works any more. It
#: returns what each of them has made; those that failed are left out.
ToolRunner = Callable[[list[ToolGroup]], list[Called]]


def groups(job: str, run_id: int, rows: Sequence[int], timeout: float) -> list[ToolGroup]:
    """Split rows into groups of about equal size. rows: their numbers, in order; for the rest see `ToolGroup`."""
    number = min(MOST_GROUPS, -(-len(rows) // LEAST_ROWS))
    starts = [len(rows) * i // number for i in range(number)]
    ends = [*starts[1:], len(rows)]
    return [
        ToolGroup(job, run_id, rows[start], rows[end - 1], timeout) for start, end in zip(starts, ends, strict=True)
    ]
