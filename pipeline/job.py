"""The job: one declared piece of work, from a YAML file or from Python."""

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline import templates, yamlfile
from pipeline.errors import JobError
from pipeline.tables import metadata

MAX_REQUESTS = 100_000  # of a batch. Source: platform.claude.com/docs/en/build-with-claude/batch-processing
MAX_BYTES = 256_000_000

#: Fields that the job file will have and this version does not: refused by name, so that nobody believes in them.
NOT_YET = {
    "source.query": "a SQL query as the source",
    "source.database": "a SQL query as the source",
    "request.messages": "turns before the prompt",
    "request.turns": "turns before the prompt",
    "request.attachments": "images and documents",
    "request.cache": "prompt caching",
    "request.betas": "beta features",
    "api": "other clients than the default one",
    "output.schema": "answers by a JSON schema",
    "output.tool": "answers by a tool",
    "output.columns": "answers by a JSON schema",
    "canary": "a canary (only `canary: false` is known so far)",
    "limits.deadline": "a deadline",
    "retry.change": "sending again with changes",
    "prices": "prices of your own",
}


class Section(BaseModel):
    """A part of a job file; fields it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_keep(value: Any) -> Any:
    """`[a, {b: c}]` as `{a: a, b: c}`: source column to results column."""
    if not isinstance(value, list):
        return value
    pairs = [pair for item in value for pair in (item.items() if isinstance(item, dict) else [(item, item)])]
    if any(not isinstance(name, str) for pair in pairs for name in pair):
        raise ValueError("must list columns, or {column: new name}")
    twice = {column for column, _ in pairs if [c for c, _ in pairs].count(column) > 1}
    if twice:
        raise ValueError(f"names {', '.join(map(repr, sorted(twice)))} more than once")
    return dict(pairs)


Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
NonEmpty = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[NonEmpty], BeforeValidator(_as_list), Field(min_length=1)]


RetryableError = Literal[
    "expired",
    "api_error",
    "overloaded_error",
    "timeout_error",
    "rate_limit_error",
    "conflict_error",
    "invalid_request_error",
    "not_found_error",
    "authentication_error",
    "permission_error",
    "billing_error",
]


class Source(Section):
    """Where the rows come from, and what identifies each."""

    path: Texts
    key: Texts
    types: dict[str, str] = {}
    encoding: str = "utf-8"
    nulls: Literal["invalid", "empty"] = "invalid"
    where: str | None = None
    keep: Annotated[dict[str, str], BeforeValidator(_as_keep)] = {}

    @field_validator("key")
    @classmethod
    def _keys_differ(cls, key: list[str]) -> list[str]:
        twice = [column for i, column in enumerate(key) if column in key[:i]]
        if twice:
            raise ValueError(f"names column {twice[0]!r} more than once")
        return key


class Request(Section):
    """What is asked of the model for each row."""

    model: NonEmpty
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=300_000)]
    system: NonEmpty | list[dict[str, Any]] | None = None
    prompt: NonEmpty
    params: dict[str, Any] = {}
    dedupe: bool = True

    @field_validator("prompt")
    @classmethod
    def _prompt_compiles(cls, prompt: str) -> str:
        try:
            templates.names(prompt)
        except templates.TemplateProblem as exc:
            raise ValueError(str(exc)) from exc
        return prompt


class Output(Section):
    """What becomes of an answer: its text as it is, or one of `labels`."""

    labels: list[NonEmpty] | None = None

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        folded = [fold(label) for label in self.labels or ()]
        if self.labels is not None and len(folded) < 2:
            raise ValueError("labels needs at least two labels to choose from")
        for i, label in enumerate(folded):
            if label in folded[:i]:
                raise ValueError(f"labels {self.labels[i]!r} and another are the same without case and outer blanks")  # type: ignore[index]
        return self


class Sink(Section):
    """The results table."""

    table: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")]
    history: bool = False

    @field_validator("table")
    @classmethod
    def _table_is_free(cls, table: str) -> str:
        if table.lower() in metadata.tables or table.lower() == "alembic_version":
            raise ValueError("is a table of the pipeline's own; choose another name")
        if table.lower().startswith("sqlite_"):
            raise ValueError("names that begin with sqlite_ are SQLite's own; choose another name")
        return table


class Limits(Section):
    """What a run may do at most."""

    max_cost_usd: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_batch_requests: Annotated[int, Field(ge=1, le=MAX_REQUESTS)] = 25_000
    max_batch_bytes: Annotated[int, Field(ge=1_000, le=MAX_BYTES)] = 240_000_000
    max_in_flight_requests: Annotated[int, Field(ge=1)] = 200_000


class Retry(Section):
    """Which results are asked for again, and how often."""

    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    errors: list[RetryableError] = ["expired", "api_error", "overloaded_error", "timeout_error", "rate_limit_error"]


class Privacy(Section):
    """What is removed once it is collected. delete_remote: the batch at the API, too; keep_spool: bodies stay."""

    delete_remote: bool = False
    keep_spool: bool = False


class Job(Section):
    """One declared piece of work: rows, what to ask of each, and the table of the answers.

    From a file with `load`; in Python with the same fields, where relative paths are relative to the current folder.
    """

    name: Name
    vars: dict[str, str | int | float | bool] = {}
    source: Source
    request: Request
    output: Output = Output()
    sink: Sink
    canary: Literal[False] = False
    limits: Limits = Limits()
    retry: Retry = Retry()
    privacy: Privacy = Privacy()

    @field_validator("vars")
    @classmethod
    def _vars_fit_json(cls, variables: dict[str, Any]) -> dict[str, Any]:
        for name, value in variables.items():
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"{name} is too large a number; put it into quotes")
        return variables

    @property
    def recipe(self) -> str:
        """16 hex digits: a hash of what is asked and what is made of the answer, vars filled in.

        A field that is left to its default does not count, so that a new kind of field makes nothing new; nor does a
        var that only says where the rows are (a date in the path).
        """
        named = templates.names(self.request.prompt).variables
        used = {name: self.vars[name] for name in sorted(named) if name in self.vars}
        content = {part: getattr(self, part).model_dump(exclude_defaults=True) for part in ("request", "output")}
        content["vars"] = used
        return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def fold(label: str) -> str:
    """A label as it is compared: without case and outer blanks."""
    return label.strip().casefold()


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
        harmless = (field == "canary" and at is False) or (field == "api" and at == {"client": "default"})
        if at is not ... and not harmless:
            raise _FieldError(parts, f"this version does not have {what} yet; remove the field")
    fields.pop("api", None)


def _filled(value: Any, path: yamlfile.Path, variables: Mapping[str, Any]) -> Any:
    """`value` with vars filled into every string, but for the prompt, whose columns are filled in row by row."""
    if isinstance(value, dict):
        return {key: _filled(child, (*path, key), variables) for key, child in value.items()}
    if isinstance(value, list):
        return [_filled(child, (*path, i), variables) for i, child in enumerate(value)]
    if not isinstance(value, str) or path[:2] == ("request", "prompt") or path[:1] == ("vars",):
        return value
    try:
        return templates.fill_vars(value, variables)
    except templates.TemplateProblem as exc:
        raise _FieldError(path, f"{exc}; only vars can stand here") from exc


def _resolve_paths(fields: dict[str, Any], folder: Path) -> None:
    source = fields.get("source")
    if isinstance(source, dict) and isinstance(source.get("path"), str | list):
        source["path"] = [_resolved(path, folder.absolute()) for path in _as_list(source["path"])]


def _resolved(path: Any, folder: Path) -> Any:
    if not isinstance(path, str) or not path or re.match(r"[a-z0-9]+://", path):
        return path
    if glob.has_magic(path) and not (folder / path).exists():
        return os.path.join(glob.escape(str(folder)), path)  # a pattern, not a path
    return str(folder / path)


def _sentences(exc: ValidationError, path: Path, lines: Mapping[yamlfile.Path, int]) -> Iterator[str]:
    said: set[yamlfile.Path] = set()
    for error in exc.errors():
        field = tuple(part for part in error["loc"] if not _is_type_name(part))
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


def _is_type_name(part: str | int) -> bool:
    """Whether this part of a place is pydantic's name of a type rather than a field."""
    return isinstance(part, str) and (
        "[" in part or part in ("str", "int", "float", "bool", "constrained-str", "constrained-int")
    )


def _did_you_mean(field: yamlfile.Path) -> str:
    import difflib

    model: Any = Job
    for part in field[:-1]:
        info = model.model_fields.get(str(part)) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = info.annotation if info else None
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return ""
    near = difflib.get_close_matches(str(field[-1]), model.model_fields, n=1)
    return f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(model.model_fields)})"


def _at(lines: Mapping[yamlfile.Path, int], field: yamlfile.Path) -> str:
    while field and field not in lines:
        field = field[:-1]
    return f" line {lines[field]}" if field in lines and field else ""


def _dotted(field: yamlfile.Path) -> str:
    return ".".join(map(str, field))
