"""The columns of a results table, their kinds, and how they change when the job changes. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

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

from pipeline.errors import JobError
from pipeline.state.tables import UtcDateTime

if TYPE_CHECKING:
    from pipeline.job.model import Job

#: The kinds of columns, and the SQL type of each.
KINDS: dict[str, Any] = {
    "text": Text,
    "integer": BigInteger,
    "number": lambda: Float(53),
    "boolean": Boolean,
    "date": Date,
    "datetime": DateTime,
    "json": Text,
}

#: The columns that every results table has after those of the source and of the output.
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

#: The last columns of every results table: ids and facts by which the API knows an answer. A later version added them.
IDS: tuple[tuple[str, Any], ...] = (
    ("message_id", String),
    ("stop_sequence", Text),
    ("request_id", String),
)
ID_NAMES = frozenset(name for name, _ in IDS)


#: The columns that only a table of trials has: the name of the trial, and the row_hash that the row has in the job.
TRIAL, ROW_HASH = "trial", "row_hash"

#: The column that only the history table has: the time at which a newer answer replaced this one.
REPLACED_AT = "replaced_at"


@dataclass(frozen=True)
class ResultColumns:
    """The columns of a results table that depend on the job, from name to kind (see KINDS).

    key, keep: copied from the source; output: read from answers.
    """

    key: dict[str, str]
    keep: dict[str, str]
    output: dict[str, str]
    history: bool = False  #: whether an answer that is replaced moves to the history table
    had_history: bool = False  #: whether this job has created the history table before
    schema: str | None = None  #: the schema in which the tables were created on PostgreSQL; None before, and on SQLite
    ids: bool = False  #: whether the tables have the columns IDS; a table of an older version may lack them

    @classmethod
    def of(cls, job: "Job", kinds: Mapping[str, str]) -> "ResultColumns":
        """Return the columns for a job. kinds: of the source columns. Raises JobError if two columns have one name."""
        from pipeline.answer.outcome import output_columns

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

    @property
    def has_plain_key(self) -> bool:
        """Whether the JSON of a key is the same in the source and in the results table."""
        return all(kind in ("text", "integer") for kind in self.key.values())

    def of_trials(self) -> "ResultColumns":
        """Return the columns of the table with the answers of the job's trials. Raises JobError for a clash of names.

        TRIAL is not among them: ResultsTable adds it.
        """
        for names, what in ((self.key, "source.key"), (self.keep, "source.keep"), (self.output, "output")):
            for name in names:
                if name.lower() in (TRIAL, ROW_HASH):
                    raise JobError(
                        f"{what}: column {name!r} clashes with a column of the table of trials, so this job can have "
                        "no trial; give the column another name"
                    )
        return replace(self, keep={**self.keep, ROW_HASH: "text"}, history=False, had_history=False)

    @classmethod
    def from_stored(cls, columns: Mapping[str, Any]) -> "ResultColumns":
        """Return the columns that the state database stored as JSON for a job, see `stored` in table.py."""
        return cls(**columns)

    def added_to(self, before: "ResultColumns | None") -> "ResultColumns":
        """Return the columns of an existing table after these columns are added to it.

        before: the columns that the table has; None for a new table. A column that the job no longer names stays, and
        is null for new answers. A column whose kind changed becomes text, or number if both kinds are numbers. Raises
        JobError if two columns have one name.
        """
        if before is None:
            self._refuse_key_named_as_id()
            return self
        moved = self.displaced(before)
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
        """Raise JobError if a new output column equals a column of the table but for case: to SQLite they are one."""
        has = {name.lower(): name for name in before.output}
        for name in self.output:
            other = has.get(name.lower(), name)
            if other != name:
                raise JobError(
                    f"output: property {name!r} clashes with the existing column {other!r} of the table; write "
                    f"output.columns: {{{name}: {other}}} to use that column, or {{{name}: answer_{name}}}"
                )

    def displaced(self, before: "ResultColumns") -> dict[str, str]:
        """Return the columns of `before` that must be renamed because the columns IDS get their names: old to new name.

        A table of an older version may have a kept column or an output column with such a name. Empty if there is none.
        Raises JobError if a new name is taken, too.
        """
        if before.ids or not self.ids:
            return {}
        moved = {name: f"source_{name}" for name in before.keep if name.lower() in ID_NAMES}
        moved |= {name: f"answer_{name}" for name in before.output if name.lower() in ID_NAMES}
        for name, new in moved.items():
            if new in before.keep or new in before.output:
                raise JobError(
                    f"sink.table: its column {name!r} has the name of a column that every results table now has, "
                    f"and {new!r} is taken, too; give the job and sink.table new names"
                )
        return moved

    def with_ids(self) -> "ResultColumns | None":
        """Return these columns with the columns IDS; None if they are there, or other columns have their names."""
        own = any(name.lower() in ID_NAMES for name in (*self.key, *self.keep, *self.output))
        return None if self.ids or own else replace(self, ids=True)

    def _refuse_key_named_as_id(self) -> None:
        """Raise JobError if a key column of a new table has the name of one of IDS.

        A table of an older version with such a key stays without the columns IDS.
        """
        for name in self.key:
            if name.lower() in ID_NAMES:
                raise JobError(
                    f"source.key: column {name!r} clashes with a column of every results table; "
                    "rename the column in the source"
                )

    def changed_outputs(self, before: "ResultColumns") -> dict[str, tuple[str, str]]:
        """Return the output columns whose kind differs from that in `before`: name to old and new kind."""
        both = [name for name in self.output if name in before.output]
        kinds = {name: (before.output[name], self.output[name]) for name in both}
        return {name: (was, now) for name, (was, now) in kinds.items() if was != now}

    def _refuse_clashes(self, remedies: Mapping[str, str]) -> None:
        """Raise JobError if two columns have one name, apart from case. remedies: for each kept column, what to do."""
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
    """Return all columns of both; one whose kind differs gets a kind that holds both."""
    changed = {name for name in before.keys() & today.keys() if before[name] != today[name]}
    return {**before, **today, **{name: _wider(before[name], today[name]) for name in changed}}


def renamed(columns: Mapping[str, str], moved: Mapping[str, str]) -> dict[str, str]:
    """Return columns (name to kind) with new names. moved: old to new name; other columns keep their name."""
    return {moved.get(name, name): kind for name, kind in columns.items()}


def _wider(*kinds: str) -> str:
    """Return the kind that holds values of both kinds: number for integer and number, else text."""
    return "number" if set(kinds) == {"integer", "number"} else "text"


def with_kinds(key: Mapping[str, str]) -> str:
    """Return the names of key columns with their kinds, for a message: "id (integer), team (text)"."""
    return ", ".join(f"{name} ({kind})" for name, kind in key.items())
