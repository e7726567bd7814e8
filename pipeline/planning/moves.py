"""Find what one chunk of the source changes in the database, and render the requests to send. Edge: SQL, HTTP."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import polars as pl

from pipeline.answer.continuing import goes_on
from pipeline.driver.driver import Driver
from pipeline.errors import RowProblem
from pipeline.job import templates
from pipeline.planning.invalid import InvalidRow
from pipeline.planning.job_source import JobSource
from pipeline.planning.judge import Judge, Judged, JudgedRow, Scope
from pipeline.planning.packer import NewRequests, Sendable, sent_hash
from pipeline.planning.render import Renderer
from pipeline.planning.retry_changes import RequestChange, RetryChanges, change_of_known
from pipeline.planning.suspects import Suspects
from pipeline.planning.verdict import SENT, Verdict
from pipeline.request.build import Built
from pipeline.source.rows import Chunk
from pipeline.state.rows import Kept, KnownRow, Replanned
from pipeline.states import RowState
from pipeline.storage.folders import Folder


@dataclass
class Awaited:
    """The batches in flight that a run waits for, because rows of its source are in them.

    plan_again_after: the run plans again after these.
    """

    batches: set[int] = field(default_factory=set)  #: of other runs; the run waits until they are closed
    #: with rows that have changed or had another recipe, or that the run takes over
    plan_again_after: set[int] = field(default_factory=set)

    def note(self, kind: Verdict, known: KnownRow, *, run_id: int, recipe: str, takes_over: bool) -> None:
        """Note the batch of a row in flight; ignore other rows. run_id, recipe: of the run that waits.

        takes_over: whether the run goes on with rows of other runs whose answers are not their end.
        """
        other = known.recipe != recipe or (takes_over and known.run_id != run_id)
        if kind is Verdict.CHANGED_IN_FLIGHT or (kind is Verdict.IN_FLIGHT and other):
            self.plan_again_after.add(known.batch)
        elif kind is Verdict.IN_FLIGHT and known.run_id != run_id:
            self.batches.add(known.batch)


_ON_ITS_WAY = (Verdict.IN_FLIGHT, Verdict.CHANGED_IN_FLIGHT, Verdict.IN_ROUNDS, Verdict.FOR_RETRY)


@dataclass
class Moves:
    """What one chunk of the source changes in the database. keys: those of all rows of the chunk."""

    chunk: Chunk
    keys: pl.Series
    judged: Judged
    new: NewRequests = field(default_factory=NewRequests)
    replanned: list[Replanned] = field(default_factory=list)  #: known rows that are sent again, or become invalid
    again: list[Sendable] = field(default_factory=list)  #: the requests of those that are sent again
    invalid: list[InvalidRow] = field(default_factory=list)  #: those that become invalid
    kept: list[Kept] = field(default_factory=list)  #: rows that are not sent; see state.rows.keep_rows
    new_keeps: list[tuple[str, str | None]] = field(default_factory=list)  #: (key, new kept values)
    changed: list[tuple[int, bytes | None]] = field(default_factory=list)  #: see state.rows.mark_changed
    in_rounds: list[KnownRow] = field(default_factory=list)  #: rows that go on in a later round
    lost_rounds: list[KnownRow] = field(default_factory=list)  #: lost rows of a retry, whose last round is sent again
    outdated: list[int] = field(default_factory=list)  #: rows of a retry whose spooled request is outdated
    suspects: set[bytes] = field(default_factory=set)  #: sent_hashes of requests that other rows may have, too

    @property
    def changes_known_rows(self) -> bool:
        """Whether anything changes in rows that the database knows."""
        changes = (self.replanned, self.kept, self.new_keeps, self.changed, self.outdated)
        return any((*changes, self.in_rounds, self.lost_rounds))

    def leave(self, kind: Verdict, key: str, keep: str | None, row_hash: bytes, known: KnownRow) -> None:
        """Note what changes in the database for a row that is not sent now: marks, kept values, its state."""
        if kind is Verdict.IN_ROUNDS:
            self.in_rounds.append(known)
        on_its_way = kind in _ON_ITS_WAY
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
        suspects: Suspects,
    ) -> None:
        """awaited: the batches of rows in flight are added to it. suspects: rows that may share a request."""
        self._run_id, self._scope, self._source, self._judge = run_id, scope, source, judge
        self._renderer, self._awaited, self._suspects = renderer, awaited, suspects
        self._changes = RetryChanges(driver, scope.job)
        self._takes_over = scope.retry is None and goes_on(scope.job)

    def moves(self, chunk: Chunk) -> Moves:
        """Judge the rows of a chunk, render those that are sent, and return all changes. Writes nothing."""
        scope, key_column = self._scope, self._source.keys(chunk)
        judged = self._judge.chunk(chunk, key_column)
        moves = Moves(chunk, key_column, judged)
        marks = self._marks(chunk)
        if judged.all_new:
            self._add_all(moves)
            moves.suspects.update(compress(moves.new.sent_hashes, marks))
            return moves
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
        rows = zip(judged.places, keys, keeps, judged.rows, again, values, strict=True)
        for place, key, keep, row, with_change, of_row in rows:
            if self._repeats_round(row):
                assert row.known is not None
                moves.lost_rounds.append(row.known)
            elif row.verdict in SENT:
                hashed = self._send(moves, key, keep, row, of_row, with_change)
                if marks and marks[place] and hashed is not None:
                    moves.suspects.add(hashed)
            elif row.known is not None:
                if scope.retry is None:  # in a retry the run that planned the row notes this
                    moves.leave(row.verdict, key, keep, row.row_hash, row.known)
                self._awaited.note(
                    row.verdict, row.known, run_id=self._run_id, recipe=scope.recipe, takes_over=self._takes_over
                )
        return moves

    def _repeats_round(self, row: JudgedRow) -> bool:
        """Return whether a retry sends the round again that was lost: its request is made from the turns before it."""
        retry, known = self._scope.retry, row.known
        if retry is None or known is None or row.verdict is not Verdict.AGAIN or retry.changes:
            return False
        same = known.row_hash == row.row_hash and known.recipe == self._scope.recipe
        return known.state == RowState.LOST and known.round > 1 and same

    def _marks(self, chunk: Chunk) -> list[bool]:
        """Return for each row of a chunk whether it may share a request; empty if no row may."""
        hashes = self._source.request_hashes(chunk.frame) if self._suspects else None
        return [] if hashes is None else self._suspects.marks(hashes)

    def _add_all(self, moves: Moves) -> None:
        """Add all rows of a chunk of new rows to `moves`, in bulk where their requests need no Jinja."""
        frame, judged = moves.chunk.frame, moves.judged
        params, bound = self._renderer.plain(frame), self._renderer.plain_bound
        others = [i for i, each in enumerate(params) if not each]
        if not others:
            moves.new.add_all(moves.keys.to_list(), judged.keeps, judged.hashes, params, bound)
            return
        rows = zip(moves.keys.to_list(), judged.keeps, judged.hashes, strict=True)
        values = iter(self._source.request_values(frame if len(others) == frame.height else frame[others]))
        for (key, keep, row_hash), each in zip(rows, params, strict=True):
            if each:
                moves.new.add(key, keep, row_hash, each, bound)
            else:
                self._send(moves, key, keep, JudgedRow(Verdict.NEW, row_hash, None), next(values), None)

    def _send(
        self,
        moves: Moves,
        key: str,
        keep: str | None,
        row: JudgedRow,
        values: Mapping[str, Any],
        again: RequestChange | None,
    ) -> bytes | None:
        """Add a row with its request to `moves`, and return its sent_hash; None: it cannot be sent, and is invalid.

        again: how its request is changed; None: it is not changed. A row whose change makes no difference is not sent
        (None).
        """
        known, attempts = row.known, self._attempts(row)
        try:
            built = self._request(values, moves.chunk.folder, row, attempts, again)
        except (RowProblem, templates.TemplateProblem) as exc:
            if known is None:
                moves.new.add_invalid(key, keep, row.row_hash, str(exc))
            else:
                self._mark_invalid(moves, known, keep, row.row_hash, str(exc), attempts)
            return None
        if known is None:
            assert built is not None
            moves.new.add(key, keep, row.row_hash, built.params, self._renderer.bound(built))
            return moves.new.sent_hashes[-1]
        if built is None:
            moves.leave(Verdict.KEPT, key, keep, row.row_hash, known)
            return None
        self._send_again(moves, known, keep, row.row_hash, built, attempts)
        return moves.again[-1].sent_hash

    def _mark_invalid(
        self, moves: Moves, known: KnownRow, keep: str | None, row_hash: bytes, reason: str, attempts: int
    ) -> None:
        """Add a known row that cannot be sent any more."""
        recipe = self._scope.recipe
        attempts = 0 if self._scope.retry is not None else attempts  # the retry has sent nothing
        moves.invalid.append(InvalidRow(known.key, keep, reason, attempts))
        moves.replanned.append(
            Replanned(
                id=known.id,
                run_id=self._run_id,
                state="invalid",
                row_hash=row_hash,
                recipe=recipe,
                keep=keep,
                sent_hash=None,
                attempts=attempts,
                outcome="invalid",
                outcome_hash=row_hash,
                outcome_recipe=recipe,
            )
        )

    def _send_again(
        self, moves: Moves, known: KnownRow, keep: str | None, row_hash: bytes, built: Built, attempts: int
    ) -> None:
        """Add a known row with its request."""
        hashed = sent_hash(built.params)
        moves.replanned.append(
            Replanned(
                id=known.id,
                run_id=self._run_id,
                state="pending",
                row_hash=row_hash,
                recipe=self._scope.recipe,
                keep=keep,
                sent_hash=hashed,
                attempts=attempts,
                outcome=known.outcome,
                outcome_hash=known.outcome_hash,
                outcome_recipe=known.outcome_recipe,
            )
        )
        moves.again.append(Sendable(known.id, hashed, built.params, self._renderer.bound(built)))

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
