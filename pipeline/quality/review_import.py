"""Read a spreadsheet in which people have reviewed answers, and store what they said. Edge: files, SQL.

All lines are checked before anything is written, and all reviews are written in one transaction, which reads the
answers again: a verdict is stored only for the answer that the person has seen.
"""

import datetime
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import InputError
from pipeline.escapes import inline
from pipeline.job.json_values import dump
from pipeline.job.model import Job
from pipeline.quality.compare import sides_of
from pipeline.quality.compare_values import comparer
from pipeline.quality.gold_values import Misread
from pipeline.quality.review_draw import draw_of
from pipeline.quality.review_export import BETTER, is_swapped, pair_token, sides_in, token
from pipeline.quality.review_values import Key, ReviewColumn, Token, as_text, key_hash, review_columns, token_of
from pipeline.quality.sheets import Line, place_of, read_sheet
from pipeline.quality.statistics import sign_test
from pipeline.sink.review_rows import ReviewedAnswer, answer_keys, answers_with_keys
from pipeline.sink.reviews import VERDICTS, Review, ReviewsTable
from pipeline.sink.sides import Side, SideAnswer
from pipeline.sink.table import ResultsTable
from pipeline.source import identity
from pipeline.state.database import Connection, Database
from pipeline.state.jobs import JobRecord
from pipeline.state.row_facts import answered_hashes
from pipeline.states import OUTCOMES, RowState

SHOWN = 5  # the most lines that a message lists
_NO_TIME = datetime.datetime.min.replace(tzinfo=datetime.UTC)  # the table gives each review its time


class Wins(NamedTuple):
    """How often each side of a pair was judged better. p: of the exact test, without ties."""

    sides: tuple[str, str]
    first: int
    second: int
    ties: int

    @property
    def p(self) -> float:
        """The two-sided exact p of so many wins if both sides were equally good."""
        return sign_test(self.first, self.second)


@dataclass
class ImportedReviews:
    """What an import did. added: reviews that were stored; unchanged: those that say what is stored already.

    verdicts: all of both by verdict. refused: rows whose answer has changed since the export, which were left out, each
    with its reason. not_filled_in: lines that no person has reviewed yet. wins: of all pairs of these sides that were
    ever reviewed; None for other sheets.
    """

    added: int = 0
    unchanged: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    not_filled_in: int = 0
    wins: Wins | None = None


def import_reviews(
    database: Database, job_record: JobRecord, job: Job, path: Path, now: Callable[[], datetime.datetime]
) -> ImportedReviews:
    """Store the reviews in a file that `export_reviews` has written and people have filled in.

    Raises InputError, and stores nothing, for a file that cannot be read, without verdicts, or with lines that cannot
    be right: unknown rows, values that the column cannot have, verdicts that contradict their value.
    """
    lines = read_sheet(path, "row")
    if any("better" in line.cells for line in lines):
        return _PairsImport(database, job_record, job, path, lines).store(now)
    return _ReviewsImport(database, job_record, job, path, lines).store(now)


class _Problems:
    """Collects what is wrong with the lines of a file."""

    def __init__(self, path: Path) -> None:
        self._path, self._found = path, list[tuple[int, str]]()

    def add(self, line: Line, problem: str) -> None:
        self._found.append((line.number, f"{place_of(self._path, line)}: {problem}"))

    def refuse(self) -> None:
        """Raise InputError if anything is wrong."""
        if self._found:
            more = f"; and {len(self._found) - SHOWN:,} more lines" if len(self._found) > SHOWN else ""
            first = "; ".join(problem for _, problem in sorted(self._found)[:SHOWN])
            raise InputError(f"{first}{more}; nothing was imported")


def _tokens(lines: Sequence[Line], kind: str, problems: _Problems) -> dict[int, Token]:
    """Return the token of each line, by its number. kind: which tokens the sheet has."""
    found: dict[int, Token] = {}
    for line in lines:
        token_ = token_of(line["row"])
        if token_ is None or token_.kind != kind:
            shown = inline(line["row"])[:40]
            problems.add(line, f"{shown!r} in column row is not what the export has written there; copy it from there")
        else:
            found[line.number] = token_
    return found


def _unknown(line: Line, job: Job) -> str:
    return f"row {line['row']} is no row of job {job.name}"


def _choice(text: str, choices: Sequence[str]) -> str:
    """Return the choice that a cell holds. Raises Misread for any other text."""
    if text.casefold() not in choices:
        raise Misread(f"is none of {', '.join(choices)}")
    return text.casefold()


# -- reviews of answers ----------------------------------------------------------------------------------------------


class _ReviewsImport:
    def __init__(self, database: Database, job_record: JobRecord, job: Job, path: Path, lines: Sequence[Line]) -> None:
        self._database, self._record, self._job, self._path = database, job_record, job, path
        self._sink = ResultsTable.of(job_record)
        found = review_columns(job, self._sink.columns)
        self._columns = {column.name: column for column in found}
        self._equal = {
            name: comparer(column.kind, "exact" if job.gold is None else job.gold.match_of(name))
            for name, column in self._columns.items()
        }
        self._problems = _Problems(path)
        self._lines = [line for line in lines if line["verdict"] or line["new"]]
        self._not_filled_in = len(lines) - len(self._lines)
        if not self._lines:
            raise InputError(f"{path}: no line has a verdict or a new value; fill in some, and import the file again")

    def store(self, now: Callable[[], datetime.datetime]) -> ImportedReviews:
        tokens = _tokens(self._lines, "r", self._problems)
        keys = self._keys({token_.key for token_ in tokens.values()})
        asked = self._asked(tokens, keys)
        self._problems.refuse()
        table = ReviewsTable(self._sink)
        with self._database.write() as conn:
            table.make(conn)
            reviews, refused = self._reviews(conn, asked)
            self._problems.refuse()
            added = table.add(conn, reviews, now())
        verdicts = Counter(review.verdict for review in reviews)
        return ImportedReviews(added, len(reviews) - added, verdicts, refused, self._not_filled_in)

    def _keys(self, hashes: set[str]) -> dict[str, Key]:
        """Return the keys of the rows with these hashes."""
        found: dict[str, Key] = {}
        for page in answer_keys(self._database, self._sink, statuses=OUTCOMES):
            for key, _ in page:
                hashed = key_hash(key)
                if hashed in hashes:
                    found[hashed] = key
            if len(found) == len(hashes):
                break
        return found

    def _asked(self, tokens: Mapping[int, Token], keys: Mapping[str, Key]) -> list["_Asked"]:
        """Return what the lines say, and collect what is wrong with them."""
        asked, seen = [], dict[tuple[str, str], int]()
        for line in self._lines:
            token_ = tokens.get(line.number)
            if token_ is None:
                continue
            only = next(iter(self._columns)) if len(self._columns) == 1 else ""
            column = self._columns.get(line["column"] or only)
            if token_.key not in keys:
                self._problems.add(line, _unknown(line, self._job))
            elif column is None:
                self._problems.add(
                    line, f"column {inline(line['column'])[:40]!r} is none of {', '.join(self._columns)}"
                )
            elif (token_.key, column.name) in seen:
                before = seen[token_.key, column.name]
                self._problems.add(line, f"it is the same row as line {before:,}; keep one of both")
            else:
                seen[token_.key, column.name] = line.number
                one = self._read(line, token_, keys[token_.key], column)
                asked += [] if one is None else [one]
        return asked

    def _read(self, line: Line, token_: Token, key: Key, column: ReviewColumn) -> "_Asked | None":
        """Return what a line says; None, and note the problem, if it cannot be read."""
        cell, heading = line["verdict"], "verdict"
        try:
            verdict = _choice(cell, VERDICTS) if cell else None
            cell, heading = line["new"], "new"
            new = column.read(cell) if cell else None
        except Misread as exc:
            self._problems.add(line, f"column {heading} is {inline(cell)[:60]!r}, which {exc}")
            return None
        return _Asked(line, token_, key, column, verdict, new)

    def _reviews(self, conn: Connection, asked: Sequence["_Asked"]) -> tuple[list[Review], list[str]]:
        """Return the reviews, and the rows that are refused because their answers have changed."""
        keys = list(dict.fromkeys(one.key for one in asked))
        answers = answers_with_keys(conn, self._sink, list(self._columns), keys)
        hashes = answered_hashes(conn, self._record.id, [dump(list(key)) for key in keys])
        reviews, refused = list[Review](), dict[str, None]()
        for one in asked:
            answer = answers.get(one.key)
            if answer is None or token(one.key, answer) != str(one.token):
                now_it_is = "gone" if answer is None else "another one"
                refused[f"{identity.shown(dump(list(one.key)))}: its answer is {now_it_is} since the export"] = None
            else:
                self._add(reviews, one, answer, hashes.get(dump(list(one.key))))
        return reviews, list(refused)

    def _add(self, reviews: list[Review], one: "_Asked", answer: ReviewedAnswer, hashed: bytes | None) -> None:
        """Add the review, or note the problem if the line contradicts itself."""
        name, new = one.column.name, one.new
        value = answer.values[list(self._columns).index(name)]
        failed = answer.status != RowState.SUCCEEDED
        same = new is not None and not failed and self._is_same(one.column, new, value)
        verdict = one.verdict or ("right" if same else "wrong")
        shown = f"failed ({answer.status})" if failed else repr(inline(as_text(value))[:60])
        if verdict == "right" and failed:
            return self._problems.add(one.line, f"the verdict is right, and the answer has {shown}")
        if verdict == "right" and new is not None and not same:
            return self._problems.add(
                one.line, f"the verdict is right, and column new differs from the answer, {shown}"
            )
        if verdict == "wrong" and same:
            return self._problems.add(one.line, f"the verdict is wrong, and column new equals the answer, {shown}")
        text = None if failed else as_text(value)
        draw, line = draw_of(one.line["drawn"]), one.line
        reviews.append(
            Review(
                key=one.key,
                column=name,
                answer=text,
                verdict=verdict,
                new=None if new == text else new,
                by=line["by"] or None,
                note=line["note"] or None,
                drawn=draw.drawn,
                weight=draw.weight,
                custom_id=answer.custom_id,
                row_hash=None if hashed is None else hashed.hex(),
                at=_NO_TIME,
            )
        )
        return None

    def _is_same(self, column: ReviewColumn, new: str, value: Any) -> bool:
        wanted = column.value(new)
        if value is None or wanted is None:
            return value is wanted
        return bool(self._equal[column.name](value, wanted))


class _Asked(NamedTuple):
    """What a line says of a column of an answer. verdict, new: None if the line leaves them empty."""

    line: Line
    token: Token
    key: Key
    column: ReviewColumn
    verdict: str | None
    new: str | None


# -- pairs -----------------------------------------------------------------------------------------------------------


class _PairsImport:
    def __init__(self, database: Database, job_record: JobRecord, job: Job, path: Path, lines: Sequence[Line]) -> None:
        self._database, self._record, self._job, self._path = database, job_record, job, path
        self._sink = ResultsTable.of(job_record)
        self._problems = _Problems(path)
        self._lines = [line for line in lines if line["better"]]
        self._not_filled_in = len(lines) - len(self._lines)
        if not self._lines:
            raise InputError(f"{path}: no line says in column better which answer is; fill in some")
        self._names = self._sides_of(self._lines)

    def store(self, now: Callable[[], datetime.datetime]) -> ImportedReviews:
        tokens = _tokens(self._lines, "p", self._problems)
        both = self._answers({token_.key for token_ in tokens.values()})
        column = column_of_pairs(self._names)
        reviews, refused = self._reviews(tokens, both, column)
        self._problems.refuse()
        table = ReviewsTable(self._sink)
        with self._database.write() as conn:
            table.make(conn)
            added = table.add(conn, reviews, now())
            wins = _wins(table.of_column(conn, column), self._names)
        verdicts = Counter(review.verdict for review in reviews)
        return ImportedReviews(added, len(reviews) - added, verdicts, refused, self._not_filled_in, wins)

    def _sides_of(self, lines: Sequence[Line]) -> tuple[str, str]:
        """Return the names of the sides. Raises InputError if the lines do not name two sides, the same in each."""
        named = {sides_in(line["drawn"]) for line in lines}
        sides = named.pop()
        if sides is None or named:
            raise InputError(
                f"{self._path}: column drawn does not name the same two sides in all lines, as the export has written "
                "it; copy it from there"
            )
        return sides

    def _answers(self, hashes: set[str]) -> dict[str, tuple[Key, SideAnswer, SideAnswer]]:
        """Return the rows with these hashes that both sides have answered, by hash."""
        _, sides = sides_of(self._database, self._record, self._job, self._names)
        base, other = sides
        found: dict[str, tuple[Key, SideAnswer, SideAnswer]] = {}
        for page in base.pages():
            wanted = {key: hashed for key in page if (hashed := key_hash(key)) in hashes}
            theirs = _among(other, list(wanted), base.order)
            found |= {hashed: (key, page[key], theirs[key]) for key, hashed in wanted.items() if key in theirs}
            if len(found) == len(hashes):
                break
        return found

    def _reviews(
        self,
        tokens: Mapping[int, Token],
        both: Mapping[str, tuple[Key, SideAnswer, SideAnswer]],
        column: str,
    ) -> tuple[list[Review], list[str]]:
        reviews, refused, seen = list[Review](), list[str](), dict[str, int]()
        for line in self._lines:
            token_ = tokens.get(line.number)
            if token_ is None:
                continue
            if token_.key not in both:
                self._problems.add(line, _unknown(line, self._job))
                continue
            if token_.key in seen:
                self._problems.add(line, f"it is the same row as line {seen[token_.key]:,}; keep one of both")
                continue
            seen[token_.key] = line.number
            key, *answers = both[token_.key]
            if pair_token(key, (answers[0], answers[1])) != str(token_):
                refused.append(f"{identity.shown(dump(list(key)))}: one of its answers has changed since the export")
                continue
            try:
                reviews.append(self._review(line, key, _choice(line["better"], BETTER), column))
            except Misread as exc:
                self._problems.add(line, f"column better is {inline(line['better'])[:60]!r}, which {exc}")
        return reviews, refused

    def _review(self, line: Line, key: Key, better: str, column: str) -> Review:
        """Return the review of a pair: right for the first side, wrong for the second one, unsure for a tie."""
        first = (better == "left") != is_swapped(key, self._names)
        verdict = "unsure" if better == "tie" else "right" if first else "wrong"
        return Review(
            key=key,
            column=column,
            answer=None,
            verdict=verdict,
            new=None if better == "tie" else self._names[0 if first else 1],
            by=line["by"] or None,
            note=line["note"] or None,
            drawn=f"pairs {dump(list(self._names))}",
            weight=None,
            custom_id=None,
            row_hash=None,
            at=_NO_TIME,
        )


def column_of_pairs(sides: tuple[str, str]) -> str:
    """Return the name under which the table of reviews has the pairs of two sides."""
    return f"better {dump(list(sides))}"


def _among(side: Side, keys: Sequence[Key], order: str) -> dict[Key, SideAnswer]:
    return side.lookup(keys, order) if keys else {}


def _wins(reviews: Any, sides: tuple[str, str]) -> Wins:
    """Return the wins by the newest review of each pair."""
    newest = {review.key: review.verdict for review in reviews}
    counted = Counter(newest.values())
    return Wins(sides, counted["right"], counted["wrong"], counted["unsure"])
