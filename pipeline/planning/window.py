"""Check that a request fits into its model's context window. Edge: HTTP.

The API checks it only while it processes the batch, an hour later. Counting tokens is free, so planning has the API
count those requests that may be too long by their bytes, and no others. No count is stored: if we die, the next
planning counts them again.
"""

import math
from typing import TYPE_CHECKING

from pipeline.driver.driver import Driver
from pipeline.errors import ApiUnreachable, RowProblem, Stopped
from pipeline.job.model import Job
from pipeline.money.measures import CERTAIN_TOKENS_PER_BYTE
from pipeline.money.prices import context_window, context_windows, prices_of
from pipeline.planning.sample import text_bytes
from pipeline.request.build import Built

if TYPE_CHECKING:
    from pipeline.api.client import Api

SURELY_FITS = 100_000  # bytes: every model reads as many tokens, and a byte is at most one token
#: The least tokens per byte that are assumed: one row may have more tokens per byte than the sample, so it is counted.
LEAST_BOUND = 0.5
#: The mean token of a text is never longer. A request that is too long by this is refused even without a count.
LONGEST_TOKEN = 20  # bytes


class Windows:
    """Checks the requests of one planning."""

    def __init__(self, driver: Driver, job: Job, tokens_per_byte: float = CERTAIN_TOKENS_PER_BYTE) -> None:
        """tokens_per_byte: an upper bound, from a sample of the job's requests."""
        self._driver, self._job = driver, job
        self._bound = max(LEAST_BOUND, tokens_per_byte)
        self._asks = True  # False once the API could not be reached, so that it is not tried for each row

    def check(self, built: Built) -> None:
        """Raise RowProblem if the request has more tokens than its model reads."""
        window = self._driver.window(built.model)
        size = text_bytes(built.params) if built.attachment_tokens else len(built.params)
        if size * self._bound <= window:
            return
        tokens = self._counted(built)
        least = math.ceil(size / LONGEST_TOKEN) if tokens is None else tokens
        if least > window:
            about = "" if tokens is not None else "at least "
            raise RowProblem(
                f"the request has {about}{least:,} tokens, and {built.model} reads at most {window:,}: shorten the row"
                f"{larger_model_advice(self._driver.api, least)}"
            )

    def _counted(self, built: Built) -> int | None:
        """Return the API's count of the request's tokens; None if it gives none."""
        if not self._asks:
            return None
        try:
            return self._driver.api.count_tokens(built.params, self._job.request.betas)
        except ApiUnreachable:
            self._asks = False
        except Stopped:  # the API refuses to count this request
            pass
        return None


def larger_model_advice(api: "Api", tokens: int) -> str:
    """Return advice for a message: the cheapest model that reads this many tokens; an empty text if there is none.

    Such as: `, or set request.model to claude-haiku-5-5, which reads 1,000,000`. It is chosen among the models with a
    known price that the API lists, or among all of them if the API gives no list.
    """
    windows = context_windows()
    try:
        listed = {info.id: info.max_input_tokens or context_window(info.id) for info in api.models()}
        windows = {model: window for model, window in listed.items() if prices_of(model) is not None}
    except Stopped:
        pass
    fitting = {model: prices_of(model) for model, window in windows.items() if window >= tokens}
    priced = {model: known.input.of(tokens) for model, known in fitting.items() if known is not None}
    if not priced:
        return ""
    cheapest = min(priced, key=lambda model: (priced[model], model))
    return f", or set request.model to {cheapest}, which reads {windows[cheapest]:,}"
