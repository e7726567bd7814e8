"""Check that the models of a job accept its requests, and measure the prefix for their cache. Edge: HTTP."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.api import capabilities
from pipeline.errors import JobError, NotFound, Stopped
from pipeline.job.model import Job
from pipeline.money.prices import BYTES_PER_TOKEN
from pipeline.planning.quote import Quote
from pipeline.request.breakpoints import CachedPrefix, cached_prefix
from pipeline.request.build import fixed_params

if TYPE_CHECKING:
    from pipeline.api.client import Api


def check_models(job: Job, quote: Quote, api: "Api", now: datetime) -> list[str]:
    """Return warnings about the models of a job. Raises JobError if a model would refuse the requests.

    quote: its sample gives the models and their largest max_tokens. The facts come from the Models API. If that cannot
    be reached, or a gateway does not have it, the run goes on, with a warning.
    """
    found: list[str] = []
    for params in _asked(job, quote):
        try:
            info = api.model(params["model"])
        except NotFound:
            known = listed(api)
            if known:
                raise JobError(capabilities.unknown(params["model"], known)) from None
            found.append(f"request.model: the Models API gives no facts about {params['model']}, so it was not checked")
            continue
        except Stopped as exc:
            return [*found, f"the models were not checked: {exc}"]
        refused = capabilities.refusal(params, info, job.request.betas, attached(job))
        if refused is not None:
            raise JobError(refused)
        found += capabilities.warnings(info, now.date())
    return list(dict.fromkeys(found))


def _asked(job: Job, quote: Quote) -> Iterator[dict[str, Any]]:
    """Yield params for each model, with its largest max_tokens; also for the models that `retry.change` names."""
    fixed = fixed_params(job)
    most = {model: max(s.max_tokens for s in quote.samples if s.model == model) for model in quote.models}
    if not most and "model" in fixed:  # no sampled row can be sent, but the model may still be wrong
        most = {fixed["model"]: fixed.get("max_tokens", 1)}
    largest = max(most.values(), default=0)
    for other in job.retry.change.other_models if most else ():
        most.setdefault(other, largest)
    for model, max_tokens in most.items():
        yield {**fixed, "model": model, "max_tokens": max_tokens}


def attached(job: Job) -> set[str]:
    """Return which of "image" and "document" the messages of a job hold."""
    return {"image" if attachment.image else "document" for attachment in job.request.attachments}


def listed(api: "Api") -> list[str]:
    """Return the models that the API lists; [] if it gives no list."""
    try:
        return [info.id for info in api.models()]
    except Stopped:
        return []


def primes_cache(models: Sequence[str], prefix: int) -> bool:
    """Return whether one row should be sent first, to write the shared prefix to the prompt cache. Pure.

    prefix: its tokens. False if there is none, or a model does not cache so short a prefix.
    """
    return bool(prefix and models) and prefix >= max(capabilities.cache_minimum(model) for model in models)


def shared_tokens(job: Job, quote: Quote, api: "Api | None") -> int:
    """Return about how many tokens the cached prefix has; 0 if the job does not cache it, or no model is known.

    api: None: count by the bytes.
    """
    cached = cached_prefix(job) if quote.models else None
    return 0 if cached is None else prefix_tokens(job, cached, quote.models[0], api)


def prefix_tokens(job: Job, cached: CachedPrefix, model: str, api: "Api | None") -> int:
    """Return about how many tokens a prefix has: by the API's count, or by its bytes if there is no count."""
    params, turns = cached.params, cached.turns
    alone = {"model": model, "messages": [{"role": "user", "content": "."}]}
    whole = {"model": model, **params, "messages": [*turns, {"role": "user", "content": "."}]}
    try:
        if api is not None:
            counts = [api.count_tokens(orjson.dumps(each), job.request.betas) for each in (whole, alone)]
            return counts[0] - counts[1]
    except Stopped:
        pass
    return int(len(orjson.dumps([params, turns])) / BYTES_PER_TOKEN)


def cache_warnings(job: Job, quote: Quote, prefix: int) -> list[str]:
    """Return warnings about a cache that will not be used. Pure. prefix: tokens of the cached prefix.

    Each model that does not cache so short a prefix has one, and a breakpoint at the end of each request has one.
    """
    found = []
    if job.request.params.get("cache_control") is not None:
        found.append(
            "request.params.cache_control: the API sets this breakpoint at the end of each request, so each row writes "
            "its whole prompt to the cache, and no other row reads it; remove it, and set request.cache, which caches "
            "the prefix that all rows share"
        )
    for model in quote.models if cached_prefix(job) is not None else ():
        least = capabilities.cache_minimum(model)
        if prefix < least:
            field = "cache_control" if job.request.cache is None else "request.cache"
            found.append(
                f"{field}: the shared prefix has about {prefix:,} tokens, and {model} caches from {least:,} on: "
                "nothing will be cached"
            )
    return found
