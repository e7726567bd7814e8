"""What a failed call of the SDK means: for all calls to this address by this account, or for one call alone. Pure."""

import json
from collections.abc import Collection

import anthropic
import httpx2
from pydantic import ValidationError

from pipeline.api.connect import credentials_problem
from pipeline.errors import AccountStopped, ApiUnreachable, InputError, NoAnswer, NotTheApi, PipelineError

#: Statuses that speak of the account or of us, never of a row: sending anything else would end the same way.
CIRCUIT_STATUSES = frozenset({400, 401, 402, 403, 404, 405, 422})
SPEND_CODES = frozenset({"enforced_spend_limit_reached", "contract_spend_limit_reached"})


def error_of_all_calls(
    exc: BaseException, base_url: str, *, account_statuses: Collection[int], client: str = ""
) -> PipelineError | None:
    """Return the error that every call would meet now; None when only this call failed, or `exc` is of no call.

    base_url: the address that was called; client: the job file's name of the SDK's client, for the message.
    account_statuses: which statuses of the API itself speak of the account; for the others the caller knows better.
    """
    problem = credentials_problem(exc, client)
    if problem is not None:
        return InputError(problem)
    if isinstance(exc, anthropic.APIStatusError):
        return _of_status(exc, base_url, account_statuses)
    if isinstance(exc, json.JSONDecodeError | UnicodeDecodeError | ValidationError):  # of the SDK, which reads answers
        return not_the_api(base_url, "no JSON")
    if isinstance(exc, anthropic.APIConnectionError | httpx2.HTTPError):
        return no_answer(base_url, exc)
    return None


def _of_status(exc: anthropic.APIStatusError, base_url: str, account_statuses: Collection[int]) -> PipelineError | None:
    """Return the error that an error status means for every call; None if it means only this call."""
    if is_from_api(exc):
        if exc.status_code in account_statuses or exc.error_code in SPEND_CODES:
            return AccountStopped(f"the API refuses this account: {in_words(exc)}")
        return None
    if exc.status_code == 413:  # a proxy says in the API's place that this request is too large
        return None
    if exc.status_code in CIRCUIT_STATUSES:
        return not_the_api(base_url, in_words(exc))
    return ApiUnreachable(f"the API answers {in_words(exc)}; check ANTHROPIC_BASE_URL or api.base_url")


def no_answer(base_url: str, exc: BaseException) -> NoAnswer:
    """Return the error for an address from which no answer came, because of `exc`."""
    return NoAnswer(
        f"no answer from {base_url}: {in_words(exc)}; check ANTHROPIC_BASE_URL or api.base_url, and the network"
    )


def not_the_api(base_url: str, answer: str) -> NotTheApi:
    """Return the error for an address that answers, but not as the API does. answer: its answer, in a few words."""
    return NotTheApi(
        f"{base_url} does not answer as the Messages API does ({answer}); check ANTHROPIC_BASE_URL or api.base_url, "
        "and what stands in between: a proxy, a gateway, a login page"
    )


def is_from_api(exc: anthropic.APIStatusError) -> bool:
    """Return whether an error has the API's own envelope, so that nothing in between made it."""
    return exc.type is not None and exc.api_message is not None


def in_words(exc: BaseException) -> str:
    """Return an error in one line: status, type, message and request id where the API gave them."""
    if isinstance(exc, anthropic.APIStatusError):
        answer = exc.api_message or exc.response.reason_phrase
        request = f" ({exc.request_id})" if exc.request_id else ""
        return f"{exc.status_code} {exc.type or ''}: {answer}{request}".replace(" :", ":").replace("\x00", "\ufffd")
    root = exc
    while root.__cause__ is not None:
        root = root.__cause__
    return f"{type(exc).__name__}: {str(root) or exc}".splitlines()[0][:300]
