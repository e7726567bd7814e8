"""Work begun ahead of its caller keeps its order and its errors, and ends when the caller leaves early."""

import threading
from collections.abc import Iterator

import pytest

from pipeline.prefetch import calls_ahead, map_ahead, prefetch


def test_items_are_returned_in_their_order() -> None:
    assert list(prefetch(range(5), name="test")) == [0, 1, 2, 3, 4]


def test_the_next_item_is_made_while_the_caller_works_on_the_one_before() -> None:
    made = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        made.set()
        yield 2

    ahead = prefetch(items(), name="test")

    assert next(ahead) == 1
    assert made.wait(10)
    assert list(ahead) == [2]


def test_an_error_is_raised_in_place_of_its_item() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("the third")

    ahead = prefetch(items(), name="test")

    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(ahead)


def test_only_a_limited_number_of_calls_is_begun_ahead_of_the_caller() -> None:
    taken: list[int] = []

    def things() -> Iterator[int]:
        for n in range(10):
            taken.append(n)
            yield n

    ahead = map_ahead(lambda n: n * n, things(), name="test", threads=2, ahead=2)

    assert next(ahead) == 0
    assert taken == [0, 1, 2]
    ahead.close()


def test_a_call_that_fails_does_not_affect_the_others() -> None:
    calls = calls_ahead(lambda n: 10 // n, [5, 0, 2], name="test")

    ended = [(n, call.result() if n else str(call.exception())) for n, call in calls]

    assert ended == [(5, 2), (0, "integer division or modulo by zero"), (2, 5)]


def test_every_begun_call_has_ended_when_a_caller_has_left_early() -> None:
    begun: list[int] = []
    ended: list[int] = []
    second, go_on = threading.Event(), threading.Event()

    def work(n: int) -> int:
        begun.append(n)
        if n == 1:
            second.set()
            assert go_on.wait(10)
        ended.append(n)
        return n

    ahead = map_ahead(work, range(1_000_000), name="test", ahead=3)
    assert next(ahead) == 0
    assert second.wait(10)
    go_on.set()
    ahead.close()

    assert ended == begun
    assert begun == list(range(len(begun)))
    assert len(begun) <= 4
