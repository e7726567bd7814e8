"""The job as pydantic models: its sections, their fields, and which values are allowed. Pure."""

import hashlib
import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, cast, dataclass_transform

import orjson
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from pipeline.errors import JobError
from pipeline.job import templates
from pipeline.job.api_section import ApiClient
from pipeline.job.canary import Canary
from pipeline.job.fields import fields_text
from pipeline.job.gold import Gold, of_reviews, refuse_seen
from pipeline.job.refusals import refusals
from pipeline.job.retrying import Retry
from pipeline.job.rounds import Rounds
from pipeline.job.section import NonEmpty, Section, as_list, without_value
from pipeline.text import folded

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as _ModelMetaclass
else:
    _ModelMetaclass = type(BaseModel)  # pydantic does not export it

MAX_REQUESTS = 100_000  # of one batch. Source: platform.claude.com/docs/en/build-with-claude/batch-processing
MAX_BYTES = 256_000_000  # of one batch. Source: the same
MAX_TOKENS = 300_000  # of one answer; only some models reach it, with a beta

#: Tables of the state database. The results table may be in the same database, so it may not have one of these names.
STATE_TABLES = frozenset(
    {
        "accounts", "alembic_version", "batches", "files", "identified", "jobs", "leases", "requests", "runs",
        "sendings", "shared", "stretches", "tallies", "token_counts", "turns",
    }
)  # fmt: skip
#: Fields that a later version will have. They are refused by name, so that no user relies on them.
FUTURE_FIELDS = {
    "limits.deadline": "a deadline",
}


def _as_mapping(value: Any) -> Any:
    """Return `[a, {b: c}]` as `{a: a, b: c}`, from source column to results column. Raises ValueError."""
    if not isinstance(value, list):
        return value
    pairs = [pair for item in value for pair in (item.items() if isinstance(item, dict) else [(item, item)])]
    if any(not isinstance(name, str) for pair in pairs for name in pair):
        raise ValueError("must list columns, or {column: new name}")
    repeated = {column for column, _ in pairs if [c for c, _ in pairs].count(column) > 1}
    if repeated:
        raise ValueError(f"names {', '.join(map(repr, sorted(repeated)))} more than once")
    return dict(pairs)


Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Template = Annotated[str, Field(pattern=r"\{[{%]")]
Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Texts = Annotated[list[NonEmpty], BeforeValidator(as_list), Field(min_length=1)]


class Csv(Section):
    """The dialect of CSV and TSV files.

    delimiter: between fields; None for a comma, or for a tab in TSV files. quote: "" if the files have no quotes.
    header: whether the first line names the columns. columns: the names if it does not; None for column_1, ...
    null_values: unquoted fields that mean null; an empty field is empty text unless "" is among them.
    escape: the character that makes the quote, delimiter or line end after it plain text; None if there is none.
    comment: a line that begins with this text is not a row; None if there are no comments.
    skip: the number of lines before the header, or before the first row.
    """

    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    quote: Annotated[str, Field(max_length=1)] = '"'
    header: bool = True
    columns: Annotated[list[NonEmpty], Field(min_length=1)] | None = None
    null_values: list[str] = []
    escape: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    comment: NonEmpty | None = None
    skip: Annotated[int, Field(strict=True, ge=0)] = 0

    @model_validator(mode="after")
    def _are_different(self) -> Self:
        given = [self.delimiter or ",", self.quote, self.escape]
        if any(character is not None and not character.isascii() for character in given):
            raise ValueError("delimiter, quote and escape must be ASCII characters")
        if self.delimiter is not None and self.delimiter in (self.quote, self.escape):
            raise ValueError("delimiter must differ from quote and escape")
        return self

    @field_validator("escape")
    @classmethod
    def _is_no_quote(cls, escape: str | None, info: ValidationInfo) -> str | None:
        """Return None if the escape is the quote: in CSV a doubled quote is a quote without any setting."""
        return None if escape == info.data.get("quote") else escape

    @model_validator(mode="after")
    def _names_or_header(self) -> Self:
        if self.columns is not None and self.header:
            raise ValueError("the header names the columns; to name them here, write header: false")
        return self


class Source(Section):
    """Where the rows come from (files, a SQL query, or a frame in Python), and which columns identify a row.

    path: files, folders and patterns. format: of all these files; None if each file's name tells its format.
    query, database: SQL, and a SQLAlchemy URL without a password, or $NAME of an environment variable with a URL.
    frame: a polars or pandas frame; the stored job has a text in its place.
    key: the columns that identify a row. types: column to its type, where the values should not decide it.
    nulls: whether a printed null makes a row invalid, or prints nothing. where: a condition that rows must meet; None
    for all rows. keep: source column to the results column that holds a copy of it.
    """

    path: Texts | None = None
    format: Literal["csv", "tsv", "ndjson", "parquet", "arrow"] | None = None
    query: NonEmpty | None = None
    database: NonEmpty | None = None
    frame: Any = None
    key: Texts
    types: dict[str, str] = {}
    encoding: str = "utf-8"
    csv: Csv = Csv()
    nulls: Literal["invalid", "empty"] = "invalid"
    where: str | None = None
    keep: Annotated[dict[str, str], BeforeValidator(_as_mapping)] = {}

    @model_validator(mode="after")
    def _is_one_source(self) -> Self:
        given = [name for name in ("path", "query", "frame") if getattr(self, name) is not None]
        if len(given) != 1:
            given_here = f"it has {' and '.join(given)}" if given else "it has none of them"
            raise ValueError(f"needs exactly one of path, query with database, and (in Python) frame; {given_here}")
        if self.format is not None and self.path is None:
            raise ValueError("format applies to files, and there is no path; remove format")
        if (self.query is None) != (self.database is None):
            raise ValueError("query and database need each other; give both or neither")
        if re.search(r"://[^/@]*:[^/@]+@", self.database or ""):  # checked here, where no message shows the value
            raise ValueError(
                "database holds a password, which would be stored with the job; put the URL into an environment "
                "variable, and write its $NAME here"
            )
        return self

    @field_serializer("frame")
    def _without_rows(self, frame: Any) -> str | None:
        """Return what is stored with the job in place of the frame."""
        return None if frame is None else f"a {type(frame).__name__} in Python"

    @field_validator("key")
    @classmethod
    def _keys_differ(cls, key: list[str]) -> list[str]:
        repeated = [column for i, column in enumerate(key) if column in key[:i]]
        if repeated:
            raise ValueError(f"names column {repeated[0]!r} more than once")
        return key


class Turn(Section):
    """One turn of the conversation before the prompt. content: a text or content blocks, whose texts are templates."""

    role: Literal["user", "assistant"]
    content: NonEmpty | Annotated[list[dict[str, Any]], Field(min_length=1)]


class Attachment(Section):
    """Images or documents that each row's request carries.

    image, document: the column with a path, an http(s) URL, bytes or a Files API id, or a list of these; exactly one
    of both is given. upload: upload each file once through the Files API, instead of a copy in each request.
    title, context: of a document; None for none. citations: whether the model cites the document.
    """

    image: NonEmpty | None = None
    document: NonEmpty | None = None
    upload: bool = False
    title: NonEmpty | None = None
    context: NonEmpty | None = None
    citations: bool = False

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Self:
        if (self.image is None) == (self.document is None):
            raise ValueError("name one column: {image: COLUMN} or {document: COLUMN}")
        if self.image is not None and (self.title or self.context or self.citations):
            raise ValueError("title, context and citations apply to documents, not to images")
        return self

    @property
    def column(self) -> str:
        """The column that holds the image or document."""
        return self.image or self.document or ""


class Request(Section):
    """The request that is sent for each row.

    model, max_tokens: fixed, or templates over the row's columns. prompt: a template, the last turn of the user; None
    if `messages` or `turns` end with a turn of the user.
    system: a text or content blocks, the same for all rows; None for none. messages: turns before the prompt, the same
    for all rows but for templates. turns: the column that holds a conversation before the prompt, or the message of an
    earlier answer; None for none.
    params: other fields of the Messages API. cache: how long the shared prefix stays in the prompt cache; None for no
    caching. betas: names for the anthropic-beta header. dedupe: whether equal requests are sent once.
    """

    model: NonEmpty
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=MAX_TOKENS)] | Template
    system: NonEmpty | list[dict[str, Any]] | None = None
    messages: list[Turn] = []
    turns: NonEmpty | None = None
    prompt: Annotated[NonEmpty | None, Field(validate_default=True)] = None
    attachments: list[Attachment] = []
    params: dict[str, Any] = {}
    cache: Literal["5m", "1h"] | None = None
    betas: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]] = []
    dedupe: bool = True

    @field_validator("prompt", "model", "max_tokens")
    @classmethod
    def _templates_compile(cls, template: Any) -> Any:
        try:
            templates.names(template if isinstance(template, str) else "")
        except templates.TemplateProblem as exc:
            raise ValueError(str(exc)) from exc
        return template

    @field_validator("messages")
    @classmethod
    def _conversation_begins_with_user(cls, turns: list[Turn]) -> list[Turn]:
        if turns and turns[0].role != "user":
            raise ValueError("the first turn of a conversation must have the role user")
        for turn in turns:
            for text in template_texts(turn.content):
                try:
                    templates.names(text)
                except templates.TemplateProblem as exc:
                    raise ValueError(str(exc)) from exc
        return turns

    @field_validator("prompt")
    @classmethod
    def _ends_with_user(cls, prompt: str | None, info: ValidationInfo) -> str | None:
        turns: list[Turn] = info.data.get("messages", [])
        if prompt is None and info.data.get("turns") is None and [turn.role for turn in turns[-1:]] != ["user"]:
            raise without_value("this field is required, unless messages or turns end with a turn of the user")
        return prompt

    @field_validator("attachments")
    @classmethod
    def _have_a_turn(cls, attachments: list[Attachment], info: ValidationInfo) -> list[Attachment]:
        if attachments and "prompt" in info.data and info.data["prompt"] is None:
            raise ValueError("they are sent in the turn of the prompt, and there is none; add request.prompt")
        return attachments

    def templates(self) -> dict[str, str]:
        """Return every text that may name columns, by its field, like "request.prompt"."""
        by_field = {} if self.prompt is None else {"request.prompt": self.prompt}
        by_field["request.model"] = self.model
        if isinstance(self.max_tokens, str):
            by_field["request.max_tokens"] = self.max_tokens
        for i, turn in enumerate(self.messages):
            for n, text in enumerate(template_texts(turn.content)):
                by_field[f"request.messages.{i}.content" + (f".{n}" if n else "")] = text
        return by_field

    def named(self) -> tuple[dict[str, str], dict[str, list[str]]]:
        """Return every text that may name columns, and every other list of columns, both by field."""
        columns = {"request.attachments": [attachment.column for attachment in self.attachments]}
        return self.templates(), columns | {"request.turns": [] if self.turns is None else [self.turns]}

    def named_columns(self) -> frozenset[str] | None:
        """Return the columns that the request names; None if a template may use any column."""
        by_field, columns = self.named()
        found = [templates.names(text) for text in by_field.values()]
        if any(names.all_columns for names in found):
            return None
        return frozenset().union(*(names.columns for names in found), *columns.values())


def template_texts(content: str | list[dict[str, Any]]) -> list[str]:
    """Return the templates in a turn's content: the content itself, or the texts of its text and document blocks."""
    if isinstance(content, str):
        return [content]
    texts: list[str] = []

    def collect(text: str) -> str:
        texts.append(text)
        return text

    map_texts(content, collect)
    return texts


def map_texts(content: str | list[dict[str, Any]], change: Callable[[str], str]) -> str | list[dict[str, Any]]:
    """Return a turn's content with `change` applied to each of its templates."""
    return change(content) if isinstance(content, str) else [_map_text(block, change) for block in content]


def _map_text(block: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return a block with its text changed; a block that has no text of its own is returned unchanged."""
    source = block.get("source")
    if block.get("type") == "text" and isinstance(block.get("text"), str):
        return {**block, "text": change(block["text"])}
    if isinstance(source, dict) and source.get("type") == "text" and isinstance(source.get("data"), str):
        return {**block, "source": {**source, "data": change(source["data"])}}
    return block


class Output(Section):
    """How an answer is read: as text, as one of `labels`, or as values by a JSON `schema` or a forced `tool`.

    labels: the allowed answers, compared without case; None for any text. schema: a JSON Schema, in Python also a
    pydantic model; None for none. tool: the name of the tool in request.params that each answer must call; None for
    none. columns: property, or dotted path to a property, to the name of its SQL column.
    thinking, citations: whether the results table has a column for the model's thinking, and one for its citations.
    message: whether it has a column for the whole message, as the JSON text that the API sent.
    """

    labels: list[NonEmpty] | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    tool: NonEmpty | None = None
    columns: dict[str, Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")]] = {}
    thinking: bool = False
    citations: bool = False
    message: bool = False

    @field_validator("schema_", mode="before")
    @classmethod
    def _schema_of_a_model(cls, schema: Any) -> Any:
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            from pipeline.job.json_schema import SchemaProblem
            from pipeline.job.pydantic_schema import schema_of_model

            try:
                return schema_of_model(schema)
            except SchemaProblem as exc:
                raise ValueError(str(exc)) from exc
        return schema

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        given = [
            name for name, value in (("labels", self.labels), ("schema", self.schema_), ("tool", self.tool)) if value
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; keep one of them")
        if self.columns and self.schema_ is None and self.tool is None:
            raise ValueError("columns needs a schema whose properties it names; add output.schema or output.tool")
        return self

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        labels = self.labels or []
        compared = [folded(label) for label in labels]
        if self.labels is not None and len(compared) < 2:
            raise ValueError("labels needs at least two labels")
        for i, label in enumerate(compared):
            if label in compared[:i]:
                raise ValueError(f"label {labels[i]!r} equals another label, ignoring case and spaces around it")
        return self


class Sink(Section):
    """Where answers are stored.

    table: the results table; on PostgreSQL it may have a schema, as in `analytics.ticket_labels`.
    history: whether answers that newer answers replace are kept in a second table.
    """

    table: Annotated[str, Field(pattern=r"^([A-Za-z_][A-Za-z0-9_]{0,62}\.)?[A-Za-z_][A-Za-z0-9_]{0,62}$")]
    history: bool = False

    @property
    def trials_table(self) -> str:
        """The table with the answers of the job's trials."""
        return f"{self.table}_trials"

    @field_validator("table")
    @classmethod
    def _table_is_free(cls, table: str) -> str:
        if table.lower() in STATE_TABLES:
            raise ValueError("the pipeline has a table of this name; choose another name")
        if table.lower().startswith("batch_pipeline."):
            raise ValueError("the schema batch_pipeline is for the pipeline's own tables; choose another schema")
        if table.lower().startswith("sqlite_"):
            raise ValueError("SQLite reserves names that begin with sqlite_; choose another name")
        return table


class Limits(Section):
    """The limits of a run and of its batches.

    max_cost_usd: of the run, in US dollars; None for no limit. max_failed: the share of rows that may fail without a
    failing exit code, 0 to 1. min_rows: if the source has fewer rows, nothing is sent; None for no minimum.
    max_batch_requests, max_batch_bytes: of one batch. max_in_flight_requests: of the job's batches that are at the API.
    processes: how many processes of a machine work on a run, one of which submits and collects; None: 2 for a source
    above 20 MB, else 1.
    """

    max_cost_usd: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.0
    min_rows: Annotated[int, Field(strict=True, ge=1)] | None = None
    max_batch_requests: Annotated[int, Field(ge=1, le=MAX_REQUESTS)] = 25_000
    max_batch_bytes: Annotated[int, Field(ge=1_000, le=MAX_BYTES)] = 240_000_000
    max_in_flight_requests: Annotated[int, Field(ge=1)] = 200_000
    processes: Annotated[int, Field(ge=1, le=64)] | None = None


class Price(Section):
    """A model's prices in batches, in US dollars per million tokens; None leaves the list price unchanged.

    cache_write: for the five-minute cache; cache_write_1h: for the one-hour cache. discount: the share that is taken
    off the list prices; 0.1 is ten percent.
    """

    RATES: ClassVar = ("input", "output", "cache_read", "cache_write", "cache_write_1h")

    input: Dollars | None = None
    output: Dollars | None = None
    cache_read: Dollars | None = None
    cache_write: Dollars | None = None
    cache_write_1h: Dollars | None = None
    discount: Annotated[float, Field(ge=0, lt=1)] | None = None


class Privacy(Section):
    """What is removed after a batch is collected.

    delete_remote: whether the batch is deleted at the API. keep_spool: whether its request body stays in the spool.
    """

    delete_remote: bool = False
    keep_spool: bool = False


@dataclass_transform(kw_only_default=True, field_specifiers=(Field,))
class _InSentences(_ModelMetaclass):
    """Makes a class whose calls raise JobError, in sentences. Its `model_validate` raises pydantic's own error."""

    def __call__(cls, *args: Any, **fields: Any) -> Any:
        try:
            return super().__call__(*args, **fields)
        except ValidationError as exc:
            kind = cast("type[BaseModel]", cls)
            raise JobError("; ".join(refused.sentence for refused in refusals(exc, kind))) from None


class Job(Section, metaclass=_InSentences):
    """One declared piece of work: a source of rows, the request for each row, and the table of the answers.

    `load` reads it from a job file. In Python it takes the same fields, as mappings or as the classes of the sections;
    there, relative paths are relative to the current folder. Raises JobError, which names each wrong field. canary:
    False for none. gold: None if no right answers are known. prices: model to its prices, where they differ from the
    list prices.
    """

    name: Name
    vars: dict[str, str | int | float | bool] = {}
    source: Source
    request: Request
    api: ApiClient = ApiClient()
    output: Output = Output()
    sink: Sink
    canary: Canary | Literal[False] = Canary()
    gold: Annotated[Gold | None, BeforeValidator(of_reviews)] = None
    limits: Limits = Limits()
    retry: Retry = Retry()
    rounds: Rounds = Rounds()
    prices: dict[str, Price] = {}
    privacy: Privacy = Privacy()

    @model_validator(mode="before")
    @classmethod
    def _takes_a_frame(cls, fields: Any) -> Any:
        """Turn `Job(source=frame, key="id", ...)` into `Job(source={"frame": frame, "key": "id"}, ...)`; `keep` too."""
        if not isinstance(fields, dict) or isinstance(fields.get("source"), dict | Source | str | list | None):
            return fields
        beside = {name: fields[name] for name in ("key", "keep") if name in fields}
        others = {name: value for name, value in fields.items() if name not in ("source", *beside)}
        return others | {"source": {"frame": fields["source"], **beside}}

    @field_validator("vars")
    @classmethod
    def _vars_fit_json(cls, variables: dict[str, Any]) -> dict[str, Any]:
        for name, value in variables.items():
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"the number {name} does not fit in 64 bits; put it into quotes")
        return variables

    @field_validator("gold")
    @classmethod
    def _model_does_not_see_gold(cls, gold: Gold | None, info: ValidationInfo) -> Gold | None:
        if gold is not None and gold.path is None and "request" in info.data:
            refuse_seen(gold, *info.data["request"].named())
        return gold

    @property
    def recipe(self) -> str:
        """A hash of `request` and `output` with vars filled in, as 16 hex digits.

        Fields with their default value do not count, so that a version with new fields computes the same hash. Vars
        that only the source uses, such as a date in the path, do not count either.
        """
        named = {name for text in self.request.templates().values() for name in templates.names(text).variables}
        used = {name: self.vars[name] for name in sorted(named) if name in self.vars}
        content = {part: getattr(self, part).model_dump(exclude_defaults=True) for part in ("request", "output")}
        content["vars"] = used
        return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


Job.__doc__ = f"{inspect.getdoc(Job)}\n\n{fields_text(Job)}"
