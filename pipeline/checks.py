"""Proves a job's `params` against the installed SDK's own request types, before money is spent. Pure.

The API checks params only while it works on a batch, so a misspelt field would cost an hour and fail every row.
"""

import collections.abc
import difflib
import types
import typing
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import orjson
import typing_extensions

from pipeline.errors import JobError
from pipeline.job import Job
from pipeline.requests import fixed_params

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
}


def check_params(job: Job) -> None:
    """Raises JobError that names the first field of `request` that the Messages API would not take."""
    for field, why in REFUSED.items():
        if field in job.request.params:
            raise JobError(f"request.params.{field}: {why}; remove the field")
    config = job.request.params.get("output_config", {})
    if not isinstance(config, dict):
        raise JobError(f"request.params.output_config: must be a mapping (it is {config!r})")
    if job.output.labels is not None and "format" in config:
        raise JobError("request.params.output_config.format: output.labels sets the format; remove one of the two")
    from anthropic.types.message_create_params import MessageCreateParamsNonStreaming

    _check(fixed_params(job) | {"messages": []}, MessageCreateParamsNonStreaming, ())
    budget = job.request.params.get("thinking", {}).get("budget_tokens")
    if budget is not None and budget >= job.request.max_tokens:
        raise JobError(
            f"request.params.thinking.budget_tokens: {budget} must be below max_tokens ({job.request.max_tokens})"
        )


class _Mismatch(Exception):
    def __init__(self, path: tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.path = path


def _check(value: object, hint: Any, path: tuple[str, ...]) -> None:
    try:
        _match(value, hint, path)
    except _Mismatch as exc:
        at = exc.path[0] if exc.path[:1] in (("model",), ("max_tokens",), ("system",)) else "params"
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
    """Of TypedDicts told apart by a literal `type`, those of the value's type; else all hints."""
    kinds = {h: get_args(_fields(h).get("type")) for h in hints if typing_extensions.is_typeddict(h)}
    if not isinstance(value, dict) or "type" not in value or not all(kinds.values()) or len(kinds) < len(hints):
        return list(hints)
    fitting = [hint for hint, known in kinds.items() if value["type"] in known]
    if not fitting:
        known = ", ".join(sorted(repr(kind) for group in kinds.values() for kind in group))
        raise _Mismatch((*path, "type"), f"must be one of {known} (it is {value['type']!r})")
    return fitting


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
