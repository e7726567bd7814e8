"""A job's JSON Schema: what the API refuses of it, the columns it makes, and the answers read by it. Pure."""

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

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator, ValidationError


_KIND_OF_TYPE = {"string": "text", "integer": "integer", "number": "number", "boolean": "boolean"}
_KIND_OF_FORMAT = {"date-time": "datetime", "date": "date"}
_KIND_OF_VALUE = {str: "text", int: "integer", float: "number", bool: "boolean"}


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


def columns(schema: Mapping[str, Any], renames: Mapping[str, str]) -> dict[str, Property]:
    """The columns that answers become: one for each property of the schema, in its order, then the nested ones.

    renames: a property's name, or the dotted path of one inside of another, to the name of its column. An object has no
    column if all that can be in it has one. Raises SchemaProblem if the schema is no object with properties, or a
    rename does not fit it.
    """
    root, found = _found(schema, renames)
    return {one.column: Property(one.path, _kind(one.node, root), one.without) for one in found}


def describe(schema: Mapping[str, Any], renames: Mapping[str, str]) -> dict[str, "Described"]:
    """What the schema says of each of these columns."""
    root, found = _found(schema, renames)
    return {one.column: Described(one.node, root, one.without) for one in found}


class Described(NamedTuple):
    """A part of a schema. root: the whole, which `$ref` points into; without: as Property has it."""

    node: Any
    root: dict[str, Any]
    without: tuple[tuple[str, ...], ...] = ()


class _Found(NamedTuple):
    """A column. path: of its property; node: the part of the schema there; without: as Property has it."""

    column: str
    path: tuple[str, ...]
    node: Any
    without: tuple[tuple[str, ...], ...] = ()


def _found(schema: Mapping[str, Any], renames: Mapping[str, str]) -> tuple[dict[str, Any], list[_Found]]:
    """The whole schema, and its columns."""
    root = as_json(schema)
    properties = _properties(root, root)
    if not properties:
        raise SchemaProblem("the schema must be an object with properties; each becomes a column")
    found = [_Found(renames.get(name, name), (name,), child) for name, child in properties.items()]
    found += [_Found(alias, *_nested(path, root)) for path, alias in renames.items() if path not in properties]
    _refuse_clashes((one.column, one.path) for one in found)
    paths = [one.path for one in found]
    found = [one._replace(without=tuple(_below(one.path, paths))) for one in found]
    return root, [one for one in found if not _is_covered(one.node, root, one.without)]


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
            remedy = did_you_mean(name, properties) or f"; it has {', '.join(properties) or 'none'}"
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


class Reader:
    """Reads answers that a schema was asked for."""

    def __init__(self, schema: Mapping[str, Any], renames: Mapping[str, str]) -> None:
        """renames: as for `columns`. Raises SchemaProblem as it does, and for what is no JSON Schema."""
        self._schema: dict[str, Any] = as_json(schema)
        if problem := next(schema_errors(self._schema), None):
            raise SchemaProblem(problem)
        self.columns = columns(self._schema, renames)
        self._validator = compiled(self._schema)
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
                    return self._problem(at_path(path, str(exc)))
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
            return at_path(best.absolute_path, shortened(best.message))
        first = next(self._validator.iter_errors(answer))  # the two do not read every pattern alike
        return at_path(first.instance_path, shortened(first.message))

    @cached_property
    def _explainer(self) -> "Draft202012Validator":
        from jsonschema import Draft202012Validator

        return Draft202012Validator(self._schema)


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
        raise ValueError(f"{shortened(value)!r} is not a date") from None
    return value


def _datetime(value: str) -> str:
    """The results table has times in UTC, and no year before 1 or after 9999."""
    try:
        parsed = datetime.datetime.fromisoformat(value)
        if parsed.tzinfo is not None:
            parsed.astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{shortened(value)!r} is not a date-time") from None
    return value


#: What a column of this kind needs beyond what the schema says. Raises ValueError.
_CHECKS: dict[str, Callable[[Any], Any]] = {"integer": _integer, "date": _date, "datetime": _datetime}


#: Whether a column of this kind holds just what the answer says, for the kinds where it may not.
_EXACT: dict[str, Callable[[Any], bool]] = {
    "number": lambda value: type(value) is not int or abs(value) <= 2**53,
    "datetime": lambda value: value[-6:-5] not in ("+", "-") or value.endswith(("+00:00", "-00:00")),
}
