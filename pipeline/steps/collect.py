"""Collect ended batches: download their results, and store an outcome for each row. Edge: SQL, HTTP, files.

The results of a batch are first downloaded and counted as a whole, in memory, or in a file if they are large; then they
are read in chunks, in the order of the request positions. One transaction stores the answers of a chunk in the results
table and the states of its rows. If we die between two chunks, the rows of the earlier chunks have their outcome, and
the other rows are still in flight: the next driver collects all rows that are still in flight, wherever in the batch
they are.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from operator import attrgetter
from pathlib import Path

from pipeline.answer.continuing import goes_on
from pipeline.answer.outcome import Outcome, ResultReader, without_usage
from pipeline.answer.retry_change import ACCOUNT_ERRORS
from pipeline.driver.bodies import unneeded
from pipeline.driver.driver import Driver, Failures, leave_alone
from pipeline.driver.job_of_run import JobOfRun
from pipeline.driver.settle import SettledRows, fixed_of, settle_rows
from pipeline.driver.sums import TOKENS
from pipeline.errors import NotFound, Stopped
from pipeline.events.batches import BodyLeft, Collected, ResultsMissing, UnknownResults
from pipeline.job.model import Job
from pipeline.money.prices import PriceList
from pipeline.prefetch import calls_ahead, prefetch
from pipeline.sink.columns import ResultColumns
from pipeline.sink.definition import has_column_of_ids, make_tables
from pipeline.sink.table import columns_as_json
from pipeline.state.accounts import open_circuit
from pipeline.state.batches import Batch
from pipeline.state.claims import Condition
from pipeline.state.conditions import soon
from pipeline.state.jobs import alone, columns_of, set_columns
from pipeline.state.moves import collected_so_far, count_download, mark_collected, mark_lost, postpone
from pipeline.state.rows import Settled, batch_rows, rows_by_position
from pipeline.state.spending import settle
from pipeline.state.turns import forget_params, has_later_rounds, put_turns
from pipeline.states import CONTINUED, BatchState, RowState
from pipeline.steps import lost
from pipeline.steps.continued import Rounds
from pipeline.steps.plain_answers import PlainAnswers
from pipeline.steps.results_file import Found, download

RETRY_SECONDS = 10.0
FAILED_TOLD = 3  # failed results that the event of a collected batch names
MAX_DOWNLOADS = 3
LAST_DOWNLOAD_AFTER = timedelta(minutes=10)  # after the first download, so that a passing fault of the API is over


def collect_due(driver: Driver, jobs: "JobOfRun", only: Condition | None = None) -> int:
    """Collect each ended batch of the job that is due. Return how many were collected.

    only: a further condition for the batches; None: all of them. Raises Stopped when results cannot be downloaded.
    """
    collected = 0
    failures = Failures()
    with _Fetcher(driver, only) as fetcher:
        for batch, fetched in fetcher.batches():
            with failures.one(), driver.lost_races(batch):
                if batch.account_id != driver.account_id:
                    leave_alone(driver, batch, wait=60.0)
                else:
                    _add_columns_of_ids(driver)
                    collected += collect(driver, batch, jobs(batch.run_id), fetched)
    failures.raise_first()
    return collected


def _add_columns_of_ids(driver: Driver) -> None:
    """Add the columns of ids to a results table of an older version, before answers with ids are stored in it.

    A table that has other columns with these names is left unchanged: the next `run` of the job says what to do.
    """
    if driver.sink.columns.with_ids() is None:
        return
    with driver.database.write() as conn:
        alone(conn)
        before = ResultColumns.from_stored(columns_of(conn, driver.job_id, to_change=True))
        complete = before.with_ids()
        if complete is None or has_column_of_ids(conn, driver.sink):
            return
        make_tables(conn, driver.sink.with_columns(complete), before)
        set_columns(conn, driver.job_id, columns_as_json(complete))


class _Fetcher:
    """Claims ended batches and downloads their results in a thread: the next results while the last ones are stored."""

    def __init__(self, driver: Driver, only: Condition | None) -> None:
        self._driver = driver
        self._calls = calls_ahead(self._fetch, driver.claims(BatchState.ENDED, only=only), name="fetch")
        self._files: dict[int, Path] = {}  # by batch
        self._given_up = threading.Event()

    def __enter__(self) -> "_Fetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._given_up.set()  # stops a download that is under way, because its results are not needed
        try:
            self._calls.close()
        finally:
            for file in self._files.values():
                file.unlink(missing_ok=True)

    def batches(self) -> Iterator[tuple[Batch, "Future[Found | None]"]]:
        """Yield each batch that is due, with a future of its results: None for a batch that another account has sent.

        The file of the results is removed when the caller asks for the next batch.
        """
        for batch, fetched in self._calls:
            yield batch, fetched
            if (file := self._files.pop(batch.id, None)) is not None:
                file.unlink(missing_ok=True)

    def _fetch(self, batch: Batch) -> Found | None:
        if batch.account_id != self._driver.account_id:
            return None
        file = self._files[batch.id] = self._driver.spool.results_file(batch.nonce, batch.claim)
        return download(self._driver, batch, file, self._given_up)


def collect(driver: Driver, batch: Batch, job: Job, fetched: "Future[Found | None]") -> bool:
    """Collect one ended batch that we have claimed. Return whether its results were stored and the batch is closed.

    True, too: the batch is lost, because results were missing even in the last download. False: the results are
    downloaded again later, or the API does not have them.
    """
    found = _downloaded(driver, batch, fetched)
    if found is None:
        return False
    last = _is_last_download(driver, batch)
    total = _store_outcomes(driver, batch, job, found, lose=last)
    if total.missing:
        _tell_missing(driver, batch, total.missing, last=last)
    if total.missing and not last:
        return False
    with driver.moving(batch) as conn:
        outcomes, cost = collected_so_far(conn, batch)
        if not total.unpriced:
            settle(conn, batch, lost=total.missing)
        if total.missing:
            why = f"{total.missing} of {batch.requests} results were missing in {MAX_DOWNLOADS} downloads"
            mark_lost(conn, batch, why, due_at=soon(driver.now(), lost.ASK_AGAIN))
        else:
            mark_collected(conn, batch, delete_remote=job.privacy.delete_remote, now=driver.now())
    if not job.privacy.keep_spool:
        _remove_unneeded_body(driver, batch, job)
    driver.tell(
        Collected(
            batch=batch.id,
            requests=batch.requests,
            rows=batch.rows,
            outcomes=outcomes,
            cost_usd=None if total.unpriced else round(cost, 6),
            failed=total.failed or (),
        )
    )
    return True


def _downloaded(driver: Driver, batch: Batch, fetched: "Future[Found | None]") -> Found | None:
    """Return the downloaded results; None when the API does not have them. Raises Stopped when the download failed."""
    try:
        return fetched.result()
    except NotFound as exc:  # about this batch only: the other batches are collected
        if lost.is_past(driver, batch):
            lost.give_up(driver, batch, f"its results are older than 29 days and gone at the API: {exc}")
        else:
            lost.count_not_found(driver, batch, str(exc), wait=RETRY_SECONDS)
        return None
    except Stopped as exc:
        with driver.moving(batch) as conn:
            postpone(conn, batch, due_at=soon(driver.now(), RETRY_SECONDS), problem=str(exc))
        raise
    except OSError as exc:  # from the disk: errors of the connection arrive as Stopped
        problem = f"{driver.spool.disk}: {exc.strerror or exc}"
        raise Stopped(
            f"{problem}; the results of batch {batch.id} cannot be stored there; run the same command again"
        ) from exc


def _is_last_download(driver: Driver, batch: Batch) -> bool:
    """Return whether this download is the last: rows whose results are missing in it are lost."""
    first = batch.downloaded_at or driver.now()
    return batch.downloads + 1 >= MAX_DOWNLOADS and driver.now() - first >= LAST_DOWNLOAD_AFTER


def _tell_missing(driver: Driver, batch: Batch, missing: int, *, last: bool) -> None:
    """Tell that results are missing. Unless this was the last download, note when they are downloaded again.

    Their rows stay in flight until then.
    """
    problem = f"{missing} of {batch.requests} results are missing or unreadable at the API"
    if not last:
        now = driver.now()
        due_at = soon(now, 5.0)
        if batch.downloads + 2 >= MAX_DOWNLOADS:
            due_at = max(due_at, (batch.downloaded_at or now) + LAST_DOWNLOAD_AFTER)
        with driver.moving(batch) as conn:
            count_download(conn, batch, now=now, due_at=due_at, problem=problem)
    then = "their rows are lost" if last else "they are downloaded again later"
    driver.tell(ResultsMissing(batch=batch.id, problem=f"{problem}; {then}"))


def _store_outcomes(driver: Driver, batch: Batch, job: Job, found: Found, *, lose: bool) -> "_Total":
    """Store the outcomes of the batch's rows that are in flight, chunk by chunk. Return the totals of all chunks.

    lose: True: rows without a readable result line get the outcome lost. False: they stay in flight.
    """
    reader, prices = ResultReader(job), PriceList(job.prices)
    total = _Total()
    with driver.reading() as conn:
        shared = rows_by_position(conn, batch)
        # the job may have lost its section `rounds` since these requests were sent: earlier rounds cost what they cost
        in_rounds = goes_on(job) or has_later_rounds(conn, batch.id)
    rounds = Rounds(driver, batch, job) if in_rounds else None
    if found.unknown:
        driver.tell(UnknownResults(batch=batch.id, lines=found.unknown))
    with found.opened() as lines_at:

        def chunks() -> Iterator[_Chunk]:
            for first, last in found.windows(shared, 0 if rounds is None else batch.size_bytes // batch.requests):
                driver.stop.check()
                chunk = _Chunk(
                    driver=driver,
                    batch=batch,
                    reader=reader,
                    prices=prices,
                    first=first,
                    last=last,
                    lose=lose,
                    rounds=rounds,
                )
                chunk.read(lines_at(first, last))
                yield chunk

        with (
            contextlib.nullcontext() if rounds is None else contextlib.closing(rounds),
            contextlib.closing(prefetch(chunks(), name="collect")) as parsed,
        ):
            for chunk in parsed:  # one chunk is written while the next one is parsed
                chunk.write()
                total.count(chunk)
    return total


@dataclass
class _Total:
    missing: int = 0  #: requests without a readable line: their rows are in flight or have just been lost
    unpriced: bool = False
    failed: list[dict[str, str | None]] = field(default_factory=list)  #: a few, with ids for the API's support

    def count(self, chunk: "_Chunk") -> None:
        self.missing += chunk.missing
        self.unpriced |= chunk.unpriced
        self.failed += chunk.failed[: FAILED_TOLD - len(self.failed)]


_LOST = Outcome(RowState.LOST, "lost", "the API gave no readable result for this request")


class _Chunk:
    """The rows of a batch at positions first to last, whose outcomes are stored in one transaction."""

    def __init__(
        self,
        driver: Driver,
        batch: Batch,
        reader: ResultReader,
        prices: PriceList,
        first: int,
        last: int,
        *,
        lose: bool,
        rounds: Rounds | None = None,
    ) -> None:
        """rounds: sorts out the answers that go on; None: none does."""
        self._settled = SettledRows(first, last, driver.sink)
        self._takes_plain = rounds is None and reader.reads_plain
        self._rounds = None if rounds is None else rounds.chunk(self._settled)
        self.missing = 0  # requests without a readable line
        self._lose = lose
        self.failed: list[dict[str, str | None]] = []  # the first few failed results that have an id at the API
        self.unpriced = False
        self._driver, self._batch, self._reader, self._prices = driver, batch, reader, prices
        self._now = driver.now()
        self._refused: str | None = None  # the API's error when it refused the account; None: it did not

    def read(self, line_of: Mapping[int, bytes]) -> None:
        """Turn result lines into the outcomes of the rows in flight at these positions. line_of: by position."""
        batch, reader, settled = self._batch, self._reader, self._settled
        with self._driver.reading() as conn:
            rows = batch_rows(conn, batch.id, settled.first, settled.last)
        if self._takes_plain:
            rows = PlainAnswers(reader, self._prices, batch, self._now).take(rows, line_of, settled)
        outcomes: list[Outcome] = []
        answered, line = -1, None
        outcome: Outcome | None = None
        shared: Outcome | None = None
        for row in rows:
            if row.n != answered:
                answered, line = row.n, line_of.get(row.n)
                outcome, shared = self._outcome_or_lost(None if line is None else reader.read(line)), None
            elif outcome is not None:  # of the rows that share a request, only the first has its cost and tokens
                outcome = shared = shared or without_usage(outcome)
            if outcome is None:
                settled.left.append(row.id)
                continue
            cost = self._add_cost(outcome)
            attempts = row.attempts + 1
            answer = outcome
            if self._rounds is not None:
                answer = self._rounds.goes_on(row, outcome, line, cost)
            outcomes.append(answer)
            if answer.state == CONTINUED:
                continue
            if outcome.error_type in ACCOUNT_ERRORS:  # about the account: the row waits until that is fixed
                request = "" if outcome.request_id is None else f" ({outcome.request_id})"
                self._refused = f"{outcome.error_type}: {outcome.error_message}{request}"
                settled.moves[Settled(outcome.state, outcome.error_type, again=True, counts=False)].append(row.id)
                continue
            again = reader.should_retry(answer, attempts)
            if self._rounds is not None:
                answer, cost, attempts = self._rounds.total(row, answer, cost, again=again)
            settled.add(row, answer, fixed_of(batch, row, cost, attempts, self._now), again=again)
        if self._rounds is not None:
            self._rounds.finish()
        self.failed = _first_failed(outcomes)
        settled.outcomes.update(map(attrgetter("state"), outcomes))
        settled.usage.update({name: sum(map(attrgetter(name), outcomes)) for name in TOKENS})

    def _outcome_or_lost(self, outcome: Outcome | None) -> Outcome | None:
        """Return the outcome of a request, and count it if it is missing.

        outcome: None: there is no readable line. Then return the outcome lost, or None when the rows stay in flight.
        """
        if outcome is None:
            self.missing += 1
            return _LOST if self._lose else None
        return outcome

    def _add_cost(self, outcome: Outcome) -> float | None:
        """Add the cost of an outcome to the sum of the chunk, and return it; None: its price is not known."""
        cost = self._prices.cost(outcome)
        if cost is None:
            self.unpriced = True
            return None
        cost = round(cost, 12)  # smaller digits are errors of floating-point arithmetic
        self._settled.cost_usd += cost
        return cost

    def write(self) -> None:
        """Store the outcomes and the states of the rows in one transaction; stop the account if the API refused it."""
        with self._driver.moving(self._batch) as conn:
            settle_rows(self._driver, conn, self._batch, self._settled)
            if self._rounds is not None:
                put_turns(conn, self._rounds.turns, self._now)
                forget_params(conn, self._rounds.ended)
            if self._refused is not None:
                open_circuit(conn, self._driver.account_id, self._refused, self._now)


def _first_failed(outcomes: Iterable[Outcome]) -> list[dict[str, str | None]]:
    """Return the API's ids of the first few results that failed, each once, although several rows may share one."""
    names = ("status", "error_type", "message_id", "request_id")
    failed = (
        tuple(None if value is None else str(value) for value in (o.state, o.error_type, o.message_id, o.request_id))
        for o in outcomes
        if o.error_type is not None and (o.message_id or o.request_id)
    )
    return [dict(zip(names, of, strict=True)) for of in islice(dict.fromkeys(islice(failed, 50)), FAILED_TOLD)]


def _remove_unneeded_body(driver: Driver, batch: Batch, job: Job) -> None:
    """Remove the body of a batch whose results are stored, unless a row of it needs the body."""
    for nonce in unneeded(driver, job, [batch.id]):
        try:
            driver.spool.remove(nonce)
        except Stopped as exc:  # the next planning removes it
            driver.tell(BodyLeft(batch=batch.id, problem=str(exc)))
