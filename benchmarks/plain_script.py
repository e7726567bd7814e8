"""The plain script, as a competent user writes it with the SDK in an evening; the pipeline is compared with it.

python benchmarks/plain_script.py SOURCE FILE [--batch-size 25000]
python benchmarks/plain_script.py SOURCE --database postgresql://user@host/database

SOURCE: CSV or Parquet with id, title, body. Answers go into table `answers` of the SQLite file FILE, or of a PostgreSQL
database, by psycopg's executemany. The SDK reads the address and the key (ANTHROPIC_BASE_URL,
ANTHROPIC_API_KEY). It keeps no state: if it is killed, it starts and pays again; that is the price of its brevity,
and is not measured.
"""

from __future__ import annotations

import argparse
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import anthropic
import polars as pl
from anthropic.types.messages.batch_create_params import Request

MODEL = "claude-haiku-4-5"
POLL_SECONDS = 0.1

CREATE_TABLE = """
CREATE TABLE answers (
    id TEXT PRIMARY KEY,
    text TEXT,
    status TEXT NOT NULL,
    error_message TEXT,
    stop_reason TEXT,
    model TEXT,
    input_tokens INTEGER,
    output_tokens INTEGER,
    batch_id TEXT NOT NULL
)
"""


def read(source: Path) -> pl.DataFrame:
    return pl.read_parquet(source) if source.suffix == ".parquet" else pl.read_csv(source, infer_schema=False)


def request(row: dict[str, str]) -> Request:
    prompt = f"Summarize:\n<title>{row['title']}</title>\n{row['body']}"
    return {
        "custom_id": row["id"],
        "params": {"model": MODEL, "max_tokens": 300, "messages": [{"role": "user", "content": prompt}]},
    }


def answers(client: anthropic.Anthropic, batch_id: str) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for response in client.messages.batches.results(batch_id):
        result = response.result
        if result.type == "succeeded":
            message = result.message
            text = "".join(block.text for block in message.content if block.type == "text")
            usage = message.usage
            used = (message.stop_reason, message.model, usage.input_tokens, usage.output_tokens)
            rows.append((response.custom_id, text, "succeeded", None, *used, batch_id))
        else:
            error = result.error.error.message if result.type == "errored" else None
            rows.append((response.custom_id, None, result.type, error, None, None, None, None, batch_id))
    return rows


Insert = Callable[[list[tuple[object, ...]]], None]


def into_sqlite(file: str) -> Insert:
    """Create a table `answers` and return the function that inserts rows into it, in one transaction."""
    database = sqlite3.connect(file)
    database.execute(CREATE_TABLE)

    def insert(rows: list[tuple[object, ...]]) -> None:
        with database:
            database.executemany("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    return insert


def into_postgres(url: str) -> Insert:
    """Create a table `answers` in PostgreSQL and return the function that inserts rows into it, in one transaction."""
    import psycopg

    database = psycopg.connect(url.replace("+psycopg://", "://", 1))
    database.execute(CREATE_TABLE.encode())
    database.commit()

    def insert(rows: list[tuple[object, ...]]) -> None:
        with database.cursor() as cursor:
            cursor.executemany("INSERT INTO answers VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)", rows)
        database.commit()

    return insert


def main() -> None:
    parser = argparse.ArgumentParser(description="Batch summaries with the plain SDK.")
    parser.add_argument("source", type=Path)
    parser.add_argument("file", nargs="?", default="answers.db", help="SQLite file for the answers")
    parser.add_argument("--database", help="URL of a PostgreSQL database for the answers, instead of the file")
    parser.add_argument("--batch-size", type=int, default=25_000, help="requests in one create")
    arguments = parser.parse_args()

    client = anthropic.Anthropic()
    insert = into_sqlite(arguments.file) if arguments.database is None else into_postgres(arguments.database)

    batch_ids = []
    for rows in read(arguments.source).iter_slices(arguments.batch_size):
        requests = [request(row) for row in rows.iter_rows(named=True)]
        batch_ids.append(client.messages.batches.create(requests=requests).id)

    for batch_id in batch_ids:
        while client.messages.batches.retrieve(batch_id).processing_status != "ended":
            time.sleep(POLL_SECONDS)
        insert(answers(client, batch_id))
    print(f"{len(batch_ids)} batches")


if __name__ == "__main__":
    main()
