"""Derive result columns from a job's JSON Schema, and read answers with it. Pure."""

import copy
import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from pipeline.job.json_schema import (
    SchemaProblem,
    alternatives,
    as_json,
    at_path,
    compiled,
    did_you_mean,
    schema_errors,
    shortened,
)
from pipeline.text import folded

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator, ValidationError


_KIND_OF_TYPE = {"string": "text", "integer": "integer", "number": "number", "boolean": "boolean"}
_KIND_OF_FORMAT = {"date-time": "datetime", "date": "date"}
_KIND_OF_VALUE = {str: "text", int: "integer", float: "number", bool: "boolean"}


class Property(NamedTuple):
    """The place of a column's value in an answer, and the column's kind.

    path: names of properties, from the answer inwards. kind: see sink.columns.KINDS.
    without: paths, from the value inwards, of parts that have a column of their own and are left out of this one.
    """

    path: tuple[str, ...]
    kind: str
    without: tuple[tuple[str, ...], ...] = ()


class Reading(NamedTuple):
    """What was read from an answer.

    values: column to its value as JSON; all None if there is a problem. problem: why the answer cannot be used; None if
    it can. rest: the properties of the answer that no column holds, or no column holds exactly.
    """

    values: dict[str, Any]
    problem: str | None = None
    rest: Mapping[str, Any] = MappingProxyType({})


def columns(schema: Mapping[str, Any], renames: Mapping[str, str]) -> dict[str, Property]:
    """Return the columns for answers: one for each property of the schema, in its order, then the renamed nested ones.

    renames: from a property's name, or the dotted path of a nested property, to the name of its column. An object has
    no column if every property that it can have has a column. Raises SchemaProblem if the schema is not an object with
    properties, or a rename does not fit it.
    """
    root, found_columns = _find_columns(schema, renames)
    return {column.name: Property(column.path, _kind(column.node, root), column.without) for column in found_columns}


def describe(schema: Mapping[str, Any], renames: Mapping[str, str]) -> dict[str, "Described"]:
    """Return the part of the schema for each column of `columns`. Raises as `columns`."""
    root, found_columns = _find_columns(schema, renames)
    return {column.name: Described(column.node, root, column.without) for column in found_columns}


class Described(NamedTuple):
    """A part of a schema. root: the whole schema, into which `$ref` points; without: see Property."""

    node: Any
    root: dict[str, Any]
    without: tuple[tuple[str, ...], ...] = ()


class _Column(NamedTuple):
    """A column. path: of its property; node: the part of the schema there; without: see Property."""

    name: str
    path: tuple[str, ...]
    node: Any
    without: tuple[tuple[str, ...], ...] = ()


def _find_columns(schema: Mapping[str, Any], renames: Mapping[str, str]) -> tuple[dict[str, Any], list[_Column]]:
    """Return the whole schema, and for each column its name, path, part of the schema, and `without`."""
    root = as_json(schema)
    properties = _properties(root, root)
    if not properties:
        raise SchemaProblem("the schema must be an object with properties; each becomes a column")
    found_columns = [_Column(renames.get(name, name), (name,), child) for name, child in properties.items()]
    found_columns += [_Column(alias, *_nested(path, root)) for path, alias in renames.items() if path not in properties]
    _refuse_clashes((column.name, column.path) for column in found_columns)
    paths = [column.path for column in found_columns]
    found_columns = [column._replace(without=tuple(_below(column.path, paths))) for column in found_columns]
    return root, [column for column in found_columns if not _is_covered(column.node, root, column.without)]


def _below(path: tuple[str, ...], paths: Iterable[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Yield the paths that begin with `path`, without that beginning; `path` itself is not among them."""
    return (p[len(path) :] for p in paths if len(p) > len(path) and p[: len(path)] == path)


def _is_covered(node: Any, root: dict[str, Any], without: tuple[tuple[str, ...], ...]) -> bool:
    """Return whether the paths cover everything that this part of an answer can contain."""
    if not without:
        return False
    properties = _properties(node, root)
    closed = all(alternative.get("additionalProperties") is False for alternative in alternatives(node, root))
    if properties is None or not closed:
        return False
    inner = {name: tuple(path[1:] for path in without if path[0] == name) for name in properties}
    return all(() in paths or _is_covered(properties[name], root, paths) for name, paths in inner.items())


def _refuse_clashes(columns: Iterable[tuple[str, tuple[str, ...]]]) -> None:
    """Raise SchemaProblem for a blank column name, or two columns with one name. columns: their names and paths."""
    seen: dict[str, str] = {}
    for column, path in columns:
        dotted = ".".join(path)
        if not column.strip():
            raise SchemaProblem(f"property {dotted!r} has no name for its column; give it one in output.columns")
        if column.lower() in seen:
            raise SchemaProblem(
                f"properties {seen[column.lower()]!r} and {dotted!r} both have the column {column!r}; "
                "give one of them another name in output.columns"
            )
        seen[column.lower()] = dotted


def _nested(dotted: str, root: dict[str, Any]) -> tuple[tuple[str, ...], Any]:
    """Return the path that a rename names, and the part of the schema at it. Raises SchemaProblem if there is none."""
    path = tuple(dotted.split("."))
    node: Any = root
    for i, name in enumerate(path):
        properties = _properties(node, root)
        if properties is None:
            raise SchemaProblem(f"{dotted!r}: {'.'.join(path[:i])!r} is not an object with properties")
        if name not in properties:
            parent = f"{'.'.join(path[:i])!r}" if i else "the schema"
            remedy = did_you_mean(name, properties) or f"; it has {', '.join(properties) or 'none'}"
            raise SchemaProblem(f"{dotted!r}: {parent} has no property {name!r}{remedy}")
        node = properties[name]
    return path, node


def _properties(node: Any, root: dict[str, Any]) -> dict[str, Any] | None:
    """Return the properties of all objects that a part of the schema allows; None if it allows anything else."""
    children: dict[str, list[Any]] = {}
    allowed = list(alternatives(node, root))
    for alternative in allowed:
        if "properties" not in alternative or alternative.get("type", "object") != "object":
            return None
        for name, child in alternative["properties"].items():
            children.setdefault(name, []).append(child)
    return {name: {"anyOf": parts} for name, parts in children.items()} if allowed else None


def _kind(node: Any, root: dict[str, Any]) -> str:
    """Return the kind of column that can hold all values of a property."""
    kinds = {kind for alternative in alternatives(node, root) for kind in _kinds_of(alternative)}
    if len(kinds) == 1:
        return kinds.pop()
    if kinds == {"integer", "number"}:
        return "number"
    return "text" if kinds and kinds <= {"text", "date", "datetime"} else "json"


def _kinds_of(alternative: dict[str, Any]) -> Iterator[str]:
    """Yield the kinds of column for one alternative of a schema."""
    kind = alternative.get("type")
    if kind == "string":
        yield _KIND_OF_FORMAT.get(alternative.get("format", ""), "text")
    elif kind is not None:
        yield _KIND_OF_TYPE.get(kind, "json")
    elif "enum" in alternative or "const" in alternative:
        values = alternative.get("enum", [alternative.get("const")])
        yield from (_KIND_OF_VALUE.get(type(value), "json") for value in values if value is not None)
    else:
        yield "json"


class Reader:
    """Reads answers to requests that asked for a schema."""

    def __init__(self, schema: Mapping[str, Any], renames: Mapping[str, str]) -> None:
        """renames: see `columns`. Raises SchemaProblem as `columns` does, and for an invalid JSON Schema."""
        self._schema: dict[str, Any] = as_json(schema)
        if problem := next(schema_errors(self._schema), None):
            raise SchemaProblem(problem)
        self.columns = columns(self._schema, renames)
        self._validator = compiled(self._schema)
        # a hundred times faster than jsonschema, whose messages are better and are used for answers that fail
        self._is_valid = self._validator.is_valid
        self._top_level = [(column, p.path[0]) for column, p in self.columns.items() if len(p.path) == 1]
        self._names = frozenset(_properties(self._schema, self._schema) or ())
        self._pruned = [(column, p.without) for column, p in self.columns.items() if p.without]
        self._exact = [(column, p.path[0], _EXACT[p.kind]) for column, p in self.columns.items() if p.kind in _EXACT]
        self._nested = [(column, p.path) for column, p in self.columns.items() if len(p.path) > 1]
        self._checks = [(column, p.path, _CHECKS[p.kind]) for column, p in self.columns.items() if p.kind in _CHECKS]

    def read_text(self, text: str) -> Reading:
        """Read an answer that is JSON text, as `read` does."""
        try:
            answer = orjson.loads(text)
        except orjson.JSONDecodeError:
            return self._problem("the answer is not JSON")
        return self.read(answer)

    def read(self, answer: Any) -> Reading:
        """Return the values of an answer, or its problem with the path. answer: JSON, as orjson parses it.

        For a text that the schema declares (enum, const), the API sometimes gives another letter case, or blanks around
        the text. Such a text is replaced by the declared one.
        """
        if not self._is_valid(answer):
            answer, problem = self._corrected(answer)
            if problem is not None:
                return self._problem(problem)
        if not isinstance(answer, dict):
            return self._problem("the answer is not an object")
        values = {column: answer.get(name) for column, name in self._top_level}
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
                    return self._problem(at_path(path, str(exc)))
        return Reading(values, None, rest)

    def _problem(self, problem: str) -> Reading:
        return Reading(dict.fromkeys(self.columns), problem)

    def _corrected(self, answer: Any) -> tuple[Any, str | None]:
        """Return an invalid answer with declared texts corrected, and its remaining problem; None if there is none."""
        errors = list(self._explainer.iter_errors(answer))
        corrections = list(_corrections(errors))
        if corrections:
            answer = copy.deepcopy(answer)
            for path, declared in corrections:
                _set_at(answer, path, declared)
            if self._is_valid(answer):
                return answer, None
            errors = list(self._explainer.iter_errors(answer))
        return answer, self._explained(answer, errors)

    def _explained(self, answer: Any, errors: list["ValidationError"]) -> str:
        """Return the most helpful of the errors as one sentence with its path."""
        from jsonschema.exceptions import best_match

        best = best_match(errors)
        if best is not None:
            return at_path(best.absolute_path, shortened(best.message))
        first = next(self._validator.iter_errors(answer))  # jsonschema finds no error: it reads some patterns otherwise
        return at_path(first.instance_path, shortened(first.message))

    @cached_property
    def _explainer(self) -> "Draft202012Validator":
        from jsonschema import Draft202012Validator

        return Draft202012Validator(self._schema)


def _corrections(errors: Iterable["ValidationError"]) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Yield path and declared text of each text that equals one declared text apart from case and outer blanks."""
    for error in errors:
        yield from _corrections(error.context or ())
        if error.validator in ("enum", "const") and isinstance(error.instance, str) and error.absolute_path:
            value: Any = error.validator_value
            options = value if error.validator == "enum" else [value]
            named = folded(error.instance)
            same = [option for option in options if isinstance(option, str) and folded(option) == named]
            if len(same) == 1:
                yield tuple(error.absolute_path), same[0]


def _value_at(answer: Any, path: tuple[str, ...]) -> Any:
    """Return the value at a path in an answer; None if an object on the path is missing or null."""
    for name in path:
        answer = answer.get(name) if isinstance(answer, dict) else None
    return answer


def _pruned(value: Any, without: Iterable[tuple[str, ...]]) -> Any:
    """Return a copy of an object without the values at these paths; None if that leaves nothing of it.

    An empty object, and a value that is not an object, are returned unchanged.
    """
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


def _set_at(answer: Any, path: tuple[Any, ...], value: str) -> None:
    """Set the value at a path inside an answer, in place."""
    for key in path[:-1]:
        answer = answer[key]
    answer[path[-1]] = value


def _integer(value: Any) -> int:
    """Return the integer for a column: 3 for 3.0, which JSON Schema counts as an integer. Raises ValueError."""
    whole = int(value)
    if not -(2**63) <= whole < 2**63:
        raise ValueError(f"{value} does not fit into an integer column of 64 bits")
    return whole


def _date(value: str) -> str:
    """Return the value if it is a date in ISO format. Raises ValueError for any other."""
    try:
        datetime.date.fromisoformat(value)
    except ValueError:
        raise ValueError(f"{shortened(value)!r} is not a date") from None
    return value


def _datetime(value: str) -> str:
    """Return the value if the results table can hold it: in UTC, between the years 1 and 9999. Raises ValueError."""
    try:
        parsed = datetime.datetime.fromisoformat(value)
        if parsed.tzinfo is not None:
            parsed.astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{shortened(value)!r} is not a date-time") from None
    return value


#: By kind, checks and conversions that a column needs beyond the schema. They raise ValueError.
_CHECKS: dict[str, Callable[[Any], Any]] = {"integer": _integer, "date": _date, "datetime": _datetime}


#: By kind, whether a column holds a value exactly; other kinds always do.
_EXACT: dict[str, Callable[[Any], bool]] = {
    "number": lambda value: type(value) is not int or abs(value) <= 2**53,
    "datetime": lambda value: value[-6:-5] not in ("+", "-") or value.endswith(("+00:00", "-00:00")),
}
