"""A value of an answer is right by the way in which the job compares it with gold."""

import datetime
from typing import Any

import pytest

from pipeline.job.gold import Match, Within
from pipeline.quality.compare_values import FAILED, Verdict, comparer, verdict


@pytest.mark.parametrize(
    ("kind", "match", "answer", "gold", "right"),
    [
        ("text", "exact", "Billing", "billing", False),
        ("text", "casefold", " STRASSE ", "Straße", True),
        ("text", "casefold", "street", "Straße", False),
        ("number", "exact", 3, 3.0, True),
        ("number", Within(abs=0.01), 10.01, 10.0, True),
        ("number", Within(abs=0.01), 10.0100001, 10.0, False),
        ("number", Within(rel=0.01), 101.0, 100.0, True),
        ("number", Within(rel=0.01), -101.0, -100.0, True),
        ("number", Within(rel=0.01), 101.1, 100.0, False),
        ("integer", Within(abs=1), 4, 3, True),
        ("date", "exact", datetime.date(2026, 11, 20), datetime.date(2026, 11, 20), True),
        ("json", "exact", '["a","b"]', '["a", "b"]', True),
        ("json", "exact", '["a","b"]', '["b","a"]', False),
        ("json", "set", '["a","b","a"]', '["b","a"]', True),
        ("json", "set", '["a"]', '["b","a"]', False),
        ("json", "set", "[]", "[]", True),
    ],
)
def test_a_value_is_right_by_its_match(kind: str, match: Match, answer: Any, gold: Any, right: bool) -> None:
    assert comparer(kind, match)(answer, gold) is right


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("a", "a", Verdict.RIGHT),
        ("a", "b", Verdict.WRONG),
        (None, "b", Verdict.MISSING),
        ("a", None, Verdict.INVENTED),
        (None, None, Verdict.RIGHT),
        (FAILED, "b", Verdict.WRONG),
        (FAILED, None, Verdict.WRONG),
    ],
)
def test_a_null_is_missing_invented_or_right(answer: Any, gold: Any, expected: Verdict) -> None:
    assert verdict(comparer("text", "exact"), answer, gold) is expected
