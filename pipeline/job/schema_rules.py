"""Find the parts of a JSON Schema that the API refuses in structured outputs and tools. Pure."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.job.json_schema import SchemaProblem, as_json, at_path, did_you_mean, schema_errors, target_of, type_names

MAX_OPTIONAL, MAX_UNIONS = 24, 16  # optional properties and unions in one schema
FORMATS = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")

_DESCRIBE = "say it in the description"
#: Keywords that structured outputs do not support, and what to do instead.
_REFUSED = {
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), _DESCRIBE),
    **dict.fromkeys(("minLength", "maxLength"), _DESCRIBE),
    **dict.fromkeys(("maxItems", "uniqueItems", "contains", "minContains", "maxContains"), _DESCRIBE),
    **dict.fromkeys(("prefixItems", "additionalItems"), "make it an object with a property for each position"),
    **dict.fromkeys(("minProperties", "maxProperties", "patternProperties", "propertyNames"), _DESCRIBE),
    **dict.fromkeys(("unevaluatedProperties", "unevaluatedItems"), "remove it"),
    **dict.fromkeys(("not", "if", "then", "else"), _DESCRIBE),
    **dict.fromkeys(("dependentSchemas", "dependentRequired", "dependencies"), _DESCRIBE),
    **dict.fromkeys(("$dynamicRef", "$recursiveRef"), "write $ref"),
    "oneOf": "write anyOf",
}
_SUPPORTED = (
    *("$defs", "$ref", "additionalProperties", "allOf", "anyOf", "const", "description", "enum", "format", "items"),
    *("minItems", "pattern", "properties", "required", "title", "type"),
)
#: Parts of a regular expression to look at: escapes and character classes as a whole, and unsupported features.
_PATTERN_PART = re.compile(r"\[(?:\\.|[^\]\\])*\]|\\k<|\\.|\(\?P=|\(\?<?[=!]", re.DOTALL)


def first_problem(schema: object, *, strict: bool = True) -> str | None:
    """Return the first problem for which the API would refuse a schema; None if it accepts the schema.

    The problem is one sentence with the path, the keyword and what to do.
    strict: whether the schema is for structured outputs or a strict tool; else it is the input_schema of another tool.
    Source of the rules: platform.claude.com/docs/en/build-with-claude/structured-outputs
    """
    try:
        return next(_problems(as_json(schema), strict), None)
    except SchemaProblem as exc:
        return str(exc)


def _problems(schema: Any, strict: bool) -> Iterator[str]:
    """Yield all problems of a schema, as sentences. strict: see first_problem."""
    yield from schema_errors(schema)
    if strict:
        yield from _walk(schema, (), _WholeSchema(schema))
    elif schema.get("type") != "object":
        yield f"type: the input_schema of a tool must be of type object (it is {schema.get('type')!r})"


@dataclass
class _WholeSchema:
    """The whole schema during a walk, and the optional properties and unions that were counted so far."""

    root: dict[str, Any]
    optional: int = 0
    unions: int = 0


def _walk(node: Any, path: tuple[str, ...], whole: _WholeSchema, refs: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the problems of a part of the schema. path: of the part; refs: the `$ref`s that led to it."""
    if not isinstance(node, dict):
        yield at_path(path, f"structured outputs need a mapping here (it is {orjson.dumps(node).decode()})")
        return
    yield from _keyword_problems(node, path)
    if "$ref" in node:
        yield from _walk_ref(node["$ref"], path, whole, refs)
        return
    properties = node.get("properties", {})
    whole.optional += len(properties.keys() - set(node.get("required", ())))
    whole.unions += isinstance(node.get("type"), list) or "anyOf" in node
    if whole.optional > MAX_OPTIONAL:
        yield f"structured outputs support at most {MAX_OPTIONAL} optional properties; name more of them in `required`"
    if whole.unions > MAX_UNIONS:
        yield (
            f"structured outputs support at most {MAX_UNIONS} unions (anyOf, or a list of types); "
            "give some of them a single type"
        )
    for name, child in properties.items():
        yield from _walk(child, (*path, "properties", name), whole, refs)
    for word in ("anyOf", "allOf"):
        for i, child in enumerate(node.get(word, ())):
            yield from _walk(child, (*path, word, str(i)), whole, refs)
    if "items" in node:
        yield from _walk(node["items"], (*path, "items"), whole, refs)


def _walk_ref(ref: str, path: tuple[str, ...], whole: _WholeSchema, refs: tuple[str, ...]) -> Iterator[str]:
    """Yield the problems of a `$ref`, and of the part that it names. path: of the mapping that has the `$ref`."""
    here = (*path, "$ref")
    if ref in refs:
        yield at_path(
            here,
            f"structured outputs do not support recursion, and {ref} contains itself; "
            "write out as many levels as you need",
        )
    if path[-2:-1] == ("allOf",):
        yield at_path(
            here, "structured outputs do not support `$ref` inside of allOf; write the $ref instead of the allOf"
        )
    inside = () if ref == "#" else tuple(ref.removeprefix("#/").split("/"))
    yield from _walk(target_of(ref, whole.root), inside, whole, (*refs, ref))


def _keyword_problems(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Yield the problems of the keywords of this part, without the parts inside it."""
    for word in node:
        if word in _REFUSED:
            yield at_path((*path, word), f"structured outputs do not support `{word}`; {_REFUSED[word]}")
        elif word not in _SUPPORTED and difflib.get_close_matches(word, _SUPPORTED, n=1, cutoff=0.8):
            yield at_path((*path, word), f"JSON Schema has no such keyword{did_you_mean(word, _SUPPORTED)}")
    if node.get("minItems", 0) not in (0, 1):
        yield at_path(
            (*path, "minItems"), f"structured outputs support only 0 or 1 (it is {node['minItems']}); {_DESCRIBE}"
        )
    if node.get("format", "date") not in FORMATS:
        yield at_path(
            (*path, "format"),
            f"structured outputs do not support the format {node['format']!r} "
            f"(known: {', '.join(FORMATS)}); {_DESCRIBE}",
        )
    if feature := _unsupported_feature(node.get("pattern", "")):
        yield at_path((*path, "pattern"), f"structured outputs do not support {feature} in a pattern; {_DESCRIBE}")
    yield from _value_problems(node, path)
    yield from _object_problems(node, path)


def _value_problems(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Yield the problems of the values that `enum` and `const` list."""
    if node.get("enum") == []:
        yield at_path((*path, "enum"), "must contain at least one value")
    for word, values in (("enum", node.get("enum", ())), ("const", [node.get("const")])):
        for value in values:
            if isinstance(value, dict | list):
                problem = f"structured outputs support only texts, numbers, booleans and null here (not {value!r})"
                yield at_path((*path, word), problem)


def _object_problems(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Yield the problems of an object: other properties are allowed, or a required one is not declared."""
    properties = node.get("properties", {})
    is_object = "properties" in node or "object" in type_names(node.get("type"))
    if is_object and node.get("additionalProperties") is not False:
        problem = "must be false" if "additionalProperties" in node else "must be present and false"
        yield at_path((*path, "additionalProperties"), f"{problem} on each object of structured outputs")
    if is_object and "allOf" not in node:
        for name in node.get("required", ()):
            if name not in properties:
                yield at_path((*path, "required"), f"there is no property {name!r}{did_you_mean(name, properties)}")


def _unsupported_feature(pattern: str) -> str | None:
    """Return the first feature of a pattern that structured outputs do not support; None if it has no such feature."""
    for part in _PATTERN_PART.findall(pattern):
        if part in ("(?=", "(?!"):
            return "lookahead"
        if part in ("(?<=", "(?<!"):
            return "lookbehind"
        if part in ("(?P=", r"\k<") or re.fullmatch(r"\\[1-9]", part):
            return "backreference"
        if part in (r"\b", r"\B"):
            return "word boundary"
    return None
