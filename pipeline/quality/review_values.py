"""How does a review write an answer, and read a correction of it? Pure."""

import datetime
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.answer.outcome import answer_schema
from pipeline.answer.schema import Described, columns
from pipeline.errors import InputError
from pipeline.job.json_schema import compiled
from pipeline.job.json_values import dump
from pipeline.job.model import Job
from pipeline.quality.gold_columns import answer_columns, declared_of
from pipeline.quality.gold_values import Misread, as_declared, read
from pipeline.sink.columns import ResultColumns
from pipeline.sink.reviews import NULL

Key = tuple[Any, ...]

#: A row of the sheet names its row by a letter and two hashes: no spreadsheet takes that for a number or a date.
_TOKEN = re.compile(r"([rp])([0-9a-f]{16})([0-9a-f]{8})", re.ASCII)


@dataclass(frozen=True)
class Token:
    """What names a row of a sheet. kind: r for a review, p for a pair. key: its hash; mark: of what was answered."""

    kind: str
    key: str
    mark: str

    def __str__(self) -> str:
        return f"{self.kind}{self.key}{self.mark}"


def token_of(text: str) -> Token | None:
    """Return the token that a cell holds; None if it holds none."""
    found = _TOKEN.fullmatch(text.strip().lower())
    return None if found is None else Token(*found.groups())


def key_hash(key: Key) -> str:
    """Return the hash by which a row is found after a spreadsheet has changed its key. key: as a table holds it."""
    return _hash(list(key), 8)


def answer_mark(values: Sequence[Any]) -> str:
    """Return the hash by which a changed answer is noticed."""
    return _hash(list(values), 4)


def _hash(values: list[Any], size: int) -> str:
    return hashlib.blake2b(dump(values).encode(), digest_size=size).hexdigest()


def as_text(value: Any) -> str:
    """Return a value of an answer as a review writes it: as the text that `new` takes, too."""
    if value is None:
        return NULL
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, datetime.date):
        return value.isoformat()
    return value if isinstance(value, str) else dump([value])[1:-1]


@dataclass(frozen=True)
class ReviewColumn:
    """A column of answers that people review.

    kind: see sink.columns.KINDS. declared: the only texts that it can hold, by their folded form; None if there is no
    such list. described: its part of the schema; None for labels and free text. optional: whether answers may lack it.
    """

    name: str
    kind: str
    declared: Mapping[str, str] | None = None
    described: Described | None = None
    optional: bool = False

    @property
    def is_free_text(self) -> bool:
        """Whether answers are free text: then another text may be right as well."""
        return self.name == "text" and self.declared is None and self.described is None

    @property
    def choices(self) -> list[str]:
        """The texts that `new` can have; [] if they are not listed."""
        found = ["true", "false"] if self.kind == "boolean" else list((self.declared or {}).values())
        return [*found, NULL] if found and self._is_valid(None) else found

    def read(self, text: str) -> str:
        """Return a correction as a review stores it. Raises Misread if the column cannot hold it."""
        if text.strip().casefold() == NULL:
            if not self._is_valid(None):
                raise Misread("is null, which this column cannot be")
            return NULL
        if self.declared is not None:
            return as_declared(self.declared, text)
        value = _json(text) if self.kind == "json" else read(self.kind, text)
        if not self._is_valid(_in_answer(self.kind, value)):
            raise Misread("does not fit the schema")
        return as_text(value)

    def value(self, text: str) -> Any:
        """Return the value of a text of `as_text` or `read`, as the results table holds it."""
        if text == NULL:
            return None
        return text if self.kind in ("text", "json") else read(self.kind, text)

    def _is_valid(self, value: Any) -> bool:
        """Return whether answers can hold a value here. value: as JSON."""
        if self.described is None:
            return value is not None
        node, root, without = self.described
        if (value is None and self.optional) or (value is not None and without):
            return True  # parts of it with columns of their own are left out, which the schema may require
        here: dict[str, Any] = {name: root[name] for name in ("$defs", "definitions") if name in root}
        return bool(compiled({**here, "allOf": [node]}).is_valid(value))


def _json(text: str) -> str:
    try:
        return dump([orjson.loads(text)])[1:-1]
    except orjson.JSONDecodeError:
        raise Misread('is no JSON, such as ["a", "b"]') from None


def _in_answer(kind: str, value: Any) -> Any:
    """Return a value of a column as an answer has it."""
    if kind == "json":
        return orjson.loads(value)
    return value.isoformat() + "Z" if kind == "datetime" else value.isoformat() if kind == "date" else value


def missing_columns(job: Job, has: ResultColumns) -> list[str]:
    """Return the columns of the answer that the results table does not have yet. has: of the results table."""
    return [name for name in answer_columns(job)[0] if name != "text" and name not in has.output]


def review_columns(job: Job, has: ResultColumns) -> list[ReviewColumn]:
    """Return the columns that people review. has: of the results table.

    Raises InputError if the table does not have one of them yet.
    """
    kinds, described = answer_columns(job)
    missing = missing_columns(job, has)
    if missing:
        raise InputError(f"the results table has no column {missing[0]!r} yet; run the job first")
    schema = answer_schema(job)
    if schema is None:
        return [ReviewColumn(name, kind, declared_of(job, name, None)) for name, kind in kinds.items()]
    properties, required = columns(schema, job.output.columns), set(schema.get("required", ()))
    return [
        ReviewColumn(
            name,
            kind,
            declared_of(job, name, described[name]),
            described[name],
            optional=not set(properties[name].path) <= required,
        )
        for name, kind in kinds.items()
    ]
