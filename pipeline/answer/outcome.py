"""What the API says of one request, and what we make of it. Pure."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from pipeline.answer import retry_change
from pipeline.answer.schema import Property, Reader, columns
from pipeline.errors import JobError
from pipeline.job.json_schema import SchemaProblem
from pipeline.job.model import Job, fold_label
from pipeline.states import RowState

_SUCCEEDED: str = RowState.SUCCEEDED.value
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_TRUNCATED = {
    "max_tokens": "the answer stopped at max_tokens",
    "model_context_window_exceeded": "the answer stopped at the end of the model's context window",
    "pause_turn": "the model paused its turn before it had finished",
}


class Outcome(NamedTuple):  # ten times cheaper to make than a frozen dataclass, and one is made for each row
    """How one request ended. tokens are 0 where nothing was billed; error_type None where nothing went wrong."""

    state: str  #: a RowState; plain text for the usual one, which database drivers store faster
    error_type: str | None = None
    error_message: str | None = None
    text: str | None = None
    values: Mapping[str, Any] | None = None  #: of the output columns, as JSON has them
    stop_reason: str | None = None
    model: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0  #: how many of cache_write_tokens live for an hour
    web_searches: int = 0
    in_the_us: bool = False  #: inference in the US alone, which costs more
    message_id: str | None = None  #: the API's, of the answer
    stop_sequence: str | None = None  #: which one ended the answer
    request_id: str | None = None  #: by which the API's support finds a request that was not answered


def without_usage(outcome: Outcome) -> Outcome:
    """The outcome of a row that shares a request with another one, which bears what it used."""
    nothing = {name: 0 for name in Outcome._fields if name.endswith("_tokens") or name == "web_searches"}
    return outcome._replace(**nothing)  # type: ignore[arg-type]


def _is_text(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str)


def output_columns(job: Job) -> dict[str, str]:
    """The columns of the results table that the job's `output` asks for: name to kind. Raises JobError."""
    columns: dict[str, str] = {}
    if job.output.labels is not None:
        columns["label"] = "text"
    schema = answer_schema(job)
    if schema is not None:
        columns |= {name: prop.kind for name, prop in _properties(job, schema).items()}
    extra = {"thinking": "text"} if job.output.thinking else {}
    extra |= {"citations": "json"} if job.output.citations else {}
    extra |= {"tool_use": "json"} if job.output.tool is None and _has_tools_of_its_own(job.request.params) else {}
    extra |= {"server_tool_use": "json"} if run_by_the_api(job.request.params) else {}
    for name in extra:
        if name in columns:
            raise JobError(
                f"output.columns: property {name!r} has the name of a column that output asks for; rename it"
            )
    return columns | extra


def answer_schema(job: Job) -> dict[str, Any] | None:
    """The JSON schema that an answer is held to; None for free text and labels. Raises JobError for an unknown tool."""
    if job.output.tool is None:
        return job.output.schema_
    named = {tool.get("name"): tool for tool in tools_of(job.request.params)}
    tool = named.get(job.output.tool)
    if tool is None or not isinstance(tool.get("input_schema"), dict):
        has = ", ".join(str(name) for name, of in named.items() if "input_schema" in of) or "none"
        raise JobError(
            f"output.tool: {job.output.tool!r} is none of the tools with an input_schema in request.params.tools "
            f"(these are: {has})"
        )
    schema: dict[str, Any] = tool["input_schema"]
    return schema


def _properties(job: Job, schema: dict[str, Any]) -> dict[str, Property]:
    try:
        return columns(schema, job.output.columns)
    except SchemaProblem as exc:
        raise JobError(f"output.{'tool' if job.output.tool else 'schema'}: {exc}") from exc


def tools_of(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tools in the params, but for what is no tool at all."""
    tools = params.get("tools")
    return [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []


#: Tools with a type that are run by the client all the same.
CLIENT_TOOLS = ("bash_", "browser_", "computer_", "memory_", "text_editor_")


def run_by_the_api(params: Mapping[str, Any]) -> str | None:
    """The first tool in the params that the API runs by itself; None when answers only ask for tools to be run."""
    return next((kind for tool in tools_of(params) if (kind := _kind_at_the_api(tool))), None)


def _has_tools_of_its_own(params: Mapping[str, Any]) -> bool:
    """Whether the params have tools that a model only asks to be run."""
    return any(_kind_at_the_api(tool) is None for tool in tools_of(params))


def _kind_at_the_api(tool: Mapping[str, Any]) -> str | None:
    """The type of a tool that the API runs by itself; None for one that the client runs."""
    kind = str(tool.get("type", "custom"))
    return None if kind == "custom" or kind.startswith(CLIENT_TOOLS) else kind


class ResultReader:
    """Reads result lines of one job."""

    def __init__(self, job: Job) -> None:
        """Raises JobError for a schema that is none."""
        self._labels = None if job.output.labels is None else {fold_label(label): label for label in job.output.labels}
        schema = answer_schema(job)
        try:
            self._schema = None if schema is None else Reader(schema, job.output.columns)
        except SchemaProblem as exc:
            raise JobError(f"output.{'tool' if job.output.tool else 'schema'}: {exc}") from exc
        self._tool = job.output.tool
        self._retry = job.retry
        self._retried = frozenset(job.retry.errors)
        wanted = output_columns(job).keys() - (self._schema.columns.keys() if self._schema is not None else set())
        self._extras = [(name, read) for name, read in _EXTRAS if name in wanted]

    def outcome(self, line: dict[str, Any]) -> Outcome:
        """Return the outcome that a result line stands for.

        Kinds are told by their `type` texts, and what is unknown is an error that names it: the API may grow. An answer
        that is odd in any part is unparsable; its text and its usage are kept as far as they can be read.
        """
        try:
            outcome = self._outcome(line)
        except (AttributeError, KeyError, TypeError, ValueError):  # a part of it is of another type than the API's
            return _odd(line)
        return outcome if _is_plain(outcome) else _odd(line)

    def odd(self, line: dict[str, Any]) -> Outcome:
        """As `outcome`, of a line that could only be read in part: an answer in it is unparsable, whatever it says."""
        outcome = self.outcome(line)
        return _odd(line) if _answer_in(line) is not None else outcome

    def _outcome(self, line: dict[str, Any]) -> Outcome:
        result = line.get("result")
        kind = result.get("type") if isinstance(result, dict) else None
        if isinstance(result, dict) and kind == "succeeded" and isinstance(result.get("message"), dict):
            return self._answered(result["message"])
        if isinstance(result, dict) and kind == "errored":
            return _errored(result.get("error"))
        if kind == "canceled":
            return Outcome(RowState.CANCELED, "canceled", "the batch was canceled before this request's turn")
        if kind == "expired":
            return Outcome(RowState.EXPIRED, "expired", "the batch's 24 hours ended before this request's turn")
        return Outcome(RowState.ERRORED, "unknown_result", f"the API says {kind!r} of it, which is not known here")

    def again(self, outcome: Outcome, attempts: int) -> bool:
        """Whether a row with this outcome after so many attempts is sent again, as it is or changed."""
        if outcome.state == _SUCCEEDED or attempts >= self._retry.max_attempts:
            return False
        if outcome.state in (RowState.ERRORED, RowState.EXPIRED):
            return outcome.error_type in self._retried
        return retry_change.of(self._retry, outcome.state, outcome.error_type) is not None

    def _answered(self, message: dict[str, Any]) -> Outcome:
        blocks = message.get("content") or []
        if not isinstance(blocks, list):
            raise TypeError("content is no list of blocks")
        texts = [block["text"] for block in blocks if _is_text(block)]
        text: str | None = texts[0] if len(texts) == 1 else "".join(texts)
        used = self._tool_input(blocks)
        usage = message.get("usage") or {}
        one_hour = (usage.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0
        judged = self._judged(message, text or "", used)
        values = judged.values
        if values is not None:  # what has a column is not stored twice
            text = "\n".join(filter(None, (text if used is not None else None, _as_json(judged.rest)))) or None
        elif used is not None:
            text = text or orjson.dumps(used).decode()
        if self._extras:
            values = {**(values or {}), **{name: read(message) for name, read in self._extras}}
        return Outcome(
            state=judged.state,
            error_type=judged.error_type,
            error_message=judged.error_message,
            text=text,
            values=values,
            stop_reason=message.get("stop_reason"),
            model=message.get("model"),
            input_tokens=usage.get("input_tokens") or 0,
            output_tokens=usage.get("output_tokens") or 0,
            cache_read_tokens=usage.get("cache_read_input_tokens") or 0,
            cache_write_tokens=usage.get("cache_creation_input_tokens") or 0,
            cache_write_1h_tokens=one_hour,
            web_searches=(usage.get("server_tool_use") or {}).get("web_search_requests") or 0,
            in_the_us=usage.get("inference_geo") == "us",
            message_id=message.get("id"),
            stop_sequence=message.get("stop_sequence"),
        )

    def _tool_input(self, blocks: Sequence[Any]) -> Any:
        """The input of the tool that is the answer; None when it was not used."""
        if self._tool is None:
            return None
        uses = (
            b for b in blocks if isinstance(b, dict) and b.get("type") == "tool_use" and b.get("name") == self._tool
        )
        return next((use.get("input") for use in uses), None)

    def _judged(self, message: dict[str, Any], text: str, used: Any) -> "_Judged":
        """How the answer is understood."""
        stop = message.get("stop_reason")
        if stop == "refusal":
            details = message.get("stop_details") or {}
            said = details.get("explanation") or details.get("category") or "the model refused"
            return _Judged(RowState.REFUSED, error_type="refusal", error_message=str(said))
        if stop in _TRUNCATED:
            return _Judged(RowState.TRUNCATED, error_type=stop, error_message=_TRUNCATED[stop])
        if self._labels is not None:
            label, problem, rest = _label(text, self._labels)
            return _unparsable(problem) if label is None else _Judged(_SUCCEEDED, values={"label": label}, rest=rest)
        if self._schema is None:
            return _PLAIN
        if self._tool is not None and used is None:
            return _unparsable(f"the answer does not use the tool {self._tool}")
        reading = self._schema.read_text(text) if self._tool is None else self._schema.read(used)
        if reading.problem is not None:
            return _unparsable(reading.problem)
        return _Judged(_SUCCEEDED, values=reading.values, rest=reading.rest)


class _Judged(NamedTuple):
    """How an answer is understood. values: of the columns; None without any; rest: what of it these do not hold."""

    state: str
    error_type: str | None = None
    error_message: str | None = None
    values: Mapping[str, Any] | None = None
    rest: Mapping[str, Any] = _NOTHING


_PLAIN = _Judged(_SUCCEEDED)  # an answer that is a text, and any text is right


def _unparsable(problem: str) -> _Judged:
    return _Judged(RowState.UNPARSABLE, error_type="unparsable", error_message=problem)


def _as_json(rest: Mapping[str, Any]) -> str | None:
    return orjson.dumps(dict(rest)).decode() if rest else None


_ODD = "the API's result for this request is damaged, or not as the API writes it; what could be read of it is kept"


def _is_plain(outcome: Outcome) -> bool:
    """Whether all that is computed with, or stored as a text, is of its type."""
    return (
        type(outcome.input_tokens) is int
        and type(outcome.output_tokens) is int
        and type(outcome.cache_read_tokens) is int
        and type(outcome.cache_write_tokens) is int
        and type(outcome.cache_write_1h_tokens) is int
        and type(outcome.web_searches) is int
        and (outcome.model is None or type(outcome.model) is str)
        and (outcome.stop_reason is None or type(outcome.stop_reason) is str)
        and (outcome.message_id is None or type(outcome.message_id) is str)
        and (outcome.stop_sequence is None or type(outcome.stop_sequence) is str)
    )


def _answer_in(line: dict[str, Any]) -> dict[str, Any] | None:
    """The message of a line that says that its request succeeded; None of any other line."""
    result = line.get("result")
    answered = isinstance(result, dict) and result.get("type") == "succeeded"
    message = result.get("message") if answered and isinstance(result, dict) else None
    return message if isinstance(message, dict) else None


def _odd(line: dict[str, Any]) -> Outcome:
    """The outcome of a line that is not as the API writes it, with what can be read of an answer in it."""
    message = _answer_in(line)
    if message is None:
        return Outcome(RowState.ERRORED, "unknown_result", _ODD)
    content, usage = message.get("content"), message.get("usage")
    texts = [block["text"] for block in content if _is_text(block)] if isinstance(content, list) else []
    used = usage if isinstance(usage, dict) else {}
    return Outcome(
        RowState.UNPARSABLE,
        "odd_result",
        _ODD,
        "".join(texts) or None,
        stop_reason=_text(message, "stop_reason"),
        model=_text(message, "model"),
        input_tokens=_tokens(used, "input_tokens"),
        output_tokens=_tokens(used, "output_tokens"),
        cache_read_tokens=_tokens(used, "cache_read_input_tokens"),
        cache_write_tokens=_tokens(used, "cache_creation_input_tokens"),
        message_id=_text(message, "id"),
        stop_sequence=_text(message, "stop_sequence"),
    )


def _text(message: Mapping[str, Any], name: str) -> str | None:
    """A text of a message; None where it is none."""
    value = message.get(name)
    return value if isinstance(value, str) else None


def _tokens(usage: Mapping[str, Any], name: str) -> int:
    """A count of tokens; 0 where it cannot be read."""
    value = usage.get(name)
    return value if type(value) is int and 0 <= value < 2**53 else 0


def said(message: dict[str, Any]) -> str:
    """All texts of an answer."""
    return "".join(block["text"] for block in message.get("content") or () if _is_text(block))


def thinking(message: dict[str, Any]) -> str | None:
    """The model's thinking as far as it is shown."""
    thoughts = [block.get("thinking") for block in _blocks(message, "thinking")]
    return "\n\n".join(thought for thought in thoughts if isinstance(thought, str) and thought) or None


def _citations(message: dict[str, Any]) -> list[Any] | None:
    """What the texts cite, in their order."""
    return [cited for block in _blocks(message, "text") for cited in block.get("citations") or ()] or None


def _tool_uses(message: dict[str, Any]) -> list[Any] | None:
    """Which tools the model wants to be run, and with what."""
    uses = _blocks(message, "tool_use")
    return [{"name": use.get("name"), "input": use.get("input")} for use in uses] or None


def _server_tools(message: dict[str, Any]) -> dict[str, Any] | None:
    """How often tools that the API runs were used, as it counts them, and by name as the answer shows it."""
    uses = Counter(str(block.get("name")) for block in _blocks(message, "server_tool_use"))
    counted = (message.get("usage") or {}).get("server_tool_use") or {}
    return {name: n for name, n in {**uses, **counted}.items() if n} or None


#: Columns that an output may ask for, beside what the answer says.
_EXTRAS: tuple[tuple[str, Callable[[dict[str, Any]], Any]], ...] = (
    ("thinking", thinking),
    ("citations", _citations),
    ("tool_use", _tool_uses),
    ("server_tool_use", _server_tools),
)


def _blocks(message: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [b for b in message.get("content") or () if isinstance(b, dict) and b.get("type") == kind]


def _label(text: str, labels: dict[str, str]) -> tuple[str | None, str, dict[str, Any]]:
    """The declared label that an answer names, or None and what is wrong with the answer; and its other fields."""
    try:
        answer = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None, "the answer is not JSON", {}
    named = answer.pop("label", None) if isinstance(answer, dict) else None
    if not isinstance(named, str):
        return None, "the answer has no text field 'label'", {}
    label = labels.get(fold_label(named))
    return label, f"the answer's label {named[:80]!r} is none of the declared ones", answer


def _errored(error: Any) -> Outcome:
    """The error is nested twice in the API's answer; some gateways flatten it."""
    inner = error.get("error") if isinstance(error, dict) else None
    said = inner if isinstance(inner, dict) else error if isinstance(error, dict) else {}
    kind, message = str(said.get("type") or "unknown_error"), str(said.get("message") or "no message")
    request_id = _text(error, "request_id") if isinstance(error, dict) else None
    details = said.get("details")
    code = details.get("error_code") if isinstance(details, dict) else None
    if kind not in ACCOUNT_ERRORS and (code in ACCOUNT_CODES or speaks_of_account(message)):
        kind, message = "billing_error", f"{kind}: {message}"
    return Outcome(RowState.ERRORED, kind, message, request_id=request_id)


#: Of a request: the API refuses the account, and would refuse every other request.
ACCOUNT_ERRORS = frozenset({"authentication_error", "permission_error", "billing_error"})
#: The same, under whatever type it comes.
ACCOUNT_CODES = frozenset({"enforced_spend_limit_reached", "contract_spend_limit_reached", "organization_on_hold"})
_OF_ACCOUNT = re.compile(
    r"credit balance is too low|reached your (specified )?(workspace )?API usage limits|organization has been disabled",
    re.IGNORECASE,
)


def speaks_of_account(message: str) -> bool:
    """Whether an error says that the account cannot pay, or may not spend; the API has no type of its own for that."""
    return _OF_ACCOUNT.search(message) is not None
