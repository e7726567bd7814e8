"""The columns of a results table: which there are, of which kind, and how they change. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Float,
    Integer,
    String,
    Text,
)

from pipeline.answer.outcome import output_columns
from pipeline.errors import JobError
from pipeline.job.model import Job
from pipeline.state.tables import UtcDateTime

KINDS: dict[str, Any] = {
    "text": Text,
    "integer": BigInteger,
    "number": lambda: Float(53),
    "boolean": Boolean,
    "date": Date,
    "datetime": DateTime,
    "json": Text,
}

#: The columns that every results table has behind the source's own and the output's.
FIXED: tuple[tuple[str, Any], ...] = (
    ("text", Text),
    ("status", String),
    ("error_type", String),
    ("error_message", Text),
    ("stop_reason", String),
    ("model", String),
    ("recipe", String),
    ("input_tokens", Integer),
    ("output_tokens", Integer),
    ("cache_read_tokens", Integer),
    ("cache_write_tokens", Integer),
    ("cost_usd", lambda: Float(53)),
    ("attempts", Integer),
    ("custom_id", String),
    ("batch_id", String),
    ("run_id", BigInteger),
    ("updated_at", UtcDateTime),
)

#: The last columns of every results table: by what the API knows an answer. Tables of older versions get them later.
IDS: tuple[tuple[str, Any], ...] = (
    ("message_id", String),
    ("stop_sequence", Text),
    ("request_id", String),
)
ID_NAMES = frozenset(name for name, _ in IDS)


#: When an answer moved to the history table, the column that only that table has.
REPLACED_AT = "replaced_at"


@dataclass(frozen=True)
class ResultColumns:
    """The columns of a results table that a job decides: name to kind (text, integer, number, ...)."""

    key: dict[str, str]
    keep: dict[str, str]
    output: dict[str, str]
    history: bool = False  #: an answer that gets replaced moves to the history table
    had_history: bool = False  #: this job has made that table before
    schema: str | None = None  #: where the tables were made on PostgreSQL, whose users may have one each
    ids: bool = False  #: the tables have the columns IDS; a table of an older version may lack them

    @classmethod
    def of(cls, job: Job, kinds: Mapping[str, str]) -> "ResultColumns":
        """The columns for this job. kinds: the kind of each source column. Raises JobError when two have one name."""
        columns = cls(
            key={name: kinds[name] for name in job.source.key},
            keep={alias: kinds[name] for name, alias in job.source.keep.items()},
            output=output_columns(job),
            history=job.sink.history,
            ids=not any(name.lower() in ID_NAMES for name in job.source.key),
        )
        rename = {alias: f"keep it under another name: {{{c}: source_{c}}}" for c, alias in job.source.keep.items()}
        columns._refuse_clashes(rename)
        return columns

    @classmethod
    def from_stored(cls, columns: Mapping[str, Any]) -> "ResultColumns":
        """Return the columns that the state database stored as JSON for a job, see `stored` in table.py."""
        return cls(**columns)

    def over(self, before: "ResultColumns | None") -> "ResultColumns":
        """The columns of a table that had those of `before`: what the job no longer names stays, empty in new answers.

        A column whose values are of another kind by now holds texts. Raises JobError when two have one name.
        """
        if before is None:
            self._refuse_key_named_as_id()
            return self
        moved = self.moved(before)
        columns = ResultColumns(
            key=self.key,
            keep=_joined(renamed(before.keep, moved), self.keep),
            output=_joined(renamed(before.output, moved), self.output),
            history=self.history,
            had_history=before.history or before.had_history,
            schema=before.schema,
            ids=self.ids,
        )
        self._refuse_near_twins(before)
        columns._refuse_clashes(dict.fromkeys(columns.keep, "give the job and sink.table new names"))
        return columns

    def _refuse_near_twins(self, before: "ResultColumns") -> None:
        """A new output column is none that the table has in other letters: SQLite takes the two for one."""
        has = {name.lower(): name for name in before.output}
        for name in self.output:
            other = has.get(name.lower(), name)
            if other != name:
                raise JobError(
                    f"output: property {name!r} clashes with column {other!r}, which the table has from before; write "
                    f"output.columns: {{{name}: {other}}} to go on with it, or {{{name}: answer_{name}}}"
                )

    def moved(self, before: "ResultColumns") -> dict[str, str]:
        """The columns of `before` that the columns IDS take the names of: name to its new name.

        A table of an older version may have a kept column or a property of such a name. Raises JobError when the new
        name is taken, too.
        """
        if before.ids or not self.ids:
            return {}
        moved = {name: f"source_{name}" for name in before.keep if name.lower() in ID_NAMES}
        moved |= {name: f"answer_{name}" for name in before.output if name.lower() in ID_NAMES}
        for name, new in moved.items():
            if new in before.keep or new in before.output:
                raise JobError(
                    f"sink.table: its column {name!r} has the name of a column that every results table gets by now, "
                    f"and {new!r} is taken, too; give the job and sink.table new names"
                )
        return moved

    def with_ids(self) -> "ResultColumns | None":
        """The same with the columns IDS; None when it has them already, or columns of its own with these names."""
        own = any(name.lower() in ID_NAMES for name in (*self.key, *self.keep, *self.output))
        return None if self.ids or own else replace(self, ids=True)

    def _refuse_key_named_as_id(self) -> None:
        """Raises JobError for a key column of a new table. A table of an older version goes on without the ids."""
        for name in self.key:
            if name.lower() in ID_NAMES:
                raise JobError(
                    f"source.key: column {name!r} clashes with a column of every results table; "
                    "rename the column in the source"
                )

    def changed_outputs(self, before: "ResultColumns") -> dict[str, tuple[str, str]]:
        """The output columns whose values are of another kind than before: name to both kinds."""
        both = [name for name in self.output if name in before.output]
        kinds = {name: (before.output[name], self.output[name]) for name in both}
        return {name: (was, now) for name, (was, now) in kinds.items() if was != now}

    def _refuse_clashes(self, remedies: Mapping[str, str]) -> None:
        fixed = FIXED + IDS if self.ids else FIXED
        seen: dict[str, str] = {name: "a column of every results table" for name, _ in fixed}
        if self.history or self.had_history:
            seen[REPLACED_AT] = "a column of the history table"
        for name in self.output:
            if name.lower() in seen:
                raise JobError(
                    f"output: property {name!r} clashes with {seen[name.lower()]}; give its column another name: "
                    f"output.columns: {{{name}: answer_{name}}}"
                )
        seen |= dict.fromkeys((name.lower() for name in self.output), "the output column")
        for names, what in ((self.key, "source.key"), (self.keep, "source.keep")):
            for name in names:
                if name.lower() in seen:
                    remedy = remedies[name] if what == "source.keep" else "rename the column in the source"
                    raise JobError(f"{what}: column {name!r} clashes with {seen[name.lower()]}; {remedy}")
                seen[name.lower()] = what


def _joined(before: Mapping[str, str], today: Mapping[str, str]) -> dict[str, str]:
    changed = {name for name in before.keys() & today.keys() if before[name] != today[name]}
    return {**before, **today, **{name: _wider(before[name], today[name]) for name in changed}}


def renamed(columns: Mapping[str, str], moved: Mapping[str, str]) -> dict[str, str]:
    return {moved.get(name, name): kind for name, kind in columns.items()}


def _wider(*kinds: str) -> str:
    return "number" if set(kinds) == {"integer", "number"} else "text"


def named(key: Mapping[str, str]) -> str:
    """Key columns with their kinds, for a message."""
    return ", ".join(f"{name} ({kind})" for name, kind in key.items())
