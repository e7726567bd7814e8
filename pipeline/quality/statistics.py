"""Which method of statistics answers which question about the answers of a model? Pure.

Intervals are two-sided with 95% confidence unless a function says otherwise. Where nothing was counted, a function
returns None: there is no interval around nothing.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

Z_TWO_SIDED = 1.959963984540054  # of the normal distribution: 95% lie between -z and z
Z_ONE_SIDED = 1.6448536269514722  # 95% lie below z
Z_POWER = 0.8416212335729143  # 80% lie below z


class Interval(NamedTuple):
    """The ends of an interval."""

    low: float
    high: float


class Estimate(NamedTuple):
    """An estimated value with its standard error and its interval."""

    value: float
    se: float
    interval: Interval


# -- shares ----------------------------------------------------------------------------------------------------------


def wilson(right: float, n: float, z: float = Z_TWO_SIDED) -> Interval | None:
    """Return Wilson's interval around the share right/n, clipped to [0, 1]; None if n is 0.

    n may be an effective number, which is not whole. z: Z_ONE_SIDED makes each end a one-sided 95% bound.
    """
    if n <= 0:
        return None
    p = right / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low, high = max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
    # at the ends of the scale the rounding of floats must not cut off the share itself
    return Interval(0.0 if right <= 0 else low, 1.0 if right >= n else high)


def f1(true_positives: float, false_positives: float, false_negatives: float) -> float | None:
    """Return the F1 of a class; None if the class occurs neither in gold nor in the answers."""
    n = 2 * true_positives + false_positives + false_negatives
    return None if n == 0 else 2 * true_positives / n


def f1_interval(true_positives: float, false_positives: float, false_negatives: float) -> Interval | None:
    """Return the interval around the F1 of a class: Wilson's around TP of TP+FP+FN, both ends mapped by 2x/(1+x)."""
    found = wilson(true_positives, true_positives + false_positives + false_negatives)
    return None if found is None else Interval(*(2 * x / (1 + x) for x in found))


class Weighted(NamedTuple):
    """A share of a sample with unequal weights, and the number of rows that a plain sample would need to be as good."""

    share: float
    n_effective: float
    interval: Interval


def weighted_share(weights: Sequence[float], right: Sequence[float], rows: Sequence[float]) -> Weighted:
    """Return the share of right rows, weighted by stratum.

    weights: of each stratum in the whole, with the sum 1. right, rows: of each stratum in the sample. One row alone
    does not show how much the rows of its stratum differ: the largest possible variance is taken for it.
    """
    strata = list(zip(weights, right, rows, strict=True))
    p = sum(w * k / n for w, k, n in strata)
    variance = sum(w * w * (k / n * (1 - k / n) / (n - 1) if n > 1 else 0.25) for w, k, n in strata)
    if variance > 0 and 0 < p < 1:
        n_effective = p * (1 - p) / variance
    else:  # all strata look pure: by Kish, the rows of which a sample with equal weights would have as many
        n_effective = sum(weights) ** 2 / sum(w * w / n for w, _, n in strata)
    interval = wilson(p * n_effective, n_effective)
    assert interval is not None
    return Weighted(p, n_effective, interval)


# -- a confusion matrix ----------------------------------------------------------------------------------------------

#: Gold by rows, answers by columns, both in the order of the classes. Columns beyond the classes are for answers that
#: are none of them, such as those that failed.
Matrix = Sequence[Sequence[int]]


class _Shares(NamedTuple):
    """A matrix as shares of its sum n. rows, columns: sums. s: row sum plus column sum of each class."""

    n: int
    p: list[list[float]]
    rows: list[float]
    columns: list[float]
    s: list[float]


def _shares(matrix: Matrix) -> _Shares | None:
    n = sum(map(sum, matrix))
    if n == 0:
        return None
    p = [[cell / n for cell in row] for row in matrix]
    rows = [sum(row) for row in p]
    columns = [sum(column) for column in zip(*p, strict=True)]
    return _Shares(n, p, rows, columns, [rows[k] + columns[k] for k in range(len(p))])


def macro_f1(matrix: Matrix) -> Estimate | None:
    """Return the mean F1 of all classes, with its interval by the delta method; None for an empty matrix.

    A class that occurs neither in gold nor in the answers has the F1 0, as with scikit-learn's zero_division=0.
    """
    shares = _shares(matrix)
    if shares is None:
        return None
    n, p, _, _, s = shares
    classes = range(len(matrix))
    scores = [2 * p[k][k] / s[k] if s[k] else 0.0 for k in classes]
    first = second = 0.0
    for i in classes:
        for j, share in enumerate(p[i]):
            if share:
                of_answer = scores[j] / s[j] if j < len(matrix) else 0.0
                slope = (2 - 2 * scores[i]) / s[i] if i == j else -scores[i] / s[i] - of_answer
                slope /= len(matrix)
                first += share * slope
                second += share * slope * slope
    return _estimate(sum(scores) / len(matrix), (second - first * first) / n)


def weighted_f1(matrix: Matrix) -> float | None:
    """Return the mean F1 of the classes, weighted by the rows of each in gold; None for an empty matrix."""
    shares = _shares(matrix)
    if shares is None:
        return None
    _, p, rows, _, s = shares
    return sum(rows[k] * 2 * p[k][k] / s[k] for k in range(len(matrix)) if s[k])


def kappa(matrix: Matrix) -> Estimate | None:
    """Return Cohen's kappa with its interval, by the variance of Fleiss, Cohen and Everitt.

    None for an empty matrix, and if gold and answers are one constant: then kappa is not defined.
    """
    beyond = max(map(len, matrix), default=0) - len(matrix)
    square = [*matrix, *([0] * (len(matrix) + beyond) for _ in range(beyond))]
    shares = _shares(square)
    if shares is None:
        return None
    n, p, rows, columns, _ = shares
    classes = range(len(square))
    observed = sum(p[k][k] for k in classes)
    expected = sum(rows[k] * columns[k] for k in classes)
    if expected >= 1 - 1e-15:
        return None
    value = (observed - expected) / (1 - expected)
    on_diagonal = sum(p[k][k] * (1 - (rows[k] + columns[k]) * (1 - value)) ** 2 for k in classes)
    beside = sum(p[i][j] * (columns[i] + rows[j]) ** 2 for i in classes for j in classes if i != j)
    spread = on_diagonal + (1 - value) ** 2 * beside - (value - expected * (1 - value)) ** 2
    return _estimate(value, spread / (n * (1 - expected) ** 2))


def _estimate(value: float, variance: float) -> Estimate:
    se = math.sqrt(max(0.0, variance))
    return Estimate(value, se, Interval(value - Z_TWO_SIDED * se, value + Z_TWO_SIDED * se))


# -- pairs: two sides that answered the same rows --------------------------------------------------------------------


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided exact p of wins against losses if both were equally likely; ties are left out. 1 if none.

    For pairs of right and wrong answers it is the exact test of McNemar.
    """
    n, least = wins + losses, min(wins, losses)
    if 2 * least >= n:
        return 1.0
    return min(1.0, 2 * binomial_at_most(least, n, 0.5))


def binomial_at_most(k: int, n: int, p: float) -> float:
    """Return the probability of at most k successes in n trials, each with the probability p."""
    if k < 0:
        return 0.0
    if k >= n or p <= 0:
        return 1.0
    if p >= 1:
        return 0.0
    if k > n * p:  # sum the smaller tail, because its terms fall from the start on
        return 1.0 - binomial_at_most(n - k - 1, n, 1 - p)
    term = _binomial(k, n, p)
    total = 0.0
    for i in range(k, -1, -1):
        total += term
        if term < total * 1e-18:
            break
        term *= i / (n - i + 1) * (1 - p) / p
    return min(1.0, total)


def _binomial(k: int, n: int, p: float) -> float:
    """Return the probability of k successes in n trials."""
    if p == 0.5 and n <= 1_000:
        return math.comb(n, k) / (1 << n)
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values adjusted by Holm for all of them being looked at, in their order."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def paired_difference(only_b: int, only_a: int, n: int, z: float = Z_TWO_SIDED) -> Interval | None:
    """Return Bonett and Price's interval around the accuracy of B minus that of A on the same rows; None if n is 0.

    only_b, only_a: rows where only B, or only A, is right. n: all pairs. z: Z_ONE_SIDED makes the low end the bound
    that the loss does not exceed with 95% confidence.
    """
    if n <= 0:
        return None
    p, q = (only_b + 1) / (n + 2), (only_a + 1) / (n + 2)
    d = p - q
    half = z * math.sqrt(max(0.0, p + q - d * d) / (n + 2))
    return Interval(max(-1.0, d - half), min(1.0, d + half))


def pairs_needed(differing: float, difference: float) -> int | None:
    """Return how many pairs show a difference with 80% power; None if no number does.

    differing: the share of pairs where just one side is right. difference: of the accuracies, not 0.
    """
    d = abs(difference)
    if d == 0 or differing < d:
        return None
    root = Z_TWO_SIDED * math.sqrt(differing) + Z_POWER * math.sqrt(differing - d * d)
    return math.ceil(root * root / (d * d) - 1e-9)


def mean_difference(n: int, total: float, squares: float) -> Estimate | None:
    """Return the mean of n differences with its interval by Student's t; None for fewer than two.

    total, squares: the sums of the differences and of their squares.
    """
    if n < 2:
        return None
    mean = total / n
    se = math.sqrt(max(0.0, squares - n * mean * mean) / (n - 1) / n)
    half = t_quantile(0.975, n - 1) * se
    return Estimate(mean, se, Interval(mean - half, mean + half))


def t_quantile(probability: float, df: int) -> float:
    """Return the quantile of Student's t with df degrees of freedom. probability: above 0.5 and below 1."""
    low, high = 0.0, 1.0
    while _t_below(high, df) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _t_below(middle, df) < probability else (low, middle)
    return (low + high) / 2


def _t_below(t: float, df: int) -> float:
    """Return the probability that Student's t is below t, which is at least 0."""
    return 1 - 0.5 * _incomplete_beta(df / 2, 0.5, df / (df + t * t))


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularized incomplete beta function, by its continued fraction."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 1_000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / (1 + step * d), 1 + step / c
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction
