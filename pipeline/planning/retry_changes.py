"""With which change of `retry.change` is a row sent again, and what is its request then? Edge: SQL."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from pipeline.answer import retry_change
from pipeline.answer.retry_change import Answer, AnyChange
from pipeline.driver.driver import Driver
from pipeline.job.model import Job, Retry
from pipeline.planning.packer import sent_hash
from pipeline.request import packing
from pipeline.state.rows import KnownRow, WaitingRow


class ChangedRequest(NamedTuple):
    """A request with its change. params: as bytes, to be sent; fields: the same as a mapping."""

    params: bytes
    fields: Mapping[str, Any]


class Again(NamedTuple):
    """How one row is asked again. answer: the one that it had, for a change that is made of it.

    limit: a function from a model to its most tokens of output; largest: bytes of a request that a batch can carry.
    """

    change: AnyChange
    answer: Answer | None
    limit: Callable[[str], int | None]
    largest: int

    def changed(self, params: bytes) -> ChangedRequest | None:
        """Return the request with its change; None when that makes no difference, or no batch can carry it.

        params: the request as it was answered last.
        """
        changed = self._changed(params)
        return None if changed is None or len(changed.params) > self.largest else changed

    def changed_from_source(self, params: bytes, attempts: int, last: bytes | None) -> ChangedRequest | None:
        """Return the request with all changes of earlier attempts and the next one; None as for `changed`.

        params: the request as the source gives it; attempts: how often the row was sent; last: the sent_hash of what
        was answered last.
        """
        asked: bytes | None = params
        for _ in range(0 if retry_change.needs_answer(self.change) else attempts):
            if asked is None or sent_hash(asked) == last:
                break
            earlier = self._changed(asked)
            asked = None if earlier is None else earlier.params
        else:
            asked = params  # a person has asked otherwise meanwhile
        return None if asked is None else self.changed(asked)

    def _changed(self, params: bytes) -> ChangedRequest | None:
        fields = retry_change.changed(orjson.loads(params), self.change, self.answer, self.limit)
        return None if fields is None else ChangedRequest(orjson.dumps(fields), fields)


def change_of_known(known: KnownRow | None, row_hash: bytes, recipe: str, retry: Retry) -> AnyChange | None:
    """Return the change for a row of the source; None for one that is new, has changed, or has a new recipe.

    known: the row as the database has it.
    """
    if known is None or known.outcome_hash != row_hash:
        return None
    if known.outcome_recipe != recipe or known.attempts >= retry.max_attempts:
        return None
    return retry_change.of(retry, known.outcome, known.error_type)


def change_of_spooled(row: WaitingRow, retry: Retry) -> AnyChange | None:
    """Return the change for a row whose request is in the spool; None when that request has not been answered yet."""
    if row.sent_hash != row.outcome_sent_hash:
        return None
    return retry_change.of(retry, row.outcome, row.error_type)


class RetryChanges:
    """Finds what it takes to change the requests of rows that are sent again."""

    def __init__(self, driver: Driver, job: Job) -> None:
        self._driver = driver
        self._limit = driver.output_limit(job)
        self._largest = packing.largest_params(job.limits.max_batch_bytes)

    def for_rows(self, keys: Sequence[str], changes: Iterable[AnyChange | None]) -> list[Again | None]:
        """Return how each row is asked again; None where `changes` has None. keys: at most those of a chunk."""
        listed = list(changes)
        if not any(listed):
            return [None] * len(listed)
        needed = [key for key, change in zip(keys, listed, strict=True) if retry_change.needs_answer(change)]
        answers = self._driver.answers(needed)
        return [
            None if change is None else Again(change, answers.get(key), self._limit, self._largest)
            for key, change in zip(keys, listed, strict=True)
        ]
