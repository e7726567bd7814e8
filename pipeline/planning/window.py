"""Whether a request fits into its model's context window. Edge: HTTP.

The API says so only when it works on the batch, an hour later. Its count of tokens is free, so the requests that may be
too long by their bytes are counted when they are planned, and no others. Nothing of it is stored: if we die, the next
planning counts them again.
"""

import math

from pipeline.api.client import Api
from pipeline.driver.driver import Driver
from pipeline.errors import ApiUnreachable, RowProblem, Stopped
from pipeline.job.model import Job
from pipeline.money.budget import CERTAIN_TOKENS_PER_BYTE
from pipeline.money.prices import context_window, context_windows, prices_of
from pipeline.planning.sample import text_bytes
from pipeline.request.build import Built

SURELY_FITS = 100_000  # bytes: no model reads less than so many tokens, and no byte is more than one
#: However short the tokens of a sample are, those of one row may be longer: such rows are counted.
LEAST_BOUND = 0.5
#: No text has longer tokens in the mean. What is too long by this is too long, also when the API does not count it.
LONGEST_TOKEN = 20  # bytes


class Windows:
    """Looks at the requests of one planning."""

    def __init__(self, driver: Driver, job: Job, tokens_per_byte: float = CERTAIN_TOKENS_PER_BYTE) -> None:
        """tokens_per_byte: at most, by a sample of the job's requests."""
        self._driver, self._job = driver, job
        self._bound = max(LEAST_BOUND, tokens_per_byte)
        self._asks = True  # an API that does not answer is not asked for each row

    def check(self, built: Built) -> None:
        """Raises RowProblem when the request is longer than its model reads."""
        window = self._driver.window(built.model)
        size = text_bytes(built.params) if built.attachment_tokens else len(built.params)
        if size * self._bound <= window:
            return
        tokens = self._counted(built)
        least = math.ceil(size / LONGEST_TOKEN) if tokens is None else tokens
        if least > window:
            about = "" if tokens is not None else "at least "
            raise RowProblem(
                f"the request has {about}{least:,} tokens, and {built.model} reads {window:,}: shorten the row"
                f"{larger(self._driver.api, least)}"
            )

    def _counted(self, built: Built) -> int | None:
        """By the API's count; None when it does not say."""
        if not self._asks:
            return None
        try:
            return self._driver.api.count_tokens(built.params, self._job.request.betas)
        except ApiUnreachable:
            self._asks = False
        except Stopped:  # it refuses to count this one
            pass
        return None


def larger(api: Api, tokens: int) -> str:
    """`, or ask claude-haiku-5-5 (request.model), which reads 1,000,000`: the cheapest model that reads so many tokens.

    Of those that the key can use, or when the API does not list them, that have a price. Nothing when there is none.
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
    return f", or ask {cheapest} (request.model), which reads {windows[cheapest]:,}"
