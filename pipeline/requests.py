"""A row to a request's `params`, as the bytes that are sent. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline import templates
from pipeline.errors import JobError
from pipeline.job import Job
from pipeline.templates import RowProblem


@dataclass(frozen=True)
class Columns:
    """The source columns that a job reads: for the prompt, as key, and to keep."""

    prompt: tuple[str, ...]
    all_columns: bool


class RequestBuilder:
    """Builds the `params` of one job's requests.

    Everything but the prompt is the same for every row, so it is serialized once.
    """

    def __init__(self, job: Job) -> None:
        """Raises JobError when the prompt does not compile or names vars that the job does not declare."""
        try:
            named = templates.names(job.request.prompt)
        except templates.TemplateProblem as exc:
            raise JobError(f"request.prompt: {exc}") from exc
        unknown = named.variables - set(job.vars)
        if unknown:
            raise JobError(f"request.prompt: vars.{sorted(unknown)[0]} is not among the vars that the job declares")
        self.columns = Columns(tuple(sorted(named.columns)), named.all_columns)
        self.functions = named.functions
        self._render = templates.renderer(job.request.prompt, job.vars, job.source.nulls)
        self._before, self._after = _envelope(job)

    def params(self, row: Mapping[str, Any]) -> bytes:
        """The `params` of this row's request: compact UTF-8 JSON.

        row: column name to value. Raises RowProblem with the reason when this row cannot be sent, and
        templates.TemplateProblem when the template may not run at all.
        """
        prompt = self._render(row)
        if not prompt or prompt.isspace():
            raise RowProblem("the prompt is empty")
        try:
            return self._before + orjson.dumps(prompt) + self._after
        except orjson.JSONEncodeError as exc:
            raise RowProblem(f"the prompt is not valid Unicode text: {exc}") from exc


def fixed_params(job: Job) -> dict[str, Any]:
    """What every request of the job carries beside its messages, as the Messages API takes it."""
    request = job.request
    params: dict[str, Any] = {"model": request.model, "max_tokens": request.max_tokens}
    if request.system is not None:
        params["system"] = request.system
    params.update(request.params)
    if job.output.labels is not None:
        params["output_config"] = {**params.get("output_config", {}), "format": _labels_format(job.output.labels)}
    return params


def _labels_format(labels: list[str]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": labels}},
        "required": ["label"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "schema": schema}


def _envelope(job: Job) -> tuple[bytes, bytes]:
    return orjson.dumps(fixed_params(job))[:-1] + b',"messages":[{"role":"user","content":', b"}]}"
