"""Read fault rules and decide which of them fire for a call, a request or a result line."""

import copy
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.emulator.errors import EmulatorError
from pipeline.emulator.rules import LINE_FAULTS, Fault
from pipeline.emulator.settings import Settings


class _Armed:
    """A rule in force, with its counters."""

    def __init__(self, rule: Fault) -> None:
        self.rule = rule
        damage = f" {rule.damage}" if rule.damage else ""
        seed = "" if rule.seed is None else f" {rule.seed}"
        self.salt = f"{rule.on} {rule.do} {rule.error_type}{damage}{seed}".encode()
        self.calls = 0  #: calls that matched, before `share` and `every` are applied
        self.matched: Counter[str] = Counter()
        self.held: set[str] = set()  #: ids of batches that do not end while the rule is in force

    def is_selected(self, key: bytes, position: int) -> bool:
        """Return whether `share` and `every` select this item. key: decides for `share`. position: from 0."""
        rule = self.rule
        if rule.share is not None and zlib.crc32(key, zlib.crc32(self.salt)) >= rule.share * 2**32:
            return False
        return rule.every is None or (position + 1) % rule.every == 0

    def count_match(self, scope: str) -> bool:
        """Count a match and return whether `after` and `times` let it fire. scope: what is counted apart."""
        rule = self.rule
        if rule.times is None and not rule.after:
            return True
        self.matched[scope] += 1
        number = self.matched[scope] - rule.after
        return number > 0 and (rule.times is None or number <= rule.times)


class FaultBook:
    """The fault rules in force. Safe across threads.

    Counters are in memory only: after a restart, the rules of the faults file start again from zero.
    """

    def __init__(self, rules: Iterable[Fault] = ()) -> None:
        self._lock = threading.Lock()
        self._armed = [_Armed(rule) for rule in rules]

    def add(self, rule: Fault) -> None:
        """Put a rule in force, after the others."""
        with self._lock:
            self._armed = [*self._armed, _Armed(rule)]

    def clear(self) -> None:
        """Remove all rules, and with them their counters."""
        with self._lock:
            self._armed = []

    def rules(self) -> list[Fault]:
        """Return the rules in the order they were added."""
        return [armed.rule for armed in self._armed]

    def has(self, on: str) -> bool:
        """Return whether any rule has this `on`. Lets a caller skip further checks if there is none."""
        return any(armed.rule.on == on for armed in self._armed)

    @property
    def empty(self) -> bool:
        """Return whether no rule is in force. Lets a caller skip further checks."""
        return not self._armed

    def for_call(self, on: str, actions: frozenset[str], call: "CallFacts") -> list[Fault]:
        """Return the rules with one of these `do` that fire for this call, in the order they were added."""
        if self.empty:
            return []
        with self._lock:
            return [armed.rule for armed in self._armed if armed.rule.do in actions and self._fires(armed, on, call)]

    def first_for_call(self, on: str, actions: frozenset[str], call: "CallFacts") -> Fault | None:
        """Return the first rule with one of these `do` that fires for this call; None if none fires.

        The rules after it do not count the call.
        """
        with self._lock:
            fired = (armed.rule for armed in self._armed if armed.rule.do in actions and self._fires(armed, on, call))
            return next(fired, None)

    def would_fire(self, on: str, actions: frozenset[str], call: "CallFacts") -> list[Fault]:
        """Return the rules with one of these `do` that would fire for this call. No rule counts the call."""
        with self._lock:
            copies = [copy.deepcopy(armed) for armed in self._armed if armed.rule.do in actions]
            return [armed.rule for armed in copies if self._fires(armed, on, call)]

    def hold(self, on: str, do: str, call: "CallFacts") -> None:
        """Keep the call's batch from ending while a rule that fires for this call is in force."""
        with self._lock:
            for armed in self._armed:
                if armed.rule.do == do and call.batch_id is not None and self._fires(armed, on, call):
                    armed.held.add(call.batch_id)

    def holds(self, batch_id: str) -> bool:
        """Return whether a rule in force keeps this batch from ending."""
        return any(batch_id in armed.held for armed in self._armed)

    @staticmethod
    def _fires(armed: _Armed, on: str, call: "CallFacts") -> bool:
        """Return whether a rule fires for a call. Counts the call, so it is asked once for each call."""
        rule = armed.rule
        if rule.on not in (on, "any") or (rule.list_page is not None and rule.list_page != call.list_page):
            return False
        if rule.do not in LINE_FAULTS:  # `match`, `share` and `every` of line faults select lines, not calls
            if rule.match is not None and not call.contains(rule.match):
                return False
            armed.calls += 1
            number = armed.calls - 1
            if not armed.is_selected(str(number).encode(), number):
                return False
        return armed.count_match((call.batch_id or "") if rule.per == "batch" else "")

    def for_item(self, batch_id: str, params: bytes, sha256: str, position: int) -> Fault | None:
        """Return the first rule that fires for a request in a batch; None if none fires.

        params: as JSON. sha256: their hash in hex. position: the place of the request in the create call, from 0.
        """
        with self._lock:
            return next(
                (a.rule for a in self._armed if self._fires_for_item(a, batch_id, params, sha256, position)), None
            )

    @staticmethod
    def _fires_for_item(armed: _Armed, batch_id: str, params: bytes, sha256: str, position: int) -> bool:
        """Return whether a rule fires for a request in a batch. Counts it, as `_fires` does."""
        rule = armed.rule
        if rule.on != "item" or (rule.match is not None and rule.match.encode() not in params):
            return False
        if not armed.is_selected(sha256.encode(), position):
            return False
        return armed.count_match({"rule": "", "batch": batch_id, "params": sha256}[rule.per])


class CallFacts:
    """The properties of a call that rules look at.

    batch_id: None if the call is not about one batch. list_page: the page of a listing, from 1. contains: a function
    that returns whether the call contains a text, for `match`.
    """

    def __init__(self, batch_id: str | None, list_page: int, contains: Any) -> None:
        self.batch_id, self.list_page, self.contains = batch_id, list_page, contains


def line_chosen(rule: Fault, line: bytes, position: int) -> bool:
    """Return whether a line fault applies to this result line. position: from 0.

    A rule without `share`, `every` and `match` applies to the first line only.
    """
    if rule.match is not None and rule.match.encode() not in line:
        return False
    if rule.share is None and rule.every is None:
        return rule.match is not None or position == 0
    return _Armed(rule).is_selected(line, position)


def parse_faults(values: object, where: str = "faults") -> list[Fault]:
    """Return the rules of a list of dicts or Faults. Raises EmulatorError, which names the rule and its field.

    where: what the list is called in messages.
    """
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise EmulatorError(f"{where} must be a list of rules")
    return [_fault(f"{where}[{index}]", value) for index, value in enumerate(values)]


def _fault(where: str, value: object) -> Fault:
    if isinstance(value, Fault):
        return value
    try:
        return Fault.model_validate(value)
    except ValidationError as exc:
        raise EmulatorError(_sentence(where, exc)) from exc


def _sentence(where: str, exc: ValidationError) -> str:
    """Return the first error of a validation as `where.field: what is wrong`."""
    first = exc.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return f"{where}{'.' if field else ''}{field}: {first['msg'].removeprefix('Value error, ')}"


def read_faults(path: Path) -> tuple[list[Fault], Settings]:
    """Read rules and settings from a YAML or JSON file: a list of rules, or {"settings": {...}, "faults": [...]}.

    What the file leaves out, or an empty file, gives no rules and the default settings.
    Raises EmulatorError, which names the file and what is wrong in it.
    """
    try:
        value = YAML(typ="safe").load(StringIO(path.read_text(encoding="utf-8")))
    except OSError as exc:
        raise EmulatorError(f"the faults file {path} cannot be read: {exc.strerror}") from exc
    except (YAMLError, UnicodeDecodeError) as exc:
        raise EmulatorError(f"the faults file {path} is neither YAML nor JSON: {exc}") from exc
    if not isinstance(value, dict):
        return parse_faults(value or [], f"{path}: faults"), Settings()
    if unknown := value.keys() - {"faults", "settings"}:
        raise EmulatorError(f"{path}: the key {min(map(str, unknown))} is unknown; use faults and settings")
    try:
        settings = Settings.model_validate(value.get("settings") or {})
    except ValidationError as exc:
        raise EmulatorError(_sentence(f"{path}: settings", exc)) from exc
    return parse_faults(value.get("faults") or [], f"{path}: faults"), settings
