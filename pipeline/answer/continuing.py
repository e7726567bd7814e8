"""Which answers are not the end of a row, and what does the next request say? Pure.

An answer goes on if it asks for tools of `rounds`, or if the model paused its turn and `retry.change.paused` says so.
The next request is the one that was answered, with the answer and the results of its tools as further turns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import orjson
from msgspec import Raw, Struct

from pipeline.answer.outcome import Outcome
from pipeline.job.model import Job
from pipeline.states import CONTINUED, RowState

OUT_OF_ROUNDS = "rounds"  #: the error_type of a row whose last round was not the end


def goes_on(job: Job) -> bool:
    """Return whether any answer of the job may go on in another round."""
    return bool(job.rounds.tools) or job.retry.change.continues_pauses


def shares_requests(job: Job) -> bool:
    """Return whether equal requests of the job are sent once. A row whose answer may go on has its own conversation."""
    return job.request.dedupe and not goes_on(job)


class _Message(Struct, gc=False):
    content: Raw
    container: Raw = Raw(b"null")


_decode = msgspec.json.Decoder(_Message).decode


def content_of(message: str) -> bytes:
    """Return the content blocks of a message as the JSON that the API sent: it takes them back only unchanged."""
    return bytes(_decode(message).content)


def calls_of(message: str) -> list[dict[str, Any]]:
    """Return the blocks of a message that ask for a tool, in their order."""
    return [block for block in orjson.loads(content_of(message)) if block.get("type") == "tool_use"]


def _can_be_sent_back(message: str) -> bool:
    """Return whether the content of a message is a list of blocks, as the API takes it back, and not empty."""
    try:
        blocks = orjson.loads(content_of(message))
    except ValueError:  # of msgspec, too
        return False
    return isinstance(blocks, list) and bool(blocks) and all(isinstance(block, dict) for block in blocks)


class Continuing:
    """Tells which answers of a job go on."""

    def __init__(self, job: Job) -> None:
        self._tools, self._final = job.rounds.tools.keys(), job.output.tool
        self._pauses, self.most = job.retry.change.continues_pauses, job.rounds.max

    def calls(self, outcome: Outcome, message: str | None) -> int | None:
        """Return how many tools an answer asks for if it is not the end; 0: it paused; None: it is the end.

        outcome: of the answer alone. message: the answer, as JSON; None if it cannot be read.
        """
        if message is None or outcome.error_type == "odd_result" or not _can_be_sent_back(message):
            return None
        if outcome.stop_reason == "pause_turn":
            return 0 if self._pauses else None
        if outcome.stop_reason != "tool_use" or not self._tools:
            return None
        named = [str(block.get("name")) for block in calls_of(message)]
        return None if not named or self._final in named else len(named)  # for unknown names the results are errors

    def may_go_on(self, outcome: Outcome) -> bool:
        """Return whether the message of an answer has to be looked at."""
        return outcome.stop_reason in ("pause_turn", "tool_use")


def continued(outcome: Outcome) -> Outcome:
    """Return the outcome of an answer that goes on, as its batch counts it."""
    return outcome._replace(state=CONTINUED, error_type=None, error_message=None)


def out_of_rounds(outcome: Outcome, most: int) -> Outcome:
    """Return the outcome of an answer that would go on if it were not the last round. most: rounds of a row."""
    did = "paused its turn" if outcome.stop_reason == "pause_turn" else "still asked for tools"
    return outcome._replace(
        state=RowState.TRUNCATED,
        error_type=OUT_OF_ROUNDS,
        error_message=f"the model {did} in round {most} of {most}; raise rounds.max, or change the request",
    )


def next_params(params: str, message: str, results: Sequence[Mapping[str, Any]] | None, cache: str | None) -> bytes:
    """Return the params of the next round, as JSON.

    It is for the container in which the API's own tools have run, if the answer names one. params: of the request that
    was answered; message: the answer; results: blocks, in the order of the calls; None: the model paused. cache: how
    long the conversation stays in the prompt cache; None: no breakpoint.
    """
    control = None if cache is None else {"type": "ephemeral", "ttl": cache}
    before = _open_messages(_in_container(params, message), control)
    turn = b'{"role":"assistant","content":' + content_of(message) + b"}"
    if results is None:
        return before + b"," + turn + b"]}"
    blocks: list[Any] = [*results]
    if control is not None:
        blocks[-1] = {**blocks[-1], "cache_control": control}
    user = orjson.dumps({"role": "user", "content": blocks})
    return before + b"," + turn + b"," + user + b"]}"


def _in_container(params: str, message: str) -> str:
    """Return params for the container of an answer; unchanged if the answer has none, or params are for it already."""
    found = orjson.loads(bytes(_decode(message).container))
    if not isinstance(found, dict) or "id" not in found:
        return params
    fields = orjson.loads(params)
    given = fields.pop("container", None)  # a mapping says which skills it has
    wanted = {**given, "id": found["id"]} if isinstance(given, dict) else found["id"]
    if wanted == given:
        return params
    rest = params if given is None else orjson.dumps(fields).decode()
    return f'{{"container":{orjson.dumps(wanted).decode()},{rest.removeprefix("{")}'


def _open_messages(params: str, control: Mapping[str, str] | None) -> bytes:
    """Return params up to the end of their last turn, without the breakpoint that `next_params` has put there.

    The API takes few breakpoints in a request; the last one finds what an earlier one has written.
    """
    text = params.encode()
    if list(orjson.loads(text))[-1] != "messages":  # cannot be, as requests are built and changed
        fields = orjson.loads(text)
        text = orjson.dumps({**{k: v for k, v in fields.items() if k != "messages"}, "messages": fields["messages"]})
    if control is not None:
        own = b',"cache_control":' + orjson.dumps(control) + b"}]}]}"
        if text.endswith(own):
            text = text.removesuffix(own) + b"}]}]}"
    return text.removesuffix(b"]}")
