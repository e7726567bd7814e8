"""Which fields does a job have, of which types, with which defaults? The text that `help(Job)` shows. Pure."""

import inspect
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_NAMES = {str: "text", int: "whole number", float: "number", bool: "true | false", Any: "any value", type(None): ""}


def fields_text(model: type[BaseModel]) -> str:
    """Return a line for each field of a model and of its sections, each section after its description."""
    return "\n".join(["Fields, those that are required with a *:", "", *_lines(model, "")])


def _lines(model: type[BaseModel], path: str) -> Iterator[str]:
    """Yield the lines of a section. path: what is before the names of its fields, as `source.`."""
    for name, info in model.model_fields.items():
        name = f"{path}{info.alias or name}"
        yield f"{name}{'*' if info.is_required() else ''}: {_kind(info.annotation) or 'null'}{_default(info)}"
        for section, suffix in _sections(info.annotation):
            yield from (f"    {line}".rstrip() for line in (inspect.getdoc(section) or "").splitlines())
            yield from _lines(section, f"{name}{suffix}.")


def _default(info: FieldInfo) -> str:
    """Return the end of a line that gives a field's default; empty for a required field, and for a section."""
    default = info.default
    return "" if info.is_required() or isinstance(default, BaseModel) else f"; default {default!r}"


def _kind(annotation: Any) -> str:
    """Return the name of a type for people; empty for null."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(args[0])
    if origin is Literal:
        return " | ".join(str(value) for value in args)
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(filter(None, map(_kind, args))))
    if origin is Callable:
        return "function"
    if origin is list:
        return f"list of {_kind(args[0])}"
    if origin is dict:
        return f"mapping of {_kind(args[0])} to {_kind(args[1])}"
    return _NAMES.get(annotation, "section" if _is_section(annotation) else "mapping")


def _sections(annotation: Any, suffix: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    """Yield the sections in a type, each with what leads to it: `.N` in a list, `.NAME` in a mapping."""
    if _is_section(annotation):
        yield annotation, suffix
    more = {list: ".N", dict: ".NAME"}.get(get_origin(annotation), "")
    for part in get_args(annotation):
        yield from _sections(part, suffix + more)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
