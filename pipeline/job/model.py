"""The job: one declared piece of work, from a YAML file or from Python."""

import hashlib
import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

import orjson
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from pipeline.job import templates

MAX_REQUESTS = 100_000  # of a batch. Source: platform.claude.com/docs/en/build-with-claude/batch-processing
MAX_BYTES = 256_000_000
MAX_TOKENS = 300_000  # of an answer: of some models, with a beta

#: Of the state database, in which the results table may be, too.
OUR_TABLES = frozenset(
    {
        "accounts", "alembic_version", "batches", "files", "identified", "jobs", "leases", "requests", "runs",
        "sendings", "stretches", "tallies", "token_counts",
    }
)  # fmt: skip
#: Fields that the job file will have and this version does not: refused by name, so that nobody believes in them.
NOT_YET = {
    "limits.deadline": "a deadline",
}


class Section(BaseModel):
    """A part of a job file; fields it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True, validate_by_name=True)


def as_list(value: Any) -> Any:
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
Template = Annotated[str, Field(pattern=r"\{[{%]")]
Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Texts = Annotated[list[NonEmpty], BeforeValidator(as_list), Field(min_length=1)]


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


class Csv(Section):
    """How CSV and TSV files are written. delimiter: None for a comma, in .tsv files a tab; quote: "" for none.

    header: whether the first line names the columns; columns: their names when it does not (column_1, ... by default).
    null_values: unquoted fields that are null; an empty field is empty text unless "" is one of them. escape: the
    character before a quote, a delimiter or a line end that is text. comment: what a line begins with that is no row;
    skip: lines before the header, or the first row.
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
            raise ValueError("delimiter, quote and escape must be characters of ASCII")
        if self.delimiter is not None and self.delimiter in (self.quote, self.escape):
            raise ValueError("delimiter must differ from quote and escape")
        return self

    @field_validator("escape")
    @classmethod
    def _is_no_quote(cls, escape: str | None, info: ValidationInfo) -> str | None:
        """A quote that escapes a quote is what CSV has anyway."""
        return None if escape == info.data.get("quote") else escape

    @model_validator(mode="after")
    def _names_or_header(self) -> Self:
        if self.columns is not None and self.header:
            raise ValueError("columns are named by the header; to name them here, say header: false")
        return self


class Source(Section):
    """Where the rows come from, and what identifies each: files, a query of a database, or a frame in Python.

    format: what the files of `path` are, whatever their names; None: what each name says.
    database: a SQLAlchemy URL without a password, or $NAME of an environment variable that holds one. frame: polars or
    pandas; it is not kept with the job, which is stored with a text in its place.
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
    keep: Annotated[dict[str, str], BeforeValidator(_as_keep)] = {}

    @model_validator(mode="after")
    def _is_one_source(self) -> Self:
        given = [name for name in ("path", "query", "frame") if getattr(self, name) is not None]
        if len(given) != 1:
            said = f"there are {' and '.join(given)}" if given else "there is none of them"
            raise ValueError(f"needs one of path, query with database, and (in Python) frame; {said}")
        if self.format is not None and self.path is None:
            raise ValueError("format says what the files of path are; remove it")
        if (self.query is None) != (self.database is None):
            raise ValueError("query and database go together")
        if re.search(r"://[^/@]*:[^/@]+@", self.database or ""):  # here, where no message shows the value
            raise ValueError(
                "database holds a password, which would be stored with the job; put the URL into an environment "
                "variable, and write its $NAME here"
            )
        return self

    @field_serializer("frame")
    def _without_rows(self, frame: Any) -> str | None:
        return None if frame is None else f"a {type(frame).__name__} in Python"

    @field_validator("key")
    @classmethod
    def _keys_differ(cls, key: list[str]) -> list[str]:
        twice = [column for i, column in enumerate(key) if column in key[:i]]
        if twice:
            raise ValueError(f"names column {twice[0]!r} more than once")
        return key


class Turn(Section):
    """One turn of a conversation before the prompt. content: a text, or blocks; both are templates."""

    role: Literal["user", "assistant"]
    content: NonEmpty | Annotated[list[dict[str, Any]], Field(min_length=1)]


class Attachment(Section):
    """Images or documents of each row: the column that holds a path, an http(s) URL, bytes, a Files API id, or several.

    upload: each file is put up once through the Files API instead of being carried by each request. title, context,
    citations: of documents.
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
            raise ValueError("title, context and citations are of documents, not of images")
        return self

    @property
    def column(self) -> str:
        """The column that holds it."""
        return self.image or self.document or ""


class Request(Section):
    """What is asked of the model for each row. model, max_tokens: also templates over the row's columns."""

    model: NonEmpty
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=MAX_TOKENS)] | Template
    system: NonEmpty | list[dict[str, Any]] | None = None
    messages: list[Turn] = []
    turns: NonEmpty | None = None
    prompt: NonEmpty
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
            raise ValueError("a conversation begins with a turn of the user")
        for turn in turns:
            for text in texts_of(turn.content):
                try:
                    templates.names(text)
                except templates.TemplateProblem as exc:
                    raise ValueError(str(exc)) from exc
        return turns

    def templates(self) -> dict[str, str]:
        """Every text that may name columns, by its field."""
        found = {"request.prompt": self.prompt, "request.model": self.model}
        if isinstance(self.max_tokens, str):
            found["request.max_tokens"] = self.max_tokens
        for i, turn in enumerate(self.messages):
            for n, text in enumerate(texts_of(turn.content)):
                found[f"request.messages.{i}.content" + (f".{n}" if n else "")] = text
        return found


def texts_of(content: str | list[dict[str, Any]]) -> list[str]:
    """The texts of a turn's content that are templates: its own, or those of its text blocks and text documents."""
    if isinstance(content, str):
        return [content]
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    with_texts(content, note)
    return found


def with_texts(content: str | list[dict[str, Any]], change: Callable[[str], str]) -> str | list[dict[str, Any]]:
    """A turn's content with each text that is a template changed."""
    return change(content) if isinstance(content, str) else [_with_text(block, change) for block in content]


def _with_text(block: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    source = block.get("source")
    if block.get("type") == "text" and isinstance(block.get("text"), str):
        return {**block, "text": change(block["text"])}
    if isinstance(source, dict) and source.get("type") == "text" and isinstance(source.get("data"), str):
        return {**block, "source": {**source, "data": change(source["data"])}}
    return block


#: The SDK's other clients, which have no Message Batches API, and what does the same there.
WITHOUT_BATCHES = {
    "bedrock": "Bedrock has batch inference jobs of its own (CreateModelInvocationJob)",
    "vertex": "Vertex has batch prediction jobs of its own, over BigQuery or Cloud Storage",
    "foundry": "Microsoft Foundry has no batches of Claude requests",
}


class ApiClient(Section):
    """Which of the SDK's clients speaks to the API."""

    client: Literal["default", "aws", "google"] = "default"

    @field_validator("client", mode="before")
    @classmethod
    def _has_batches(cls, client: Any) -> Any:
        if client in WITHOUT_BATCHES:
            raise ValueError(
                f"this client does not speak the Message Batches API: {WITHOUT_BATCHES[client]}; clients that do are "
                "default (Anthropic), aws (Claude Platform on AWS) and google (Claude on Google Cloud)"
            )
        return client


class Output(Section):
    """What becomes of an answer: its text as it is, one of `labels`, or values by a JSON `schema` or a forced `tool`.

    schema: a JSON Schema, or in Python also a pydantic model. columns: property, or path into it with dots, to the SQL
    column that holds it. thinking, citations: a column each for the model's thinking text and its citations.
    """

    labels: list[NonEmpty] | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    tool: NonEmpty | None = None
    columns: dict[str, Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")]] = {}
    thinking: bool = False
    citations: bool = False

    @field_validator("schema_", mode="before")
    @classmethod
    def _schema_of_a_model(cls, schema: Any) -> Any:
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            from pipeline.job.json_schema import SchemaProblem
            from pipeline.job.pydantic_schema import of_model

            try:
                return of_model(schema)
            except SchemaProblem as exc:
                raise ValueError(str(exc)) from exc
        return schema

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        given = [
            name for name, value in (("labels", self.labels), ("schema", self.schema_), ("tool", self.tool)) if value
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot both say what an answer is; keep one of them")
        if self.columns and self.schema_ is None and self.tool is None:
            raise ValueError("columns names properties of a schema: give output.schema or output.tool, too")
        return self

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
    """The results table, on PostgreSQL also in a schema: `analytics.ticket_labels`."""

    table: Annotated[str, Field(pattern=r"^([A-Za-z_][A-Za-z0-9_]{0,62}\.)?[A-Za-z_][A-Za-z0-9_]{0,62}$")]
    history: bool = False

    @field_validator("table")
    @classmethod
    def _table_is_free(cls, table: str) -> str:
        if table.lower() in OUR_TABLES:
            raise ValueError("is a table of the pipeline's own; choose another name")
        if table.lower().startswith("batch_pipeline."):
            raise ValueError("is in the schema of the pipeline's own tables; choose another schema")
        if table.lower().startswith("sqlite_"):
            raise ValueError("names that begin with sqlite_ are SQLite's own; choose another name")
        return table


class Canary(Section):
    """The rows of a new recipe that go first, and the share of them that may fail: above it nothing more is sent."""

    rows: Annotated[int, Field(ge=1, le=10_000)] = 20
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.2

    def is_for(self, rows: int) -> bool:
        """Whether a run of so many rows is large enough to have one."""
        return rows >= 10 * self.rows


class Limits(Section):
    """What a run may do at most. min_rows: of the source, else nothing is sent; None: any number is right."""

    max_cost_usd: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.0
    min_rows: Annotated[int, Field(strict=True, ge=1)] | None = None
    max_batch_requests: Annotated[int, Field(ge=1, le=MAX_REQUESTS)] = 25_000
    max_batch_bytes: Annotated[int, Field(ge=1_000, le=MAX_BYTES)] = 240_000_000
    max_in_flight_requests: Annotated[int, Field(ge=1)] = 200_000


class LongerAnswer(Section):
    """max_tokens: how many times as many tokens the next answer may have, as `2x`; never more than the model's own."""

    max_tokens: Annotated[str, Field(pattern=r"^[1-9][0-9]?(\.[0-9]+)?x$")]

    @model_validator(mode="after")
    def _is_longer(self) -> Self:
        if self.factor <= 1:
            raise ValueError("max_tokens must be more than 1x, for example 2x")
        return self

    @property
    def factor(self) -> float:
        """The number before the x."""
        return float(self.max_tokens[:-1])


class OtherModel(Section):
    """model: which one is asked instead."""

    model: NonEmpty


class AskAgain(Section):
    """reask: the answer, and what is wrong with it, go back as two more turns."""

    reask: bool


class Change(Section):
    """What a row that did not succeed is sent again with. Off unless named, for each costs money."""

    truncated: LongerAnswer | None = None
    refused: OtherModel | None = None
    unparsable: AskAgain | None = None

    def of(self, outcome: str | None) -> LongerAnswer | OtherModel | AskAgain | None:
        """The change for rows with this outcome; None: they are not sent again by it."""
        if outcome not in Change.model_fields:
            return None
        change: LongerAnswer | OtherModel | AskAgain | None = getattr(self, outcome)
        return None if isinstance(change, AskAgain) and not change.reask else change


class Price(Section):
    """US dollars of a million tokens in a batch, or the share that a list price is lowered by. What is not given stays.

    cache_write: for five minutes; cache_write_1h: for an hour. discount: 0.1 is ten percent.
    """

    RATES: ClassVar = ("input", "output", "cache_read", "cache_write", "cache_write_1h")

    input: Dollars | None = None
    output: Dollars | None = None
    cache_read: Dollars | None = None
    cache_write: Dollars | None = None
    cache_write_1h: Dollars | None = None
    discount: Annotated[float, Field(ge=0, lt=1)] | None = None


class Retry(Section):
    """Which results are asked for again, and how often. change: those that are, but otherwise."""

    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    errors: list[RetryableError] = ["expired", "api_error", "overloaded_error", "timeout_error", "rate_limit_error"]
    change: Change = Change()


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
    api: ApiClient = ApiClient()
    output: Output = Output()
    sink: Sink
    canary: Canary | Literal[False] = Canary()
    limits: Limits = Limits()
    retry: Retry = Retry()
    prices: dict[str, Price] = {}
    privacy: Privacy = Privacy()

    @model_validator(mode="before")
    @classmethod
    def _takes_a_frame(cls, fields: Any) -> Any:
        """`Job(source=frame, key="id", ...)` as `Job(source={"frame": frame, "key": "id"}, ...)`."""
        if not isinstance(fields, dict) or isinstance(fields.get("source"), dict | Source | str | list | None):
            return fields
        return {name: value for name, value in fields.items() if name not in ("source", "key")} | {
            "source": {"frame": fields["source"]} | ({"key": fields["key"]} if "key" in fields else {})
        }

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
        named = {name for text in self.request.templates().values() for name in templates.names(text).variables}
        used = {name: self.vars[name] for name in sorted(named) if name in self.vars}
        content = {part: getattr(self, part).model_dump(exclude_defaults=True) for part in ("request", "output")}
        content["vars"] = used
        return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def fold(label: str) -> str:
    """A label as it is compared: without case and outer blanks."""
    return label.strip().casefold()
