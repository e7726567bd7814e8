"""Write answers to a spreadsheet in which people review them. Edge: SQL, files."""

import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from pipeline.errors import InputError
from pipeline.job.json_values import dump
from pipeline.job.model import Job
from pipeline.quality import review_draw, sheets
from pipeline.quality.compare import differing_rows
from pipeline.quality.review_draw import Draw
from pipeline.quality.review_inputs import Inputs
from pipeline.quality.review_values import (
    Key,
    ReviewColumn,
    Token,
    answer_mark,
    as_text,
    key_hash,
    review_columns,
)
from pipeline.quality.sheets import Sheet
from pipeline.quality.tally import JUDGED
from pipeline.sink.review_rows import ReviewedAnswer, answer_keys, answers_with_keys
from pipeline.sink.reviews import VERDICTS, Review, ReviewsTable
from pipeline.sink.sides import SideAnswer
from pipeline.sink.table import ResultsTable
from pipeline.state.database import Database
from pipeline.state.jobs import JobRecord
from pipeline.states import RowState

#: The headings of our own columns. A column of the source with such a name is shown as `source: NAME`.
OURS = frozenset(("row", "column", "answer", "verdict", "new", "left", "right", "better", "note", "by", "drawn"))
BETTER = ("left", "right", "tie")
FILLED = ["verdict", "new", "better", "note", "by"]


@dataclass(frozen=True)
class Wanted:
    """Which answers to review, and how.

    where: a SQL predicate over the results table. sample: the most rows; by: a column of the results table, of whose
    values equally many rows are drawn. disagree: two sides whose answers differ. pairs: two sides whose answers are
    shown without their names. blind: whether the answer is left out. None: not asked for.
    """

    where: str | None = None
    sample: int | None = None
    by: str | None = None
    disagree: tuple[str, str] | None = None
    pairs: tuple[str, str] | None = None
    blind: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for what does not go together."""
        if self.by is not None and (self.sample is None or self.disagree or self.pairs):
            raise InputError(f"--by {self.by}: this is for --sample, without --disagree and --pairs")
        if self.disagree and self.pairs:
            raise InputError("--disagree and --pairs: give one of them")
        if self.pairs and self.blind:
            raise InputError("--blind: this is not for --pairs, whose answers have to be seen")


@dataclass(frozen=True)
class ExportedReviews:
    """What an export wrote. rows: of the job; lines: of the sheet; missing: rows that the source does not have.

    problem: why the source could not be read, so that its columns are missing; None if it could.
    """

    place: Path
    rows: int
    lines: int
    missing: int
    problem: str | None


def export_reviews(
    database: Database, job_record: JobRecord, job: Job, place: Path, wanted: Wanted, *, overwrite: bool = False
) -> ExportedReviews:
    """Write the wanted answers to a .xlsx or .csv file.

    Raises InputError for a place that cannot be written, a wrong predicate, column or side, and if there is no answer.
    """
    sheets.check_place(place, overwrite=overwrite)
    sink = ResultsTable.of(job_record)
    columns = review_columns(job, sink.columns)
    if wanted.blind and any(column.is_free_text for column in columns):
        raise InputError("--blind: free text cannot be judged without being seen; leave --blind out")
    if wanted.pairs is not None:
        found = _pairs(database, job_record, job, sink, wanted, wanted.pairs)
        keys = list(found)
        inputs = Inputs(job, sink, keys)
        sheet = _sheet_of_pairs(job, inputs, found, [column.name for column in columns], wanted.pairs)
    else:
        chosen = _chosen(database, job_record, job, sink, wanted)
        keys = [one.key for one in chosen]
        inputs = Inputs(job, sink, keys)
        sheet = _sheet(database, sink, job, columns, chosen, inputs, wanted)
    if not sheet.rows:
        raise InputError(f"job {job.name} has no answers of these; run the job first, or choose others")
    sheets.write_sheet(place, sheet)
    return ExportedReviews(place, len(keys), len(sheet.rows), inputs.missing(), inputs.problem)


# -- which answers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chosen:
    """A row to review. sides: the answers of the two sides that disagree; None for other rows."""

    key: Key
    draw: Draw
    sides: tuple[SideAnswer, SideAnswer] | None = None


def _chosen(database: Database, job_record: JobRecord, job: Job, sink: ResultsTable, wanted: Wanted) -> list[_Chosen]:
    """Return the rows to review, in the order in which the sheet shows them."""
    if wanted.disagree is not None:
        drawn = Draw(f"disagree {dump(list(wanted.disagree))}", None)
        differing = _differing(database, job_record, job, sink, wanted, wanted.disagree)
        keys = review_draw.sample(differing, wanted.sample or len(differing))
        return [_Chosen(key, drawn, differing[key]) for key in keys]
    pages = answer_keys(database, sink, statuses=JUDGED, where=wanted.where, by=wanted.by)
    rows = (row for page in pages for row in page)
    if wanted.sample is None:
        drawn = Draw("all" if wanted.where is None else f"where {wanted.where}", None)
        return [_Chosen(key, drawn) for key, _ in _few(rows)]
    if wanted.by is not None:
        strata = review_draw.strata_sample(rows, wanted.sample, wanted.by)
        chosen = [_Chosen(key, draw) for key, draw in strata]
    else:
        keys = review_draw.sample((key for key, _ in rows), wanted.sample)
        chosen = [_Chosen(key, Draw(review_draw.SAMPLE, 1.0)) for key in keys]
    if wanted.where is not None:  # a sample of some answers does not stand for all of them
        chosen = [_Chosen(one.key, Draw(f"chosen {one.draw.drawn} where {wanted.where}", None)) for one in chosen]
    return chosen


def _few(rows: Iterator[tuple[Key, Any]]) -> Iterator[tuple[Key, Any]]:
    """Yield the rows. Raises InputError if they are more than a sheet may have lines."""
    for n, row in enumerate(rows):
        if n == sheets.MOST_LINES:
            raise InputError(f"more than {n:,} answers are too many for people; choose some by --sample or --where")
        yield row


def _differing(
    database: Database, job_record: JobRecord, job: Job, sink: ResultsTable, wanted: Wanted, names: tuple[str, str]
) -> dict[Key, tuple[SideAnswer, SideAnswer]]:
    """Return both answers of the rows whose answers of two sides differ, by key. Raises InputError if there is none."""
    found = differing_rows(database, job_record, job, names)
    if wanted.where is not None:
        pages = answer_keys(database, sink, statuses=JUDGED, where=wanted.where)
        meets = {key for page in pages for key, _ in page}
        found = {key: both for key, both in found.items() if key in meets}
    if not found:
        raise InputError(f"{names[0]} and {names[1]} agree on all of these rows")
    return found


def _pairs(
    database: Database, job_record: JobRecord, job: Job, sink: ResultsTable, wanted: Wanted, names: tuple[str, str]
) -> dict[Key, tuple[SideAnswer, SideAnswer]]:
    """Return the rows that both sides have answered, and differently, in the order of the sheet."""
    found = _differing(database, job_record, job, sink, wanted, names)
    good = {key: both for key, both in found.items() if all(one.status == RowState.SUCCEEDED for one in both)}
    return {key: good[key] for key in review_draw.sample(good, wanted.sample or len(good))}


# -- sheets ----------------------------------------------------------------------------------------------------------


def _sheet(
    database: Database,
    sink: ResultsTable,
    job: Job,
    columns: Sequence[ReviewColumn],
    chosen: Sequence[_Chosen],
    inputs: Inputs,
    wanted: Wanted,
) -> Sheet:
    """Return the sheet: a line for each column of each answer."""
    names = [column.name for column in columns]
    with database.read() as conn:
        answers = answers_with_keys(conn, sink, names, [one.key for one in chosen])
        table = ReviewsTable(sink)
        newest = {(one.key, one.column): one for one in table.all(conn)} if table.is_made(conn) else {}
    asked = ["new"] if wanted.blind else ["answer", "verdict", "new"]
    sides = [f"answer of {name}" for name in wanted.disagree or () if not wanted.blind]
    context = [*map(_heading, [*job.source.key, *inputs.columns])]
    sheet = Sheet(["row", *context, "column", *sides, *asked, "note", "by", "drawn"], [], FILLED)
    sheet.long = [_heading(name) for name in inputs.columns]
    sheet.long += [*sides, "answer"] if any(column.kind in ("text", "json") for column in columns) else []
    places: dict[str, list[int]] = {name: [] for name in names}
    for one in chosen:
        answer = answers.get(one.key)
        if answer is None or answer.status not in JUDGED:
            continue
        for i, column in enumerate(columns):
            if one.sides is not None and one.sides[0].values[i] == one.sides[1].values[i]:
                continue
            places[column.name].append(len(sheet.rows))
            before = None if wanted.blind else newest.get((one.key, column.name))
            said = _said(answer, answer.values[i], before, blind=wanted.blind)
            both = [_shown(side.status, side.values[i]) for side in one.sides or ()][: len(sides)]
            given = [token(one.key, answer), *map(as_text, one.key), *inputs.of(one.key), column.name, *both]
            sheet.rows.append([*given, *said, one.draw.cell])
    if not wanted.blind:
        sheet.choices["verdict"] = [(list(VERDICTS), list(range(len(sheet.rows))))]
    sheet.choices["new"] = [(column.choices, places[column.name]) for column in columns if column.choices]
    return sheet


def token(key: Key, answer: ReviewedAnswer) -> str:
    """Return the text that finds the row of an answer again, and shows whether the answer has changed."""
    return str(Token("r", key_hash(key), answer_mark([answer.status, *answer.values])))


def _said(answer: ReviewedAnswer, value: Any, before: Review | None, *, blind: bool) -> list[str]:
    """Return the cells from the answer on, without the last: answer, verdict, new, note, by."""
    failed = answer.status != RowState.SUCCEEDED
    if blind:
        return ["", "", ""]
    shown = _shown(answer.status, value)
    if before is not None and before.answer == (None if failed else as_text(value)):
        return [shown, before.verdict, before.new or "", before.note or "", before.by or ""]
    return [shown, "wrong" if failed else "", "", "", ""]  # what failed is not right: nobody has to judge it


def _shown(status: str, value: Any) -> str:
    return as_text(value) if status == RowState.SUCCEEDED else f"(failed: {status})"


def _heading(name: str) -> str:
    """Return the heading of a column of the source."""
    return f"source: {name}" if name.strip().lower() in OURS else name


def _sheet_of_pairs(
    job: Job,
    inputs: Inputs,
    found: dict[Key, tuple[SideAnswer, SideAnswer]],
    names: Sequence[str],
    sides: tuple[str, str],
) -> Sheet:
    context = [*map(_heading, [*job.source.key, *inputs.columns])]
    sheet = Sheet(["row", *context, "left", "right", "better", "note", "by", "drawn"], [], FILLED)
    sheet.long = [*(_heading(name) for name in inputs.columns), "left", "right"]
    drawn = pairs_cell(sides)
    for key, both in found.items():
        texts = [_whole(names, side.values) for side in both]
        left, right = reversed(texts) if is_swapped(key, sides) else texts
        given = [pair_token(key, both), *map(as_text, key), *inputs.of(key), left, right]
        sheet.rows.append([*given, "", "", "", drawn])
    sheet.choices["better"] = [(list(BETTER), list(range(len(sheet.rows))))]
    return sheet


def pairs_cell(sides: tuple[str, str]) -> str:
    """Return the cell `drawn` of a sheet of pairs, which names the sides so that no person reads it."""
    return "pairs " + base64.urlsafe_b64encode(dump(list(sides)).encode()).decode()


def sides_in(cell: str) -> tuple[str, str] | None:
    """Return the sides that a cell of `pairs_cell` names; None if it names none."""
    found = re.fullmatch(r"pairs ([A-Za-z0-9_=-]+)", cell)
    if found is None:
        return None
    try:
        sides = orjson.loads(base64.urlsafe_b64decode(found[1]))
    except ValueError:  # neither base64 nor JSON
        return None
    is_pair = isinstance(sides, list) and len(sides) == 2 and all(isinstance(name, str) for name in sides)
    return (sides[0], sides[1]) if is_pair else None


def is_swapped(key: Key, sides: tuple[str, str]) -> bool:
    """Return whether the answer of the second side is on the left: for half of the rows, by a hash of the key."""
    return int(key_hash((*key, *sides)), 16) % 2 == 1


def pair_token(key: Key, both: tuple[SideAnswer, SideAnswer]) -> str:
    """Return the text that finds a pair again, and shows whether one of its answers has changed."""
    values = [value for side in both for value in (side.status, *side.values)]
    return str(Token("p", key_hash(key), answer_mark(values)))


def _whole(names: Sequence[str], values: Sequence[Any]) -> str:
    """Return an answer as one text: the value of its only column, or a line for each column."""
    if len(names) == 1:
        return as_text(values[0])
    return "\n".join(f"{name}: {as_text(value)}" for name, value in zip(names, values, strict=True))
