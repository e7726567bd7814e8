"""Which rows a person wants to have sent again, and with what changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from sqlalchemy import Connection, Row, select, text, tuple_
from sqlalchemy.exc import DBAPIError

from pipeline import identity
from pipeline.errors import InputError
from pipeline.job import Job
from pipeline.sink import Sink
from pipeline.states import FAILURES, OUTCOMES, RowState

#: What goes again when no status is named. A lost row may have been paid for; a canceled one was canceled on purpose.
USUAL = tuple(state for state in FAILURES if state not in (RowState.LOST, RowState.CANCELED))
SETTABLE = ("model", "max_tokens", "system", "params")  # fields of `request`; others would change what a row is


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
    def outcomes(self) -> frozenset[str]:
        """The outcomes that are sent again."""
        return frozenset(self.statuses or USUAL)

    def facts(self) -> dict[str, Any]:
        """As JSON, by which the run of it is known again."""
        lists = {name: sorted(getattr(self, name)) for name in ("statuses", "error_types", "keys")}
        return {**lists, "where": self.where, "changes": dict(self.changes)}

    def wants(self, known: Row[Any]) -> bool:
        """Whether a row goes again, as far as the state database can tell: `where` is asked of the results table."""
        if known.outcome not in self.outcomes or (self.error_types and known.error_type not in self.error_types):
            return False
        return not self.keys or known.key in self.keys or identity.shown(known.key) in self.keys

    def matching(self, conn: Connection, sink: Sink, keys: Sequence[str]) -> set[str]:
        """Which of these keys (JSON, at most a chunk) `where` holds for. Raises InputError for a wrong predicate."""
        assert self.where is not None
        columns = [sink.table.c[name] for name in sink.columns.key]
        predicate = text("({})".format(self.where.replace(":", "\\:")))  # no colon of theirs is a parameter
        found: set[str] = set()
        for start in range(0, len(keys), AT_ONCE):
            some = [sink.key_values(key) for key in keys[start : start + AT_ONCE]]
            one = len(columns) == 1
            among = columns[0].in_([value for (value,) in some]) if one else tuple_(*columns).in_(some)
            query = select(*columns).where(among, predicate)
            try:
                found |= {identity.dump(list(row)) for row in conn.execute(query)}
            except DBAPIError as exc:
                name = sink.table.name
                raise InputError(f"--where {self.where!r} is not a SQL predicate over {name}: {exc.orig}") from exc
        return found


AT_ONCE = 500  # keys that one query asks for: databases take some ten thousand parameters


def change(pair: str) -> tuple[str, Any]:
    """`request.max_tokens=1000` as field and value, which is read as in a job file. Raises InputError."""
    name, equals, value = pair.partition("=")
    section, _, path = name.partition(".")
    if not equals or section != "request" or path.partition(".")[0] not in SETTABLE:
        known = ", ".join(f"request.{each}" for each in SETTABLE)
        raise InputError(f"--set {pair}: write FIELD=VALUE, where FIELD is one of {known} (or request.params.NAME)")
    try:
        return name, YAML(typ="safe", pure=True).load(value)
    except YAMLError as exc:
        raise InputError(f"--set {pair}: the value is not YAML") from exc


def changed(job: Job, changes: Mapping[str, Any]) -> Job:
    """The job with these fields changed: what is asked in this sending. Raises InputError for a wrong value."""
    fields = job.model_dump(mode="json")
    for name, value in changes.items():
        *path, last = name.split(".")
        at: Any = fields
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    try:
        return Job.model_validate(fields)
    except ValidationError as exc:
        error = exc.errors()[0]
        raise InputError(f"--set {'.'.join(map(str, error['loc']))}: {error['msg']}") from exc
