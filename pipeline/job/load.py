"""Reads a job file: its variables, its paths, and each error as a sentence that names the field. Edge: files."""

import functools
import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any, get_args

from pydantic import (
    BaseModel,
    ValidationError,
)

from pipeline.errors import JobError
from pipeline.job import templates, yamlfile
from pipeline.job.model import NOT_YET, Job, Section, as_list


def load(path: Path, *, variables: Mapping[str, str], today: date, before: Mapping[str, Any] | None = None) -> Job:
    """The job that the file `path` declares, with vars filled in and source paths made absolute.

    variables: values that override the file's vars; before: those of an earlier run, which stand in for the file's;
    today: what the vars `today` and `yesterday` mean.
    Raises JobError that names the file, the line and the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        raise JobError(f"{path}: cannot read the job file: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise JobError(f"{path}: a job file is UTF-8 text, this one has other bytes at {exc.start}") from exc
    fields, lines = yamlfile.parse(text, str(path))
    try:
        fields["vars"] = _vars(fields.get("vars"), variables, today, before or {})
        _refuse_later_fields(fields)
        filled = _filled(fields, (), fields["vars"])
        _resolve_paths(filled, path.parent)
        return Job.model_validate(filled)
    except ValidationError as exc:
        raise JobError("; ".join(_sentences(exc, path, lines))) from exc
    except _FieldError as exc:
        raise JobError(f"{path}{_at(lines, exc.field)}: {exc}") from exc


class _FieldError(Exception):
    def __init__(self, field: yamlfile.Path, message: str) -> None:
        super().__init__(f"{_dotted(field)}: {message}" if field else message)
        self.field = field


def _vars(declared: Any, given: Mapping[str, str], today: date, before: Mapping[str, Any]) -> dict[str, Any]:
    if declared is None:
        declared = {}
    if not isinstance(declared, dict) or any(isinstance(v, dict | list) or v is None for v in declared.values()):
        raise _FieldError(("vars",), "must map names to texts or numbers, for example {run_date: today}")
    for name in given:
        if name not in declared:
            known = ", ".join(declared) or "none"
            raise _FieldError(("vars",), f"--var {name}: the job declares no such var (it declares: {known})")
    days = {"today": today.isoformat(), "yesterday": (today - timedelta(days=1)).isoformat()}
    merged = {**declared, **{name: value for name, value in before.items() if name in declared}, **given}
    return {name: days.get(value, value) if isinstance(value, str) else value for name, value in merged.items()}


def _refuse_later_fields(fields: dict[str, Any]) -> None:
    for field, what in NOT_YET.items():
        at: Any = fields
        parts = tuple(field.split("."))
        for part in parts:
            at = at.get(part, ...) if isinstance(at, dict) else ...
        if at is not ...:
            raise _FieldError(parts, f"this version does not have {what} yet; remove the field")


#: Fields whose texts may name columns, which are filled in row by row.
_OF_ROWS = (("request", "messages"), ("request", "model"), ("request", "max_tokens"))


def _filled(value: Any, path: yamlfile.Path, variables: Mapping[str, Any]) -> Any:
    """`value` with vars filled into every string, but for the prompt and what else names columns of the rows."""
    if isinstance(value, dict):
        return {key: _filled(child, (*path, key), variables) for key, child in value.items()}
    if isinstance(value, list):
        return [_filled(child, (*path, i), variables) for i, child in enumerate(value)]
    if not isinstance(value, str) or path[:2] == ("request", "prompt") or path[:1] == ("vars",):
        return value
    try:
        if path[:2] in _OF_ROWS and templates.is_template(value):
            named = templates.names(value)
            if named.columns or named.all_columns:
                return value
        filled = templates.fill_vars(value, variables)
    except templates.TemplateProblem as exc:
        raise _FieldError(path, f"{exc}; only vars can stand here") from exc
    number = path == ("request", "max_tokens") and filled != value and filled.strip().isdigit()
    return int(filled) if number else filled


def _resolve_paths(fields: dict[str, Any], folder: Path) -> None:
    source = fields.get("source")
    if not isinstance(source, dict):
        return
    if isinstance(source.get("path"), str | list):
        source["path"] = [_resolved(path, folder.absolute()) for path in as_list(source["path"])]
    database = source.get("database")
    if isinstance(database, str) and (relative := re.fullmatch(r"(sqlite:///)([^/:].*)", database)):
        source["database"] = f"{relative[1]}{folder.absolute() / relative[2]}"


def _resolved(path: Any, folder: Path) -> Any:
    if not isinstance(path, str) or not path or re.match(r"[a-z0-9]+://", path):
        return path
    if glob.has_magic(path) and not (folder / path).exists():
        return os.path.join(glob.escape(str(folder)), path)  # a pattern, not a path
    return str(folder / path)


def _sentences(exc: ValidationError, path: Path, lines: Mapping[yamlfile.Path, int]) -> Iterator[str]:
    said: set[yamlfile.Path] = set()
    for error in exc.errors():
        field = field_of(error["loc"])
        if field in said:  # each kind of value that a field can have complains; the first one says enough
            continue
        said.add(field)
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            message = "unknown field" + _did_you_mean(field)
        elif error["type"] == "missing":
            message = "this field is required"
        elif not isinstance(error["input"], dict | list):
            message = f"{message} (it is {error['input']!r})"
        yield f"{path}{_at(lines, field)}: {_dotted(field)}: {message}"


def field_of(place: Iterable[str | int]) -> tuple[str | int, ...]:
    """The field that pydantic means by the place of an error."""
    return tuple(part for part in place if not _is_type_name(part))


def _is_type_name(part: str | int) -> bool:
    """Whether this part of a place is pydantic's name of a type rather than a field."""
    plain = ("str", "int", "float", "bool", "constrained-str", "constrained-int")
    return isinstance(part, str) and ("[" in part or part in plain or part in _sections())


@functools.cache
def _sections() -> frozenset[str]:
    """The names of the classes of sections, by which pydantic tells the members of a union apart."""
    return frozenset(section.__name__ for section in Section.__subclasses__())


def _did_you_mean(field: yamlfile.Path) -> str:
    import difflib

    model: Any = Job
    for part in field[:-1]:
        info = model.model_fields.get(str(part)) if isinstance(model, type) and issubclass(model, BaseModel) else None
        kinds = [info.annotation, *get_args(info.annotation)] if info else []
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return ""
    known = [info.alias or name for name, info in model.model_fields.items()]
    near = difflib.get_close_matches(str(field[-1]), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(known)})"


def _at(lines: Mapping[yamlfile.Path, int], field: yamlfile.Path) -> str:
    while field and field not in lines:
        field = field[:-1]
    return f" line {lines[field]}" if field in lines and field else ""


def _dotted(field: yamlfile.Path) -> str:
    return ".".join(map(str, field))


def is_path(job: str, root: Path | None = None) -> bool:
    """Whether this is a job file's path rather than a job's name. root: where a relative path begins."""
    return ((root or Path()) / job).exists() or "/" in job or job.endswith((".yaml", ".yml"))


def name_in(file: Path) -> str:
    """The name of the job that a file declares; nothing else of it is checked. Raises JobError."""
    try:
        fields, _ = yamlfile.parse(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as exc:
        raise JobError(f"{file}: cannot read the job file: {exc}") from exc
    if not isinstance(fields.get("name"), str):
        raise JobError(f"{file}: name: this field is required")
    return str(fields["name"])
