"""Settings for behaviour of the real API that is not known, with the most likely behaviour as the default."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline.emulator.model.catalogue import BY_NAME


class Settings(BaseModel):
    """What the emulator does where the API's documentation does not say it. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid")

    max_batch_bytes: int = Field(default=256_000_000, ge=1)
    """Largest decoded body of a create call in bytes; above it the answer is 413. The documentation says 256 MB."""
    too_large_as: str = Field(default="html", pattern="^(html|json)$")
    """Form of that 413: `html`, a proxy's page, or `json`, an error of the API."""
    gzip_on_batches: bool = False
    """Accept `Content-Encoding: gzip` on create; otherwise answer 400 request_body_encoding_unsupported."""
    refuse_unbatchable_at_create: bool = False
    """Answer a create with 400 if params hold stream, speed or max_tokens 0, instead of an errored result."""
    cancel_ended_status: int = Field(default=400, ge=200, le=499)
    """Status of the answer to canceling an ended batch: an error, or 200 with the batch unchanged."""
    delete_running_status: int = Field(default=400, ge=400, le=499)
    """Status of the error when a batch is deleted that has not ended."""
    early_results_status: int = Field(default=404, ge=400, le=499)
    """Status of the error when results are asked for before the batch has ended."""
    canceled_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the unprocessed requests that a cancel call cancels; the others still complete."""
    cancel_seconds: float | None = Field(default=None, ge=0)
    """Seconds from the cancel call to the end of the batch; None: a tenth of processing_seconds, at most 5 s."""
    queue_limit: int | None = Field(default=None, ge=1)
    """Largest number of unprocessed requests of a workspace; a create above it gets 429. None: no limit."""
    cache_minimum_tokens: int | None = Field(default=None, ge=1)
    """Smallest number of tokens of a prefix that is cached; None: the minimum of each model."""
    cache_first_wave: int = Field(default=20, ge=0)
    """Number of requests of a batch that start together; none of them reads what the others write to the cache."""
    tool_rounds: int = Field(default=3, ge=0, le=100)
    """Most turns of an answer that ask for client tools which the prompts name; the content selects from 1 to this."""
    tool_calls: int = Field(default=3, ge=1, le=20)
    """Most client tools that one turn asks for side by side."""
    pauses: int = Field(default=0, ge=0, le=100)
    """Most pauses of an answer that uses a server tool; the content selects from 0 to this."""
    max_file_bytes: int = Field(default=500_000_000, ge=1)
    """Largest upload in bytes; above it the answer is 413."""
    files_downloadable: bool = False
    """Allow downloads of uploaded files; the API allows them only for files that a tool created."""
    models_without_vision: list[str] = Field(default_factory=list)
    """Models of the catalogue that refuse images and PDFs, by id or alias."""
    models_without_batch: list[str] = Field(default_factory=list)
    """Models of the catalogue whose requests fail in a batch, by id or alias."""

    @field_validator("models_without_vision", "models_without_batch")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in BY_NAME:
                raise ValueError(f"{name} is not a model of the emulator's catalogue")
        return names
