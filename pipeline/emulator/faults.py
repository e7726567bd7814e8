"""Faults on demand: rules that say which calls, requests or result lines go wrong, and how.

A rule names where (`on`), what (`do`), and how often: `times`, `after`, `share`, `every`, `match`, `per`.
docs/emulator.md describes every rule with an example.
"""

import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.emulator.errors import EmulatorError
from pipeline.emulator.settings import Settings

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
Do = Literal[
    "drop_before",
    "drop_after",
    "status",
    "delay",
    "results_url",
    "lag",
    "truncate",
    "missing_lines",
    "duplicate_lines",
    "unknown_lines",
    "conflicting_lines",
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
CALL_FAULTS = frozenset({"drop_before", "drop_after", "status", "delay"})
LINE_FAULTS = frozenset({"missing_lines", "duplicate_lines", "unknown_lines", "conflicting_lines"})
RESULT_FAULTS = LINE_FAULTS | {"truncate"}
ITEM_FAULTS = frozenset(
    {
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
    }
)
#: `do` that are not for every operation, and where they belong
PLACES: dict[str, frozenset[str]] = {
    "results_url": frozenset({"retrieve", "list", "cancel"}),
    "lag": frozenset({"list"}),
    **dict.fromkeys(RESULT_FAULTS, frozenset({"results"})),
    **dict.fromkeys(ITEM_FAULTS, frozenset({"item"})),
}
COMMON_FIELDS = frozenset({"on", "do", "times", "after", "share", "every", "match", "per"})
#: the fields a `do` reads besides the common ones
FIELDS: dict[str, frozenset[str]] = {
    "drop_before": frozenset({"list_page"}),
    "drop_after": frozenset({"list_page"}),
    "delay": frozenset({"seconds", "list_page"}),
    "status": frozenset(
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
    ),
    "results_url": frozenset({"host"}),
    "lag": frozenset({"seconds"}),
    "truncate": frozenset({"keep", "cut_at", "end"}),
    "unknown_lines": frozenset({"count"}),
    "error": frozenset({"error_type", "message", "flat"}),
    "result_type": frozenset({"result_type"}),
    "refuse": frozenset({"category", "explanation"}),
}
NEEDED: dict[str, tuple[str, ...]] = {
    "status": ("status",),
    "delay": ("seconds",),
    "lag": ("seconds",),
    "results_url": ("host",),
    "error": ("error_type",),
    "result_type": ("result_type",),
}


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
    seconds: float | None = Field(default=None, ge=0)
    host: str | None = Field(default=None, pattern=r"^https?://[^/]+$")
    keep: float = Field(default=0.5, ge=0, le=1)
    cut_at: Literal["line", "mid_line"] = "line"
    end: Literal["clean", "cut", "reset"] = "clean"
    count: int = Field(default=1, ge=1)
    flat: bool = False
    result_type: str | None = None
    category: Literal["cyber", "bio", "frontier_llm", "reasoning_extraction", "general_harms"] | None = None
    explanation: str | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> "Fault":
        places = PLACES.get(self.do, frozenset(On.__args__) - {"item"})  # type: ignore[attr-defined]  # of a Literal
        if self.on not in places:
            raise ValueError(f"do: {self.do} is for on: {' or '.join(sorted(places))}, not {self.on}")
        strange = sorted(self.model_fields_set - COMMON_FIELDS - FIELDS.get(self.do, frozenset()))
        if strange:
            raise ValueError(f"{strange[0]} has no meaning for do: {self.do}")
        for name in NEEDED.get(self.do, ()):
            if getattr(self, name) is None:
                raise ValueError(f"do: {self.do} needs {name}")
        if self.per == "params" and self.on != "item":
            raise ValueError("per: params is for on: item")
        if self.list_page is not None and self.on != "list":
            raise ValueError("list_page is for on: list")
        return self

    @property
    def label(self) -> str:
        """For the log."""
        return f"status {self.status}" if self.do == "status" else self.do


class _Armed:
    """A rule with its counters."""

    def __init__(self, rule: Fault) -> None:
        self.rule = rule
        self.salt = f"{rule.on} {rule.do} {rule.error_type}".encode()
        self.matched: Counter[str] = Counter()

    def chosen(self, key: bytes, position: int) -> bool:
        """By share and every."""
        rule = self.rule
        if rule.share is not None and zlib.crc32(key, zlib.crc32(self.salt)) >= rule.share * 2**32:
            return False
        return rule.every is None or (position + 1) % rule.every == 0

    def counts(self, scope: str) -> bool:
        """By after and times; called once for each match."""
        rule = self.rule
        if rule.times is None and not rule.after:
            return True
        self.matched[scope] += 1
        number = self.matched[scope] - rule.after
        return number > 0 and (rule.times is None or number <= rule.times)


class FaultBook:
    """The rules in force. Counters live in memory: a restart arms the rules of the file anew. Thread-safe."""

    def __init__(self, rules: Iterable[Fault] = ()) -> None:
        self._lock = threading.Lock()
        self._armed = [_Armed(rule) for rule in rules]
        self._calls: Counter[int] = Counter()

    def add(self, rule: Fault) -> None:
        with self._lock:
            self._armed = [*self._armed, _Armed(rule)]

    def clear(self) -> None:
        with self._lock:
            self._armed = []

    def rules(self) -> list[Fault]:
        return [armed.rule for armed in self._armed]

    def has(self, on: str) -> bool:
        """Whether any rule is about `on`; so that the common case costs nothing."""
        return any(armed.rule.on == on for armed in self._armed)

    def for_call(self, on: str, dos: frozenset[str], call: "CallFacts") -> list[Fault]:
        """The rules of these kinds that fire for this call, in the order they were given."""
        with self._lock:
            return [armed.rule for armed in self._armed if armed.rule.do in dos and self._fires(armed, on, call)]

    def _fires(self, armed: _Armed, on: str, call: "CallFacts") -> bool:
        rule = armed.rule
        if rule.on not in (on, "any") or (rule.list_page is not None and rule.list_page != call.list_page):
            return False
        if rule.do not in LINE_FAULTS:  # theirs choose lines, not calls
            if rule.match is not None and not call.contains(rule.match):
                return False
            self._calls[id(armed)] += 1
            number = self._calls[id(armed)] - 1
            if not armed.chosen(str(number).encode(), number):
                return False
        return armed.counts((call.batch_id or "") if rule.per == "batch" else "")

    def for_item(self, batch_id: str, params: bytes, sha256: str, position: int) -> Fault | None:
        """The first rule that fires for a request. position: in the create, from 0. params: as JSON."""
        with self._lock:
            return next((a.rule for a in self._armed if self._hits(a, batch_id, params, sha256, position)), None)

    @staticmethod
    def _hits(armed: _Armed, batch_id: str, params: bytes, sha256: str, position: int) -> bool:
        rule = armed.rule
        if rule.on != "item" or (rule.match is not None and rule.match.encode() not in params):
            return False
        if not armed.chosen(sha256.encode(), position):
            return False
        return armed.counts({"rule": "", "batch": batch_id, "params": sha256}[rule.per])


class CallFacts:
    """What rules may ask of a call."""

    def __init__(self, batch_id: str | None, list_page: int, contains: Any) -> None:
        self.batch_id, self.list_page, self.contains = batch_id, list_page, contains


def line_chosen(rule: Fault, line: bytes, position: int) -> bool:
    """Whether a line fault touches this result line; with neither share, every nor match, the first line only."""
    if rule.match is not None and rule.match.encode() not in line:
        return False
    if rule.share is None and rule.every is None:
        return rule.match is not None or position == 0
    return _Armed(rule).chosen(line, position)


def parse_faults(values: object, where: str = "faults") -> list[Fault]:
    """Rules from plain data. Raises EmulatorError naming the rule and its field."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise EmulatorError(f"{where} must be a list of rules")
    return [_fault(f"{where}[{index}]", value) for index, value in enumerate(values)]


def _fault(where: str, value: object) -> Fault:
    if isinstance(value, Fault):
        return value
    try:
        return Fault.model_validate(value)
    except ValidationError as exc:
        raise EmulatorError(_said(where, exc)) from exc


def _said(where: str, exc: ValidationError) -> str:
    first = exc.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return f"{where}{'.' if field else ''}{field}: {first['msg'].removeprefix('Value error, ')}"


def read_faults(path: Path) -> tuple[list[Fault], Settings]:
    """Rules and settings from a YAML or JSON file: a list of rules, or {"settings": {...}, "faults": [...]}.

    Raises EmulatorError naming the file and what is wrong in it.
    """
    try:
        value = YAML(typ="safe").load(StringIO(path.read_text(encoding="utf-8")))
    except OSError as exc:
        raise EmulatorError(f"the faults file {path} cannot be read: {exc.strerror}") from exc
    except (YAMLError, UnicodeDecodeError) as exc:
        raise EmulatorError(f"the faults file {path} is neither YAML nor JSON: {exc}") from exc
    if not isinstance(value, dict):
        return parse_faults(value or [], f"{path}: faults"), Settings()
    if strange := value.keys() - {"faults", "settings"}:
        raise EmulatorError(f"{path}: {min(map(str, strange))} is unknown; it holds faults and settings")
    try:
        settings = Settings.model_validate(value.get("settings") or {})
    except ValidationError as exc:
        raise EmulatorError(_said(f"{path}: settings", exc)) from exc
    return parse_faults(value.get("faults") or [], f"{path}: faults"), settings
