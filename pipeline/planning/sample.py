"""A random sample of the requests of a source, from which the quote is made. Pure."""

import math
import random
import re
from collections.abc import Iterable
from typing import NamedTuple

import polars as pl

from pipeline.answer.retry_change import AnyChange
from pipeline.job.model import MAX_TOKENS, AskAgain, LongerAnswer, OtherModel
from pipeline.money import budget
from pipeline.money.prices import BYTES_PER_TOKEN
from pipeline.request.build import Built
from pipeline.request.packing import ROWS_OF_REQUEST


class Pair(NamedTuple):
    """One request. guess: tokens by its bytes; size: bytes, with all files in it; tokens: by the API's count."""

    guess: float
    size: int
    tokens: int


class Counts(NamedTuple):
    """What the API counted. sample: empty when it was not asked; prefix: tokens that all requests share, 0: none."""

    sample: tuple[Pair, ...]
    prefix: int

    @property
    def factor(self) -> float:
        """Tokens by the API's count for each token guessed by bytes; 1 when nothing was counted."""
        guessed = sum(pair.guess for pair in self.sample)
        return sum(pair.tokens for pair in self.sample) / guessed if guessed else 1.0

    @property
    def tokens_per_byte(self) -> float:
        """At most how many tokens a byte of these requests comes to; see budget.tokens_per_byte."""
        return budget.tokens_per_byte([(pair.tokens, pair.size) for pair in self.sample])


SAMPLED = 100  # rows that are rendered for the quote
KEPT_BYTES = 50_000_000  # of sampled requests, to be counted
SEPARATORS = 70  # bytes that a request takes in a body apart from its params
#: About how many tokens a picture or a document has, for a quote made before anything is counted.
IMAGE_TOKENS, DOCUMENT_TOKENS = 1_600, 6_000


class Reservoir:
    """A uniform random sample of a stream whose length is not known, taken without looking at each item (algorithm L).

    The same each time for the same stream.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self._size, self._seen = size, 0
        self._chance = random.Random(seed)
        self._weight = 1.0
        self._next = size  # index of the next item that replaces one

    def take(self, n: int) -> list[tuple[int, int]]:
        """Which of the next n items are in the sample for now: (index among them, slot), ascending; each slot once."""
        first, self._seen = self._seen, self._seen + n
        taken = {slot: slot - first for slot in range(first, min(self._seen, self._size))}
        if self._next == self._size and self._seen >= self._size:
            self._skip()
        while self._next < self._seen:
            taken[self._chance.randrange(self._size)] = self._next - first
            self._skip()
        return sorted((index, slot) for slot, index in taken.items())

    def _skip(self) -> None:
        self._weight *= math.exp(math.log(1.0 - self._chance.random()) / self._size)
        self._next += int(math.log(1.0 - self._chance.random()) / math.log1p(-self._weight)) + 1


class Packed:
    """How many requests and batches rows make, when equal requests of one batch are sent once.

    Rows are added as hashes of the values that their requests are made of, in the order in which they are packed.
    """

    def __init__(self, most: int, first: int) -> None:
        """most: requests of a batch; first: of the first batch, 0 when that is a batch like the others."""
        self._most, self._room = most, min(first or most, most)
        self._held = pl.Series(dtype=pl.UInt64)  # rows of the batch that is not full yet
        self._requests = self._batches = 0

    def add(self, hashes: pl.Series) -> None:
        """Pack the next rows."""
        self._held = pl.concat([self._held, hashes])
        start = 0
        while (window := self._held.slice(start, ROWS_OF_REQUEST * self._room + 1)).len() > self._room:
            different = window.is_first_distinct().cum_sum()
            rows = min(int((different <= self._room).sum()), ROWS_OF_REQUEST * self._room)
            if rows == window.len():
                break
            self._requests += int(different[rows - 1])
            self._batches += 1
            start, self._room = start + rows, self._most
        self._held = self._held.slice(start)

    @property
    def totals(self) -> tuple[int, int]:
        """Requests, and batches."""
        return self._requests + self._held.n_unique(), self._batches + bool(self._held.len())


class Sample(NamedTuple):
    """One sampled request. size: bytes as it is sent; tokens: about how many go in, by its bytes.

    params: with all files in it, None when it is not kept; marked: how long what its own blocks with cache_control
    cover is cached, 5m or 1h; None: nothing but what `request.cache` covers; change: with which it is sent again.
    """

    size: int
    tokens: float
    model: str
    max_tokens: int
    params: bytes | None
    marked: str | None = None
    change: AnyChange | None = None


#: Of the turn that says what is wrong with an answer.
REASK_TOKENS = 100


def changed_sample(sample: Sample, change: AnyChange) -> Sample:
    """A request as it is sent again with a change of `retry.change`; of a model's own limits nothing is known here."""
    match change:
        case LongerAnswer():
            return sample._replace(max_tokens=min(MAX_TOKENS, int(change.factor * sample.max_tokens)))
        case OtherModel():
            return sample._replace(model=change.model)
        case AskAgain():
            return sample._replace(tokens=sample.tokens + sample.max_tokens + REASK_TOKENS)


def guessed_tokens(built: Built) -> float:
    """About how many tokens a request has, by its bytes; what is no text is not in them as text."""
    if not built.attachment_tokens:
        return len(built.params) / BYTES_PER_TOKEN
    return text_bytes(built.params) / BYTES_PER_TOKEN + (
        IMAGE_TOKENS * built.params.count(b'"type":"image"')
        + DOCUMENT_TOKENS * built.params.count(b'"type":"document"')
    )


def text_bytes(params: bytes) -> int:
    """The bytes of a request without those of the files that it carries."""
    return len(params) - sum(found.end() - found.start() for found in _BASE64.finditer(params))


_BASE64 = re.compile(rb'"data":"[A-Za-z0-9+/=]{64,}"')


def marked_parts(params: bytes, breakpoints: int) -> str | None:
    """How long the blocks with cache_control of the user's own are cached, the longest; None: there are none."""
    if params.count(b'"cache_control":{') <= breakpoints:
        return None
    return "1h" if b'"ttl":"1h"' in params else "5m"


def mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0
