"""Collecting an ended batch: its results to outcomes, in the results table and the rows' states in one transaction.

The results are streamed to a file, found complete, and read from it in the order of the request positions. If we die
between two chunks, the rows of the chunks before have their outcome and the others are still in flight: going on takes
the rows that are still in flight, wherever they are.
"""

import mmap
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Row

from pipeline import packing, pricing, store
from pipeline.driver import Driver
from pipeline.errors import Stopped
from pipeline.job import Job
from pipeline.results import Outcome, ResultReader
from pipeline.states import BatchState, RowState
from pipeline.store import Batch

CHUNK_ROWS = 5_000
MAX_DOWNLOADS = 3
LAST_DOWNLOAD_AFTER = timedelta(minutes=10)  # of the first, so that a passing fault of the API has passed


def collect_due(driver: Driver, jobs: "JobOfRun") -> int:
    """Collect each ended batch of the job that is due; how many were."""
    with driver.reading() as conn:
        due = store.batches_in(conn, driver.job_id, BatchState.ENDED, due=driver.now())
    collected = 0
    for batch in due:
        driver.stop.check()
        collected += collect(driver, batch, jobs(batch.run_id))
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
    """Collect one ended batch; False when its results are not complete yet and are to be fetched again."""
    assert batch.api_id is not None
    file = driver.spool.results_file(batch.nonce)
    try:
        try:
            found = download(driver, batch, file)
        except Stopped as exc:
            with driver.transaction() as conn:
                store.postpone(conn, batch.id, due_at=store.soon(driver.now(), 10.0), problem=str(exc))
            raise
        if found.missing and not _taken_as_it_is(driver, batch, found):
            return False
        cost = _store_outcomes(driver, batch, job, file, found)
    finally:
        file.unlink(missing_ok=True)
    with driver.transaction() as conn:
        store.mark_collected(conn, batch, now=driver.now())
    _free_bodies(driver, batch)
    driver.tell("collected", batch=batch.id, requests=batch.requests, rows=batch.rows, **cost)
    return True


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
            if line.strip():
                _place(found, batch.nonce, line, start, out)
            start += len(line)
    return found


def _place(found: Found, nonce: str, line: bytes, start: int, out: Any) -> None:
    identifier = packing.custom_id_of_result(line)
    n = None if identifier is None else packing.position(nonce, identifier)
    if n is None or n >= len(found.starts):
        found.unknown += 1
        return
    if found.starts[n] >= 0:  # two lines for one request: `succeeded` wins, for it was paid
        found.conflicts += 1
        if not _succeeded(line):
            return
    found.starts[n], found.lengths[n] = start, len(line)


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
    with driver.transaction() as conn:
        store.count_download(conn, batch, now=now, due_at=due_at, problem=problem)
    driver.tell("results_missing", batch=batch.id, problem=f"{problem}; fetching them again")
    return False


def _store_outcomes(driver: Driver, batch: Batch, job: Job, file: Path, found: Found) -> dict[str, Any]:
    reader = ResultReader(job)
    outcomes: Counter[str] = Counter()
    cost_usd = 0.0
    unpriced = False
    if found.unknown:
        driver.tell("unknown_results", batch=batch.id, lines=found.unknown)
    with open(file, "rb") as lines, _mapped(lines) as content:
        for first, last in _windows(batch):
            driver.stop.check()
            with driver.reading() as conn:
                rows = store.batch_rows(conn, batch.id, first, last)
            answers = {n: _outcome(reader, content, found, n) for n in {row.n for row in rows}}
            chunk = _Chunk(driver, batch, job, reader)
            for row in rows:
                chunk.add(row, answers[row.n])
            with driver.transaction() as conn:
                store.mark_outcomes(conn, batch, chunk.moves)
                driver.sink.write(conn, chunk.results)
                store.add_to_batch(conn, batch, outcomes=chunk.outcomes, cost_usd=chunk.cost_usd)
            outcomes += chunk.outcomes
            cost_usd += chunk.cost_usd
            unpriced |= chunk.unpriced
    return {"outcomes": dict(outcomes), "cost_usd": None if unpriced else round(cost_usd, 6)}


class _mapped:
    """A file's content without reading it into memory; empty files cannot be mapped."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._map: mmap.mmap | None = None

    def __enter__(self) -> mmap.mmap | bytes:
        size = self._file.seek(0, 2)
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
        return self._map or b""

    def __exit__(self, *exc: object) -> None:
        if self._map is not None:
            self._map.close()


def _windows(batch: Batch) -> Iterator[tuple[int, int]]:
    """Ranges of positions with about CHUNK_ROWS rows each: several rows may share a request."""
    step = max(1, CHUNK_ROWS * batch.requests // max(1, batch.rows))
    for first in range(0, batch.requests, step):
        yield first, min(first + step, batch.requests) - 1


def _outcome(reader: ResultReader, content: mmap.mmap | bytes, found: Found, n: int) -> Outcome:
    start = found.starts[n]
    if start < 0:
        return Outcome(RowState.LOST, "lost", "the API gave no result for this request")
    try:
        line = orjson.loads(content[start : start + found.lengths[n]])
    except orjson.JSONDecodeError as exc:
        return Outcome(RowState.LOST, "lost", f"the API's result line for this request is no JSON: {exc}")
    return reader.outcome(line)


class _Chunk:
    """The moves and results rows of one transaction."""

    def __init__(self, driver: Driver, batch: Batch, job: Job, reader: ResultReader) -> None:
        self.moves: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        self.outcomes: Counter[str] = Counter()
        self.cost_usd = 0.0
        self.unpriced = False
        self._driver, self._batch, self._reader = driver, batch, reader
        self._paid: set[int] = set()
        self._now = driver.now()
        self._output = dict.fromkeys(driver.sink.columns.output)
        self._labelled = job.output.labels is not None

    def add(self, row: Row[Any], outcome: Outcome) -> None:
        """One row's outcome. Of rows that share a request the first bears its cost and tokens."""
        first = row.n not in self._paid
        self._paid.add(row.n)
        again = self._reader.again(outcome, row.attempts + 1)
        cost = pricing.cost(outcome) if first else 0.0
        self.cost_usd += cost or 0.0
        self.unpriced |= cost is None
        self.outcomes[outcome.state] += 1
        self.moves.append(
            {
                "row": row.id,
                "new_state": RowState.PENDING if again else outcome.state,
                "in_batch": None if again else self._batch.id,
                "at": None if again else row.n,
                "new_outcome": outcome.state,
            }
        )
        result = {
            **self._driver.sink.values(row.key, row.keep),
            **self._output,
            "text": outcome.text,
            "status": outcome.state,
            "error_type": outcome.error_type,
            "error_message": outcome.error_message,
            "stop_reason": outcome.stop_reason,
            "model": outcome.model,
            "recipe": self._batch.recipe,
            "input_tokens": outcome.input_tokens if first else 0,
            "output_tokens": outcome.output_tokens if first else 0,
            "cache_read_tokens": outcome.cache_read_tokens if first else 0,
            "cache_write_tokens": outcome.cache_write_tokens if first else 0,
            "cost_usd": cost,
            "attempts": row.attempts + 1,
            "custom_id": packing.custom_id(self._batch.nonce, row.n),
            "batch_id": self._batch.api_id,
            "run_id": self._batch.run_id,
            "updated_at": self._now,
        }
        if self._labelled:
            result["label"] = outcome.label
        self.results.append(result)


def _free_bodies(driver: Driver, batch: Batch) -> None:
    """Remove the body of a collected batch unless rows of it are to be sent again."""
    with driver.reading() as conn:
        free = store.unneeded_bodies(conn, driver.job_id, [batch.id])
    for nonce in free:
        driver.spool.remove(nonce)
