"""Collecting an ended batch: its results to outcomes, in the results table and the rows' states in one transaction.

The results are streamed to a file, found complete, and read from it in the order of the request positions. If we die
between two chunks, the rows of the chunks before have their outcome and the others are still in flight: going on takes
the rows that are still in flight, wherever they are.
"""

import os
from array import array
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson

from pipeline import attached, lost, packing, store
from pipeline.api import NotFound
from pipeline.driver import Driver, leave_alone
from pipeline.errors import Stopped
from pipeline.job import Job
from pipeline.outcomes import Outcome, ResultReader, without_usage
from pipeline.pricing import PriceList
from pipeline.sink import Fixed
from pipeline.states import BatchState, RowState
from pipeline.store import Batch

CHUNK_ROWS = 5_000
RETRY_SECONDS = 10.0
#: Of a request: the API refuses the account, and would refuse every other one.
ACCOUNT_ERRORS = frozenset({"authentication_error", "permission_error", "billing_error"})
#: Tokens by class that are counted for each batch, by their columns in the results table.
USAGE = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
MAX_DOWNLOADS = 3
LAST_DOWNLOAD_AFTER = timedelta(minutes=10)  # of the first, so that a passing fault of the API has passed


def collect_due(driver: Driver, jobs: "JobOfRun") -> int:
    """Collect each ended batch of the job that is due; how many were."""
    collected = 0
    for batch in driver.claims(BatchState.ENDED):
        with driver.lost_races(batch):
            if batch.account_id == driver.account_id:
                collected += collect(driver, batch, jobs(batch.run_id))
            else:
                leave_alone(driver, batch, wait=60.0)
    return collected


class JobOfRun:
    """The job of a run as the database has it: a job file that has changed since does not change what was asked."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._jobs: dict[int, Job] = {}

    def __call__(self, run_id: int) -> Job:
        """The job of this run."""
        if run_id not in self._jobs:
            with self._driver.reading() as conn:
                self._jobs[run_id] = Job.model_validate(store.run(conn, run_id).job)
        return self._jobs[run_id]


def collect(driver: Driver, batch: Batch, job: Job) -> bool:
    """Collect one ended batch that we have claimed; False when its results are to be fetched again, or are lost."""
    file = driver.spool.results_file(batch.nonce, batch.claim)
    try:
        found = _fetched(driver, batch, file)
        if found is None or (found.missing and not _taken_as_it_is(driver, batch, found)):
            return False
        total = _store_outcomes(driver, batch, job, file, found)
    finally:
        file.unlink(missing_ok=True)
    with driver.moving(batch) as conn:
        if not total.unpriced:
            store.settle(conn, batch, lost=found.missing)
        if found.missing:
            why = f"{found.missing} of {batch.requests} results were missing in {MAX_DOWNLOADS} downloads"
            store.mark_lost(conn, batch, why, due_at=store.soon(driver.now(), lost.ASK_AGAIN))
        else:
            store.mark_collected(conn, batch, delete_remote=job.privacy.delete_remote, now=driver.now())
    if not job.privacy.keep_spool:
        _free_bodies(driver, batch)
    cost = None if total.unpriced else round(total.cost_usd, 6)
    facts = {"outcomes": dict(total.outcomes), "cost_usd": cost}
    driver.tell("collected", batch=batch.id, requests=batch.requests, rows=batch.rows, **facts)
    return True


def _fetched(driver: Driver, batch: Batch, file: Path) -> "Found | None":
    """The downloaded results; None when the API does not have them."""
    try:
        return download(driver, batch, file)
    except NotFound as exc:  # of this batch only: the others go on
        if batch.created_at < driver.now() - store.RESULTS_KEPT:
            lost.give_up(driver, batch, f"its results are older than 29 days and gone at the API: {exc}")
        else:
            lost.count_not_found(driver, batch, str(exc), wait=RETRY_SECONDS)
        return None
    except Stopped as exc:
        with driver.moving(batch) as conn:
            store.postpone(conn, batch, due_at=store.soon(driver.now(), RETRY_SECONDS), problem=str(exc))
        raise
    except OSError as exc:  # of the disk: what a connection does is Stopped by now
        problem = f"{driver.spool.disk}: {exc.strerror or exc}"
        raise Stopped(f"{problem}; the results of batch {batch.id} find no room, safe to run again") from exc


@dataclass
class Found:
    """Where each result line stands in the downloaded file, by request position.

    starts: -1 where there is none. unknown: lines that name no request of the batch.
    """

    starts: "array[int]"
    lengths: "array[int]"
    unknown: int = 0
    conflicts: int = 0

    @property
    def missing(self) -> int:
        """How many requests have no line."""
        return self.starts.count(-1)


def download(driver: Driver, batch: Batch, file: Path) -> Found:
    """Stream a batch's results to `file`. Raises Stopped when the stream breaks; the next step fetches it again."""
    assert batch.api_id is not None
    found = Found(array("q", [-1]) * batch.requests, array("q", [0]) * batch.requests)
    with open(file, "w+b") as out:
        file.chmod(0o600)
        with driver.api.results(batch.api_id) as chunks:
            for chunk in chunks:
                driver.stop.check()
                out.write(chunk)
        out.flush()
        out.seek(0)
        start = 0
        for line in out:  # splits at \n only: text may hold U+2028 and its like
            if line.strip() and (line.endswith(b"\n") or _is_whole(line)):
                _place(found, batch.nonce, line, start, out)
            start += len(line)
    return found


def _place(found: Found, nonce: str, line: bytes, start: int, out: Any) -> None:
    n = packing.position_of_result(nonce, line)
    if n is None or n >= len(found.starts):
        found.unknown += 1
        return
    if found.starts[n] >= 0:  # two lines for one request: `succeeded` wins, for it was paid
        found.conflicts += 1
        if not _succeeded(line):
            return
    found.starts[n], found.lengths[n] = start, len(line)


def _is_whole(line: bytes) -> bool:
    """Whether the last line of a download, behind which there is no newline, was not cut off."""
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def _succeeded(line: bytes) -> bool:
    try:
        result = orjson.loads(line)["result"]
        return bool(result["type"] == "succeeded")
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return False


def _taken_as_it_is(driver: Driver, batch: Batch, found: Found) -> bool:
    """Whether an incomplete download is the last one, and what is missing is lost. Else it is fetched again later."""
    now = driver.now()
    first = batch.downloaded_at or now
    problem = f"{found.missing} of {batch.requests} results are missing at the API"
    enough = batch.downloads + 1 >= MAX_DOWNLOADS and now - first >= LAST_DOWNLOAD_AFTER
    if enough:
        driver.tell("results_missing", batch=batch.id, problem=f"{problem}; their rows are lost")
        return True
    last_but_one = batch.downloads + 2 >= MAX_DOWNLOADS
    due_at = max(first + LAST_DOWNLOAD_AFTER, store.soon(now, 5.0)) if last_but_one else store.soon(now, 5.0)
    with driver.moving(batch) as conn:
        store.count_download(conn, batch, now=now, due_at=due_at, problem=problem)
    driver.tell("results_missing", batch=batch.id, problem=f"{problem}; fetching them again")
    return False


def _store_outcomes(driver: Driver, batch: Batch, job: Job, file: Path, found: Found) -> "_Total":
    reader, listed = ResultReader(job), PriceList(job.prices)
    total = _Total()
    if found.unknown:
        driver.tell("unknown_results", batch=batch.id, lines=found.unknown)
    with (
        open(file, "rb") as lines,
        ThreadPoolExecutor(1, thread_name_prefix="collect") as writer,  # writes a chunk while the next one is parsed
    ):
        written: Future[None] | None = None
        for first, last in _windows(batch):
            driver.stop.check()
            chunk = _Chunk(driver, batch, reader, listed, first, last)
            chunk.read(lines.fileno(), found)
            if written is not None:
                written.result()
            written = writer.submit(chunk.write)
            total.count(chunk)
        if written is not None:
            written.result()
    return total


@dataclass
class _Total:
    outcomes: Counter[str] = field(default_factory=Counter)
    cost_usd: float = 0.0
    unpriced: bool = False

    def count(self, chunk: "_Chunk") -> None:
        self.outcomes += chunk.outcomes
        self.cost_usd += chunk.cost_usd
        self.unpriced |= chunk.unpriced


def _windows(batch: Batch) -> Iterator[tuple[int, int]]:
    """Ranges of positions with about CHUNK_ROWS rows each: several rows may share a request."""
    step = max(1, CHUNK_ROWS * batch.requests // max(1, batch.rows))
    for first in range(0, batch.requests, step):
        yield first, min(first + step, batch.requests) - 1


_NOT_FOUND = Outcome(RowState.LOST, "lost", "the API gave no result for this request")


def _outcome(reader: ResultReader, file: int, found: Found, n: int) -> Outcome:
    start = found.starts[n]
    if start < 0:
        return _NOT_FOUND
    try:
        line = orjson.loads(os.pread(file, found.lengths[n], start))
    except orjson.JSONDecodeError as exc:
        return Outcome(RowState.LOST, "lost", f"the API's result line for this request is no JSON: {exc}")
    return reader.outcome(line)


class _Chunk:
    """The moves and results rows of one transaction."""

    def __init__(
        self, driver: Driver, batch: Batch, reader: ResultReader, listed: PriceList, first: int, last: int
    ) -> None:
        self.moves: list[store.Settled] = []
        self.results: list[tuple[Any, ...]] = []
        self.outcomes: Counter[str] = Counter()
        self.cost_usd = 0.0
        self.unpriced = False
        self._driver, self._batch, self._reader, self._listed = driver, batch, reader, listed
        self.usage = dict.fromkeys(USAGE, 0)
        self._first, self._last = first, last
        self._now = driver.now()
        self._refused: str | None = None  # what the API said of the account, where it refused that

    def read(self, file: int, found: Found) -> None:
        """The outcomes of the batch's rows in flight at these positions. file: the downloaded one's descriptor."""
        with self._driver.reading() as conn:
            rows = store.batch_rows(conn, self._batch.id, self._first, self._last)
        answered, outcome = -1, _NOT_FOUND
        for number, n, attempts, key, keep in rows:
            shared = n == answered
            if not shared:
                answered, outcome = n, _outcome(self._reader, file, found, n)
            self.add(number, n, attempts + 1, key, keep, without_usage(outcome) if shared else outcome)

    def write(self) -> None:
        """Outcomes and states, in one transaction."""
        with self._driver.moving(self._batch) as conn:
            store.mark_outcomes(conn, self._batch, self._first, self._last, self.moves)
            self._driver.sink.write(conn, self.results)
            if self._refused is not None:
                store.open_circuit(conn, self._driver.account_id, self._refused, self._now)
            store.add_to_batch(conn, self._batch, self.outcomes, self.usage, self.cost_usd)

    def add(self, number: int, n: int, attempts: int, key: str, keep: str | None, outcome: Outcome) -> None:
        """One row's outcome. Of rows that share a request only the first bears its cost and tokens."""
        cost = self._listed.cost(outcome)
        if cost is None:
            self.unpriced = True
        else:
            self.cost_usd += cost
        self.outcomes[outcome.state] += 1
        if outcome.model is not None:
            usage = self.usage
            usage["input_tokens"] += outcome.input_tokens
            usage["output_tokens"] += outcome.output_tokens
            usage["cache_read_tokens"] += outcome.cache_read_tokens
            usage["cache_write_tokens"] += outcome.cache_write_tokens
        if outcome.error_type in ACCOUNT_ERRORS:  # it says nothing of the row, which waits until the account is right
            self._refused = f"{outcome.error_type}: {outcome.error_message}"
            self.moves.append(store.Settled(number, outcome.state, outcome.error_type, again=True, counts=False))
            return
        self.moves.append(
            store.Settled(number, outcome.state, outcome.error_type, self._reader.again(outcome, attempts))
        )
        batch = self._batch
        custom_id = packing.custom_id(batch.nonce, n)
        fixed = Fixed(batch.recipe, cost, attempts, custom_id, batch.api_id, batch.run_id, self._now)
        self.results.append(self._driver.sink.row(key, keep, outcome, fixed))


def _free_bodies(driver: Driver, batch: Batch) -> None:
    """Remove the body of a collected batch unless rows of it are to be sent again."""
    with driver.reading() as conn:
        free = store.unneeded_bodies(conn, driver.job_id, [batch.id])
    for nonce in free:
        try:
            driver.spool.remove(nonce)
        except Stopped as exc:  # the next planning removes it
            driver.tell("body_left", batch=batch.id, problem=str(exc))


def delete_due(driver: Driver) -> None:
    """Delete at the API what jobs want deleted there: collected batches, and files that nothing needs any more.

    What cannot be deleted now is tried again later.
    """
    attached.delete_due(driver)
    for batch in driver.claims(BatchState.COLLECTED, only=store.TO_DELETE):
        assert batch.api_id is not None
        problem = None
        if batch.account_id != driver.account_id:
            problem = "it was sent by another account"
        else:
            try:
                driver.api.delete(batch.api_id)
            except NotFound:
                pass  # somebody else deleted it
            except Stopped as exc:
                problem = str(exc)
        with driver.moving(batch) as conn:
            if problem is None:
                store.mark_deleted(conn, batch)
            else:
                due_at = store.soon(driver.now(), RETRY_SECONDS)
                store.postpone(conn, batch, due_at=due_at, problem=f"not deleted at the API yet: {problem}")
        driver.tell("deleted" if problem is None else "not_deleted", batch=batch.id, problem=problem)
