"""Which rows a person wants to have sent again, and with what changes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement, Connection, Row, Table, select, text, tuple_
from sqlalchemy.exc import DBAPIError

from pipeline import identity, yamlfile
from pipeline.errors import InputError, JobError
from pipeline.job import Job
from pipeline.sink import Sink
from pipeline.states import FAILURES, OUTCOMES, RowState

#: What goes again when no status is named. A lost row may have been paid for; a canceled one was canceled on purpose.
USUAL = tuple(state for state in FAILURES if state not in (RowState.LOST, RowState.CANCELED))
#: What a sending may change: other fields of `request` would change what a row is.
_SETTABLE = re.compile(r"request\.(model|max_tokens|system|params(\.[^.]+)*)")


@dataclass(frozen=True)
class Retry:
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
        return not self.keys or key in self.keys or identity.shown(key) in self.keys

    def wants(self, known: Row[Any]) -> bool:
        """Whether a row goes again, as far as the state database can tell; `matching` asks the results table."""
        return known.outcome in self.outcomes and self.names(known.key)

    def conditions(self, table: Table) -> list[ColumnElement[bool]]:
        """What must hold of a row's answer in the results table, beside its status."""
        found: list[ColumnElement[bool]] = []
        if self.error_types:
            found.append(table.c.error_type.in_(self.error_types))
        if self.where is not None:
            # no colon of theirs is a parameter; the line ends what may be a comment
            found.append(text("({}\n)".format(self.where.replace(":", "\\:"))))  # type: ignore[arg-type]
        return found

    def matching(self, conn: Connection, sink: Sink, keys: Sequence[str]) -> set[str]:
        """For which of these keys (JSON, at most a chunk) `conditions` hold. Raises InputError for a wrong predicate."""
        columns = [sink.table.c[name] for name in sink.columns.key]
        conditions = self.conditions(sink.table)
        found: set[str] = set()
        for start in range(0, len(keys), AT_ONCE):
            some = {sink.key_values(key): key for key in keys[start : start + AT_ONCE]}
            one = len(columns) == 1
            among = columns[0].in_([value for (value,) in some]) if one else tuple_(*columns).in_(list(some))
            try:
                rows = conn.execute(select(*columns).where(among, *conditions)).all()
            except DBAPIError as exc:
                raise self.refused(sink.table, exc) from exc
            found |= {some[tuple(row)] for row in rows}
        return found

    def refused(self, table: Table, exc: DBAPIError) -> Exception:
        """What to raise for a query with `conditions` that failed: an InputError, unless the database is at fault."""
        if self.where is None or exc.connection_invalidated:
            return exc
        said = str(exc.orig).partition("\n")[0]
        return InputError(f"--where {self.where!r} is not a SQL predicate over {table.name}: {said}")


AT_ONCE = 500  # keys that one query asks for: databases take some ten thousand parameters


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
        raise InputError(f"--set {'.'.join(map(str, error['loc']))}: {error['msg']}") from exc
