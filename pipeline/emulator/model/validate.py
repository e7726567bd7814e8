"""Check the params of one request as the API does when it processes the request."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.emulator.errors import Problem
from pipeline.emulator.model.attachments import attachment_problem
from pipeline.emulator.model.catalogue import Model, find_model
from pipeline.emulator.model.compaction import compaction_problem
from pipeline.emulator.model.conversation import is_paused, tools_problem
from pipeline.emulator.model.files import FileFinder, no_files
from pipeline.emulator.model.schema import schema_problem

VERSIONS = ("2023-01-01", "2023-06-01", "2026-10-21")
NO_SAMPLING_VERSION = "2026-10-21"
SAMPLING = ("temperature", "top_p", "top_k")
REQUIRED = ("max_tokens", "messages", "model")
FIELDS = frozenset(REQUIRED) | {
    "cache_control",
    "container",
    "diagnostics",
    "inference_geo",
    "metadata",
    "output_config",
    "service_tier",
    "speed",
    "stop_sequences",
    "stream",
    "system",
    "thinking",
    "tool_choice",
    "tools",
}
BETA_FIELDS = frozenset(
    {
        "billing_policy",
        "compaction",
        "context_management",
        "fallback_credit_token",
        "fallbacks",
        "mcp_servers",
        "output_format",
        "thread",
    }
)
BLOCKS = (
    "bash_code_execution_tool_result",
    "code_execution_tool_result",
    "container_upload",
    "document",
    "image",
    "redacted_thinking",
    "search_result",
    "server_tool_use",
    "text",
    "text_editor_code_execution_tool_result",
    "thinking",
    "tool_result",
    "tool_search_tool_result",
    "tool_use",
    "web_fetch_tool_result",
    "web_search_tool_result",
)
BETA_BLOCKS = ("advisor_tool_result", "compaction", "fallback", "mcp_tool_result", "mcp_tool_use", "tool_reference")
KNOWN_BLOCKS = frozenset(BLOCKS + BETA_BLOCKS)
ROLES = ("user", "assistant", "system")
PREFILL = "This model does not support assistant message prefill. The conversation must end with a user message."
NO_ENABLED = (
    '"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive" and "output_config.effort" '
    "to control thinking behavior."
)
MAX_BREAKPOINTS = 4


@dataclass(frozen=True)
class Context:
    """What decides about a request apart from its params.

    version: the anthropic-version header. betas: the anthropic-beta header. in_batch: whether it is part of a batch.
    files: finds uploaded files.
    """

    version: str
    betas: frozenset[str] = frozenset()
    in_batch: bool = True
    files: FileFinder = no_files
    now_us: int = 0  #: the time at which files have expired or not
    without_vision: frozenset[str] = frozenset()  #: models that refuse images and PDFs, by id or alias
    without_batch: frozenset[str] = frozenset()  #: models that fail in batches, by id or alias


def unbatchable(params: dict[str, Any]) -> str | None:
    """Return the API's message about params that are not allowed in a batch; None if all are allowed."""
    if params.get("stream"):
        return "stream: Streaming is not supported in the Message Batches API"
    if params.get("speed") is not None:
        return "speed: Fast mode is not supported in the Message Batches API"
    max_tokens = params.get("max_tokens")
    if max_tokens == 0 and not isinstance(max_tokens, bool):
        return "max_tokens: 0 is not supported in the Message Batches API"
    return None


def problem(params: dict[str, Any], context: Context, input_tokens: Callable[[], int]) -> Problem | None:
    """Return the first problem of the params of a Messages call; None if there is none.

    input_tokens: returns the size of the prompt; called only if there is no other problem, to check the context window.
    """
    if message := _shape_problem(params, context):
        return Problem(message)
    model = find_model(params["model"])
    if model is None:
        return Problem(f"model: {params['model']}", "not_found_error")
    if context.in_batch and model.named_in(context.without_batch):
        return Problem(f"model: '{model.id}' is not supported in the Message Batches API")
    for check in _model_problems(params, context, model):
        if check:
            return Problem(check)
    vision = not model.named_in(context.without_vision)
    if found := attachment_problem(params["messages"], model, vision, context.files, context.now_us):
        return found
    tokens = input_tokens()
    if tokens > model.context:
        return Problem(f"prompt is too long: {tokens} tokens > {model.context} maximum")
    return None


def count_tokens_problem(params: dict[str, Any], context: Context) -> Problem | None:
    """Return the first problem of the params of a count_tokens call, which must not hold max_tokens; None if none."""
    if "max_tokens" in params:
        return Problem("max_tokens: Extra inputs are not permitted")
    model = find_model(params.get("model"))
    limit = model.max_tokens if model else 1
    # the highest max_tokens passes every check that compares something with it
    return problem({**params, "max_tokens": limit}, context, lambda: 0)


# Each function `..._problem` below returns the API's message about the part that it checks; None if nothing is wrong.


def _shape_problem(params: dict[str, Any], context: Context) -> str | None:
    """Return what is wrong with the fields' names, max_tokens, model or the structure of messages; None if nothing."""
    for name in REQUIRED:
        if name not in params:
            return f"{name}: Field required"
    if context.in_batch and (message := unbatchable(params)):
        return message
    for name in params:
        if name not in FIELDS and not _is_known_field(name, context):
            return f"{name}: Extra inputs are not permitted"
    max_tokens = params["max_tokens"]
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool):
        return "max_tokens: Input should be a valid integer"
    if max_tokens < (1 if context.in_batch else 0):
        return "max_tokens: Input should be greater than or equal to 1"
    if not isinstance(params["model"], str):
        return "model: Input should be a valid string"
    return _message_list_problem(params["messages"])


def _is_known_field(name: str, context: Context) -> bool:
    if name in SAMPLING:
        return context.version != NO_SAMPLING_VERSION
    return bool(context.betas) and name in BETA_FIELDS


def _message_list_problem(messages: Any) -> str | None:
    if not isinstance(messages, list):
        return "messages: Input should be a valid list"
    if not messages:
        return "messages: at least one message is required"
    for index, message in enumerate(messages):
        if problem := _message_problem(f"messages.{index}", message):
            return problem
    if messages[0]["role"] == "assistant":
        return 'messages: first message must use the "user" role'
    return None


def _message_problem(where: str, message: Any) -> str | None:
    if not isinstance(message, dict):
        return f"{where}: Input should be a valid dictionary or object to extract fields from"
    for name in ("role", "content"):
        if name not in message:
            return f"{where}.{name}: Field required"
    if len(message) > 2:
        extra = next(key for key in message if key not in ("role", "content"))
        return f"{where}.{extra}: Extra inputs are not permitted"
    if message["role"] not in ROLES:
        return f"{where}.role: Input should be 'user', 'assistant' or 'system'"
    content = message["content"]
    if isinstance(content, str):
        empty = not content and message["role"] == "user"
        return f"{where}: user messages must have non-empty content" if empty else None
    if not isinstance(content, list):
        return f"{where}.content: Input should be a valid string or list"
    if not content and message["role"] == "user":
        return f"{where}: user messages must have non-empty content"
    return next((p for i, block in enumerate(content) if (p := _block_problem(f"{where}.content.{i}", block))), None)


def _block_problem(where: str, block: Any) -> str | None:
    if not isinstance(block, dict):
        return f"{where}: Input should be a valid dictionary or object to extract fields from"
    kind = block.get("type")
    if kind is None:
        return f"{where}.type: Field required"
    if not isinstance(kind, str) or kind not in KNOWN_BLOCKS:
        tags = ", ".join(f"'{b}'" for b in BLOCKS)
        return f"{where}: Input tag '{kind}' found using 'type' does not match any of the expected tags: {tags}"
    if kind == "text":
        if not isinstance(block.get("text"), str):
            return f"{where}.text.text: " + ("Input should be a valid string" if "text" in block else "Field required")
        if not block["text"]:
            return "messages: text content blocks must be non-empty"
    if kind in ("image", "document") and "source" not in block:
        return f"{where}.{kind}.source: Field required"
    return None


def _model_problems(params: dict[str, Any], context: Context, model: Model) -> Iterator[str | None]:
    """Yield the result of each check that depends on the model: what is wrong, or None."""
    limit = model.output_limit(context.betas)
    if params["max_tokens"] > limit:
        yield (
            f"max_tokens: {params['max_tokens']} > {limit}, which is the maximum allowed number of output tokens "
            f"for {model.id}"
        )
    if _is_prefilled(params) and model.generation >= (4, 6):
        yield PREFILL
    yield tools_problem(params["messages"])
    if context.version == NO_SAMPLING_VERSION:
        yield _version_2026_problem(params["messages"])
    else:
        yield _sampling_problem(params, model)
    yield _plain_fields_problem(params)
    if "thinking" in params:
        yield _thinking_problem(params, model)
    if context.betas:
        yield compaction_problem(params, context.betas)
    if "tools" in params or "tool_choice" in params:
        yield _tools_problem(params, model)
    if "output_config" in params or "output_format" in params:
        yield _output_problem(params, model)
    if params.get("inference_geo") is not None and model.generation < (4, 6):
        yield "inference_geo: not supported on this model"
    if "fallbacks" in params and context.in_batch:
        yield "fallbacks: not supported in the Message Batches API"


def _is_prefilled(params: dict[str, Any]) -> bool:
    """Return whether the conversation ends with a turn of the assistant that is not an answer which paused."""
    return params["messages"][-1]["role"] == "assistant" and not is_paused(params["messages"])


def _version_2026_problem(messages: list[dict[str, Any]]) -> str | None:
    for index, message in enumerate(messages):
        if isinstance(message["content"], str):
            continue
        for at, block in enumerate(message["content"]):
            where = f"messages.{index}.content.{at}"
            if message["role"] == "assistant" and block["type"] == "document":
                return f"{where}: document blocks are not permitted in assistant messages"
            if message["role"] == "user" and block["type"] == "text" and block.get("citations"):
                return f"{where}.citations: citations are not permitted on text blocks of user messages"
    return None


def _sampling_problem(params: dict[str, Any], model: Model) -> str | None:
    given = {name: params[name] for name in SAMPLING if params.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            return f"{name}: Input should be a valid number"
        if name != "top_k" and not 0 <= value <= 1:
            return f"{name}: range: 0..1"
        if model.generation >= (4, 7) and not (name != "top_k" and value == 1):
            return f"{name}: only the default value is supported for this model"
    if model.generation >= (4, 5) and "temperature" in given and "top_p" in given:
        return "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
    thinking = params.get("thinking")
    enabled = isinstance(thinking, dict) and thinking.get("type") in ("enabled", "adaptive")
    if enabled and given.get("temperature", 1) != 1:
        return "`temperature` may only be set to 1 when thinking is enabled."
    return None


def _plain_fields_problem(params: dict[str, Any]) -> str | None:
    system = params.get("system")
    if system is not None and not isinstance(system, str):
        if not isinstance(system, list):
            return "system: Input should be a valid string or list"
        for index, block in enumerate(system):
            if not isinstance(block, dict) or block.get("type") != "text" or not isinstance(block.get("text"), str):
                return f"system.{index}: Input should be a text block"
            if not block["text"]:
                return "system: text content blocks must be non-empty"
    stops = params.get("stop_sequences")
    if stops is not None:
        if not isinstance(stops, list) or not all(isinstance(s, str) for s in stops):
            return "stop_sequences: Input should be a valid list of strings"
        if not all(s.strip() for s in stops):
            return "stop_sequences: each stop sequence must contain non-whitespace"
    metadata = params.get("metadata")
    if metadata is not None and (not isinstance(metadata, dict) or metadata.keys() - {"user_id"}):
        return "metadata: only user_id is permitted"
    if params.get("service_tier", "auto") not in ("auto", "standard_only"):
        return "service_tier: Input should be 'auto' or 'standard_only'"
    return None


def _thinking_problem(params: dict[str, Any], model: Model) -> str | None:
    thinking = params["thinking"]
    if not isinstance(thinking, dict) or "type" not in thinking:
        return "thinking.type: Field required"
    kind = thinking["type"]
    if kind not in ("adaptive", "enabled", "disabled", "between_tools"):
        return (
            f"thinking: Input tag '{kind}' found using 'type' does not match any of the expected tags: "
            "'adaptive', 'between_tools', 'disabled', 'enabled'"
        )
    effort = (
        (params.get("output_config") or {}).get("effort") if isinstance(params.get("output_config"), dict) else None
    )
    if kind not in model.thinking_types:
        return {
            "enabled": NO_ENABLED,
            "adaptive": "adaptive thinking is not supported on this model",
        }.get(kind, f'"thinking.type.{kind}" is not supported for this model.')
    if effort in ("xhigh", "max") and (kind == "between_tools" or (kind == "disabled" and model.id == "claude-opus-5")):
        return f'"thinking.type.{kind}" is not supported with effort {effort}.'
    return _budget_problem(thinking, params["max_tokens"]) if kind == "enabled" else None


def _budget_problem(thinking: dict[str, Any], max_tokens: int) -> str | None:
    budget = thinking.get("budget_tokens")
    if not isinstance(budget, int) or isinstance(budget, bool):
        word = "Input should be a valid integer" if "budget_tokens" in thinking else "Field required"
        return f"thinking.enabled.budget_tokens: {word}"
    if budget < 1024:
        return "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024"
    return "`max_tokens` must be greater than `thinking.budget_tokens`." if max_tokens <= budget else None


def _tools_problem(params: dict[str, Any], model: Model) -> str | None:
    tools = params.get("tools") or []
    if not isinstance(tools, list):
        return "tools: Input should be a valid list"
    for index, tool in enumerate(tools):
        if found := _tool_problem(f"tools.{index}", tool):
            return found
    names = [tool["name"] for tool in tools if isinstance(tool.get("name"), str)]
    if len(names) != len(set(names)):
        return "tools: Tool names must be unique."
    if sum(bool(tool.get("strict")) for tool in tools) > 20:
        return "tools: at most 20 strict tools are supported"
    choice = params.get("tool_choice")
    return None if choice is None else _tool_choice_problem(choice, params, model, names)


def _tool_problem(where: str, tool: Any) -> str | None:
    if not isinstance(tool, dict):
        return f"{where}: Input should be a valid dictionary or object to extract fields from"
    if tool.get("type") not in (None, "custom"):
        return None  # a server tool, which has no schema to check
    for name in ("name", "input_schema"):
        if name not in tool:
            return f"{where}.custom.{name}: Field required"
    if not isinstance(tool["name"], str):
        return f"{where}.custom.name: Input should be a valid string"
    schema = tool["input_schema"]
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return f"{where}.custom.input_schema.type: Input should be 'object'"
    found = schema_problem(schema) if tool.get("strict") else None
    return f"{where}.custom.input_schema: {found}" if found else None


def _tool_choice_problem(choice: Any, params: dict[str, Any], model: Model, names: list[str]) -> str | None:
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind not in ("auto", "any", "tool", "none"):
        return "tool_choice: Input should have a type of 'auto', 'any', 'tool' or 'none'"
    if not params.get("tools"):
        return "tool_choice: may only be specified while providing tools"
    if kind == "tool" and choice.get("name") not in names:
        return f"tool_choice: Tool '{choice.get('name')}' not found in provided tools"
    if kind in ("any", "tool"):
        if not model.forced_tool_choice:
            return f'tool_choice: "{kind}" is not supported for this model'
        thinking = params.get("thinking")
        if isinstance(thinking, dict) and thinking.get("type") == "enabled":
            return "Thinking may not be enabled when tool_choice forces tool use."
    return None


def _output_problem(params: dict[str, Any], model: Model) -> str | None:
    config = params.get("output_config") or {}
    if not isinstance(config, dict):
        return "output_config: Input should be a valid dictionary"
    extra = next((key for key in config if key not in ("effort", "format", "task_budget")), None)
    if extra:
        return f"output_config.{extra}: Extra inputs are not permitted"
    effort = config.get("effort")
    if effort is not None:
        if effort not in ("low", "medium", "high", "xhigh", "max"):
            return "output_config.effort: Input should be 'low', 'medium', 'high', 'xhigh' or 'max'"
        if not model.efforts:
            return "This model does not support the effort parameter."
        if effort not in model.efforts:
            return f"output_config.effort: '{effort}' is not supported for this model"
    where = "output_config.format" if config.get("format") is not None else "output_format"
    wanted = config.get("format") or params.get("output_format")
    return None if wanted is None else _format_problem(where, wanted, params)


def _format_problem(where: str, wanted: Any, params: dict[str, Any]) -> str | None:
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        return f"{where}.type: Input should be 'json_schema'"
    if "schema" not in wanted:
        return f"{where}.schema: Field required"
    if found := schema_problem(wanted["schema"]):
        return f"{where}.schema: {found}"
    if _is_prefilled(params):
        return f"{where}: prefill is not supported with structured outputs"
    cited = any(
        isinstance(block.get("citations"), dict) and block["citations"].get("enabled")
        for message in params["messages"]
        if isinstance(message["content"], list)
        for block in message["content"]
        if block["type"] in ("document", "search_result")
    )
    return f"{where}: citations are not supported with structured outputs" if cited else None
