"""Check a JSON Schema, follow its references and list the alternatives that it allows. Pure."""

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
    """A schema, or the column names for its properties, cannot be used. The message does not name the job's field."""


def as_json(schema: object) -> Any:
    """Return the schema as plain JSON values. Raises SchemaProblem if it is not a mapping that JSON can represent."""
    try:
        plain = orjson.loads(orjson.dumps(schema))
    except TypeError as exc:
        raise SchemaProblem(f"the schema cannot be sent as JSON: {exc}") from exc
    if not isinstance(plain, dict):
        raise SchemaProblem(f"the schema must be a mapping (it is {plain!r})")
    return plain


def schema_errors(schema: dict[str, Any]) -> Iterator[str]:
    """Yield each problem that makes the schema invalid, or unusable to check answers: its path and a sentence."""
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as exc:
        yield at_path(exc.absolute_path, _explanation(exc))
    for path, ref in _refs(schema, ()):
        try:
            _merged({"$ref": ref}, schema)
        except SchemaProblem as exc:
            yield at_path(path, str(exc))
    try:
        compiled(schema)
    except jsonschema_rs.ValidationError as exc:  # the two validators accept slightly different regular expressions
        yield at_path(
            exc.instance_path, _bad_pattern(exc.instance) if exc.instance_path[-1:] == ["pattern"] else exc.message
        )


def _explanation(error: "SchemaError") -> str:
    """Return what is wrong, without the path: clearer than jsonschema's message for types and patterns."""
    keyword = error.absolute_path[-1] if error.absolute_path else None
    if keyword == "type" and isinstance(error.instance, str):
        return f"JSON Schema has no type {error.instance!r}{did_you_mean(error.instance, TYPES)}"
    if error.validator == "format" and keyword == "pattern":
        return _bad_pattern(error.instance)
    return shortened(error.message)


def _bad_pattern(pattern: object) -> str:
    return f"{pattern!r} is not a valid regular expression of JSON Schema"


def _refs(node: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path and the value of each `$ref` in a part of the schema. path: of this part."""
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
    """Yield a schema for each kind of value that a part of the schema allows, except null.

    Each has at most one `type`, and no `$ref`, `anyOf`, `oneOf` or `allOf`; none at all if only null is allowed.
    node: the part; root: the whole schema, into which `$ref` points; seen: the refs that led to `node`.
    Raises SchemaProblem for a `$ref` to nothing, or to itself.
    """
    merged, seen = _merged(node, root, seen)
    for word in ("anyOf", "oneOf"):
        if word in merged:
            shared = {key: value for key, value in merged.items() if key != word}
            for branch in merged[word]:
                other, followed = _merged(branch, root, seen)
                yield from alternatives({**shared, **other}, root, followed)
            return
    if "type" not in merged:
        yield merged
    for kind in type_names(merged.get("type")):
        if kind != "null":
            yield {**merged, "type": kind}


def _merged(
    node: Any, root: dict[str, Any], seen: frozenset[str] = frozenset()
) -> tuple[dict[str, Any], frozenset[str]]:
    """Merge what `$ref` and `allOf` name into a part of the schema; return it and all refs that were followed.

    Raises SchemaProblem for a `$ref` to nothing, or to itself.
    """
    merged = dict(node) if isinstance(node, dict) else {}  # true allows any value
    while "$ref" in merged:
        ref = merged.pop("$ref")
        if ref in seen:
            raise SchemaProblem(f"{ref!r} refers to itself")
        seen |= {ref}
        merged = {**target_of(ref, root), **merged}
    for part in merged.pop("allOf", ()):
        other, _ = _merged(part, root, seen)
        both = {**merged.get("properties", {}), **other.get("properties", {})}
        merged = {**merged, **other, **({"properties": both} if both else {})}
    return merged, seen


def target_of(ref: str, root: dict[str, Any]) -> dict[str, Any]:
    """Return the part of the schema `root` that a pointer like `#/$defs/a` names. Raises SchemaProblem for no part."""
    if not ref.startswith("#"):
        raise SchemaProblem(f"{ref!r} points outside of the schema; copy its target to $defs, and write #/$defs/...")
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


def type_names(types: Any) -> list[Any]:
    """Return the value of a schema's `type` as a list: one name becomes a list of one, None an empty list."""
    return types if isinstance(types, list) else [] if types is None else [types]


def compiled(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """Return a validator for the schema. It does not check `format`, which structured outputs enforce.

    Raises jsonschema_rs.ValidationError for a schema that it cannot use.
    """
    return jsonschema_rs.Draft202012Validator(schema, validate_formats=False, offline=True)


def at_path(path: Iterable[Any], problem: str) -> str:
    """Return the problem with its path in front, like "properties.a: must be ..."; no path for the whole schema."""
    dotted = ".".join(str(part) for part in path)
    return f"{dotted}: {problem}" if dotted else problem


def shortened(text: str, limit: int = 300) -> str:
    """Return the text, without its middle if it is longer than `limit` characters, for messages that quote answers."""
    return text if len(text) <= limit else f"{text[: limit * 2 // 3]} ... {text[-limit // 3 :]}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint for the end of a message that names the most similar known word; empty if none is similar."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
