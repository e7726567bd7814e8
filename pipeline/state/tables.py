"""The tables of the state database. Times are UTC; those of sendings are by the API's clock. Pure."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)

from pipeline.reasons import Reason
from pipeline.states import BatchState, Gate, RowState, RunState, SendingEnd, Waits


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, stored as UTC without a zone."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return an aware datetime as UTC without a zone; None stays None."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return a datetime in UTC without a zone as an aware one; None stays None."""
        return None if value is None else value.replace(tzinfo=UTC)


def _one_of(column: str, states: Any) -> CheckConstraint:
    # not IN (...), for which SQLite builds a set again for each row: that took a third of the time of an insert
    listed = " OR ".join(f"{column} = '{state}'" for state in states)
    return CheckConstraint(listed, name=f"known_{column}")


#: The number of a row. SQLite numbers rows itself only in a column that is declared exactly as INTEGER PRIMARY KEY.
_NUMBER = BigInteger().with_variant(Integer, "sqlite")


def _id() -> Column[int]:
    return Column("id", _NUMBER, primary_key=True)


def _partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    return Index(name, *columns, unique=unique, sqlite_where=text(where), postgresql_where=text(where))


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

jobs = Table(
    "jobs",
    metadata,
    _id(),
    Column("name", String, nullable=False, unique=True),
    Column("file", Text),  # the job file of the last run, so that a command needs only the job's name
    Column("results_table", String, nullable=False),
    Column("columns", JSON, nullable=False),  # the columns of the results table as created
    Column("spool", Text),  # NULL: beside the database
    # the id in the spool's marker file, so that another folder is not mistaken for the spool
    Column("spool_id", String),
    Column("swept_at", UtcDateTime),  # when a driver last did all work that was due
    Column("gone", Integer),  # rows that were not in the source when it was last read completely; NULL: unknown
    Column("gone_at", UtcDateTime),  # when that was
    Column("created_at", UtcDateTime, nullable=False),
    Column("trial_of", ForeignKey("jobs.id")),  # the job of which this is a trial; NULL: it is no trial
    Column("trial", JSON(none_as_null=True)),  # what a trial asks otherwise, of which rows; see jobs.TrialRecord
    # the trials of a job share one results table
    _partial_index("ix_jobs_results_table", "results_table", where="trial_of IS NULL", unique=True),
)

runs = Table(
    "runs",
    metadata,
    _id(),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("vars", JSON, nullable=False),
    Column("retry", JSON(none_as_null=True)),  # the rows that a person wants sent again; NULL: the whole source
    Column("job", JSON, nullable=False),  # the job with its vars filled in; collecting reads only this copy
    Column("recipe", String, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", String),
    Column("planned_at", UtcDateTime),  # NULL: planning has not reached the end of the source
    Column("vanished", Integer, nullable=False, default=0),
    Column("counts", JSON),  # rows by state, written when the run ends
    Column("created_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("announced_at", UtcDateTime),  # when its end was announced to a person; NULL: not, as far as is known
    Column("tokens_per_byte", Float),  # the bound by which its sendings reserve money; NULL: no budget
    Column("gate", String),  # what must end before its remaining batches may be sent; NULL: nothing
    Column("estimate", JSON(none_as_null=True)),  # the estimate of its cost from its start
    Column("no_canary", Boolean, nullable=False, server_default=false()),  # a person wants all rows sent at once
    _one_of("state", RunState),
    _one_of("gate", Gate),
)

accounts = Table(
    "accounts",
    metadata,
    _id(),
    Column("base_url", String, nullable=False),
    Column("organization", String, nullable=False),  # from response headers; without them a salted digest of the key
    Column("workspace", String, nullable=False),
    Column("emulated", Boolean, nullable=False),
    Column("circuit_cause", Text),  # why sending has stopped; NULL: it has not
    Column("circuit_at", UtcDateTime),
    UniqueConstraint("base_url", "organization", "workspace"),
)

batches = Table(
    "batches",
    metadata,
    _id(),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("run_id", ForeignKey("runs.id"), nullable=False, index=True),
    Column("account_id", ForeignKey("accounts.id")),
    Column("state", String, nullable=False),
    Column("recipe", String, nullable=False),
    Column("nonce", String, nullable=False, unique=True),
    Column("digest", String, nullable=False),  # sha256 of the body
    Column("size_bytes", BigInteger, nullable=False),
    Column("requests", Integer, nullable=False),
    Column("rows", Integer, nullable=False),  # at least `requests`: equal requests are sent once
    Column("api_id", String, unique=True),
    Column("counts", JSON),  # the API's request_counts once ended
    Column("outcomes", JSON),  # rows by outcome, as far as collected
    Column("cost_usd", Float, nullable=False, default=0.0),
    Column("downloads", Integer, nullable=False, default=0),  # number of downloads of its results
    Column("downloaded_at", UtcDateTime),  # the time of the first one
    Column("reason", String),  # why it is held back, watched, or was dropped
    Column("problem", Text),  # details of the reason, or the last error
    Column("created_at", UtcDateTime, nullable=False),
    Column("due_at", UtcDateTime, nullable=False),  # the earliest time of the next submit, poll or download
    Column("wait_seconds", Float, nullable=False, default=0.0),  # the last pause between polls, which grows
    Column("ended_at", UtcDateTime),
    Column("collected_at", UtcDateTime),
    Column("claim", BigInteger, nullable=False, server_default=text("0")),  # grows by one with each claim
    Column("claimed_by", String),  # the lease of the driver that has claimed it; NULL: no driver
    Column("not_found", Integer, nullable=False, server_default=text("0")),  # number of 404 responses of the API
    Column("not_found_at", UtcDateTime),  # the time of the first one
    Column("canceling_at", UtcDateTime),  # when it was first seen canceling at the API
    Column("cancel", Boolean, nullable=False, server_default=false()),  # it is to be canceled at the API
    Column("delete_remote", Boolean, nullable=False, server_default=false()),  # it is to be deleted at the API
    # the worst-case cost of its output and attachments; NULL: a model has no known price
    Column("max_output_usd", Float),
    Column("max_input_usd", Float),  # the cost of its input if each byte were a token
    Column("gate", String),  # the gate of its run that it opens; NULL: an ordinary batch
    Column("usage", JSON(none_as_null=True)),  # tokens by class, as far as collected
    _one_of("state", BatchState),
    CheckConstraint(
        "state = 'lost' OR (api_id IS NOT NULL) = (state IN ('in_progress', 'canceling', 'ended', 'collected'))",
        name="has_id",
    ),
    _one_of("gate", Gate),
    _one_of("reason", Reason),
    Index("ix_batches_job_id_state", "job_id", "state"),  # for the search for a driver's next work
)

sendings = Table(
    "sendings",
    metadata,
    _id(),
    Column("batch_id", ForeignKey("batches.id"), nullable=False, index=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    # the lease of the sending driver, which shows whether the call can still be running
    Column("driver", String, nullable=False, server_default=""),
    Column("started_at", UtcDateTime, nullable=False),
    Column("deadline", UtcDateTime, nullable=False),  # the last chunk of the body is sent before this time or never
    Column("end", String),
    Column("grace_from", UtcDateTime),  # the start of the grace time; NULL: the end is not unknown
    Column("ended_at", UtcDateTime),
    Column("api_id", String, unique=True),  # one batch at the API belongs to one sending
    Column("request_id", String),
    Column("problem", Text),
    Column("reserved_usd", Float),  # the worst-case cost, until it is settled; NULL: no budget
    Column("settled_usd", Float),  # the actual cost; NULL: not settled
    CheckConstraint('"end" IN ({})'.format(", ".join(f"'{end}'" for end in SendingEnd)), name="known_end"),
)

#: Batches at the API whose results have shown whose they are, so that each is read only once. Rows are never removed.
identified = Table(
    "identified",
    metadata,
    Column("account_id", ForeignKey("accounts.id"), primary_key=True),
    Column("api_id", String, primary_key=True),
    Column("nonce", String, nullable=False),  # of the body that was sent; empty: the batch is not ours
)

# Only batch_id is a foreign key. Each one costs the server of PostgreSQL a query for each new row, together half of its
# work for an insert. Jobs, runs and batches are never removed; a transaction that writes their numbers has inserted or
# read them itself.
requests = Table(
    "requests",
    metadata,
    _id(),
    Column("job_id", _NUMBER, nullable=False),
    Column("key", Text, nullable=False),  # JSON array of the key columns' values
    Column("run_id", _NUMBER, nullable=False),  # the run that planned the row last
    Column("state", String, nullable=False),
    Column("row_hash", LargeBinary(16), nullable=False),  # of the source row at the last planning
    Column("recipe", String, nullable=False),
    Column("keep", Text),  # JSON object of the kept columns
    Column("batch_id", ForeignKey("batches.id")),  # the batch that the row is in, or was in when it got its outcome
    Column("n", Integer),
    Column("body_id", _NUMBER),  # the batch whose body holds its request, to send it again
    Column("body_n", Integer),
    Column("sent_hash", LargeBinary(16)),  # of the params as sent
    # with this row_hash and recipe, in this retry and in this round; negative: a retry has put the row into a batch, or
    # the row goes on in another round, and the number is that of the attempts before
    Column("attempts", Integer, nullable=False, default=0),
    Column("outcome", String),  # the last outcome, kept while the row is sent again
    Column("error_type", String),  # of that outcome; decides whether the row may be sent again unchanged
    Column("outcome_hash", LargeBinary(16)),  # the row_hash that the outcome answers
    Column("outcome_recipe", String),
    Column("outcome_sent_hash", LargeBinary(16)),  # the sent_hash that the outcome answers
    Column("changed_hash", LargeBinary(16)),  # the row_hash found in the source while in flight; NULL: unchanged
    Column("waits", String),  # what a pending row waits for; NULL: the row is not pending
    Column("round", Integer, nullable=False, server_default=text("1")),  # of its next, present or last request
    UniqueConstraint("job_id", "key"),
    _one_of("state", RowState),
    CheckConstraint("state <> 'in_flight' OR batch_id IS NOT NULL", name="in_flight_in_a_batch"),
    CheckConstraint("state <> 'pending' OR batch_id IS NULL", name="pending_in_no_batch"),
    CheckConstraint("(state = 'pending') = (waits IS NOT NULL)", name="pending_waits"),
    CheckConstraint("(waits = 'spool') = (body_id IS NOT NULL)", name="waits_in_a_body"),
    _one_of("waits", Waits),
    # Partial indexes, because this is the largest table: a row is in each of them only while queries look for it.
    # They name `waits`, not `state`: PostgreSQL changes a row in place, without an entry in each index, only if no
    # column that an index names is changed, and each row in flight gets another state with its outcome.
    _partial_index("ix_requests_waiting", "run_id", "id", where="waits IS NOT NULL"),
    _partial_index("ix_requests_batch_id_n", "batch_id", "n", where="batch_id IS NOT NULL"),
    _partial_index("ix_requests_body", "body_id", "body_n", where="waits = 'spool'"),
    _partial_index("ix_requests_changed", "run_id", where="changed_hash IS NOT NULL"),
)

#: Where the request is that rows with this sent_hash may share, for requests that pass one suspects to come more than
#: once in the source. Other requests are not here, so a source without equal rows writes none.
shared = Table(
    "shared",
    metadata,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    Column("sent_hash", LargeBinary(16), primary_key=True),
    Column("batch_id", ForeignKey("batches.id"), nullable=False),  # the batch that has it, or had it last
    Column("n", Integer, nullable=False),
    Column("rows", Integer, nullable=False),  # rows that were planned to share it, to be known without counting them
)

#: The answers after which a row goes on in another round. Those of the rounds before the `round` of a row are its own;
#: others are left of an earlier conversation, and the next one replaces them. A row of `requests` can be removed while
#: it has some, so request_id is no foreign key.
turns = Table(
    "turns",
    metadata,
    Column("request_id", _NUMBER, primary_key=True, autoincrement=False),  # the row
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("params", Text),  # of the request that was answered, JSON; NULL: a later turn has them, or the row has ended
    Column("message", Text, nullable=False),  # the answer as the API sent it, JSON
    Column("results", Text),  # JSON array: for each call of a tool its result, null without one; NULL: a paused turn
    Column("open_calls", Integer, nullable=False),  # calls that have no result yet
    Column("usage", JSON, nullable=False),  # tokens, cost, attempts and uses of tools of this round
    Column("gate", String),  # the gate of the run that the next round's batch opens; NULL: an ordinary batch
    Column("ready_at", UtcDateTime, nullable=False),  # when the answer or its last result was stored
    Column("claimed_by", String),  # the lease of the driver that makes its calls; NULL: no driver
)

#: The number of rows of a run in each state, as a sum of the changes of each transaction, because counting ten million
#: rows takes seconds. Rows are only inserted, so that no driver waits for another; they are summed when the run ends.
tallies = Table(
    "tallies",
    metadata,
    _id(),
    Column("run_id", ForeignKey("runs.id"), nullable=False, index=True),
    Column("state", String, nullable=False),
    Column("rows", BigInteger, nullable=False),  # rows that entered this state; negative: that left it
    _one_of("state", RowState),
)

#: Segments: the digests of a source file's rows when they were planned, so that an unchanged file is not read again.
#: A segment does not say what the rows are today. The rows are compared with it, so it need not be kept up to date.
#: A row whose `first` is 0 is no segment but a mark, see state/settled.
stretches = Table(
    "stretches",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("source", LargeBinary(32), primary_key=True),  # the fingerprint of the file: its bytes and how they are read
    Column("n", Integer, primary_key=True),  # its place in the file, from 0; all segments of a file are stored, or none
    Column("first", BigInteger, nullable=False),  # number of its first row
    Column("last", BigInteger, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("digest", LargeBinary(32), nullable=False),  # of their keys, row hashes and kept values, in this order
    Index("ix_stretches_job_id_first", "job_id", "first"),  # to find the segments that new ones replace
)

#: The API's token counts of a sample of a recipe's requests. They are asked for once for each recipe of a job.
token_counts = Table(
    "token_counts",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("recipe", String, primary_key=True),
    Column("sample", JSON, nullable=False),  # a list of counting.Pair
    Column("prefix", Integer, nullable=False),  # tokens of the prefix that all requests share; 0 without request.cache
    Column("counted_at", UtcDateTime, nullable=False),
)

#: Files that requests name, each uploaded once through the Files API.
files = Table(
    "files",
    metadata,
    _id(),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("sha256", String, nullable=False),  # of its content
    Column("media_type", String, nullable=False),
    Column("file_id", String, nullable=False, unique=True),  # its id at the API
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("delete_remote", Boolean, nullable=False, server_default=false()),  # it is to be removed at the API
    Index("ix_files_job_id_account_id_sha256", "job_id", "account_id", "sha256"),
)

leases = Table(
    "leases",
    metadata,
    Column("resource", String, primary_key=True),
    Column("token", BigInteger, nullable=False),  # grows by one with each new holder
    Column("holder", JSON),  # the process that holds it, see holders.holder; NULL: no process
    Column("expires_at", UtcDateTime),
)
