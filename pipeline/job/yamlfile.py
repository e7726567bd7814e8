"""Parse YAML 1.2 text into plain values, and note the line of each field. Pure.

ruamel.yaml parses the text. The values are built here, so that `yes`, `on`, dates and 01234 stay text, and a field that
is given twice is an error instead of a silent choice.
"""

import re
from collections.abc import Iterable
from typing import Any

from pipeline.errors import JobError

Path = tuple[str | int, ...]

MAX_DEPTH = 50  # levels; an alias inside its own anchor would never end
MAX_DIGITS = 100  # of a number
MAX_VALUES = 100_000  # in a job file; a few aliases of aliases would make billions

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_BARE_BRACES = re.compile(r"(?:^ *|[:\-?] +|[\[{,] *)(\{[{%].*)")  # where YAML sees the start of a value
_WORDS = {"": None, "~": None, **dict.fromkeys(("null", "Null", "NULL"))}
_WORDS |= {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}


def parse(text: str, name: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """Return the mapping in a YAML text, and the line of each field, from 1, by the field's path.

    name: of the text in messages, usually its file. Raises JobError, with the line, if it is not a YAML mapping.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        _refuse_deep(YAML(typ="rt", pure=True).parse(text), name)
        root = YAML(typ="rt", pure=True).compose(text)
    except MarkedYAMLError as exc:
        _refuse_bare_braces(text, [mark.line for mark in (exc.problem_mark, exc.context_mark) if mark], name)
        mark = exc.problem_mark or exc.context_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        hint = "; a text with a colon needs quotes" if "mapping values are not allowed" in str(exc.problem) else ""
        raise JobError(f"{name}{where}: this is not valid YAML: {exc.problem or exc.context}{hint}") from exc
    except YAMLError as exc:
        raise JobError(f"{name}: this is not valid YAML: {exc}") from exc
    lines: dict[Path, int] = {}
    try:
        value = None if root is None else _plain_value(root, (), lines, name)
    except _NameNotText as exc:
        _refuse_bare_braces(text, [exc.line], name)
        raise JobError(f"{name} line {exc.line + 1}: a field's name must be text") from None
    if not isinstance(value, dict):
        raise JobError(f"{name}: a job file is a mapping of fields (name:, source:, request:, sink:)")
    return value, lines


class _NameNotText(Exception):
    """The name of a field is a list or a mapping. line: from 0."""

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


def _refuse_deep(events: Iterable[Any], name: str) -> None:
    """Raise JobError at the first value nested too deeply; `compose` would need seconds for thousands of levels."""
    from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

    depth = 0
    for event in events:
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _too_deep(event, name)


def _too_deep(place: Any, name: str) -> JobError:
    return JobError(f"{name} line {place.start_mark.line + 1}: values are nested more than {MAX_DEPTH} levels deep")


def _refuse_bare_braces(text: str, lines: Iterable[int], name: str) -> None:
    """Raise JobError if a value on one of these lines, from 0, begins with {{ or {%: YAML reads that as a mapping."""
    source_lines = text.splitlines()
    for line in lines:
        if line < len(source_lines) and (match := _BARE_BRACES.search(source_lines[line])):
            start, value = source_lines[line][: match.start(1)].strip(), match[1].rstrip()
            quoted = f"'{value}'" if '"' in value else f'"{value}"'
            raise JobError(
                f"{name} line {line + 1}: YAML reads braces at the start of a value as a mapping; put the text into "
                f"quotes: {start} {quoted}"
            ) from None


def _plain_value(node: Any, path: Path, lines: dict[Path, int], name: str) -> Any:
    """Return the plain value of a YAML node, and add the lines of it and of the values inside it to `lines`."""
    from ruamel.yaml.nodes import MappingNode, SequenceNode

    lines.setdefault(path, node.start_mark.line + 1)
    if len(path) > MAX_DEPTH:
        raise _too_deep(node, name)
    if len(lines) > MAX_VALUES:
        raise JobError(
            f"{name} line {node.start_mark.line + 1}: the file has more than {MAX_VALUES:,} values, counting each "
            "alias as the values that it repeats; write fewer"
        )
    if isinstance(node, SequenceNode):
        return [_plain_value(child, (*path, i), lines, name) for i, child in enumerate(node.value)]
    if not isinstance(node, MappingNode):
        return _scalar(node, name)
    mapping: dict[str, Any] = {}
    for key_node, child in node.value:
        key = key_node.value
        if not isinstance(key, str):
            raise _NameNotText(key_node.start_mark.line)
        if key in mapping:
            first = lines[(*path, key)]
            line = key_node.start_mark.line + 1
            raise JobError(f"{name} line {line}: field {key!r} is given twice (first on line {first}); remove one")
        lines[(*path, key)] = key_node.start_mark.line + 1
        mapping[key] = _plain_value(child, (*path, key), lines, name)
    return mapping


def _scalar(node: Any, name: str) -> str | int | float | bool | None:
    """Return the value of a YAML scalar: a null, a boolean or a number only if it is written as one, else text."""
    text: str = node.value
    if node.style is not None:  # quoted text, or a block
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise JobError(f"{name} line {node.start_mark.line + 1}: a number of {len(text)} digits is too large")
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
