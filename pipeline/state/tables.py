"""The tables of the state database. Times are UTC; those of sendings are by the API's clock."""

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
from pipeline.states import BatchState, Gate, RowState, RunState, SendingEnd


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, stored as UTC without a zone."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Aware to UTC without a zone."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """UTC without a zone to aware."""
        return None if value is None else value.replace(tzinfo=UTC)


def _one_of(column: str, states: Any) -> CheckConstraint:
    # not IN (...), for which SQLite builds a set anew for each row: that cost a third of an insert
    listed = " OR ".join(f"{column} = '{state}'" for state in states)
    return CheckConstraint(listed, name=f"known_{column}")


def _id() -> Column[int]:
    # SQLite counts up by itself only in a column declared exactly INTEGER PRIMARY KEY
    return Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True)


def _partial_index(name: str, *columns: str, where: str) -> Index:
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


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
    Column("file", Text),  # the job file of the last run, so that a command can name the job alone
    Column("results_table", String, nullable=False, unique=True),
    Column("columns", JSON, nullable=False),  # the results table as made: see sink.Columns
    Column("spool", Text),  # NULL: beside the database
    Column("spool_id", String),  # what the spool's marker says, so that another folder is not taken for it
    Column("swept_at", UtcDateTime),  # when a driver last did all that was due
    Column("gone", Integer),  # rows that the source did not have when it was last read whole; NULL: unknown
    Column("gone_at", UtcDateTime),  # when that was
    Column("created_at", UtcDateTime, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    _id(),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("vars", JSON, nullable=False),
    Column("retry", JSON(none_as_null=True)),  # which rows a person wants sent again; NULL: the whole source
    Column("job", JSON, nullable=False),  # the job as it was, vars filled in: collecting reads this alone
    Column("recipe", String, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", String),
    Column("planned_at", UtcDateTime),  # NULL: planning has not come to the end of the source yet
    Column("vanished", Integer, nullable=False, default=0),
    Column("counts", JSON),  # rows by state, written when the run ends
    Column("created_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("announced_at", UtcDateTime),  # when somebody was told how it ended; NULL: nobody was, as far as is known
    Column("tokens_per_byte", Float),  # of input, at most: what its sendings reserve money by; NULL: no budget
    Column("gate", String),  # what has to come back before the rest of it may be sent; NULL: nothing
    Column("estimate", JSON(none_as_null=True)),  # what was said of its cost when it began, see estimate.Money
    Column("no_canary", Boolean, nullable=False, server_default=false()),  # a person said so: all rows are sent at once
    _one_of("state", RunState),
    _one_of("gate", Gate),
)

accounts = Table(
    "accounts",
    metadata,
    _id(),
    Column("base_url", String, nullable=False),
    Column("organization", String, nullable=False),  # from response headers; a salted digest of the key without them
    Column("workspace", String, nullable=False),
    Column("emulated", Boolean, nullable=False),
    Column("circuit_cause", Text),  # NULL: submitting goes on; else why it stopped
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
    Column("outcomes", JSON),  # rows by outcome once collected
    Column("cost_usd", Float, nullable=False, default=0.0),
    Column("downloads", Integer, nullable=False, default=0),  # tries to get all results
    Column("downloaded_at", UtcDateTime),  # the first of them
    Column("reason", String),  # why it is held back, watched, or was dropped
    Column("problem", Text),  # what else is known of that, or the last thing that went wrong with it
    Column("created_at", UtcDateTime, nullable=False),
    Column("due_at", UtcDateTime, nullable=False),  # not before: the next submit, poll or download
    Column("wait_seconds", Float, nullable=False, default=0.0),  # between polls; grows
    Column("ended_at", UtcDateTime),
    Column("collected_at", UtcDateTime),
    Column("claim", BigInteger, nullable=False, server_default=text("0")),  # counts up with each driver that takes it
    Column("claimed_by", String),  # the lease of the driver that has it; NULL: nobody
    Column("not_found", Integer, nullable=False, server_default=text("0")),  # times that the API said 404
    Column("not_found_at", UtcDateTime),  # the first of them
    Column("canceling_at", UtcDateTime),  # when it was first seen canceling at the API
    Column("cancel", Boolean, nullable=False, server_default=false()),  # it is to be canceled at the API
    Column("delete_remote", Boolean, nullable=False, server_default=false()),  # it is to be deleted at the API
    # what it can cost at most: its output, and files that it only names; NULL: a model without a known price
    Column("max_output_usd", Float),
    Column("max_input_usd", Float),  # and its input, if each byte were a token
    Column("gate", String),  # the gate of its run that it opens; NULL: an ordinary batch
    Column("usage", JSON(none_as_null=True)),  # tokens by class once collected, see collect.USAGE
    _one_of("state", BatchState),
    CheckConstraint(
        "state = 'lost' OR (api_id IS NOT NULL) = (state IN ('in_progress', 'canceling', 'ended', 'collected'))",
        name="has_id",
    ),
    _one_of("gate", Gate),
    _one_of("reason", Reason),
    Index("ix_batches_job_id_state", "job_id", "state"),  # what a driver has to do
)

sendings = Table(
    "sendings",
    metadata,
    _id(),
    Column("batch_id", ForeignKey("batches.id"), nullable=False, index=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column(
        "driver", String, nullable=False, server_default=""
    ),  # the lease of whose POST it is: tells whether that can still go on
    Column("started_at", UtcDateTime, nullable=False),
    Column("deadline", UtcDateTime, nullable=False),  # the body's last chunk leaves before this or never
    Column("end", String),
    Column("grace_from", UtcDateTime),  # set with an unknown end
    Column("ended_at", UtcDateTime),
    Column("api_id", String, unique=True),  # one batch at the API belongs to one sending
    Column("request_id", String),
    Column("problem", Text),
    Column("reserved_usd", Float),  # what it may cost at most, while that is not settled; NULL: no budget
    Column("settled_usd", Float),  # what it has cost
    CheckConstraint('"end" IN ({})'.format(", ".join(f"'{end}'" for end in SendingEnd)), name="known_end"),
)

#: Batches at the API whose results told whose they are, so that each is asked once. Never asked again, never removed.
identified = Table(
    "identified",
    metadata,
    Column("account_id", ForeignKey("accounts.id"), primary_key=True),
    Column("api_id", String, primary_key=True),
    Column("nonce", String, nullable=False),  # of the body that it was sent from; empty: its custom_ids are not ours
)

requests = Table(
    "requests",
    metadata,
    _id(),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("key", Text, nullable=False),  # JSON array of the key columns' values
    Column("run_id", ForeignKey("runs.id"), nullable=False),  # that planned it last
    Column("state", String, nullable=False),
    Column("row_hash", LargeBinary(16), nullable=False),  # of the source row as planned last
    Column("recipe", String, nullable=False),
    Column("keep", Text),  # JSON object of the kept columns
    Column("batch_id", ForeignKey("batches.id")),  # that it is in, or was in when its outcome came
    Column("n", Integer),
    Column("body_id", ForeignKey("batches.id")),  # whose body holds its request: read again when it is sent again
    Column("body_n", Integer),
    Column("sent_hash", LargeBinary(16)),  # of the params as sent
    # of its row_hash, recipe or retry; negative: a retry has put it into a batch, and so many were before the retry
    Column("attempts", Integer, nullable=False, default=0),
    Column("outcome", String),  # the last one, kept while the row is sent again
    Column("error_type", String),  # of that outcome: whether it may be sent again as it is
    Column("outcome_hash", LargeBinary(16)),  # the row_hash it answers
    Column("outcome_recipe", String),
    Column("outcome_sent_hash", LargeBinary(16)),  # the sent_hash it answers: another one has been asked since, or not
    Column("changed_hash", LargeBinary(16)),  # seen in the source while the row was in flight; NULL: as sent
    UniqueConstraint("job_id", "key"),
    _one_of("state", RowState),
    CheckConstraint("state <> 'in_flight' OR batch_id IS NOT NULL", name="in_flight_in_a_batch"),
    CheckConstraint("state <> 'pending' OR batch_id IS NULL", name="pending_in_no_batch"),
    # Partial, for this is the big table: a row is in each of them only while somebody looks for it there.
    _partial_index("ix_requests_waiting", "run_id", "id", where="state = 'pending'"),
    _partial_index("ix_requests_batch_id_n", "batch_id", "n", where="batch_id IS NOT NULL"),
    _partial_index("ix_requests_body", "body_id", "body_n", where="state = 'pending' AND body_id IS NOT NULL"),
    _partial_index("ix_requests_changed", "run_id", where="changed_hash IS NOT NULL"),
)

#: How many rows a run has in each state, as the sum of what each transaction changed: counting ten million rows takes
#: seconds. Only added to, so that no driver waits for another one's; added up when the run ends.
tallies = Table(
    "tallies",
    metadata,
    _id(),
    Column("run_id", ForeignKey("runs.id"), nullable=False, index=True),
    Column("state", String, nullable=False),
    Column("rows", BigInteger, nullable=False),  # that came into this state; negative: that left it
    _one_of("state", RowState),
)

#: What the rows of a source file were when they were planned: a file whose bytes are the same needs no reading again.
#: A stretch says nothing of the rows of today. They are held against it, so nothing has to keep it up to date.
stretches = Table(
    "stretches",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("source", LargeBinary(32), primary_key=True),  # the file's bytes, and how they are read: see stretches.py
    Column("n", Integer, primary_key=True),  # its place among those of the file, from 0; all of them are there, or none
    Column("first", BigInteger, nullable=False),  # number of its first row
    Column("last", BigInteger, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("digest", LargeBinary(32), nullable=False),  # of their keys, row hashes and kept values, in this order
    Index("ix_stretches_job_id_first", "job_id", "first"),  # which ones new ones take the place of
)

#: How many tokens the API counted in a sample of a recipe's requests. It is asked once for each recipe of a job.
token_counts = Table(
    "token_counts",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("recipe", String, primary_key=True),
    Column("sample", JSON, nullable=False),  # a list of counting.Pair
    Column("prefix", Integer, nullable=False),  # tokens that all requests share; 0 without request.cache
    Column("counted_at", UtcDateTime, nullable=False),
)

#: Files that requests name, put up once through the Files API.
files = Table(
    "files",
    metadata,
    _id(),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("sha256", String, nullable=False),  # of its content
    Column("media_type", String, nullable=False),
    Column("file_id", String, nullable=False, unique=True),  # the API's
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("delete_remote", Boolean, nullable=False, server_default=false()),  # it is to be removed at the API
    Index("ix_files_job_id_account_id_sha256", "job_id", "account_id", "sha256"),
)

leases = Table(
    "leases",
    metadata,
    Column("resource", String, primary_key=True),
    Column("token", BigInteger, nullable=False),  # counts up with each new holder
    Column("holder", JSON),  # NULL: free
    Column("expires_at", UtcDateTime),
)
