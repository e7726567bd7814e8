"""Checks what a job asks against what its models can do. Edge: HTTP."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import orjson

from pipeline.api import capabilities
from pipeline.api.client import Api, NotFound
from pipeline.errors import JobError, Stopped
from pipeline.job.model import Job
from pipeline.money.prices import BYTES_PER_TOKEN
from pipeline.planning.quote import Quote
from pipeline.request.build import fixed_params, shared


def check_models(job: Job, quote: Quote, api: Api, now: datetime) -> list[str]:
    """What the models that are asked would refuse, by the Models API: raises JobError. Returns warnings.

    quote: whose sample says which models are asked and with how many tokens. The Models API is asked what it knows; one
    that cannot be reached, or that a gateway does not have, is no reason to send nothing.
    """
    found: list[str] = []
    for params in _asked(job, quote):
        try:
            info = api.model(params["model"])
        except NotFound:
            known = _listed(api)
            if known:
                raise JobError(capabilities.unknown(params["model"], known)) from None
            found.append(f"request.model: the API says nothing of {params['model']}; it is asked all the same")
            continue
        except Stopped as exc:
            return [*found, f"the models were not checked: {exc}"]
        refused = capabilities.refusal(params, info, job.request.betas, _attached(job))
        if refused is not None:
            raise JobError(refused)
        found += capabilities.warnings(info, now.date())
    return list(dict.fromkeys(found))


def _asked(job: Job, quote: Quote) -> Iterator[dict[str, Any]]:
    """One request's params for each model that is asked, with the most tokens; also as `retry.change` alters it."""
    fixed = fixed_params(job)
    most = {model: max(s.max_tokens for s in quote.samples if s.model == model) for model in quote.models}
    if not most and "model" in fixed:  # no sampled row can be sent, and the model may be wrong all the same
        most = {fixed["model"]: fixed.get("max_tokens", 1)}
    other = job.retry.change.refused
    if other is not None and most:
        most.setdefault(other.model, max(most.values()))
    for model, max_tokens in most.items():
        yield {**fixed, "model": model, "max_tokens": max_tokens}


def _attached(job: Job) -> set[str]:
    return {"image" if attachment.image else "document" for attachment in job.request.attachments}


def _listed(api: Api) -> list[str]:
    """The models that the API lists; none when it does not."""
    try:
        return [info.id for info in api.models()]
    except Stopped:
        return []


def primes_cache(models: Sequence[str], prefix: int) -> bool:
    """Whether one row should go first, to write what all requests share into the prompt cache. Pure. prefix: tokens."""
    return bool(prefix and models) and prefix >= max(capabilities.cache_minimum(model) for model in models)


def shared_tokens(job: Job, quote: Quote, api: Api | None) -> int:
    """About how many tokens all requests share and may cache; 0 when they are not to. api: None: by their bytes."""
    return prefix_tokens(job, quote.models[0], api) if job.request.cache is not None and quote.models else 0


def prefix_tokens(job: Job, model: str, api: Api | None) -> int:
    """About how many tokens all requests share at their beginning: by the API's count, or by their bytes."""
    params, turns = shared(job)
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
    """Models whose cache does not take a prefix as short as this one. Pure. prefix: tokens that all requests share."""
    found = []
    for model in quote.models if job.request.cache is not None else ():
        least = capabilities.cache_minimum(model)
        if prefix < least:
            found.append(
                f"request.cache: what the requests share has about {prefix:,} tokens, and {model} caches from "
                f"{least:,} on: nothing will be cached"
            )
    return found
