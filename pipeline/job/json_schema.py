"""Walks a JSON Schema: references, alternatives, types, and where it is not valid. Pure."""

import difflib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import jsonschema_rs
import orjson

if TYPE_CHECKING:
    from jsonschema import SchemaError

TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")


class SchemaProblem(Exception):
    """A schema, or a rename of its properties, that cannot be used. The message does not name the job file's field."""


def as_json(schema: object) -> Any:
    """The schema as plain JSON values. Raises SchemaProblem if it is none."""
    try:
        plain = orjson.loads(orjson.dumps(schema))
    except TypeError as exc:
        raise SchemaProblem(f"the schema cannot be sent as JSON: {exc}") from exc
    if not isinstance(plain, dict):
        raise SchemaProblem(f"the schema must be a mapping (it is {plain!r})")
    return plain


def invalid(schema: dict[str, Any]) -> Iterator[str]:
    """What makes it no JSON Schema, or none that answers can be judged by."""
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as exc:
        yield at_path(exc.absolute_path, _misfit(exc))
    for path, ref in _refs(schema, ()):
        try:
            _flat({"$ref": ref}, schema)
        except SchemaProblem as exc:
            yield at_path(path, str(exc))
    try:
        compiled(schema)
    except jsonschema_rs.ValidationError as exc:  # the two validators know slightly different regular expressions
        yield at_path(
            exc.instance_path, _no_expression(exc.instance) if exc.instance_path[-1:] == ["pattern"] else exc.message
        )


def _misfit(error: "SchemaError") -> str:
    keyword = error.absolute_path[-1] if error.absolute_path else None
    if keyword == "type" and isinstance(error.instance, str):
        return f"JSON Schema has no type {error.instance!r}{did_you_mean(error.instance, TYPES)}"
    if error.validator == "format" and keyword == "pattern":
        return _no_expression(error.instance)
    return in_short(error.message)


def _no_expression(pattern: object) -> str:
    return f"{pattern!r} is no regular expression that JSON Schema knows"


def _refs(node: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each `$ref` of the schema and its path."""
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield (*path, "$ref"), node["$ref"]
        children = node.items()
    elif isinstance(node, list):
        children = enumerate(node)
    for key, child in children:
        yield from _refs(child, (*path, str(key)))


def alternatives(node: Any, root: dict[str, Any], seen: frozenset[str] = frozenset()) -> Iterator[dict[str, Any]]:
    """What a value may be beside null, each with one type at most. root: the schema that `$ref` points into."""
    flat, seen = _flat(node, root, seen)
    for word in ("anyOf", "oneOf"):
        if word in flat:
            beside = {key: value for key, value in flat.items() if key != word}
            for branch in flat[word]:
                other, followed = _flat(branch, root, seen)
                yield from alternatives({**beside, **other}, root, followed)
            return
    if "type" not in flat:
        yield flat
    for kind in listed(flat.get("type")):
        if kind != "null":
            yield {**flat, "type": kind}


def _flat(node: Any, root: dict[str, Any], seen: frozenset[str] = frozenset()) -> tuple[dict[str, Any], frozenset[str]]:
    """A part of the schema with what its `$ref` and `allOf` name merged into it, and all refs that were followed.

    Raises SchemaProblem for a `$ref` that leads nowhere, or back to where it came from.
    """
    flat = dict(node) if isinstance(node, dict) else {}  # true: anything goes
    while "$ref" in flat:
        ref = flat.pop("$ref")
        if ref in seen:
            raise SchemaProblem(f"{ref!r} leads back to itself")
        seen |= {ref}
        flat = {**target_of(ref, root), **flat}
    for part in flat.pop("allOf", ()):
        other, _ = _flat(part, root, seen)
        both = {**flat.get("properties", {}), **other.get("properties", {})}
        flat = {**flat, **other, **({"properties": both} if both else {})}
    return flat, seen


def target_of(ref: str, root: dict[str, Any]) -> dict[str, Any]:
    """The part of the schema that a `#/...` pointer names."""
    if not ref.startswith("#"):
        raise SchemaProblem(f"{ref!r} points outside of the schema; copy what it names to $defs, and write #/$defs/...")
    node: Any = root
    for part in unquote(ref).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        else:
            node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict) or not (ref == "#" or ref.startswith("#/")):
        known = [f"#/{word}/{name}" for word in ("$defs", "definitions") for name in root.get(word, ())]
        raise SchemaProblem(f"{ref!r} names nothing in the schema{did_you_mean(ref, known)}")
    return node


def listed(types: Any) -> list[Any]:
    return types if isinstance(types, list) else [] if types is None else [types]


def compiled(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """Raises jsonschema_rs.ValidationError for what it cannot use. Formats are left to structured outputs."""
    return jsonschema_rs.Draft202012Validator(schema, validate_formats=False, offline=True)


def at_path(path: Iterable[Any], said: str) -> str:
    where = ".".join(str(part) for part in path)
    return f"{where}: {said}" if where else said


def in_short(text: str, limit: int = 300) -> str:
    """A text without its middle if it is long: answers stand in messages, and may be pages."""
    return text if len(text) <= limit else f"{text[: limit * 2 // 3]} ... {text[-limit // 3 :]}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
