"""Which rows of a new recipe are sent before all others, and what must be true of their answers? Pure."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.job.section import Section


class Canary(Section):
    """The first rows of a new recipe, which are sent as a batch of their own before the remaining rows.

    rows: how many. max_failed: the share of them that may fail, 0 to 1; if more fail, the remaining rows are not sent.
    min_accuracy: the accuracy that they must have, by the job's gold, and then they are rows with gold; None: it is not
    looked at. judge: what is compared with it, see quality.judges. sample: whether the rows with gold are chosen by a
    hash of their key; else they are the first ones of the source.
    """

    rows: Annotated[int, Field(ge=1, le=10_000)] = 20
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.2
    min_accuracy: Annotated[float, Field(gt=0, lt=1)] | None = None
    judge: Literal["bound", "point", "alarm"] = "bound"
    sample: bool = False

    def applies_to(self, rows: int) -> bool:
        """Return whether a run of this many rows is large enough to need a canary."""
        return rows >= 10 * self.rows
