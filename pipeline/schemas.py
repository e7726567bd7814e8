"""A job's JSON Schema: what the API refuses of it, the columns it makes, and the answers read by it. Pure."""

import copy
import datetime
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

import jsonschema_rs
import orjson

if TYPE_CHECKING:  # each is imported where it is used, for that takes its time
    from jsonschema import Draft202012Validator, SchemaError, ValidationError
    from pydantic import BaseModel

MAX_OPTIONAL, MAX_UNIONS = 24, 16
FORMATS = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")
TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")

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

_KIND_OF_TYPE = {"string": "text", "integer": "integer", "number": "number", "boolean": "boolean"}
_KIND_OF_FORMAT = {"date-time": "datetime", "date": "date"}
_KIND_OF_VALUE = {str: "text", int: "integer", float: "number", bool: "boolean"}


class SchemaProblem(Exception):
    """A schema, or a rename of its properties, that cannot be used. The message does not name the job file's field."""


class Property(NamedTuple):
    """Where in an answer the value of a column is, and the column's kind as the results table knows it.

    without: paths from there to what has a column of its own, and is not stored a second time.
    """

    path: tuple[str, ...]
    kind: str
    without: tuple[tuple[str, ...], ...] = ()


class Reading(NamedTuple):
    """An answer as the values of its columns, as JSON has them; all None if there is a problem with it.

    rest: what of the answer no column holds, or not exactly.
    """

    values: dict[str, Any]
    problem: str | None = None
    rest: Mapping[str, Any] = MappingProxyType({})


# -- what the API refuses --------------------------------------------------------------------------------------------


def refused(schema: object, *, strict: bool = True) -> str | None:
    """The first thing in a schema that the API would refuse: its path, the keyword, what to do. None if it takes all.

    strict: as a schema of structured outputs, or of a strict tool; else as the input_schema of an ordinary tool.
    Source of the rules: platform.claude.com/docs/en/build-with-claude/structured-outputs
    """
    try:
        return next(_problems(_as_json(schema), strict), None)
    except SchemaProblem as exc:
        return str(exc)


def _problems(schema: Any, strict: bool) -> Iterator[str]:
    yield from _invalid(schema)
    if strict:
        yield from _walk(schema, (), _Strict(schema))
    elif schema.get("type") != "object":
        yield f"type: the input_schema of a tool must be of type object (it is {schema.get('type')!r})"


def _as_json(schema: object) -> Any:
    """The schema as plain JSON values. Raises SchemaProblem if it is none."""
    try:
        plain = orjson.loads(orjson.dumps(schema))
    except TypeError as exc:
        raise SchemaProblem(f"the schema cannot be sent as JSON: {exc}") from exc
    if not isinstance(plain, dict):
        raise SchemaProblem(f"the schema must be a mapping (it is {plain!r})")
    return plain


def _invalid(schema: dict[str, Any]) -> Iterator[str]:
    """What makes it no JSON Schema, or none that answers can be judged by."""
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as exc:
        yield _at(exc.absolute_path, _misfit(exc))
    for path, ref in _refs(schema, ()):
        try:
            _flat({"$ref": ref}, schema)
        except SchemaProblem as exc:
            yield _at(path, str(exc))
    try:
        _compiled(schema)
    except jsonschema_rs.ValidationError as exc:  # the two validators know slightly different regular expressions
        yield _at(
            exc.instance_path, _no_expression(exc.instance) if exc.instance_path[-1:] == ["pattern"] else exc.message
        )


def _misfit(error: "SchemaError") -> str:
    keyword = error.absolute_path[-1] if error.absolute_path else None
    if keyword == "type" and isinstance(error.instance, str):
        return f"JSON Schema has no type {error.instance!r}{_did_you_mean(error.instance, TYPES)}"
    if error.validator == "format" and keyword == "pattern":
        return _no_expression(error.instance)
    return _short(error.message)


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


@dataclass
class _Strict:
    """What a walk through a schema of structured outputs knows of the whole."""

    root: dict[str, Any]
    optional: int = 0
    unions: int = 0


def _walk(node: Any, path: tuple[str, ...], whole: _Strict, refs: tuple[str, ...] = ()) -> Iterator[str]:
    """What structured outputs refuse of a part of the schema. refs: those that led here."""
    if not isinstance(node, dict):
        yield _at(path, f"structured outputs take a mapping here (it is {orjson.dumps(node).decode()})")
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
        yield _at(here, f"structured outputs take no recursion, and {ref} contains itself; write out as many levels")
    if path[-2:-1] == ("allOf",):
        yield _at(here, "structured outputs take no `$ref` inside of allOf; write the $ref instead of the allOf")
    inside = () if ref == "#" else tuple(ref.removeprefix("#/").split("/"))
    yield from _walk(_target(ref, whole.root), inside, whole, (*refs, ref))


def _own_problems(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    for word in node:
        if word in _REFUSED:
            yield _at((*path, word), f"structured outputs take no `{word}`; {_REFUSED[word]}")
        elif word not in _TAKEN and difflib.get_close_matches(word, _TAKEN, n=1, cutoff=0.8):
            yield _at((*path, word), f"JSON Schema has no such keyword{_did_you_mean(word, _TAKEN)}")
    if node.get("minItems", 0) not in (0, 1):
        yield _at((*path, "minItems"), f"structured outputs take 0 or 1 (it is {node['minItems']}); {_DESCRIBE}")
    if node.get("format", "date") not in FORMATS:
        yield _at(
            (*path, "format"),
            f"structured outputs know no format {node['format']!r} (known: {', '.join(FORMATS)}); {_DESCRIBE}",
        )
    if feature := _feature(node.get("pattern", "")):
        yield _at((*path, "pattern"), f"structured outputs take no {feature} in a pattern; {_DESCRIBE}")
    yield from _own_values(node, path)
    yield from _own_object(node, path)


def _own_values(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    if node.get("enum") == []:
        yield _at((*path, "enum"), "names no value to choose from")
    for word, values in (("enum", node.get("enum", ())), ("const", [node.get("const")])):
        for value in values:
            if isinstance(value, dict | list):
                said = f"structured outputs take texts, numbers, booleans and null here (not {value!r})"
                yield _at((*path, word), said)


def _own_object(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    properties = node.get("properties", {})
    is_object = "properties" in node or "object" in _listed(node.get("type"))
    if is_object and node.get("additionalProperties") is not False:
        said = "must be false" if "additionalProperties" in node else "must be there and be false"
        yield _at((*path, "additionalProperties"), f"{said} on each object of structured outputs")
    if is_object and "allOf" not in node:
        for name in node.get("required", ()):
            if name not in properties:
                yield _at((*path, "required"), f"there is no property {name!r}{_did_you_mean(name, properties)}")


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


# -- columns ---------------------------------------------------------------------------------------------------------


def columns(schema: Mapping[str, Any], renames: Mapping[str, str]) -> dict[str, Property]:
    """The columns that answers become: one for each property of the schema, in its order, then the nested ones.

    renames: a property's name, or the dotted path of one inside of another, to the name of its column. An object has no
    column if all that can be in it has one. Raises SchemaProblem if the schema is no object with properties, or a
    rename does not fit it.
    """
    root, found = _found(schema, renames)
    return {column: Property(path, _kind(child, root), without) for column, path, child, without in found}


def described(schema: Mapping[str, Any], renames: Mapping[str, str]) -> dict[str, "Described"]:
    """What the schema says of each of these columns."""
    root, found = _found(schema, renames)
    return {column: Described(child, root, without) for column, _, child, without in found}


class Described(NamedTuple):
    """A part of a schema. root: the whole, which `$ref` points into; without: as Property has it."""

    node: Any
    root: dict[str, Any]
    without: tuple[tuple[str, ...], ...] = ()


_Found = tuple[str, tuple[str, ...], Any, tuple[tuple[str, ...], ...]]


def _found(schema: Mapping[str, Any], renames: Mapping[str, str]) -> tuple[dict[str, Any], list[_Found]]:
    """The whole schema, and each column with its path, the part of the schema that is there, and what is not in it."""
    root = _as_json(schema)
    properties = _properties(root, root)
    if not properties:
        raise SchemaProblem("the schema must be an object with properties; each becomes a column")
    found: list[tuple[str, tuple[str, ...], Any]]
    found = [(renames.get(name, name), (name,), child) for name, child in properties.items()]
    found += [(alias, *_nested(path, root)) for path, alias in renames.items() if path not in properties]
    _refuse_clashes((column, path) for column, path, _ in found)
    paths = [path for _, path, _ in found]
    described = [(column, path, child, tuple(_below(path, paths))) for column, path, child in found]
    return root, [one for one in described if not _is_covered(one[2], root, one[3])]


def _below(path: tuple[str, ...], paths: Iterable[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Those paths that lead on from this one, from there on."""
    return (p[len(path) :] for p in paths if len(p) > len(path) and p[: len(path)] == path)


def _is_covered(node: Any, root: dict[str, Any], without: tuple[tuple[str, ...], ...]) -> bool:
    """Whether nothing can be in this part of an answer beside what is at these paths."""
    if not without:
        return False
    properties = _properties(node, root)
    closed = all(one.get("additionalProperties") is False for one in alternatives(node, root))
    if properties is None or not closed:
        return False
    inner = {name: tuple(path[1:] for path in without if path[0] == name) for name in properties}
    return all(() in paths or _is_covered(properties[name], root, paths) for name, paths in inner.items())


def _refuse_clashes(found: Iterable[tuple[str, tuple[str, ...]]]) -> None:
    seen: dict[str, str] = {}
    for column, path in found:
        here = ".".join(path)
        if not column.strip():
            raise SchemaProblem(f"property {here!r} has no name for its column; give it one in output.columns")
        if column.lower() in seen:
            raise SchemaProblem(
                f"{seen[column.lower()]!r} and {here!r} both make a column {column!r}; "
                "give one of them another name in output.columns"
            )
        seen[column.lower()] = here


def _nested(dotted: str, root: dict[str, Any]) -> tuple[tuple[str, ...], Any]:
    """The path that a rename names, and the part of the schema that is there."""
    path = tuple(dotted.split("."))
    node: Any = root
    for i, name in enumerate(path):
        properties = _properties(node, root)
        if properties is None:
            raise SchemaProblem(f"{dotted!r} leads through {'.'.join(path[:i])!r}, which is no object with properties")
        if name not in properties:
            where = f"{'.'.join(path[:i])!r}" if i else "the schema"
            remedy = _did_you_mean(name, properties) or f"; it has {', '.join(properties) or 'none'}"
            raise SchemaProblem(f"{dotted!r}: {where} has no property {name!r}{remedy}")
        node = properties[name]
    return path, node


def _properties(node: Any, root: dict[str, Any]) -> dict[str, Any] | None:
    """The properties of an object, or of each object that it may be; None if it may be something else."""
    found: dict[str, list[Any]] = {}
    each = list(alternatives(node, root))
    for one in each:
        if "properties" not in one or one.get("type", "object") != "object":
            return None
        for name, child in one["properties"].items():
            found.setdefault(name, []).append(child)
    return {name: {"anyOf": children} for name, children in found.items()} if each else None


def _kind(node: Any, root: dict[str, Any]) -> str:
    """The kind of column that a property's values fit into."""
    kinds = {kind for one in alternatives(node, root) for kind in _kinds(one)}
    if len(kinds) == 1:
        return kinds.pop()
    if kinds == {"integer", "number"}:
        return "number"
    return "text" if kinds and kinds <= {"text", "date", "datetime"} else "json"


def _kinds(one: dict[str, Any]) -> Iterator[str]:
    kind = one.get("type")
    if kind == "string":
        yield _KIND_OF_FORMAT.get(one.get("format", ""), "text")
    elif kind is not None:
        yield _KIND_OF_TYPE.get(kind, "json")
    elif "enum" in one or "const" in one:
        values = one.get("enum", [one.get("const")])
        yield from (_KIND_OF_VALUE.get(type(value), "json") for value in values if value is not None)
    else:
        yield "json"


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
    for kind in _listed(flat.get("type")):
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
        flat = {**_target(ref, root), **flat}
    for part in flat.pop("allOf", ()):
        other, _ = _flat(part, root, seen)
        both = {**flat.get("properties", {}), **other.get("properties", {})}
        flat = {**flat, **other, **({"properties": both} if both else {})}
    return flat, seen


def _target(ref: str, root: dict[str, Any]) -> dict[str, Any]:
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
        raise SchemaProblem(f"{ref!r} names nothing in the schema{_did_you_mean(ref, known)}")
    return node


def _listed(types: Any) -> list[Any]:
    return types if isinstance(types, list) else [] if types is None else [types]


# -- answers ---------------------------------------------------------------------------------------------------------


class Reader:
    """Reads answers that a schema was asked for."""

    def __init__(self, schema: Mapping[str, Any], renames: Mapping[str, str]) -> None:
        """renames: as for `columns`. Raises SchemaProblem as it does, and for what is no JSON Schema."""
        self._schema: dict[str, Any] = _as_json(schema)
        if problem := next(_invalid(self._schema), None):
            raise SchemaProblem(problem)
        self.columns = columns(self._schema, renames)
        self._validator = _compiled(self._schema)
        self._is_valid = (
            self._validator.is_valid
        )  # a hundred times faster than jsonschema, which says better what is wrong
        self._tops = [(column, p.path[0]) for column, p in self.columns.items() if len(p.path) == 1]
        self._names = frozenset(_properties(self._schema, self._schema) or ())
        self._pruned = [(column, p.without) for column, p in self.columns.items() if p.without]
        self._exact = [(column, p.path[0], _EXACT[p.kind]) for column, p in self.columns.items() if p.kind in _EXACT]
        self._nested = [(column, p.path) for column, p in self.columns.items() if len(p.path) > 1]
        self._checks = [(column, p.path, _CHECKS[p.kind]) for column, p in self.columns.items() if p.kind in _CHECKS]

    def read_text(self, text: str) -> Reading:
        """The answer that a text is. As `read`."""
        try:
            answer = orjson.loads(text)
        except orjson.JSONDecodeError:
            return self._problem("the answer is not JSON")
        return self.read(answer)

    def read(self, answer: Any) -> Reading:
        """The answer's values, or what is wrong with it: where, and why. answer: as orjson reads JSON.

        A text that the schema declares (enum, const) may come in another letter case and with blanks around it,
        which the API is known to do; it is read as declared.
        """
        if not self._is_valid(answer):
            answer, problem = self._corrected(answer)
            if problem is not None:
                return self._problem(problem)
        if not isinstance(answer, dict):
            return self._problem("the answer is no object")
        values = {column: answer.get(name) for column, name in self._tops}
        for column, path in self._nested:
            values[column] = _value_at(answer, path)
        for column, without in self._pruned:
            values[column] = _pruned(values[column], without)
        rest = {name: answer[name] for name in answer if name not in self._names} if answer.keys() - self._names else {}
        for column, top, is_exact in self._exact:
            if values[column] is not None and not is_exact(values[column]):
                rest[top] = answer[top]
        for column, path, check in self._checks:
            if values[column] is not None:
                try:
                    values[column] = check(values[column])
                except ValueError as exc:
                    return self._problem(_at(path, str(exc)))
        return Reading(values, None, rest)

    def _problem(self, problem: str) -> Reading:
        return Reading(dict.fromkeys(self.columns), problem)

    def _corrected(self, answer: Any) -> tuple[Any, str | None]:
        """An invalid answer with its texts as they are declared, and what is still wrong with it."""
        errors = list(self._explainer.iter_errors(answer))
        corrections = list(_corrections(errors))
        if corrections:
            answer = copy.deepcopy(answer)
            for path, declared in corrections:
                _put(answer, path, declared)
            if self._is_valid(answer):
                return answer, None
            errors = list(self._explainer.iter_errors(answer))
        return answer, self._explained(answer, errors)

    def _explained(self, answer: Any, errors: list["ValidationError"]) -> str:
        from jsonschema.exceptions import best_match

        best = best_match(errors)
        if best is not None:
            return _at(best.absolute_path, _short(best.message))
        first = next(self._validator.iter_errors(answer))  # the two do not read every pattern alike
        return _at(first.instance_path, _short(first.message))

    @cached_property
    def _explainer(self) -> "Draft202012Validator":
        from jsonschema import Draft202012Validator

        return Draft202012Validator(self._schema)


def _compiled(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """Raises jsonschema_rs.ValidationError for what it cannot use. Formats are left to structured outputs."""
    return jsonschema_rs.Draft202012Validator(schema, validate_formats=False, offline=True)


def _corrections(errors: Iterable["ValidationError"]) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Where an answer has a text that is declared but for case and outer blanks: the path, and the declared text."""
    for error in errors:
        yield from _corrections(error.context or ())
        if error.validator in ("enum", "const") and isinstance(error.instance, str) and error.absolute_path:
            value: Any = error.validator_value
            options = value if error.validator == "enum" else [value]
            named = _folded(error.instance)
            same = [option for option in options if isinstance(option, str) and _folded(option) == named]
            if len(same) == 1:
                yield tuple(error.absolute_path), same[0]


def _folded(text: str) -> str:
    return text.strip().casefold()


def _value_at(answer: Any, path: tuple[str, ...]) -> Any:
    """What is at this path of an answer; None where an object on the way to it is absent or null."""
    for name in path:
        answer = answer.get(name) if isinstance(answer, dict) else None
    return answer


def _pruned(value: Any, without: Iterable[tuple[str, ...]]) -> Any:
    """An object without what is at these paths; None if nothing else was in it."""
    if not isinstance(value, dict):
        return value
    left = dict(value)
    inside: dict[str, list[tuple[str, ...]]] = {}
    for name, *path in without:
        inside.setdefault(name, []).append(tuple(path))
    for name, paths in inside.items():
        inner = None if () in paths else _pruned(left.get(name), paths)
        left[name] = inner
        if inner is None:
            del left[name]
    return left or (None if value else value)


def _put(answer: Any, path: tuple[Any, ...], value: str) -> None:
    for key in path[:-1]:
        answer = answer[key]
    answer[path[-1]] = value


def _integer(value: Any) -> int:
    """JSON Schema takes 3.0 for an integer, and the column wants 3."""
    whole = int(value)
    if not -(2**63) <= whole < 2**63:
        raise ValueError(f"{value} is beyond the 64 bits of an integer column")
    return whole


def _date(value: str) -> str:
    try:
        datetime.date.fromisoformat(value)
    except ValueError:
        raise ValueError(f"{_short(value)!r} is not a date") from None
    return value


def _datetime(value: str) -> str:
    """The results table has times in UTC, and no year before 1 or after 9999."""
    try:
        parsed = datetime.datetime.fromisoformat(value)
        if parsed.tzinfo is not None:
            parsed.astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{_short(value)!r} is not a date-time") from None
    return value


#: What a column of this kind needs beyond what the schema says. Raises ValueError.
_CHECKS: dict[str, Callable[[Any], Any]] = {"integer": _integer, "date": _date, "datetime": _datetime}


#: Whether a column of this kind holds just what the answer says, for the kinds where it may not.
_EXACT: dict[str, Callable[[Any], bool]] = {
    "number": lambda value: type(value) is not int or abs(value) <= 2**53,
    "datetime": lambda value: value[-6:-5] not in ("+", "-") or value.endswith(("+00:00", "-00:00")),
}


# -- models ----------------------------------------------------------------------------------------------------------


def of_model(model: type["BaseModel"]) -> dict[str, Any]:
    """The schema of a pydantic model as structured outputs take it: what they refuse moves to the descriptions.

    Raises SchemaProblem for a model with fields that no such schema can describe.
    """
    from anthropic import transform_schema

    original = model.model_json_schema()
    for path in _free_mappings(original, ()):
        raise SchemaProblem(
            _at(
                path, "structured outputs take no mapping with keys of its own; write a list of objects with a key each"
            )
        )
    try:
        return transform_schema(original)
    except ValueError as exc:
        raise SchemaProblem(f"{model.__name__} has a field whose type says too little for a schema: {exc}") from exc


def _free_mappings(node: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The SDK's transformation would leave such a mapping without any key."""
    if isinstance(node, dict):
        if node.get("type") == "object" and "properties" not in node and node.get("additionalProperties", True):
            yield path
        for key, child in node.items():
            yield from _free_mappings(child, (*path, key))
    elif isinstance(node, list):
        for i, child in enumerate(node):
            yield from _free_mappings(child, (*path, str(i)))


# -- words -----------------------------------------------------------------------------------------------------------


def _at(path: Iterable[Any], said: str) -> str:
    where = ".".join(str(part) for part in path)
    return f"{where}: {said}" if where else said


def _short(text: str, limit: int = 300) -> str:
    """A text without its middle if it is long: answers stand in messages, and may be pages."""
    return text if len(text) <= limit else f"{text[: limit * 2 // 3]} ... {text[-limit // 3 :]}"


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
