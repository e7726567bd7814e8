"""Load a job from a job file: fill in vars, resolve paths, and name the field in each error. Edge: files."""

import glob
import os
import re
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.errors import JobError
from pipeline.job import templates, yamlfile
from pipeline.job.model import FUTURE_FIELDS, Job
from pipeline.job.refusals import dotted, refusals
from pipeline.job.section import as_list


def load(path: Path, *, variables: Mapping[str, str], today: date, before: Mapping[str, Any] | None = None) -> Job:
    """Return the job that a job file declares, with vars filled in and source paths made absolute.

    variables: values given by the user, which override all others. before: the vars of an earlier run, which override
    the values in the file; None if there is none. today: the date that the var values `today` and `yesterday` refer to.
    Raises JobError, which names the file, the line and the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        raise JobError(f"{path}: cannot read the job file: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise JobError(f"{path}: byte {exc.start + 1} is not valid UTF-8; save the job file as UTF-8 text") from exc
    fields, lines = yamlfile.parse(text, str(path))
    try:
        fields["vars"] = _vars(fields.get("vars"), variables, today, before or {})
        _refuse_later_fields(fields)
        filled = _filled(fields, (), fields["vars"])
        _resolve_paths(filled, path.parent)
        return Job.model_validate(filled)
    except ValidationError as exc:
        raise JobError("; ".join(_error_sentences(exc, path, lines))) from exc
    except _FieldError as exc:
        raise JobError(f"{path}{_line_suffix(lines, exc.field)}: {exc}") from exc


class _FieldError(Exception):
    """A field's value is wrong. field: its path; the message names it."""

    def __init__(self, field: yamlfile.Path, message: str) -> None:
        super().__init__(f"{dotted(field)}: {message}" if field else message)
        self.field = field


def _vars(declared: Any, given: Mapping[str, str], today: date, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of each declared var: `given`, else of the run `before`, else from the file."""
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
    """Raise _FieldError for a field that only a later version will have."""
    for field, what in FUTURE_FIELDS.items():
        at: Any = fields
        parts = tuple(field.split("."))
        for part in parts:
            at = at.get(part, ...) if isinstance(at, dict) else ...
        if at is not ...:
            raise _FieldError(parts, f"this version does not have {what} yet; remove the field")


#: Fields whose texts may be templates over columns, which are filled in for each row.
_ROW_TEMPLATES = (("request", "messages"), ("request", "model"), ("request", "max_tokens"))


def _filled(value: Any, path: yamlfile.Path, variables: Mapping[str, Any]) -> Any:
    """Fill vars into every text of a value, except the prompt and other templates that name columns.

    path: of the field that holds the value. Raises _FieldError.
    """
    if isinstance(value, dict):
        return {key: _filled(child, (*path, key), variables) for key, child in value.items()}
    if isinstance(value, list):
        return [_filled(child, (*path, i), variables) for i, child in enumerate(value)]
    if not isinstance(value, str) or path[:2] == ("request", "prompt") or path[:1] == ("vars",):
        return value
    try:
        if path[:2] in _ROW_TEMPLATES and templates.is_template(value):
            named = templates.names(value)
            if named.columns or named.all_columns:
                return value
        filled = templates.fill_vars(value, variables)
    except templates.TemplateProblem as exc:
        raise _FieldError(path, f"{exc}; in this field a template can use only vars") from exc
    number = path == ("request", "max_tokens") and filled != value and filled.strip().isdigit()
    return int(filled) if number else filled


def fill(value: Any, field: str, variables: Mapping[str, Any]) -> Any:
    """Return a value for a field such as `request.system` with vars filled in, as `load` does. Raises JobError."""
    try:
        return _filled(value, tuple(field.split(".")), variables)
    except _FieldError as exc:
        raise JobError(str(exc)) from exc


def _resolve_paths(fields: dict[str, Any], folder: Path) -> None:
    """Make the paths in source.path, gold.path, rounds.folder, and that of a SQLite database, absolute in place.

    folder: the job file's.
    """
    rounds = fields.get("rounds")
    if isinstance(rounds, dict) and isinstance(rounds.get("folder", ""), str):
        rounds["folder"] = str(folder.absolute() / rounds.get("folder", ""))
    gold = fields.get("gold")
    if isinstance(gold, dict) and isinstance(gold.get("path"), str):
        gold["path"] = _resolved(gold["path"], folder.absolute())
    source = fields.get("source")
    if not isinstance(source, dict):
        return
    if isinstance(source.get("path"), str | list):
        source["path"] = [_resolved(path, folder.absolute()) for path in as_list(source["path"])]
    database = source.get("database")
    if isinstance(database, str) and (relative := re.fullmatch(r"(sqlite:///)([^/:].*)", database)):
        source["database"] = f"{relative[1]}{folder.absolute() / relative[2]}"


def _resolved(path: Any, folder: Path) -> Any:
    """Return a path or pattern of source.path below the folder; URLs, and values that are not text, are unchanged."""
    if not isinstance(path, str) or not path or re.match(r"[a-z0-9]+://", path):
        return path
    if glob.has_magic(path) and not (folder / path).exists():
        return os.path.join(glob.escape(str(folder)), path)  # a pattern, not a path
    return str(folder / path)


def _error_sentences(exc: ValidationError, path: Path, lines: Mapping[yamlfile.Path, int]) -> Iterator[str]:
    """Yield one sentence for each field that pydantic refused, with the file and the line."""
    for refused in refusals(exc, Job):
        yield f"{path}{_line_suffix(lines, refused.field)}: {dotted(refused.field)}: {refused.message}"


def _line_suffix(lines: Mapping[yamlfile.Path, int], field: yamlfile.Path) -> str:
    """Return " line N" for the field, or for the innermost section around it that has a line; else an empty text."""
    while field and field not in lines:
        field = field[:-1]
    return f" line {lines[field]}" if field in lines and field else ""
