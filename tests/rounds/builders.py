"""Builders of jobs with tools, and a live loop with the SDK whose answers they must have."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson

from pipeline.job.model import Job
from pipeline.runner.verify import verify
from tests.conftest import World
from tests.support.talking import declared, live_loop

PROMPT = "Use lookup for: {{ text }}"


class Counting:
    """A tool that counts its calls, by input. fails: the words for which it raises an exception."""

    def __init__(self, fails: str = "") -> None:
        self.calls: Counter[str] = Counter()
        self._fails = fails
        self.__qualname__, self.__module__ = "lookup", "counting"

    def __call__(self, word: str) -> str:
        self.calls[word] += 1
        if self._fails and self._fails in word:
            raise ValueError(f"no such word: {word}")
        return f"{word} is number {len(word)}"


def with_tools(world: World, tools: dict[str, Callable[..., Any]], **changes: Any) -> Job:
    """Return a job whose rows ask for these tools."""
    request = {"prompt": PROMPT, "params": {"tools": declared(list(tools))}, **changes.pop("request", {})}
    return world.job(request=request, rounds={"tools": tools, **changes.pop("rounds", {})}, **changes)


def live(world: World, job: Job, text: str, tools: dict[str, Callable[..., Any]]) -> tuple[str, int, int]:
    """Answer a row by live calls with the SDK, as a script does. Return text, rounds, and calls of tools."""
    request = job.request
    params = {"model": request.model, "max_tokens": request.max_tokens, **request.params}
    prompt = str(request.prompt).replace("{{ text }}", text)
    said = live_loop(world.client(), prompt, lambda name, given: str(tools[name](**given)), params)
    return said.text, said.rounds, said.asked.total()


def conversations(world: World) -> list[list[dict[str, Any]]]:
    """Return the messages of all accepted requests, in the order of acceptance."""
    found: list[list[dict[str, Any]]] = []
    for batch in dict.fromkeys(each["batch_id"] for each in world.emulator.accepted()):
        lines = (world.emulator.data / "batches" / batch / "requests").read_bytes().splitlines()
        found += [orjson.loads(line.split(b" ", 2)[2])["messages"] for line in lines]
    return found


def holds(world: World) -> bool:
    """Return whether `verify` finds nothing wrong."""
    found = verify(world.database, world.known())
    return found.holds
