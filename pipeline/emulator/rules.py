"""The class Fault, one fault rule, with the checks of its fields.

A rule says which operation it concerns (`on`), what it does (`do`), and how often: `times`, `after`, `share`, `every`,
`match`, `per`. docs/emulator.md describes every rule with an example.
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
#: faults of a whole call; if several fire, the first one is applied
CallDo = Literal["drop_before", "drop_after", "status", "delay", "foreign_page", "repeat_answer"]
#: faults of single result lines
LineDo = Literal["missing_lines", "duplicate_lines", "unknown_lines", "conflicting_lines", "damaged_lines"]
#: faults of the whole download of results
DownloadDo = Literal["truncate", "first_line", "drip"]
#: faults of a request in a batch: how it ends
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
    "other_label",
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
#: the values of `on` that a `do` allows; a `do` that is not listed allows all in EVERYWHERE
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
#: the fields that a `do` reads in addition to the common ones
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
    "other_label": frozenset({"seed"}),
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
MOST_SECONDS = 10**10  # about 300 years, so that a date with this offset can still be written


def _null_as_text(value: object) -> object:
    """Return the text `null` for None: YAML reads `kind: null` as None, but here it names a kind."""
    return "null" if value is None else value


class Fault(BaseModel):
    """One fault rule. Fields that its `do` does not read are refused, so that no field is ignored silently."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    on: On
    do: Do
    times: int | None = Field(default=None, ge=1)  #: the largest number of times it fires; None: no limit
    after: int = Field(default=0, ge=0)  #: the number of matches that pass before it fires
    #: this share of requests or lines, selected by a hash of their content
    share: float | None = Field(default=None, gt=0, le=1)
    every: int | None = Field(default=None, ge=1)  #: every k-th call, request of a batch, or line
    match: str | None = Field(default=None, min_length=1)  #: only calls, requests or lines that contain this text
    per: Literal["rule", "batch", "params"] = (
        "rule"  #: `times` and `after` count once for the rule, or apart for each batch or each params
    )

    status: int | None = Field(default=None, ge=400, le=599)
    accept: bool = False  #: do the work of the call before the wrong answer
    page: Literal["json", "html"] = "json"
    error_type: str | None = None
    error_code: str | None = None
    message: str | None = None
    retry_after: float | None = Field(default=None, ge=0)
    should_retry: bool | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    list_page: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, ge=-MOST_SECONDS, le=MOST_SECONDS)  #: negative only for `do: date`
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
    seed: int | None = None  #: another seed selects other requests for `share`, and other values

    @model_validator(mode="after")
    def _fields_fit(self) -> "Fault":
        places = PLACES.get(self.do, EVERYWHERE)
        if self.on not in places:
            raise ValueError(f"do: {self.do} needs on: {' or '.join(sorted(places))}, not {self.on}")
        unread = sorted(self.model_fields_set - COMMON_FIELDS - FIELDS.get(self.do, frozenset()))
        if unread:
            raise ValueError(f"{unread[0]} cannot be used with do: {self.do}; remove it")
        for name in NEEDED.get(self.do, ()):
            if getattr(self, name) is None:
                raise ValueError(f"do: {self.do} needs {name}")
        if wrong := self._combination_problem():
            raise ValueError(wrong)
        return self

    def _combination_problem(self) -> str | None:
        """Return what is wrong with the combination of the fields; None if nothing is."""
        if self.per == "params" and self.on != "item":
            return "per: params needs on: item"
        if self.list_page is not None and self.on != "list":
            return "list_page needs on: list"
        if self.do == "date":
            return self._date_problem()
        if self.seconds is not None and self.seconds < 0:
            return f"seconds must be 0 or more for do: {self.do}"
        if self.do == "drip" and not self.seconds:
            return "seconds must be more than 0 for do: drip"
        if self.kind == "cut" and "accept" in self.model_fields_set and not self.accept:
            return "kind: cut cuts the answer of the call, so accept cannot be false"
        return None

    def _date_problem(self) -> str | None:
        if (self.seconds is None) == (self.text is None):
            return "do: date needs either seconds or text"
        text = self.text or ""
        if not text.isascii() or not text.isprintable() or text != text.strip():
            return "text must be printable ASCII without spaces at its ends for do: date"
        return None

    @property
    def label(self) -> str:
        """Return the name of the rule in the log of calls."""
        match self.do:
            case "status":
                return f"status {self.status}"
            case "foreign_page":
                return f"foreign_page {self.kind}"
            case _:
                return self.do
