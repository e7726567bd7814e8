"""Does a model support what a request asks? By the Models API, and by rules that this API does not tell. Pure.

The API checks a request only when it processes the batch. A request that the model refuses would fail every row after
an hour.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.cache_minimum import OF_OTHERS, fewest_tokens

if TYPE_CHECKING:
    from anthropic.types import ModelInfo


EXTENDED_OUTPUT_BETA = "output-300k-2026-03-24"
EXTENDED_OUTPUT = 300_000
SOON = 60  # in the last days of a model a warning counts them
EFFORTS = ("low", "medium", "high", "xhigh", "max")
THINKING_TYPES = ("adaptive", "between_tools", "disabled", "enabled")


class _Model(NamedTuple):
    """A model, as far as its id tells. generation: (4, 6) for 4.6."""

    line: str
    generation: tuple[int, int]


#: With the beta these models answer with up to 300,000 tokens.
#: Source: platform.claude.com/docs/en/build-with-claude/batch-processing
_EXTENDED = frozenset(
    {
        *(_Model("opus", generation) for generation in ((4, 6), (4, 7), (4, 8), (5, 0), (5, 5))),
        *(_Model("sonnet", generation) for generation in ((4, 6), (5, 0), (5, 5))),
        _Model("haiku", (5, 5)),
    }
)


def says(info: "ModelInfo", *path: str) -> bool | None:
    """Return whether a model has a capability, by the Models API; None if it does not say, as behind older gateways."""
    node: Any = info.capabilities
    for name in (*path, "supported"):
        node = node.get(name) if isinstance(node, dict) else getattr(node, name, None)
    return node if isinstance(node, bool) else None


def day(moment: datetime | None) -> date | None:
    """Return the day in UTC of a time from the Models API."""
    if moment is None:
        return None
    return (moment if moment.tzinfo is None else moment.astimezone(UTC)).date()


def output_limit(info: "ModelInfo", betas: Collection[str]) -> int | None:
    """Return the most tokens that an answer in a batch may have; None if the API does not say."""
    if info.max_tokens is not None and EXTENDED_OUTPUT_BETA in betas and _model(info.id) in _EXTENDED:
        return max(info.max_tokens, EXTENDED_OUTPUT)
    return info.max_tokens


def cache_minimum(model: str) -> int:
    """Return the fewest tokens of a prefix that this model caches."""
    known = _model(model)
    return OF_OTHERS if known is None else fewest_tokens(known.line, known.generation)


def newest(names: Collection[str], line: str) -> str | None:
    """Return the newest of these models in a line (haiku, sonnet, ...), by the number in its id; None without one."""
    known = {name: model for name in sorted(names) if (model := _model(name)) is not None and model.line == line}
    return max(known, key=lambda name: known[name].generation, default=None)


def alias(name: str) -> str:
    """Return the id of a model without the date after its version, which the API knows as well; others unchanged."""
    return _DATE.sub("", name)


def unknown(name: str, known: Collection[str], where: str = "request.model") -> str:
    """Return the message about a model that the API does not list. known: the ids that it lists.

    The API does not list aliases. where: the field or the option that names the model.
    """
    aliases = {alias(each) for each in known}
    near = difflib.get_close_matches(name, sorted({*known, *aliases}, reverse=True), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f" (it knows {', '.join(sorted(known)) or 'none'})"
    return f"{where}: the API knows no model {name!r}{hint}"


def warnings(info: "ModelInfo", now: date) -> list[str]:
    """Return warnings that a model is deprecated or will be retired; none for others. now: today in UTC."""
    retires = day(info.retires_at)
    if info.lifecycle == "retired" or (info.lifecycle != "deprecated" and retires is None):
        return []
    model = f"request.model: {info.id} {'is deprecated and ' if info.lifecycle == 'deprecated' else ''}"
    remedy = "plan the move to another model"
    if retires is None:
        return [f"{model}will be retired; the day is not set yet; {remedy}"]
    days = (retires - now).days
    if days < 0:
        return [f"{model}was to be retired on {retires} and may stop working any day; move to another model"]
    if days <= SOON:
        left = {0: "today", 1: "tomorrow"}.get(days, f"in {days} days")
        return [f"{model}will be retired on {retires}, {left}; {remedy}"]
    return [f"{model}will be retired on {retires}; {remedy}"]


# -- refusals --------------------------------------------------------------------------------------------------------


class _Request(NamedTuple):
    """One request, and the model that it asks."""

    params: Mapping[str, Any]
    info: "ModelInfo"
    betas: Collection[str]
    has: Collection[str]

    @property
    def name(self) -> str:
        """Return the model as the job names it, which may be an alias of the id."""
        return str(self.params.get("model") or self.info.id)

    @property
    def model(self) -> _Model | None:
        return _model(self.info.id)

    def says(self, *path: str) -> bool | None:
        """Return whether the model has a capability; None if the Models API does not say."""
        return says(self.info, *path)

    def mapping(self, name: str) -> Mapping[str, Any]:
        """Return a field of the params that is a mapping; empty if it is absent or not a mapping."""
        value = self.params.get(name)
        return value if isinstance(value, Mapping) else {}

    def mappings(self, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield the mappings in a field of the params that is a list, with their positions."""
        value = self.params.get(name)
        for i, one in enumerate(value if isinstance(value, list | tuple) else ()):
            if isinstance(one, Mapping):
                yield i, one


def refusal(
    params: Mapping[str, Any], info: "ModelInfo", betas: Collection[str] = (), has: Collection[str] = ()
) -> str | None:
    """Return the first of `refusals`; None if there are none."""
    return next(refusals(params, info, betas, has), None)


def refusals(
    params: Mapping[str, Any], info: "ModelInfo", betas: Collection[str] = (), has: Collection[str] = ()
) -> Iterator[str]:
    """Yield why the model would refuse a request, in sentences that begin with the job file's field.

    params: of a Messages call. has: which of "image" and "document" the messages hold. A property of the model that is
    unknown refuses nothing.
    """
    request = _Request(params, info, betas, has)
    yield from (reason for check in _CHECKS if (reason := check(request)))


# Each of these checks looks at one property of the model. It returns a sentence of `refusals`, or None if the model
# accepts that part of the request.


def _lifecycle(request: _Request) -> str | None:
    if request.info.lifecycle == "retired":
        retired = day(request.info.retires_at)
        return f"request.model: {request.name} was retired{f' on {retired}' if retired else ''}; choose an active model"
    if request.says("batch") is False:
        return f"request.model: {request.name} does not support batches; choose another model"
    return None


def _max_tokens(request: _Request) -> str | None:
    wanted, limit = request.params.get("max_tokens"), output_limit(request.info, request.betas)
    if not isinstance(wanted, int) or limit is None or wanted <= limit:
        return None
    reason = f"request.max_tokens: {wanted} is more than {request.name} allows ({limit:,})"
    extended = output_limit(request.info, {EXTENDED_OUTPUT_BETA}) or 0
    return f"{reason}; {EXTENDED_OUTPUT_BETA} in request.betas allows {extended:,}" if wanted <= extended else reason


def _attachments(request: _Request) -> str | None:
    for kind, capability, word in (("image", "image_input", "images"), ("document", "pdf_input", "documents")):
        if kind in request.has and request.says(capability) is False:
            return f"request.attachments: {request.name} does not support {word}; choose another model"
    return None


def _structured(request: _Request) -> str | None:
    if request.says("structured_outputs") is not False:
        return None
    if request.mapping("output_config").get("format") is not None:
        return (
            f"output: {request.name} does not support structured outputs, which output.schema and output.labels need; "
            "choose another model, or output.tool"
        )
    strict = next((i for i, tool in request.mappings("tools") if tool.get("strict")), None)
    if strict is not None:
        return f"request.params.tools.{strict}.strict: {request.name} does not support strict tools; remove the field"
    return None


def _effort(request: _Request) -> str | None:
    effort, field = request.mapping("output_config").get("effort"), "request.params.output_config.effort"
    if effort is None:
        return None
    if request.says("effort") is False:
        return f"{field}: {request.name} does not support effort; remove the field"
    if effort in EFFORTS and request.says("effort", effort) is False:
        supported = [level for level in EFFORTS if request.says("effort", level)]
        return f"{field}: {request.name} does not support {effort!r} (it supports {', '.join(supported)})"
    return None


def _thinking(request: _Request) -> str | None:
    kind, field = request.mapping("thinking").get("type"), "request.params.thinking.type"
    if kind not in THINKING_TYPES:
        return None
    if request.says("thinking", "types", kind) is False:
        return f"{field}: {request.name} does not support {kind!r}{_other_thinking(request, kind)}"
    if kind in ("adaptive", "enabled") and request.says("thinking") is False:
        return f"{field}: {request.name} does not support thinking; remove request.params.thinking"
    effort = request.mapping("output_config").get("effort")
    opus_5 = request.model == _Model("opus", (5, 0))
    if effort in ("xhigh", "max") and (kind == "between_tools" or (kind == "disabled" and opus_5)):
        refused = f"{request.name} does not support {kind!r} with effort {effort}"
        return f"{field}: {refused}; lower request.params.output_config.effort"
    return None


def _other_thinking(request: _Request, kind: str) -> str:
    """Return what to do instead of a type of thinking that the model does not support."""
    supported = [other for other in THINKING_TYPES if request.says("thinking", "types", other)]
    if kind == "enabled" and "adaptive" in supported:
        return "; use adaptive, and set how much by request.params.output_config.effort"
    return f" (it supports {', '.join(supported)})" if supported else "; remove request.params.thinking"


def _thinking_budget(request: _Request) -> str | None:
    thinking, max_tokens = request.mapping("thinking"), request.params.get("max_tokens")
    budget, field = thinking.get("budget_tokens"), "request.params.thinking.budget_tokens"
    if thinking.get("type") != "enabled" or not isinstance(budget, int):
        return None
    if budget < 1024:
        return f"{field}: {budget} is less than 1024, the minimum; give 1024 or more"
    if isinstance(max_tokens, int) and budget >= max_tokens:
        return f"{field}: {budget} must be below max_tokens ({max_tokens})"
    return None


def _forced_tool(request: _Request) -> str | None:
    field = "request.params.tool_choice"
    if request.mapping("tool_choice").get("type") not in ("any", "tool"):
        return None
    if _cannot_be_forced(request.model):
        return f"{field}: {request.name} cannot be forced to call a tool, not even by output.tool; use output.schema"
    if request.mapping("thinking").get("type") == "enabled":
        return (
            f"{field}: no tool can be forced, not even by output.tool, while thinking is enabled; remove one of the two"
        )
    return None


def _cannot_be_forced(model: _Model | None) -> bool:
    """Return whether a model refuses a tool_choice that forces a tool; False for an unknown model."""
    if model is None:
        return False
    if model.line in ("fable", "mythos"):
        return model == _PREVIEW or model.generation >= (5, 1)
    return model.line in ("opus", "sonnet") and model.generation == (5, 5)


def _server_tools(request: _Request) -> str | None:
    for i, tool in request.mappings("tools"):
        for capability, word in (("web_search", "web search"), ("code_execution", "code execution")):
            ours = str(tool.get("type", "")).startswith(f"{capability}_")
            if ours and request.says("server_tools", capability) is False:
                refused = f"request.params.tools.{i}: {request.name} does not support {word}"
                return f"{refused}; remove the tool, or choose another model"
    return None


def _context_management(request: _Request) -> str | None:
    edits = request.mapping("context_management").get("edits")
    for i, edit in enumerate(edits if isinstance(edits, list | tuple) else ()):
        strategy = str(edit.get("type")) if isinstance(edit, Mapping) else ""
        if request.says("context_management") is False or request.says("context_management", strategy) is False:
            field = f"request.params.context_management.edits.{i}.type"
            return f"{field}: {request.name} does not support {strategy!r}; remove the edit, or choose another model"
    return None


def _prefill(request: _Request) -> str | None:
    """Refuse a last turn of the assistant, which models from 4.6 on do not continue."""
    last = [message.get("role") for _, message in request.mappings("messages")][-1:]
    if last == ["assistant"] and request.model is not None and request.model.generation >= (4, 6):
        return (
            f"request.messages: {request.name} does not continue a turn of the assistant; end with a turn of the user"
        )
    return None


def _geography(request: _Request) -> str | None:
    if (
        request.params.get("inference_geo") is not None
        and request.model is not None
        and request.model.generation < (4, 6)
    ):
        return (
            f"request.params.inference_geo: {request.name} does not support it, models from 4.6 on do; remove the field"
        )
    return None


_CHECKS: tuple[Callable[[_Request], str | None], ...] = (
    _lifecycle,
    _max_tokens,
    _attachments,
    _structured,
    _effort,
    _thinking,
    _thinking_budget,
    _forced_tool,
    _server_tools,
    _context_management,
    _prefill,
    _geography,
)


# -- ids -------------------------------------------------------------------------------------------------------------

_PREVIEW = _Model("mythos", (4, 7))  # the id claude-mythos-preview has no number; the model refuses what 4.7 refuses
_ID = re.compile(r"claude-(?P<line>[a-z]+)-(?P<major>\d{1,2})(?!\d)(?:-(?P<minor>\d{1,2})(?!\d))?")
_DATE = re.compile(r"(?<=\d-\d)-20\d{6}$")
_OLD_ID = re.compile(r"claude-(?P<major>\d)(?:-(?P<minor>\d))?-(?P<line>[a-z]+)")


def _model(name: str) -> _Model | None:
    """Return line and generation from an id, also in the forms of the clouds; None if the id has neither."""
    if "claude-mythos-preview" in name:
        return _PREVIEW
    match = _ID.search(name) or _OLD_ID.search(name)
    return match and _Model(match["line"], (int(match["major"]), int(match["minor"] or 0)))
