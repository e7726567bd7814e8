"""How is the next piece of work begun in a thread while its caller still works on the one before?

All code that works ahead does it by these functions, so one rule holds everywhere:

- Errors: an error is raised when its item's turn comes, after all items before it were delivered.
- Stopping: when the caller leaves early, what has not begun is not begun, and what is under way is waited for. Close
  the iterator (`contextlib.closing`) where that must have happened before the next line.
"""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

_END = object()


def prefetch(items: Iterable[T], *, name: str) -> Generator[T]:
    """Yield the items; a thread makes each one while the caller works on the one before. name: of the thread."""
    source = iter(items)
    made = map_ahead(lambda _: next(source, _END), itertools.repeat(None), name=name)
    with contextlib.closing(made):
        for item in made:
            if item is _END:
                return
            yield item  # type: ignore[misc]  # what is not _END is an item


def map_ahead(
    work: Callable[[T], U], things: Iterable[T], *, name: str, threads: int = 1, ahead: int = 1
) -> Generator[U]:
    """Yield `work(thing)` of each thing, in their order. See `calls_ahead`."""
    calls = calls_ahead(work, things, name=name, threads=threads, ahead=ahead)
    with contextlib.closing(calls):
        for _, call in calls:
            yield call.result()


def calls_ahead(
    work: Callable[[T], U], things: Iterable[T], *, name: str, threads: int = 1, ahead: int = 1
) -> Generator[tuple[T, Future[U]]]:
    """Yield each thing with the call of `work` on it, which may still be under way; its `result` waits for its end.

    things: taken in the caller's thread, one by one. threads: that work at the same time. ahead: how many calls after
    the one that the caller has are begun: not all of them, for each result may be large.
    """
    begun: deque[tuple[T, Future[U]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    try:
        for thing in things:
            begun.append((thing, pool.submit(work, thing)))
            if len(begun) > ahead:
                yield begun.popleft()
        while begun:
            yield begun.popleft()
    finally:
        pool.shutdown(cancel_futures=True)
