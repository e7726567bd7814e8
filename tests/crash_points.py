"""Runs a small job that dies at its k-th commit or HTTP call, for every k, and runs it again to the end.

A process of its own, so that it can fork: each death is os._exit in a child that has everything imported. It prints
one JSON object: how many points were tried, and what went wrong.

    python -m tests.crash_points URL FOLDER PLACE...
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import httpx2
from sqlalchemy import event

from pipeline import store
from pipeline.answers import ndjson
from pipeline.api import Api
from pipeline.database import Database
from pipeline.driver import Settings
from pipeline.job import Job
from pipeline.run import run
from pipeline.where import Where

DEAD = 9
ROWS = 5  # one of them is invalid, and one is sent twice, for the API fails it at first


class Counter:
    """Dies at the k-th time it is asked."""

    def __init__(self, k: int) -> None:
        self.left = k

    def tick(self, *_: object) -> None:
        self.left -= 1
        if self.left == 0:
            os._exit(DEAD)


class DyingTransport(httpx2.HTTPTransport):
    """Dies before a call, or when its answer has come."""

    def __init__(self, before: Callable[..., None], after: Callable[..., None]) -> None:
        super().__init__()
        self._before, self._after = before, after

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self._before()
        response = super().handle_request(request)
        self._after()
        return response


def alive(*_: object) -> None:
    """Does not die."""


def drive(url: str, folder: Path, *, place: str = "", k: int = 0) -> None:
    """One driver, which dies at the k-th time that it comes to `place`."""
    dying = Counter(k).tick if k else alive
    database = Database(f"sqlite:///{folder}/batches.db")
    if place == "before commit":
        event.listen(database._engine, "commit", dying)
    if place == "after commit":
        event.listen(database._engine.pool, "checkin", dying)
    transport = DyingTransport(dying if place == "before call" else alive, dying if place == "after call" else alive)
    client = anthropic.Anthropic(
        api_key="test", base_url=url, max_retries=0, http_client=httpx2.Client(transport=transport)
    )
    settings = Settings(poll=0.02, grace=0.2, lease=30.0)
    run(job(folder), Where(database=database, connect=lambda: Api(client), settings=settings))


def job(folder: Path) -> Job:
    """Five rows in batches of two; their texts name the folder, so that each point's requests are its own."""
    texts = [f"{folder.name} text {i}" for i in range(ROWS)]
    texts[1], texts[2] = "", texts[2] + " again"
    rows = "".join(f"{i},{text}\n" for i, text in enumerate(texts))
    (folder / "rows.csv").write_text(f"id,text\n{rows}")
    return Job.model_validate(
        {
            "name": "crashing",
            "source": {"path": str(folder / "rows.csv"), "key": "id"},
            "request": {"model": "claude-haiku-4-5", "max_tokens": 50, "prompt": "{{ text }}"},
            "limits": {"max_batch_requests": 2},
            "sink": {"table": "answers"},
        }
    )


def in_a_child(do: Callable[[], None]) -> int:
    """Do it in a forked process; its exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            do()
        except BaseException:  # noqa: BLE001  # the child ends here, whatever it is
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def check(folder: Path) -> None:
    """Every row has its outcome, once."""
    database = Database(f"sqlite:///{folder}/batches.db")
    with database.read() as conn:
        row = store.job_named(conn, "crashing")
        assert row is not None
        states = dict(store.job_counts(conn, row.id))
    answers = [json.loads(line) for line in ndjson(database, row)]
    assert states == {"succeeded": ROWS - 1, "invalid": 1}, states
    assert [answer["id"] for answer in answers] == [str(i) for i in range(ROWS)]
    assert [answer["status"] for answer in answers].count("succeeded") == ROWS - 1


def main() -> None:
    """Try every point and print what was seen."""
    url, root, places = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    seen: dict[str, Any] = {"points": 0, "problems": []}
    for place in places:
        for k in range(1, 1000):
            folder = root / f"{place.replace(' ', '_')}_{k}_"
            folder.mkdir()
            code = in_a_child(lambda: drive(url, folder, place=place, k=k))  # noqa: B023  # called at once
            if code not in (0, DEAD) or in_a_child(lambda: drive(url, folder)) or in_a_child(lambda: check(folder)):  # noqa: B023
                seen["problems"].append(f"{place} {k}: {code}")
            seen["points"] += code == DEAD
            if code == 0:
                break
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main()
