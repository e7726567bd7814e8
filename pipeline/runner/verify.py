"""Prove that a job is complete: states, answers, the API's own counts and the source agree. Edge: SQL, files.

Everything is read page by page, each page in its own short transaction, so drivers can work at the same time. Rows and
batches that they have not finished are named as not done.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.job.model import Job
from pipeline.planning.verdict import Verdict
from pipeline.sink.definition import check_tables
from pipeline.sink.read import answered_keys, statuses_of
from pipeline.sink.table import ResultsTable
from pipeline.source import identity
from pipeline.state.batch_facts import BatchProblem, batches_of_job, twins
from pipeline.state.database import Database
from pipeline.state.jobs import JobRecord
from pipeline.state.row_facts import ProvedRow, proved_rows, requests_by_outcome
from pipeline.state.runs import vanished_rows
from pipeline.state.tallies import rows_of_source
from pipeline.states import CLOSED_BATCHES, CONTINUED, OPEN_BATCHES, OUTCOMES, BatchState, RowState

PAGE = 5_000  # rows of one transaction
AT_ONCE = 500  # keys that one query asks for
SHOWN = 30  # problems that are kept to be shown; all of them are counted
BUCKETS = 4_096  # see _Fingerprint
LOOKED_AT = 200_000  # keys that are kept in memory to find the names of those that disagree

#: Each type of result of the API, and our outcomes that such a result can have.
_KINDS: Mapping[str, tuple[str, ...]] = {
    "succeeded": (RowState.SUCCEEDED, RowState.TRUNCATED, RowState.REFUSED, RowState.UNPARSABLE, CONTINUED),
    "errored": (RowState.ERRORED,),
    "canceled": (RowState.CANCELED,),
    "expired": (RowState.EXPIRED,),
}


class Problem(NamedTuple):
    """Something that is wrong. of: the row, by its key as people write it, or the batch, as `batch 7`."""

    of: str
    problem: str


@dataclass
class Verified:
    """What was proven of a job, and what is wrong.

    rows: rows of the job. statuses: their number by outcome. waiting: rows that are pending or in flight. batches,
    requests: collected batches and their requests, whose counts were compared with the API's. lost, twins: lost
    batches, and batches with a twin. vanished: rows that left the source before they had an answer. source_rows: rows
    in the source; gone: rows of the job that are not in the source; both None if the source was not read. unplanned:
    rows of the source that only `run` can put right. problems: how many there are; shown: the first SHOWN of them.
    """

    table: str
    rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    waiting: int = 0
    batches: int = 0
    requests: int = 0
    lost: list[BatchProblem] = field(default_factory=list)
    twins: list[BatchProblem] = field(default_factory=list)
    vanished: int = 0
    source_rows: int | None = None
    gone: int | None = None
    unplanned: int = 0
    problems: int = 0
    shown: list[Problem] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def note(self, of: str, problem: str) -> None:
        """Count a problem, and keep it to be shown if there are not too many. of: see Problem."""
        self.problems += 1
        if len(self.shown) < SHOWN:
            self.shown.append(Problem(of, problem))


def verify(database: Database, job: JobRecord) -> Verified:
    """Check that the job is complete for all rows that its runs planned. Return what was found.

    job: its record in the state database. Raises DatabaseError when the results table is gone.
    """
    sink = ResultsTable.of(job)
    with database.read() as conn:
        check_tables(conn, sink, sink.columns)
    found = Verified(job.results_table)
    answers, answered = _Fingerprint(), _Fingerprint()
    for page in answered_keys(database, sink):  # first: an answer stored later is not reported as unknown
        answers.add(page)
    for rows in _rows(database, job.id, sink):
        answered.add([row.key for row in rows if row.status is not None])
        for row in rows:
            _verify_row(found, row)
    differing = answers.differing(answered)
    if differing:
        strangers = answers.keys - answered.keys
        _note_strangers(found, database, job.id, sink, differing, strangers)
    _verify_batches(found, database, job.id)
    return found


def verify_source(database: Database, job: JobRecord, declared: Job, found: Verified) -> None:
    """Check that each row of the whole source has an outcome for its present content. Add the problems to `found`.

    declared: the job as its file says. Raises SourceError or JobError when the source cannot be read, or its keys do
    not tell its rows apart.
    """
    from pipeline.planning import quoting  # these need polars, the rest does not
    from pipeline.planning.known_rows import KnownRows
    from pipeline.planning.plan import Plan

    plan, known_rows = Plan(declared), KnownRows(database, job.id)
    quote = plan.quote(known_rows, reads_all=True)  # this proves that the keys are unique
    found.source_rows = quote.total
    with database.read() as conn:
        rows = rows_of_source(conn, job.id, declared.vars)
    found.gone = None if rows is None else quoting.gone(rows, quote)
    if not quote.rows.keys() & _UNPLANNED.keys():
        return
    judge = plan.judge(known_rows)
    for chunk in plan.source.chunks():
        keys = identity.keys(chunk.frame, declared.source.key)
        known = known_rows(keys)
        for key, row_hash, older in zip(keys, plan.source.hashes(chunk), plan.source.older_hashes(chunk), strict=True):
            kind = judge.verdict(known.get(key), row_hash, older)
            if kind in _UNPLANNED:
                found.unplanned += 1
                found.note(identity.shown(key), _UNPLANNED[kind])


#: Verdicts of source rows whose present content was never planned, so that `verify` cannot have named them.
_UNPLANNED: Mapping[Verdict, str] = {
    Verdict.NEW: "is in the source and was never planned",
    Verdict.CHANGED: "has changed in the source since its outcome was stored",
    Verdict.CHANGED_IN_FLIGHT: "has changed in the source since it was sent",
}


# -- rows and answers ------------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """A row of the state database. key: as in the results table. status: that of its answer; None: it has none."""

    known: ProvedRow
    key: tuple[Any, ...]
    status: str | None

    @property
    def shown(self) -> str:
        """The key as people write it."""
        return identity.shown(self.known.key)


def _rows(database: Database, job_id: int, sink: ResultsTable) -> Iterator[list[_Row]]:
    """Yield the job's rows, page by page."""
    after: str | None = None
    while True:
        statuses: dict[tuple[Any, ...], str] = {}
        with database.read() as conn:
            found = proved_rows(conn, job_id, after=after, limit=PAGE)
            keys = [sink.key_values(row.key) for row in found]
            for start in range(0, len(keys), AT_ONCE):
                statuses |= statuses_of(conn, sink, keys[start : start + AT_ONCE])
        if not found:
            return
        yield [_Row(row, key, statuses.get(key)) for row, key in zip(found, keys, strict=True)]
        after = found[-1].key


def _verify_row(found: Verified, row: _Row) -> None:
    """Compare one row of the state database with its answer, and note what is wrong."""
    known = row.known
    found.rows += 1
    if known.outcome is not None and row.status is None:
        found.note(row.shown, f"has the outcome {known.outcome} and no row in table {found.table}")
    elif known.outcome != row.status:
        ours = known.outcome or "not answered"
        found.note(row.shown, f"is {row.status} in table {found.table} and {ours} in the state database")
    if known.state in OUTCOMES:
        found.statuses[known.state] += 1
        if known.state != known.outcome:
            found.note(row.shown, f"is {known.state}, and its outcome is {known.outcome or 'none'}")
        return
    found.waiting += 1
    if known.state == RowState.PENDING:
        found.note(row.shown, "is not done: it waits to be sent")
    elif known.batch_state in CLOSED_BATCHES:
        found.note(row.shown, f"is in flight in batch {known.batch_id}, which is {known.batch_state}")
    else:
        found.note(row.shown, f"is not done: it is in batch {known.batch_id}, which is {known.batch_state}")


class _Fingerprint:
    """Represents a set of keys in constant memory: the sums of their hashes, in BUCKETS buckets chosen by the hash.

    Two sets with the same sums are equal. If sums differ, only the keys of the buckets that differ must be read again.
    """

    def __init__(self) -> None:
        self.keys = 0
        self._sums = [0] * BUCKETS

    def add(self, keys: Sequence[tuple[Any, ...]]) -> None:
        """Add keys, each as the values of its columns."""
        self.keys += len(keys)
        for values in keys:
            number = _hash(values)
            self._sums[number % BUCKETS] += number

    def differing(self, other: "_Fingerprint") -> frozenset[int]:
        """Return the buckets that differ; empty: the sets are equal.

        If they have many keys, return only the first buckets, with about LOOKED_AT keys together, or one bucket.
        """
        differ = [i for i, (ours, theirs) in enumerate(zip(self._sums, other._sums, strict=True)) if ours != theirs]
        return frozenset(differ[: max(1, LOOKED_AT * BUCKETS // max(1, self.keys))])


def _hash(values: tuple[Any, ...]) -> int:
    return int.from_bytes(hashlib.blake2b(repr(values).encode("utf-8", "surrogatepass"), digest_size=16).digest())


def _note_strangers(
    found: Verified, database: Database, job_id: int, sink: ResultsTable, buckets: frozenset[int], at_least: int
) -> None:
    """Note answers without a row, and rows that share an answer: those in these buckets by name, others as a number.

    at_least: how many more answers there are than rows with an answer.
    """
    strangers: dict[int, str] = {}
    for page in answered_keys(database, sink):
        hashes = ((_hash(values), values) for values in page)
        strangers |= {number: ",".join(map(str, values)) for number, values in hashes if number % BUCKETS in buckets}
    owners: dict[int, str] = {}
    for rows in _rows(database, job_id, sink):
        for row in rows:
            number = _hash(row.key)
            if number % BUCKETS not in buckets or row.status is None:
                continue
            if number in owners:
                found.note(row.known.key, f"shares its row in table {found.table} with {owners[number]}")
            owners[number] = row.known.key
            strangers.pop(number, None)
    for shown in strangers.values():
        found.note(shown, f"has a row in table {found.table}, and is not a row of the job")
    found.problems += max(0, at_least - len(strangers))


# -- batches ---------------------------------------------------------------------------------------------------------


def _verify_batches(found: Verified, database: Database, job_id: int) -> None:
    """Compare each collected batch with the API's counts, and note batches that are not done, lost or sent twice."""
    with database.read() as conn:
        known = batches_of_job(conn, job_id)
        found.twins = twins(conn, job_id)
        found.vanished = vanished_rows(conn, job_id)
        shared = {batch.id: requests_by_outcome(conn, batch.id) for batch in known if batch.requests != batch.rows}
    for batch in known:
        if batch.state == BatchState.COLLECTED:
            found.batches += 1
            found.requests += batch.requests
            outcomes = batch.outcomes or {}
            for problem in disagreements(
                batch.requests, batch.rows, batch.counts or {}, outcomes, shared.get(batch.id, outcomes)
            ):
                found.note(f"batch {batch.id}", problem)
        elif batch.state in OPEN_BATCHES and not found.waiting:  # otherwise its rows have been named
            found.note(f"batch {batch.id}", f"is not done: it is {batch.state}")
        elif batch.state == BatchState.LOST:
            found.lost.append(BatchProblem(batch.id, batch.trouble or ""))


def disagreements(
    sent: int, rows: int, counts: Mapping[str, int], outcomes: Mapping[str, int], answered: Mapping[str, int]
) -> Iterator[str]:
    """Yield how the API's counts of a collected batch contradict what was collected of it. Pure.

    sent: the number of its requests. rows: the number of rows that share them. counts: the API's number of requests by
    type of result. outcomes: the number of rows by outcome; answered: that of requests: where each has one row, it is
    the same, else it leaves out requests whose rows have all been sent again. Yields nothing if they agree.
    """
    if sum(counts.values()) != sent:
        yield f"has {sent} requests, and the API counts {sum(counts.values())}"
        return
    collected = sum(outcomes.values())
    if collected > rows:
        yield f"has {rows} rows, and {collected} outcomes were collected"
        return
    # Fewer outcomes are right if the batch was lost, and some of its rows were sent again before it was found. And a
    # request without a readable result line is lost, whatever type of result the API counts it as.
    unread = answered.get(RowState.LOST, 0) + sent - sum(answered.values())
    for kind, ours in _KINDS.items():
        here = sum(answered.get(outcome, 0) for outcome in ours)
        if not here <= counts.get(kind, 0) <= here + unread:
            yield f"has {counts.get(kind, 0)} {kind} requests by the API's count, and {here} were collected"
