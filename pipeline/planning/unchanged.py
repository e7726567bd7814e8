"""Find the files of a source that need not be read, because all their rows are settled. Edge: SQL, files.

A file with the same bytes as in an earlier planning is not parsed. Instead, the segments that were stored for it then
are compared with its rows in the database now. A file that was read in pass one and has only settled rows is not read
again in pass two. If the file or the database changes between the passes, the next run notices it.

If all rows of all files have succeeded, that is marked. With a mark, rows are not compared, either; see state/settled.
A run whose rows had all succeeded before marks that when it is planned, and one that had to send rows when it ends.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import NamedTuple

import polars as pl

from pipeline.driver.driver import Driver
from pipeline.errors import Busy, DatabaseError, LostRace, Stopped
from pipeline.job.model import Job
from pipeline.planning.judge import Judged, is_settled
from pipeline.planning.known_rows import KnownRows
from pipeline.planning.quote import Quote
from pipeline.planning.verdict import Verdict, verdict
from pipeline.prefetch import map_ahead
from pipeline.source import duplicates, identity
from pipeline.source.duplicates import Distinct
from pipeline.source.fingerprint import fingerprint, is_recent, version_of
from pipeline.source.formats import FileInput
from pipeline.source.rows import Chunk, Input
from pipeline.state import segments, settled
from pipeline.state.rows import any_waiting
from pipeline.state.segments import OLDER, SETTLED, UNSETTLED, Notes, SegmentDigest, texts
from pipeline.state.tallies import run_counts
from pipeline.states import RowState
from pipeline.storage.objects import Object
from pipeline.storage.stamps import Stamp

READERS = 2  # threads that look at segments at the same time


class _SegmentVerdicts(NamedTuple):
    """The verdicts on a segment whose rows are all settled.

    succeeded: how many rows have succeeded with today's recipe. hashes: those of the keys; empty if not asked for.
    """

    counts: Counter[Verdict]
    succeeded: int
    hashes: pl.Series


class _Counts(NamedTuple):
    """The number of rows by verdict, all of them settled, and how many have succeeded with today's recipe."""

    verdicts: Counter[Verdict]
    succeeded: int


@dataclass
class _File:
    """What is known of one file in one pass.

    version: that of the file before it was read; None: it has none or is missing. source: its fingerprint before it was
    read; None: not computed yet, or the file cannot be read.
    """

    version: Stamp | Object | None
    source: bytes | None = None
    notes: Notes | None = field(default_factory=Notes)  #: segments to store for the next run; None: store none
    settled: bool = True  #: all rows that were looked at so far are settled


#: What pass one has found out about each file, by path. It can be pickled.
Findings = Mapping[str, _File]


class _Mark(NamedTuple):
    """A source whose rows have all succeeded, by pass one.

    token: of the newest lease on the job's planning, before pass one looked at rows. Each lease adds one.
    """

    source: bytes
    rows: int
    token: int


class Covered(NamedTuple):
    """What pass two has read of a source: each row had succeeded with today's recipe, or is one of the run now.

    fingerprints: by path, of the files that have not changed meanwhile. of_run: how many of the rows are of the run.
    """

    fingerprints: Mapping[str, bytes]
    rows: int
    of_run: int

    def with_chunk(self, judged: Judged, of_run: int) -> "Covered | None":
        """Add a chunk, of which so many rows are of the run now; None if a row of it is neither."""
        if of_run < len(judged.rows) or judged.settled.keys() - {Verdict.KEPT}:
            return None
        return self._replace(rows=self.rows + of_run + sum(judged.settled.values()), of_run=self.of_run + of_run)


class _Unnumbered(NamedTuple):
    """A chunk that pass two has judged. file: None if its file is not noted; new: the number of its new rows."""

    file: _File | None
    keys: pl.Series
    judged: Judged
    new: int


class Unchanged:
    """Keeps track of which inputs of a source are unchanged, for one planning of a job."""

    def __init__(
        self, job: Job, inputs: Sequence[Input], columns: Sequence[str], *, recipe: str, refresh: bool, whole: bool
    ) -> None:
        """columns: those that row_hash covers. whole: whether the planning covers all rows and no attachments."""
        self._job, self._inputs, self._columns = job, inputs, columns
        self._recipe, self._refresh, self.whole = recipe, refresh, whole
        self._by_path = {one.path: one for one in inputs}
        self._quoted: dict[str, _File] = {}  # of pass one, by path
        self._planned: dict[str, _File] = {}  # of pass two, by path
        self._mark: _Mark | None = None  # to store at the end of the planning; None: store none
        self.covered: Covered | None = None  #: by pass two; None: it has read another row
        self._token = 0  # of the lease under which pass two was done, less the plannings of this driver until then
        self._unnumbered: deque[_Unnumbered] = deque()  # chunks whose new rows are not in the database yet
        self._numbers: list[int] = []  # of new rows of the first of these chunks

    @property
    def settled(self) -> bool:
        """Return whether pass one found that all rows of all inputs are settled."""
        return len(self._quoted) == len(self._inputs) and all(file.settled for file in self._quoted.values())

    @property
    def findings(self) -> Findings:
        """What pass one has found out, when it has ended."""
        for found in self._quoted.values():
            if found.notes is not None:
                found.notes.finish()
        return self._quoted

    def take_findings(self, findings: Findings) -> None:
        """Take what pass one has found out in another process."""
        self._quoted = dict(findings)

    # -- pass one ------------------------------------------------------------------------------------------------------

    def select_to_quote(self, quote: Quote, known_rows: KnownRows, seen: Distinct) -> list[Input] | None:
        """Return the inputs that pass one has to read; None: all of them; []: none.

        The rows of the other inputs are counted in `quote`, and the hashes of their keys are added to `seen`, unless
        it is certain that no key comes twice.
        """
        self._quoted, self._mark = {}, None
        if not self.whole or known_rows.is_empty:
            return None
        source = self._source_before_reading()
        token = known_rows.planning_token()  # before a row is looked at
        marked = None if source is None or self._refresh else known_rows.settled(source)
        if source is not None and marked is not None:
            self._mark = _Mark(source, marked, token)
            self._count_settled(self._inputs, {Verdict.KEPT: marked}, quote)
            return []
        noted = [self._stored_segments(one, known_rows) for one in self._inputs]
        if self._are_keys_unique(noted):
            every = self._count_if_settled([*chain.from_iterable(noted)], known_rows, seen, hashed=False)
            if every is not None:
                if source is not None and every.succeeded == every.verdicts.total():  # else a sweep may change a row
                    self._mark = _Mark(source, every.succeeded, token)
                self._count_settled(self._inputs, every.verdicts, quote)
                return []
        left = []
        for one, notes in zip(self._inputs, noted, strict=True):
            counts = self._count_if_settled(notes, known_rows, seen, hashed=True)
            if counts is None:
                left.append(one)
            else:
                self._count_settled([one], counts.verdicts, quote)
        return left

    def _source_before_reading(self) -> bytes | None:
        """Note the fingerprint of each input. Return a digest of them all and the recipe; None if one has none."""
        for one in self._inputs:
            found = self._quoted[one.path] = _File(version_of(one))
            if found.version is not None:
                found.source = fingerprint(one, self._job.source, self._columns)
        return self._digest({path: found.source for path, found in self._quoted.items() if found.source is not None})

    def _digest(self, fingerprints: Mapping[str, bytes]) -> bytes | None:
        """Return a digest of the fingerprints of all inputs, by path, and of the recipe; None if one is missing."""
        paths = [one.path for one in self._inputs]
        if not paths or not fingerprints.keys() >= set(paths):
            return None
        return hashlib.sha256(b"".join(fingerprints[path] for path in paths) + self._recipe.encode()).digest()

    def _stored_segments(self, one: Input, known_rows: KnownRows) -> list[SegmentDigest]:
        """Return the segments that were stored for an input; [] if it has changed since, or was never planned."""
        source = self._quoted[one.path].source
        return [] if source is None else known_rows.notes(source)

    def _are_keys_unique(self, noted: Sequence[Sequence[SegmentDigest]]) -> bool:
        """Return whether the stored segments prove that no key comes twice, without a comparison of keys.

        They prove it if there are segments of every input: each row is in one segment, and the database has each key
        once. That is not enough for inputs where 17 and "17" can both be keys.
        """
        by_value = any(one.by_value for one in self._inputs)
        return all(noted) and not by_value and len(self._by_path) == len(self._inputs)

    def _count_if_settled(
        self, notes: Sequence[SegmentDigest], known_rows: KnownRows, seen: Distinct, *, hashed: bool
    ) -> _Counts | None:
        """Return the number of rows by verdict if all rows of these segments are settled; None otherwise.

        None, too, if there are no segments. hashed: whether hashes of the keys are added to `seen`.
        """
        counts: Counter[Verdict] = Counter()
        succeeded = 0
        mark = seen.mark()
        looked = partial(self._segment_verdicts, known_rows=known_rows, hashed=hashed)
        with closing(map_ahead(looked, notes, name="segment", threads=READERS, ahead=READERS)) as all_found:
            for found in all_found:
                if found is None:
                    seen.restore(mark)
                    return None
                counts.update(found.counts)
                succeeded += found.succeeded
                seen.add(found.hashes)
        return _Counts(counts, succeeded) if notes else None

    def _count_settled(self, inputs: Sequence[Input], counts: Mapping[Verdict, int], quote: Quote) -> None:
        """Count inputs whose rows are all settled in the quote. Their segments are stored already."""
        quote.rows.update(counts)
        for one in inputs:
            self._quoted[one.path].notes = None

    def _segment_verdicts(self, note: SegmentDigest, known_rows: KnownRows, *, hashed: bool) -> _SegmentVerdicts | None:
        """Return the verdicts on a segment; None if a row has changed since it was stored, or is not settled."""
        found = known_rows.noted(note, self._recipe)
        if found.rows != note.rows or found.digest != note.digest:
            return None
        counts = Counter({Verdict.KEPT: found.states.count(SETTLED), Verdict.KEPT_OLDER: found.states.count(OLDER)})
        if self._refresh and counts[Verdict.KEPT_OLDER]:
            return None
        unsettled = UNSETTLED in found.states
        keys = texts(found.keys) if hashed or unsettled else []
        if unsettled:
            known = known_rows([key for key, state in zip(keys, found.states, strict=True) if state == UNSETTLED[0]])
            for row in known.values():
                kind = verdict(row, row.row_hash, self._recipe, self._job, refresh=self._refresh)
                if not is_settled(kind, row, row.keep):
                    return None
                counts[kind] += 1
        hashes = duplicates.hashes(identity.key_texts(pl.Series(keys if hashed else [], dtype=pl.String)))
        return _SegmentVerdicts(+counts, found.states.count(SETTLED), hashes)

    def note_quoted(self, chunk: Chunk, keys: pl.Series, judged: Judged) -> None:
        """Note a chunk that pass one has read."""
        found = self._quoted.get(chunk.input.path)
        if found is None or not found.settled:
            return
        if judged.is_settled():
            _note(found, keys, judged, [])
        else:
            found.settled = False

    # -- pass two ------------------------------------------------------------------------------------------------------

    def select_to_plan(self, driver: Driver, run_id: int, inputs: Sequence[Input] | None) -> list[Input] | None:
        """Return the inputs that pass two has to read; None: all; []: none. inputs: choose among these; None: all.

        The findings of pass one are used for one pass two only, and only while no row of the job is pending: if a row
        became pending since pass one and its file were skipped, the row would count as vanished from the source.
        """
        self._unnumbered, self._numbers = deque(), []  # an earlier pass two may have been broken off
        if not self.whole:
            return None if inputs is None else list(inputs)
        self.covered = Covered({}, 0, 0)
        quoted, self._quoted = self._quoted, {}
        if quoted:
            with driver.reading() as conn:
                waits = any_waiting(conn, driver.job_id)
            quoted = {path: found for path, found in quoted.items() if found.settled and not waits}
            self._put_notes(driver, run_id, {path: found for path, found in quoted.items() if found.notes is not None})
        left = [one for one in (self._inputs if inputs is None else inputs) if one.path not in quoted]
        if left or inputs is not None:
            self._mark = None
        self._planned = {one.path: self._file_before_reading(one) for one in left}
        return left

    def _file_before_reading(self, one: Input) -> _File:
        """Return the record of a file that is about to be read."""
        version = version_of(one)
        # a file that was written just now could be written again and keep the same time, so its bytes are needed, too
        recent = version is not None and is_recent(version)
        return _File(version, fingerprint(one, self._job.source, self._columns) if recent else None)

    def note_planned(self, chunk: Chunk, keys: pl.Series, judged: Judged, *, new: int, replanned: int) -> None:
        """Note a chunk that pass two has judged.

        new: how many new rows it has, whose numbers `add_numbers` gets. replanned: how many of its known rows are of
        the run now.
        """
        if self.covered is not None:
            self.covered = self.covered.with_chunk(judged, new + replanned)
        self._unnumbered.append(_Unnumbered(self._planned.get(chunk.input.path), keys, judged, new))
        self.add_numbers(())

    def add_numbers(self, numbers: Sequence[int]) -> None:
        """Take the numbers that the next new rows got, in the order of the chunks."""
        self._numbers += numbers
        while self._unnumbered and self._unnumbered[0].new <= len(self._numbers):
            found, keys, judged, new = self._unnumbered.popleft()
            given, self._numbers = self._numbers[:new], self._numbers[new:]
            if found is not None:
                _note(found, keys, judged, given)

    def finish(self, driver: Driver, run_id: int) -> None:
        """Store the segments of the files that pass two has read to their end."""
        assert not self._unnumbered, "all new rows are in the database when a planning ends"
        planned, self._planned = self._planned, {}
        fingerprints = self._put_notes(driver, run_id, planned)
        if self.covered is not None:
            self.covered = self.covered._replace(fingerprints=fingerprints)

    def take_covered(self, parts: Iterable[Covered | None]) -> None:
        """Take what other processes have read in pass two, each of which had its part of the inputs.

        A file that has changed since pass one is left out: nobody has looked whether it has a key twice.
        """
        self.covered = None
        found: dict[str, bytes] = {}
        rows = of_run = 0
        for part in parts:
            if part is None:
                return
            found |= {path: digest for path, digest in part.fingerprints.items() if self._is_as_found(path, digest)}
            rows, of_run = rows + part.rows, of_run + part.of_run
        self.covered = Covered(found, rows, of_run)

    def _is_as_found(self, path: str, digest: bytes) -> bool:
        """Return whether a file that others have read is as it was found before pass one. digest: its fingerprint."""
        one = self._by_path[path]
        assert isinstance(one, FileInput)
        if isinstance(one.file.found, Object):
            return fingerprint(one, self._job.source, self._columns) == digest
        return version_of(one) == one.file.found

    def mark_settled(self, driver: Driver, run_id: int) -> None:
        """Store the mark that the whole source is settled, if it is and no other planning has begun since pass one.

        Call it when the run is marked as planned, under the same lease.
        """
        token = driver.planning_lease.token
        self._token = token - driver.plannings
        mark, self._mark = self._mark, None
        if mark is not None and token == mark.token + 1:
            with driver.planning_transaction(run_id) as conn:
                settled.mark_settled(conn, driver.job_id, mark.source, mark.rows)

    def mark_answered(self, driver: Driver, run_id: int) -> None:
        """Store the same mark if all rows of the run have succeeded by now, and no other driver has planned since.

        Call it when the run has ended. If another driver plans now, or has done so since pass two, no mark is stored,
        and the next run compares the rows.
        """
        covered, self.covered = self.covered, None
        source = None if covered is None else self._digest(covered.fingerprints)
        if covered is None or source is None:
            return
        with suppress(Busy, LostRace, Stopped, DatabaseError):  # the run has ended; the mark only saves time
            with driver.reading() as conn:
                counts = run_counts(conn, run_id)
            if counts != ({RowState.SUCCEEDED: covered.of_run} if covered.of_run else {}):
                return
            with driver.planning():
                # only plannings change rows that have succeeded, and this driver has only sent rows again since
                if driver.planning_lease.token - driver.plannings == self._token:
                    with driver.planning_transaction() as conn:
                        settled.mark_settled(conn, driver.job_id, source, covered.rows)

    def _put_notes(self, driver: Driver, run_id: int, files: dict[str, _File]) -> dict[str, bytes]:
        """Store the segments of files that have not changed since they were read. Return their fingerprints by path."""
        fingerprints = {}
        for path, found in files.items():
            one = self._by_path[path]
            if found.version is None:
                continue
            source = found.source
            if source is None or is_recent(found.version):
                source = fingerprint(one, self._job.source, self._columns)
            # if it was altered, we cannot tell whether we read the old or the new bytes
            unaltered = source == (found.source or source) and version_of(one) == found.version
            if source is None or not unaltered:
                continue
            fingerprints[path] = source
            notes = None if found.notes is None else found.notes.finish()
            if notes:
                with driver.planning_transaction(run_id) as conn:
                    segments.put_notes(conn, driver.job_id, source, notes)
        return fingerprints


def _note(found: _File, keys: pl.Series, judged: Judged, new: Sequence[int]) -> None:
    if found.notes is None:
        return
    numbers = judged.numbers(new)
    if numbers:
        found.notes.add(numbers, keys.to_list(), judged.hashes, judged.keeps)
    else:
        found.notes = None  # a row's number is not known
