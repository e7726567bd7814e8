"""Would the Messages API accept the requests of this job? Answered before money is spent. Pure.

The API checks params only when it processes a batch. Without this check a misspelt field would fail every row after an
hour.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from pipeline.answer.outcome import answer_schema, client_tools, output_columns, tools_in
from pipeline.errors import JobError
from pipeline.job.json_schema import did_you_mean
from pipeline.job.model import Job
from pipeline.job.rounds import Rounds
from pipeline.job.schema_rules import first_problem
from pipeline.money.budget import COMPACTION, context_edits
from pipeline.request.breakpoints import cached_prefix
from pipeline.request.build import fixed_params, shared
from pipeline.request.sdk_types import first_mismatch

#: Fields of the Messages API that `request.params` may not have, and why.
REFUSED = {
    "temperature": "API version 2026-10-21 refuses sampling parameters; use the prompt or output_config.effort instead",
    "top_p": "API version 2026-10-21 refuses sampling parameters; use the prompt or output_config.effort instead",
    "top_k": "API version 2026-10-21 refuses sampling parameters; use the prompt or output_config.effort instead",
    "stream": "a batch has no streaming",
    "speed": "a batch has no fast mode",
    "messages": "the messages are built from request.prompt",
    "model": "request.model sets this",
    "max_tokens": "request.max_tokens sets this",
    "system": "request.system sets this",
    "betas": "request.betas sets this",
    "workspace_id": "this is a header, which the SDK reads from its own settings",
    "fallbacks": "a batch has no fallbacks; retry.change asks another model",
    "fallback_credit_token": "a batch has no fallbacks; retry.change asks another model",
    "thread": "a batch has no threads",
}


def check_params(job: Job) -> None:
    """Raise JobError for the first field of `request` or `output` that the Messages API would refuse."""
    check_fields(job)
    check_types(job)


def check_fields(job: Job) -> None:
    """Raise JobError for a field of `request` or `output` that is refused whatever the installed SDK knows."""
    request, output = job.request, job.output
    for field, why in REFUSED.items():
        if field in request.params:
            raise JobError(f"request.params.{field}: {why}; remove the field")
    config = request.params.get("output_config", {})
    if not isinstance(config, dict):
        raise JobError(f"request.params.output_config: must be a mapping (it is {config!r})")
    format_field = next(
        (name for name in ("labels", "schema") if getattr(output, name.replace("schema", "schema_"))), None
    )
    if format_field is not None and "format" in config:
        raise JobError(
            f"request.params.output_config.format: output.{format_field} sets the format; remove one of the two"
        )
    _check_output(job)
    _check_rounds(job)
    _check_cache(job)
    _check_compaction(job)
    if isinstance(request.max_tokens, int):
        _check_thinking_budget(request.params, request.max_tokens)


def _example_params(job: Job) -> dict[str, Any]:
    """Return params as every request has them, with a valid value for all that depends on the row."""
    params = {"model": "a model", "max_tokens": 1, **fixed_params(job)}
    turns = [turn.model_dump() for turn in job.request.messages]
    return params | {"messages": [*turns, {"role": "user", "content": "a prompt"}]}


def _check_output(job: Job) -> None:
    """Raise JobError if the schema, the labels or the tool of the answer cannot be used."""
    answer_schema(job)
    for i, tool in enumerate(tools_in(job.request.params)):
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
    answer_format = fixed_params(job).get("output_config", {}).get("format")
    if answer_format is not None:
        _check_format(job, answer_format)


def _check_rounds(job: Job) -> None:
    """Raise JobError if the tools of `rounds` are not the client tools of the request, or no round could be the last.

    Whether their functions can be called, `tools.proof` says.
    """
    if not job.rounds.tools:
        if job.rounds.model_copy(update={"folder": None}) != Rounds() and not job.retry.change.continues_pauses:
            raise JobError(
                "rounds: without tools, and without retry.change.paused, each row has one round; add rounds.tools, or "
                "remove rounds"
            )
        return
    if job.output.tool is not None:
        raise JobError(
            f"rounds: output.tool forces {job.output.tool} in every answer, so that no other tool can be asked for; "
            "remove rounds, or give the answer a schema (output.schema) in place of output.tool"
        )
    choice = job.request.params.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") in ("any", "tool"):
        raise JobError(
            "rounds: request.params.tool_choice forces a tool in every answer, so that no round could be the last; "
            "remove one of the two"
        )
    names = [str(tool.get("name")) for tool in client_tools(job.request.params)]
    for name in job.rounds.tools:
        if name not in names:
            hint = did_you_mean(name, names) or f" (it has: {', '.join(names) or 'none'})"
            raise JobError(
                f"rounds.tools.{name}: request.params.tools has no tool {name!r} for the client to run{hint}"
            )
    for name in names:
        if name not in job.rounds.tools:
            raise JobError(
                f"rounds.tools: the tool {name!r} of request.params.tools has no function; add {name}: MODULE.FUNCTION"
            )


def _check_format(job: Job, answer_format: Any) -> None:
    """Raise JobError if the format of the answer cannot be used, whichever field asks for it."""
    if (
        job.output.labels is None
        and job.output.schema_ is None
        and isinstance(answer_format, dict)
        and "schema" in answer_format
    ):
        problem = first_problem(answer_format["schema"])
        if problem is not None:
            raise JobError(f"request.params.output_config.format.schema: {problem}")
    cited = any(attachment.citations for attachment in job.request.attachments)
    turns = orjson.dumps([turn.model_dump() for turn in job.request.messages])
    if cited or b'"citations":{"enabled":true}' in turns:
        field = "request.attachments" if cited else "request.messages"
        raise JobError(
            f"{field}: the API does not allow citations together with a format of the answer (output.labels, "
            "output.schema or output_config.format); remove one of the two"
        )


def _check_cache(job: Job) -> None:
    """Raise JobError if request.cache has nothing to cache, or if there are too many breakpoints."""
    if job.request.cache is not None and cached_prefix(job) is None:
        raise JobError(
            "request.cache: the requests share no text before the prompt, so there is nothing to cache; put what they "
            "share into request.system or request.messages, or remove request.cache"
        )
    params, turns = shared(job)
    of_rows = [turn.model_dump() for turn in job.request.messages[len(turns) :]]
    breakpoints = orjson.dumps([params, turns, of_rows]).count(b'"cache_control":{')
    if job.request.cache is not None and job.rounds.tools:
        breakpoints += 1  # later rounds have one behind the results of the tools
    if breakpoints > MAX_BREAKPOINTS:
        field = "request:" if job.request.cache is None else "request.cache: with those that it adds,"
        raise JobError(
            f"{field} {breakpoints} blocks have cache_control, and the API accepts {MAX_BREAKPOINTS}; remove some"
        )


def _check_compaction(job: Job) -> None:
    """Raise JobError if a conversation is to be summarized without the beta, or at too few tokens."""
    for i, edit in enumerate(context_edits(job.request.params)):
        if edit.get("type") != COMPACTION:
            continue
        field = f"request.params.context_management.edits.{i}"
        if COMPACTION_BETA not in job.request.betas:
            raise JobError(f"{field}: {COMPACTION} needs the beta {COMPACTION_BETA}; add it to request.betas")
        trigger = edit.get("trigger")
        tokens = trigger.get("value") if isinstance(trigger, dict) else None
        if isinstance(tokens, int) and tokens < LEAST_TRIGGER:
            raise JobError(f"{field}.trigger.value: {tokens} is less than {LEAST_TRIGGER:,}, the minimum; raise it")


COMPACTION_BETA = "compact-2026-01-12"
LEAST_TRIGGER = 50_000  # input tokens; source: platform.claude.com/docs/en/build-with-claude/compaction-threshold
MAX_BREAKPOINTS = 4  # source: platform.claude.com/docs/en/build-with-claude/prompt-caching


def _check_thinking_budget(params: Mapping[str, Any], max_tokens: int) -> None:
    thinking = params.get("thinking", {})
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    if isinstance(budget, int) and budget >= max_tokens:  # another type is refused by `check_types`
        raise JobError(f"request.params.thinking.budget_tokens: {budget} must be below max_tokens ({max_tokens})")


def check_types(job: Job) -> None:
    """Raise JobError for the first field whose value does not have the SDK's type."""
    mismatch = first_mismatch(_example_params(job), beta=bool(job.request.betas))
    if mismatch is not None:
        own = mismatch.path[:1] in _OWN_FIELDS
        field = ".".join(mismatch.path if own else ("params", *mismatch.path))
        raise JobError(f"request.{field}: {mismatch.message}")


#: The params that have their own field in the job file's `request`.
_OWN_FIELDS = (("model",), ("max_tokens",), ("system",), ("messages",))
