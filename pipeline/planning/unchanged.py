"""Which files of the source need not be read, because nothing is to be done with any of their rows. Edge: SQL, files.

A file whose bytes are those of an earlier planning is not parsed: what was noted of its rows then is held against the
rows of today. One that had to be read in pass one, and all of whose rows have their answers, is not read again in pass
two. What changes between the passes, in the file or in the database, is for the next run to find.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import NamedTuple

import polars as pl

from pipeline.driver.driver import Driver
from pipeline.job.model import Job
from pipeline.planning.judge import Judged, is_settled
from pipeline.planning.known_rows import KnownRows
from pipeline.planning.quote import Quote
from pipeline.planning.verdict import Verdict, verdict
from pipeline.prefetch import map_ahead
from pipeline.source import duplicates, identity
from pipeline.source.duplicates import Distinct
from pipeline.source.files import Stamp
from pipeline.source.fingerprint import READERS, fingerprint, is_recent, version_of
from pipeline.source.rows import Chunk, Input
from pipeline.state import segments
from pipeline.state.rows import any_waiting
from pipeline.state.segments import OLDER, SETTLED, UNSETTLED, Notes, SegmentDigest, texts
from pipeline.storage.objects import Object


class _Looked(NamedTuple):
    """The rows of a stretch with which nothing is to be done. hashes: of their keys."""

    counts: Counter[Verdict]
    hashes: pl.Series


@dataclass
class _File:
    """What is found out of one file. version: as it was before it was looked at.

    source: see stretches.source_of, as it was before, too; None: not looked for yet, or it cannot be read.
    """

    version: Stamp | Object | None
    source: bytes | None = None
    notes: Notes | None = field(default_factory=Notes)  #: for the next run; None: none can be taken
    settled: bool = True  #: nothing is to be done with any of its rows, as far as was looked


class Unchanged:
    """What is found out of the inputs of a source, for one planning of a job."""

    def __init__(
        self, job: Job, inputs: Sequence[Input], columns: Sequence[str], *, recipe: str, refresh: bool, whole: bool
    ) -> None:
        """columns: of whose values row_hashes are made. whole: whether the planning is of all that they say."""
        self._job, self._inputs, self._columns = job, inputs, columns
        self._recipe, self._refresh, self._whole = recipe, refresh, whole
        self._by_path = {one.path: one for one in inputs}
        self._quoted: dict[str, _File] = {}  # by pass one; by path
        self._planned: dict[str, _File] = {}  # by pass two

    @property
    def settled(self) -> bool:
        """Whether pass one found nothing to be done at all."""
        return len(self._quoted) == len(self._inputs) and all(file.settled for file in self._quoted.values())

    # -- pass one ------------------------------------------------------------------------------------------------------

    def unread(self, quote: Quote, known_rows: KnownRows, seen: Distinct) -> list[Input] | None:
        """What pass one has to read, None for all. The rows of the others go to `quote` and `seen`."""
        self._quoted = {}
        if not self._whole or known_rows.is_empty:
            return None
        noted = [self._noted(one, known_rows) for one in self._inputs]
        if self._keys_differ(noted):
            every = self._as_noted([*chain.from_iterable(noted)], known_rows, seen, hashed=False)
            if every is not None:
                self._take(self._inputs, every, quote)
                return []
        left = []
        for one, notes in zip(self._inputs, noted, strict=True):
            counts = self._as_noted(notes, known_rows, seen, hashed=True)
            if counts is None:
                left.append(one)
            else:
                self._take([one], counts, quote)
        return left

    def _noted(self, one: Input, known_rows: KnownRows) -> list[SegmentDigest]:
        """What was noted of the input as it is now; nothing if it is not as it was."""
        found = self._quoted[one.path] = _File(version_of(one))
        if found.version is not None:
            found.source = fingerprint(one, self._job.source, self._columns)
        return [] if found.source is None else known_rows.notes(found.source)

    def _keys_differ(self, noted: Sequence[Sequence[SegmentDigest]]) -> bool:
        """Whether no key comes twice, if each input is as it was noted: no row is in two notes.

        The database has each key once. That is not enough where 17 and "17" may stand beside each other.
        """
        by_value = any(one.by_value for one in self._inputs)
        return all(noted) and not by_value and len(self._by_path) == len(self._inputs)

    def _as_noted(
        self, notes: Sequence[SegmentDigest], known_rows: KnownRows, seen: Distinct, *, hashed: bool
    ) -> Counter[Verdict] | None:
        """Verdicts of the rows when nothing is to be done with any of them; None otherwise, and without notes.

        hashed: whether their keys go to `seen`.
        """
        counts: Counter[Verdict] = Counter()
        mark = seen.mark()
        looked = partial(self._stretch, known_rows=known_rows, hashed=hashed)
        with closing(map_ahead(looked, notes, name="segment", threads=READERS, ahead=READERS)) as all_found:
            for found in all_found:
                if found is None:
                    seen.restore(mark)
                    return None
                counts.update(found.counts)
                seen.add(found.hashes)
        return counts if notes else None

    def _take(self, inputs: Sequence[Input], counts: Mapping[Verdict, int], quote: Quote) -> None:
        """Nothing is to be done with these."""
        quote.rows.update(counts)
        for one in inputs:
            self._quoted[one.path].notes = None

    def _stretch(self, note: SegmentDigest, known_rows: KnownRows, *, hashed: bool) -> _Looked | None:
        """Verdicts of the rows of a stretch and, if wanted, hashes of their keys; None when one is not as noted."""
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
        return _Looked(
            +counts, duplicates.hashes(identity.key_texts(pl.Series(keys if hashed else [], dtype=pl.String)))
        )

    def quoted(self, chunk: Chunk, keys: pl.Series, judged: Judged) -> None:
        """A chunk that pass one had to read."""
        found = self._quoted.get(chunk.input.path)
        if found is None or not found.settled:
            return
        if judged.is_settled():
            _note(found, keys, judged, [])
        else:
            found.settled = False

    # -- pass two ------------------------------------------------------------------------------------------------------

    def left(self, driver: Driver, run_id: int, inputs: Sequence[Input] | None) -> list[Input] | None:
        """What pass two has to read; None for all of it. inputs: of these.

        What pass one has found holds for one pass two only, and only while no row waits: one that came to wait since
        would be taken for one that has vanished from the source.
        """
        if not self._whole:
            return None if inputs is None else list(inputs)
        quoted, self._quoted = self._quoted, {}
        if quoted:
            with driver.reading() as conn:
                waits = any_waiting(conn, driver.job_id)
            quoted = {path: found for path, found in quoted.items() if found.settled and not waits}
            self._put_notes(driver, run_id, quoted)
        left = [one for one in (self._inputs if inputs is None else inputs) if one.path not in quoted]
        self._planned = {one.path: self._before(one) for one in left}
        return left

    def _before(self, one: Input) -> _File:
        """A file that is about to be read."""
        version = version_of(one)
        # one that was written just now could be again without another time to show for it
        recent = version is not None and is_recent(version)
        return _File(version, fingerprint(one, self._job.source, self._columns) if recent else None)

    def planned(self, chunk: Chunk, keys: pl.Series, judged: Judged, new: Sequence[int]) -> None:
        """A chunk that pass two has written. new: the numbers of its new rows."""
        found = self._planned.get(chunk.input.path)
        if found is not None:
            _note(found, keys, judged, new)

    def finish(self, driver: Driver, run_id: int) -> None:
        """All that was left has been read."""
        planned, self._planned = self._planned, {}
        self._put_notes(driver, run_id, planned)

    def _put_notes(self, driver: Driver, run_id: int, files: dict[str, _File]) -> None:
        for path, found in files.items():
            one = self._by_path[path]
            notes = None if found.notes is None else found.notes.finish()
            if not notes or found.version is None:
                continue
            source = found.source
            if source is None or is_recent(found.version):
                source = fingerprint(one, self._job.source, self._columns)
            # else somebody wrote to the file, and who knows whether that was before we read it
            unaltered = source == (found.source or source) and version_of(one) == found.version
            if source is not None and unaltered:
                with driver.planning_transaction(run_id) as conn:
                    segments.put_notes(conn, driver.job_id, source, notes)


def _note(found: _File, keys: pl.Series, judged: Judged, new: Sequence[int]) -> None:
    if found.notes is None:
        return
    numbers = judged.numbers(new)
    if numbers:
        found.notes.add(numbers, keys.to_list(), judged.hashes, judged.keeps)
    else:
        found.notes = None
