"""A program that dies before or after it commits the end of a run, or the note that the end was announced.

python -m tests.support.dying before|after end|note MODULE ARGUMENTS...
"""

import os
import re
import runpy
import sys
from typing import Any

from sqlalchemy import Connection, Engine, Pool, event

DEAD = 77  # the exit code of a process that died
STATEMENTS = {"end": re.compile(r"UPDATE \S*runs SET state="), "note": re.compile(r"UPDATE \S*runs SET announced_at=")}


def die(place: str, what: str) -> None:
    """End this process before or after its first commit of this statement that changes something."""

    @event.listens_for(Engine, "after_cursor_execute")
    def executed(conn: Connection, cursor: Any, statement: str, *_: object) -> None:
        if STATEMENTS[what].match(statement) and cursor.rowcount:
            conn.info["dies"] = True

    @event.listens_for(Engine, "commit")
    def committing(conn: Connection) -> None:
        if place == "before" and conn.info.get("dies"):
            os._exit(DEAD)

    @event.listens_for(Pool, "checkin")
    def committed(_connection: object, record: Any) -> None:
        if record.info.get("dies"):
            os._exit(DEAD)


if __name__ == "__main__":
    place, what, module, *arguments = sys.argv[1:]
    die(place, what)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
