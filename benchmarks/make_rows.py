"""Make N rows of about 1.1 kB (id, title, body) as CSV and as Parquet, streamed, so that memory does not grow with N.

python benchmarks/make_rows.py N FOLDER [--format csv|parquet|both] [--rows-per-group 50000] [--body 1055]
                               [--distinct D]

Writes FOLDER/rows.csv and FOLDER/rows.parquet. The same N gives the same rows.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

WORDS = (
    "parcel invoice label weight customer printed arrived morning river harbour amount quarter report window engine "
    "garden the a of and to in for with from this that it was were has after before under between nothing several "
    'street kitchen paper "quoted" comma, full. question? naïve café number seven twelve hundred late early'
)
CORPUS_CHARACTERS = (
    1_000_000  # bodies are slices of one text, because making each word by word would take most of the time
)
BODY = 1_055  # characters of a body on average; each has up to SPREAD more or fewer
SPREAD = 165 / 1_055
WIDE = " – Łódź, 東京"  # ends one row in ten: with it, Python stores each character of the string in two bytes
SCHEMA = pa.schema([("id", pa.string()), ("title", pa.string()), ("body", pa.string())])


def corpus(rng: random.Random) -> str:
    choices = WORDS.split()
    words: list[str] = []
    size = 0
    while size < CORPUS_CHARACTERS:
        words.append(rng.choice(choices))
        size += len(words[-1]) + 1
    return " ".join(words)


def tables(
    rows: int, rows_per_table: int, body_characters: int = BODY, distinct: int | None = None
) -> Iterator[pa.Table]:
    """Yield the rows in tables of `rows_per_table`; the last may be shorter.

    body_characters: of a body, on average. distinct: how many different titles with bodies there are, in turn; None:
    all differ.
    """
    if distinct is not None:
        (first,) = tables(distinct, distinct, body_characters)
        for start in range(0, rows, rows_per_table):
            numbers = range(start, min(start + rows_per_table, rows))
            chosen = first.take(pa.array([n % distinct for n in numbers]))
            yield chosen.set_column(0, "id", pa.array([f"doc-{n:08d}" for n in numbers]))
        return
    rng = random.Random(rows)
    text = corpus(rng)
    spread = round(body_characters * SPREAD)
    shortest, longest = body_characters - spread, body_characters + spread
    for start in range(0, rows, rows_per_table):
        numbers = range(start, min(start + rows_per_table, rows))
        ids = [f"doc-{n:08d}" for n in numbers]
        titles = [f"Document {n} of the benchmark" for n in numbers]
        bodies = []
        for n in numbers:
            begin = int(rng.random() * (len(text) - longest))
            body = text[begin : begin + shortest + int(rng.random() * (longest - shortest))]
            bodies.append(body + WIDE if n % 10 == 0 else body)
        yield pa.table([ids, titles, bodies], schema=SCHEMA)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make rows of 1.1 kB.")
    parser.add_argument("rows", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", choices=("csv", "parquet", "both"), default="both")
    parser.add_argument("--rows-per-group", type=int, default=50_000, help="rows in a Parquet row group")
    parser.add_argument("--body", type=int, default=BODY, help="characters of a row's body, on average")
    parser.add_argument("--distinct", type=int, help="different texts; default: all differ")
    arguments = parser.parse_args()

    arguments.folder.mkdir(parents=True, exist_ok=True)
    writers: list[pa.csv.CSVWriter | pa.parquet.ParquetWriter] = []
    with ExitStack() as stack:
        if arguments.format in ("csv", "both"):
            writers.append(stack.enter_context(pa.csv.CSVWriter(arguments.folder / "rows.csv", SCHEMA)))
        if arguments.format in ("parquet", "both"):
            writers.append(stack.enter_context(pa.parquet.ParquetWriter(arguments.folder / "rows.parquet", SCHEMA)))
        for table in tables(arguments.rows, arguments.rows_per_group, arguments.body, arguments.distinct):
            for writer in writers:
                writer.write_table(table)


if __name__ == "__main__":
    main()
