"""Which params are refused, by which models and API versions, and with which message."""

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from anthropic.types.beta.message_create_params import MessageCreateParamsBase as BetaParams
from anthropic.types.message_create_params import MessageCreateParamsBase as Params
from anthropic.types.model import Model

from pipeline.emulator.model.answers import answer, input_tokens, message
from pipeline.emulator.model.caching import PromptCache, breakpoint_problem
from pipeline.emulator.model.catalogue import BY_NAME
from pipeline.emulator.model.files import StoredFile
from pipeline.emulator.model.validate import BETA_FIELDS, FIELDS, PREFILL, Context, count_tokens_problem, problem
from tests.emulator.builders import asking, image, params, pdf, text_document

OLD, NEW = "2023-06-01", "2026-10-21"
HEADERS = {"user_profile_id", "workspace_id", "betas"}  # the SDK sends these as headers
OBJECT = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
CITED: dict[str, Any] = {"citations": {"enabled": True}}
TOOL = {"name": "look", "input_schema": {"type": "object"}}


def formatted(schema: Any) -> dict[str, Any]:
    return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}


def said(fields: dict[str, Any], version: str = NEW, betas: frozenset[str] = frozenset()) -> str | None:
    found = problem(params(**fields), Context(version, betas), lambda: 10)
    return found.message if found else None


FINE: list[tuple[str, dict[str, Any], str]] = [
    ("plain", {}, NEW),
    ("temperature, old version", {"temperature": 0.5}, OLD),
    ("oldest version", {"temperature": 0.5}, "2023-01-01"),
    ("default temperature, new model", {"model": "claude-opus-4-8", "temperature": 1}, OLD),
    ("prefill, 4.5", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, NEW),
    ("adaptive", {"model": "claude-opus-4-8", "thinking": {"type": "adaptive"}}, NEW),
    ("enabled", {"max_tokens": 3000, "thinking": {"type": "enabled", "budget_tokens": 1024}}, NEW),
    ("between tools", {"model": "claude-sonnet-5-5", "thinking": {"type": "between_tools"}}, NEW),
    ("schema", formatted(OBJECT), NEW),
    ("tools", {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "look"}}, NEW),
    ("server tool", {"tools": [{"type": "web_search_20260318", "name": "web_search"}]}, NEW),
    ("blocks", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, NEW),
    ("effort", {"model": "claude-opus-4-8", "output_config": {"effort": "xhigh"}}, NEW),
    ("geo", {"model": "claude-opus-4-6", "inference_geo": "us"}, NEW),
]


@pytest.mark.parametrize(("fields", "version"), [case[1:] for case in FINE], ids=[case[0] for case in FINE])
def test_params_that_the_api_accepts_are_accepted(fields: dict[str, Any], version: str) -> None:
    assert said(fields, version) is None


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("no model", {"model": None}, "model: Field required"),
    ("no max_tokens", {"max_tokens": None}, "max_tokens: Field required"),
    ("no messages", {"messages": None}, "messages: Field required"),
    ("empty messages", {"messages": []}, "messages: at least one message is required"),
    ("unknown field", {"colour": 1}, "colour: Extra inputs are not permitted"),
    ("beta field without beta", {"mcp_servers": []}, "mcp_servers: Extra inputs are not permitted"),
    ("temperature, new version", {"temperature": 1}, "temperature: Extra inputs are not permitted"),
    ("top_p, new version", {"top_p": 1}, "top_p: Extra inputs are not permitted"),
    ("top_k, new version", {"top_k": 1}, "top_k: Extra inputs are not permitted"),
    ("unknown model", {"model": "gpt"}, "model: gpt"),
    ("retired model", {"model": "claude-3-haiku-20240307"}, "model: claude-3-haiku-20240307"),
    ("max_tokens text", {"max_tokens": "9"}, "max_tokens: Input should be a valid integer"),
    ("max_tokens true", {"max_tokens": True}, "max_tokens: Input should be a valid integer"),
    ("max_tokens negative", {"max_tokens": -1}, "max_tokens: Input should be greater than or equal to 1"),
    (
        "max_tokens too high",
        {"max_tokens": 100_000},
        "max_tokens: 100000 > 64000, which is the maximum allowed number of output tokens for "
        "claude-haiku-4-5-20251001",
    ),
    ("role", {"messages": [{"role": "bot", "content": "a"}]}, "messages.0.role: Input should be 'user'"),
    ("assistant first", {"messages": [{"role": "assistant", "content": "a"}]}, "messages: first message must use"),
    ("no content", {"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
    ("empty text", {"messages": [{"role": "user", "content": ""}]}, "messages.0: user messages must have non-empty"),
    (
        "empty block",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]},
        "messages: text content blocks must be non-empty",
    ),
    (
        "unknown block",
        {"messages": [{"role": "user", "content": [{"type": "song"}]}]},
        "messages.0.content.0: Input tag 'song' found using 'type' does not match any of the expected tags",
    ),
    (
        "prefill, 4.6",
        {
            "model": "claude-opus-4-6",
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        },
        PREFILL,
    ),
    (
        "enabled, 4.7",
        {"model": "claude-opus-4-7", "max_tokens": 3000, "thinking": {"type": "enabled", "budget_tokens": 1024}},
        '"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive"',
    ),
    ("adaptive, 4.5", {"thinking": {"type": "adaptive"}}, "adaptive thinking is not supported on this model"),
    (
        "disabled, always thinking",
        {"model": "claude-opus-5-5", "thinking": {"type": "disabled"}},
        '"thinking.type.disabled" is not supported for this model.',
    ),
    (
        "disabled at high effort, Opus 5",
        {"model": "claude-opus-5", "thinking": {"type": "disabled"}, "output_config": {"effort": "max"}},
        '"thinking.type.disabled" is not supported with effort max.',
    ),
    (
        "small budget",
        {"thinking": {"type": "enabled", "budget_tokens": 5}},
        "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024",
    ),
    (
        "budget above max_tokens",
        {"thinking": {"type": "enabled", "budget_tokens": 2000}},
        "`max_tokens` must be greater than `thinking.budget_tokens`.",
    ),
    (
        "forced tool, Opus 5.5",
        {"model": "claude-opus-5-5", "tools": [TOOL], "tool_choice": {"type": "any"}},
        'tool_choice: "any" is not supported for this model',
    ),
    ("choice without tools", {"tool_choice": {"type": "any"}}, "tool_choice: may only be specified while providing"),
    (
        "unknown tool",
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}},
        "tool_choice: Tool 'x' not found in provided tools",
    ),
    ("tool without schema", {"tools": [{"name": "x"}]}, "tools.0.custom.input_schema: Field required"),
    ("same tool twice", {"tools": [TOOL, TOOL]}, "tools: Tool names must be unique."),
    (
        "open object",
        formatted({"type": "object", "properties": {}}),
        "output_config.format.schema: For 'object' type, 'additionalProperties' must be explicitly set to false",
    ),
    (
        "bounded number",
        formatted({**OBJECT, "properties": {"a": {"type": "integer", "minimum": 1}}}),
        "output_config.format.schema: For 'integer' type, properties minimum are not supported",
    ),
    (
        "bounded text",
        formatted({**OBJECT, "properties": {"a": {"type": "string", "maxLength": 1}}}),
        "output_config.format.schema: For 'string' type, properties maxLength are not supported",
    ),
    (
        "minItems",
        formatted({**OBJECT, "properties": {"a": {"type": "array", "minItems": 2}}}),
        "output_config.format.schema: For 'array' type, 'minItems' values other than 0 or 1 are not supported",
    ),
    (
        "recursion",
        formatted({**OBJECT, "properties": {"a": {"$ref": "#"}}}),
        "output_config.format.schema: Recursive schemas are not supported",
    ),
    (
        "many optional properties",
        formatted({**OBJECT, "required": [], "properties": {f"p{n}": {"type": "string"} for n in range(25)}}),
        "output_config.format.schema: Schema is too complex for compilation.",
    ),
    (
        "no schema",
        {"output_config": {"format": {"type": "json_schema"}}},
        "output_config.format.schema: Field required",
    ),
    ("effort, Haiku 4.5", {"output_config": {"effort": "low"}}, "This model does not support the effort parameter."),
    ("geo, 4.5", {"inference_geo": "us"}, "inference_geo: not supported on this model"),
    ("blank stop", {"stop_sequences": [" "]}, "stop_sequences: each stop sequence must contain non-whitespace"),
    ("metadata", {"metadata": {"tag": 1}}, "metadata: only user_id is permitted"),
    ("system", {"system": [{"type": "image"}]}, "system.0: Input should be a text block"),
    (
        "document by the assistant, new version",
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": [{"type": "document", "source": {}}]},
                {"role": "user", "content": "b"},
            ]
        },
        "messages.1.content.0: document blocks are not permitted in assistant messages",
    ),
]


@pytest.mark.parametrize(("fields", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_params_that_the_api_refuses_are_refused_with_the_reason(fields: dict[str, Any], message: str) -> None:
    assert (said(fields) or "nothing").startswith(message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "claude-opus-4-7", "temperature": 0.5}, "temperature: only the default value is supported"),
        ({"temperature": 1.5}, "temperature: range: 0..1"),
        ({"temperature": "hot"}, "temperature: Input should be a valid number"),
        ({"temperature": 0.5, "top_p": 0.5}, "`temperature` and `top_p` cannot both be specified"),
    ],
    ids=["new model", "range", "type", "both"],
)
def test_with_the_old_api_version_sampling_depends_on_the_model(fields: dict[str, Any], message: str) -> None:
    assert (said(fields, OLD) or "nothing").startswith(message)


def test_a_wrong_model_is_not_found_and_other_errors_are_invalid_requests() -> None:
    unknown = problem(params(model="gpt"), Context(NEW), lambda: 0)
    invalid = problem(params(colour=1), Context(NEW), lambda: 0)

    assert unknown is not None
    assert invalid is not None
    assert (unknown.type, invalid.type) == ("not_found_error", "invalid_request_error")


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    found = problem(params(), Context(NEW), lambda: 200_001)

    assert found is not None
    assert found.message == "prompt is too long: 200001 tokens > 200000 maximum"


def test_a_beta_raises_the_output_limit_of_some_models() -> None:
    beta = frozenset({"output-300k-2026-03-24"})

    assert said({"model": "claude-opus-4-8", "max_tokens": 300_000}, betas=beta) is None
    assert (said({"model": "claude-opus-4-8", "max_tokens": 300_000}) or "").startswith("max_tokens: 300000 > 128000")
    assert (said({"max_tokens": 65_000}, betas=beta) or "").startswith("max_tokens: 65000 > 64000")


def test_every_field_and_every_model_of_the_sdk_is_known() -> None:
    assert set(Params.__annotations__) - HEADERS <= FIELDS
    assert set(BetaParams.__annotations__) - HEADERS <= FIELDS | BETA_FIELDS
    assert set(Model.__args__[0].__args__) <= set(BY_NAME)  # type: ignore[attr-defined]  # Union[Literal[...], str]


def test_count_tokens_refuses_max_tokens() -> None:
    found = count_tokens_problem(params(), Context(NEW, in_batch=False))

    assert found is not None
    assert found.message == "max_tokens: Extra inputs are not permitted"
    assert count_tokens_problem(params(max_tokens=None), Context(NEW, in_batch=False)) is None


def test_no_value_at_any_depth_crashes_the_checks_or_the_answer() -> None:
    strange: list[Any] = [None, 0, -1, 2.5, True, "", "x", [], [None], [[]], {}, {"type": []}, {"type": {}}, {"a": 1}]
    whole = [case[1] for case in FINE]
    whole.append({"messages": asking(image(), pdf(**CITED))})
    whole.append({"messages": asking(text_document("A ship sank.", **CITED))})
    parts = [{"type": "text", "text": "a"}, image()]
    whole.append({"messages": asking({"type": "document", "source": {"type": "content", "content": parts}, **CITED})})
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [image()]}
    whole.append({"messages": asking(result, {"type": "document", "source": {"type": "file", "file_id": "file_1"}})})
    file = StoredFile(1, "file_1", "default", "a", "text/plain", 0, 0, None, Path("nowhere"))
    whole.append({"system": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]})
    dice = random.Random(0)

    def files(file_id: str) -> StoredFile | None:
        return file if file_id == "file_1" else None

    for _ in range(14_000):
        mutated = _mutated(params(**dice.choice(whole)), dice, strange)
        found = problem(
            mutated, Context(dice.choice([OLD, NEW]), frozenset({"b"}), files=files), partial(input_tokens, mutated)
        )
        if found is None and breakpoint_problem(mutated) is None:
            model = BY_NAME[mutated["model"]]
            usage = PromptCache().usage(mutated, model, "default", 0)
            assert message(answer(mutated, model, "0" * 64, files), model, usage, "msg_1", "batch")["stop_reason"]


def _mutated(value: Any, dice: random.Random, strange: list[Any]) -> Any:
    """Return the value with one part of it, at any depth, replaced by an unexpected value."""
    if isinstance(value, dict) and value and dice.random() < 0.8:
        key = dice.choice(list(value))
        return {**value, key: _mutated(value[key], dice, strange)}
    if isinstance(value, list) and value and dice.random() < 0.8:
        at = dice.randrange(len(value))
        return [*value[:at], _mutated(value[at], dice, strange), *value[at + 1 :]]
    replacement = dice.choice(strange)
    return value if isinstance(value, dict) and "max_tokens" in value else replacement
