"""What a model takes: from the Models API, and of what that API does not say. Pure.

The API judges a request only when it comes to work on it, so what the model refuses would cost an hour and every row.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from anthropic.types import ModelInfo


EXTENDED_OUTPUT_BETA = "output-300k-2026-03-24"
EXTENDED_OUTPUT = 300_000
SOON = 60  # days before a model's retirement from which on a warning says how many are left
EFFORTS = ("low", "medium", "high", "xhigh", "max")
THINKING_TYPES = ("adaptive", "between_tools", "disabled", "enabled")


class _Model(NamedTuple):
    """What an id says of a model. generation: (4, 6) for 4.6."""

    line: str
    generation: tuple[int, int]


#: Answers with 300,000 tokens under the beta. Source: platform.claude.com/docs/en/build-with-claude/batch-processing
_EXTENDED = frozenset(
    {
        *(_Model("opus", generation) for generation in ((4, 6), (4, 7), (4, 8), (5, 0), (5, 5))),
        *(_Model("sonnet", generation) for generation in ((4, 6), (5, 0), (5, 5))),
        _Model("haiku", (5, 5)),
    }
)
#: Fewest tokens of a prefix that is cached, where that is not 1,024.
#: Source: platform.claude.com/docs/en/build-with-claude/prompt-caching
_CACHE_MINIMUM = {
    _Model("opus", (4, 5)): 4096,
    _Model("opus", (4, 6)): 4096,
    _Model("haiku", (4, 5)): 4096,
    _Model("opus", (4, 7)): 2048,
}


def says(info: "ModelInfo", *path: str) -> bool | None:
    """What the Models API says of a capability; None if it says nothing, as older gateways do."""
    node: Any = info.capabilities
    for name in (*path, "supported"):
        node = node.get(name) if isinstance(node, dict) else getattr(node, name, None)
    return node if isinstance(node, bool) else None


def day(moment: datetime | None) -> date | None:
    """The day of a time that the Models API gives, in UTC."""
    if moment is None:
        return None
    return (moment if moment.tzinfo is None else moment.astimezone(UTC)).date()


def output_limit(info: "ModelInfo", betas: Collection[str]) -> int | None:
    """The most tokens that an answer in a batch may have; None if the API does not say."""
    if info.max_tokens is not None and EXTENDED_OUTPUT_BETA in betas and _model(info.id) in _EXTENDED:
        return max(info.max_tokens, EXTENDED_OUTPUT)
    return info.max_tokens


def cache_minimum(model: str) -> int:
    """The fewest tokens of a prefix that this model caches."""
    known = _model(model)
    return 1024 if known is None else _CACHE_MINIMUM.get(known, 1024)


def newest(names: Collection[str], line: str) -> str | None:
    """Of these models the newest one of a line (haiku, sonnet, ...), by the number in its id; None if there is none."""
    known = {name: model for name in sorted(names) if (model := _model(name)) is not None and model.line == line}
    return max(known, key=lambda name: known[name].generation, default=None)


def unknown(name: str, known: Collection[str]) -> str:
    """What to say of a model that the API does not list. known: the ids that it lists."""
    near = difflib.get_close_matches(name, sorted(known, reverse=True), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f" (it knows {', '.join(sorted(known)) or 'none'})"
    return f"request.model: the API knows no model {name!r}{hint}"


def warnings(info: "ModelInfo", now: date) -> list[str]:
    """What to know of the model's remaining life. now: the day, in UTC."""
    retires = day(info.retires_at)
    if info.lifecycle == "retired" or (info.lifecycle != "deprecated" and retires is None):
        return []
    model = f"request.model: {info.id} {'is deprecated and ' if info.lifecycle == 'deprecated' else ''}"
    remedy = "plan the move to another model"
    if retires is None:
        return [f"{model}will be retired on a day that is not set yet; {remedy}"]
    days = (retires - now).days
    if days < 0:
        return [f"{model}was to be retired on {retires}, so it may go any day; move to another model"]
    if days <= SOON:
        left = {0: "today", 1: "tomorrow"}.get(days, f"in {days} days")
        return [f"{model}will be retired on {retires}, {left}; {remedy}"]
    return [f"{model}will be retired on {retires}; {remedy}"]


# -- refusals --------------------------------------------------------------------------------------------------------


class _Asked(NamedTuple):
    """One request, and who is asked."""

    params: Mapping[str, Any]
    info: "ModelInfo"
    betas: Collection[str]
    has: Collection[str]

    @property
    def name(self) -> str:
        """The model as the job names it, which may be an alias of the id."""
        return str(self.params.get("model") or self.info.id)

    @property
    def model(self) -> _Model | None:
        return _model(self.info.id)

    def says(self, *path: str) -> bool | None:
        """What the Models API says of a capability of the model."""
        return says(self.info, *path)

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A field of the params that is a mapping; empty if it is absent."""
        value = self.params.get(name)
        return value if isinstance(value, Mapping) else {}

    def mappings(self, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The mappings in a field of the params that is a list, with their places."""
        value = self.params.get(name)
        for i, one in enumerate(value if isinstance(value, list | tuple) else ()):
            if isinstance(one, Mapping):
                yield i, one


def refusal(
    params: Mapping[str, Any], info: "ModelInfo", betas: Collection[str] = (), has: Collection[str] = ()
) -> str | None:
    """The first thing that the model would refuse, as a sentence that begins with the job file's field; None if none.

    params: of a Messages call. has: what the messages carry beside text, of "image" and "document".
    What is not known of a model is not judged.
    """
    asked = _Asked(params, info, betas, has)
    return next((said for check in _CHECKS if (said := check(asked))), None)


def _life(asked: _Asked) -> str | None:
    if asked.info.lifecycle == "retired":
        retired = day(asked.info.retires_at)
        return f"request.model: {asked.name} was retired{f' on {retired}' if retired else ''}; choose an active model"
    if asked.says("batch") is False:
        return f"request.model: {asked.name} takes no batches; choose another model"
    return None


def _max_tokens(asked: _Asked) -> str | None:
    wanted, limit = asked.params.get("max_tokens"), output_limit(asked.info, asked.betas)
    if not isinstance(wanted, int) or limit is None or wanted <= limit:
        return None
    said = f"request.max_tokens: {wanted} is more than {asked.name} answers with ({limit:,})"
    extended = output_limit(asked.info, {EXTENDED_OUTPUT_BETA}) or 0
    return f"{said}; {EXTENDED_OUTPUT_BETA} in request.betas allows {extended:,}" if wanted <= extended else said


def _attachments(asked: _Asked) -> str | None:
    for kind, capability, word in (("image", "image_input", "images"), ("document", "pdf_input", "documents")):
        if kind in asked.has and asked.says(capability) is False:
            return f"request.attachments: {asked.name} takes no {word}; choose another model"
    return None


def _structured(asked: _Asked) -> str | None:
    if asked.says("structured_outputs") is not False:
        return None
    if asked.mapping("output_config").get("format") is not None:
        return (
            f"output: {asked.name} has no structured outputs, which output.schema and output.labels need; "
            "choose another model, or output.tool"
        )
    strict = next((i for i, tool in asked.mappings("tools") if tool.get("strict")), None)
    if strict is not None:
        return f"request.params.tools.{strict}.strict: {asked.name} has no strict tools; remove the field"
    return None


def _effort(asked: _Asked) -> str | None:
    effort, field = asked.mapping("output_config").get("effort"), "request.params.output_config.effort"
    if effort is None:
        return None
    if asked.says("effort") is False:
        return f"{field}: {asked.name} takes no effort; remove the field"
    if effort in EFFORTS and asked.says("effort", effort) is False:
        taken = [level for level in EFFORTS if asked.says("effort", level)]
        return f"{field}: {asked.name} takes no {effort!r} (it takes {', '.join(taken)})"
    return None


def _thinking(asked: _Asked) -> str | None:
    kind, field = asked.mapping("thinking").get("type"), "request.params.thinking.type"
    if kind not in THINKING_TYPES:
        return None
    if asked.says("thinking", "types", kind) is False:
        return f"{field}: {asked.name} takes no {kind!r}{_other_thinking(asked, kind)}"
    if kind in ("adaptive", "enabled") and asked.says("thinking") is False:
        return f"{field}: {asked.name} cannot think; remove request.params.thinking"
    effort = asked.mapping("output_config").get("effort")
    opus_5 = asked.model == _Model("opus", (5, 0))
    if effort in ("xhigh", "max") and (kind == "between_tools" or (kind == "disabled" and opus_5)):
        return (
            f"{field}: {asked.name} takes no {kind!r} with effort {effort}; lower request.params.output_config.effort"
        )
    return None


def _other_thinking(asked: _Asked, kind: str) -> str:
    """What to ask for instead of a type of thinking that the model does not take."""
    taken = [other for other in THINKING_TYPES if asked.says("thinking", "types", other)]
    if kind == "enabled" and "adaptive" in taken:
        return "; write adaptive, and how much by request.params.output_config.effort"
    return f" (it takes {', '.join(taken)})" if taken else "; remove request.params.thinking"


def _thinking_budget(asked: _Asked) -> str | None:
    thinking, most = asked.mapping("thinking"), asked.params.get("max_tokens")
    budget, field = thinking.get("budget_tokens"), "request.params.thinking.budget_tokens"
    if thinking.get("type") != "enabled" or not isinstance(budget, int):
        return None
    if budget < 1024:
        return f"{field}: {budget} is less than the 1024 that thinking takes at least"
    if isinstance(most, int) and budget >= most:
        return f"{field}: {budget} must be below max_tokens ({most})"
    return None


def _forced_tool(asked: _Asked) -> str | None:
    field = "request.params.tool_choice"
    if asked.mapping("tool_choice").get("type") not in ("any", "tool"):
        return None
    if _cannot_be_forced(asked.model):
        return f"{field}: {asked.name} cannot be made to call a tool, nor by output.tool; use output.schema"
    if asked.mapping("thinking").get("type") == "enabled":
        return f"{field}: no tool can be forced, nor by output.tool, while thinking is enabled; remove one of the two"
    return None


def _cannot_be_forced(model: _Model | None) -> bool:
    if model is None:
        return False
    if model.line in ("fable", "mythos"):
        return model == _PREVIEW or model.generation >= (5, 1)
    return model.line in ("opus", "sonnet") and model.generation == (5, 5)


def _server_tools(asked: _Asked) -> str | None:
    for i, tool in asked.mappings("tools"):
        for capability, word in (("web_search", "web search"), ("code_execution", "code execution")):
            ours = str(tool.get("type", "")).startswith(f"{capability}_")
            if ours and asked.says("server_tools", capability) is False:
                return f"request.params.tools.{i}: {asked.name} has no {word}; remove the tool, or choose another model"
    return None


def _context_management(asked: _Asked) -> str | None:
    edits = asked.mapping("context_management").get("edits")
    for i, edit in enumerate(edits if isinstance(edits, list | tuple) else ()):
        strategy = str(edit.get("type")) if isinstance(edit, Mapping) else ""
        if asked.says("context_management") is False or asked.says("context_management", strategy) is False:
            field = f"request.params.context_management.edits.{i}.type"
            return f"{field}: {asked.name} takes no {strategy!r}; remove the edit, or choose another model"
    return None


def _prefill(asked: _Asked) -> str | None:
    """The generations from 4.6 on want the user to have the last word."""
    last = [message.get("role") for _, message in asked.mappings("messages")][-1:]
    if last == ["assistant"] and asked.model is not None and asked.model.generation >= (4, 6):
        return f"request.messages: {asked.name} does not continue a turn of the assistant; end with one of the user"
    return None


def _geography(asked: _Asked) -> str | None:
    if asked.params.get("inference_geo") is not None and asked.model is not None and asked.model.generation < (4, 6):
        return f"request.params.inference_geo: {asked.name} takes none, models from 4.6 on do; remove the field"
    return None


_CHECKS: tuple[Callable[[_Asked], str | None], ...] = (
    _life,
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

_PREVIEW = _Model("mythos", (4, 7))  # claude-mythos-preview: its id has no number, and it refuses what 4.7 refuses
_ID = re.compile(r"claude-(?P<line>[a-z]+)-(?P<major>\d{1,2})(?!\d)(?:-(?P<minor>\d{1,2})(?!\d))?")
_OLD_ID = re.compile(r"claude-(?P<major>\d)(?:-(?P<minor>\d))?-(?P<line>[a-z]+)")


def _model(name: str) -> _Model | None:
    """The line and generation in an id, also as the clouds write it; None if it has none that we know to read."""
    if "claude-mythos-preview" in name:
        return _PREVIEW
    found = _ID.search(name) or _OLD_ID.search(name)
    return found and _Model(found["line"], (int(found["major"]), int(found["minor"] or 0)))
