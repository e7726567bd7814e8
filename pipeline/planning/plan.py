"""Plan a job in two passes: check and price its rows, then pack them into batches. Edge: SQL, HTTP, files.

Pass one reads the whole source in bulk and checks what would otherwise fail halfway: that keys are unique and that
every file can be read. It writes nothing. Pass two renders requests, packs them and writes bodies to the spool; each
batch may be submitted as soon as it is committed. New rows are stored with their batch. If we die in pass two, new rows
without a batch are unknown, known rows without a batch stay pending, and the next run plans both.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from types import MappingProxyType

from pipeline.driver.driver import Driver
from pipeline.errors import JobError, RowProblem
from pipeline.job import templates
from pipeline.job.model import Job
from pipeline.money.measures import CERTAIN_TOKENS_PER_BYTE
from pipeline.money.prices import PriceList
from pipeline.planning import key_checks
from pipeline.planning.job_source import JobSource
from pipeline.planning.judge import Judge, Judged, Scope
from pipeline.planning.known_rows import KnownRows
from pipeline.planning.moves import Awaited, Mover, Moves
from pipeline.planning.packer import First, Packer
from pipeline.planning.quote import Quote
from pipeline.planning.render import Renderer
from pipeline.planning.retry_changes import change_of_known
from pipeline.planning.selection import Selection, changed
from pipeline.planning.suspects import EqualRows, Suspects
from pipeline.planning.trial import Sampled
from pipeline.planning.unchanged import Covered, Findings, Unchanged
from pipeline.planning.uploads import Uploads
from pipeline.planning.verdict import QUOTED, SENT, Verdict
from pipeline.planning.window import Windows
from pipeline.planning.write import Writer
from pipeline.prefetch import prefetch
from pipeline.request.build import RequestBuilder
from pipeline.source import duplicates, identity
from pipeline.source.duplicates import Distinct
from pipeline.source.rows import Chunk, Input
from pipeline.state.batches import Unsent


class Plan:
    """The planning of one job over one source."""

    def __init__(
        self,
        job: Job,
        *,
        limit: int | None = None,
        refresh: bool = False,
        retry: Selection | None = None,
        trial: Sampled | None = None,
    ) -> None:
        """Read the headers and compile the templates. Raises JobError, SourceError, InputError.

        limit: the most rows to read; None: all. refresh: also send rows that succeeded with an older recipe. retry:
        send only the rows that it selects, with its changes; None: a plain run. trial: send only the rows of its
        sample; then `job` is the job that the trial asks.
        """
        self.job, self.recipe = job, job.recipe
        self.asked = job if retry is None else changed(job, retry.changes)  #: the job whose requests are built
        self.limit, self.refresh, self.retry, self.trial = limit, refresh, retry, trial
        self.builder = RequestBuilder(self.asked)
        self.source = JobSource(job, self.builder, limit=limit) if trial is None else trial.source(job, self.builder)
        self.run_id: int | None = None  #: the run that is planned; in a quote, the run that the command continues
        self.continues = False  #: whether the command continues a run, whose rows may share requests with new ones
        self.suspects = Suspects()  #: the rows that may have the request of another row, by pass one
        self.awaited = Awaited()
        self.tokens_per_byte = CERTAIN_TOKENS_PER_BYTE  #: an upper bound, from the API's count of a sample
        self._scope = Scope(job, self.recipe, refresh, retry)
        self._listed = PriceList(job.prices)
        attached = self.builder.columns.attachments  # their files can change while the source stays the same
        self._unchanged = Unchanged(
            job,
            self.source.inputs,
            self.source.template_columns,
            recipe=self.recipe,
            refresh=refresh,
            whole=limit is None and retry is None and trial is None and not attached,
        )

    def judge(self, known_rows: KnownRows, *, unsent: Container[int] = frozenset(), hashes_all: bool = True) -> Judge:
        """Return a judge of the source's rows for one pass; see `Judge`."""
        return Judge(self._scope, self.source, known_rows, run_id=self.run_id, unsent=unsent, hashes_all=hashes_all)

    # -- pass one --------------------------------------------------------------------------------------------------

    def quote(
        self, known_rows: KnownRows, unsent: Mapping[int, Unsent] = MappingProxyType({}), *, reads_all: bool = False
    ) -> Quote:
        """Pass one: check keys and files, judge all rows, sample requests, and return the quote. Writes nothing.

        unsent: the job's batches that are planned and not sent. reads_all: also read inputs that have not changed since
        they were planned. Raises SourceError if the source cannot be used, and JobError if a template fails.
        """
        quote = Quote.of(self.asked, self._listed)
        quote.unsent, quote.trial = unsent, self.trial is not None
        judge = self.judge(known_rows, unsent=unsent, hashes_all=False)
        renderer = Renderer(self.asked, self.builder, self._listed)
        with Distinct() as seen, EqualRows() as sent, EqualRows() as every:
            unread = None if reads_all else self._unchanged.select_to_quote(quote, known_rows, seen)
            for chunk in self.source.chunks(unread):
                key_checks.require_usable(self.job.source, chunk)
                keys = self.source.keys(chunk)
                key_checks.refuse_older_keys(self.job.source, chunk, keys, known_rows)
                seen.add(duplicates.hashes(identity.key_texts(keys)))
                judged = judge.chunk(chunk, keys)
                self._unchanged.note_quoted(chunk, keys, judged)
                _count(quote, judged)
                self._compare_requests(quote, chunk, judged, sent, every)
                self._sample(quote, chunk, judged, renderer)
            key_checks.refuse_duplicates(self.job.source, self.source, seen.duplicates())
            self._find_equal_requests(quote, sent, every)
        return quote

    def _compare_requests(self, quote: Quote, chunk: Chunk, judged: Judged, sent: EqualRows, every: EqualRows) -> None:
        """Add hashes that show equal requests: of the rows of a chunk that are sent, and of all its rows.

        The others matter only if the command continues a run: they may be in a batch of it, or have their answer.
        """
        chosen = [i for i, row in zip(judged.places, judged.rows, strict=True) if row.verdict in SENT]
        if not chosen and not self.continues:
            return
        hashes = self.source.request_hashes(chunk.frame)
        if hashes is None:
            quote.new_requests = (quote.new_requests or 0) + len(chosen)
            return
        sent.add(hashes if len(chosen) == hashes.len() else hashes.gather(chosen))
        if self.continues:
            every.add(hashes)

    def _find_equal_requests(self, quote: Quote, sent: EqualRows, every: EqualRows) -> None:
        """Note in the quote how many requests the sent rows need, and here which rows may share one.

        The rows of a retry share requests within a batch only: each has a history of its own.
        """
        requests, suspects = sent.found()
        quote.new_requests = (quote.new_requests or 0) + requests
        if self.retry is None:
            self.suspects = every.found()[1] if self.continues else suspects

    def _sample(self, quote: Quote, chunk: Chunk, judged: Judged, renderer: Renderer) -> None:
        """Render the sampled rows of a chunk into the quote: a random sample of the rows to send, with the first one.

        Raises JobError if a template fails.
        """
        sendable = [at for at, row in enumerate(judged.rows) if row.verdict in QUOTED]
        chosen = quote.reservoir.take(len(sendable))
        if not chosen:
            return
        folder = chunk.folder
        places = [sendable[i] for i, _ in chosen]
        values = self.source.request_values(chunk.frame[[judged.places[at] for at in places]])
        for of_row, at, (_, slot) in zip(values, places, chosen, strict=True):
            row = judged.rows[at]
            change = None
            if self.retry is None:
                change = change_of_known(row.known, row.row_hash, self.recipe, self.job.retry)
            try:
                built = renderer.built(of_row, folder)
                carried = self.builder.params(of_row, folder, inline_files=True) if self.builder.uploads else built
                quote.put(slot, built, carried.params, change)
            except RowProblem as exc:
                quote.put_problem(slot, str(exc))
            except templates.TemplateProblem as exc:
                raise JobError(f"request.prompt: {exc}") from exc

    @property
    def findings(self) -> Findings:
        """What pass one found out about each file, for `take_findings` of a plan in another process."""
        return self._unchanged.findings

    def take_findings(self, findings: Findings, suspects: Suspects) -> None:
        """Go on as if pass one had been done here. findings, suspects: of a plan of the same job and source."""
        self._unchanged.take_findings(findings)
        self.suspects = suspects

    @property
    def is_whole(self) -> bool:
        """Return whether the plan covers all rows of the source and no attachments."""
        return self._unchanged.whole

    @property
    def is_settled(self) -> bool:
        """Return whether pass one found that no row needs anything."""
        return self._unchanged.settled

    # -- pass two --------------------------------------------------------------------------------------------------

    def begin_again(self) -> None:
        """Forget the batches that rows wait in, because the next planning finds them again."""
        self.awaited = Awaited()

    def batches(
        self,
        driver: Driver,
        run_id: int,
        known_rows: KnownRows,
        inputs: Sequence[Input] | None = None,
        first: First | None = None,
    ) -> Iterator[int]:
        """Pass two: render, pack and spool the rows to send, and yield the number of each planned batch.

        inputs: read only these; None: all. first: the first batch, if it differs from the rest. Batches in flight that
        the run waits for are added to `awaited`; see `begin_again`.
        """
        self.begin_to_render(driver, run_id)
        mover = self.mover(driver, run_id, known_rows)
        packer = Packer(driver, self.job, run_id, self.recipe, first=first, numbered=self._unchanged.add_numbers)
        left = self._unchanged.select_to_plan(driver, run_id, inputs)
        if left != []:
            driver.line.learn_time()
        writer = Writer(driver, run_id, self.recipe, packer, self._unchanged)
        try:
            with closing(prefetch(self._moves(driver, mover, left), name="plan")) as rendered:
                for moves in rendered:  # one chunk is written and packed while the next is rendered
                    yield from writer.write(moves)
            yield from packer.finish()
        finally:
            packer.discard()
        self._unchanged.finish(driver, run_id)

    def mark_settled(self, driver: Driver, run_id: int) -> None:
        """Store the mark that the source is settled, if it is; see `Unchanged.mark_settled`."""
        self._unchanged.mark_settled(driver, run_id)

    def mark_answered(self, driver: Driver, run_id: int) -> None:
        """Store this mark when the run has ended, if its rows have succeeded; see `Unchanged.mark_answered`."""
        self._unchanged.mark_answered(driver, run_id)

    @property
    def covered(self) -> Covered | None:
        """What pass two has read, for `take_covered` of a plan in another process."""
        return self._unchanged.covered

    def take_covered(self, parts: Iterable[Covered | None]) -> None:
        """Go on as if pass two had been done here. parts: of plans of the same job, of one file each."""
        self._unchanged.take_covered(parts)

    def begin_to_render(self, driver: Driver, run_id: int) -> None:
        """Render the requests of a run from now on, and upload the files that they name."""
        self.run_id = run_id
        self.builder.uploaded = Uploads(driver)

    def mover(self, driver: Driver, run_id: int, known_rows: KnownRows) -> Mover:
        """Return what finds the changes of each chunk for a run, see `begin_to_render`."""
        windows = Windows(driver, self.asked, self.tokens_per_byte)
        renderer = Renderer(self.asked, self.builder, self._listed, windows)
        judge = self.judge(known_rows)
        return Mover(driver, run_id, self._scope, self.source, judge, renderer, self.awaited, self.suspects)

    def _moves(self, driver: Driver, mover: Mover, inputs: Sequence[Input] | None) -> Iterator[Moves]:
        """Yield the changes of each chunk, with rendered requests. inputs: read only these; None: all."""
        for chunk in self.source.chunks_in_bounds(inputs):
            driver.stop.check()
            yield mover.moves(chunk)


def _count(quote: Quote, judged: Judged) -> None:
    """Count the rows of a chunk in a quote: by verdict, by their planned batch, and by the retry they wait for.

    Planned batches with a row whose request must change are added to `stale_batches`.
    """
    quote.rows.update(judged.settled)
    quote.rows.update(row.verdict for row in judged.rows)
    known = [(row.verdict, row.known) for row in judged.rows if row.known is not None]
    quote.stale_batches |= {row.batch_id for kind, row in known if kind is Verdict.WAITING and row.batch_id}
    quote.for_retries.update(row.run_id for kind, row in known if kind is Verdict.FOR_RETRY)
    quote.planned.update(row.batch for kind, row in known if kind is Verdict.PLANNED)
