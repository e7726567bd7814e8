"""The sentences for the reasons of batches."""

import pytest

from pipeline.reasons import TEXTS, Reason, in_words


def test_each_reason_has_a_sentence_of_its_own() -> None:
    assert TEXTS.keys() == set(Reason)
    assert len(set(TEXTS.values())) == len(TEXTS)


@pytest.mark.parametrize(
    ("reason", "detail", "said"),
    [
        (None, None, None),
        (None, "502 Bad Gateway", "502 Bad Gateway"),
        ("absent", None, "it never reached the API"),
        ("not_listed", "it died; sent again at 1:54", "asking the API whether it arrived: it died; sent again at 1:54"),
    ],
    ids=["nothing", "a detail alone", "a reason alone", "both"],
)
def test_a_reason_and_its_detail_are_one_sentence(reason: str | None, detail: str | None, said: str | None) -> None:
    assert in_words(reason, detail) == said
