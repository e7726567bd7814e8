"""Proves what a job asks against the SDK's request types and the models' capabilities, before money is spent.

The API checks params only while it works on a batch, so a misspelt field would cost an hour and fail every row.
"""

import collections.abc
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import orjson
import typing_extensions

from pipeline.answer.outcome import answer_schema, output_columns, tools_in
from pipeline.errors import JobError
from pipeline.job.model import Job
from pipeline.job.schema_rules import first_problem
from pipeline.request.build import fixed_params, shared

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
    _check(_example(job), _params_type(job), ())
    if isinstance(request.max_tokens, int):
        _check_budget(request.params, request.max_tokens)


def _params_type(job: Job) -> Any:
    """The SDK's type of the params: with a beta, of its beta API."""
    if job.request.betas:
        from anthropic.types.beta.message_create_params import MessageCreateParamsNonStreaming as BetaParams

        return BetaParams
    from anthropic.types.message_create_params import MessageCreateParamsNonStreaming

    return MessageCreateParamsNonStreaming


def _example(job: Job) -> dict[str, Any]:
    """The params as every request has them; what each row gives is filled in so that it fits."""
    params = {"model": "a model", "max_tokens": 1, **fixed_params(job)}
    turns = [turn.model_dump() for turn in job.request.messages]
    return params | {"messages": [*turns, {"role": "user", "content": "a prompt"}]}


def _check_output(job: Job) -> None:
    """The schema or tool of the answer."""
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


class _Mismatch(Exception):
    def __init__(self, path: tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.path = path


_OWN_FIELDS = (("model",), ("max_tokens",), ("system",), ("messages",))


def _check(value: object, hint: Any, path: tuple[str, ...]) -> None:
    try:
        _match(value, hint, path)
    except _Mismatch as exc:
        at = exc.path[0] if exc.path[:1] in _OWN_FIELDS else "params"
        inside = ".".join(exc.path if at == "params" else exc.path[1:])
        where = f"request.{at}" + (f".{inside}" if inside else "")
        raise JobError(f"{where}: {exc}") from None


def _match(value: object, hint: Any, path: tuple[str, ...]) -> None:
    """Raises _Mismatch unless `value` has the shape that the type `hint` describes."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (typing_extensions.Required, typing_extensions.NotRequired, typing.Annotated):
        _match(value, arguments[0], path)
    elif hint in (Any, object):
        _match_json(value, path)
    elif origin in (Union, types.UnionType):
        _match_any(value, arguments, path)
    elif origin is Literal:
        if value not in arguments:
            raise _Mismatch(path, f"must be one of {', '.join(map(repr, arguments))} (it is {value!r})")
    elif typing_extensions.is_typeddict(hint):
        _match_fields(value, hint, path)
    elif _is_array(hint, origin):
        if not isinstance(value, list | tuple):
            raise _Mismatch(path, f"must be a list (it is {value!r})")
        for i, item in enumerate(value):
            _match(item, arguments[0] if arguments else object, (*path, str(i)))
    elif origin in (dict, collections.abc.Mapping) or hint is dict:
        if not isinstance(value, dict):
            raise _Mismatch(path, f"must be a mapping (it is {value!r})")
        for key, item in value.items():
            _match(item, arguments[1] if arguments else object, (*path, str(key)))
    else:
        _match_plain(value, hint, path)


def _match_json(value: object, path: tuple[str, ...]) -> None:
    """Anything goes that JSON can carry."""
    try:
        orjson.dumps(value)
    except TypeError as exc:
        raise _Mismatch(path, f"cannot be sent as JSON: {exc}") from exc


def _is_array(hint: Any, origin: Any) -> bool:
    arrays = (list, collections.abc.Iterable, collections.abc.Sequence)
    return origin in arrays or getattr(origin, "__name__", "") == "SequenceNotStr"


def _match_plain(value: object, hint: Any, path: tuple[str, ...]) -> None:
    if hint is type(None):
        good = value is None
    elif hint is float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
    elif hint is int:
        good = isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(hint, type):
        good = isinstance(value, hint)
    else:
        return  # a kind of hint that the SDK does not use today: better no verdict than a wrong one
    if not good:
        raise _Mismatch(path, f"must be {getattr(hint, '__name__', hint)} (it is {value!r})")


def _match_any(value: object, hints: tuple[Any, ...], path: tuple[str, ...]) -> None:
    """The union's member that fits; if none does, the complaint that went deepest tells the most."""
    deepest: _Mismatch | None = None
    for hint in _of_same_type(value, hints, path):
        try:
            return _match(value, hint, path)
        except _Mismatch as exc:
            if deepest is None or len(exc.path) > len(deepest.path):
                deepest = exc
    raise deepest or _Mismatch(path, f"is not what the Messages API takes here (it is {value!r})")


def _of_same_type(value: object, hints: tuple[Any, ...], path: tuple[str, ...]) -> list[Any]:
    """Of TypedDicts told apart by a literal `type` or `role`, those of the value's; else all hints."""
    tag = next((tag for tag in ("type", "role") if isinstance(value, dict) and tag in value), None)
    if tag is None:
        return list(hints)
    assert isinstance(value, dict)
    # beside TypedDicts there are the classes of answers, which no job file holds
    kinds = {h: get_args(_fields(h).get(tag)) for h in hints if typing_extensions.is_typeddict(h)}
    others = [h for h in hints if h not in kinds and not _are_classes(h)]
    if not kinds or not all(kinds.values()) or others:
        return list(hints)
    fitting = [hint for hint, known in kinds.items() if value[tag] in known]
    if not fitting:
        known = ", ".join(sorted(repr(kind) for group in kinds.values() for kind in group))
        raise _Mismatch((*path, tag), f"must be one of {known} (it is {value[tag]!r})")
    return fitting


def _are_classes(hint: Any) -> bool:
    """Whether the type is a class, or a union of classes."""
    plain = _unwrapped(hint)
    members = get_args(plain) if get_origin(plain) in (Union, types.UnionType) else (plain,)
    return all(isinstance(member, type) for member in members)


def _match_fields(value: object, hint: Any, path: tuple[str, ...]) -> None:
    if not isinstance(value, dict):
        raise _Mismatch(path, f"must be a mapping (it is {value!r})")
    fields = _fields(hint)
    for name in value:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hinted = f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(sorted(fields))})"
            raise _Mismatch((*path, str(name)), f"the Messages API has no such field{hinted}")
    for name in sorted(_required(hint) - value.keys()):
        raise _Mismatch((*path, name), "this field is required")
    for name, item in value.items():
        _match(item, fields[name], (*path, str(name)))


def _fields(hint: Any) -> dict[str, Any]:
    return {name: _unwrapped(field) for name, field in get_type_hints(hint, include_extras=True).items()}


def _required(hint: Any) -> set[str]:
    """The fields that must be there. The SDK's types say so in texts, which __required_keys__ does not look into."""
    hints = get_type_hints(hint, include_extras=True).items()
    return {name for name, field in hints if get_origin(field) is typing_extensions.Required} | set(
        hint.__required_keys__
    )


def _unwrapped(hint: Any) -> Any:
    while get_origin(hint) in (typing_extensions.Required, typing_extensions.NotRequired, typing.Annotated):
        hint = get_args(hint)[0]
    return hint
