"""Call the functions of tools with what the model asks for, and make the results that go back to it.

Each call has a thread of its own, which is given up when its time has passed. Such a thread cannot be stopped, and does
not keep the process from ending.
"""

import asyncio
import copy
import inspect
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from pipeline.job.json_schema import at_path, compiled, did_you_mean, shortened
from pipeline.request.sdk_types import first_mismatch

if TYPE_CHECKING:
    import jsonschema_rs

Block = dict[str, Any]  # a content block, as the API has it
AT_ONCE = 16  #: calls side by side
LOOK_SECONDS = 0.2  # between two looks whether the caller is asked to stop, while no call ends


def _go_on() -> None:
    """Let the calls go on."""


class Tool(NamedTuple):
    """A tool with its function. schema: of its input; None for a tool whose input the API describes itself."""

    name: str
    function: Callable[..., Any]
    schema: Mapping[str, Any] | None


class Toolbox:
    """The tools of a job. Safe across threads.

    timeout: seconds for one call. max_output_bytes: of what one call returns, as UTF-8. beta: whether requests go to
    the beta API, which takes more kinds of blocks.
    """

    def __init__(self, tools: Iterable[Tool], *, timeout: float, max_output_bytes: int, beta: bool = False) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._timeout, self._max_output_bytes, self._beta = timeout, max_output_bytes, beta
        self._validators = {
            name: compiled(dict(tool.schema)) for name, tool in self._tools.items() if tool.schema is not None
        }

    @property
    def names(self) -> list[str]:
        """The names of the tools."""
        return list(self._tools)

    def call(self, use: Mapping[str, Any]) -> Block:
        """Return the tool_result block for a tool_use block. It has `is_error` if there is no usable output."""
        return next(self.call_all([use]))[1]

    def results(self, uses: Sequence[Mapping[str, Any]], *, at_once: int = AT_ONCE) -> list[Block]:
        """Return the tool_result blocks for tool_use blocks, in their order. The calls run side by side."""
        return [result for _, result in sorted(self.call_all(uses, at_once=at_once), key=lambda pair: pair[0])]

    def call_all(
        self, uses: Iterable[Mapping[str, Any]], *, at_once: int = AT_ONCE, check: Callable[[], None] = _go_on
    ) -> Iterator[tuple[int, Block]]:
        """Yield the place of each tool_use block with its tool_result block, as soon as its call has ended.

        at_once: how many calls run side by side. A call that was given up is not among them, although it may still run.
        check: a function that is called about every LOOK_SECONDS. What it raises ends the calls: those under way are
        left to themselves, and what they return is not used.
        """
        ended: queue.SimpleQueue[tuple[int, _Output]] = queue.SimpleQueue()
        waiting = enumerate(uses)
        running: dict[int, _Call] = {}
        while True:
            if ended.empty():  # else a result waits to be yielded: without it, its call would be made again
                check()
            while len(running) < at_once and (following := next(waiting, None)) is not None:
                place, use = following
                refused = self._refusal(use)
                if refused is not None:
                    yield place, _block(use, refused)
                else:
                    running[place] = _Call(use, time.monotonic() + self._timeout)
                    self._start(place, use, ended)
            if not running:
                return
            first_due = min(call.due for call in running.values())
            try:
                place, output = ended.get(timeout=min(max(first_due - time.monotonic(), 0), LOOK_SECONDS))
            except queue.Empty:
                now = time.monotonic()
                for place in [place for place, call in running.items() if call.due <= now]:
                    use = running.pop(place).use
                    yield place, _block(use, self._too_slow(use["name"]))
                continue
            if place in running:  # else it was given up
                yield place, _block(running.pop(place).use, output)

    def _start(self, place: int, use: Mapping[str, Any], ended: "queue.SimpleQueue[tuple[int, _Output]]") -> None:
        """Start the call of a tool in a thread, which puts its output into `ended`."""
        # a copy: the block goes back to the model, and the function may change what it was given
        given = copy.deepcopy(use["input"])
        tool = self._tools[use["name"]]
        # daemon: a thread that hangs must not keep the process from ending
        threading.Thread(
            target=lambda: ended.put((place, self._output(tool, given))), name=f"tool {tool.name}", daemon=True
        ).start()

    def _refusal(self, use: Mapping[str, Any]) -> "_Output | None":
        """Return the output for a use that names no tool, or has an input that does not fit; None if it can run."""
        name, given = use.get("name"), use.get("input")
        if name not in self._tools:
            return _error(f"there is no tool {name!r}{did_you_mean(str(name), self._tools)}")
        if not isinstance(given, dict):
            return _error(f"the input of {name} must be an object")
        validator = self._validators.get(str(name))
        if validator is not None and not validator.is_valid(given):
            return _error(f"the input of {name} does not fit its schema: {_misfit(validator, given)}")
        try:
            inspect.signature(self._tools[str(name)].function).bind(**given)
        except TypeError as exc:
            return _error(f"the input of {name} does not fit: {exc}")
        except ValueError:  # the function does not say what it takes
            pass
        return None

    def _output(self, tool: Tool, given: dict[str, Any]) -> "_Output":
        """Return the output of a call."""
        try:
            returned = tool.function(**given)
            if inspect.isawaitable(returned):
                returned = asyncio.run(_awaited(returned, self._timeout))
        except _GaveUpError:
            return self._too_slow(tool.name)
        except BaseException as exc:  # noqa: BLE001 - the model is told, whatever it is; also of sys.exit()
            return _error(f"{tool.name} failed: {type(exc).__name__}: {_plain(str(exc))}".removesuffix(": "))
        try:
            return self._read(tool.name, returned)
        except (TypeError, ValueError) as exc:
            return _error(f"{tool.name} returned what cannot be sent: {_plain(str(exc))}")

    def _read(self, name: str, returned: Any) -> "_Output":
        """Return what a function returned as an output: text, content blocks, or the JSON of any other value.

        Raises TypeError or ValueError for a value that is no JSON, or a text that is no Unicode.
        """
        content = returned if isinstance(returned, str) or _are_blocks(returned) else _json(returned).decode()
        size = len(content.encode()) if isinstance(content, str) else len(_json(content))
        if size > self._max_output_bytes:
            return _error(
                f"{name} returned {size:,} bytes; at most {self._max_output_bytes:,} can be read: ask for less"
            )
        problem = None if isinstance(content, str) else self._problem_of_blocks(content)
        return _Output(content) if problem is None else _error(f"{name} returned what cannot be sent: {problem}")

    def _problem_of_blocks(self, blocks: list[Block]) -> str | None:
        """Return why the API would refuse these blocks in a tool_result; None if it would not."""
        if any(block["type"] == "text" and not block["text"] for block in blocks):
            return "a text block is empty"
        result = {"type": "tool_result", "tool_use_id": "toolu", "content": blocks}
        turns = [{"role": "user", "content": [result]}]
        mismatch = first_mismatch({"model": "a model", "max_tokens": 1, "messages": turns}, beta=self._beta)
        return None if mismatch is None else at_path(mismatch.path[5:], mismatch.message)

    def _too_slow(self, name: str) -> "_Output":
        return _error(f"{name} took more than {self._timeout:g} s and was given up")


class _Call(NamedTuple):
    """A call that runs. due: when it is given up, by the monotonic clock."""

    use: Mapping[str, Any]
    due: float


class _Output(NamedTuple):
    """What goes back to the model."""

    content: str | list[Block]
    is_error: bool = False


class _GaveUpError(Exception):
    """An async function took too long, and was canceled."""


async def _awaited(returned: Any, timeout: float) -> Any:
    """Return what an async function gives. Raises _GaveUpError."""
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            return await returned
    except TimeoutError:
        if limit.expired():
            raise _GaveUpError from None
        raise


def _block(use: Mapping[str, Any], output: _Output) -> Block:
    """Return the tool_result block for a tool_use block."""
    block = {"type": "tool_result", "tool_use_id": use.get("id")}
    if output.content:  # the API takes a result without content, and no empty text
        block["content"] = output.content
    return {**block, "is_error": True} if output.is_error else block


def _error(text: str) -> _Output:
    return _Output(text, is_error=True)


def _misfit(validator: "jsonschema_rs.Draft202012Validator", given: dict[str, Any]) -> str:
    first = next(validator.iter_errors(given))
    return at_path(first.instance_path, shortened(first.message))


def _plain(text: str) -> str:
    """Return a text of somebody else's as it can be sent: shortened, and without broken characters."""
    return shortened(text.encode("utf-8", "replace").decode())


def _are_blocks(returned: Any) -> bool:
    """Return whether a value is a list of content blocks, as a tool_result may have them."""
    return isinstance(returned, list) and bool(returned) and all(map(_is_block, returned))


def _is_block(value: Any) -> bool:
    kind = value.get("type") if isinstance(value, dict) else None
    return isinstance(kind, str) and _BLOCK_FIELDS.get(kind) in value


#: The blocks that a tool_result may have, with the field that makes a block of each; other lists are JSON.
_BLOCK_FIELDS = {
    "text": "text",
    "image": "source",
    "document": "source",
    "search_result": "source",
    "tool_reference": "tool_name",
}


def _json(value: Any) -> bytes:
    """Return a value as JSON. Raises TypeError if it is none."""
    return orjson.dumps(value, default=_as_json_value, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)


def _as_json_value(value: Any) -> Any:
    """Return JSON's form of a value that orjson does not know. Raises TypeError if it has none."""
    if callable(dump := getattr(value, "model_dump", None)):  # a pydantic model
        return dump(mode="json")
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if type(value).__name__ == "Decimal":
        return str(value)
    raise TypeError(f"a value of type {type(value).__name__} is no JSON")
