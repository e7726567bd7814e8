"""Check JSON schemas as the API does for structured outputs, and invent values that follow a schema."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import orjson

UNSUPPORTED = {
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "string": ("minLength", "maxLength"),
    "array": ("maxItems", "uniqueItems", "contains"),
    "object": ("minProperties", "maxProperties", "patternProperties", "propertyNames"),
}
UNKNOWN_WORDS = ("oneOf", "not", "if", "then", "else", "dependentSchemas", "unevaluatedProperties")
MAX_OPTIONAL, MAX_UNIONS = 24, 16
FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "emulated@example.com",
    "hostname": "example.com",
    "uri": "https://example.com/emulated",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def schema_problem(schema: object) -> str | None:
    """Return the API's message about a schema that it refuses, without the name of the field; None if it accepts it."""
    if not isinstance(schema, dict):
        return "Input should be a valid dictionary"
    return _problem_of(orjson.dumps(schema))


@lru_cache(maxsize=256)
def _problem_of(encoded: bytes) -> str | None:
    """Return the first problem of a schema. `counts` sums up its optional properties and unions during the walk."""
    schema = orjson.loads(encoded)
    counts = {"optional": 0, "unions": 0}
    try:
        problem = _walk(schema, schema, (), counts)
    except (AttributeError, TypeError):  # a keyword has a value of the wrong type, such as a list as `properties`
        return "Invalid JSON schema"
    if problem is None and (counts["optional"] > MAX_OPTIONAL or counts["unions"] > MAX_UNIONS):
        return "Schema is too complex for compilation."
    return problem


def _walk(node: object, root: dict[str, Any], refs: tuple[str, ...], counts: dict[str, int]) -> str | None:
    """Return the first problem of a part of a schema; None if there is none. counts: see _problem_of."""
    if not isinstance(node, dict):
        return "Input should be a valid dictionary"
    if "$ref" in node:
        return _walk_ref(node["$ref"], root, refs, counts)
    for word in UNKNOWN_WORDS:
        if word in node:
            return f"'{word}' is not supported"
    problem = _own_problem(node)
    if problem:
        return problem
    counts["unions"] += isinstance(node.get("type"), list) or "anyOf" in node
    properties = node.get("properties", {})
    counts["optional"] += len(properties.keys() - set(node.get("required", ())))
    children = [*properties.values(), *node.get("anyOf", ()), *node.get("allOf", ())]
    if "items" in node:
        children.append(node["items"])
    return next((p for child in children if (p := _walk(child, root, refs, counts))), None)


def _walk_ref(ref: str, root: dict[str, Any], refs: tuple[str, ...], counts: dict[str, int]) -> str | None:
    if ref in refs:
        return "Recursive schemas are not supported"
    target = resolve(ref, root)
    return f"$ref {ref} not found" if target is None else _walk(target, root, (*refs, ref), counts)


def _own_problem(node: dict[str, Any]) -> str | None:
    kinds = node["type"] if isinstance(node.get("type"), list) else [node.get("type")]
    for kind in kinds:
        bad = [word for word in UNSUPPORTED.get(kind or "", ()) if word in node]
        if bad:
            return f"For '{kind}' type, properties {', '.join(bad)} are not supported"
        if kind == "array" and node.get("minItems", 0) not in (0, 1):
            return "For 'array' type, 'minItems' values other than 0 or 1 are not supported"
        if kind == "object" and node.get("additionalProperties") is not False:
            return "For 'object' type, 'additionalProperties' must be explicitly set to false"
    return None


def resolve(ref: str, root: dict[str, Any]) -> Any:
    """Return the subschema that a local `#/...` pointer names; None if there is none."""
    node: Any = root
    for part in ref.removeprefix("#").strip("/").split("/") if ref != "#" else []:
        node = node.get(part) if isinstance(node, dict) else None
    return node


class Inventor:
    """Invent a value that follows a schema. Equal arguments give equal values.

    root: the schema. pick: returns one of the enum values at a path. gist: the text of free strings. number: chooses
    everything else.
    """

    def __init__(self, root: dict[str, Any], pick: Callable[[list[Any], str], Any], gist: str, number: int) -> None:
        self._root, self._pick, self._gist, self._number = root, pick, gist, number

    def value(self) -> Any:
        """Return the invented value."""
        return self._value_of(self._root, "", 0)

    def _value_of(self, node: dict[str, Any], path: str, depth: int) -> Any:
        """Return a value for a part of the schema. path: of this part; depth: how many parts it is in."""
        if "const" in node:
            return node["const"]
        if "enum" in node:
            return self._pick(node["enum"], path)
        if "$ref" in node:
            return self._value_of(resolve(node["$ref"], self._root) or {}, path, depth + 1) if depth < 20 else None
        for word in ("anyOf", "oneOf"):
            if word in node:
                branches = [b for b in node[word] if b.get("type") != "null"] or node[word]
                return self._value_of(branches[0], path, depth + 1)
        if "allOf" in node:
            node = _merged(node)
        kind = node.get("type", "object" if "properties" in node else "string")
        if isinstance(kind, list):
            kind = next((k for k in kind if k != "null"), "null")
        return self._value_of_kind(node, kind, path, depth)

    def _value_of_kind(self, node: dict[str, Any], kind: str, path: str, depth: int) -> Any:
        match kind:
            case "object":
                return self._object(node, path, depth)
            case "array":
                return [] if depth > 20 else [self._value_of(node.get("items", {}), f"{path}[]", depth + 1)]
            case "integer" | "number":
                return _within(node, self._number % 100)
            case "boolean":
                return bool(self._pick([False, True], path))
            case "null":
                return None
            case _:
                return self._string(node)

    def _object(self, node: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        properties = node.get("properties", {})
        required = node.get("required", [])
        names = [n for n in properties if n in required]  # the API emits required properties first
        if depth <= 20:
            names += [n for n in properties if n not in required]
        return {name: self._value_of(properties[name], f"{path}.{name}", depth + 1) for name in names}

    def _string(self, node: dict[str, Any]) -> str:
        text = FORMATS.get(node.get("format", ""), self._gist)
        return text[: node.get("maxLength", 160)]


def _merged(node: dict[str, Any]) -> dict[str, Any]:
    """Return a part of a schema with the parts in its allOf merged into it."""
    merged = {key: value for key, value in node.items() if key != "allOf"}
    for part in node["allOf"]:
        properties = merged.get("properties", {}) | part.get("properties", {})
        required = [*merged.get("required", []), *part.get("required", [])]
        merged = {**merged, **part, "properties": properties, "required": required}
    return merged


def _within(node: dict[str, Any], number: int) -> int:
    """Return a number within the bounds of the schema. Only tool schemas may have bounds."""
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and number < low:
        return int(low)
    return int(high) if high is not None and number > high else number


WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return WORD.findall(text.lower())
