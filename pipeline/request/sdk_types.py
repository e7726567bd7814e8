"""Which field of a request would the Messages API refuse, by the request types of the SDK? Pure.

pydantic compares the request with the types. It takes more than the API does, so its schema is made stricter first, and
of the many errors that it finds in a union the one that helps is chosen.
"""

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from pydantic import TypeAdapter
from pydantic_core import ErrorDetails, PydanticCustomError, SchemaValidator, ValidationError, core_schema


class Mismatch(NamedTuple):
    """A value that does not have the type of its field. path: names of fields, numbers of items; message: why."""

    path: tuple[str, ...]
    message: str


def first_mismatch(params: Mapping[str, Any], *, beta: bool) -> Mismatch | None:
    """Return what the Messages API would refuse in a request's params; None if they have the SDK's type.

    beta: compare with the types of the beta API, which has more fields.
    """
    try:
        _validator(beta).validate_python(params)
    except ValidationError as exc:
        return _most_helpful(exc.errors(include_url=False), params)
    return None


@functools.cache
def _validator(beta: bool) -> SchemaValidator:
    """Return the validator for requests, by the SDK's types. beta: see first_mismatch."""
    params_type: Any
    if beta:
        from anthropic.types.beta.message_create_params import MessageCreateParamsNonStreaming as BetaParams

        params_type = BetaParams
    else:
        from anthropic.types.message_create_params import MessageCreateParamsNonStreaming

        params_type = MessageCreateParamsNonStreaming
    return SchemaValidator(_strict(TypeAdapter(params_type).core_schema))


def _strict(schema: Any) -> Any:
    """Return a core schema, or a part of one, that takes what the API takes.

    A configuration cannot do this: pydantic uses none for TypedDicts that bring their own, as some of the SDK's do, and
    leaves an Iterable unread.
    """
    if isinstance(schema, list | tuple):
        return type(schema)(map(_strict, schema))
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if kind == "model":  # an object of the SDK's, from an answer; a job file holds none
        return core_schema.is_instance_schema(schema["cls"], ref=schema.get("ref"))
    if kind == "any":
        return core_schema.no_info_plain_validator_function(_require_json)
    if kind == "json-or-python":
        return _strict(schema["json_schema"])
    strict = {key: _strict(value) for key, value in schema.items()}
    if kind in ("generator", "list"):
        return {**strict, "type": "list", "strict": False}  # so that a tuple is a list, too
    if kind == "typed-dict":
        strict["config"] = {"strict": True}
        if schema.get("extra_behavior") != "allow":
            refuse = functools.partial(_refuse_field, sorted(schema["fields"]))
            strict["extra_behavior"] = "allow"  # to be refused with a hint
            strict["extras_schema"] = core_schema.no_info_plain_validator_function(refuse)
    return strict


def _require_json(value: object) -> object:
    try:
        orjson.dumps(value)
    except TypeError as exc:
        raise PydanticCustomError("not_json", "cannot be sent as JSON: {reason}", {"reason": str(exc)}) from exc
    return value


def _refuse_field(known: Sequence[str], value: object) -> object:
    raise PydanticCustomError("unknown_field", "the Messages API has no such field", {"known": known})


# -- the error to tell -----------------------------------------------------------------------------------------------


def _most_helpful(errors: Sequence[ErrorDetails], params: Mapping[str, Any]) -> Mismatch:
    """Return the deepest error. Of a union's members those count that have the value's `type`, if any has it."""
    other_kinds = {error["loc"][:-1] for error in errors if _is_kind(error)}
    candidates = [(_path(error, params), error) for error in errors if not _is_inside(error, other_kinds)]
    path, best = max(candidates, key=lambda candidate: (len(candidate[0]), not _is_kind(candidate[1])))
    if _is_kind(best):
        expected = {word for at, error in candidates if at == path and _is_kind(error) for word in _expected(error)}
        return Mismatch(path, f"must be one of {', '.join(sorted(expected))} (it is {best['input']!r})")
    for at, error in candidates:  # a misspelt field explains the missing one
        if error["type"] == "unknown_field" and error["loc"][:-1] == best["loc"][:-1]:
            return Mismatch(at, _message(error))
    return Mismatch(path, _message(best))


def _is_kind(error: ErrorDetails) -> bool:
    """Return whether the value is of another kind than this member of a union, by its `type` or `role`."""
    return error["type"] == "literal_error" and error["loc"][-1] in ("type", "role")


def _is_inside(error: ErrorDetails, other_kinds: set[tuple[int | str, ...]]) -> bool:
    """Return whether an error is about the fields of a member that is of another kind than the value."""
    own = 1 if _is_kind(error) else 0
    return any(error["loc"][:n] in other_kinds for n in range(len(error["loc"]) - own))


def _path(error: ErrorDetails, params: Any) -> tuple[str, ...]:
    """Return where an error is, without what pydantic puts in between: the names of a union's members."""
    path: list[str] = []
    at: Any = params
    for part in error["loc"]:
        keys: Any = at if isinstance(at, dict) else range(len(at)) if isinstance(at, list | tuple) else ()
        if part in keys:
            at = at[part]
            path.append(str(part))
    return (*path, str(error["loc"][-1])) if error["type"] == "missing" else tuple(path)


_WANTED = {
    "dict_type": "a mapping",
    "list_type": "a list",
    "string_type": "str",
    "int_type": "int",
    "float_type": "float",
    "bool_type": "bool",
}


def _message(error: ErrorDetails) -> str:
    """Return what is wrong with the value, for the end of a sentence that begins with its field."""
    match error["type"]:
        case "missing":
            return "this field is required"
        case "unknown_field":
            known = error["ctx"]["known"]
            near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
            return error["msg"] + (f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(known)})")
        case "not_json":
            return error["msg"]
        case "literal_error":
            return f"must be one of {', '.join(_expected(error))} (it is {error['input']!r})"
        case kind if kind in _WANTED:
            return f"must be {_WANTED[kind]} (it is {error['input']!r})"
        case _:
            return f"is not a value that the Messages API accepts here (it is {error['input']!r})"


def _expected(error: ErrorDetails) -> list[str]:
    """Return the words that a field takes, in quotes."""
    return re.findall(r"'[^']*'", error["ctx"]["expected"])
