"""A request that the Messages API would refuse is refused before it costs anything, and the field is named."""

from typing import Any

import pytest

from pipeline.errors import JobError
from pipeline.job.model import Job
from pipeline.request.check import check_params


def job(params: dict[str, Any] | None = None, **fields: Any) -> Job:
    """Return a job with these `request.params`. fields: others of `request`, or whole sections."""
    whole = {name: fields.pop(name) for name in ("output", "rounds", "retry") if name in fields}
    request = {"model": "claude-haiku-4-5", "max_tokens": 2000, "prompt": "{{ body }}", "params": params or {}}
    source = {"path": "a.csv", "key": "id"}
    sink = {"table": "t"}
    return Job.model_validate({"name": "j", "source": source, "request": request | fields, "sink": sink, **whole})


def refusal(wrong: Job) -> str:
    with pytest.raises(JobError) as refused:
        check_params(wrong)
    return str(refused.value)


TOOL = {"name": "look_up", "input_schema": {"type": "object", "properties": {"q": {"type": "string"}}}}


@pytest.mark.parametrize(
    "params",
    [
        pytest.param({}, id="none"),
        pytest.param({"stop_sequences": ["</answer>"]}, id="stop sequences"),
        pytest.param({"stop_sequences": []}, id="no stop sequences"),
        pytest.param({"thinking": {"type": "enabled", "budget_tokens": 1024}}, id="thinking with a budget"),
        pytest.param({"thinking": {"type": "disabled"}}, id="no thinking"),
        pytest.param({"thinking": {"type": "adaptive"}}, id="adaptive thinking"),
        pytest.param({"output_config": {"effort": "low"}}, id="effort"),
        pytest.param({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "look_up"}}, id="a tool"),
        pytest.param({"tools": [TOOL], "tool_choice": {"type": "auto"}}, id="a tool if need be"),
        pytest.param({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, id="a tool of the API's own"),
        pytest.param({"tools": [{"type": "custom", **TOOL}]}, id="a tool that says its type"),
        pytest.param({"tools": (TOOL,), "stop_sequences": ("x",)}, id="tuples, which Python may give for lists"),
        pytest.param({"metadata": {"user_id": "u-1"}}, id="metadata"),
        pytest.param({"metadata": {"user_id": None}}, id="metadata without a user"),
        pytest.param({"service_tier": "auto"}, id="service tier"),
    ],
)
def test_params_that_the_messages_api_accepts_pass(params: dict[str, Any]) -> None:
    check_params(job(params))


def test_a_model_unknown_to_the_sdk_passes() -> None:
    check_params(job(model="claude-of-next-year"))


def test_system_blocks_pass() -> None:
    check_params(job(system=[{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]))


MARKED = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({"system": [MARKED] * 5}, "request: 5 blocks have cache_control", id="five of the user's"),
        pytest.param(
            {"system": [MARKED] * 4, "messages": [{"role": "user", "content": "x"}], "cache": "5m"},
            "request.cache: with those that it adds, 5 blocks have cache_control",
            id="one more than four",
        ),
        pytest.param(
            {
                "system": [MARKED] * 3,
                "messages": [{"role": "user", "content": "x"}],
                "cache": "5m",
                "params": {"tools": [TOOL]},
                "rounds": {"tools": {TOOL["name"]: "a.b"}},
            },
            "request.cache: with those that it adds, 5 blocks have cache_control",
            id="one behind the results of tools",
        ),
        pytest.param(
            {"params": {"cache_control": {"type": "ephemeral"}}, "cache": "5m"},
            "request.cache: the requests share no text before the prompt",
            id="only the one at the end of each request",
        ),
    ],
)
def test_breakpoints_that_the_api_would_refuse_or_that_cache_nothing_are_refused(
    fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(JobError) as refused:
        check_params(job(**fields))

    assert str(refused.value).startswith(said)


@pytest.mark.parametrize("field", ["temperature", "top_p", "top_k"])
def test_sampling_params_are_refused_with_the_reason_and_the_remedy(field: str) -> None:
    message = refusal(job({field: 1}))

    assert message.startswith(f"request.params.{field}: API version 2026-10-21 refuses sampling parameters")
    assert message.endswith("remove the field")


@pytest.mark.parametrize(
    ("field", "said"),
    [
        pytest.param("stream", "a batch has no streaming", id="stream"),
        pytest.param("speed", "a batch has no fast mode", id="speed"),
        pytest.param("messages", "the messages are built from request.prompt", id="messages"),
        pytest.param("model", "request.model sets this", id="model"),
        pytest.param("max_tokens", "request.max_tokens sets this", id="max_tokens"),
        pytest.param("system", "request.system sets this", id="system"),
    ],
)
def test_params_that_belong_elsewhere_or_cannot_be_used_are_refused(field: str, said: str) -> None:
    assert refusal(job({field: 1})).startswith(f"request.params.{field}: {said}")


@pytest.mark.parametrize(
    ("params", "said"),
    [
        pytest.param({"temprature": 1}, "request.params.temprature: the Messages API has no such field", id="unknown"),
        pytest.param({"stop_sequence": ["x"]}, "did you mean 'stop_sequences'?", id="misspelt"),
        pytest.param(
            {"stop_sequences": "x"}, "request.params.stop_sequences: must be a list (it is 'x')", id="no list"
        ),
        pytest.param({"stop_sequences": [1]}, "request.params.stop_sequences.0: must be str", id="no text in a list"),
        pytest.param(
            {"output_config": {"effort": "lo"}}, "request.params.output_config.effort: must be one of", id="a word"
        ),
        pytest.param(
            {"output_config": {"efort": "low"}},
            "request.params.output_config.efort: the Messages API has no such field; did you mean 'effort'?",
            id="misspelt inside",
        ),
        pytest.param({"thinking": "on"}, "request.params.thinking: must be a mapping (it is 'on')", id="no mapping"),
        pytest.param(
            {"thinking": {"type": "enabled"}},
            "request.params.thinking.budget_tokens: this field is required",
            id="a field that is missing",
        ),
        pytest.param(
            {"thinking": {"type": "on"}}, "request.params.thinking.type: must be one of 'adaptive'", id="a wrong type"
        ),
        pytest.param(
            {"thinking": {"type": "enabled", "budget_tokens": "many"}},
            "request.params.thinking.budget_tokens: must be int (it is 'many')",
            id="no number",
        ),
        pytest.param(
            {"thinking": {"type": "enabled", "budget_tokens": True}},
            "request.params.thinking.budget_tokens: must be int",
            id="a truth as a number",
        ),
        pytest.param(
            {"tool_choice": {"type": "tool"}},
            "request.params.tool_choice.name: this field is required",
            id="tool_choice",
        ),
        pytest.param(
            {"tools": [{"name": "x", "input_schema": {"type": "object"}, "descripton": "x"}]},
            "request.params.tools.0.descripton",
            id="misspelt in a tool",
        ),
        pytest.param({"metadata": {"user": "x"}}, "request.params.metadata.user", id="unknown metadata"),
        pytest.param(
            {"tools": [TOOL | {"cache_control": {"type": "ephemeral", "tll": "1h"}}]},
            "request.params.tools.0.cache_control.tll: the Messages API has no such field; did you mean 'ttl'?",
            id="misspelt at the third depth",
        ),
        pytest.param(
            {"tools": [TOOL | {"input_examples": [5]}]},
            "request.params.tools.0.input_examples.0: must be a mapping (it is 5)",
            id="a wrong item of a list of mappings",
        ),
        pytest.param(
            {"tools": [TOOL | {"type": "web_serch"}]}, "request.params.tools.0.type: must be one of", id="a wrong tool"
        ),
        pytest.param({"tools": {"a": 1}}, "request.params.tools: must be a list (it is {'a': 1})", id="a mapping"),
        pytest.param({"service_tier": "cheap"}, "request.params.service_tier: must be one of", id="service tier"),
    ],
)
def test_a_param_unknown_to_the_sdk_is_named(params: dict[str, Any], said: str) -> None:
    assert said in refusal(job(params))


@pytest.mark.parametrize(
    ("system", "said"),
    [
        pytest.param([{"type": "txt", "text": "x"}], "request.system.0.type: must be", id="an unknown type"),
        pytest.param(
            [{"type": "text"}],
            "request.system.0.text: this field is required",
            id="no text",
        ),
        pytest.param([{"type": "text", "text": 5}], "request.system.0.text: must be str", id="a number"),
        pytest.param([{"type": "text", "txt": "x"}], "request.system.0.txt: the Messages API has no", id="misspelt"),
        pytest.param([{"type": "text", "text": "x", "cache": 1}], "request.system.0.cache: the Messages", id="unknown"),
    ],
)
def test_a_wrong_system_block_is_named(system: list[dict[str, Any]], said: str) -> None:
    assert said in refusal(job(system=system))


IMAGE = {"type": "base64", "media_type": "image/png", "data": "iVBO"}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        pytest.param(IMAGE | {"type": "base46"}, "source.type: must be one of 'base64', 'file', 'url'", id="a kind"),
        pytest.param(
            IMAGE | {"media_type": "image/bmp"}, "source.media_type: must be one of 'image/jpeg'", id="a media type"
        ),
        pytest.param(IMAGE | {"data": 5}, "source.data: must be str (it is 5)", id="no text"),
        pytest.param(IMAGE | {"name": "x"}, "source.name: the Messages API has no such field", id="a field too many"),
    ],
)
def test_a_wrong_image_in_a_turn_is_named_with_its_position(source: dict[str, Any], said: str) -> None:
    earlier = [
        {"role": "user", "content": [{"type": "image", "source": source}]},
        {"role": "assistant", "content": "A."},
    ]

    assert refusal(job(messages=earlier)).startswith(f"request.messages.0.content.0.{said}")


@pytest.mark.parametrize(
    ("betas", "tokens", "said"),
    [
        (["context-management-2025-06-27"], 60_000, "compact_20260112 needs the beta compact-2026-01-12; add it to"),
        (["compact-2026-01-12"], 49_999, "trigger.value: 49999 is less than 50,000, the minimum; raise it"),
        (["compact-2026-01-12"], 50_000, None),
    ],
    ids=["another beta", "too early", "the minimum"],
)
def test_a_compaction_needs_its_beta_and_enough_tokens(betas: list[str], tokens: int, said: str | None) -> None:
    edit = {"type": "compact_20260112", "trigger": {"type": "input_tokens", "value": tokens}}
    made = job({"context_management": {"edits": [edit]}}, betas=betas)

    if said is None:
        check_params(made)
    else:
        with pytest.raises(JobError, match=said):
            check_params(made)


def test_a_beta_allows_the_fields_of_its_api() -> None:
    params: dict[str, Any] = {"context_management": {"edits": []}}

    assert refusal(job(params)).startswith("request.params.context_management: the Messages API has no such field")
    check_params(job(params, betas=["context-management-2025-06-27"]))


@pytest.mark.parametrize(
    ("budget", "fits"), [(1999, True), (2000, False), (3000, False)], ids=["below", "same", "over"]
)
def test_a_thinking_budget_must_leave_room_for_the_answer(budget: int, fits: bool) -> None:
    asked = job({"thinking": {"type": "enabled", "budget_tokens": budget}})

    if fits:
        check_params(asked)
    else:
        assert refusal(asked) == (f"request.params.thinking.budget_tokens: {budget} must be below max_tokens (2000)")


def test_labels_together_with_an_output_format_are_refused() -> None:
    params = {"output_config": {"format": {"type": "json_schema", "schema": {}}}}

    message = refusal(job(params, output={"labels": ["a", "b"]}))

    assert message.startswith("request.params.output_config.format: output.labels sets the format")


def test_labels_together_with_an_effort_pass() -> None:
    check_params(job({"output_config": {"effort": "low"}}, output={"labels": ["a", "b"]}))


@pytest.mark.parametrize("wrong", ["low", ["low"]], ids=["text", "list"])
def test_labels_together_with_a_malformed_output_config_are_refused(wrong: Any) -> None:
    message = refusal(job({"output_config": wrong}, output={"labels": ["a", "b"]}))

    assert message.startswith("request.params.output_config: must be a mapping")


def test_a_number_that_json_cannot_represent_is_refused() -> None:
    tool = {"name": "x", "input_schema": {"type": "object", "maximum": 10**20}}

    assert "request.params.tools.0.input_schema" in refusal(job({"tools": [tool]}))


# -- rounds ----------------------------------------------------------------------------------------------------------

RUN = {"look_up": "mytools.look_up"}
SEARCH = {"type": "web_search_20260318", "name": "web_search"}
PAUSED = {"change": {"paused": {"continue": True}}}


@pytest.mark.parametrize(
    ("tools", "rounds", "fields", "said"),
    [
        pytest.param(
            [TOOL],
            {"tools": {**RUN, "lookup": "mytools.lookup"}},
            {},
            "rounds.tools.lookup: request.params.tools has no tool 'lookup' for the client to run; did you mean "
            "'look_up'?",
            id="a function without tool",
        ),
        pytest.param(
            [],
            {"tools": RUN},
            {},
            "rounds.tools.look_up: request.params.tools has no tool 'look_up' for the client to run (it has: none)",
            id="no tools",
        ),
        pytest.param(
            [TOOL, SEARCH],
            {"tools": {**RUN, "web_search": "mytools.search"}},
            {},
            "rounds.tools.web_search: request.params.tools has no tool 'web_search' for the client to run",
            id="a tool that the API runs",
        ),
        pytest.param(
            [TOOL, {**TOOL, "name": "ask"}],
            {"tools": RUN},
            {},
            "rounds.tools: the tool 'ask' of request.params.tools has no function; add ask: MODULE.FUNCTION",
            id="a tool without function",
        ),
        pytest.param(
            [TOOL],
            {"tools": RUN},
            {"output": {"tool": "look_up"}},
            "rounds: output.tool forces look_up in every answer, so that no other tool can be asked for; remove",
            id="a forced tool that is the answer",
        ),
        pytest.param([], {"max": 3}, {}, "rounds: without tools, and without retry.change.paused,", id="nothing to do"),
    ],
)
def test_rounds_that_contradict_the_request_are_refused(
    tools: list[dict[str, Any]], rounds: dict[str, Any], fields: dict[str, Any], said: str
) -> None:
    assert refusal(job({"tools": tools} if tools else {}, rounds=rounds, **fields)).startswith(said)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "look_up"}], ids=["any", "one"])
def test_rounds_with_a_forced_tool_are_refused(choice: dict[str, Any]) -> None:
    message = refusal(job({"tools": [TOOL], "tool_choice": choice}, rounds={"tools": RUN}))

    assert message.startswith("rounds: request.params.tool_choice forces a tool in every answer, so that no round")


@pytest.mark.parametrize(
    ("tools", "rounds", "fields"),
    [
        pytest.param([TOOL], {"tools": RUN}, {}, id="a function for the tool"),
        pytest.param([TOOL, SEARCH], {"tools": RUN}, {"retry": PAUSED}, id="beside a tool that the API runs"),
        pytest.param([TOOL], {}, {}, id="tools that nobody runs"),
        pytest.param([SEARCH], {"max": 3}, {"retry": PAUSED}, id="a limit of pauses alone"),
        pytest.param([TOOL], {"tools": RUN}, {"output": {"labels": ["a", "b"]}}, id="labels in the last round"),
    ],
)
def test_rounds_that_fit_the_request_pass(
    tools: list[dict[str, Any]], rounds: dict[str, Any], fields: dict[str, Any]
) -> None:
    check_params(job({"tools": tools}, rounds=rounds, **fields))
