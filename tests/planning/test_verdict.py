"""The verdict on a source row depends on what is known of it, as the design's "What is sent" says."""

from collections.abc import Container
from typing import Any, NamedTuple

import pytest

from pipeline.job.model import Job
from pipeline.planning.verdict import SENT, Verdict, retry_verdict, verdict
from pipeline.states import FAILURES, OUTCOMES, RowState

HASH, OTHER_HASH = b"h" * 16, b"o" * 16
RECIPE, OLDER_RECIPE = "recipe", "older recipe"


class Known(NamedTuple):
    """What the database knows of a key: its state, its last outcome, and the hash and recipe of that outcome."""

    state: RowState
    row_hash: bytes = HASH
    recipe: str = RECIPE
    outcome: RowState | None = None
    outcome_hash: bytes | None = None
    outcome_recipe: str | None = None
    error_type: str | None = None
    batch_id: int | None = None
    attempts: int = 1
    run_id: int = 1
    round: int = 1

    @property
    def is_between_rounds(self) -> bool:
        return self.state == RowState.PENDING and self.round > 1


def answered(
    outcome: RowState, *, row_hash: bytes = HASH, recipe: str = RECIPE, state: RowState | None = None
) -> Known:
    return Known(state or outcome, row_hash, recipe, outcome, row_hash, recipe)


def of(known: Known | None, *, refresh: bool = False, retries: Container[int] = frozenset()) -> Verdict:
    fields: dict[str, Any] = {
        "name": "j",
        "source": {"path": "a.csv", "key": "id"},
        "request": {"model": "m", "max_tokens": 1, "prompt": "{{ a }}"},
        "sink": {"table": "t"},
    }
    job = Job.model_validate(fields)
    return verdict(known, HASH, RECIPE, job, refresh=refresh, retries=retries)  # type: ignore[arg-type]


def test_a_row_that_was_never_seen_is_sent() -> None:
    assert of(None) is Verdict.NEW
    assert Verdict.NEW in SENT


@pytest.mark.parametrize("refresh", [False, True], ids=["plain run", "refresh"])
def test_a_row_planned_and_not_sent_yet_is_sent(refresh: bool) -> None:
    assert of(Known(RowState.PENDING), refresh=refresh) is Verdict.WAITING
    assert of(Known(RowState.PENDING, row_hash=OTHER_HASH, recipe=OLDER_RECIPE), refresh=refresh) is Verdict.WAITING
    assert Verdict.WAITING in SENT


@pytest.mark.parametrize("refresh", [False, True], ids=["plain run", "refresh"])
@pytest.mark.parametrize(
    "outcome",
    [None, RowState.SUCCEEDED, RowState.ERRORED, RowState.LOST],
    ids=["first", "after success", "error", "lost"],
)
@pytest.mark.parametrize("recipe", [RECIPE, OLDER_RECIPE], ids=["same recipe", "older recipe"])
def test_a_row_in_flight_is_never_sent_a_second_time(recipe: str, outcome: RowState | None, refresh: bool) -> None:
    known = Known(RowState.IN_FLIGHT, HASH, recipe, outcome, OTHER_HASH, recipe)

    assert of(known, refresh=refresh) is Verdict.IN_FLIGHT
    assert Verdict.IN_FLIGHT not in SENT


def test_a_row_that_changed_in_flight_waits_for_that_sending() -> None:
    assert of(Known(RowState.IN_FLIGHT, row_hash=OTHER_HASH)) is Verdict.CHANGED_IN_FLIGHT
    assert Verdict.CHANGED_IN_FLIGHT not in SENT


@pytest.mark.parametrize("outcome", OUTCOMES, ids=str)
@pytest.mark.parametrize("recipe", [RECIPE, OLDER_RECIPE], ids=["same recipe", "older recipe"])
def test_a_row_whose_values_changed_since_its_outcome_is_sent(outcome: RowState, recipe: str) -> None:
    assert of(answered(outcome, row_hash=OTHER_HASH, recipe=recipe)) is Verdict.CHANGED
    assert Verdict.CHANGED in SENT


def test_an_answered_row_is_kept_even_when_refreshing() -> None:
    assert of(answered(RowState.SUCCEEDED)) is Verdict.KEPT
    assert of(answered(RowState.SUCCEEDED), refresh=True) is Verdict.KEPT
    assert Verdict.KEPT not in SENT


def test_an_answer_of_an_older_recipe_is_kept_unless_asked_to_refresh() -> None:
    older = answered(RowState.SUCCEEDED, recipe=OLDER_RECIPE)

    assert of(older) is Verdict.KEPT_OLDER
    assert of(older, refresh=True) is Verdict.AGAIN
    assert Verdict.KEPT_OLDER not in SENT
    assert Verdict.AGAIN in SENT


ONLY_BY_A_PERSON = {RowState.LOST, RowState.CANCELED}


@pytest.mark.parametrize("outcome", [state for state in FAILURES if state not in ONLY_BY_A_PERSON], ids=str)
def test_a_failed_row_is_sent_again_only_with_a_new_recipe(outcome: RowState) -> None:
    assert of(answered(outcome)) is Verdict.KEPT
    assert of(answered(outcome), refresh=True) is Verdict.KEPT
    assert of(answered(outcome, recipe=OLDER_RECIPE)) is Verdict.AGAIN


@pytest.mark.parametrize("outcome", sorted(ONLY_BY_A_PERSON), ids=str)
@pytest.mark.parametrize("refresh", [False, True], ids=["plain run", "refresh"])
def test_a_lost_or_canceled_row_is_sent_again_only_by_a_person(outcome: RowState, refresh: bool) -> None:
    assert of(answered(outcome), refresh=refresh) is Verdict.KEPT
    assert of(answered(outcome, recipe=OLDER_RECIPE), refresh=refresh) is Verdict.KEPT


@pytest.mark.parametrize("outcome", [RowState.ERRORED, RowState.EXPIRED], ids=str)
def test_a_failed_row_that_waits_for_its_next_attempt_is_sent(outcome: RowState) -> None:
    assert of(answered(outcome, state=RowState.PENDING)) is Verdict.AGAIN


@pytest.mark.parametrize("outcome", [RowState.SUCCEEDED, RowState.TRUNCATED], ids=str)
@pytest.mark.parametrize(
    ("row_hash", "recipe"), [(OTHER_HASH, RECIPE), (HASH, OLDER_RECIPE)], ids=["the row", "the recipe"]
)
def test_what_had_changed_and_changed_back_keeps_its_answer(row_hash: bytes, recipe: str, outcome: RowState) -> None:
    back = Known(RowState.PENDING, row_hash, recipe, outcome, HASH, RECIPE)

    assert of(back) is Verdict.KEPT


@pytest.mark.parametrize(
    "error_type", ["overloaded_error", "billing_error"], ids=["it has attempts left", "the account was refused"]
)
def test_what_had_changed_and_changed_back_is_sent_if_it_would_be_otherwise(error_type: str) -> None:
    back = Known(RowState.PENDING, HASH, OLDER_RECIPE, RowState.ERRORED, HASH, RECIPE, error_type)

    assert of(back) is Verdict.AGAIN


@pytest.mark.parametrize("outcome", OUTCOMES, ids=str)
@pytest.mark.parametrize("recipe", [RECIPE, OLDER_RECIPE], ids=["same recipe", "older recipe"])
@pytest.mark.parametrize("refresh", [False, True], ids=["plain run", "refresh"])
def test_a_row_that_waits_for_a_retry_is_left_to_it_unless_it_changed(
    outcome: RowState, recipe: str, refresh: bool
) -> None:
    waits = answered(outcome, recipe=recipe, state=RowState.PENDING)._replace(run_id=7)
    changed = waits._replace(outcome_hash=OTHER_HASH)

    assert of(waits, refresh=refresh, retries={7}) is Verdict.FOR_RETRY
    assert of(changed, refresh=refresh, retries={7}) is Verdict.CHANGED
    assert Verdict.FOR_RETRY not in SENT


def test_a_retry_takes_its_own_rows_and_leaves_those_of_another_one() -> None:
    waits: Any = answered(RowState.TRUNCATED, state=RowState.PENDING)._replace(run_id=7)

    assert retry_verdict(waits, HASH, wanted=True, run_id=7) is Verdict.AGAIN
    assert retry_verdict(waits, HASH, wanted=True, run_id=8, retries={7}) is Verdict.FOR_RETRY
    assert retry_verdict(waits, HASH, wanted=False, run_id=8, retries={7}) is Verdict.OTHER


def test_a_row_between_two_rounds_goes_on_unless_its_values_or_its_recipe_have_changed() -> None:
    waits = Known(RowState.PENDING, run_id=7, round=3)

    assert of(waits) is of(waits, refresh=True) is Verdict.IN_ROUNDS
    assert of(waits._replace(row_hash=OTHER_HASH)) is of(waits._replace(recipe=OLDER_RECIPE)) is Verdict.WAITING
    assert of(waits, retries={7}) is Verdict.FOR_RETRY
    assert Verdict.IN_ROUNDS not in SENT


def test_a_retry_goes_on_with_its_own_rows_between_two_rounds_and_begins_those_of_others_at_round_1() -> None:
    waits: Any = answered(RowState.TRUNCATED, state=RowState.PENDING)._replace(run_id=7, round=2)

    assert retry_verdict(waits, HASH, wanted=True, run_id=7) is Verdict.IN_ROUNDS
    assert retry_verdict(waits, OTHER_HASH, wanted=True, run_id=7) is Verdict.AGAIN
    assert retry_verdict(waits, HASH, wanted=True, run_id=8) is Verdict.AGAIN
