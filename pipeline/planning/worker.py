"""Do pass one, or plan shards, in a process of its own, for a driver of this machine. Edge: SQL, files, pipes.

The process does not import the SDK, whose import takes longer than that of all else together: the driver tells it the
API's time. Only a request that may be too long for its model has to be counted by the API.

python -P -m pipeline.planning.worker: the driver starts this process and gives it assignments by its standard input.
The process writes to its standard output what happens. All messages are pickled, as both ends are ours. When its
standard input ends, the driver has ended, and the process ends at once: each of its transactions is whole, and the
next driver plans the rest. Ctrl-C is for the driver, which then closes the pipe.
"""

import gc
import logging
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from contextlib import closing
from typing import Any, BinaryIO

from pipeline import memory

memory.use_little_memory()  # before polars is imported
if __name__ == "__main__":
    gc.disable()  # until all modules are imported

from pipeline.api.clock import steady  # noqa: E402
from pipeline.driver.environment import Environment  # noqa: E402
from pipeline.errors import PipelineError  # noqa: E402
from pipeline.job.endpoint import Endpoint  # noqa: E402
from pipeline.planning.messages import Assignment, Done, Failed, Message  # noqa: E402
from pipeline.planning.quote_source import ToQuote, quote_source  # noqa: E402
from pipeline.planning.shards import plan_shard  # noqa: E402
from pipeline.state.database import Database  # noqa: E402


class Outbox(logging.Handler):
    """Writes messages to the driver; also those of the process's log."""

    def __init__(self, pipe: BinaryIO) -> None:
        super().__init__()
        self._pipe, self._writing = pipe, threading.Lock()

    def send(self, message: Message) -> None:
        """Write one message. Raises OSError if the driver has ended."""
        with self._writing:
            pickle.dump(message, self._pipe)
            self._pipe.flush()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a log record, which the driver logs."""
        record.msg, record.args, record.exc_info = record.getMessage(), None, None  # arguments may not be picklable
        self.send(record)


def do(assignment: Assignment, outbox: Outbox) -> Done | Failed:
    """Do what is assigned, and return how that ended."""
    task = assignment.task
    try:
        with closing(Database(assignment.database)) as database:
            if isinstance(task, ToQuote):
                return quote_source(database, task)
            return plan_shard(_environment(assignment, database, outbox), task)
    except PipelineError as exc:
        return Failed(exc)
    except Exception:  # noqa: BLE001  # the driver logs it and does the task itself
        return Failed(None, traceback.format_exc())


def _environment(assignment: Assignment, database: Database, outbox: Outbox) -> Environment:
    api = assignment.api
    assert api is not None

    def connect(_: Endpoint) -> Any:
        from pipeline.api.client import Api

        return Api.connect(api.reach)

    return Environment(
        database=database,
        connect=connect,
        settings=assignment.settings,
        spool=assignment.spool,
        tell=outbox.send,
        api_now=lambda: steady() + api.ahead,
        account_id=api.account_id,
    )


def _read(pipe: BinaryIO, assignments: "queue.Queue[Assignment]") -> None:
    """Read assignments until the pipe ends, and then end the process, whatever it does."""
    while True:
        try:
            assignments.put(pickle.load(pipe))  # our own driver writes it
        except (EOFError, pickle.UnpicklingError):
            os._exit(0)


def main() -> None:
    """Do what the driver assigns, one task after the other, until the driver closes the pipe."""
    memory.collect_seldom()
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    outbox = Outbox(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # what a library prints must not come between our messages
    logging.getLogger().addHandler(outbox)
    assignments: queue.Queue[Assignment] = queue.Queue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, assignments), daemon=True).start()
    while True:
        outbox.send(do(assignments.get(), outbox))


if __name__ == "__main__":
    main()
