"""Choose the change of `retry.change` for a row that is sent again, and apply it to the request. Edge: SQL."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from pipeline.answer import retry_change
from pipeline.answer.retry_change import Answer, AnyChange
from pipeline.api import capabilities
from pipeline.driver.driver import Driver
from pipeline.job.model import Job
from pipeline.job.retrying import Retry
from pipeline.planning.packer import sent_hash
from pipeline.request import packing
from pipeline.state.rows import KnownRow, WaitingRow


class ChangedRequest(NamedTuple):
    """A changed request. params: the bytes to send; fields: the same as a mapping."""

    params: bytes
    fields: Mapping[str, Any]


class RequestChange(NamedTuple):
    """How the request of one row is changed.

    answer: the row's last answer; None: not needed, or there is none. limit: a function from a model to the most tokens
    of its output; largest: the most bytes of a request that a batch can carry.
    """

    change: AnyChange
    answer: Answer | None
    limit: Callable[[str], int | None]
    largest: int

    def changed(self, params: bytes) -> ChangedRequest | None:
        """Return the changed request; None if the change makes no difference, or no batch can carry the request.

        params: the request that the last answer is for.
        """
        changed = self._changed(params)
        return None if changed is None or len(changed.params) > self.largest else changed

    def changed_from_source(self, params: bytes, attempts: int, last: bytes | None) -> ChangedRequest | None:
        """Return the request with the changes of all earlier attempts and one more; None as for `changed`.

        params: the request as built from the source; attempts: how often the row was sent; last: the sent_hash of the
        request that the last answer is for.
        """
        asked: bytes | None = params
        for _ in range(0 if retry_change.needs_answer(self.change) else attempts):
            if asked is None or sent_hash(asked) == last:
                break
            earlier = self._changed(asked)
            asked = None if earlier is None else earlier.params
        else:
            asked = params  # no chain of changes leads to `last`: a person sent another request (`retry --set`)
        return None if asked is None else self.changed(asked)

    def _changed(self, params: bytes) -> ChangedRequest | None:
        fields = retry_change.changed_params(orjson.loads(params), self.change, self.answer, self.limit)
        return None if fields is None else ChangedRequest(orjson.dumps(fields), fields)


def change_of_known(known: KnownRow | None, row_hash: bytes, recipe: str, retry: Retry) -> AnyChange | None:
    """Return the change for a row that is rendered from the source; None if it is sent unchanged.

    It is sent unchanged if it is new, has changed, has a new recipe or no attempts left, or if `retry.change` names
    nothing for its outcome. known: the row in the database; None: it is new.
    """
    if known is None or known.outcome_hash != row_hash:
        return None
    attempts = known.attempts
    if known.outcome_recipe != recipe or attempts >= retry_change.most_attempts(retry, known.outcome):
        return None
    return retry_change.change_for(retry, known.outcome, known.error_type, attempts)


def change_of_spooled(row: WaitingRow, retry: Retry) -> AnyChange | None:
    """Return the change for a row whose request is in the spool; None if it has no answer yet, or no change."""
    if row.sent_hash != row.outcome_sent_hash:
        return None
    return retry_change.change_for(retry, row.outcome, row.error_type, row.attempts)


class RetryChanges:
    """Collects what is needed to change the requests of rows: their answers and the limits of models."""

    def __init__(self, driver: Driver, job: Job) -> None:
        self._driver, self._job = driver, job
        self._largest = packing.largest_params(job.limits.max_batch_bytes)

    def for_rows(self, keys: Sequence[str], changes: Iterable[AnyChange | None]) -> list[RequestChange | None]:
        """Return how each row's request is changed; None where `changes` has None. keys: at most those of one chunk."""
        listed = list(changes)
        if not any(listed):
            return [None] * len(listed)
        needed = [key for key, change in zip(keys, listed, strict=True) if retry_change.needs_answer(change)]
        answers = self._driver.answers(needed)
        return [
            None if change is None else RequestChange(change, answers.get(key), self._output_limit, self._largest)
            for key, change in zip(keys, listed, strict=True)
        ]

    def _output_limit(self, model: str) -> int | None:
        """Return the most output tokens of a model under the job's betas; None: not known."""
        info = self._driver.model(model)
        return None if info is None else capabilities.output_limit(info, self._job.request.betas)
