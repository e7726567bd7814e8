"""Write the bodies of a job once, with fsync, and send each once: the highest speed from the source to the API.

python benchmarks/spool_once.py ROWS.parquet FOLDER URL

ROWS.parquet: id, title, body. URL: of a bare server. Prints one JSON object: bytes, write_seconds, send_seconds.
The time to make the bodies is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import orjson
import pyarrow.parquet

BATCH_BYTES = 240_000_000  # the default of `limits.max_batch_bytes`
PIECE = 1_048_576  # bytes that are read and sent at a time


def bodies(source: Path) -> Iterator[bytes]:
    """Yield the bodies of the create calls, as the plain script would send them."""
    requests: list[bytes] = []
    size = 0
    for rows in pyarrow.parquet.ParquetFile(source).iter_batches():
        for row in rows.to_pylist():
            prompt = f"Summarize:\n<title>{row['title']}</title>\n{row['body']}"
            messages = [{"role": "user", "content": prompt}]
            params = {"model": "claude-haiku-4-5", "max_tokens": 300, "messages": messages}
            requests.append(orjson.dumps({"custom_id": row["id"], "params": params}))
            size += len(requests[-1]) + 1
            if size > BATCH_BYTES - 1_000_000:
                yield b'{"requests":[' + b",".join(requests) + b"]}"
                requests, size = [], 0
    if requests:
        yield b'{"requests":[' + b",".join(requests) + b"]}"


def write(body: bytes, path: Path) -> None:
    """Write a file that survives a power cut."""
    with path.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def main() -> None:
    parser = argparse.ArgumentParser(description="Write bodies once and send them once.")
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("url")
    arguments = parser.parse_args()

    paths: list[Path] = []
    write_seconds = 0.0
    for body in bodies(arguments.source):
        paths.append(arguments.folder / f"{len(paths)}.json")
        started = time.monotonic()
        write(body, paths[-1])
        write_seconds += time.monotonic() - started

    started = time.monotonic()
    with httpx2.Client(timeout=600) as client:
        for path in paths:
            headers = {"content-type": "application/json", "content-length": str(path.stat().st_size)}
            client.post(
                f"{arguments.url}/v1/messages/batches", content=pieces(path), headers=headers
            ).raise_for_status()
    send_seconds = time.monotonic() - started
    size = sum(path.stat().st_size for path in paths)
    print(json.dumps({"bytes": size, "write_seconds": write_seconds, "send_seconds": send_seconds}))


if __name__ == "__main__":
    main()
