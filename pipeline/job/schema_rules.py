"""Which parts of JSON Schema does the API refuse in structured outputs? Pure."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.job.json_schema import SchemaProblem, as_json, at_path, did_you_mean, invalid, listed, target_of

MAX_OPTIONAL, MAX_UNIONS = 24, 16
FORMATS = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")

_DESCRIBE = "say it in the description"
#: Keywords that structured outputs do not take, and what to do instead.
_REFUSED = {
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), _DESCRIBE),
    **dict.fromkeys(("minLength", "maxLength"), _DESCRIBE),
    **dict.fromkeys(("maxItems", "uniqueItems", "contains", "minContains", "maxContains"), _DESCRIBE),
    **dict.fromkeys(("prefixItems", "additionalItems"), "make it an object with a property for each place"),
    **dict.fromkeys(("minProperties", "maxProperties", "patternProperties", "propertyNames"), _DESCRIBE),
    **dict.fromkeys(("unevaluatedProperties", "unevaluatedItems"), "remove it"),
    **dict.fromkeys(("not", "if", "then", "else"), _DESCRIBE),
    **dict.fromkeys(("dependentSchemas", "dependentRequired", "dependencies"), _DESCRIBE),
    **dict.fromkeys(("$dynamicRef", "$recursiveRef"), "write $ref"),
    "oneOf": "write anyOf",
}
_TAKEN = (
    *("$defs", "$ref", "additionalProperties", "allOf", "anyOf", "const", "description", "enum", "format", "items"),
    *("minItems", "pattern", "properties", "required", "title", "type"),
)
#: What structured outputs do not take of regular expressions; escapes and character classes are skipped as a whole.
_PATTERN_PART = re.compile(r"\[(?:\\.|[^\]\\])*\]|\\k<|\\.|\(\?P=|\(\?<?[=!]", re.DOTALL)


def refused(schema: object, *, strict: bool = True) -> str | None:
    """The first thing in a schema that the API would refuse: its path, the keyword, what to do. None if it takes all.

    strict: as a schema of structured outputs, or of a strict tool; else as the input_schema of an ordinary tool.
    Source of the rules: platform.claude.com/docs/en/build-with-claude/structured-outputs
    """
    try:
        return next(_problems(as_json(schema), strict), None)
    except SchemaProblem as exc:
        return str(exc)


def _problems(schema: Any, strict: bool) -> Iterator[str]:
    yield from invalid(schema)
    if strict:
        yield from _walk(schema, (), _Strict(schema))
    elif schema.get("type") != "object":
        yield f"type: the input_schema of a tool must be of type object (it is {schema.get('type')!r})"


@dataclass
class _Strict:
    """What a walk through a schema of structured outputs knows of the whole."""

    root: dict[str, Any]
    optional: int = 0
    unions: int = 0


def _walk(node: Any, path: tuple[str, ...], whole: _Strict, refs: tuple[str, ...] = ()) -> Iterator[str]:
    """What structured outputs refuse of a part of the schema. refs: those that led here."""
    if not isinstance(node, dict):
        yield at_path(path, f"structured outputs take a mapping here (it is {orjson.dumps(node).decode()})")
        return
    yield from _own_problems(node, path)
    if "$ref" in node:
        yield from _walk_ref(node["$ref"], path, whole, refs)
        return
    properties = node.get("properties", {})
    whole.optional += len(properties.keys() - set(node.get("required", ())))
    whole.unions += isinstance(node.get("type"), list) or "anyOf" in node
    if whole.optional > MAX_OPTIONAL:
        yield f"structured outputs take {MAX_OPTIONAL} optional properties at most; name more of them in `required`"
    if whole.unions > MAX_UNIONS:
        yield f"structured outputs take {MAX_UNIONS} unions at most (anyOf, or a list of types); give others one type"
    for name, child in properties.items():
        yield from _walk(child, (*path, "properties", name), whole, refs)
    for word in ("anyOf", "allOf"):
        for i, child in enumerate(node.get(word, ())):
            yield from _walk(child, (*path, word, str(i)), whole, refs)
    if "items" in node:
        yield from _walk(node["items"], (*path, "items"), whole, refs)


def _walk_ref(ref: str, path: tuple[str, ...], whole: _Strict, refs: tuple[str, ...]) -> Iterator[str]:
    here = (*path, "$ref")
    if ref in refs:
        yield at_path(
            here, f"structured outputs take no recursion, and {ref} contains itself; write out as many levels"
        )
    if path[-2:-1] == ("allOf",):
        yield at_path(here, "structured outputs take no `$ref` inside of allOf; write the $ref instead of the allOf")
    inside = () if ref == "#" else tuple(ref.removeprefix("#/").split("/"))
    yield from _walk(target_of(ref, whole.root), inside, whole, (*refs, ref))


def _own_problems(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    for word in node:
        if word in _REFUSED:
            yield at_path((*path, word), f"structured outputs take no `{word}`; {_REFUSED[word]}")
        elif word not in _TAKEN and difflib.get_close_matches(word, _TAKEN, n=1, cutoff=0.8):
            yield at_path((*path, word), f"JSON Schema has no such keyword{did_you_mean(word, _TAKEN)}")
    if node.get("minItems", 0) not in (0, 1):
        yield at_path((*path, "minItems"), f"structured outputs take 0 or 1 (it is {node['minItems']}); {_DESCRIBE}")
    if node.get("format", "date") not in FORMATS:
        yield at_path(
            (*path, "format"),
            f"structured outputs know no format {node['format']!r} (known: {', '.join(FORMATS)}); {_DESCRIBE}",
        )
    if feature := _feature(node.get("pattern", "")):
        yield at_path((*path, "pattern"), f"structured outputs take no {feature} in a pattern; {_DESCRIBE}")
    yield from _own_values(node, path)
    yield from _own_object(node, path)


def _own_values(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    if node.get("enum") == []:
        yield at_path((*path, "enum"), "names no value to choose from")
    for word, values in (("enum", node.get("enum", ())), ("const", [node.get("const")])):
        for value in values:
            if isinstance(value, dict | list):
                said = f"structured outputs take texts, numbers, booleans and null here (not {value!r})"
                yield at_path((*path, word), said)


def _own_object(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    properties = node.get("properties", {})
    is_object = "properties" in node or "object" in listed(node.get("type"))
    if is_object and node.get("additionalProperties") is not False:
        said = "must be false" if "additionalProperties" in node else "must be there and be false"
        yield at_path((*path, "additionalProperties"), f"{said} on each object of structured outputs")
    if is_object and "allOf" not in node:
        for name in node.get("required", ()):
            if name not in properties:
                yield at_path((*path, "required"), f"there is no property {name!r}{did_you_mean(name, properties)}")


def _feature(pattern: str) -> str | None:
    """What of a regular expression structured outputs do not take."""
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
