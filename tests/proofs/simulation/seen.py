"""What do the state database and the results table hold at one moment?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Row, column, inspect, select, table

from pipeline.job.name import OF_TRIAL
from pipeline.state.database import Database
from pipeline.state.tables import batches, jobs, requests, runs, sendings, tallies


class Seen(NamedTuple):
    """The content of the state database and the results tables at one moment. answers: by the name of their row."""

    rows: Sequence[Row[Any]]
    batches: Mapping[int, Row[Any]]
    sendings: Sequence[Row[Any]]
    runs: Mapping[int, Row[Any]]
    answers: Mapping[str, Row[Any]]
    replaced: set[str]  #: custom_ids in the history table
    tallies: Counter[tuple[int, str]]  #: the stored sums of rows by run and state


_ROWS = (
    select(
        *(
            requests.c[name]
            for name in ("key", "run_id", "state", "batch_id", "n", "attempts", "outcome", "error_type", "row_hash")
        ),
        requests.c.recipe,
        requests.c.outcome_hash,
        jobs.c.name.label("job"),
    )
    .join_from(requests, jobs, jobs.c.id == requests.c.job_id)
    .order_by(requests.c.id)
)
_BATCHES = select(
    *(batches.c[name] for name in ("id", "run_id", "state", "nonce", "api_id", "requests", "rows", "outcomes", "gate")),
    *(batches.c[name] for name in ("cost_usd", "created_at", "problem", "delete_remote")),
).order_by(batches.c.id)
_SENDINGS = select(
    *(sendings.c[name] for name in ("id", "batch_id", "end", "api_id", "started_at", "ended_at", "reserved_usd")),
    sendings.c.settled_usd,
).order_by(sendings.c.id)
_RUNS = select(
    *(runs.c[name] for name in ("id", "state", "reason", "job", "recipe", "gate", "retry")), jobs.c.name.label("name")
).join_from(runs, jobs, jobs.c.id == runs.c.job_id)
_ANSWER = ("id", "note", "text", "status", "error_type", "attempts", "custom_id", "batch_id", "cost_usd")
_OF_ROUNDS = ("rounds", "tool_calls")


IN_TRIAL = "/"  #: stands between the name of a trial and the key of its row


def row_name(job: str, key: str) -> str:
    """Return what a row is called in a schedule: its key, behind the name of its trial if it is a trial's.

    job: the name of its job, or JOB:TRIAL. key: as JSON.
    """
    trial = job.partition(OF_TRIAL)[2]
    name = str(orjson.loads(key)[0])
    return f"{trial}{IN_TRIAL}{name}" if trial else name


def look(shared: Database, *, history: bool, rounds: bool) -> Seen:
    """Read the state database and the results tables.

    history: whether the job has a history table. rounds: whether its answers have the columns of rounds.
    """
    of_answer: list[Any] = list(map(column, (*_ANSWER, *(_OF_ROUNDS if rounds else ()))))
    with shared.read() as conn:
        rows = conn.execute(_ROWS).all()
        known_batches = {row.id: row for row in conn.execute(_BATCHES)}
        known_sendings = conn.execute(_SENDINGS).all()
        known_runs = {row.id: row for row in conn.execute(_RUNS)}
        made = bool(rows) or inspect(conn).has_table("answers")
        answers = (
            {row.id: row for row in conn.execute(select(*of_answer).select_from(table("answers")))} if made else {}
        )
        if any(OF_TRIAL in row.job for row in rows):
            of_trials = select(*of_answer, column("trial")).select_from(table("answers_trials"))
            answers |= {f"{row.trial}{IN_TRIAL}{row.id}": row for row in conn.execute(of_trials)}
        replaced: Any = select(column("custom_id")).select_from(table("answers_history"))
        gone = set(conn.scalars(replaced)) if made and history else set()
        tallied: Counter[tuple[int, str]] = Counter()
        for term in conn.execute(select(tallies)):
            tallied[term.run_id, term.state] += term.rows
    return Seen(rows, known_batches, known_sendings, known_runs, answers, gone, tallied)
