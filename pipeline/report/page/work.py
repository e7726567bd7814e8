"""What does a page show of money, tokens and batches? Edge: SQL."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from pipeline.money.prices import prices_of
from pipeline.report.page.shapes import NOTHING, Band, Bar, Histogram, band, bars, histogram, scale
from pipeline.sink.profile import Group, Profile
from pipeline.state.batch_facts import BatchTime
from pipeline.state.runs import RunRecord
from pipeline.states import RowState
from pipeline.text import count, duration, money

MOST_RUNS = 8
MOST_BATCHES = 12  # that have a bar each; of more there is a histogram
BEYOND = 4  # a max_tokens of so many times the longest answer does not stretch the histogram


# -- money -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunMoney:
    """The cost of one run. band: None without an estimate. low, expected, worst: in words."""

    name: str
    actual: str
    band: Band | None
    low: str
    expected: str
    worst: str


@dataclass(frozen=True)
class Saving:
    """What was saved, or with a minus what was paid more."""

    name: str
    usd: str
    note: str


@dataclass(frozen=True)
class Money:
    """The money of a job. more: older runs that are not shown. each: the cost of 1,000 answers."""

    runs: list[RunMoney]
    more: int
    savings: list[Saving]
    figures: list[tuple[str, str]]


def money_of(runs: Sequence[tuple[RunRecord, float]], groups: Sequence[Group], cached_for_an_hour: bool) -> Money:
    """Return the money. runs: with their cost in US dollars, oldest first; groups: the answers."""
    shown = [_run_money(run, cost) for run, cost in runs[-MOST_RUNS:]]
    answered = sum(group.rows for group in groups if group.status == RowState.SUCCEEDED)
    cost = sum(cost for _, cost in runs)
    figures = [("for 1,000 rows that succeeded", money(1_000 * cost / answered))] if answered else []
    return Money(shown, len(runs) - len(shown), list(_savings(groups, cached_for_an_hour)), figures)


def _run_money(run: RunRecord, cost: float) -> RunMoney:
    usd: Mapping[str, float | None] | None = (run.estimate or {}).get("cost_usd")
    name, actual = f"run {run.id}", money(cost)
    if usd is None or usd["low"] is None or usd["worst"] is None:
        return RunMoney(name, actual, None, NOTHING, NOTHING, NOTHING)
    expected = usd["expected"]
    drawn = band(usd["low"], expected, usd["worst"], cost)
    words = NOTHING if expected is None else money(expected)
    return RunMoney(name, actual, drawn, money(usd["low"]), words, money(usd["worst"]))


def _savings(groups: Sequence[Group], cached_for_an_hour: bool) -> "list[Saving]":
    """Return what batches, the prompt cache and shared requests have saved; empty if a price is not known."""
    paid = live = cached = shared = 0.0
    free = 0
    means = _mean_costs(groups)
    for group in groups:
        if group.model is None:
            continue
        prices, full = prices_of(group.model), prices_of(group.model, batch=False)
        if prices is None or full is None or group.priced < group.rows:
            return []
        tokens = (group.input_tokens, group.output_tokens, group.cache_read_tokens, group.cache_write_tokens)
        write = [of.cache_write_1h if cached_for_an_hour else of.cache_write for of in (full, prices)]
        rates = (full.input.base, full.output.base, full.cache_read.base, write[0].base)
        live += sum(n * rate for n, rate in zip(tokens, rates, strict=True))
        paid += group.cost_usd
        cached += group.cache_read_tokens * (prices.input.base - prices.cache_read.base)
        cached -= group.cache_write_tokens * (write[1].base - prices.input.base)
        free += group.free
        shared += group.free * means.get(group.model, 0.0)
    found = [Saving("by batches", _signed(live - paid), f"live calls would have cost {money(live)}")] if live else []
    if any(group.cache_read_tokens or group.cache_write_tokens for group in groups):
        read = sum(group.cache_read_tokens for group in groups)
        found.append(Saving("by the prompt cache", _signed(cached), f"{read:,} tokens were read from it"))
    if free:
        note = f"{count(free, 'row')} shared the request of another row"
        found.append(Saving("by equal requests", f"about {_signed(shared)}", note))
    return found


def _mean_costs(groups: Sequence[Group]) -> dict[str, float]:
    """Return by model the mean cost of an answer that did not share a request."""
    cost: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    for group in groups:
        if group.model is not None:
            cost[group.model] += group.cost_usd  # type: ignore[assignment]  # a Counter adds floats as well
            rows[group.model] += group.rows - group.free
    return {model: cost[model] / rows[model] for model in rows if rows[model]}


def _signed(usd: float) -> str:
    return money(usd) if usd >= 0 else f"\N{MINUS SIGN}{money(-usd)}"


# -- tokens ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """The tokens of all answers. limit: what is said of max_tokens."""

    kinds: list[Bar]
    output: Histogram | None
    figures: list[tuple[str, str]]
    limit: str


def tokens_of(profile: Profile, groups: Sequence[Group], max_tokens: int | None) -> Tokens | None:
    """Return the tokens; None if there are none. max_tokens: of a request; None: it differs by row."""
    names = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens")
    sums = [(name.removesuffix("_tokens").replace("_", " "), sum(getattr(g, name) for g in groups)) for name in names]
    total = sum(n for _, n in sums)
    most = max((group.most_output_tokens for group in groups), default=0)
    if not total or not most:
        return None
    answered = sum(group.rows - group.free for group in groups) or 1
    cut = sum(group.rows for group in groups if group.status == RowState.TRUNCATED)
    drawn = max_tokens is not None and max_tokens <= BEYOND * most
    on = scale(0, max(most, max_tokens if drawn and max_tokens is not None else 0), whole=True)
    counts = profile.tokens_histogram(on.width, on.bins)
    figures = [
        ("output of an answer", f"{sum(group.output_tokens for group in groups) / answered:,.1f}"),
        ("longest", f"{most:,}"),
        ("input of a request", f"{sum(n for _, n in sums[:3]) / answered:,.1f}"),
        ("cut at the limit", f"{cut:,}"),
    ]
    mark = (float(max_tokens), f"max_tokens {max_tokens:,}") if drawn and max_tokens is not None else None
    limit = "max_tokens differs by row" if max_tokens is None else f"max_tokens is {max_tokens:,}"
    shown = bars([(name, n) for name, n in sums if n], total)
    return Tokens(shown, histogram(on, counts, mark=mark), figures, limit)


# -- batches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batches:
    """The batches that were sent. bars: of each, by its time from sending to end; with many, a histogram instead.

    attempts: rows by how often they were sent; empty if all were sent once.
    """

    bars: list[Bar]
    histogram: Histogram | None
    unit: str
    figures: list[tuple[str, str]]
    attempts: list[Bar]


def batches_of(times: Sequence[BatchTime], groups: Sequence[Group]) -> Batches | None:
    """Return the batches; None if none was sent."""
    if not times:
        return None
    ended = [(time, _seconds(time)) for time in times if time.ended_at is not None]
    seconds = [lasted for _, lasted in ended]
    figures = [
        ("batches", f"{len(times):,}"),
        ("requests", f"{sum(time.requests for time in times):,}"),
        *([("still at the API", f"{len(times) - len(ended):,}")] if len(times) > len(ended) else []),
        *([("median time", duration(round(median(seconds)))), ("longest", duration(max(seconds)))] if seconds else []),
    ]
    unit, divisor = _unit(max(seconds, default=0))
    drawn, by_size = [], None
    if len(ended) <= MOST_BATCHES:
        longest = max(seconds, default=0) or 1
        drawn = [
            Bar(f"batch {time.batch}", duration(lasted), count(time.requests, "request"), lasted / longest)
            for time, lasted in ended
        ]
    else:
        on = scale(0, max(seconds) / divisor, whole=False)
        counts = [0] * on.bins
        for lasted in seconds:
            counts[min(on.bins - 1, int(lasted / divisor / on.width))] += 1
        by_size = histogram(on, counts)
    return Batches(drawn, by_size, unit, figures, _attempts(groups))


def _seconds(time: BatchTime) -> int:
    return 0 if time.ended_at is None else max(0, int((time.ended_at - time.sent_at).total_seconds()))


def _unit(seconds: int) -> tuple[str, int]:
    return ("hours", 3600) if seconds >= 7200 else ("minutes", 60) if seconds >= 120 else ("seconds", 1)


def _attempts(groups: Sequence[Group]) -> list[Bar]:
    rows: Counter[int] = Counter()
    for group in groups:
        rows[group.attempts] += group.rows
    sent = {attempts: n for attempts, n in sorted(rows.items()) if attempts}
    if set(sent) <= {1}:
        return []
    return bars([(f"sent {n} times" if n > 1 else "sent once", found) for n, found in sent.items()], sum(sent.values()))
