"""Select the rows that a person wants sent again, and apply the changes for this sending. Edge: SQL."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import ValidationError

from pipeline.errors import InputError, JobError
from pipeline.job import json_values, yamlfile
from pipeline.job.model import Job
from pipeline.job.refusals import field_of_error
from pipeline.planning.quote import Quote
from pipeline.planning.verdict import Verdict
from pipeline.sink.matching import Conditions, count_by_status, count_matching, error_types, matching_keys
from pipeline.sink.table import ResultsTable
from pipeline.source import identity
from pipeline.state.database import Connection
from pipeline.state.rows import KnownRow, known_rows
from pipeline.states import FAILURES, OUTCOMES, RowState

#: The statuses that are sent again if none is named. A lost row may be paid already, a canceled one is so on purpose.
USUAL = tuple(state for state in FAILURES if state not in (RowState.LOST, RowState.CANCELED))
#: The fields that `--set` may change. Other fields of `request` would change what a row is.
_SETTABLE = re.compile(r"request\.(model|max_tokens|system|params(\.[^.]+)*)")


@dataclass(frozen=True)
class Selection:
    """The rows to send again: those with one of these outcomes that meet all other conditions.

    statuses: (): the USUAL ones; error_types: (): any; keys: as JSON, or the values with commas between them; (): any;
    where: a SQL predicate over the results table; None: no predicate; changes: new values by field, such as
    `request.max_tokens`. Raises InputError for an unknown status.
    """

    statuses: tuple[str, ...] = ()
    error_types: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    where: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = set(self.statuses) - set(OUTCOMES)
        if unknown:
            raise InputError(f"--status {min(unknown)}: unknown status; choose one of {', '.join(OUTCOMES)}")

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Return the outcomes of the rows to send again."""
        return self.statuses or USUAL

    def facts(self) -> dict[str, Any]:
        """Return the selection as a mapping for JSON. A run with equal facts is continued by the same command."""
        lists = {name: sorted(set(getattr(self, name))) for name in ("statuses", "error_types", "keys")}
        return {**lists, "where": self.where, "changes": dict(self.changes)}

    def names(self, key: str) -> bool:
        """Return whether this key (JSON) is selected; if the selection has no keys, every key is."""
        given = self.keys
        return not given or key in given or identity.joined(key) in given or identity.shown(key) in given

    def wants(self, known: KnownRow) -> bool:
        """Return whether a row has a selected outcome and key. `matching_keys` checks the remaining conditions."""
        return known.outcome in self.outcomes and self.names(known.key)

    @property
    def conditions(self) -> Conditions:
        """Return the conditions that are checked in the results table: error types and the predicate."""
        return Conditions(self.error_types, self.where)


def left_out(conn: Connection, job_id: int, sink: ResultsTable, retry: Selection, quote: Quote) -> list[str]:
    """Return sentences that say why rows which a person may have meant are not sent again; [] if none is left out.

    quote: the quote of this retry. Raises InputError if the predicate is wrong.
    """
    there = (Verdict.AGAIN, Verdict.PLANNED, Verdict.IN_FLIGHT, Verdict.KEPT, Verdict.FOR_RETRY)
    in_source = sum(quote.rows[kind] for kind in there)
    said: list[str] = []
    if retry.keys:
        wanted, said = _explain_keys(conn, job_id, sink, retry)
    else:
        wanted = count_matching(conn, sink, retry.outcomes, retry.conditions)
        if not wanted:
            said.append(_none_matches(conn, sink, retry))
    if wanted > in_source:
        rows = "1 row is" if wanted - in_source == 1 else f"{wanted - in_source:,} rows are"
        said.append(f"{rows} no longer in the source and cannot be sent again, so the answer stays as it is")
    if quote.rows[Verdict.IN_FLIGHT]:
        said.append(
            f"rows already in flight: {quote.rows[Verdict.IN_FLIGHT]:,}; they are not sent again; the run waits for "
            "their answers"
        )
    return said


def _explain_keys(conn: Connection, job_id: int, sink: ResultsTable, retry: Selection) -> tuple[int, list[str]]:
    """Return how many rows with the given keys are sent again if they are in the source, and why others are not.

    Only the first SHOWN keys are looked at.
    """
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
    """Return why a row with a given key is not sent again; None if it is sent."""
    if row.outcome is None:
        return "it has no answer yet; `run` sends it" if row.state == RowState.PENDING else "it is in flight"
    if row.outcome not in retry.outcomes:
        return f"its status is {row.outcome}; add --status {row.outcome} to send it again"
    if retry.conditions and not matching_keys(conn, sink, retry.conditions, [key]):
        return "its answer does not meet --error-type or --where"
    return None


def spellings(given: str, columns: int) -> list[str]:
    """Return the keys (JSON) that `17` or `acme,17` may mean: each value may be a text, a number or a boolean."""
    if given.startswith("["):
        return [given, *_canonical(given)]
    parts = given.split(",") if columns > 1 else [given]
    plain = [[part, *([orjson.loads(part)] if _NUMBER.fullmatch(part) else [])] for part in parts]
    plain = [[*values, *({"True": [True], "False": [False]}.get(values[0], []))] for values in plain]
    return [json_values.dump(list(values)) for values in itertools.product(*plain)]


def _canonical(given: str) -> list[str]:
    """Return a key that is given as JSON in the form that the state database uses; [] if it is not a JSON list."""
    try:
        values = orjson.loads(given)
    except orjson.JSONDecodeError:
        return []
    return [json_values.dump(values)] if isinstance(values, list) else []


_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
SHOWN = 10  # the most keys that are explained
_QUOTE_HINT = "put quotes around a text within the argument, as in --set 'request.system=\"Be brief: one word.\"'"


def _none_matches(conn: Connection, sink: ResultsTable, retry: Selection) -> str:
    """Return a sentence that says why no row is selected, and which statuses or error types there are."""
    there = count_by_status(conn, sink)
    wanted = sum(number for status, number in there.items() if status in retry.outcomes)
    if wanted:
        listed = ", ".join(error_types(conn, sink, retry.outcomes)) or "none"
        return (
            f"no row meets --error-type or --where (rows with a selected status: {wanted:,}; their error types: "
            f"{listed})"
        )
    answers = ", ".join(f"{number:,} {status}" for status, number in there.items()) or "none"
    others = [status for status in there if status in FAILURES]
    add = f"; add {' '.join(f'--status {status}' for status in others)} to send those" if others else ""
    status = f"no row has the status {' or '.join(retry.statuses)}" if retry.statuses else "no row to send again"
    return f"{status} (answers: {answers}){add}"


def change(pair: str) -> tuple[str, Any]:
    """Return field and value of a text such as `request.max_tokens=1000`. The value is YAML. Raises InputError."""
    name, equals, value = pair.partition("=")
    if not equals:
        name = ""
    require_settable(name, f"--set {pair}: write FIELD=VALUE, where FIELD is")
    return name, parsed(pair, value)


def parsed(pair: str, value: str) -> Any:
    """Return the value of a `--set`, which is YAML. pair: what was given. Raises InputError."""
    try:
        fields, _ = yamlfile.parse(f"value: {value}", "--set")
    except JobError as exc:
        raise InputError(f"--set {pair}: the value is not YAML; {_QUOTE_HINT}") from exc
    if fields.keys() != {"value"}:
        raise InputError(f"--set {pair}: give one value; {_QUOTE_HINT}")
    return fields["value"]


def require_settable(name: str, what: str) -> None:
    """Raise InputError unless a sending may change this field. what: the beginning of the message."""
    if not _SETTABLE.fullmatch(name):
        raise InputError(
            f"{what} one of request.model, request.max_tokens, request.system, request.params (or request.params.NAME)"
        )


def changed(job: Job, changes: Mapping[str, Any]) -> Job:
    """Return the job with these fields changed, for this sending. Raises InputError for a wrong value."""
    fields = job.model_dump(mode="json")
    for name, value in changes.items():
        *path, last = name.split(".")
        at: Any = fields
        for part in path:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise InputError(f"--set {name}: {part} is not a mapping, so it cannot have a field {last!r}")
        at[last] = value
    try:
        return Job.model_validate(fields)
    except ValidationError as exc:
        error = exc.errors()[0]
        raise InputError(f"--set {'.'.join(map(str, field_of_error(error['loc'])))}: {error['msg']}") from exc
