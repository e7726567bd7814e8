"""Which bytes are sent as the `params` of a row's request? Pure, except that attachments read files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import orjson
import polars as pl

from pipeline.errors import JobError, RowProblem
from pipeline.job import templates
from pipeline.job.model import MAX_TOKENS, Job, Turn, map_texts, template_texts
from pipeline.money.budget import attachment_tokens
from pipeline.money.prices import LARGEST_CONTEXT, context_window
from pipeline.request import bulk
from pipeline.request.attachments import Attachments
from pipeline.request.media import Content
from pipeline.request.turns import require_user_at_both_ends, require_user_first, turns
from pipeline.storage.folders import Folder

_TURN = b'{"role":"user","content":'

Row = Mapping[str, Any]
Render = Callable[[Row], str]


@dataclass(frozen=True)
class SourceColumns:
    """The source columns that requests use. all_columns: all, because a row's value names a column."""

    templates: tuple[str, ...]  #: includes the column with earlier turns
    attachments: tuple[str, ...]
    all_columns: bool


class Built(NamedTuple):
    """One request. params: compact UTF-8 JSON; the other fields decide its price, see budget.Bound."""

    params: bytes
    model: str
    max_tokens: int
    attachment_tokens: int
    caches: bool


class RequestBuilder:
    """Builds the `params` of a job's requests. The part that is equal for all rows is serialized once."""

    def __init__(self, job: Job) -> None:
        """Raise JobError if a template does not compile or names vars that the job does not declare."""
        request = job.request
        named = {field: _names(job, field, text) for field, text in request.templates().items()}
        self.named: dict[str, tuple[str, ...]] = {field: tuple(sorted(n.columns)) for field, n in named.items()}
        if request.turns is not None:
            self.named["request.turns"] = (request.turns,)
        template_columns = {column for columns in self.named.values() for column in columns}
        self.uploaded: Callable[[Content], str] = placeholder_file_id  #: uploads a file and returns its id
        small_context = bool(request.attachments) and context_window(request.model) < LARGEST_CONTEXT
        attachments = partial(Attachments, nulls=job.source.nulls, small_context=small_context)
        self.attachments = attachments(request.attachments, uploaded=lambda content: self.uploaded(content))
        self._inline_attachments = attachments(
            [each.model_copy(update={"upload": False}) for each in request.attachments]
        )
        self.columns = SourceColumns(
            tuple(sorted(template_columns)),
            self.attachments.columns,
            any(n.all_columns for n in named.values()),
        )
        if request.attachments:
            self.named["request.attachments"] = self.attachments.columns
        self.functions = {field: n.functions for field, n in named.items()}
        self._job = job
        self._prompt = None if request.prompt is None else self._renderer(request.prompt)
        self._model = self._renderer(request.model) if templates.is_template(request.model) else None
        self._max_tokens = self._renderer(request.max_tokens) if isinstance(request.max_tokens, str) else None
        fixed, self._turns = shared(job)
        self._row_turns = [self._turn_renderer(turn) for turn in request.messages[len(self._turns) :]]
        self._plain = request.prompt is not None and not (self._row_turns or request.turns or request.attachments)
        fields = orjson.dumps(fixed)[1:-1] + b"," if fixed else b""
        turns = b"".join(orjson.dumps(turn) + b"," for turn in self._turns)
        self._shared = fields + b'"messages":[' + turns
        self._caches = b"cache_control" in self._shared
        self._fixed_opening = b""
        if isinstance(request.max_tokens, int):
            self._fixed_opening = self._opening_bytes(request.model, request.max_tokens)
        #: the prompt if requests differ in nothing else and it needs no Jinja; None otherwise; see `plain_params`
        self.plain_prompt: templates.Plain | None = None
        if self._plain and request.prompt and self._model is None and isinstance(request.max_tokens, int):
            self.plain_prompt = templates.plain(request.prompt, job.vars)

    def plain_params(self, columns: Sequence[Sequence[Any]]) -> list[bytes]:
        """Return the params of many rows, as `params` does for one; b"" for an empty prompt.

        columns: for each place of `plain_prompt` the texts, numbers or booleans of all rows, already converted.
        """
        assert self.plain_prompt is not None
        before, pattern, dumps = self._fixed_opening + _TURN, self.plain_prompt.pattern, orjson.dumps
        prompts = (pattern % values for values in zip(*columns, strict=True))
        return [b"%b%b}]}" % (before, dumps(prompt)) if prompt and not prompt.isspace() else b"" for prompt in prompts]

    def bulk_params(self, columns: Sequence[pl.Series]) -> list[bytes] | None:
        """Return the params of many rows as `plain_params` does, in less time; b"", too, for a row with a null.

        columns: for each place of `plain_prompt`, which must print the column unchanged. None if a column's type does
        not allow it.
        """
        assert self.plain_prompt is not None
        if not bulk.is_possible(columns):
            return None
        return bulk.params(self._fixed_opening, self.plain_prompt.pattern, columns)

    def plain_facts(self) -> "Built":
        """Return what is equal for all requests of `plain_params`; params is empty."""
        model, max_tokens = self._job.request.model, self._job.request.max_tokens
        assert isinstance(max_tokens, int)
        return Built(b"", model, max_tokens, 0, self._caches)

    @property
    def uploads(self) -> bool:
        """Return whether any attachment is uploaded instead of being sent inside the requests."""
        return any(attachment.upload for attachment in self._job.request.attachments)

    def params(self, row: Row, folder: Folder | None = None, *, inline_files: bool = False) -> Built:
        """Return the request of a row.

        row: values by column name; folder: where the row's attachments are, the folder of its data file;
        inline_files: put all files inside the request, also those with `upload`. Raises RowProblem with the reason if
        this row cannot be sent, and templates.TemplateProblem if the template may not run at all.
        """
        prompt = None if self._prompt is None else self._prompt(row)
        if prompt is not None and (not prompt or prompt.isspace()):
            raise RowProblem("the prompt is empty")
        try:
            model, max_tokens, opening = self._opening(row)
            if self._plain:
                params = b"".join((opening, _TURN, orjson.dumps(prompt), b"}]}"))
                return Built(params, model, max_tokens, 0, self._caches)
            messages = self._conversation(
                row, prompt, folder, self._inline_attachments if inline_files else self.attachments
            )
            rest = b",".join(orjson.dumps(turn) for turn in messages) + b"]}"
            if not messages:  # all turns are shared, and each of them is followed by a comma
                opening = opening.removesuffix(b",")
        except orjson.JSONEncodeError as exc:
            raise RowProblem(f"the request is not valid Unicode text: {exc}") from exc
        attached_tokens = attachment_tokens({"model": model, "messages": [*self._turns, *messages]})
        return Built(opening + rest, model, max_tokens, attached_tokens, self._caches or b"cache_control" in rest)

    def _opening(self, row: Row) -> tuple[str, int, bytes]:
        """Return model, max_tokens, and the bytes of the request before its first turn that depends on the row."""
        model, max_tokens = self._job.request.model, self._job.request.max_tokens
        if self._model is None and isinstance(max_tokens, int):
            return model, max_tokens, self._fixed_opening
        if self._model is not None:
            model = self._model(row).strip()
            if not model:
                raise RowProblem("request.model is empty for this row")
        if self._max_tokens is not None:
            max_tokens = _whole_number(self._max_tokens(row))
        assert isinstance(max_tokens, int)
        return model, max_tokens, self._opening_bytes(model, max_tokens)

    def _opening_bytes(self, model: str, max_tokens: int) -> bytes:
        """Return the bytes of a request before its first turn that depends on the row."""
        return b'{"model":' + orjson.dumps(model) + b',"max_tokens":' + str(max_tokens).encode() + b"," + self._shared

    def _conversation(
        self, row: Row, prompt: str | None, folder: Folder | None, attachments: Attachments
    ) -> list[dict[str, Any]]:
        """Return the turns that depend on the row; the last one holds the prompt. prompt: None if the job has none."""
        messages = [render(row) for render in self._row_turns]
        column = self._job.request.turns
        if column is not None:
            messages += turns(column, row[column])
        if prompt is None:
            require_user_at_both_ends([*self._turns, *messages])
            return messages
        content: str | list[dict[str, Any]] = prompt
        if self._job.request.attachments:
            assert folder is not None
            blocks = attachments.blocks(row, folder)
            content = [*blocks, {"type": "text", "text": prompt}] if blocks else prompt
        messages.append({"role": "user", "content": content})
        require_user_first([*self._turns, *messages])
        return messages

    def _renderer(self, template: str) -> Render:
        return templates.renderer(template, self._job.vars, self._job.source.nulls)

    def _turn_renderer(self, turn: Turn) -> Callable[[Row], dict[str, Any]]:
        """Return a function that makes a row's turn from the templates in `turn`."""
        renders = {text: self._renderer(text) for text in template_texts(turn.content)}

        def rendered(row: Row) -> dict[str, Any]:
            def fill(text: str) -> str:
                return _not_empty(renders[text](row), "request.messages")

            return {"role": turn.role, "content": map_texts(turn.content, fill)}

        return rendered


def placeholder_file_id(content: Content) -> str:
    """Return a stand-in for the Files API id of a file that is uploaded only when its request is planned."""
    return f"file_{content.sha256[:24]}"


def fixed_params(job: Job) -> dict[str, Any]:
    """Return the params that all requests of the job share, except turns, and model or max_tokens if rows give them."""
    request = job.request
    params: dict[str, Any] = {} if templates.is_template(request.model) else {"model": request.model}
    if isinstance(request.max_tokens, int):
        params["max_tokens"] = request.max_tokens
    return params | shared(job)[0]


def shared(job: Job) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what all requests of a job share: params without model and max_tokens, and the first turns.

    With `request.cache`, the last shared block has a cache breakpoint.
    """
    request, params = job.request, dict(job.request.params)
    if request.system is not None:
        params = {"system": request.system, **params}
    answer_format = _answer_format(job)
    if answer_format is not None:
        params["output_config"] = {**params.get("output_config", {}), "format": answer_format}
    if job.output.tool is not None:
        params.setdefault("tool_choice", {"type": "tool", "name": job.output.tool})
    turns = []
    for turn in request.messages:
        if any(_depends_on_row(job, text) for text in template_texts(turn.content)):
            break
        turns.append(_filled(job, turn))
    if request.cache is not None:
        _put_breakpoint(params, turns, {"type": "ephemeral", "ttl": request.cache})
    return params, turns


def _put_breakpoint(params: dict[str, Any], turns: list[dict[str, Any]], control: dict[str, str]) -> None:
    """Set cache_control on the last shared block. The API reads tools first, then system, then turns."""
    if turns:
        turns[-1] = {**turns[-1], "content": _with_breakpoint(turns[-1]["content"], control)}
    elif params.get("system"):
        params["system"] = _with_breakpoint(params["system"], control)
    elif isinstance(params.get("tools"), list) and params["tools"]:
        params["tools"] = [*params["tools"][:-1], {**params["tools"][-1], "cache_control": control}]


def _with_breakpoint(content: str | list[dict[str, Any]], control: dict[str, str]) -> list[dict[str, Any]]:
    """Return the content as blocks, the last of them with cache_control."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [*blocks[:-1], {**blocks[-1], "cache_control": control}]


def _names(job: Job, field: str, template: str) -> templates.Names:
    """Return the names that a template reads. Raises JobError, which names the field, for an unknown var."""
    try:
        named = templates.names(template)
    except templates.TemplateProblem as exc:
        raise JobError(f"{field}: {exc}") from exc
    unknown = named.variables - set(job.vars)
    if unknown:
        raise JobError(f"{field}: vars.{sorted(unknown)[0]} is not among the vars that the job declares")
    return named


def _depends_on_row(job: Job, template: str) -> bool:
    """Return whether the text of a template depends on the row."""
    named = _names(job, "request.messages", template)
    return bool(named.columns) or named.all_columns


def _filled(job: Job, turn: Turn) -> dict[str, Any]:
    """Return a shared turn with its vars filled in."""
    content = map_texts(turn.content, lambda text: templates.renderer(text, job.vars, "invalid")({}))
    return {"role": turn.role, "content": content}


def _answer_format(job: Job) -> dict[str, Any] | None:
    """Return the format of the answer that `output` asks for; None for free text and tools."""
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
    """Return max_tokens as a number from a row's text: 300, or 300.0 from a column of numbers. Raises RowProblem."""
    number = text.strip().removesuffix(".0")
    if not number.isascii() or not number.isdigit() or not 1 <= int(number) <= MAX_TOKENS:
        raise RowProblem(f"request.max_tokens is {text.strip()[:40]!r} for this row; it must be 1 to {MAX_TOKENS:,}")
    return int(number)


def _not_empty(text: str, field: str) -> str:
    """Return the text of a turn. Raises RowProblem if it is empty."""
    if not text or text.isspace():
        raise RowProblem(f"{field}: a turn is empty for this row")
    return text
