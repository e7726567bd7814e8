"""YAML 1.2 text to plain values, each with the line it stands on.

ruamel.yaml parses; the values are made here because a job file means what it shows: `yes`, `on`, dates and 01234
stay text, and a key given twice is an error instead of a silent choice.
"""

import re
from collections.abc import Iterable
from typing import Any

from pipeline.errors import JobError

Path = tuple[str | int, ...]

DEEPEST = 50  # levels: an alias inside of its own anchor would go down for ever
LONGEST_NUMBER = 100  # digits
MOST_VALUES = 100_000  # in a job file: a few aliases of aliases would make billions

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_BARE_BRACES = re.compile(r"(?:^ *|[:\-?] +|[\[{,] *)(\{[{%].*)")  # where YAML sees the start of a value
_WORDS = {"": None, "~": None, **dict.fromkeys(("null", "Null", "NULL"))}
_WORDS |= {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}


def parse(text: str, name: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """The mapping that `text` holds, and the line (from 1) of each of its fields by path.

    name: how messages call the text, usually its file. Raises JobError for what is no YAML mapping.
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
        value = None if root is None else _value(root, (), lines, name)
    except _NotText as exc:
        _refuse_bare_braces(text, [exc.line], name)
        raise JobError(f"{name} line {exc.line + 1}: a field's name must be text") from None
    if not isinstance(value, dict):
        raise JobError(f"{name}: a job file is a mapping of fields (name:, source:, request:, sink:)")
    return value, lines


class _NotText(Exception):
    """A field's name is a list or a mapping. line: from 0."""

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


def _refuse_deep(events: Iterable[Any], name: str) -> None:
    """Raises JobError at the first value that is nested too deeply: for thousands of levels `compose` needs seconds."""
    from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

    depth = 0
    for event in events:
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > DEEPEST:
            raise _too_deep(event, name)


def _too_deep(place: Any, name: str) -> JobError:
    return JobError(f"{name} line {place.start_mark.line + 1}: values are nested more than {DEEPEST} levels deep")


def _refuse_bare_braces(text: str, lines: Iterable[int], name: str) -> None:
    """Raises JobError if a value begins with {{ or {% on one of these lines, from 0: in YAML that is a mapping."""
    written = text.splitlines()
    for line in lines:
        if line < len(written) and (found := _BARE_BRACES.search(written[line])):
            start, value = written[line][: found.start(1)].strip(), found[1].rstrip()
            quoted = f"'{value}'" if '"' in value else f'"{value}"'
            raise JobError(
                f"{name} line {line + 1}: YAML takes braces at the start of a value for a mapping; put the text into "
                f"quotes: {start} {quoted}"
            ) from None


def _value(node: Any, path: Path, lines: dict[Path, int], name: str) -> Any:
    from ruamel.yaml.nodes import MappingNode, SequenceNode

    lines.setdefault(path, node.start_mark.line + 1)
    if len(path) > DEEPEST:
        raise _too_deep(node, name)
    if len(lines) > MOST_VALUES:
        raise JobError(
            f"{name} line {node.start_mark.line + 1}: the file holds more than {MOST_VALUES:,} values, each alias "
            "counted as what it stands for; write fewer"
        )
    if isinstance(node, SequenceNode):
        return [_value(child, (*path, i), lines, name) for i, child in enumerate(node.value)]
    if not isinstance(node, MappingNode):
        return _scalar(node, name)
    mapping: dict[str, Any] = {}
    for key_node, child in node.value:
        key = key_node.value
        if not isinstance(key, str):
            raise _NotText(key_node.start_mark.line)
        if key in mapping:
            first = lines[(*path, key)]
            line = key_node.start_mark.line + 1
            raise JobError(f"{name} line {line}: field {key!r} stands twice (first on line {first}); remove one")
        lines[(*path, key)] = key_node.start_mark.line + 1
        mapping[key] = _value(child, (*path, key), lines, name)
    return mapping


def _scalar(node: Any, name: str) -> str | int | float | bool | None:
    text: str = node.value
    if node.style is not None:  # quoted or a block: text as it stands
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        if len(text) > LONGEST_NUMBER:
            raise JobError(f"{name} line {node.start_mark.line + 1}: a number of {len(text)} digits is too large")
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
