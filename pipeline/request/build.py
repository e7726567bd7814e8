"""A row to a request's `params`, as the bytes that are sent. Pure but for attachments, whose files it has read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import orjson

from pipeline.errors import JobError, RowProblem
from pipeline.job import templates
from pipeline.job.model import MAX_TOKENS, Job, Turn, map_texts, template_texts
from pipeline.money.budget import attachment_tokens
from pipeline.money.prices import LARGEST_CONTEXT, context_window
from pipeline.request.attachments import Attachments
from pipeline.request.media import Content
from pipeline.request.turns import first_of_user, turns
from pipeline.storage.folders import Folder

Row = Mapping[str, Any]
Render = Callable[[Row], str]


@dataclass(frozen=True)
class SourceColumns:
    """The source columns that requests are made of. all_columns: a template looks them up by a name of the row's."""

    templates: tuple[str, ...]  #: and the one with earlier turns
    attachments: tuple[str, ...]
    all_columns: bool


class Built(NamedTuple):
    """One request. params: compact UTF-8 JSON; the rest is what its price depends on, see budget.Bound."""

    params: bytes
    model: str
    max_tokens: int
    attachment_tokens: int
    caches: bool


class RequestBuilder:
    """Builds the `params` of one job's requests. What is the same for every row is serialized once."""

    def __init__(self, job: Job) -> None:
        """Raises JobError when a template does not compile or names vars that the job does not declare."""
        request = job.request
        named = {field: _names(job, field, text) for field, text in request.templates().items()}
        self.named: dict[str, tuple[str, ...]] = {field: tuple(sorted(n.columns)) for field, n in named.items()}
        if request.turns is not None:
            self.named["request.turns"] = (request.turns,)
        of_templates = {column for columns in self.named.values() for column in columns}
        self.uploaded: Callable[[Content], str] = stand_in  #: puts a file up, and gives its id
        small = context_window(request.model) < LARGEST_CONTEXT
        attachments = partial(Attachments, nulls=job.source.nulls, small_context=small)
        self.attachments = attachments(request.attachments, uploaded=lambda content: self.uploaded(content))
        self._carried = attachments([each.model_copy(update={"upload": False}) for each in request.attachments])
        self.columns = SourceColumns(
            tuple(sorted(of_templates)),
            self.attachments.columns,
            any(n.all_columns for n in named.values()),
        )
        if request.attachments:
            self.named["request.attachments"] = self.attachments.columns
        self.functions = {field: n.functions for field, n in named.items()}
        self._job = job
        self._prompt = self._renderer(request.prompt)
        self._model = self._renderer(request.model) if templates.is_template(request.model) else None
        self._max_tokens = self._renderer(request.max_tokens) if isinstance(request.max_tokens, str) else None
        fixed, self._turns = shared(job)
        self._of_each_row = [self._turn_renderer(turn) for turn in request.messages[len(self._turns) :]]
        self._plain = not (self._of_each_row or request.turns or request.attachments)
        fields = orjson.dumps(fixed)[1:-1] + b"," if fixed else b""
        turns = b"".join(orjson.dumps(turn) + b"," for turn in self._turns)
        self._shared = fields + b'"messages":[' + turns
        self._caches = b"cache_control" in self._shared
        self._before = b""
        if isinstance(request.max_tokens, int):
            self._before = self._opened(request.model, request.max_tokens)

    @property
    def uploads(self) -> bool:
        """Whether files are put up, instead of being carried by the requests."""
        return any(attachment.upload for attachment in self._job.request.attachments)

    def params(self, row: Row, folder: Folder | None = None, *, carried: bool = False) -> Built:
        """This row's request.

        row: column name to value; folder: of the file that the row stands in, where its attachments are; carried: with
        all files in it, also those to be put up. Raises RowProblem with the reason when this row cannot be sent, and
        templates.TemplateProblem when the template may not run at all.
        """
        prompt = self._prompt(row)
        if not prompt or prompt.isspace():
            raise RowProblem("the prompt is empty")
        try:
            model, max_tokens, opening = self._opening(row)
            if self._plain:
                params = b"".join((opening, b'{"role":"user","content":', orjson.dumps(prompt), b"}]}"))
                return Built(params, model, max_tokens, 0, self._caches)
            messages = self._conversation(row, prompt, folder, self._carried if carried else self.attachments)
            said = b",".join(orjson.dumps(turn) for turn in messages) + b"]}"
        except orjson.JSONEncodeError as exc:
            raise RowProblem(f"the request is not valid Unicode text: {exc}") from exc
        not_text = attachment_tokens({"model": model, "messages": [*self._turns, *messages]})
        return Built(opening + said, model, max_tokens, not_text, self._caches or b"cache_control" in said)

    def _opening(self, row: Row) -> tuple[str, int, bytes]:
        """Model, max_tokens, and the request up to its first turn that is not shared."""
        model, max_tokens = self._job.request.model, self._job.request.max_tokens
        if self._model is None and isinstance(max_tokens, int):
            return model, max_tokens, self._before
        if self._model is not None:
            model = self._model(row).strip()
            if not model:
                raise RowProblem("request.model is empty for this row")
        if self._max_tokens is not None:
            max_tokens = _whole_number(self._max_tokens(row))
        assert isinstance(max_tokens, int)
        return model, max_tokens, self._opened(model, max_tokens)

    def _opened(self, model: str, max_tokens: int) -> bytes:
        return b'{"model":' + orjson.dumps(model) + b',"max_tokens":' + str(max_tokens).encode() + b"," + self._shared

    def _conversation(
        self, row: Row, prompt: str, folder: Folder | None, attachments: Attachments
    ) -> list[dict[str, Any]]:
        """The turns that are not the same for every row, and the prompt."""
        messages = [render(row) for render in self._of_each_row]
        column = self._job.request.turns
        if column is not None:
            messages += turns(column, row[column])
        content: str | list[dict[str, Any]] = prompt
        if self._job.request.attachments:
            assert folder is not None
            blocks = attachments.blocks(row, folder)
            content = [*blocks, {"type": "text", "text": prompt}] if blocks else prompt
        messages.append({"role": "user", "content": content})
        first_of_user([*self._turns, *messages])
        return messages

    def _renderer(self, template: str) -> Render:
        return templates.renderer(template, self._job.vars, self._job.source.nulls)

    def _turn_renderer(self, turn: Turn) -> Callable[[Row], dict[str, Any]]:
        renders = {text: self._renderer(text) for text in template_texts(turn.content)}

        def rendered(row: Row) -> dict[str, Any]:
            def fill(text: str) -> str:
                return _not_empty(renders[text](row), "request.messages")

            return {"role": turn.role, "content": map_texts(turn.content, fill)}

        return rendered


def stand_in(content: Content) -> str:
    """What stands in a request for a file that is put up when the request is planned."""
    return f"file_{content.sha256[:24]}"


def fixed_params(job: Job) -> dict[str, Any]:
    """What every request of the job carries beside its turns; without a model or max_tokens that each row has."""
    request = job.request
    params: dict[str, Any] = {} if templates.is_template(request.model) else {"model": request.model}
    if isinstance(request.max_tokens, int):
        params["max_tokens"] = request.max_tokens
    return params | shared(job)[0]


def shared(job: Job) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What is the same in all requests of a job: params but for model and max_tokens, and the first turns.

    With `cache` a breakpoint stands at the end of it.
    """
    request, params = job.request, dict(job.request.params)
    if request.system is not None:
        params = {"system": request.system, **params}
    wanted = _format(job)
    if wanted is not None:
        params["output_config"] = {**params.get("output_config", {}), "format": wanted}
    if job.output.tool is not None:
        params.setdefault("tool_choice", {"type": "tool", "name": job.output.tool})
    turns = []
    for turn in request.messages:
        if any(_of_rows(job, text) for text in template_texts(turn.content)):
            break
        turns.append(_filled(job, turn))
    if request.cache is not None:
        _put_breakpoint(params, turns, {"type": "ephemeral", "ttl": request.cache})
    return params, turns


def _put_breakpoint(params: dict[str, Any], turns: list[dict[str, Any]], control: dict[str, str]) -> None:
    """cache_control on the last block of what is shared: the prompt is tools, then system, then turns."""
    if turns:
        turns[-1] = {**turns[-1], "content": _marked(turns[-1]["content"], control)}
    elif params.get("system"):
        params["system"] = _marked(params["system"], control)
    elif isinstance(params.get("tools"), list) and params["tools"]:
        params["tools"] = [*params["tools"][:-1], {**params["tools"][-1], "cache_control": control}]


def _marked(content: str | list[dict[str, Any]], control: dict[str, str]) -> list[dict[str, Any]]:
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [*blocks[:-1], {**blocks[-1], "cache_control": control}]


def _names(job: Job, field: str, template: str) -> templates.Names:
    try:
        named = templates.names(template)
    except templates.TemplateProblem as exc:
        raise JobError(f"{field}: {exc}") from exc
    unknown = named.variables - set(job.vars)
    if unknown:
        raise JobError(f"{field}: vars.{sorted(unknown)[0]} is not among the vars that the job declares")
    return named


def _of_rows(job: Job, template: str) -> bool:
    """Whether the template's text depends on the row."""
    named = _names(job, "request.messages", template)
    return bool(named.columns) or named.all_columns


def _filled(job: Job, turn: Turn) -> dict[str, Any]:
    """A turn that only names vars, if anything."""
    content = map_texts(turn.content, lambda text: templates.renderer(text, job.vars, "invalid")({}))
    return {"role": turn.role, "content": content}


def _format(job: Job) -> dict[str, Any] | None:
    """The format of the answer that `output` asks for; None for free text and tools."""
    if job.output.schema_ is not None:
        return {"type": "json_schema", "schema": job.output.schema_}
    if job.output.labels is None:
        return None
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": job.output.labels}},
        "required": ["label"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "schema": schema}


def _whole_number(text: str) -> int:
    """max_tokens as a row gives it: 300, or 300.0 of a column of numbers."""
    number = text.strip().removesuffix(".0")
    if not number.isascii() or not number.isdigit() or not 1 <= int(number) <= MAX_TOKENS:
        raise RowProblem(f"request.max_tokens is {text.strip()[:40]!r} for this row; it must be 1 to {MAX_TOKENS:,}")
    return int(number)


def _not_empty(text: str, field: str) -> str:
    if not text or text.isspace():
        raise RowProblem(f"{field}: a turn is empty for this row")
    return text
