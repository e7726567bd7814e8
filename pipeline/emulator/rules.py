"""Which fault rules there are: where each may stand, which fields it reads, and what is refused.

A rule names where (`on`), what (`do`), and how often: `times`, `after`, `share`, `every`, `match`, `per`.
docs/emulator.md describes every rule with an example.
"""

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

On = Literal[
    "create",
    "retrieve",
    "list",
    "results",
    "cancel",
    "delete",
    "count_tokens",
    "messages",
    "models",
    "files_create",
    "files_list",
    "files_retrieve",
    "files_delete",
    "files_content",
    "any",
    "item",
]
#: what happens to the whole call; of several that fire, the first decides
CallDo = Literal["drop_before", "drop_after", "status", "delay", "foreign_page", "repeat_answer"]
#: what happens to single result lines
LineDo = Literal["missing_lines", "duplicate_lines", "unknown_lines", "conflicting_lines", "damaged_lines"]
#: what else happens to a download
DownloadDo = Literal["truncate", "first_line", "drip"]
#: how a request within a batch ends
ItemDo = Literal[
    "error",
    "expire",
    "cancel",
    "result_type",
    "refuse",
    "max_tokens",
    "context_window",
    "pause_turn",
    "empty",
    "wrong_label",
    "wrong_case",
    "not_json",
    "strange_text",
]
Do = Literal[CallDo, "date", "results_url", "counts", "lag", "disorder", "never_ends", DownloadDo, LineDo, ItemDo]
Damage = Literal["cut", "binary", "surrogate", "huge_number", "usage_text", "no_type", "null_message"]
CALL_FAULTS = frozenset(get_args(CallDo))
LINE_FAULTS = frozenset(get_args(LineDo))
RESULT_FAULTS = LINE_FAULTS | frozenset(get_args(DownloadDo))
ITEM_FAULTS = frozenset(get_args(ItemDo))
EVERYWHERE = frozenset(get_args(On)) - {"item"}
#: `do` that are not for every operation, and where they belong
PLACES: dict[str, frozenset[str]] = {
    "repeat_answer": frozenset({"create"}),
    "results_url": frozenset({"retrieve", "list", "cancel"}),
    "counts": frozenset({"retrieve", "list", "cancel"}),
    "lag": frozenset({"list"}),
    "disorder": frozenset({"list"}),
    "never_ends": frozenset({"cancel"}),
    **dict.fromkeys(RESULT_FAULTS, frozenset({"results"})),
    **dict.fromkeys(ITEM_FAULTS, frozenset({"item"})),
}
COMMON_FIELDS = frozenset({"on", "do", "times", "after", "share", "every", "match", "per"})
STATUS_FIELDS = frozenset(
    {
        "status",
        "accept",
        "page",
        "error_type",
        "error_code",
        "message",
        "retry_after",
        "should_retry",
        "headers",
        "list_page",
    }
)
#: the fields that a `do` reads apart from the common ones
FIELDS: dict[str, frozenset[str]] = {
    "drop_before": frozenset({"list_page"}),
    "drop_after": frozenset({"list_page"}),
    "delay": frozenset({"seconds", "list_page"}),
    "status": STATUS_FIELDS,
    "foreign_page": frozenset({"kind", "accept", "list_page"}),
    "repeat_answer": frozenset({"accept"}),
    "date": frozenset({"seconds", "text"}),
    "results_url": frozenset({"host"}),
    "counts": frozenset({"add"}),
    "lag": frozenset({"seconds"}),
    "disorder": frozenset({"order"}),
    "truncate": frozenset({"keep", "cut_at", "end"}),
    "first_line": frozenset({"text"}),
    "drip": frozenset({"bytes", "seconds"}),
    "unknown_lines": frozenset({"count"}),
    "damaged_lines": frozenset({"damage"}),
    "error": frozenset({"error_type", "message", "flat"}),
    "result_type": frozenset({"result_type"}),
    "refuse": frozenset({"category", "explanation"}),
}
NEEDED: dict[str, tuple[str, ...]] = {
    "status": ("status",),
    "foreign_page": ("kind",),
    "delay": ("seconds",),
    "lag": ("seconds",),
    "disorder": ("order",),
    "counts": ("add",),
    "drip": ("seconds",),
    "damaged_lines": ("damage",),
    "results_url": ("host",),
    "error": ("error_type",),
    "result_type": ("result_type",),
}
MOST_SECONDS = 10**10  # some 300 years: a date so far off can still be written


def _null_as_text(value: object) -> object:
    """YAML reads `kind: null` as nothing; here it is the name of a kind."""
    return "null" if value is None else value


class Fault(BaseModel):
    """One rule. Fields that its `do` does not read are refused, so that a misplaced one is not ignored in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    on: On
    do: Do
    times: int | None = Field(default=None, ge=1)  #: fire at most so often; None: always
    after: int = Field(default=0, ge=0)  #: let the first so many pass
    share: float | None = Field(default=None, gt=0, le=1)  #: of requests or lines, chosen by the hash of their content
    every: int | None = Field(default=None, ge=1)  #: each k-th call, request of a batch, or line
    match: str | None = Field(default=None, min_length=1)  #: only where this text occurs
    per: Literal["rule", "batch", "params"] = "rule"  #: what `times` and `after` count for

    status: int | None = Field(default=None, ge=400, le=599)
    accept: bool = False  #: do the work first, then answer so
    page: Literal["json", "html"] = "json"
    error_type: str | None = None
    error_code: str | None = None
    message: str | None = None
    retry_after: float | None = Field(default=None, ge=0)
    should_retry: bool | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    list_page: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, ge=-MOST_SECONDS, le=MOST_SECONDS)  #: below 0 for a date only
    host: str | None = Field(default=None, pattern=r"^https?://[^/]+$")
    keep: float = Field(default=0.5, ge=0, le=1)
    cut_at: Literal["line", "mid_line"] = "line"
    end: Literal["clean", "cut", "reset"] = "clean"
    count: int = Field(default=1, ge=1)
    flat: bool = False
    result_type: str | None = None
    category: Literal["cyber", "bio", "frontier_llm", "reasoning_extraction", "general_harms"] | None = None
    explanation: str | None = None
    kind: Annotated[Literal["html", "empty", "json", "cut", "null"] | None, BeforeValidator(_null_as_text)] = None
    text: str | None = None
    order: Literal["oldest_first", "shuffled"] | None = None
    add: int | None = None
    damage: Damage | None = None
    bytes: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _makes_sense(self) -> "Fault":
        places = PLACES.get(self.do, EVERYWHERE)
        if self.on not in places:
            raise ValueError(f"do: {self.do} is for on: {' or '.join(sorted(places))}, not {self.on}")
        strange = sorted(self.model_fields_set - COMMON_FIELDS - FIELDS.get(self.do, frozenset()))
        if strange:
            raise ValueError(f"{strange[0]} has no meaning for do: {self.do}")
        for name in NEEDED.get(self.do, ()):
            if getattr(self, name) is None:
                raise ValueError(f"do: {self.do} needs {name}")
        if wrong := self._wrong_together():
            raise ValueError(wrong)
        return self

    def _wrong_together(self) -> str | None:
        """What is wrong with fields that are right each by itself."""
        if self.per == "params" and self.on != "item":
            return "per: params is for on: item"
        if self.list_page is not None and self.on != "list":
            return "list_page is for on: list"
        if self.do == "date":
            return self._wrong_date()
        if self.seconds is not None and self.seconds < 0:
            return f"seconds must be 0 or more for do: {self.do}"
        if self.do == "drip" and not self.seconds:
            return "seconds must be more than 0 for do: drip"
        if self.kind == "cut" and "accept" in self.model_fields_set and not self.accept:
            return "kind: cut needs the work's own answer, so accept cannot be false"
        return None

    def _wrong_date(self) -> str | None:
        if (self.seconds is None) == (self.text is None):
            return "do: date needs either seconds or text"
        text = self.text or ""
        if not text.isascii() or not text.isprintable() or text != text.strip():
            return "text must be what a header can hold for do: date: printable ASCII without spaces around it"
        return None

    @property
    def label(self) -> str:
        """For the log."""
        match self.do:
            case "status":
                return f"status {self.status}"
            case "foreign_page":
                return f"foreign_page {self.kind}"
            case _:
                return self.do
