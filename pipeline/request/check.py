"""Proves what a job asks against the SDK's request types and the models' capabilities, before money is spent.

The API checks params only while it works on a batch, so a misspelt field would cost an hour and fail every row.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from pipeline.answer.outcome import answer_schema, output_columns, tools_of
from pipeline.errors import JobError
from pipeline.job.model import Job
from pipeline.job.schema_rules import first_problem
from pipeline.request.build import fixed_params, shared
from pipeline.request.sdk_types import first_mismatch

#: What the API refuses although somebody may well ask for it: the field, and why.
REFUSED = {
    "temperature": "API version 2026-10-21 refuses sampling parameters; steer by the prompt or output_config.effort",
    "top_p": "API version 2026-10-21 refuses sampling parameters; steer by the prompt or output_config.effort",
    "top_k": "API version 2026-10-21 refuses sampling parameters; steer by the prompt or output_config.effort",
    "stream": "a batch has no streaming",
    "speed": "a batch has no fast mode",
    "messages": "the messages are made of request.prompt",
    "model": "this is request.model",
    "max_tokens": "this is request.max_tokens",
    "system": "this is request.system",
    "betas": "this is request.betas",
    "workspace_id": "this is a header of the call, which the SDK reads from its own settings",
    "fallbacks": "a batch has no fallbacks; retry.change asks another model",
    "fallback_credit_token": "a batch has no fallbacks; retry.change asks another model",
    "thread": "a batch has no threads",
}


def check_params(job: Job) -> None:
    """Raises JobError that names the first field of `request` or `output` that the Messages API would not take."""
    request, output = job.request, job.output
    for field, why in REFUSED.items():
        if field in request.params:
            raise JobError(f"request.params.{field}: {why}; remove the field")
    config = request.params.get("output_config", {})
    if not isinstance(config, dict):
        raise JobError(f"request.params.output_config: must be a mapping (it is {config!r})")
    made = next((name for name in ("labels", "schema") if getattr(output, name.replace("schema", "schema_"))), None)
    if made is not None and "format" in config:
        raise JobError(f"request.params.output_config.format: output.{made} sets the format; remove one of the two")
    _check_output(job)
    if request.cache is not None:
        _check_cache(job)
    _check_types(job)
    if isinstance(request.max_tokens, int):
        _check_budget(request.params, request.max_tokens)


def _example(job: Job) -> dict[str, Any]:
    """The params as every request has them; what each row gives is filled in so that it fits."""
    params = {"model": "a model", "max_tokens": 1, **fixed_params(job)}
    turns = [turn.model_dump() for turn in job.request.messages]
    return params | {"messages": [*turns, {"role": "user", "content": "a prompt"}]}


def _check_output(job: Job) -> None:
    """The schema or tool of the answer."""
    answer_schema(job)
    for i, tool in enumerate(tools_of(job.request.params)):
        if "input_schema" in tool:
            problem = first_problem(tool["input_schema"], strict=bool(tool.get("strict")))
            if problem is not None:
                raise JobError(f"request.params.tools.{i}.input_schema: {problem}")
    if job.output.schema_ is not None:
        problem = first_problem(job.output.schema_)
        if problem is not None:
            raise JobError(f"output.schema: {problem}")
    output_columns(job)
    chosen = job.request.params.get("tool_choice")
    forces = isinstance(chosen, dict) and (chosen.get("type"), chosen.get("name")) == ("tool", job.output.tool)
    if job.output.tool is not None and chosen is not None and not forces:
        raise JobError(
            f"request.params.tool_choice: output.tool forces {job.output.tool}; remove tool_choice, or output.tool"
        )
    wanted = fixed_params(job).get("output_config", {}).get("format")
    if wanted is not None:
        _check_format(job, wanted)


def _check_format(job: Job, wanted: Any) -> None:
    """The format that an answer is held to, whoever asks for it."""
    if job.output.labels is None and job.output.schema_ is None and isinstance(wanted, dict) and "schema" in wanted:
        problem = first_problem(wanted["schema"])
        if problem is not None:
            raise JobError(f"request.params.output_config.format.schema: {problem}")
    cited = any(attachment.citations for attachment in job.request.attachments)
    turns = orjson.dumps([turn.model_dump() for turn in job.request.messages])
    if cited or b'"citations":{"enabled":true}' in turns:
        field = "request.attachments" if cited else "request.messages"
        raise JobError(
            f"{field}: citations cannot be had with a format of the answer (output.labels, output.schema, or "
            "output_config.format); remove one of the two"
        )


def _check_cache(job: Job) -> None:
    params, turns = shared(job)
    marks = orjson.dumps([params, turns]).count(b'"cache_control":{')
    if not marks:
        raise JobError(
            "request.cache: nothing is the same in all requests but the prompt's own words, so there is nothing to "
            "cache: put what they share into request.system or request.messages, or leave cache out"
        )
    if marks > MAX_BREAKPOINTS:
        raise JobError(
            f"request.cache: with its own there are {marks} blocks with cache_control, and the API takes "
            f"{MAX_BREAKPOINTS}; remove some"
        )


MAX_BREAKPOINTS = 4  # source: platform.claude.com/docs/en/build-with-claude/prompt-caching


def _check_budget(params: Mapping[str, Any], max_tokens: int) -> None:
    thinking = params.get("thinking", {})
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    if budget is not None and budget >= max_tokens:
        raise JobError(f"request.params.thinking.budget_tokens: {budget} must be below max_tokens ({max_tokens})")


def _check_types(job: Job) -> None:
    wrong = first_mismatch(_example(job), beta=bool(job.request.betas))
    if wrong is not None:
        own = wrong.path[:1] in _OWN_FIELDS
        field = ".".join(wrong.path if own else ("params", *wrong.path))
        raise JobError(f"request.{field}: {wrong.message}")


#: What of a request's params has a field of its own in the job file.
_OWN_FIELDS = (("model",), ("max_tokens",), ("system",), ("messages",))
