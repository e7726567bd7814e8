"""Estimate what each of several models would cost a job, and what each would refuse of it. Edge: HTTP.

Nothing is sent: the Models API tells what a model can do, and it counts the same few requests for each model. The
estimates are those of the whole source, as if no row had an answer, so that they can be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from pipeline.api import capabilities
from pipeline.errors import ApiUnreachable, InputError, NotFound, Stopped
from pipeline.job import templates
from pipeline.job.model import Job
from pipeline.money.prices import context_window
from pipeline.planning import counting
from pipeline.planning.estimate import Estimate
from pipeline.planning.estimator import estimate
from pipeline.planning.model_checks import attached, cache_warnings, listed
from pipeline.planning.past import Past
from pipeline.planning.quote import Quote
from pipeline.planning.sample import Counts
from pipeline.request.build import fixed_params

if TYPE_CHECKING:
    from anthropic.types import ModelInfo

    from pipeline.api.client import Api

COUNTED = 5  # requests that the API counts for each model
ALL = "all"  # stands for all models that the key may use
OPTION = "--models"


@dataclass(frozen=True)
class ModelEstimate:
    """What a model would cost a job, and whether it can do it.

    model: as it was named; own: whether the job asks it. estimate: of all rows. lifecycle: None: the API does not say.
    checked: whether the API told what it can do; cannot: sentences that say what it refuses of the requests. window:
    how many tokens it reads; longest: about how many the longest sampled request has; too_long: how many of the sampled
    requests have more than it reads. warnings: what else to know of it, in sentences.
    """

    model: str
    own: bool
    estimate: Estimate
    lifecycle: str | None
    checked: bool
    cannot: list[str]
    window: int
    longest: int
    too_long: int
    sampled: int
    warnings: list[str]

    @property
    def does_the_job(self) -> bool:
        """Return whether the model accepts the requests, as far as is known, and reads each sampled one."""
        return not self.cannot and not self.too_long

    @property
    def rank(self) -> tuple[bool, bool, float, str]:
        """Return the place among other models: those that do the job first, then the cheapest, unpriced ones last."""
        money = self.estimate.money
        usd = 0.0 if money is None else money.worst if money.expected is None else money.expected
        return not self.does_the_job, money is None, usd, self.model

    def facts(self) -> dict[str, Any]:
        """Return the estimate of the model as a mapping for JSON. Costs are in US dollars."""
        said = self.estimate.facts()
        return {
            "model": self.model,
            "own": self.own,
            "does_the_job": self.does_the_job,
            "lifecycle": self.lifecycle,
            "checked": self.checked,
            "rows": self.estimate.rows,
            **{name: said[name] for name in ("requests", "input_tokens", "output_tokens", "cost_usd")},
            "unpriced": self.estimate.unpriced,
            "cannot": self.cannot,
            "context_tokens": self.window,
            "longest_tokens": self.longest,
            "sampled": self.sampled,
            "too_long": self.too_long,
            "warnings": self.warnings,
        }


def read_names(given: str) -> list[str] | None:
    """Return the models of a list such as `claude-haiku-4-5,claude-sonnet-5`, each once; None: `all`.

    Raises InputError if the list is empty, or has `all` beside others.
    """
    names = list(dict.fromkeys(name for each in given.split(",") if (name := each.strip())))
    if names == [ALL]:
        return None
    if not names or ALL in names:
        raise InputError(f"{OPTION} {given}: write names of models with commas between them, or {ALL}")
    return names


def estimates(
    job: Job, quote: Quote, names: Sequence[str] | None, api: "Api", *, before: Past | None, today: date
) -> list[ModelEstimate]:
    """Return an estimate for each model, by rank.

    quote: of all rows of the source, as if none had an answer. names: None: all models that the key may use. before:
    the job's past answers; None: none. today: in UTC. Raises InputError for a model that the API does not know, and
    if no sampled row can be sent.
    """
    if not quote.samples:
        why = f": {quote.problems[0]}" if quote.problems else ""
        raise InputError(f"{OPTION}: there is no row to send, so no model can be estimated{why}")
    counter = _Counter(api)
    found = [_one_model(job, quote, name, info, counter, before, today) for name, info in _models(names, api)]
    return sorted(found, key=lambda each: each.rank)


class _Counter:
    """Asks the API for counts, until it cannot be reached."""

    def __init__(self, api: "Api") -> None:
        self._api = api
        self._unreachable: str | None = None

    def count(self, job: Job, quote: Quote) -> tuple[Counts, str | None]:
        """Return the counts of a quote's requests, and why they are by bytes; None: they are the API's."""
        why = self._unreachable
        if why is None:
            try:
                return counting.ask(job, quote, self._api), None
            except Stopped as exc:
                why = str(exc)
                if isinstance(exc, ApiUnreachable):
                    self._unreachable = why
        return counting.by_bytes(job, quote), why


def _models(names: Sequence[str] | None, api: "Api") -> "list[tuple[str, ModelInfo | None]]":
    """Return each model with its facts; None: the Models API gives none."""
    try:
        if names is None:
            infos = api.models()
            if not infos:
                raise InputError(f"{OPTION} {ALL}: the API lists no model for this key; give the names of models")
            return [(info.id, info) for info in infos]
        return [(name, _info(name, api)) for name in names]
    except Stopped as exc:
        raise InputError(f"{OPTION}: the models could not be looked up: {exc}") from exc


def _info(name: str, api: "Api") -> "ModelInfo | None":
    """Return the facts of a model; None if the API has no list of models. Raises InputError if it has no such model."""
    try:
        return api.model(name)
    except NotFound:
        known = listed(api)
        if known:
            raise InputError(capabilities.unknown(name, known, OPTION)) from None
        return None


def _one_model(
    job: Job, quote: Quote, name: str, info: "ModelInfo | None", counter: _Counter, before: Past | None, today: date
) -> ModelEstimate:
    asked = job.model_copy(update={"request": job.request.model_copy(update={"model": name})})
    quoted = quote.asking(name, keep=COUNTED)
    counts, uncounted = counter.count(asked, quoted)
    cannot, warnings = _checked(asked, quoted, name, info, today)
    if uncounted is not None and not cannot:  # else what the model refuses is said already
        warnings.append(f"{name}: the API did not count the tokens: {uncounted}")
    tokens = [round(sample.tokens * counts.factor) for sample in quoted.samples]
    window = (None if info is None else info.max_input_tokens) or context_window(name)
    return ModelEstimate(
        model=name,
        own=_is_own(job, name, info),
        estimate=estimate(asked, quoted, counts=counts, before=before, queue=max(1, quoted.requests)),
        lifecycle=None if info is None else info.lifecycle,
        checked=info is not None,
        cannot=cannot,
        window=window,
        longest=max(tokens),
        too_long=sum(n > window for n in tokens),
        sampled=len(tokens),
        warnings=[*warnings, *cache_warnings(asked, quoted, counts.prefix)],
    )


def _checked(
    asked: Job, quoted: Quote, name: str, info: "ModelInfo | None", today: date
) -> tuple[list[str], list[str]]:
    """Return what the model refuses of the requests, and warnings about the model. asked, quoted: with this model."""
    if info is None:
        return [], [f"{name}: the Models API gives no facts about it, so it was not checked"]
    params = {**fixed_params(asked), "max_tokens": quoted.max_tokens}
    cannot = list(capabilities.refusals(params, info, asked.request.betas, attached(asked)))
    return cannot, [each.removeprefix("request.model: ") for each in capabilities.warnings(info, today)]


def _is_own(job: Job, name: str, info: "ModelInfo | None") -> bool:
    """Return whether the requests of a job ask this model, by its id or its alias."""
    own = job.request.model
    ids = {name, capabilities.alias(name if info is None else info.id)}
    return not templates.is_template(own) and bool(ids & {own, capabilities.alias(own)})
