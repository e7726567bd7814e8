"""Which columns of a job's output have gold, and can their values be compared with it? Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.answer.outcome import answer_schema, output_columns
from pipeline.answer.schema import Described, describe
from pipeline.errors import JobError
from pipeline.job.gold import Gold, Match, Within
from pipeline.job.json_schema import SchemaProblem, alternatives
from pipeline.job.model import Job
from pipeline.quality.gold_values import declared

SCALARS = frozenset({"string", "integer", "number", "boolean", "null"})


@dataclass(frozen=True)
class GoldColumn:
    """An output column with gold.

    name: of the column; source: of the column that holds its gold. kind: see sink.columns.KINDS; of a list of scalars
    it is json. declared: the only values that the output can have, by their folded text; None if there is no such list.
    """

    name: str
    source: str
    kind: str
    match: Match
    declared: Mapping[str, str] | None


def gold_columns(job: Job, gold: Gold) -> list[GoldColumn]:
    """Return the columns with gold: those that `gold` names; by reviews, all that hold a part of the answer.

    Raises JobError for one that the output lacks, or that cannot be compared.
    """
    kinds, described = answer_columns(job)
    found = []
    for name, source in ({name: name for name in kinds} if gold.reviews else gold.columns).items():
        if name not in kinds:
            raise JobError(f"gold.columns: {name!r} is no column of the output (it has: {', '.join(kinds)})")
        match = gold.match_of(name)
        refuse_match(name, kinds[name], match)
        if kinds[name] == "json" and not gold.reviews:
            _refuse_objects(name, described[name])
        found.append(GoldColumn(name, source, kinds[name], match, declared_of(job, name, described.get(name))))
    return found


def declared_values(job: Job) -> dict[str, list[str]]:
    """Return the only texts that output columns can have, for each column that has such a list, in its order."""
    kinds, described = answer_columns(job)
    found = {name: declared_of(job, name, described.get(name)) for name in kinds}
    return {name: list(texts.values()) for name, texts in found.items() if texts is not None}


def answer_columns(job: Job) -> tuple[dict[str, str], dict[str, Described]]:
    """Return the kind of each column that holds a part of the answer, and what the schema says of it."""
    schema = answer_schema(job)
    if schema is None:
        return ({"text": "text"} if job.output.labels is None else {"label": "text"}), {}
    try:
        described = describe(schema, job.output.columns)
    except SchemaProblem as exc:
        raise JobError(f"output.{'tool' if job.output.tool else 'schema'}: {exc}") from exc
    kinds = output_columns(job)
    return {name: kinds[name] for name in described}, described


def refuse_match(name: str, kind: str, match: Match) -> None:
    """Raise JobError if values of this kind cannot be compared in this way."""
    fits = {"casefold": ("text",), "set": ("json",), "exact": (kind,)}
    wanted = ("integer", "number") if isinstance(match, Within) else fits[match]
    if kind not in wanted:
        what = "abs and rel are" if isinstance(match, Within) else f"{match} is"
        of = {"text": "texts", "json": "lists"}.get(wanted[0], "numbers")
        raise JobError(f"gold.match.{name}: {what} for {of}, and this column holds {_PLURALS[kind]}")


_PLURALS = {
    "text": "texts",
    "integer": "integers",
    "number": "numbers",
    "boolean": "booleans",
    "date": "dates",
    "datetime": "times",
    "json": "lists or objects",
}


def _refuse_objects(name: str, described: Described) -> None:
    """Raise JobError unless all values of a column are lists of scalars."""
    for one in alternatives(described.node, described.root):
        if one.get("type") == "null":
            continue
        kinds = {each.get("type") for each in alternatives(one.get("items", {}), described.root)}
        if one.get("type") != "array" or not kinds or not kinds <= SCALARS:
            raise JobError(
                f"gold.columns: {name!r} holds other values than lists of texts, numbers and booleans, which are not "
                f"compared; name a path to one value in output.columns, as in {{{name}.PROPERTY: COLUMN}}"
            )


def declared_of(job: Job, name: str, described: Described | None) -> dict[str, str] | None:
    """Return the only texts that a column can have, by their folded form; None if it can have others.

    described: its part of the schema; None for a job without one.
    """
    if described is None:
        return None if job.output.labels is None else declared(job.output.labels)
    texts = list(_declared_texts(described))
    return None if None in texts or not texts else declared([text for text in texts if text is not None])


def _declared_texts(described: Described) -> Iterator[str | None]:
    """Yield the texts that a part of a schema declares, and None if it allows other values."""
    for one in alternatives(described.node, described.root):
        if one.get("type") == "null":
            continue
        values: list[Any] = one["enum"] if "enum" in one else [one.get("const")]
        yield from (
            value if isinstance(value, str) else None for value in values if value is not None or "enum" not in one
        )
