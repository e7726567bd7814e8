"""The catalogue of emulated models and their capabilities."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from pipeline.cache_minimum import fewest_tokens

Lifecycle = Literal["active", "deprecated", "retired"]
EFFORTS = ("low", "medium", "high", "xhigh", "max")
LIMIT_300K_BETA = "output-300k-2026-03-24"


@dataclass(frozen=True)
class Model:
    """One model. generation: (4, 6) for 4.6. context, max_tokens: in tokens. Dates are as the API sends them."""

    id: str
    line: str
    generation: tuple[int, int]
    created_at: str
    alias: str | None = None
    context: int = 1_000_000
    max_tokens: int = 128_000
    lifecycle: Lifecycle = "active"
    deprecated_at: str | None = None
    retires_at: str | None = None
    extended_output: bool = False  #: allows 300,000 tokens of output with a beta header
    thinks_by_default: bool = False
    thinking_types: frozenset[str] = frozenset({"adaptive", "disabled"})
    forced_tool_choice: bool = True

    @property
    def display_name(self) -> str:
        """Return the name of the model for people, as `Claude Opus 4.6`."""
        version = "Preview" if self.id.endswith("preview") else ".".join(str(n) for n in self.generation if n)
        return f"Claude {self.line.capitalize()} {version}"

    @property
    def cache_minimum(self) -> int:
        """Return the fewest tokens of a prefix that the model caches."""
        return fewest_tokens(self.line, self.generation)

    @property
    def efforts(self) -> frozenset[str]:
        """Return the values of output_config.effort that the model accepts; empty if it has no such parameter."""
        if self.generation >= (4, 7):
            return frozenset(EFFORTS)
        if self.generation == (4, 6):
            return frozenset({"low", "medium", "high", "max"})
        return frozenset({"low", "medium", "high"}) if self.id.startswith("claude-opus-4-5") else frozenset()

    def named_in(self, names: Collection[str]) -> bool:
        """Return whether the names hold the model's id or alias."""
        return self.id in names or self.alias in names

    def output_limit(self, betas: frozenset[str]) -> int:
        """Return the largest max_tokens. betas: the beta headers of the call."""
        return 300_000 if self.extended_output and LIMIT_300K_BETA in betas else self.max_tokens


ALWAYS = frozenset({"adaptive"})
BOTH = frozenset({"adaptive", "disabled", "enabled"})
MANUAL = frozenset({"disabled", "enabled"})
BETWEEN = frozenset({"adaptive", "between_tools"})


def _fable_or_mythos(line: str, minor: int, created: str) -> Model:
    forced = minor == 0
    return Model(
        f"claude-{line}-5" + (f"-{minor}" if minor else ""),
        line,
        (5, minor),
        created,
        thinks_by_default=True,
        thinking_types=ALWAYS,
        forced_tool_choice=forced,
    )


def _retired(model_id: str, line: str, generation: tuple[int, int], retired: str) -> Model:
    stamp = model_id[-8:]
    return Model(
        model_id,
        line,
        generation,
        f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:]}T00:00:00Z",
        context=200_000,
        max_tokens=32_000,
        lifecycle="retired",
        deprecated_at=retired,
        retires_at=retired,
        thinking_types=MANUAL,
    )


CATALOGUE = (
    _fable_or_mythos("fable", 2, "2026-11-09T00:00:00Z"),
    _fable_or_mythos("mythos", 2, "2026-11-09T00:00:00Z"),
    Model(
        "claude-haiku-5-5",
        "haiku",
        (5, 5),
        "2026-10-07T00:00:00Z",
        extended_output=True,
        thinks_by_default=True,
    ),
    Model(
        "claude-sonnet-5-5",
        "sonnet",
        (5, 5),
        "2026-09-28T00:00:00Z",
        extended_output=True,
        thinking_types=BETWEEN,
        forced_tool_choice=False,
    ),
    Model(
        "claude-opus-5-5",
        "opus",
        (5, 5),
        "2026-09-22T00:00:00Z",
        extended_output=True,
        thinks_by_default=True,
        thinking_types=ALWAYS,
        forced_tool_choice=False,
    ),
    _fable_or_mythos("fable", 1, "2026-09-01T00:00:00Z"),
    _fable_or_mythos("mythos", 1, "2026-09-01T00:00:00Z"),
    Model("claude-opus-5", "opus", (5, 0), "2026-07-24T00:00:00Z", extended_output=True, thinks_by_default=True),
    Model("claude-sonnet-5", "sonnet", (5, 0), "2026-06-30T00:00:00Z", extended_output=True, thinks_by_default=True),
    _fable_or_mythos("fable", 0, "2026-06-09T00:00:00Z"),
    _fable_or_mythos("mythos", 0, "2026-06-09T00:00:00Z"),
    Model("claude-opus-4-8", "opus", (4, 8), "2026-05-28T00:00:00Z", extended_output=True),
    Model("claude-opus-4-7", "opus", (4, 7), "2026-04-16T00:00:00Z", extended_output=True),
    Model(
        "claude-mythos-preview",
        "mythos",
        (4, 7),
        "2026-04-07T00:00:00Z",
        lifecycle="deprecated",
        deprecated_at="2026-06-09T00:00:00Z",
        retires_at="2026-06-30T00:00:00Z",
        thinking_types=ALWAYS,
        forced_tool_choice=False,
    ),
    Model(
        "claude-sonnet-4-6",
        "sonnet",
        (4, 6),
        "2026-02-17T00:00:00Z",
        extended_output=True,
        thinking_types=BOTH,
    ),
    Model(
        "claude-opus-4-6",
        "opus",
        (4, 6),
        "2026-02-05T00:00:00Z",
        extended_output=True,
        thinking_types=BOTH,
    ),
    Model(
        "claude-opus-4-5-20251101",
        "opus",
        (4, 5),
        "2025-11-24T00:00:00Z",
        alias="claude-opus-4-5",
        context=200_000,
        max_tokens=64_000,
        thinking_types=MANUAL,
    ),
    Model(
        "claude-haiku-4-5-20251001",
        "haiku",
        (4, 5),
        "2025-10-15T00:00:00Z",
        alias="claude-haiku-4-5",
        context=200_000,
        max_tokens=64_000,
        thinking_types=MANUAL,
    ),
    Model(
        "claude-sonnet-4-5-20250929",
        "sonnet",
        (4, 5),
        "2025-09-29T00:00:00Z",
        alias="claude-sonnet-4-5",
        context=200_000,
        max_tokens=64_000,
        lifecycle="deprecated",
        deprecated_at="2026-09-28T00:00:00Z",
        retires_at="2026-11-30T00:00:00Z",
        thinking_types=MANUAL,
    ),
    _retired("claude-opus-4-1-20250805", "opus", (4, 1), "2026-08-05T00:00:00Z"),
    _retired("claude-opus-4-20250514", "opus", (4, 0), "2026-06-15T00:00:00Z"),
    _retired("claude-sonnet-4-20250514", "sonnet", (4, 0), "2026-06-15T00:00:00Z"),
    _retired("claude-3-haiku-20240307", "haiku", (3, 0), "2026-04-20T00:00:00Z"),
    _retired("claude-3-7-sonnet-20250219", "sonnet", (3, 7), "2026-02-19T00:00:00Z"),
    _retired("claude-3-5-haiku-20241022", "haiku", (3, 5), "2026-02-19T00:00:00Z"),
)
BY_NAME = {m.id: m for m in CATALOGUE} | {m.alias: m for m in CATALOGUE if m.alias}


def find_model(name: object) -> Model | None:
    """Return the model with this id or alias; None if there is none or it is retired."""
    model = BY_NAME.get(name) if isinstance(name, str) else None
    return None if model is None or model.lifecycle == "retired" else model
