"""Render the request of a row, and compute its worst-case cost. Edge: files of attachments, HTTP."""

from collections.abc import Mapping
from typing import Any

import polars as pl
from jinja2 import TemplateError

from pipeline.errors import RowProblem
from pipeline.job.model import Job
from pipeline.job.templates import Place, Plain
from pipeline.money.budget import SMALL_PROMPT, Bound, is_small
from pipeline.money.prices import PriceList
from pipeline.planning.window import SURELY_FITS, Windows
from pipeline.request import bulk, packing
from pipeline.request.build import Built, RequestBuilder
from pipeline.storage.folders import Folder


class Renderer:
    """Renders rows of a job to requests that fit into a batch."""

    def __init__(self, job: Job, builder: RequestBuilder, listed: PriceList, windows: Windows | None = None) -> None:
        """windows: checks that long requests fit their model's context window; None: that is not checked."""
        self._job, self._builder, self._listed, self._windows = job, builder, listed, windows
        self._bounds: dict[tuple[str, int, int, bool, bool], Bound | None] = {}
        self.largest = packing.largest_params(job.limits.max_batch_bytes)  #: bytes of a request that a batch can carry

    def built(self, row: Mapping[str, Any], folder: Folder) -> Built:
        """Return a row's request. Raises RowProblem if it cannot be sent, TemplateProblem if a template fails."""
        built = self._builder.params(row, folder)
        if len(built.params) > self.largest:
            raise RowProblem(
                f"the request has {len(built.params):,} bytes, more than a batch can carry ({self.largest:,})"
            )
        if self._windows is not None and len(built.params) > SURELY_FITS:
            self._windows.check(built)
        return built

    def plain(self, frame: pl.DataFrame) -> list[bytes]:
        """Return the params of rows whose request needs no Jinja, as `built` makes them; b"" for all other rows.

        Other rows have a null, an empty prompt, or a request so long that `built` has to check it. Measured: a third of
        the time of `built`.
        """
        prompt = self._builder.plain_prompt
        if prompt is None or not {place.column for place in prompt.places} <= set(frame.columns):
            return [b""] * frame.height
        made = self._in_bulk(frame, prompt)
        if made is None:
            return [b""] * frame.height
        most = min(self.largest, SURELY_FITS, SMALL_PROMPT)
        return [b"" if len(params) > most else params for params in made]

    def _in_bulk(self, frame: pl.DataFrame, prompt: Plain) -> list[bytes] | None:
        """Return the params of all rows, of any size; b"" for those with a null or an empty prompt.

        None if the columns need Jinja.
        """
        columns = [frame.get_column(place.column) for place in prompt.places]
        if all(place.convert is None for place in prompt.places):
            made = self._builder.bulk_params(columns)
            if made is not None:
                return made
        values = [plain_column(column, place) for column, place in zip(columns, prompt.places, strict=True)]
        if any(column is None for column in values):
            return None
        made = self._builder.plain_params([column or [] for column in values])
        for column in columns:
            for i in column.is_null().arg_true() if column.null_count() else ():
                made[i] = b""
        return made

    @property
    def plain_bound(self) -> Bound | None:
        """The worst-case cost of each request of `plain`; None if its price is not known, or none is plain."""
        return None if self._builder.plain_prompt is None else self.bound(self._builder.plain_facts())

    def bound(self, built: Built) -> Bound | None:
        """Return the worst-case cost of a request; None if its price is not known.

        Most requests have the same model and max_tokens as earlier ones, so the bounds are remembered.
        """
        small = is_small(len(built.params), built.attachment_tokens)
        facts = (*built[1:], small)
        if facts not in self._bounds:
            geo = self._job.request.params.get("inference_geo")
            params = {"model": built.model, "max_tokens": built.max_tokens, "inference_geo": geo}
            self._bounds[facts] = Bound.of(
                params, self._listed, caches=built.caches, attachment_tokens=built.attachment_tokens, small=small
            )
        return self._bounds[facts]


#: Types whose values are printed in a template as Python prints them.
_PLAIN_TYPES = frozenset([*bulk.TYPES, pl.Boolean, pl.Float64])


def plain_column(column: pl.Series, place: Place) -> list[Any] | None:
    """Return what is printed at a place of a plain template, for each row; None if it needs Jinja."""
    if column.dtype not in _PLAIN_TYPES:
        return None
    values = column.to_list()
    if place.convert is None:
        return values
    if column.dtype != pl.String:
        return None
    try:
        values = [None if value is None else place.convert(value) for value in values]
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AssertionError):
        return None  # Jinja raises it again, for the row that it is about
    return values if {str, type(None)}.issuperset(map(type, values)) else None
