"""Which answers does a page show with their input, for a person to read? Edge: SQL, files."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.errors import PipelineError
from pipeline.job import json_values
from pipeline.job.model import Job
from pipeline.planning import picking
from pipeline.planning.plan import Plan
from pipeline.report.page.words import cut, key_text, value_text
from pipeline.sink.gold import GoldTable
from pipeline.sink.gold_rows import gold_rows
from pipeline.sink.profile import LONGEST_TEXT, MOST_VALUES, Group, GroupName, Profile, Sample
from pipeline.state.database import Database
from pipeline.states import OUTCOMES, RowState
from pipeline.text import count


class Field(NamedTuple):
    """A named text of a sample."""

    name: str
    text: str


@dataclass(frozen=True)
class SampleView:
    """One answer. problem: why it failed; empty if it did not."""

    key: str
    input: list[Field]
    answer: list[Field]
    problem: str


@dataclass(frozen=True)
class SampleGroup:
    """Answers with one status and value. state: a class of the style sheet; name: the value, empty for none."""

    state: str
    status: str
    name: str
    rows: str
    samples: list[SampleView]


@dataclass(frozen=True)
class Samples:
    """The answers to be read, and the input of each.

    groups: the answers by status and value. rows: all rows of each group. inputs: source values by the key as JSON.
    problem: why inputs are missing; empty if none is. gold: the right values by key, of rows that have them.
    """

    groups: dict[GroupName, list[Sample]]
    rows: Mapping[GroupName, int]
    inputs: Mapping[str, Mapping[str, Any]]
    problem: str
    gold: Mapping[tuple[Any, ...], Mapping[str, Any]]


def samples(
    database: Database,
    profile: Profile,
    job: Job,
    groups: Sequence[Group],
    column: str | None,
    gold: GoldTable | None,
    each: int,
) -> Samples:
    """Return the first answers of each status, and of each frequent value of a column.

    groups: all answers. column: whose values tell answers apart; None: only their status does. each: of one status and
    value. gold: of the job, None without.
    """
    statuses: Counter[str] = Counter()
    for group in groups:
        statuses[group.status] += group.rows
    chosen: dict[GroupName, int] = {}
    if column is not None:
        chosen = {(RowState.SUCCEEDED.value, value): rows for value, rows in profile.values(column)}
    others = statuses[RowState.SUCCEEDED] - sum(chosen.values())
    if others and len(chosen) < MOST_VALUES:  # with fewer values, the others are nulls
        chosen[RowState.SUCCEEDED.value, None] = others
    bad = sorted((s for s in statuses if s != RowState.SUCCEEDED), key=lambda s: OUTCOMES.index(RowState(s)))
    chosen |= {(status, None): statuses[status] for status in bad}
    found = profile.samples(column, chosen, each)
    keys = [sample.key for some in found.values() for sample in some]
    inputs, problem = _inputs(job, keys)
    return Samples(found, chosen, inputs, problem, {} if gold is None else _gold(database, gold, keys))


def _gold(
    database: Database, table: GoldTable, keys: Sequence[tuple[Any, ...]]
) -> dict[tuple[Any, ...], dict[str, Any]]:
    found = gold_rows(database, table, keys, "by group") if keys else {}
    return {key: dict(zip(table.columns, values, strict=True)) for key, values in found.items()}


def _inputs(job: Job, keys: Sequence[tuple[Any, ...]]) -> tuple[dict[str, dict[str, str]], str]:
    """Return texts of source values of the rows with these keys by key as JSON, and why some are missing."""
    if not keys:
        return {}, ""
    if job.source.query is not None:
        return {}, "The source is a query, which is not run again for their inputs; columns of source.keep are here."
    try:
        plan = Plan(job)
        columns = [*plan.source.template_columns, *plan.builder.columns.attachments]
        wanted = [json_values.dump(list(key)) for key in keys]
        values = {
            row.key: {name: _text(row.values[name]) for name in columns if row.values.get(name) is not None}
            for row in picking.present(plan, wanted, plan.source.columns)
        }
    except PipelineError as exc:
        return {}, f"The inputs could not be read from the source: {exc}"
    missing = len(keys) - len(values)
    return values, f"{count(missing, 'row')} of these samples are no longer in the source." if missing else ""


def sample_groups(found: Samples, longest: int) -> list[SampleGroup]:
    """Return the samples as a page shows them. longest: characters of a text that are left."""
    return [
        SampleGroup(
            state=status,
            status=status.replace("_", " "),
            name="" if value is None and status != RowState.SUCCEEDED else value_text(value) if by_value else "",
            rows=count(found.rows[status, value], "row"),
            samples=[_view(sample, found, longest) for sample in some],
        )
        for by_value in [any(value is not None for _, value in found.groups)]
        for (status, value), some in found.groups.items()
        if some
    ]


def _view(sample: Sample, found: Samples, longest: int) -> SampleView:
    values = found.inputs.get(json_values.dump(list(sample.key)), {})
    problem = ": ".join(part for part in (sample.error_type, sample.error_message) if part)
    return SampleView(
        key=key_text(sample.key),
        input=list(_fields({**{name: v for name, v in sample.kept.items() if name not in values}, **values}, longest)),
        answer=[
            *_fields({"text": sample.text, **sample.values} if _has_own(sample) else sample.values, longest),
            *_fields({f"gold {name}": gold for name, gold in found.gold.get(sample.key, {}).items()}, longest),
        ],
        problem=cut(problem, longest),
    )


def _has_own(sample: Sample) -> bool:
    """Return whether the text of the answer says what its values do not."""
    return bool(sample.text) and all(value is None for value in sample.values.values())


def _fields(values: Mapping[str, Any], longest: int) -> Iterator[Field]:
    for name, value in values.items():
        if value is not None:
            yield Field(name, cut(_text(value), longest))


def _text(value: Any) -> str:
    """Return a value as text of at most LONGEST_TEXT characters."""
    if isinstance(value, bytes):
        return f"({len(value):,} bytes)"
    if isinstance(value, bool):
        return value_text(value)
    return cut(value if isinstance(value, str) else _printed(value), LONGEST_TEXT)


def _printed(value: Any) -> str:
    try:
        return json_values.json_text(value) if isinstance(value, list | dict) else str(value)
    except (PipelineError, ValueError):
        return "(cannot be shown)"
