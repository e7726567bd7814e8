"""The parts that a plan writes its rows in: those of one chunk, by what becomes of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
import polars as pl
from sqlalchemy import Row

from pipeline.answer import retry_change
from pipeline.answer.retry_change import Answer, AnyChange
from pipeline.money.budget import Bound
from pipeline.planning.packer import sent_hash
from pipeline.planning.unchanged import Judged
from pipeline.planning.verdict import Verdict
from pipeline.source.rows import Chunk
from pipeline.states import RowState


class Again(NamedTuple):
    """How a row is asked another time: what changes, its answer, and the limit that a model's answer has."""

    change: AnyChange
    answer: Answer | None
    limit: Callable[[str], int | None]

    def asked(self, params: bytes, attempts: int, last: bytes | None) -> bytes | None:
        """The request with its change; None when that makes no difference.

        params: as the source gives it; attempts: how often it was asked; last: the sent_hash of what was answered last.
        """
        asked: bytes | None = params
        for _ in range(0 if retry_change.needs_answer(self.change) else attempts):
            if asked is None or sent_hash(asked) == last:
                break
            asked = self._changed(asked)
        else:
            asked = params  # a person has asked otherwise meanwhile
        return None if asked is None else self._changed(asked)

    def _changed(self, params: bytes) -> bytes | None:
        changed = retry_change.changed_params(orjson.loads(params), self.change, self.answer, self.limit)
        return None if changed is None else orjson.dumps(changed)


def priced(params: bytes) -> dict[str, Any]:
    """Of a changed request, what its price depends on."""
    parsed = orjson.loads(params)
    return {"model": parsed["model"], "max_tokens": parsed["max_tokens"]}


@dataclass
class Moves:
    """What one chunk of the source changes in the database, in one transaction. keys: of all."""

    chunk: Chunk
    keys: pl.Series
    judged: Judged
    new: list[tuple[Any, ...]] = field(default_factory=list)  #: store.NEW_ROW
    #: hash, params and what they may cost; None: invalid
    new_params: list[tuple[bytes, bytes, Bound | None] | None] = field(default_factory=list)
    again: list[tuple[Any, ...]] = field(default_factory=list)  #: store.NEW_ROW and the row's number
    again_params: list[tuple[bytes, bytes, Bound | None] | None] = field(default_factory=list)
    invalid: list[tuple[str, str | None, str, int]] = field(default_factory=list)  #: key, kept, reason, attempts
    kept: list[tuple[int, str | None, str | None]] = field(default_factory=list)  #: see store.keep_rows
    kept_anew: list[tuple[str, str | None]] = field(default_factory=list)  #: key and kept values of answered rows
    changed: list[tuple[int, bytes | None]] = field(default_factory=list)  #: see store.mark_changed
    outdated: list[int] = field(default_factory=list)  #: rows of a retry whose request is of another content

    def leave(self, kind: Verdict, key: str, keep: str | None, row_hash: bytes, known: Row[Any]) -> None:
        """Note a row that is not sent now."""
        on_its_way = kind in (Verdict.IN_FLIGHT, Verdict.CHANGED_IN_FLIGHT, Verdict.FOR_RETRY)
        wanted = row_hash if kind is Verdict.CHANGED_IN_FLIGHT else None
        if on_its_way and known.changed_hash != wanted:
            self.changed.append((known.id, wanted))
        if kind is Verdict.FOR_RETRY and known.row_hash != row_hash:  # the row has changed, and has changed back
            self.outdated.append(known.id)
        # a row that had changed and has changed back: the answer it has is right again
        settled_again = not on_its_way and (known.state == RowState.PENDING or known.changed_hash is not None)
        if known.keep != keep or settled_again:
            self.kept.append((known.id, keep, known.outcome if settled_again else None))
        if known.keep != keep:  # also of a row in flight, whose answer may just be coming
            self.kept_anew.append((key, keep))
