"""Which rows a person wants to have sent again, and with what changes."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import ValidationError

from pipeline.errors import InputError, JobError
from pipeline.job import json_values, yamlfile
from pipeline.job.load import field_of_error
from pipeline.job.model import Job
from pipeline.planning.quote import Quote
from pipeline.planning.verdict import Verdict
from pipeline.sink.matching import Conditions, count_by_status, count_matching, error_types, matching_keys
from pipeline.sink.table import ResultsTable
from pipeline.source import identity
from pipeline.state.database import Connection
from pipeline.state.rows import KnownRow, known_rows
from pipeline.states import FAILURES, OUTCOMES, RowState

#: What goes again when no status is named. A lost row may have been paid for; a canceled one was canceled on purpose.
USUAL = tuple(state for state in FAILURES if state not in (RowState.LOST, RowState.CANCELED))
#: What a sending may change: other fields of `request` would change what a row is.
_SETTABLE = re.compile(r"request\.(model|max_tokens|system|params(\.[^.]+)*)")


@dataclass(frozen=True)
class Selection:
    """Rows to send again: those with one of these outcomes that meet all the other conditions.

    statuses: () for the usual ones; error_types, keys: () for any; keys: as JSON, or with commas between the values;
    where: a SQL predicate over the results table; changes: `request.max_tokens` and the like to new values.
    """

    statuses: tuple[str, ...] = ()
    error_types: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    where: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = set(self.statuses) - set(OUTCOMES)
        if unknown:
            raise InputError(f"--status {min(unknown)}: there is no such status; there are {', '.join(OUTCOMES)}")

    @property
    def outcomes(self) -> tuple[str, ...]:
        """The outcomes that are sent again."""
        return self.statuses or USUAL

    def facts(self) -> dict[str, Any]:
        """As JSON, by which the run of it is known again."""
        lists = {name: sorted(set(getattr(self, name))) for name in ("statuses", "error_types", "keys")}
        return {**lists, "where": self.where, "changes": dict(self.changes)}

    def names(self, key: str) -> bool:
        """Whether this key (JSON) is among those given; every key is when none are."""
        given = self.keys
        return not given or key in given or identity.joined(key) in given or identity.shown(key) in given

    def wants(self, known: KnownRow) -> bool:
        """Whether a row goes again, as far as the state database can tell; `matching_keys` asks the results table."""
        return known.outcome in self.outcomes and self.names(known.key)

    @property
    def conditions(self) -> Conditions:
        """What must hold of a row's answer in the results table, beside its status."""
        return Conditions(self.error_types, self.where)


def left_out(conn: Connection, job_id: int, sink: ResultsTable, retry: Selection, quote: Quote) -> list[str]:
    """Why rows do not go again that somebody may have meant, as sentences. Raises InputError for a wrong predicate.

    quote: of this retry, so of the rows that stand in the source.
    """
    there = (Verdict.AGAIN, Verdict.PLANNED, Verdict.IN_FLIGHT, Verdict.KEPT, Verdict.FOR_RETRY)
    in_source = sum(quote.rows[kind] for kind in there)
    said: list[str] = []
    if retry.keys:
        wanted, said = _of_keys(conn, job_id, sink, retry)
    else:
        wanted = count_matching(conn, sink, retry.outcomes, retry.conditions)
        if not wanted:
            said.append(_none_matches(conn, sink, retry))
    if wanted > in_source:
        rows = "1 row stands" if wanted - in_source == 1 else f"{wanted - in_source:,} rows stand"
        said.append(f"{rows} no longer in the source, so the answer stays as it is")
    if quote.rows[Verdict.IN_FLIGHT]:
        said.append(f"in flight already: {quote.rows[Verdict.IN_FLIGHT]:,}; they are waited for")
    return said


def _of_keys(conn: Connection, job_id: int, sink: ResultsTable, retry: Selection) -> tuple[int, list[str]]:
    """How many rows the given keys name that go again, if they stand in the source; and of the others why not."""
    wanted, said = 0, []
    for given in retry.keys[:SHOWN]:
        known = known_rows(conn, job_id, spellings(given, len(sink.columns.key)))
        if not known:
            said.append(f"row {given}: the job knows no such row")
        for key, row in known.items():
            why = _why_not(conn, sink, retry, key, row)
            wanted += why is None
            said += [] if why is None else [f"row {given}: {why}"]
    return wanted, said


def _why_not(conn: Connection, sink: ResultsTable, retry: Selection, key: str, row: KnownRow) -> str | None:
    """Why a row that a key names does not go again; None when it does."""
    if row.outcome is None:
        return "it has no answer yet; `run` sends it" if row.state == RowState.PENDING else "it is in flight"
    if row.outcome not in retry.outcomes:
        return f"its status is {row.outcome}; add --status {row.outcome} to send it again"
    if retry.conditions and not matching_keys(conn, sink, retry.conditions, [key]):
        return "--error-type or --where does not hold for its answer"
    return None


def spellings(given: str, columns: int) -> list[str]:
    """The keys (JSON) that a person may mean by `17` or `acme,17`: each value may be a text, or a number."""
    if given.startswith("["):
        return [given, *_same_key(given)]
    parts = given.split(",") if columns > 1 else [given]
    plain = [[part, *([orjson.loads(part)] if _NUMBER.fullmatch(part) else [])] for part in parts]
    plain = [[*values, *({"True": [True], "False": [False]}.get(values[0], []))] for values in plain]
    return [json_values.dump(list(values)) for values in itertools.product(*plain)]


def _same_key(given: str) -> list[str]:
    """A key that is given as JSON, as the state database writes it; none where it is no list."""
    try:
        values = orjson.loads(given)
    except orjson.JSONDecodeError:
        return []
    return [json_values.dump(values)] if isinstance(values, list) else []


_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
SHOWN = 10  # keys that are explained


def _none_matches(conn: Connection, sink: ResultsTable, retry: Selection) -> str:
    """What there is instead of rows to send again."""
    there = count_by_status(conn, sink)
    wanted = sum(number for status, number in there.items() if status in retry.outcomes)
    if wanted:
        listed = ", ".join(error_types(conn, sink, retry.outcomes)) or "none"
        return f"of {wanted:,} such rows none meets --error-type or --where (their error types: {listed})"
    answers = ", ".join(f"{number:,} {status}" for status, number in there.items()) or "none"
    others = [status for status in there if status in FAILURES]
    add = f"; add {' '.join(f'--status {status}' for status in others)} to send those" if others else ""
    status = f"no row has the status {' or '.join(retry.statuses)}" if retry.statuses else "no row to send again"
    return f"{status} (answers: {answers}){add}"


def change(pair: str) -> tuple[str, Any]:
    """`request.max_tokens=1000` as field and value, which is read as in a job file. Raises InputError."""
    name, equals, value = pair.partition("=")
    if not equals or not _SETTABLE.fullmatch(name):
        raise InputError(
            f"--set {pair}: write FIELD=VALUE, where FIELD is one of request.model, request.max_tokens, "
            "request.system, request.params (or request.params.NAME)"
        )
    try:
        parsed, _ = yamlfile.parse(f"value: {value}", "--set")
    except JobError as exc:
        raise InputError(f"--set {pair}: the value is not YAML; put a text into quotes of its own") from exc
    if parsed.keys() != {"value"}:
        raise InputError(f"--set {pair}: give one value; put a text into quotes of its own")
    return name, parsed["value"]


def changed(job: Job, changes: Mapping[str, Any]) -> Job:
    """The job with these fields changed: what is asked in this sending. Raises InputError for a wrong value."""
    fields = job.model_dump(mode="json")
    for name, value in changes.items():
        *path, last = name.split(".")
        at: Any = fields
        for part in path:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise InputError(f"--set {name}: {part} is no mapping that could have a field {last!r}")
        at[last] = value
    try:
        return Job.model_validate(fields)
    except ValidationError as exc:
        error = exc.errors()[0]
        raise InputError(f"--set {'.'.join(map(str, field_of_error(error['loc'])))}: {error['msg']}") from exc
