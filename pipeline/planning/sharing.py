"""Share requests across the batches of one planning: find equal ones, and write the rows that share them. Edge: SQL.

A row joins a request of an earlier batch while that batch is not known to have ended. If a row of the run has succeeded
by an equal request, the row copies that answer. Which of the two it does is decided in the transaction that writes the
row, under a lock of the earlier batch. If it can do neither by then, it waits in the spool, as a row of a dropped batch
does: until that batch is collected, to copy the answer, or to be sent.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime

from pipeline.driver.driver import Driver
from pipeline.request.packing import MOST_SHARING, Packing
from pipeline.sink.copies import Copy, copies, with_answers
from pipeline.state import sharing
from pipeline.state.database import Connection
from pipeline.state.moves import claim_rows
from pipeline.state.new_rows import NewRows, Shared
from pipeline.state.sharing import Decision, Join, KnownJoin, Place
from pipeline.states import RowState

MOST_KNOWN = 50_000  # requests that are kept in memory, so that they are not looked up for each chunk: 20 MB


@dataclass
class Joining:
    """The rows that share requests of earlier batches and are committed with the present body.

    new: by index among the new rows of that commit; known: rows that the database knows.
    """

    new: dict[int, Join] = field(default_factory=dict)
    known: list[KnownJoin] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.new) + len(self.known)

    @property
    def all(self) -> list[Join]:
        """All of them."""
        return [*self.new.values(), *(row.join for row in self.known)]


@dataclass(slots=True)
class _Known:
    """A request of an earlier batch. rows: that share it, with those that join with the next commit; see Shareable."""

    join: Join
    rows: int
    joinable: bool

    @property
    def is_full(self) -> bool:
        return self.joinable and self.rows >= MOST_SHARING


class Sharing:
    """The requests that rows may share."""

    def __init__(self, driver: Driver, run_id: int) -> None:
        self._driver, self._run_id = driver, run_id
        self._suspects: AbstractSet[bytes] = frozenset()  # sent_hashes of the present chunk that other rows may have
        self._noted: AbstractSet[bytes] = frozenset()  # those to note for later rows
        self._found: dict[bytes, _Known] = {}  # by sent_hash
        self._placed: set[bytes] = set()  # suspects in the present body

    @property
    def is_idle(self) -> bool:
        """Whether no row of the present chunk can share a request of an earlier batch."""
        return not (self._suspects and self._found)

    def look_for(self, suspects: AbstractSet[bytes], *, notes: bool) -> None:
        """Look up the requests of the next chunk that earlier rows of the run have. notes: as for `Packer.look_for`.

        Those that were looked up before are taken as they were: the commit finds out whether their batch has ended.
        """
        self._suspects, self._noted = suspects, suspects if notes else frozenset()
        if len(self._found) > MOST_KNOWN:
            self._found = {}
        asked = [hashed for hashed in suspects if (known := self._found.get(hashed)) is None or known.is_full]
        if not asked:
            return
        driver = self._driver
        with driver.reading() as conn:
            found = sharing.shareable(conn, self._run_id, asked, driver.account_id)
        for hashed, (place, rows, joinable, _) in found.items():
            before = self._found.get(hashed)
            held = before.rows if before is not None and before.join.place == place else 0
            self._found[hashed] = _Known(Join(hashed, place), max(rows, held), joinable)

    def can_join(self, sent_hash: bytes, body: Packing | None) -> bool:
        """Return whether a row shares a request of an earlier batch. If not, its request goes into the present body."""
        known = self._found.get(sent_hash)
        return known is not None and not known.is_full and (body is None or sent_hash not in body.seen)

    def joins(self, hashes: Iterable[bytes], body: Packing | None) -> list[Join]:
        """Return how rows share requests of earlier batches, up to the first that does not. hashes: their sent_hashes.

        They are counted as rows that join with the next commit.
        """
        found = []
        for sent_hash in hashes:
            if not self.can_join(sent_hash, body):
                break
            known = self._found[sent_hash]
            known.rows += 1
            found.append(known.join)
        return found

    def note_placed(self, hashes: Iterable[bytes]) -> None:
        """Note requests that were added to the present body."""
        if self._noted:
            self._placed.update(sent_hash for sent_hash in hashes if sent_hash in self._noted)

    def forget(self) -> None:
        """Forget what was found, because the rows that were to be committed are discarded."""
        self._found, self._placed = {}, set()

    # -- in the transaction that commits the body ----------------------------------------------------------------------

    def decide(self, conn: Connection, joining: Joining) -> Decision:
        """Decide what becomes of rows that would share requests; see `state.sharing.decide`."""
        decided = sharing.decide(conn, self._run_id, joining.all, self._driver.account_id)
        there = with_answers(conn, self._driver.sink, decided.answered.values())  # a person may have removed some
        answered = {sent_hash: key for sent_hash, key in decided.answered.items() if key in there}
        return decided._replace(answered=answered)

    def write(self, conn: Connection, joining: Joining, decided: Decision, new: NewRows, now: datetime) -> None:
        """Write the rows that share requests, but for new ones, which are inserted with the batch: `new` has them."""
        sharing.note_joined(conn, self._run_id, (j for j in joining.all if decided.state(j) is RowState.IN_FLIGHT))
        copied = [
            Copy(decided.answered[join.sent_hash], new.keys[i], new.keeps[i], attempts=1)
            for i, join in joining.new.items()
            if decided.state(join) is RowState.SUCCEEDED
        ]
        copied += self._move_known(conn, joining.known, decided)
        if copied:
            sink = self._driver.sink_now(conn)
            sink.write(conn, copies(conn, sink, copied, run_id=self._run_id, now=now))

    def _move_known(self, conn: Connection, rows: Sequence[KnownJoin], decided: Decision) -> list[Copy]:
        """Move known rows that share requests. Return the answers to copy for those that have succeeded by that."""
        by_state: defaultdict[RowState, list[KnownJoin]] = defaultdict(list)
        for row in rows:
            by_state[decided.state(row.join)].append(row)
        by_batch: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for number, join in by_state[RowState.IN_FLIGHT]:
            by_batch[join.place.batch].append((number, join.place.n))
        for batch, places in by_batch.items():
            claim_rows(conn, places, self._run_id, batch)
        sharing.leave_in_body(conn, self._run_id, by_state[RowState.PENDING])
        found = sharing.copy_to_known(conn, self._run_id, by_state[RowState.SUCCEEDED])
        return [Copy(decided.answered[row.sent_hash], row.key, row.keep, row.attempts) for row in found]

    def note_shareable(self, conn: Connection, batch: int, body: Packing) -> None:
        """Note where the suspects in a body are, for rows that come later."""
        sharing.note_shareable(conn, self._run_id, batch, self._places_in(body))

    def _places_in(self, body: Packing) -> dict[bytes, tuple[int, int]]:
        return {hashed: (n := body.seen[hashed], body.sharing.get(n, 1)) for hashed in self._placed}

    # -- after it ------------------------------------------------------------------------------------------------------

    def note_committed(self, batch: int | None, body: Packing | None, joining: Joining, decided: Decision) -> None:
        """Let later rows share what was committed. batch, body: None: there was no body."""
        for join in joining.all:
            if decided.state(join) is not RowState.PENDING:
                continue
            known = self._found.get(join.sent_hash)
            if known is not None and join.sent_hash in decided.ended:
                known.joinable = False  # the next rows wait, too
            else:
                self._found.pop(join.sent_hash, None)  # looked up again with the next chunk
        if batch is not None and body is not None:
            for hashed, (n, rows) in self._places_in(body).items():
                self._found[hashed] = _Known(Join(hashed, Place(batch, n)), rows, joinable=True)
        self._placed = set()


def states_of(joins: Mapping[int, Join], decided: Decision) -> dict[int, Shared]:
    """Return what becomes of new rows that share requests, for `insert_new_rows`."""
    return {i: Shared(join.place.batch, decided.state(join)) for i, join in joins.items()}
