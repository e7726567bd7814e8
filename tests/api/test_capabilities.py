"""A request that its model would refuse is reported before anything is sent, in the words of the job file."""

from collections.abc import Collection
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import ModelInfo

from pipeline.api.capabilities import cache_minimum, newest, output_limit, refusal, unknown, warnings
from pipeline.emulator import Emulator
from pipeline.emulator.model.catalogue import find_model
from tests.emulator.builders import client_of, params, result_lines

EXTENDED = "output-300k-2026-03-24"
EFFORTS = ("low", "medium", "high", "xhigh", "max")
STRATEGIES = ("clear_thinking_20251015", "clear_tool_uses_20250919", "compact_20260112")


def supported(name: str, names: Collection[str]) -> dict[str, bool]:
    return {"supported": name in names}


def model(
    name: str = "claude-sonnet-5",
    *,
    without: Collection[str] = (),
    efforts: Collection[str] = EFFORTS,
    thinking: Collection[str] = ("adaptive", "disabled"),
    server_tools: Collection[str] = ("web_search", "code_execution"),
    strategies: Collection[str] = STRATEGIES,
    **fields: Any,
) -> ModelInfo:
    """Return a model with all capabilities except those in `without`."""
    plain = ("batch", "citations", "code_execution", "image_input", "pdf_input", "structured_outputs")
    types = ("adaptive", "between_tools", "disabled", "enabled")
    capabilities: dict[str, Any] = {
        **{name: {"supported": name not in without} for name in plain},
        "effort": {"supported": bool(efforts), **{effort: supported(effort, efforts) for effort in EFFORTS}},
        "thinking": {"supported": bool(thinking), "types": {kind: supported(kind, thinking) for kind in types}},
        "context_management": {
            "supported": bool(strategies),
            **{strategy: supported(strategy, strategies) for strategy in STRATEGIES},
        },
        "server_tools": {
            "supported": bool(server_tools),
            **{tool: supported(tool, server_tools) for tool in ("web_search", "code_execution")},
        },
    }
    whole = {
        "id": name,
        "type": "model",
        "display_name": name,
        "created_at": "2026-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": 1_000_000,
        "max_tokens": 128_000,
        "capabilities": capabilities,
    }
    return ModelInfo.model_validate(whole | fields)


def asked(**fields: Any) -> dict[str, Any]:
    return {"max_tokens": 2000, "messages": [{"role": "user", "content": "x"}], **fields}


FORMAT = {"type": "json_schema", "schema": {"type": "object", "properties": {}, "additionalProperties": False}}
TOOL = {"name": "note", "input_schema": {"type": "object"}}
FORCED: dict[str, Any] = {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "note"}}
ANY: dict[str, Any] = {"tools": [TOOL], "tool_choice": {"type": "any"}}
ENABLED = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
DISABLED = {"thinking": {"type": "disabled"}}
BETWEEN = {"thinking": {"type": "between_tools"}}
PREFILL = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Label:"}]}


def effort(level: str) -> dict[str, Any]:
    return {"output_config": {"effort": level}}


def edits(*strategies: str) -> dict[str, Any]:
    return {"context_management": {"edits": [{"type": strategy} for strategy in strategies]}}


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "wanted", "said"),
    [
        pytest.param(
            model("claude-opus-4-1-20250805", lifecycle="retired", retires_at="2026-08-05T00:00:00Z"),
            {},
            "request.model: claude-opus-4-1-20250805 was retired on 2026-08-05; choose an active model",
            id="a retired model",
        ),
        pytest.param(
            model("claude-opus-3", lifecycle="retired"),
            {},
            "request.model: claude-opus-3 was retired; choose an active model",
            id="a retired model without its day",
        ),
        pytest.param(
            model(without=["batch"]),
            {},
            "request.model: claude-sonnet-5 does not support batches; choose another model",
            id="no batches",
        ),
        pytest.param(
            model("claude-haiku-4-5-20251001", max_tokens=64_000),
            {"model": "claude-haiku-4-5", "max_tokens": 100_000},
            "request.max_tokens: 100000 is more than claude-haiku-4-5 allows (64,000)",
            id="too many tokens, by the model's alias",
        ),
        pytest.param(
            model("claude-opus-5"),
            {"max_tokens": 200_000},
            "request.max_tokens: 200000 is more than claude-opus-5 allows (128,000); "
            "output-300k-2026-03-24 in request.betas allows 300,000",
            id="too many tokens without the beta",
        ),
        pytest.param(
            model("claude-opus-5"),
            {"max_tokens": 300_001},
            "request.max_tokens: 300001 is more than claude-opus-5 allows (128,000)",
            id="more tokens than the beta allows",
        ),
        pytest.param(
            model(without=["structured_outputs"]),
            {"output_config": {"format": FORMAT}},
            "output: claude-sonnet-5 does not support structured outputs, which output.schema and output.labels need; "
            "choose another model, or output.tool",
            id="a schema",
        ),
        pytest.param(
            model(without=["structured_outputs"]),
            {"tools": [TOOL, TOOL | {"strict": True}]},
            "request.params.tools.1.strict: claude-sonnet-5 does not support strict tools; remove the field",
            id="a strict tool",
        ),
        pytest.param(
            model(efforts=[]),
            effort("low"),
            "request.params.output_config.effort: claude-sonnet-5 does not support effort; remove the field",
            id="an effort",
        ),
        pytest.param(
            model(efforts=["low", "medium", "high", "max"]),
            effort("xhigh"),
            "request.params.output_config.effort: claude-sonnet-5 does not support 'xhigh' "
            "(it supports low, medium, high, max)",
            id="a level of effort",
        ),
        pytest.param(
            model(),
            ENABLED,
            "request.params.thinking.type: claude-sonnet-5 does not support 'enabled'; "
            "use adaptive, and set how much by request.params.output_config.effort",
            id="thinking with a budget",
        ),
        pytest.param(
            model(thinking=["disabled", "enabled"]),
            {"thinking": {"type": "adaptive"}},
            "request.params.thinking.type: claude-sonnet-5 does not support 'adaptive' (it supports disabled, enabled)",
            id="adaptive thinking",
        ),
        pytest.param(
            model("claude-sonnet-5-5", thinking=["adaptive", "between_tools"]),
            DISABLED,
            "request.params.thinking.type: claude-sonnet-5-5 does not support 'disabled' "
            "(it supports adaptive, between_tools)",
            id="no thinking",
        ),
        pytest.param(
            model(thinking=[]),
            {"thinking": {"type": "adaptive"}},
            "request.params.thinking.type: claude-sonnet-5 does not support 'adaptive'; remove request.params.thinking",
            id="thinking of a model that does not think",
        ),
        *[
            pytest.param(
                model("claude-opus-5"),
                DISABLED | effort(level),
                f"request.params.thinking.type: claude-opus-5 does not support 'disabled' with effort {level}; "
                "lower request.params.output_config.effort",
                id=f"no thinking with effort {level}",
            )
            for level in ("xhigh", "max")
        ],
        pytest.param(
            model("claude-sonnet-5-5", thinking=["between_tools"]),
            BETWEEN | effort("xhigh"),
            "request.params.thinking.type: claude-sonnet-5-5 does not support 'between_tools' with effort xhigh; "
            "lower request.params.output_config.effort",
            id="thinking between tools with much effort",
        ),
        pytest.param(
            model(thinking=["enabled"]),
            {"thinking": {"type": "enabled", "budget_tokens": 1023}},
            "request.params.thinking.budget_tokens: 1023 is less than 1024, the minimum; give 1024 or more",
            id="a small budget",
        ),
        pytest.param(
            model(thinking=["enabled"]),
            {"thinking": {"type": "enabled", "budget_tokens": 2000}},
            "request.params.thinking.budget_tokens: 2000 must be below max_tokens (2000)",
            id="a budget that leaves no room",
        ),
        pytest.param(
            model(thinking=["enabled"]),
            FORCED | ENABLED,
            "request.params.tool_choice: no tool can be forced, not even by output.tool, while thinking is enabled; "
            "remove one of the two",
            id="a forced tool while thinking",
        ),
        *[
            pytest.param(
                model(name),
                choice,
                f"request.params.tool_choice: {name} cannot be forced to call a tool, not even by output.tool; "
                "use output.schema",
                id=f"a tool forced on {name} by {choice['tool_choice']['type']}",
            )
            for name in (
                "claude-fable-5-1",
                "claude-mythos-5-1",
                "claude-opus-5-5",
                "claude-sonnet-5-5",
                "claude-mythos-preview",
            )
            for choice in (FORCED, ANY)
        ],
        pytest.param(
            model(server_tools=["code_execution"]),
            {"tools": [TOOL, {"type": "web_search_20250305", "name": "web_search"}]},
            "request.params.tools.1: claude-sonnet-5 does not support web search; "
            "remove the tool, or choose another model",
            id="web search",
        ),
        pytest.param(
            model(server_tools=["web_search"]),
            {"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]},
            "request.params.tools.0: claude-sonnet-5 does not support code execution; "
            "remove the tool, or choose another model",
            id="code execution",
        ),
        pytest.param(
            model(strategies=STRATEGIES[:2]),
            edits("clear_tool_uses_20250919", "compact_20260112"),
            "request.params.context_management.edits.1.type: claude-sonnet-5 does not support 'compact_20260112'; "
            "remove the edit, or choose another model",
            id="a strategy for the context",
        ),
        pytest.param(
            model(strategies=[]),
            edits("clear_of_next_year"),
            "request.params.context_management.edits.0.type: claude-sonnet-5 does not support 'clear_of_next_year'; "
            "remove the edit, or choose another model",
            id="any strategy for the context",
        ),
        pytest.param(
            model("claude-opus-4-6"),
            PREFILL,
            "request.messages: claude-opus-4-6 does not continue a turn of the assistant; end with a turn of the user",
            id="a prefill",
        ),
        pytest.param(
            model("claude-haiku-4-5-20251001"),
            {"inference_geo": "us"},
            "request.params.inference_geo: claude-haiku-4-5-20251001 does not support it, models from 4.6 on do; "
            "remove the field",
            id="a place of inference",
        ),
    ],
)
def test_what_a_model_refuses_is_reported_with_the_field_of_the_job_file(
    info: ModelInfo, wanted: dict[str, Any], said: str
) -> None:
    assert refusal(asked(**wanted), info) == said


@pytest.mark.parametrize(
    ("without", "has", "said"),
    [
        pytest.param("image_input", "image", "images", id="images"),
        pytest.param("pdf_input", "document", "documents", id="documents"),
    ],
)
def test_attachments_are_refused_for_a_model_that_cannot_see_them(without: str, has: str, said: str) -> None:
    blind = model(without=[without])

    assert refusal(asked(), blind, has=[has]) == (
        f"request.attachments: claude-sonnet-5 does not support {said}; choose another model"
    )
    assert refusal(asked(), blind) is None
    assert refusal(asked(), model(), has=["image", "document"]) is None


@pytest.mark.parametrize(
    ("info", "wanted"),
    [
        pytest.param(model(), {}, id="a plain request"),
        pytest.param(model(), {"max_tokens": 128_000}, id="as many tokens as it answers with"),
        pytest.param(model(), {"output_config": {"format": FORMAT, "effort": "max"}}, id="a schema and an effort"),
        pytest.param(
            model(), {"output_config": None, "thinking": None, "tool_choice": None, "tools": None}, id="nulls"
        ),
        pytest.param(model(), {"thinking": {"type": "adaptive"}}, id="adaptive thinking"),
        pytest.param(model("claude-opus-5"), DISABLED | effort("high"), id="no thinking with effort high"),
        pytest.param(model(thinking=["enabled"]), ENABLED, id="thinking with the least budget"),
        pytest.param(model(), FORCED, id="a forced tool"),
        pytest.param(model("claude-opus-5-5"), FORCED | {"tool_choice": {"type": "auto"}}, id="a tool if need be"),
        pytest.param(model(), {"tools": [{"type": "web_search_20260318", "name": "web_search"}]}, id="web search"),
        pytest.param(model(), edits(*STRATEGIES), id="context management"),
        pytest.param(model(), edits("clear_of_next_year"), id="a strategy that the Models API does not know"),
        pytest.param(model("claude-sonnet-4-5-20250929"), PREFILL, id="a prefill before 4.6"),
        pytest.param(model("claude-sonnet-4-6"), {"inference_geo": "us"}, id="a place of inference"),
        pytest.param(model("claude-of-next-year"), PREFILL | FORCED | {"inference_geo": "us"}, id="an unknown model"),
    ],
)
def test_what_a_model_accepts_passes(info: ModelInfo, wanted: dict[str, Any]) -> None:
    assert refusal(asked(**wanted), info) is None


EVERYTHING = asked(
    max_tokens=10**6,
    tools=[TOOL | {"strict": True}, {"type": "web_search_20250305", "name": "web_search"}],
    thinking={"type": "adaptive"},
    output_config={"effort": "xhigh", "format": FORMAT},
    **edits("compact_20260112"),
)


@pytest.mark.parametrize(
    "info",
    [
        pytest.param(model("gateway", capabilities=None, max_tokens=None), id="no capabilities"),
        pytest.param(ModelInfo.construct(id="gateway", type="model"), id="nothing but an id"),
        pytest.param(ModelInfo.construct(id="gateway", type="model", capabilities={}), id="empty capabilities"),
        pytest.param(
            ModelInfo.construct(
                id="gateway", type="model", capabilities={"effort": {"supported": True}, "thinking": {}}
            ),
            id="capabilities without their parts",
        ),
    ],
)
def test_a_capability_that_a_gateway_does_not_report_is_not_checked(info: ModelInfo) -> None:
    assert refusal(EVERYTHING, info, has=["image", "document"]) is None
    assert warnings(info, date(2026, 11, 1)) == []
    assert output_limit(info, [EXTENDED]) is None


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "many-tokens": {"max_tokens": 128_000},
    "too-many-tokens": {"max_tokens": 128_001},
    "schema": {"output_config": {"format": FORMAT}},
    **{f"effort-{level}": effort(level) for level in EFFORTS},
    **{f"thinking-{kind}": {"thinking": {"type": kind}} for kind in ("adaptive", "disabled", "between_tools")},
    "thinking-enabled": {"max_tokens": 2000, **ENABLED},
    "small-budget": {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1000}},
    "large-budget": {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 2000}},
    "disabled-xhigh": DISABLED | effort("xhigh"),
    "between-max": BETWEEN | effort("max"),
    "forced": FORCED,
    "any": ANY,
    "forced-thinking": {"max_tokens": 2000, **FORCED, **ENABLED},
    "prefill": PREFILL,
    "geo": {"inference_geo": "us"},
}


@pytest.mark.parametrize("betas", [[], [EXTENDED]], ids=["no betas", "long answers"])
def test_the_check_and_the_emulator_refuse_the_same_requests(tmp_path: Path, betas: list[str]) -> None:
    with Emulator(tmp_path) as emulator:
        client = client_of(emulator)
        models = list(client.models.list(limit=1000))
        wanted = {
            f"{info.id}__{name}": (info, params(**{"model": info.id, **fields}))
            for info in models
            for name, fields in CASES.items()
        }

        requests: Any = [{"custom_id": name, "params": fields} for name, (_, fields) in wanted.items()]
        headers = {"anthropic-beta": ",".join(betas)} if betas else {}
        batch = client.messages.batches.create(requests=requests, extra_headers=headers)
        emulator.wait_idle()
        lines = result_lines(client, batch.id)

    refused_there = {line["custom_id"] for line in lines if line["result"]["type"] == "errored"}
    refused_here = {name for name, (info, fields) in wanted.items() if refusal(fields, info, betas)}
    assert len(lines) == len(models) * len(CASES)
    assert refused_here == refused_there
    assert 0 < len(refused_here) < len(lines)


# -- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "betas", "limit"),
    [
        pytest.param(model("claude-opus-5-5"), [], 128_000, id="without the beta"),
        *[
            pytest.param(model(name), [EXTENDED], 300_000, id=name)
            for name in (
                "claude-opus-5-5",
                "claude-opus-5",
                "claude-opus-4-8",
                "claude-opus-4-7",
                "claude-opus-4-6",
                "claude-sonnet-5-5",
                "claude-sonnet-5",
                "claude-sonnet-4-6",
                "claude-haiku-5-5",
            )
        ],
        pytest.param(model("claude-haiku-4-5-20251001", max_tokens=64_000), [EXTENDED], 64_000, id="an older model"),
        pytest.param(model("claude-fable-5-1"), [EXTENDED], 128_000, id="another line"),
        pytest.param(model("claude-of-next-year"), [EXTENDED], 128_000, id="an unknown model"),
        pytest.param(model(max_tokens=None), [EXTENDED], None, id="no limit said"),
    ],
)
def test_the_output_limit_is_that_of_the_model_or_of_the_beta(
    info: ModelInfo, betas: list[str], limit: int | None
) -> None:
    assert output_limit(info, betas) == limit


def test_the_beta_for_long_answers_raises_the_limit_of_max_tokens() -> None:
    wanted = asked(max_tokens=300_000)

    assert refusal(wanted, model("claude-sonnet-4-6"), betas=[EXTENDED]) is None
    assert "(128,000)" in str(refusal(wanted, model("claude-fable-5"), betas=[EXTENDED]))


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("claude-opus-4-5-20251101", 4096),
        ("claude-opus-4-5", 4096),
        ("claude-opus-4-6", 4096),
        ("claude-haiku-4-5-20251001", 4096),
        ("anthropic.claude-haiku-4-5-20251001-v1:0", 4096),
        ("claude-haiku-4-5@20251001", 4096),
        ("claude-opus-4-7", 2048),
        ("claude-opus-4-8", 1024),
        ("claude-sonnet-4-5-20250929", 1024),
        ("claude-sonnet-5", 1024),
        ("claude-opus-4-20250514", 1024),
        ("claude-3-5-haiku-20241022", 1024),
        ("claude-mythos-preview", 2048),
        ("claude-opus-5", 512),
        ("claude-opus-5-5", 512),
        ("claude-sonnet-5-5", 512),
        ("claude-haiku-5-5", 512),
        ("claude-fable-5", 512),
        ("claude-fable-5-1", 512),
        ("claude-mythos-5", 512),
        ("claude-mythos-5-1", 512),
        ("some-model", 1024),
    ],
)
def test_the_smallest_prefix_that_is_cached_depends_on_the_model(name: str, tokens: int) -> None:
    assert cache_minimum(name) == tokens
    emulated = find_model(name)
    assert emulated is None or emulated.cache_minimum == tokens


# -- warnings --------------------------------------------------------------------------------------------------------

TODAY = date(2026, 11, 21)


@pytest.mark.parametrize(
    ("lifecycle", "retires_at", "said"),
    [
        pytest.param("active", None, [], id="active"),
        pytest.param("retired", "2026-08-05T00:00:00Z", [], id="retired: it is refused"),
        pytest.param(
            "deprecated",
            None,
            [
                "request.model: claude-sonnet-5 is deprecated and will be retired; the day is not set yet; "
                "plan the move to another model"
            ],
            id="deprecated without a day",
        ),
        pytest.param(
            "deprecated",
            "2027-06-30T00:00:00Z",
            [
                "request.model: claude-sonnet-5 is deprecated and will be retired on 2027-06-30; "
                "plan the move to another model"
            ],
            id="deprecated, with time left",
        ),
        pytest.param(
            "deprecated",
            "2026-11-30T00:00:00Z",
            [
                "request.model: claude-sonnet-5 is deprecated and will be retired on 2026-11-30, in 9 days; "
                "plan the move to another model"
            ],
            id="soon",
        ),
        pytest.param(
            "deprecated",
            "2026-11-22T00:00:00Z",
            [
                "request.model: claude-sonnet-5 is deprecated and will be retired on 2026-11-22, tomorrow; "
                "plan the move to another model"
            ],
            id="tomorrow",
        ),
        pytest.param(
            "deprecated",
            "2026-11-22T01:00:00+02:00",
            [
                "request.model: claude-sonnet-5 is deprecated and will be retired on 2026-11-21, today; "
                "plan the move to another model"
            ],
            id="today, in UTC",
        ),
        pytest.param(
            "deprecated",
            "2026-06-30T00:00:00Z",
            [
                "request.model: claude-sonnet-5 is deprecated and was to be retired on 2026-06-30 "
                "and may stop working any day; move to another model"
            ],
            id="overdue",
        ),
        pytest.param(
            "active",
            "2027-01-20T00:00:00Z",
            [
                "request.model: claude-sonnet-5 will be retired on 2027-01-20, in 60 days; "
                "plan the move to another model"
            ],
            id="active with a day",
        ),
    ],
)
def test_a_model_near_its_retirement_gives_a_warning(lifecycle: str, retires_at: str | None, said: list[str]) -> None:
    assert warnings(model(lifecycle=lifecycle, retires_at=retires_at), TODAY) == said


# -- unknown models --------------------------------------------------------------------------------------------------

KNOWN = ["claude-haiku-5-5", "claude-haiku-4-5-20251001", "claude-opus-5-5"]


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        pytest.param(
            "claude-haiku-4.5", ["claude-haiku-4-5-20251001"], "; did you mean 'claude-haiku-4-5'?", id="an alias"
        ),
        pytest.param("claude-haiku-9", KNOWN, "; did you mean 'claude-haiku-5-5'?", id="a near one"),
        pytest.param(
            "gpt", KNOWN, " (it knows claude-haiku-4-5-20251001, claude-haiku-5-5, claude-opus-5-5)", id="none is near"
        ),
        pytest.param("claude-haiku-9", [], " (it knows none)", id="none at all"),
    ],
)
def test_an_unknown_model_is_refused_with_a_suggestion(name: str, known: list[str], said: str) -> None:
    assert unknown(name, known) == f"request.model: the API knows no model '{name}'{said}"


def test_the_newest_model_of_a_line_has_the_highest_version() -> None:
    names = ["claude-3-5-haiku-20241022", "claude-haiku-4-5-20251001", "claude-haiku-5-5", "claude-sonnet-6", "gpt"]

    assert newest(names, "haiku") == "claude-haiku-5-5"
    assert newest(names[:2], "haiku") == "claude-haiku-4-5-20251001"
    assert newest(["claude-v1"], "haiku") is None
