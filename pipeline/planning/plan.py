"""Planning: which rows are to be sent, proven and priced in a first pass, packed into batches in a second.

Pass one reads the whole source in bulk and proves what would else be found out half way: that keys are unique, that
every file can be read. It writes nothing. Pass two renders, packs and spools; each batch it commits may be submitted
at once. If we die in pass two, rows without a batch stay pending and the next run plans them again.
"""

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from types import MappingProxyType
from typing import Any

import polars as pl
from sqlalchemy import Row

from pipeline.answer import retry_change
from pipeline.answer.outcome import Outcome
from pipeline.answer.retry_change import AnyChange
from pipeline.driver.driver import Driver
from pipeline.errors import JobError, RowProblem, SourceError
from pipeline.job import templates
from pipeline.job.model import Job
from pipeline.money.budget import CERTAIN_TOKENS_PER_BYTE, Bound, is_small
from pipeline.money.prices import PriceList
from pipeline.planning.known_rows import KnownRows
from pipeline.planning.packer import First, Packer, Sendable, sent_hash
from pipeline.planning.quote import Quote
from pipeline.planning.selection import Selection, changed
from pipeline.planning.unchanged import Judged, Unchanged
from pipeline.planning.uploads import Uploads
from pipeline.planning.verdict import QUOTED, SENT, Verdict, retry_verdict, verdict
from pipeline.planning.window import SURELY_FITS, Windows
from pipeline.planning.write import Again, Moves, priced
from pipeline.prefetch import prefetch
from pipeline.request import packing
from pipeline.request.build import Built, RequestBuilder
from pipeline.sink.table import Fixed, ResultsTable
from pipeline.source import duplicates, exact, identity
from pipeline.source.duplicates import Distinct
from pipeline.source.frames import LATE_FIELDS
from pipeline.source.rows import Chunk, Input, Rows, lacks_key
from pipeline.state import segments
from pipeline.state.batches import Unsent
from pipeline.state.rows import add_rows, forget_bodies_of, keep_rows, mark_changed, replan_rows
from pipeline.state.segments import NOWHERE, OLDER, UNSETTLED, Segment
from pipeline.states import RowState
from pipeline.storage.folders import Folder

SHOWN = 10  # keys that a message lists at most
ATTACHED_BYTES = 32_000_000  # of attachments that are rendered before they are written to the spool
STAMPS = " attachments"  # the name by which row_hash knows them; no column has a blank first


class Plan:
    """The planning of one job over one source."""

    def __init__(
        self, job: Job, *, limit: int | None = None, refresh: bool = False, retry: Selection | None = None
    ) -> None:
        """Reads the headers and compiles the templates. Raises JobError, SourceError, InputError.

        retry: only the rows that a person wants sent again, with what is changed for them.
        """
        self.job = job
        self.asked = job if retry is None else changed(job, retry.changes)  #: the job whose requests are built
        self.recipe = job.recipe
        self.retry = retry
        self.builder = RequestBuilder(self.asked)
        self.rows = Rows(job.source)
        self.rows.require(job.source.key, "source.key")
        self.rows.require(list(job.source.keep), "source.keep")
        for field_name, named in self.builder.named.items():
            self.rows.require(named, field_name)
        for field_name, functions in self.builder.functions.items():
            for name in sorted(functions & set(self.rows.columns)):
                raise JobError(
                    f'{field_name}: {name} is a function of the templates; for the column write row["{name}"]'
                )
        columns = self.builder.columns
        self._template_columns = list(columns.templates)
        if columns.all_columns:
            late = [LATE_FIELDS] if self.rows.has_late_columns else []
            self._template_columns = list(dict.fromkeys([*self.rows.columns, *columns.templates, *late]))
        self._request_columns = list(dict.fromkeys([*self._template_columns, *columns.attachments]))
        self.columns = list(dict.fromkeys([*job.source.key, *job.source.keep, *self._request_columns]))
        self._listed = PriceList(job.prices)
        self._bounds: dict[tuple[str, int, int, bool, bool], Bound | None] = {}
        self.limit, self.refresh = limit, refresh
        whole = limit is None and retry is None and not columns.attachments  # whose files may change by themselves
        inputs, of_request = self.rows.inputs, self._template_columns
        self._unchanged = Unchanged(job, inputs, of_request, recipe=self.recipe, refresh=refresh, whole=whole)
        self.run_id: int | None = None  #: the run that plans; in the quote, the open one that the same command joins
        self.awaited: set[int] = set()  # batches of other runs that rows of this source are in
        self.plan_again_after: set[int] = set()  # and those whose rows have changed, or had another recipe
        self._retries: frozenset[int] = frozenset()  # that are not finished and not this one: their rows are theirs
        self.tokens_per_byte = CERTAIN_TOKENS_PER_BYTE  #: at most, by the API's count of a sample
        self._windows: Windows | None = None  # while batches are planned
        self._largest = packing.largest_params(job.limits.max_batch_bytes)

    def kinds(self) -> dict[str, str]:
        """What the key and kept columns are in SQL."""
        return self.rows.kinds([*self.job.source.key, *self.job.source.keep])

    def request_values(self, frame: pl.DataFrame) -> Iterable[dict[str, Any]]:
        """What the request of each row is made of."""
        return identity.named_rows(frame, self._request_columns, as_bytes=self.builder.columns.attachments)

    # -- pass one --------------------------------------------------------------------------------------------------

    def quote(
        self, known_rows: KnownRows, unsent: Mapping[int, Unsent] = MappingProxyType({}), *, reads_all: bool = False
    ) -> Quote:
        """Pass one: prove keys and files, compare with what is known, and estimate. Raises SourceError or JobError.

        unsent: the job's batches that are planned and not sent. reads_all: also inputs that are as they were planned.
        """
        quote = Quote.of(self.asked, self._listed)
        quote.unsent = unsent
        self._retries = known_rows.retries_besides(self.job.vars, self.retry)
        with Distinct() as seen:
            unread = None if reads_all else self._unchanged.unread(quote, known_rows, seen)
            for chunk in self.rows.chunks(self.columns, limit=self.limit, inputs=unread):
                self._refuse_empty_keys(chunk)
                self._refuse_unfit(chunk)
                keys = identity.key_column(chunk.frame, self.job.source.key)
                self._refuse_older_keys(chunk, keys, known_rows)
                seen.add(duplicates.hashes(identity.key_texts(keys)))
                judged = self._judged(chunk, keys, known_rows, hashed=False, unsent=unsent)
                self._unchanged.quoted(chunk, keys, judged)
                quote.rows.update(judged.settled)
                quote.rows.update(kind for kind, *_ in judged.rows)
                quote.stale_batches |= {
                    row.batch_id
                    for kind, _, row in judged.rows
                    if row is not None and kind is Verdict.WAITING and row.batch_id
                }
                if self._retries:
                    waiting = [row for kind, _, row in judged.rows if kind is Verdict.FOR_RETRY]
                    quote.for_retries.update(row.run_id for row in waiting if row is not None)
                if unsent:
                    planned = [row for kind, _, row in judged.rows if kind is Verdict.PLANNED]
                    quote.planned.update(row.batch_id for row in planned if row is not None)
                self._pack(quote, chunk, judged)
                self._sample(quote, chunk, judged)
            self._refuse_duplicates(seen.duplicates())
        return quote

    def hashes(self, chunk: Chunk) -> list[bytes]:
        """Each row's row_hash: of what its request is made of, an attachment by what tells that it changed."""
        if not self.builder.columns.attachments:
            return identity.row_hashes(chunk.frame, self._template_columns)
        return identity.row_hashes(self._stamped(chunk), [*self._template_columns, STAMPS])

    def _stamped(self, chunk: Chunk) -> pl.DataFrame:
        """The rows with what tells that an attachment has changed."""
        folder, attached = chunk.folder, self.builder.columns.attachments
        rows = list(identity.named_rows(chunk.frame, attached, as_bytes=attached))
        self.builder.attachments.prefetch(rows, folder)
        stamps = pl.Series(STAMPS, [self.builder.attachments.stamp(row, folder) for row in rows], dtype=pl.String)
        return chunk.frame.with_columns(stamps)

    def older_hashes(self, chunk: Chunk) -> Sequence[bytes | None]:
        """By which hash each row was known before some conversions became exact, see legacy.py; None where by none."""
        types = chunk.input.types
        older = identity.older_hashes(chunk.frame, self._template_columns, types)
        if older is not None and self.builder.columns.attachments:  # to look at all files again costs more than that
            older = identity.older_hashes(self._stamped(chunk), [*self._template_columns, STAMPS], types)
        return older or [None] * chunk.frame.height

    def verdict_of(
        self, row: Row[Any] | None, row_hash: bytes, older: bytes | None, *, unsent: Container[int] = frozenset()
    ) -> Verdict:
        """What becomes of a source row. row: as the database knows it; older: of `older_hashes`."""
        recipe = self.recipe
        known = () if row is None else (row.row_hash, row.outcome_hash)
        if row is not None and older is not None and older in known and row_hash not in known:
            row_hash = older  # the row has not changed; what was made of it has
            recipe = "" if row.outcome in (None, RowState.SUCCEEDED, RowState.INVALID) else recipe
        facts = (row, row_hash, recipe, self.job)
        return verdict(*facts, refresh=self.refresh, unsent=unsent, retries=self._retries)

    def _judged(
        self,
        chunk: Chunk,
        keys: pl.Series,
        known_rows: KnownRows,
        *,
        hashed: bool = True,
        unsent: Container[int] = frozenset(),
    ) -> Judged:
        """What becomes of each row. hashed: whether the row_hash is wanted of new rows, too.

        Rows that stand in the database as they do here, are as they were, and have their answer, are told from the
        others in bulk.
        """
        rows = chunk.frame.height
        everything = range(rows)
        if known_rows.is_empty and not hashed:
            return self._all_new(rows)
        keeps = identity.kept(chunk.frame, self.job.source.keep)
        asked, stretch, hashes = keys.to_list(), NOWHERE, None
        if self.retry is None:
            for key in asked[:2]:  # the first may be a new one
                stretch = stretch if stretch.rows else known_rows.beginning_with(key, rows, self.recipe)
        looked_at: Sequence[int] = everything
        settled: Counter[Verdict] = Counter()
        numbers: Sequence[int | None] | None = [None] * rows
        if stretch.rows:
            hashes = self.hashes(chunk)
            looked_at, settled, numbers = self._unsettled(stretch, asked, hashes, keeps)
            asked = asked if len(looked_at) == rows else [asked[i] for i in looked_at]
        known = known_rows(asked) if asked else {}
        if hashes is None and not known and not hashed:
            return self._all_new(rows)
        hashes = hashes or self.hashes(chunk)
        found = [known.get(key) for key in asked]
        wanted = known_rows.wanted(self.retry, known) if self.retry is not None else set()
        judged: list[tuple[Verdict, bytes, Row[Any] | None]] = []
        older = self.older_hashes(chunk) if known else [None] * rows
        retries = self._retries
        for i, key, row in zip(looked_at, asked, found, strict=True):
            if self.retry is not None:
                kind = retry_verdict(row, wanted=key in wanted, run_id=self.run_id, unsent=unsent, retries=retries)
            else:
                kind = self.verdict_of(row, hashes[i], older[i], unsent=unsent)
            judged.append((kind, hashes[i], row))
        return Judged(looked_at, judged, settled, hashes, keeps, numbers)

    def _all_new(self, rows: int) -> Judged:
        """Of so many rows of which nothing is known."""
        return Judged(range(rows), [(Verdict.NEW if self.retry is None else Verdict.OTHER, b"", None)] * rows)

    def _unsettled(
        self, stretch: Segment, keys: Sequence[str], hashes: Sequence[bytes], keeps: Sequence[str | None]
    ) -> tuple[Sequence[int], Counter[Verdict], Sequence[int | None] | None]:
        """Which rows of a chunk have to be looked at one by one; of the others, the verdicts and the numbers.

        stretch: rows of the database, in all or in part the same ones.
        """
        unsettled = UNSETTLED + OLDER if self.refresh else UNSETTLED
        same_keeps, same_keys = stretch.keeps == segments.lines(keeps), stretch.keys == segments.lines(keys)
        places: Sequence[int | None] = range(len(keys))
        if same_keys and same_keeps and stretch.hashes == b"".join(hashes):
            marked = any(mark in stretch.states for mark in unsettled)
            looked_at = [i for i, state in enumerate(stretch.states) if state in unsettled] if marked else []
        else:
            place = {key: i for i, key in enumerate(stretch.keys.decode().split("\n"))}
            places = [place.get(key) for key in keys]
            known_keeps = stretch.keeps.decode().split("\n")
            looked_at = [
                i
                for i, j in enumerate(places)
                if j is None
                or stretch.states[j] in unsettled
                or stretch.hashes[16 * j : 16 * j + 16] != hashes[i]
                or known_keeps[j] != (keeps[i] or "")
            ]
        older = 0
        if OLDER in stretch.states:
            at = set(range(len(keys))).difference(looked_at)
            older = sum(j is not None and stretch.states[j] == OLDER[0] for j in map(places.__getitem__, at))
        kept = len(keys) - len(looked_at) - older
        settled = Counter({kind: n for kind, n in ((Verdict.KEPT, kept), (Verdict.KEPT_OLDER, older)) if n})
        together = stretch.last - stretch.first + 1 == stretch.rows
        numbers = [None if j is None else stretch.first + j for j in places] if together else None
        return looked_at, settled, numbers

    def _pack(self, quote: Quote, chunk: Chunk, judged: Judged) -> None:
        """Tell the quote which rows will be packed, and which of them have equal requests."""
        sent = [i for i, (kind, *_) in zip(judged.looked_at, judged.rows, strict=True) if kind in SENT]
        if sent:
            frame = chunk.frame if len(sent) == chunk.frame.height else chunk.frame[sent]
            quote.pack(self._alike(identity.columns_of(frame, self._request_columns), quote.packed_rows))

    def _alike(self, frame: pl.DataFrame, before: int) -> pl.Series:
        """A hash for each row, equal where requests are equal. before: rows of earlier chunks."""
        hashable = all(not dtype.is_nested() and dtype != pl.Object for dtype in frame.dtypes)
        if self.job.request.dedupe and hashable and frame.width:
            return frame.hash_rows()
        return pl.int_range(before, before + frame.height, dtype=pl.UInt64, eager=True)

    def _sample(self, quote: Quote, chunk: Chunk, judged: Judged) -> None:
        """Render some of the rows that are sent: a random sample of all, and always the first one."""
        sendable = [at for at, (kind, *_) in enumerate(judged.rows) if kind in QUOTED]
        chosen = quote.reservoir.take(len(sendable))
        if not chosen:
            return
        folder = chunk.folder
        places = [sendable[i] for i, _ in chosen]
        values = self.request_values(chunk.frame[[judged.looked_at[at] for at in places]])
        for row, at, (_, slot) in zip(values, places, chosen, strict=True):
            _, row_hash, known = judged.rows[at]
            try:
                built = self._built(row, folder)
                carried = self.builder.params(row, folder, carried=True) if self.builder.uploads else built
                quote.put(slot, built, carried.params, self._change(known, row_hash))
            except RowProblem as exc:
                quote.put_problem(slot, str(exc))
            except templates.TemplateProblem as exc:
                raise JobError(f"request.prompt: {exc}") from exc

    def _refuse_empty_keys(self, chunk: Chunk) -> None:
        for name in self.job.source.key:
            column = chunk.frame[name]
            empty = lacks_key(column)
            if empty.any():
                places = [chunk.place(i) for i in empty.arg_true()[:SHOWN]]
                raise SourceError(
                    f"source.key: column {name!r} is empty in {', '.join(places)}; each row needs a key: "
                    "leave such rows out by source.where, or choose other key columns"
                )

    def _refuse_unfit(self, chunk: Chunk) -> None:
        """Raises SourceError for a key or kept value that no key and no column can hold as it is."""
        for field_name, names in (("source.key", self.job.source.key), ("source.keep", self.job.source.keep)):
            for name in names:
                if (found := exact.first_unstorable(chunk.frame[name])) is not None:
                    raise SourceError(
                        f"{field_name}: column {name!r} in {chunk.place(found[0])}: {found[1]}; mend it in the source, "
                        "or leave such rows out by source.where"
                    )

    def _refuse_older_keys(self, chunk: Chunk, keys: pl.Series, known_rows: KnownRows) -> None:
        """Raises SourceError when rows are known by inexact keys: they would be taken for new ones, and paid again."""
        if known_rows.is_empty:
            return
        older = identity.older_keys(chunk.frame, self.job.source.key, chunk.input.types)
        for key in [] if older is None else known_rows(older.filter(older != keys).to_list()):
            raise SourceError(
                "source.key: an earlier version of this program wrote inexact keys for this column, such as "
                f"{identity.shown(key)}, and all rows would be sent again under exact ones; to do so, give the job and "
                "sink.table new names; else leave out the rows that have their answers by source.where"
            )

    def _refuse_duplicates(self, suspects: pl.Series) -> None:
        """suspects: hashes that came twice. Only of these are the keys themselves compared."""
        if not suspects.len():
            return
        places: dict[str, list[str]] = {}
        for chunk in self.rows.chunks(self.job.source.key, limit=self.limit):
            keys = identity.key_texts(identity.key_column(chunk.frame, self.job.source.key))
            for i in duplicates.hashes(keys).is_in(suspects.implode()).arg_true():
                places.setdefault(keys[i], []).append(chunk.place(i))
        twice = {key: where for key, where in places.items() if len(where) > 1}
        if twice:
            listed = "; ".join(f"{identity.shown(k)} in {', '.join(w[:3])}" for k, w in list(twice.items())[:SHOWN])
            more = f" (and {len(twice) - SHOWN} more)" if len(twice) > SHOWN else ""
            raise SourceError(
                f"source.key: {', '.join(self.job.source.key)} does not tell all rows apart: {listed}{more}; "
                "choose key columns that do"
            )

    @property
    def is_settled(self) -> bool:
        """Whether the quote found nothing to be done."""
        return self._unchanged.settled

    def begin_anew(self) -> None:
        """Forget which batches its rows wait in: a planning finds that out."""
        self.awaited, self.plan_again_after = set(), set()

    # -- pass two --------------------------------------------------------------------------------------------------

    def batches(
        self,
        driver: Driver,
        run_id: int,
        known_rows: KnownRows,
        inputs: Sequence[Input] | None = None,
        first: First | None = None,
    ) -> Iterator[int]:
        """Pass two: render, pack and spool every row that is to be sent; yields the number of each planned batch.

        inputs: of these only; first: when the first batch is another than the rest. It adds to `awaited` and
        `plan_again_after`, see `begin_anew`.
        """
        self.run_id = run_id
        self._retries = known_rows.retries_besides(self.job.vars, self.retry)
        packer = Packer(driver, self.job, run_id, self.recipe, first=first)
        self.builder.uploaded = Uploads(driver)
        self._windows = Windows(driver, self.asked, self.tokens_per_byte)
        left = self._unchanged.left(driver, run_id, inputs)
        try:
            with closing(prefetch(self._rendered(driver, run_id, known_rows, left), name="plan")) as rendered:
                for moves in rendered:  # one is written, and its requests packed, while the next one is rendered
                    yield from list(packer.add(self._write(driver, run_id, moves)))
            yield from packer.finish()
        finally:
            packer.discard()
        self._unchanged.finish(driver, run_id)

    def _rendered(
        self, driver: Driver, run_id: int, known_rows: KnownRows, inputs: Sequence[Input] | None
    ) -> Iterator[Moves]:
        """What each chunk of the source changes, its requests rendered."""
        for chunk in self._in_bounds(self.rows.chunks(self.columns, limit=self.limit, inputs=inputs)):
            driver.stop.check()
            yield self._moves(driver, run_id, chunk, known_rows)

    def _in_bounds(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """The same rows in chunks whose attachments fit into memory together."""
        columns = self.builder.columns.attachments
        for chunk in chunks:
            if not columns:
                yield chunk
                continue
            folder, start, weight = chunk.folder, 0, 0
            rows = list(identity.named_rows(chunk.frame, columns, as_bytes=columns))
            self.builder.attachments.prefetch(rows, folder)
            for i, row in enumerate(rows):
                heavy = self.builder.attachments.weight(row, folder)
                if i > start and weight + heavy > ATTACHED_BYTES:
                    yield chunk.part(start, i)
                    start, weight = i, 0
                weight += heavy
            yield chunk.part(start, chunk.frame.height)

    def _moves(self, driver: Driver, run_id: int, chunk: Chunk, known_rows: KnownRows) -> "Moves":
        """What one chunk of the source changes, its requests rendered."""
        key_column = identity.key_column(chunk.frame, self.job.source.key)
        judged = self._judged(chunk, key_column, known_rows)
        moves = Moves(chunk, key_column, judged)
        some = len(judged.looked_at) < chunk.frame.height
        keys = (key_column.gather(list(judged.looked_at)) if some else key_column).to_list()
        keeps = [judged.keeps[i] for i in judged.looked_at] if some else judged.keeps
        values = self.request_values(chunk.frame[judged.looked_at] if some else chunk.frame)
        asked_with = [
            self._change(known, row_hash) if kind is Verdict.AGAIN else None for kind, row_hash, known in judged.rows
        ]
        answers = driver.answers(
            [key for key, change in zip(keys, asked_with, strict=True) if retry_change.needs_answer(change)]
        )
        limit = driver.output_limit(self.job)
        rows = zip(keys, keeps, judged.rows, asked_with, values, strict=True)
        for key, keep, (kind, row_hash, known), change, row in rows:
            if kind in SENT:
                again_with = None if change is None else Again(change, answers.get(key), limit)
                self._send(moves, run_id, key, keep, row_hash, known, row, again_with)
            elif known is not None:
                if self.retry is None:  # else it is the matter of the run that planned it
                    moves.leave(kind, key, keep, row_hash, known)
                self._await(kind, run_id, known)
        return moves

    def _change(self, known: Row[Any] | None, row_hash: bytes) -> AnyChange | None:
        """What a row is asked with again; None for one that is new, or asked otherwise by a person or a new recipe."""
        if known is None or self.retry is not None or known.outcome_hash != row_hash:
            return None
        if known.outcome_recipe != self.recipe or known.attempts >= self.job.retry.max_attempts:
            return None
        return retry_change.change_for(self.job.retry, known.outcome, known.error_type)

    def _await(self, kind: Verdict, run_id: int, known: Row[Any]) -> None:
        """Note the batch of a row in flight that this run has to wait for, and whether to plan again after it."""
        if kind is Verdict.CHANGED_IN_FLIGHT or (kind is Verdict.IN_FLIGHT and known.recipe != self.recipe):
            self.plan_again_after.add(known.batch_id)
        elif kind is Verdict.IN_FLIGHT and known.run_id != run_id:
            self.awaited.add(known.batch_id)

    def _write(self, driver: Driver, run_id: int, moves: "Moves") -> list[Sendable]:
        """Bring the database to what the source says of one chunk, in one transaction; the rows to send."""
        with driver.planning_transaction(run_id) as conn:
            numbers = add_rows(conn, driver.job_id, moves.new)
            replan_rows(conn, moves.again)
            mark_changed(conn, moves.changed)
            keep_rows(conn, moves.kept)
            forget_bodies_of(conn, moves.outdated)
            table = driver.sink_now(conn)
            table.update_keep(conn, moves.kept_anew)
            table.write(conn, [self._invalid(driver, table, run_id, *fields) for fields in moves.invalid])
        self._unchanged.planned(moves.chunk, moves.keys, moves.judged, numbers)
        numbers += [row[-1] for row in moves.again]
        sendable = zip(numbers, [*moves.new_params, *moves.again_params], strict=True)
        return [Sendable(number, *params) for number, params in sendable if params is not None]

    def _send(
        self,
        moves: "Moves",
        run_id: int,
        key: str,
        keep: str | None,
        row_hash: bytes,
        known: Row[Any] | None,
        row: Mapping[str, Any],
        again: "Again | None",
    ) -> None:
        """Note a row that is to be sent, or that cannot be. again: with what it is asked another time."""
        same = known is not None and known.outcome_hash == row_hash and known.outcome_recipe == self.recipe
        # they start at 0 when the row or the recipe has changed; when a person wants it, in the batch: store.add_batch
        attempts = known.attempts if known is not None and (same or self.retry is not None) else 0
        try:
            built = self._built(row, moves.chunk.folder)
            params = built.params
            if again is not None:
                assert known is not None
                changed = again.asked(params, attempts, known.outcome_sent_hash)
                if changed is None or len(changed) > self._largest:  # it would be asked the same
                    moves.leave(Verdict.KEPT, key, keep, row_hash, known)
                    return
                params = changed
                built = built._replace(params=params, **priced(params))
            hashed = sent_hash(params)
            before = (known.outcome, known.outcome_hash, known.outcome_recipe) if known else (None, None, None)
            fields = (key, run_id, "pending", row_hash, self.recipe, keep, hashed, attempts, *before)
            packed: tuple[bytes, bytes, Bound | None] | None = (hashed, params, self._bound(built))
        except (RowProblem, templates.TemplateProblem) as exc:
            attempts = 0 if self.retry is not None else attempts  # an outcome of the retry, and it sent nothing
            moves.invalid.append((key, keep, str(exc), attempts))
            outcome = ("invalid", row_hash, self.recipe)
            fields = (key, run_id, "invalid", row_hash, self.recipe, keep, None, attempts, *outcome)
            packed = None
        if known is None:
            moves.new.append(fields)
            moves.new_params.append(packed)
        else:
            moves.again.append((*fields, known.id))
            moves.again_params.append(packed)

    def _built(self, row: Mapping[str, Any], folder: Folder) -> Built:
        built = self.builder.params(row, folder)
        if len(built.params) > self._largest:
            raise RowProblem(
                f"the request has {len(built.params):,} bytes, more than a batch can carry ({self._largest:,})"
            )
        if self._windows is not None and len(built.params) > SURELY_FITS:
            self._windows.check(built)
        return built

    def _bound(self, built: Built) -> Bound | None:
        """What the request may cost at most. Most have the same model and max_tokens as the one before."""
        small = is_small(len(built.params), built.attachment_tokens)
        facts = (*built[1:], small)
        if facts not in self._bounds:
            geo = self.asked.request.params.get("inference_geo")
            params = {"model": built.model, "max_tokens": built.max_tokens, "inference_geo": geo}
            self._bounds[facts] = Bound.of(
                params, self._listed, caches=built.caches, attachment_tokens=built.attachment_tokens, small=small
            )
        return self._bounds[facts]

    def _invalid(
        self, driver: Driver, table: ResultsTable, run_id: int, key: str, keep: str | None, reason: str, attempts: int
    ) -> tuple[Any, ...]:
        outcome = Outcome(RowState.INVALID, "invalid", reason)
        fixed = Fixed(self.recipe, 0.0, attempts, None, None, run_id, driver.now())
        return table.row(key, keep, outcome, fixed)
