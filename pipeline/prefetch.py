"""Compute the next items in threads while the caller works on the present one. Edge: threads.

All code that works ahead uses these functions, so the same rules hold everywhere:

- Errors: the error of an item is raised in the caller in place of the item, after all earlier items were delivered.
- Stopping: if the caller leaves early, calls that have not begun are canceled, and calls that run are waited for. To be
  sure that this has happened before the next line, close the iterator by `contextlib.closing`.
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
    """Yield the items. A thread gets the next item while the caller works on the present one. name: the thread's."""
    source = iter(items)
    made = map_ahead(lambda _: next(source, _END), itertools.repeat(None), name=name)
    with contextlib.closing(made):
        for item in made:
            if item is _END:
                return
            yield item  # type: ignore[misc]  # an object other than _END is an item


def map_ahead(
    work: Callable[[T], U], things: Iterable[T], *, name: str, threads: int = 1, ahead: int = 1
) -> Generator[U]:
    """Yield `work(thing)` for each thing, in the order of the things. See `calls_ahead` for the arguments."""
    calls = calls_ahead(work, things, name=name, threads=threads, ahead=ahead)
    with contextlib.closing(calls):
        for _, call in calls:
            yield call.result()


def calls_ahead(
    work: Callable[[T], U], things: Iterable[T], *, name: str, threads: int = 1, ahead: int = 1
) -> Generator[tuple[T, Future[U]]]:
    """Yield each thing with the future of `work(thing)`, which may still be running; its `result` waits for it.

    things: read in the caller's thread, one by one. threads: how many calls run at the same time. ahead: how many calls
    are begun beyond the one that the caller has; this is limited because each result may be large.
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
