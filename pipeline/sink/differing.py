"""Keep the rows whose answers differ until their source values are found, in little memory. Edge: files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Column, Integer, LargeBinary, MetaData, Table, Text, create_engine, delete, insert, select

from pipeline.sink.matching import AT_ONCE
from pipeline.storage import tempdir

HELD = 5_000  # rows that are in memory

_rows = Table(
    "differing",
    MetaData(),
    Column("n", Integer, primary_key=True),
    Column("key", Text, nullable=False, index=True),
    Column("facts", LargeBinary, nullable=False),
)


class Differing(NamedTuple):
    """A row whose answers differ. key: JSON, with the values of the results table. facts: JSON of both answers."""

    key: str
    facts: bytes


class DifferingRows:
    """Rows whose answers differ, in a temporary file. A row is there once for each side that differs from the base."""

    def __init__(self) -> None:
        self._engine = create_engine(f"sqlite:///{tempdir.folder()}/differing-{id(self)}.db")
        _rows.create(self._engine)
        self._held: list[Differing] = []

    def add(self, row: Differing) -> None:
        """Add a row."""
        self._held.append(row)
        if len(self._held) >= HELD:
            self._store()

    def take(self, keys: Sequence[str]) -> list[Differing]:
        """Return the rows with these keys, and forget them."""
        self._store()
        found: list[Differing] = []
        with self._engine.begin() as conn:
            for start in range(0, len(keys), AT_ONCE):
                among = _rows.c.key.in_(keys[start : start + AT_ONCE])
                some = conn.execute(select(_rows.c.key, _rows.c.facts).where(among).order_by(_rows.c.n)).all()
                found += [Differing(*row) for row in some]
                if some:
                    conn.execute(delete(_rows).where(among))
        return found

    def rest(self) -> Iterator[Differing]:
        """Yield the rows that were not taken."""
        self._store()
        after = 0
        while True:
            with self._engine.begin() as conn:
                page = conn.execute(select(_rows).where(_rows.c.n > after).order_by(_rows.c.n).limit(HELD)).all()
            if not page:
                return
            yield from (Differing(row.key, row.facts) for row in page)
            after = page[-1].n

    def _store(self) -> None:
        if self._held:
            with self._engine.begin() as conn:
                conn.exec_driver_sql("PRAGMA synchronous=OFF")  # of a file that ends with this process
                conn.execute(insert(_rows), [row._asdict() for row in self._held])
            self._held = []

    def close(self) -> None:
        """Remove the temporary file."""
        self._engine.dispose()
        if self._engine.url.database is not None:
            Path(self._engine.url.database).unlink(missing_ok=True)
