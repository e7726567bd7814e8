"""Find what one chunk of the source changes in the database, and render the requests to send. Edge: SQL, HTTP."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars as pl

from pipeline.driver.driver import Driver
from pipeline.errors import RowProblem
from pipeline.job import templates
from pipeline.money.budget import Bound
from pipeline.planning.job_source import JobSource
from pipeline.planning.judge import Judge, Judged, JudgedRow, Scope
from pipeline.planning.packer import sent_hash
from pipeline.planning.render import Renderer
from pipeline.planning.retry_changes import RequestChange, RetryChanges, change_of_known
from pipeline.planning.verdict import SENT, Verdict
from pipeline.request.build import Built
from pipeline.source.rows import Chunk
from pipeline.state.rows import Kept, KnownRow, NewRow
from pipeline.states import RowState
from pipeline.storage.folders import Folder


@dataclass
class Awaited:
    """The batches in flight that a run waits for, because rows of its source are in them.

    plan_again_after: the run plans again after these.
    """

    batches: set[int] = field(default_factory=set)  #: of other runs; the run waits until they are closed
    plan_again_after: set[int] = field(default_factory=set)  #: with rows that have changed or had another recipe

    def note(self, kind: Verdict, known: KnownRow, *, run_id: int, recipe: str) -> None:
        """Note the batch of a row in flight; ignore other rows. run_id, recipe: of the run that waits."""
        if kind is Verdict.CHANGED_IN_FLIGHT or (kind is Verdict.IN_FLIGHT and known.recipe != recipe):
            self.plan_again_after.add(known.batch)
        elif kind is Verdict.IN_FLIGHT and known.run_id != run_id:
            self.batches.add(known.batch)


class Rendered(NamedTuple):
    """The request of a row. bound: its worst-case cost; None: a price is not known."""

    sent_hash: bytes
    params: bytes
    bound: Bound | None


class Written(NamedTuple):
    """A row that is written to the database. request: None: the row cannot be sent."""

    row: NewRow
    request: Rendered | None


class InvalidRow(NamedTuple):
    """A row that cannot be sent. reason: why; keep: its kept values; attempts: how often it was sent before."""

    key: str
    keep: str | None
    reason: str
    attempts: int


@dataclass
class Moves:
    """All changes that one chunk makes in the database, in one transaction. keys: those of all rows of the chunk."""

    chunk: Chunk
    keys: pl.Series
    judged: Judged
    new: list[Written] = field(default_factory=list)
    again: list[Written] = field(default_factory=list)  #: rows that the database knows
    again_numbers: list[int] = field(default_factory=list)  #: the numbers of these rows
    invalid: list[InvalidRow] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)  #: rows that are not sent; see state.rows.keep_rows
    new_keeps: list[tuple[str, str | None]] = field(default_factory=list)  #: (key, new kept values)
    changed: list[tuple[int, bytes | None]] = field(default_factory=list)  #: see state.rows.mark_changed
    outdated: list[int] = field(default_factory=list)  #: rows of a retry whose spooled request is outdated

    def send(self, known: KnownRow | None, row: NewRow, request: Rendered | None) -> None:
        """Add a row to those that are written. known: the row in the database; None: it is new. See `Written`."""
        if known is None:
            self.new.append(Written(row, request))
        else:
            self.again.append(Written(row, request))
            self.again_numbers.append(known.id)

    def leave(self, kind: Verdict, key: str, keep: str | None, row_hash: bytes, known: KnownRow) -> None:
        """Note what changes in the database for a row that is not sent now: marks, kept values, its state."""
        on_its_way = kind in (Verdict.IN_FLIGHT, Verdict.CHANGED_IN_FLIGHT, Verdict.FOR_RETRY)
        wanted = row_hash if kind is Verdict.CHANGED_IN_FLIGHT else None
        if on_its_way and known.changed_hash != wanted:
            self.changed.append((known.id, wanted))
        if kind is Verdict.FOR_RETRY and known.row_hash != row_hash:  # the row has changed, and has changed back
            self.outdated.append(known.id)
        # the row had changed and has changed back, so its present answer is right again
        settled_again = not on_its_way and (known.state == RowState.PENDING or known.changed_hash is not None)
        if known.keep != keep or settled_again:
            self.kept.append(Kept(known.id, keep, known.outcome if settled_again else None))
        if known.keep != keep:  # also for a row in flight, whose answer may be stored at this moment
            self.new_keeps.append((key, keep))


class Mover:
    """Finds what each chunk of the source changes, for one run, and renders the requests to send."""

    def __init__(
        self,
        driver: Driver,
        run_id: int,
        scope: Scope,
        source: JobSource,
        judge: Judge,
        renderer: Renderer,
        awaited: Awaited,
    ) -> None:
        """awaited: the batches of rows in flight are added to it."""
        self._run_id, self._scope, self._source, self._judge = run_id, scope, source, judge
        self._renderer, self._awaited = renderer, awaited
        self._changes = RetryChanges(driver, scope.job)

    def moves(self, chunk: Chunk) -> Moves:
        """Judge the rows of a chunk, render those that are sent, and return all changes. Writes nothing."""
        scope, key_column = self._scope, self._source.keys(chunk)
        judged = self._judge.chunk(chunk, key_column)
        moves = Moves(chunk, key_column, judged)
        some = len(judged.places) < chunk.frame.height
        keys = (key_column.gather(list(judged.places)) if some else key_column).to_list()
        keeps = [judged.keeps[i] for i in judged.places] if some else judged.keeps
        values = self._source.request_values(chunk.frame[judged.places] if some else chunk.frame)
        again = self._changes.for_rows(
            keys,
            (
                change_of_known(row.known, row.row_hash, scope.recipe, scope.job.retry)
                if row.verdict is Verdict.AGAIN and scope.retry is None
                else None
                for row in judged.rows
            ),
        )
        for key, keep, row, with_change, of_row in zip(keys, keeps, judged.rows, again, values, strict=True):
            if row.verdict in SENT:
                self._send(moves, key, keep, row, of_row, with_change)
            elif row.known is not None:
                if scope.retry is None:  # in a retry the run that planned the row notes this
                    moves.leave(row.verdict, key, keep, row.row_hash, row.known)
                self._awaited.note(row.verdict, row.known, run_id=self._run_id, recipe=scope.recipe)
        return moves

    def _send(
        self,
        moves: Moves,
        key: str,
        keep: str | None,
        row: JudgedRow,
        values: Mapping[str, Any],
        again: RequestChange | None,
    ) -> None:
        """Add a row with its request to `moves`; as invalid if it cannot be sent.

        again: how its request is changed; None: it is not changed. A row whose change makes no difference is not sent.
        """
        known, recipe, attempts = row.known, self._scope.recipe, self._attempts(row)
        try:
            built = self._request(values, moves.chunk.folder, row, attempts, again)
        except (RowProblem, templates.TemplateProblem) as exc:
            attempts = 0 if self._scope.retry is not None else attempts  # the retry has sent nothing
            moves.invalid.append(InvalidRow(key, keep, str(exc), attempts))
            invalid = NewRow(
                key=key,
                run_id=self._run_id,
                state="invalid",
                row_hash=row.row_hash,
                recipe=recipe,
                keep=keep,
                sent_hash=None,
                attempts=attempts,
                outcome="invalid",
                outcome_hash=row.row_hash,
                outcome_recipe=recipe,
            )
            moves.send(known, invalid, None)
            return
        if built is None:
            assert known is not None
            moves.leave(Verdict.KEPT, key, keep, row.row_hash, known)
            return
        hashed = sent_hash(built.params)
        pending = NewRow(
            key=key,
            run_id=self._run_id,
            state="pending",
            row_hash=row.row_hash,
            recipe=recipe,
            keep=keep,
            sent_hash=hashed,
            attempts=attempts,
            outcome=None if known is None else known.outcome,
            outcome_hash=None if known is None else known.outcome_hash,
            outcome_recipe=None if known is None else known.outcome_recipe,
        )
        moves.send(known, pending, Rendered(hashed, built.params, self._renderer.bound(built)))

    def _attempts(self, row: JudgedRow) -> int:
        """Return how often a row was sent already.

        It is 0 when the row or the recipe has changed. When a person wants the row sent again, `state.moves.add_batch`
        begins to count from 0.
        """
        known = row.known
        if known is None:
            return 0
        same = known.outcome_hash == row.row_hash and known.outcome_recipe == self._scope.recipe
        return known.attempts if same or self._scope.retry is not None else 0

    def _request(
        self, values: Mapping[str, Any], folder: Folder, row: JudgedRow, attempts: int, again: RequestChange | None
    ) -> Built | None:
        """Return the row's request; None if its change makes no difference or makes it too large.

        Raises RowProblem if the row cannot be sent, and TemplateProblem if a template fails.
        """
        built = self._renderer.built(values, folder)
        if again is None:
            return built
        assert row.known is not None
        changed = again.changed_from_source(built.params, attempts, row.known.outcome_sent_hash)
        if changed is None:
            return None
        model, max_tokens = changed.fields["model"], changed.fields["max_tokens"]
        return built._replace(params=changed.params, model=model, max_tokens=max_tokens)
