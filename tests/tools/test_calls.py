"""Each use of a tool has one result, whatever its function does."""

import asyncio
import datetime
import subprocess
import sys
import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline.tools.calls import Tool, Toolbox
from tests.emulator.builders import image
from tests.tools.builders import SCHEMA, use


def toolbox(function: Callable[..., Any], *, timeout: float = 60, most: int = 2000, beta: bool = False) -> Toolbox:
    return Toolbox([Tool("lookup", function, SCHEMA)], timeout=timeout, max_output_bytes=most, beta=beta)


def result_of(function: Callable[..., Any], given: Any = None, **options: Any) -> dict[str, Any]:
    return toolbox(function, **options).call(use({"number": "7"} if given is None else given))


def returning(value: Any) -> Callable[..., Any]:
    return lambda number, year=1: value


class Port(BaseModel):
    name: str
    depth: float


TEXT_BLOCK = {"type": "text", "text": "a"}


@pytest.mark.parametrize(
    ("returned", "content"),
    [
        pytest.param("Grüße", "Grüße", id="text"),
        pytest.param({"a": [1, None]}, '{"a":[1,null]}', id="a mapping"),
        pytest.param(12, "12", id="a number"),
        pytest.param(None, "null", id="nothing"),
        pytest.param([], "[]", id="an empty list"),
        pytest.param(("a", 1), '["a",1]', id="a tuple"),
        pytest.param({"b", "a"}, '["a","b"]', id="a set"),
        pytest.param(datetime.date(2026, 11, 29), '"2026-11-29"', id="a date"),
        pytest.param(Decimal("1.10"), '"1.10"', id="a decimal"),
        pytest.param([Port(name="Cuxhaven", depth=15.8)], '[{"name":"Cuxhaven","depth":15.8}]', id="a pydantic model"),
        pytest.param([TEXT_BLOCK, image()], [TEXT_BLOCK, image()], id="content blocks"),
        pytest.param([{"type": "text"}], '[{"type":"text"}]', id="a mapping that is no block"),
        pytest.param([{"type": ["text"]}], '[{"type":["text"]}]', id="a mapping with an odd type"),
    ],
)
def test_an_output_is_text_or_content_blocks_or_the_json_of_anything_else(returned: Any, content: Any) -> None:
    assert result_of(returning(returned)) == {"type": "tool_result", "tool_use_id": "toolu_1", "content": content}


def test_an_empty_text_is_a_result_without_content() -> None:
    assert result_of(returning("")) == {"type": "tool_result", "tool_use_id": "toolu_1"}


def test_an_async_function_is_awaited() -> None:
    async def lookup(number: str, year: int = 1) -> str:
        await asyncio.sleep(0)
        return f"{number} {year}"

    assert result_of(lookup, {"number": "7", "year": 3})["content"] == "7 3"


def fails(number: str, year: int = 1) -> str:
    raise KeyError(number)


def leaves(number: str, year: int = 1) -> str:
    sys.exit("no more")


async def async_fails(number: str, year: int = 1) -> str:
    raise TimeoutError("the database is slow")


async def is_canceled(number: str, year: int = 1) -> str:
    raise asyncio.CancelledError


def long_complaint(number: str, year: int = 1) -> str:
    raise ValueError("\ud800" + "x" * 10_000)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        pytest.param(fails, "lookup failed: KeyError: '7'", id="an exception"),
        pytest.param(leaves, "lookup failed: SystemExit: no more", id="an exit"),
        pytest.param(async_fails, "lookup failed: TimeoutError: the database is slow", id="an async exception"),
        pytest.param(is_canceled, "lookup failed: CancelledError", id="a cancellation"),
        pytest.param(long_complaint, "lookup failed: ValueError: ?xxx", id="a long complaint"),
        pytest.param(returning("x" * 2001), "lookup returned 2,001 bytes; at most 2,000 can be read", id="a long text"),
        pytest.param(returning("ü" * 1001), "lookup returned 2,002 bytes; at most 2,000", id="a long text of bytes"),
        pytest.param(returning(["x" * 2000]), "lookup returned 2,004 bytes; at most 2,000", id="a long value"),
        pytest.param(returning([{**TEXT_BLOCK, "text": "x" * 2000}]), "at most 2,000 can be read", id="long blocks"),
        pytest.param(
            returning(object()),
            "lookup returned what cannot be sent: Type is not JSON serializable: object",
            id="an object",
        ),
        pytest.param(returning(b"x"), "lookup returned what cannot be sent: ", id="bytes"),
        pytest.param(
            returning([{"type": "text", "text": ""}]),
            "lookup returned what cannot be sent: a text block is empty",
            id="an empty block",
        ),
        pytest.param(returning("\ud800"), "lookup returned what cannot be sent: ", id="no Unicode"),
        pytest.param(returning({"a": "\ud800"}), "lookup returned what cannot be sent: ", id="no Unicode inside"),
        pytest.param(
            returning([{"type": "image", "source": {"type": "base64", "data": "eA=="}}]),
            "lookup returned what cannot be sent: 0.",
            id="a block that the API refuses",
        ),
    ],
)
def test_an_output_that_cannot_be_sent_is_a_result_with_an_error(function: Callable[..., Any], said: str) -> None:
    result = result_of(function)

    assert result["is_error"] is True
    assert result["tool_use_id"] == "toolu_1"
    assert said in result["content"]
    assert len(result["content"].encode()) < 1000


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        pytest.param(use({}), "the input of lookup does not fit its schema: ", id="a missing argument"),
        pytest.param(
            use({"number": 7}), "the input of lookup does not fit its schema: number: 7 is not of type", id="a type"
        ),
        pytest.param(use([1]), "the input of lookup must be an object", id="a list"),
        pytest.param(
            use({"number": "7", "more": 1}),
            "the input of lookup does not fit: got an unexpected keyword argument 'more'",
            id="an argument that the schema allows and the function does not take",
        ),
        pytest.param(use({}, "look_up"), "there is no tool 'look_up'; did you mean 'lookup'?", id="an unknown tool"),
    ],
)
def test_a_use_that_does_not_fit_is_refused_without_a_call(asked: dict[str, Any], said: str) -> None:
    calls = []

    result = toolbox(lambda number, year=1: calls.append(number)).call(asked)

    assert result["is_error"] is True
    assert said in result["content"]
    assert not calls


def test_a_function_cannot_change_the_turn_that_goes_back_to_the_model() -> None:
    schema = {"type": "object", "properties": {"names": {"type": "array"}}}
    asked = use({"names": ["a"]})

    Toolbox([Tool("lookup", lambda names: names.clear(), schema)], timeout=60, max_output_bytes=100).call(asked)

    assert asked["input"] == {"names": ["a"]}


# -- time, and side by side ------------------------------------------------------------------------------------------


def test_calls_run_side_by_side_and_their_results_keep_the_order_of_the_uses() -> None:
    meeting = threading.Barrier(3, timeout=60)  # passes only if three calls run at once

    def lookup(number: str, year: int = 1) -> str:
        meeting.wait()
        return number

    results = toolbox(lookup).results([use({"number": str(n)}, number=n) for n in range(3)])

    assert [(result["tool_use_id"], result["content"]) for result in results] == [
        ("toolu_0", "0"),
        ("toolu_1", "1"),
        ("toolu_2", "2"),
    ]


def test_no_more_calls_run_at_once_than_allowed() -> None:
    lock, running, most = threading.Lock(), [0], [0]

    def lookup(number: str, year: int = 1) -> str:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        with lock:
            running[0] -= 1
        return number

    results = toolbox(lookup).results([use({"number": str(n)}, number=n) for n in range(30)], at_once=2)

    assert [result["content"] for result in results] == [str(n) for n in range(30)]
    assert most[0] <= 2


def test_a_result_is_yielded_while_another_call_still_runs() -> None:
    first_is_known = threading.Event()

    def lookup(number: str, year: int = 1) -> str:
        if number == "0":
            assert first_is_known.wait(60)
        return number

    places = []
    for place, _ in toolbox(lookup).call_all([use({"number": str(n)}, number=n) for n in range(2)]):
        places.append(place)
        first_is_known.set()

    assert places == [1, 0]


def test_a_call_that_takes_too_long_is_given_up_and_what_it_returns_later_is_not_used() -> None:
    late, over = threading.Event(), threading.Event()

    def lookup(number: str, year: int = 1) -> str:
        if number == "0":
            late.wait(60)
            over.set()
        return number

    results: dict[int, list[dict[str, Any]]] = {}
    for place, result in toolbox(lookup, timeout=0.2).call_all([use({"number": str(n)}) for n in range(3)], at_once=1):
        results.setdefault(place, []).append(result)
        late.set()

    assert over.wait(60)
    assert [len(each) for each in results.values()] == [1, 1, 1]
    (given_up,) = results[0]
    assert (given_up["is_error"], given_up["content"]) == (True, "lookup took more than 0.2 s and was given up")


def test_an_async_function_that_takes_too_long_is_canceled() -> None:
    canceled = threading.Event()

    async def lookup(number: str, year: int = 1) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            canceled.set()
        return number

    result = result_of(lookup, timeout=0.2)

    assert result["content"] == "lookup took more than 0.2 s and was given up"
    assert canceled.wait(60)


class AskedToStopError(Exception):
    pass


def test_calls_under_way_are_left_when_the_caller_is_asked_to_stop_and_what_has_ended_is_yielded_first() -> None:
    stop, never, ended = threading.Event(), threading.Event(), []

    def lookup(number: str, year: int = 1) -> str:
        if number == "0":
            never.wait(60)
        return number

    def check() -> None:
        if stop.is_set():
            raise AskedToStopError

    def take_all() -> None:
        for place, _ in toolbox(lookup).call_all([use({"number": str(n)}) for n in range(3)], at_once=2, check=check):
            ended.append(place)
            stop.set()  # while call 0 runs, and call 2 has begun or not

    with pytest.raises(AskedToStopError):
        take_all()

    assert not never.is_set()
    assert 1 in ended
    assert 0 not in ended
    never.set()


def test_a_call_that_hangs_does_not_keep_the_process_from_ending() -> None:
    script = """
import threading
from pipeline.tools.calls import Tool, Toolbox
box = Toolbox([Tool("hang", threading.Event().wait, None)], timeout=0.05, max_output_bytes=100)
print(box.call({"type": "tool_use", "id": "t", "name": "hang", "input": {}})["content"])
"""

    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)

    assert ran.stdout == "hang took more than 0.05 s and was given up\n"
