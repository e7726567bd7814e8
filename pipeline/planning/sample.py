"""Sample the requests of a source at random, for a quote. Pure."""

import math
import random
import re
from collections.abc import Iterable
from typing import NamedTuple

import orjson

from pipeline.answer.retry_change import AnyChange
from pipeline.job.model import MAX_TOKENS
from pipeline.job.retrying import AskAgain, LongerAnswer, OtherModel
from pipeline.money import budget
from pipeline.money.prices import BYTES_PER_TOKEN
from pipeline.request.build import Built


class Pair(NamedTuple):
    """One counted request. guess: tokens guessed by its bytes; size: bytes, files included; tokens: the API's count."""

    guess: float
    size: int
    tokens: int


class Counts(NamedTuple):
    """The API's counts. sample: empty: the API was not asked; prefix: tokens of the cached prefix; 0: there is none."""

    sample: tuple[Pair, ...]
    prefix: int

    @property
    def factor(self) -> float:
        """Return the ratio of counted tokens to guessed ones; 1 if nothing was counted."""
        guessed = sum(pair.guess for pair in self.sample)
        return sum(pair.tokens for pair in self.sample) / guessed if guessed else 1.0

    @property
    def tokens_per_byte(self) -> float:
        """Return an upper bound for the tokens per byte of these requests; see `budget.tokens_per_byte`."""
        return budget.tokens_per_byte([(pair.tokens, pair.size) for pair in self.sample])


SAMPLED = 100  # the most rows that are rendered for a quote
KEPT_BYTES = 50_000_000  # the most bytes of sampled requests that are kept for counting
SEPARATORS = 70  # bytes of a request in a body beside its params
#: About how many tokens an image or a document has, if the API has counted nothing.
IMAGE_TOKENS, DOCUMENT_TOKENS = 1_600, 6_000


class Reservoir:
    """A uniform random sample of a stream of unknown length, taken without looking at each item (algorithm L).

    The same stream gives the same sample each time.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self._size, self._seen = size, 0
        self._chance = random.Random(seed)
        self._weight = 1.0
        self._next = size  # index in the stream of the next item that replaces a sampled one

    def take(self, n: int) -> list[tuple[int, int]]:
        """Return which of the next n items enter the sample, as (index among the n, slot), ascending.

        Each slot comes at most once. A later item may replace the item in a slot.
        """
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


class Sample(NamedTuple):
    """One sampled request.

    size: bytes as it is sent; tokens: about how many input tokens it has, by its bytes; params: with all files inside;
    None: not kept; marked: for how long cache_control after the shared prefix caches it, 5m or 1h; None: there is none
    after that; change: the change with which it is sent again; None: it is unchanged.
    """

    size: int
    tokens: float
    model: str
    max_tokens: int
    params: bytes | None
    marked: str | None = None
    change: AnyChange | None = None


def asking(sample: Sample, model: str, *, keep: bool) -> Sample:
    """Return a sampled request that asks another model. keep: whether its params are needed."""
    params = sample.params if keep else None
    if params is not None:
        params = orjson.dumps({**orjson.loads(params), "model": model})
    return sample._replace(model=model, params=params)


#: Tokens of the turn that says what is wrong with an answer.
REASK_TOKENS = 100


def changed_sample(sample: Sample, change: AnyChange) -> Sample:
    """Return a sampled request with a change of `retry.change`. The limits of its model are not applied."""
    match change:
        case LongerAnswer():
            return sample._replace(max_tokens=min(MAX_TOKENS, int(change.factor * sample.max_tokens)))
        case OtherModel():
            return sample._replace(model=change.after(sample.model) or sample.model)
        case AskAgain():
            return sample._replace(tokens=sample.tokens + sample.max_tokens + REASK_TOKENS)


def guessed_tokens(built: Built) -> float:
    """Return about how many tokens a request has: its text by bytes, and a fixed number per image and document."""
    if not built.attachment_tokens:
        return len(built.params) / BYTES_PER_TOKEN
    return text_bytes(built.params) / BYTES_PER_TOKEN + (
        IMAGE_TOKENS * built.params.count(b'"type":"image"')
        + DOCUMENT_TOKENS * built.params.count(b'"type":"document"')
    )


def text_bytes(params: bytes) -> int:
    """Return the size of a request in bytes, without the files inside it."""
    return len(params) - sum(found.end() - found.start() for found in _BASE64.finditer(params))


_BASE64 = re.compile(rb'"data":"[A-Za-z0-9+/=]{64,}"')


def marked_parts(params: bytes, breakpoints: int) -> str | None:
    """Return the longest time for which a request's blocks after the shared prefix are cached: 5m or 1h.

    None if there are none. breakpoints: how many blocks with cache_control are in the shared prefix.
    """
    if params.count(b'"cache_control":{') <= breakpoints:
        return None
    return "1h" if b'"ttl":"1h"' in params else "5m"


def mean(values: Iterable[float]) -> float:
    """Return the mean of the values; 0 if there are none."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0
