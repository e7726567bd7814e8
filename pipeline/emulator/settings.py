"""Switches for behaviour of the real API that is not known for certain, with our best guess as the default."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline.emulator.model.catalogue import BY_NAME


class Settings(BaseModel):
    """How this emulator decides where the documentation leaves it open. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid")

    max_batch_bytes: int = Field(default=256_000_000, ge=1)
    """Decoded size of a create body above which 413 comes; the documentation says 256 MB."""
    too_large_as: str = Field(default="html", pattern="^(html|json)$")
    """Whether that 413 is a proxy's page or the JSON envelope."""
    gzip_on_batches: bool = False
    """Accept `Content-Encoding: gzip` on create; otherwise 400 request_body_encoding_unsupported."""
    refuse_unbatchable_at_create: bool = False
    """stream, speed and max_tokens 0 in params: 400 on create instead of an errored result."""
    cancel_ended_status: int = Field(default=400, ge=200, le=499)
    """Cancel of an ended batch: an error of this status; 200 echoes the batch."""
    delete_running_status: int = Field(default=400, ge=400, le=499)
    """Delete of a batch that has not ended."""
    early_results_status: int = Field(default=404, ge=400, le=499)
    """Results before the end."""
    canceled_share: float = Field(default=0.5, ge=0, le=1)
    """Of the requests not yet processed at a cancel, this share is canceled; the others still complete."""
    cancel_seconds: float | None = Field(default=None, ge=0)
    """From cancel to ended; None: a tenth of processing_seconds, 5 s at most."""
    queue_limit: int | None = Field(default=None, ge=1)
    """Requests in processing per workspace above which a create gets 429; None: no limit."""
    cache_minimum_tokens: int | None = Field(default=None, ge=1)
    """Tokens a prefix needs to be cached; None: as each model has it."""
    cache_first_wave: int = Field(default=20, ge=0)
    """Requests of a batch that begin together: what they write to the cache, none of them reads."""
    max_file_bytes: int = Field(default=500_000_000, ge=1)
    """Size of an upload above which 413 comes."""
    files_downloadable: bool = False
    """Give uploads back; the API does so only with files that a tool made."""
    models_without_vision: list[str] = Field(default_factory=list)
    """Models of the catalogue that take neither images nor PDFs, by id or alias."""
    models_without_batch: list[str] = Field(default_factory=list)
    """Models of the catalogue whose requests fail in a batch, by id or alias."""

    @field_validator("models_without_vision", "models_without_batch")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in BY_NAME:
                raise ValueError(f"{name} is not a model of the catalogue")
        return names
