"""The statistics of answers, against reference numbers of scipy, statsmodels and scikit-learn."""

import importlib
import random

import pytest

from pipeline.quality import statistics
from pipeline.quality.judges import opens_at, pass_probability, passes, rows_needed
from pipeline.quality.statistics import (
    Z_ONE_SIDED,
    Interval,
    f1,
    f1_interval,
    holm,
    kappa,
    macro_f1,
    mean_difference,
    paired_difference,
    pairs_needed,
    sign_test,
    weighted_f1,
    weighted_share,
    wilson,
)

MATRIX = [[104, 4, 8, 2, 2], [4, 68, 4, 2, 2], [8, 4, 80, 4, 4], [2, 2, 4, 40, 12], [2, 1, 3, 8, 26]]
#: Gold a a b b b c, answers a (failed) b c b c; the last column is "(failed)", which is no class.
FAILED_APART = [[1, 0, 0, 1], [0, 2, 1, 0], [0, 0, 1, 0]]


def about(*values: float, digits: int = 6) -> object:
    return pytest.approx(values, abs=0.51 * 10**-digits)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(352, 400, 0.844486, 0.908285), (33, 40, 0.680501, 0.912546), (0, 7, 0.0, 0.354330)],
)
def test_the_interval_around_a_share_is_that_of_wilson(right: int, n: int, low: float, high: float) -> None:
    assert wilson(right, n) == pytest.approx((low, high), abs=1e-6)


def test_the_interval_around_93_of_100_reaches_from_863_to_966_thousandths() -> None:
    assert wilson(93, 100) == about(0.863, 0.966, digits=3)


def test_the_interval_around_all_or_nothing_reaches_the_end_of_the_scale() -> None:
    all_right, none_right = wilson(1_000, 1_000), wilson(0, 7)

    assert all_right is not None
    assert all_right.high == 1.0
    assert none_right is not None
    assert none_right.low == 0.0


def test_nothing_that_was_counted_has_no_interval() -> None:
    assert wilson(0, 0) is None
    assert f1(0, 0, 0) is None
    assert f1_interval(0, 0, 0) is None
    assert macro_f1([[0, 0], [0, 0]]) is None
    assert weighted_f1([[0]]) is None
    assert kappa([[7]]) is None  # gold and answers are one constant
    assert paired_difference(0, 0, 0) is None
    assert mean_difference(1, 1.0, 1.0) is None


def test_the_f1_of_a_class_has_an_interval_of_its_own() -> None:
    assert f1(33, 5, 7) == pytest.approx(0.846154, abs=5e-7)
    assert f1_interval(33, 5, 7) == about(0.741831, 0.913251)


def test_macro_f1_has_an_interval_by_the_delta_method() -> None:
    found = macro_f1(MATRIX)

    assert found is not None
    assert (found.value, found.se) == about(0.764068, 0.022906)
    assert found.interval == about(0.719173, 0.808962)
    assert weighted_f1(MATRIX) == pytest.approx(0.795988, abs=5e-7)


def test_answers_that_failed_are_wrong_and_no_class_of_their_own() -> None:
    found = macro_f1(FAILED_APART)

    assert found is not None
    assert found.value == pytest.approx(0.7111, abs=5e-5)


def test_kappa_has_the_variance_of_fleiss_cohen_and_everitt() -> None:
    found = kappa(MATRIX)

    assert found is not None
    assert (found.value, *found.interval) == about(0.735867, 0.685558, 0.786177)


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(26, 52, 0.00433488), (145, 94, 0.00117422), (0, 0, 1.0), (62, 38, 0.0210), (60, 40, 0.0569), (3, 3, 1.0)],
)
def test_wins_and_losses_have_an_exact_p(wins: int, losses: int, p: float) -> None:
    digits = 8 if p < 0.01 else 4
    assert sign_test(wins, losses) == pytest.approx(p, abs=0.51 * 10**-digits)
    assert sign_test(losses, wins) == sign_test(wins, losses)


def test_many_pairs_have_the_same_p_by_both_ways_of_counting() -> None:
    exact = statistics.binomial_at_most(460, 1_000, 0.5)
    through_logarithms = statistics.binomial_at_most(460, 1_000, 0.5 + 1e-13)

    assert through_logarithms == pytest.approx(exact, rel=1e-8)
    assert 0 < sign_test(499_000, 501_500) < 0.02


def test_holm_adjusts_for_all_sides_that_are_looked_at() -> None:
    assert holm([0.012, 0.03, 0.2]) == pytest.approx([0.036, 0.06, 0.2])
    assert holm([0.2, 0.012, 0.03]) == pytest.approx([0.2, 0.036, 0.06])
    assert holm([]) == []


def test_a_difference_on_the_same_rows_has_the_interval_of_bonett_and_price() -> None:
    assert paired_difference(52, 26, 720) == about(0.011873, 0.060149)
    assert paired_difference(12, 20, 400) == about(-0.048263, 0.008462)

    one_sided = paired_difference(12, 20, 400, Z_ONE_SIDED)

    assert one_sided is not None
    assert one_sided.low == pytest.approx(-0.043703, abs=5e-7)


@pytest.mark.parametrize(("difference", "pairs"), [(0.05, 312), (0.03, 870), (0.02, 1_960)])
def test_the_pairs_that_show_a_difference_are_known_beforehand(difference: float, pairs: int) -> None:
    assert pairs_needed(0.1, difference) == pytest.approx(pairs, abs=2)
    assert pairs_needed(0.1, -difference) == pairs_needed(0.1, difference)
    assert pairs_needed(0.01, difference) is None  # fewer rows differ than the difference would need


def test_the_mean_difference_of_numbers_has_the_interval_of_student() -> None:
    differences = [1, 2, -1, 0.5, 3, 0, 1.5, -0.5, 2.5, 1]

    found = mean_difference(10, sum(differences), sum(d * d for d in differences))

    assert found is not None
    assert (found.value, *found.interval) == about(1.0, 0.076478, 1.923522)


def test_strata_count_by_their_share_of_the_whole() -> None:
    found = weighted_share([0.60, 0.20, 0.10, 0.07, 0.03], [39, 36, 32, 26, 20], [40] * 5)

    assert found.share == pytest.approx(0.9055, abs=5e-5)
    assert found.n_effective == pytest.approx(217.9, abs=0.05)
    assert found.interval == about(0.8593, 0.9376, digits=4)


# -- gates -----------------------------------------------------------------------------------------------------------


def test_a_gate_by_bound_opens_when_the_accuracy_is_shown() -> None:
    assert opens_at(200, 0.85, "bound") == 179
    assert opens_at(400, 0.85, "bound") == 352
    assert opens_at(200, 0.85, "point") == 170
    assert opens_at(10, 0.85, "bound") is None
    assert not passes(0, 0, 0.0, "point")


@pytest.mark.parametrize(
    ("judge", "n", "accuracy", "percent"),
    [
        ("bound", 200, 0.85, 4),
        ("bound", 200, 0.88, 30),
        ("bound", 200, 0.90, 65),
        ("bound", 200, 0.92, 92),
        ("point", 200, 0.82, 16),
        ("point", 200, 0.84, 39),
        ("bound", 400, 0.88, 54),
        ("bound", 400, 0.90, 92),
    ],
)
def test_it_is_known_beforehand_how_often_a_prompt_passes(judge: str, n: int, accuracy: float, percent: int) -> None:
    assert 100 * pass_probability(accuracy, n, 0.85, judge) == pytest.approx(percent, abs=0.6)  # type: ignore[arg-type]


@pytest.mark.parametrize(("minimum", "rows"), [(0.85, 16), (0.90, 25), (0.95, 52), (0.99, 268)])
def test_so_many_rows_must_all_be_right(minimum: float, rows: int) -> None:
    assert rows_needed(minimum, "bound") == rows


@pytest.mark.parametrize(
    ("judge", "n", "accuracy", "percent"),
    [
        ("bound", 30, 0.90, 82),
        ("point", 30, 0.90, 18),
        ("alarm", 30, 0.90, 0.8),
        ("alarm", 30, 0.75, 49),
        ("alarm", 100, 0.75, 85),
    ],
)
def test_an_alarm_rings_for_a_shown_loss_only(judge: str, n: int, accuracy: float, percent: float) -> None:
    rings = 100 * (1 - pass_probability(accuracy, n, 0.85, judge))  # type: ignore[arg-type]

    assert rings == pytest.approx(percent, abs=0.6)


# -- how often an interval holds the truth ---------------------------------------------------------------------------


def test_intervals_hold_the_truth_in_95_of_100_samples() -> None:
    accuracies = churns = differences = 0
    for seed in range(2_000):
        draw = random.Random(seed).random
        # of 400 rows, both sides are right on 80%, only A on 8%, only B on 4%: an accuracy of 88%, and 12% that differ
        drawn = [draw() for _ in range(400)]
        only_a = sum(0.80 <= d < 0.88 for d in drawn)
        only_b = sum(0.88 <= d < 0.92 for d in drawn)
        right = sum(d < 0.88 for d in drawn)
        accuracies += holds(wilson(right, 400), 0.88)
        churns += holds(wilson(only_a + only_b, 400), 0.12)
        differences += holds(paired_difference(only_b, only_a, 400), -0.04)

    for held in (accuracies, churns, differences):
        assert 0.935 <= held / 2_000 <= 0.965


def holds(interval: Interval | None, truth: float) -> bool:
    return interval is not None and interval.low <= truth <= interval.high


# -- scikit-learn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix", [MATRIX, FAILED_APART], ids=["all answered", "one failed"])
def test_the_figures_are_those_of_scikit_learn(matrix: list[list[int]]) -> None:
    metrics = importlib.import_module("sklearn.metrics")
    labels = list(range(len(matrix)))
    gold = [i for i, row in enumerate(matrix) for n in row for _ in range(n)]
    answers = [j for row in matrix for j, n in enumerate(row) for _ in range(n)]
    asked = {"labels": labels, "zero_division": 0}

    macro, of_kappa = macro_f1(matrix), kappa(matrix)

    assert macro is not None
    assert of_kappa is not None
    assert macro.value == pytest.approx(metrics.f1_score(gold, answers, average="macro", **asked), abs=1e-12)
    assert weighted_f1(matrix) == pytest.approx(metrics.f1_score(gold, answers, average="weighted", **asked), abs=1e-12)
    assert of_kappa.value == pytest.approx(metrics.cohen_kappa_score(gold, answers), abs=1e-12)
