"""Duplicate texts are found, however many texts there are, in memory and on disk."""

import polars as pl
import pytest

from pipeline.source import duplicates
from pipeline.source.duplicates import Distinct


@pytest.fixture(params=["in memory", "on disk"])
def found(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Distinct:
    if request.param == "on disk":
        monkeypatch.setattr(duplicates, "AT_ONCE", 100)
    return Distinct()


def texts(first: int, last: int) -> pl.Series:
    return duplicates.hashes(pl.Series([f"text {i}" for i in range(first, last)], dtype=pl.String))


def test_different_texts_have_no_duplicates(found: Distinct) -> None:
    with found:
        for first in range(0, 1_000, 30):
            found.add(texts(first, min(first + 30, 1_000)))

        assert found.duplicates().to_list() == []


def test_a_duplicate_much_later_is_found_once(found: Distinct) -> None:
    with found:
        for first in (0, 300, 600, 150):
            found.add(texts(first, first + 150))
        found.add(texts(300, 301))

        assert found.duplicates().to_list() == texts(300, 301).to_list()


def test_all_duplicates_are_found(found: Distinct) -> None:
    with found:
        found.add(texts(0, 250))
        found.add(texts(0, 250))

        assert sorted(found.duplicates()) == sorted(texts(0, 250))


def test_no_texts_have_no_duplicates(found: Distinct) -> None:
    with found:
        found.add(texts(0, 0))

        assert found.duplicates().len() == 0


@pytest.mark.parametrize("before", [0, 30, 250], ids=["nothing", "a little", "much"])
def test_restore_removes_texts_that_were_added_after_the_mark(found: Distinct, before: int) -> None:
    with found:
        found.add(texts(0, before))
        mark = found.mark()
        for first in range(0, 600, 150):
            found.add(texts(first, first + 150))

        found.restore(mark)

        assert found.duplicates().len() == 0
        found.add(texts(before, before + 300))
        assert found.duplicates().len() == 0
        found.add(texts(before, before + 1))
        assert found.duplicates().to_list() == texts(before, before + 1).to_list()
