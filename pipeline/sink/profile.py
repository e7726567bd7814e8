"""How are the answers of a results table spread: over statuses, values, sizes? Edge: SQL.

Everything is counted by the database, so the memory does not grow with the number of answers. Each query is a
transaction of its own.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Float, Integer, Select, and_, case, cast, func, or_, select

from pipeline.sink.plain_rows import plain_rows
from pipeline.sink.read import blaming_table
from pipeline.sink.table import ResultsTable
from pipeline.state.database import Database
from pipeline.states import RowState

PROBED = 2_000  # answers that show whether a column of texts has few values
FEW_VALUES = 20
MOST_VALUES = 20
LONGEST_VALUE = 60  # characters of a value that is one of a few
LONGEST_TEXT = 4_000  # characters of a text in a sample
FREQUENT = 2_000  # a group with one of so many answers is found by looking through the first answers


class Group(NamedTuple):
    """Answers with one status, model and number of attempts.

    free: rows without tokens: they share the request of another row, or none was answered. priced: rows whose cost is
    known. newest: when the last of them was stored.
    """

    status: str
    model: str | None
    attempts: int
    rows: int
    free: int
    priced: int
    cost_usd: float
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    most_output_tokens: int
    newest: datetime


class Spread(NamedTuple):
    """The values of a column in answers that succeeded.

    rows, nulls: with and without a value. low, high: the ends; mean, deviation: of numbers, and of the lengths of texts
    in characters. They are None if there is no value, or if values of this kind have no such figure.
    """

    rows: int
    nulls: int
    low: Any = None
    high: Any = None
    mean: float | None = None
    deviation: float | None = None


class Sample(NamedTuple):
    """An answer to be looked at. values: of the output columns; kept: of the kept columns, each cut at LONGEST_TEXT."""

    key: tuple[Any, ...]
    text: str | None
    error_type: str | None
    error_message: str | None
    values: dict[str, Any]
    kept: dict[str, Any]


GroupName = tuple[str, Any]  # status, and value of the column by which samples are chosen


class Profile:
    """The answers of a job, or those of one of its runs."""

    def __init__(self, database: Database, sink: ResultsTable, run_id: int | None = None) -> None:
        """run_id: only answers of this run; None: all answers."""
        self._database, self._sink, self._table = database, sink, sink.table
        self._which = [] if run_id is None else [self._table.c.run_id == run_id]
        self._key = [self._table.c[name] for name in sink.columns.key]
        self._values: dict[str, list[tuple[Any, ...]]] = {}

    def groups(self) -> list[Group]:
        """Return the answers by status, model and number of attempts, sorted by these."""
        c = self._table.c
        by = [c.status, c.model, c.attempts]
        free = and_(c.input_tokens == 0, c.output_tokens == 0)
        tokens = [c.input_tokens, c.output_tokens, c.cache_read_tokens, c.cache_write_tokens]
        figures = [
            func.count(),
            func.sum(case((free, 1), else_=0)),
            func.count(c.cost_usd),
            func.coalesce(func.sum(c.cost_usd), 0.0),
            *[func.coalesce(func.sum(column), 0) for column in tokens],
            func.coalesce(func.max(c.output_tokens), 0),
            func.max(c.updated_at),
        ]
        found = self._read(select(*by, *figures).where(*self._which).group_by(*by))
        groups = [Group._make((*row[:2], row[2] or 0, *row[3:6], float(row[6]), *row[7:])) for row in found]
        return sorted(groups, key=lambda group: (group.status, group.model or "", group.attempts))

    def spreads(self, columns: Mapping[str, str]) -> dict[str, Spread]:
        """Return the spread of each of these output columns. columns: name to kind, see sink.columns.KINDS."""
        if not columns:
            return {}
        wanted = [func.count(), *(each for name, kind in columns.items() for each in self._figures(name, kind))]
        [(total, *found)] = self._read(select(*wanted).where(*self._succeeded()))
        spreads = {}
        for i, name in enumerate(columns):
            rows, low, high, mean, squares = found[5 * i : 5 * i + 5]
            deviation = None if mean is None else max(0.0, float(squares) - float(mean) ** 2) ** 0.5
            spreads[name] = Spread(
                rows, total - rows, low, high, None if mean is None else round(float(mean), 9), deviation
            )
        return spreads

    def _figures(self, name: str, kind: str) -> list[ColumnElement[Any]]:
        column, nothing = self._table.c[name], cast(None, Float)
        if kind in ("integer", "number", "text"):
            size = self._size(name, kind)
            ends = [column, column] if kind != "text" else [size, size]
            return [func.count(column), func.min(ends[0]), func.max(ends[1]), func.avg(size), func.avg(size * size)]
        if kind in ("date", "datetime"):
            return [func.count(column), func.min(column), func.max(column), nothing, nothing]
        return [func.count(column), nothing, nothing, nothing, nothing]

    def _size(self, name: str, kind: str) -> ColumnElement[Any]:
        """Return the number, or the length of the text, as a float."""
        column = self._table.c[name]
        return cast(func.length(column) if kind == "text" else column, Float(53))

    def histogram(self, name: str, kind: str, low: float, width: float, bins: int) -> list[int]:
        """Return how many numbers, or texts by their lengths, are in each of so many bins of this width from `low` on.

        Values beyond the ends are in the first or last bin. Only answers that succeeded are counted.
        """
        return self._histogram(self._size(name, kind), low, width, bins, self._succeeded())

    def tokens_histogram(self, width: float, bins: int) -> list[int]:
        """Return how many answers have so many output tokens, in bins of this width from 0 on, without free ones."""
        tokens = self._table.c.output_tokens
        return self._histogram(cast(tokens, Float(53)), 0.0, width, bins, [*self._which, tokens > 0])

    def _histogram(
        self, size: ColumnElement[Any], low: float, width: float, bins: int, where: Sequence[ColumnElement[bool]]
    ) -> list[int]:
        place: ColumnElement[Any] = (size - low) / width
        # SQLite may lack floor(), and its cast cuts; PostgreSQL's cast rounds
        place = cast(place if self._database.is_sqlite else func.floor(place), Integer)
        place = case((size < low, 0), (size >= low + width * (bins - 1), bins - 1), else_=place).label("place")
        placed = select(place).where(*where, size.is_not(None)).subquery()  # PostgreSQL groups by no parameter
        query = select(placed.c.place, func.count()).group_by(placed.c.place)
        counts = [0] * bins
        for bin_, rows in self._read(query):
            counts[bin_] += rows
        return counts

    def has_few_values(self, name: str) -> bool:
        """Return whether the first answers have few different texts in a column, all of them short."""
        column = self._table.c[name]
        first = select(column).where(*self._succeeded(), column.is_not(None)).order_by(*self._key).limit(PROBED)
        found = self._read(select(first.subquery().c[name]).distinct().limit(FEW_VALUES + 1))
        return 0 < len(found) <= FEW_VALUES and all(len(str(text)) <= LONGEST_VALUE for (text,) in found)

    def values(self, name: str) -> list[tuple[Any, int]]:
        """Return the MOST_VALUES most frequent values of a column in answers that succeeded, with their number.

        No null is one. The database is asked once.
        """
        if name not in self._values:
            column, number = self._table.c[name], func.count()
            query = select(column, number).where(*self._succeeded(), column.is_not(None)).group_by(column)
            self._values[name] = self._read(query.order_by(number.desc(), column).limit(MOST_VALUES))
        return [(value, rows) for value, rows in self._values[name]]

    def samples(self, name: str | None, groups: Mapping[GroupName, int], each: int) -> dict[GroupName, list[Sample]]:
        """Return the first answers by key of each of these groups, at most `each` of a group.

        name: the column by whose values groups differ; None: by their status alone. groups: with their number of rows.
        """
        found: dict[GroupName, list[Sample]] = {group: [] for group in groups}
        total = sum(groups.values())
        frequent = [group for group, rows in groups.items() if rows * FREQUENT >= total]
        for group in frequent:  # the database stops at the last one, near the beginning
            self._put(found, self._sampled(name, [group]).order_by(*self._key).limit(each))
        rare = [group for group in groups if group not in frequent]
        if rare:  # one look through all answers, for all of these groups
            by = [self._table.c.status] if name is None else [self._table.c.status, self._table.c[name]]
            place = func.row_number().over(partition_by=by, order_by=self._key).label("place in its group")
            placed = self._sampled(name, rare).add_columns(place).subquery()
            columns = [column for column in placed.c if column.name != "place in its group"]
            last = placed.c["place in its group"] <= each
            self._put(found, select(*columns).where(last).order_by(*columns[: len(self._key)]))
        return found

    def _sampled(self, name: str | None, groups: Sequence[GroupName]) -> Select[Any]:
        """Return the query for the answers of these groups: key, status, value, and what `_put` makes a Sample of."""
        c, columns = self._table.c, self._sink.columns
        texts = [func.substr(c[each], 1, LONGEST_TEXT).label(each) for each in ("text", "error_type", "error_message")]
        others = [self._cut(each, kind).label(f"its {each}") for each, kind in (columns.output | columns.keep).items()]
        is_one = [
            and_(c.status == status, *([] if wanted is None or name is None else [c[name] == wanted]))
            if wanted is not None or name is None or status != RowState.SUCCEEDED
            else and_(c.status == status, c[name].is_(None))
            for status, wanted in groups
        ]
        chosen = [*self._key, c.status.label("its status"), self._value(name), *texts, *others]
        return select(*chosen).where(*self._which, or_(*is_one))

    def _value(self, name: str | None) -> ColumnElement[Any]:
        """Return the value of a column if the answer succeeded, else null. name: None: always null."""
        c = self._table.c
        if name is None:
            return cast(None, Integer).label("its value")
        return case((c.status == RowState.SUCCEEDED, c[name])).label("its value")

    def _cut(self, name: str, kind: str) -> ColumnElement[Any]:
        column = self._table.c[name]
        return func.substr(column, 1, LONGEST_TEXT) if kind in ("text", "json") else column

    def _put(self, found: dict[GroupName, list[Sample]], query: Select[Any]) -> None:
        """Put the answers that a query finds into their groups."""
        width, outputs, keep = len(self._key), self._sink.columns.output, self._sink.columns.keep
        with blaming_table(self._table), self._database.read() as conn:
            rows = [tuple(row) for row in conn.execute(query)]
        for row in rows:
            (status, value, *texts), others = row[width : width + 5], row[width + 5 :]
            values = dict(zip([*outputs, *keep], others, strict=True))
            of = [{name: values[name] for name in names} for names in (outputs, keep)]
            sample = Sample._make((row[:width], *texts, *of))
            found[status, value].append(sample)

    def _succeeded(self) -> list[ColumnElement[bool]]:
        return [*self._which, self._table.c.status == RowState.SUCCEEDED]

    def _read(self, query: Select[Any]) -> list[tuple[Any, ...]]:
        with blaming_table(self._table), self._database.read() as conn:
            return plain_rows(conn, query)
