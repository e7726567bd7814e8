"""Turn a line of the API's results into an outcome: state, values, tokens used and error. Pure."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from pipeline.answer import lines, retry_change
from pipeline.answer.retry_change import ACCOUNT_ERRORS
from pipeline.answer.schema import Property, Reader, Reading, columns
from pipeline.errors import JobError
from pipeline.job.json_schema import SchemaProblem
from pipeline.job.model import Job
from pipeline.states import RowState
from pipeline.text import folded

if TYPE_CHECKING:
    from pipeline.answer.plain import PlainMessage

_SUCCEEDED: str = RowState.SUCCEEDED.value
#: raised where a part of a line has an unexpected type
MALFORMED = (AttributeError, KeyError, TypeError, ValueError)
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_TRUNCATED = {
    "max_tokens": "the answer stopped at max_tokens",
    "model_context_window_exceeded": "the answer stopped at the end of the model's context window",
    "pause_turn": "the model paused its turn before it had finished",
    "compaction": "the model paused after it had summarized the conversation, and did not answer",
}


class Outcome(NamedTuple):  # ten times cheaper to make than a frozen dataclass, and one is made for each row
    """How one request ended. Tokens are 0 if nothing was billed; error_type is None if the request succeeded."""

    state: str  #: a RowState; a plain text for succeeded, which database drivers store faster
    error_type: str | None = None
    error_message: str | None = None
    text: str | None = None  #: the answer's text, or JSON, without what `values` holds; None if nothing is left
    values: Mapping[str, Any] | None = None  #: of the output columns, as JSON values; None if there are none
    stop_reason: str | None = None
    model: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0  #: the part of cache_write_tokens that was written for an hour
    web_searches: int = 0
    in_the_us: bool = False  #: inference only in the US, which costs more
    message_id: str | None = None  #: the API's id of the answer
    stop_sequence: str | None = None  #: the stop sequence that ended the answer; None if none did
    request_id: str | None = None  #: the API's id of a request that failed, for its support


def without_usage(outcome: Outcome) -> Outcome:
    """Return the outcome with no tokens or searches, for a row that shares another row's request and its costs."""
    nothing = {name: 0 for name in Outcome._fields if name.endswith("_tokens") or name == "web_searches"}
    return outcome._replace(**nothing)  # type: ignore[arg-type]


def _is_text(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str)


def output_columns(job: Job) -> dict[str, str]:
    """Return the columns that the job's `output` adds to the results table: name to kind (see sink.columns.KINDS).

    Raises JobError for a schema that cannot be used, or a property with the name of another of these columns.
    """
    columns: dict[str, str] = {}
    if job.output.labels is not None:
        columns["label"] = "text"
    schema = answer_schema(job)
    if schema is not None:
        columns |= {name: prop.kind for name, prop in _properties(job, schema).items()}
    extra = {"thinking": "text"} if job.output.thinking else {}
    extra |= {"citations": "json"} if job.output.citations else {}
    extra |= {"tool_use": "json"} if job.output.tool is None and client_tools(job.request.params) else {}
    extra |= {"server_tool_use": "json"} if first_server_tool(job.request.params) else {}
    extra |= {"rounds": "integer"} if job.rounds.tools or job.retry.change.continues_pauses else {}
    extra |= {"tool_calls": "integer"} if job.rounds.tools else {}
    extra |= {"message": "text"} if job.output.message else {}  # no "json": a text comes back exactly as it was sent
    for name in extra:
        if name in columns:
            raise JobError(f"output.columns: property {name!r} has the name of another column of the output; rename it")
    return columns | extra


def answer_schema(job: Job) -> dict[str, Any] | None:
    """Return the JSON Schema that answers must obey; None for free text and labels.

    Raises JobError if output.tool names no tool with a schema.
    """
    if job.output.tool is None:
        return job.output.schema_
    named = {tool.get("name"): tool for tool in tools_in(job.request.params)}
    tool = named.get(job.output.tool)
    if tool is None or not isinstance(tool.get("input_schema"), dict):
        has = ", ".join(str(name) for name, of in named.items() if "input_schema" in of) or "none"
        raise JobError(
            f"output.tool: {job.output.tool!r} is not a tool with an input_schema in request.params.tools "
            f"(it has: {has})"
        )
    schema: dict[str, Any] = tool["input_schema"]
    return schema


def _properties(job: Job, schema: dict[str, Any]) -> dict[str, Property]:
    """Return the columns of the schema. Raises JobError if it cannot be used."""
    try:
        return columns(schema, job.output.columns)
    except SchemaProblem as exc:
        raise JobError(f"output.{'tool' if job.output.tool else 'schema'}: {exc}") from exc


def tools_in(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tools in a request's params; entries that are not mappings are left out."""
    tools = params.get("tools")
    return [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []


#: Prefixes of tool types that the client runs, although they are the API's own types.
CLIENT_TOOLS = ("bash_", "browser_", "computer_", "memory_", "text_editor_")


def first_server_tool(params: Mapping[str, Any]) -> str | None:
    """Return the type of the first tool in the params that the API runs itself; None if the client runs all tools."""
    return next((kind for tool in tools_in(params) if (kind := _server_tool_type(tool))), None)


def client_tools(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tools in the params that the client has to run when the model asks for it."""
    return [tool for tool in tools_in(params) if _server_tool_type(tool) is None]


def _server_tool_type(tool: Mapping[str, Any]) -> str | None:
    """Return the type of a tool that the API runs itself; None for a tool that the client runs."""
    kind = str(tool.get("type") or "custom")
    return None if kind == "custom" or kind.startswith(CLIENT_TOOLS) else kind


class ResultReader:
    """Reads the result lines of one job."""

    def __init__(self, job: Job) -> None:
        """Raise JobError if the job's schema is not valid."""
        from pipeline.answer.plain import plain_message  # commands that read no results do not need its imports

        #: returns the answer in a plain line; raises ValueError for any other line
        self.plain_message: Callable[[bytes], PlainMessage] = plain_message
        self._labels = None if job.output.labels is None else {folded(label): label for label in job.output.labels}
        schema = answer_schema(job)
        try:
            self._schema = None if schema is None else Reader(schema, job.output.columns)
        except SchemaProblem as exc:
            raise JobError(f"output.{'tool' if job.output.tool else 'schema'}: {exc}") from exc
        self._tool = job.output.tool
        self._retry = job.retry
        wanted = output_columns(job).keys() - (self._schema.columns.keys() if self._schema is not None else set())
        self._extras = [(name, read) for name, read in _EXTRAS if name in wanted]
        self._keeps_message = job.output.message
        #: whether the text of an answer is all that is looked at, so that plain lines may be read as such
        self.reads_plain = self._tool is None and not self._extras and not self._keeps_message
        #: judges the text of a plain answer, see `_judge_plain`; None: each is good as it is
        self.judge_plain = None if self._labels is None and self._schema is None else self._judge_plain

    def read(self, line: bytes) -> Outcome | None:
        """Return the outcome that a result line states; None if the line cannot be read."""
        if self.reads_plain:
            try:
                return self.outcome_of(self.plain_message(line))
            except MALFORMED:  # the line has more than a text, or the answer is odd
                pass  # read below
        return self.read_any(line)

    def read_any(self, line: bytes) -> Outcome | None:
        """Return the same as `read`, by the general way, which reads all lines and takes longer."""
        outcome = self._read_any(line)
        if outcome is None or not self._keeps_message:
            return outcome
        from pipeline.answer.whole import message_text  # only jobs with output.message need its imports

        return outcome._replace(values={**(outcome.values or {}), "message": message_text(line)})

    def _read_any(self, line: bytes) -> Outcome | None:
        """Return the outcome of any line, without its whole message; None if the line cannot be read."""
        try:
            parsed = orjson.loads(line)
        except orjson.JSONDecodeError:
            odd = lines.parse_line(line)
            return None if odd is None else self.damaged(lines.storable_json(odd))
        return self.outcome(parsed)

    def outcome(self, line: dict[str, Any]) -> Outcome:
        """Return the outcome of a request. line: its result, as a JSON object of the API.

        A result of an unknown type is an error that names the type, because the API may get new types. An answer of
        which any part is malformed is unparsable; its text and its usage are kept as far as they can be read.
        """
        try:
            outcome = self._outcome(line)
        except MALFORMED:
            return _damaged(line)
        return outcome if _has_valid_types(outcome) else _damaged(line)

    def damaged(self, line: dict[str, Any]) -> Outcome:
        """Return the outcome for a damaged line, of which only a part could be read: an answer in it is unparsable."""
        outcome = self.outcome(line)
        return _damaged(line) if _answer_in(line) is not None else outcome

    def _outcome(self, line: dict[str, Any]) -> Outcome:
        """Return the outcome of a result line. A part of an unexpected type raises KeyError, TypeError or the like."""
        result = line.get("result")
        kind = result.get("type") if isinstance(result, dict) else None
        if isinstance(result, dict) and kind == "succeeded" and isinstance(result.get("message"), dict):
            return self._from_message(result["message"])
        if isinstance(result, dict) and kind == "errored":
            return _from_error(result.get("error"))
        if kind == "canceled":
            return Outcome(RowState.CANCELED, "canceled", "the batch was canceled before this request was processed")
        if kind == "expired":
            return Outcome(RowState.EXPIRED, "expired", "the batch expired before this request was processed")
        return Outcome(RowState.ERRORED, "unknown_result", f"the API gave a result of the unknown type {kind!r}")

    def should_retry(self, outcome: Outcome, attempts: int) -> bool:
        """Return whether a row is sent again, unchanged or with a change.

        attempts: how often the row has been sent, including the attempt that had this outcome.
        """
        if outcome.state == _SUCCEEDED:
            return False
        return retry_change.may_send_again(self._retry, outcome.state, outcome.error_type, attempts)

    def outcome_of(self, message: "PlainMessage") -> Outcome:
        """Return the outcome of a plain answer, for a reader that `reads_plain`."""
        usage, cached, tools = message.usage, message.usage.cache_creation, message.usage.server_tool_use
        text: str | None = message.content[0].text
        judged = self._judge_text(text or "")
        if judged.values is not None:
            text = _as_json(judged.rest)
        return Outcome(
            judged.state,
            judged.error_type,
            judged.error_message,
            text,
            judged.values,
            message.stop_reason,
            message.model,
            usage.input_tokens or 0,
            usage.output_tokens or 0,
            usage.cache_read_input_tokens or 0,
            usage.cache_creation_input_tokens or 0,
            0 if cached is None else cached.ephemeral_1h_input_tokens or 0,
            0 if tools is None else tools.web_search_requests or 0,
            usage.inference_geo == "us",
            message.id,
            message.stop_sequence,
        )

    def _judge_plain(self, text: str) -> tuple[str | None, Mapping[str, Any] | None] | None:
        """Return the text and the values to store of a plain answer; None if it is not what was asked for."""
        judged = self._judge_text(text)
        return (_as_json(judged.rest), judged.values) if judged.state == _SUCCEEDED else None

    def _from_message(self, message: dict[str, Any]) -> Outcome:
        """Return the outcome for the Message of a succeeded request. Raises as `_outcome`."""
        blocks = message.get("content") or []
        if not isinstance(blocks, list):
            raise TypeError("content is not a list of blocks")
        texts = [block["text"] for block in blocks if _is_text(block)]
        text: str | None = texts[0] if len(texts) == 1 else "".join(texts)
        tool_input = self._tool_input(blocks)
        usage = _with_compactions(message.get("usage") or {})
        one_hour = (usage.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0
        judgement = self._evaluate(message, text or "", tool_input)
        values = judgement.values
        if values is not None:  # what a column holds is not stored a second time in the text
            text = "\n".join(filter(None, (text if tool_input is not None else None, _as_json(judgement.rest)))) or None
        elif tool_input is not None:
            text = text or orjson.dumps(tool_input).decode()
        if self._extras:
            values = {**(values or {}), **{name: read(message) for name, read in self._extras}}
        return Outcome(
            state=judgement.state,
            error_type=judgement.error_type,
            error_message=judgement.error_message,
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
        """Return the input of the tool that output.tool names; None if the model did not use it."""
        if self._tool is None:
            return None
        uses = (
            b for b in blocks if isinstance(b, dict) and b.get("type") == "tool_use" and b.get("name") == self._tool
        )
        return next((use.get("input") for use in uses), None)

    def _evaluate(self, message: dict[str, Any], text: str, tool_input: Any) -> "_Judgement":
        """Return how the answer is understood.

        text: the answer's texts, joined; tool_input: the input of the job's tool, or None.
        """
        stop = message.get("stop_reason")
        if stop == "refusal":
            details = message.get("stop_details") or {}
            explanation = details.get("explanation") or details.get("category") or "the model refused"
            return _Judgement(RowState.REFUSED, error_type="refusal", error_message=str(explanation))
        if stop in _TRUNCATED:
            return _Judgement(RowState.TRUNCATED, error_type=stop, error_message=_TRUNCATED[stop])
        if self._tool is None:
            return self._judge_text(text)
        if tool_input is None:
            return _unparsable(f"the answer does not use the tool {self._tool}")
        assert self._schema is not None, "the reader of a job with a tool has the tool's schema"
        return _judge_reading(self._schema.read(tool_input))

    def _judge_text(self, text: str) -> "_Judgement":
        """Return how an answer that the model has finished is understood. text: the answer's texts, joined."""
        if self._labels is not None:
            label, problem, rest = _label(text, self._labels)
            return _unparsable(problem) if label is None else _Judgement(_SUCCEEDED, values={"label": label}, rest=rest)
        if self._schema is None:
            return _FREE_TEXT
        return _judge_reading(self._schema.read_text(text))


class _Judgement(NamedTuple):
    """How an answer is understood. values: of the columns; None without any; rest: what of it these do not hold."""

    state: str
    error_type: str | None = None
    error_message: str | None = None
    values: Mapping[str, Any] | None = None
    rest: Mapping[str, Any] = _NOTHING


_FREE_TEXT = _Judgement(_SUCCEEDED)  # of a job without labels, schema and tool: any text is a good answer


def _judge_reading(reading: Reading) -> _Judgement:
    if reading.problem is not None:
        return _unparsable(reading.problem)
    return _Judgement(_SUCCEEDED, values=reading.values, rest=reading.rest)


def _unparsable(problem: str) -> _Judgement:
    return _Judgement(RowState.UNPARSABLE, error_type="unparsable", error_message=problem)


def _as_json(rest: Mapping[str, Any]) -> str | None:
    return orjson.dumps(dict(rest)).decode() if rest else None


_DAMAGED = "the API's result for this request is damaged or malformed; what could be read of it is kept"


def _has_valid_types(outcome: Outcome) -> bool:
    """Return whether all counts are integers, and all texts are texts or None."""
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
    """Return the message of a succeeded request; None for any other line."""
    result = line.get("result")
    answered = isinstance(result, dict) and result.get("type") == "succeeded"
    message = result.get("message") if answered and isinstance(result, dict) else None
    return message if isinstance(message, dict) else None


def _damaged(line: dict[str, Any]) -> Outcome:
    """Return the outcome for a malformed line, with what can be read of the answer in it."""
    message = _answer_in(line)
    if message is None:
        return Outcome(RowState.ERRORED, "unknown_result", _DAMAGED)
    content, usage = message.get("content"), message.get("usage")
    texts = [block["text"] for block in content if _is_text(block)] if isinstance(content, list) else []
    counts = usage if isinstance(usage, dict) else {}
    return Outcome(
        RowState.UNPARSABLE,
        "odd_result",
        _DAMAGED,
        "".join(texts) or None,
        stop_reason=_text(message, "stop_reason"),
        model=_text(message, "model"),
        input_tokens=_token_count(counts, "input_tokens"),
        output_tokens=_token_count(counts, "output_tokens"),
        cache_read_tokens=_token_count(counts, "cache_read_input_tokens"),
        cache_write_tokens=_token_count(counts, "cache_creation_input_tokens"),
        message_id=_text(message, "id"),
        stop_sequence=_text(message, "stop_sequence"),
    )


#: The counts of tokens in a usage that each sampling of the model has.
_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def _with_compactions(usage: dict[str, Any]) -> dict[str, Any]:
    """Return the usage of an answer with the tokens of its compactions, which are billed, but not in its own counts."""
    compactions = [each for each in usage.get("iterations") or () if each.get("type") == "compaction"]
    if not compactions:
        return usage
    return usage | {name: sum(each.get(name) or 0 for each in (usage, *compactions)) for name in _COUNTS}


def _text(message: Mapping[str, Any], name: str) -> str | None:
    """Return a field of a message; None if it is missing or not a text."""
    value = message.get(name)
    return value if isinstance(value, str) else None


def _token_count(usage: Mapping[str, Any], name: str) -> int:
    """Return a count of tokens; 0 if it is missing or malformed."""
    value = usage.get(name)
    return value if type(value) is int and 0 <= value < 2**53 else 0


def answer_text(message: dict[str, Any]) -> str:
    """Return all texts of an answer, joined; empty if it has none."""
    return "".join(block["text"] for block in message.get("content") or () if _is_text(block))


def thinking(message: dict[str, Any]) -> str | None:
    """Return the model's thinking, as far as the API shows it; None if there is none."""
    thoughts = [block.get("thinking") for block in _blocks(message, "thinking")]
    return "\n\n".join(thought for thought in thoughts if isinstance(thought, str) and thought) or None


def _citations(message: dict[str, Any]) -> list[Any] | None:
    """Return the citations of the answer's texts, in their order; None if there are none."""
    return [cited for block in _blocks(message, "text") for cited in block.get("citations") or ()] or None


def _tool_uses(message: dict[str, Any]) -> list[Any] | None:
    """Return name and input of each tool that the model asks the client to run; None if there are none."""
    uses = _blocks(message, "tool_use")
    return [{"name": use.get("name"), "input": use.get("input")} for use in uses] or None


def _server_tools(message: dict[str, Any]) -> dict[str, Any] | None:
    """Return how often each tool of the API was used, by the answer's blocks and the API's counts; None for no use."""
    uses = Counter(str(block.get("name")) for block in _blocks(message, "server_tool_use"))
    counted = (message.get("usage") or {}).get("server_tool_use") or {}
    return {name: n for name, n in {**uses, **counted}.items() if n} or None


#: Columns that an output may add to those for the answer's values, and how each is read from a message.
_EXTRAS: tuple[tuple[str, Callable[[dict[str, Any]], Any]], ...] = (
    ("thinking", thinking),
    ("citations", _citations),
    ("tool_use", _tool_uses),
    ("server_tool_use", _server_tools),
)


def _blocks(message: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Return the content blocks of a message that have this type."""
    return [b for b in message.get("content") or () if isinstance(b, dict) and b.get("type") == kind]


def _label(text: str, labels: dict[str, str]) -> tuple[str | None, str, dict[str, Any]]:
    """Return the declared label that an answer names, the problem if it is None, and the answer's other fields."""
    try:
        answer = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None, "the answer is not JSON", {}
    named = answer.pop("label", None) if isinstance(answer, dict) else None
    if not isinstance(named, str):
        return None, "the answer has no text field 'label'", {}
    label = labels.get(folded(named))
    return label, f"the answer's label {named[:80]!r} is not one of the declared labels", answer


def _from_error(error: Any) -> Outcome:
    """Return the outcome for an error. The API nests an error in an error; some gateways flatten this to one."""
    inner = error.get("error") if isinstance(error, dict) else None
    fields = inner if isinstance(inner, dict) else error if isinstance(error, dict) else {}
    kind, message = str(fields.get("type") or "unknown_error"), str(fields.get("message") or "no message")
    request_id = _text(error, "request_id") if isinstance(error, dict) else None
    details = fields.get("details")
    code = details.get("error_code") if isinstance(details, dict) else None
    if kind not in ACCOUNT_ERRORS and (code in ACCOUNT_CODES or is_about_account(message)):
        kind, message = "billing_error", f"{kind}: {message}"
    return Outcome(RowState.ERRORED, kind, message, request_id=request_id)


#: Error codes that mean the same, whatever the type of the error.
ACCOUNT_CODES = frozenset({"enforced_spend_limit_reached", "contract_spend_limit_reached", "organization_on_hold"})
_ABOUT_ACCOUNT = re.compile(
    r"credit balance is too low|reached your (specified )?(workspace )?API usage limits|organization has been disabled",
    re.IGNORECASE,
)


def is_about_account(message: str) -> bool:
    """Return whether an error's message says that the account cannot pay or may not spend: no error type means it."""
    return _ABOUT_ACCOUNT.search(message) is not None
