"""Render the request of a row, and compute its worst-case cost. Edge: files of attachments, HTTP."""

from collections.abc import Mapping
from typing import Any

from pipeline.errors import RowProblem
from pipeline.job.model import Job
from pipeline.money.budget import Bound, is_small
from pipeline.money.prices import PriceList
from pipeline.planning.window import SURELY_FITS, Windows
from pipeline.request import packing
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
