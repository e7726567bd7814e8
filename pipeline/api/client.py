"""How does the pipeline call the batches, files and models of Anthropic's API? Through the installed SDK. Edge: HTTP.

The SDK does authentication, base URL, versions and error types. Two calls differ from its batches resource. A create
streams its body from the spool and is never retried, because a retry after a lost response would be a second, billed
batch. Results are read from the configured base URL, never from the host that results_url names.

A gateway or a proxy may answer instead of the API. A response without the shape of the API's own proves nothing, and
counts as no response.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import anthropic
import httpx2
import orjson
from anthropic.types import ModelInfo
from anthropic.types.messages import MessageBatch

from pipeline.api import clock, failures, shapes
from pipeline.api.account import Account
from pipeline.api.connect import BODY_DIGEST, CLIENTS, SigningAWS, make_client
from pipeline.api.created import Accepted, Rejected, Unknown
from pipeline.api.failures import CIRCUIT_STATUSES, SPEND_CODES, in_words, is_from_api, not_the_api
from pipeline.api.reach import Reach
from pipeline.errors import ApiUnreachable, NotFound, NotTheApi, RowProblem, Stopped
from pipeline.spool.body import BodyReader, HeldBack

EMULATOR = "b5a9c1f0-0e1a-4e0d-9c0f-e3a1a7ed0001"  # the organization that the emulator reports

#: In a call about one batch, model or file these speak of the account; 404 speaks of that object.
_ACCOUNT_STATUSES = CIRCUIT_STATUSES - {404}
#: The params that count_tokens accepts.
_COUNTED = frozenset({"model", "messages", "system", "thinking", "tool_choice", "tools", "output_config"})
PAGE = 1_000  # batches of one listing call
SLOW_AFTER = timedelta(minutes=5)  # results are too slow if fewer than LEAST_BYTES arrive in this time
LEAST_BYTES = 30_000
LONGEST_WAIT = 3600.0  # seconds; a longer retry-after counts as this


@dataclass(frozen=True)
class Page:
    """A page of the listing. date: when the API made it, by the API's clock; None if it does not say."""

    batches: list[MessageBatch]
    date: datetime | None


_T = TypeVar("_T")


@dataclass(frozen=True)
class _Calls:
    """What all calls of the API share: how errors are translated, and how the shape of a response is checked.

    base_url: the address that requests go to; client_name: which of the SDK's clients.
    """

    base_url: str
    client_name: str

    @contextlib.contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Turn what the SDK raises into our errors."""
        try:
            yield
        except Exception as exc:
            translated = failures.error_of_all_calls(
                exc, self.base_url, account_statuses=_ACCOUNT_STATUSES, client=self.client_name
            )
            if translated is None and isinstance(exc, anthropic.APIStatusError):
                translated = _error_of_one_call(exc)
            if translated is None:
                raise
            raise translated from exc

    def parsed(self, response: Any, has_shape: Callable[[Any], bool]) -> Any:
        """Return the content of a response. Raises NotTheApi unless `has_shape` accepts it."""
        try:
            value = response.parse()
        except (AttributeError, TypeError, ValueError) as exc:  # the SDK relies on the shape
            raise not_the_api(self.base_url, "the response has other fields") from exc
        return self.checked(value, has_shape)

    def checked(self, value: _T, has_shape: Callable[[Any], bool]) -> _T:
        """Return the value. Raises NotTheApi unless `has_shape` accepts it."""
        if not has_shape(value):
            raise not_the_api(self.base_url, "the response has other fields")
        return value


class Api:
    """A client of one account."""

    def __init__(self, client: anthropic.Anthropic, *, now: Callable[[], datetime] = clock.steady) -> None:
        """now: a clock that runs evenly from any start; the API's time is computed with it."""
        self._client = client
        name = next((name for name, kind in CLIENTS.items() if kind in _class_names(client)), "default")
        self._calls = _Calls(str(client.base_url).rstrip("/"), name)
        self._steadily, self._clock = now, clock.ApiClock(now)
        self._owner: tuple[str | None, str | None] | None = (
            None  # our organization and workspace, as the API reports them
        )
        take_date = self._clock.take_date
        client._client.event_hooks["response"].append(lambda response: _take_date(take_date, response))

    @classmethod
    def connect(cls, reach: Reach) -> "Api":
        """Return a client made from the environment. Raises as `connect.make_client`."""
        return cls(make_client(reach))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @property
    def base_url(self) -> str:
        """Return the address that requests go to."""
        return self._calls.base_url

    def now(self) -> datetime:
        """Return the time by the API's clock, as its Date headers tell it."""
        return self._clock.now()

    def identity(self) -> Account:
        """Return our account, as the API reports it, and set the clock by the API's Date headers.

        Raises InputError without a key, AccountStopped for a refused one, NotTheApi, ApiUnreachable.
        """
        for _ in range(clock.KEPT):  # a single Date may be wrong or missing
            response = self._page(limit=1)[1]
            if self._clock.is_witnessed:
                break
        self._owner = _owner(response.headers)
        sent = response.http_request.headers.get("anthropic-workspace-id")
        organization = response.headers.get("anthropic-organization-id") or _key_digest(self._client, sent)
        return Account(
            base_url=self.base_url,
            organization=organization,
            workspace=response.headers.get("anthropic-workspace-id") or "",
            emulated=organization == EMULATOR,
        )

    def create(self, body: BodyReader, digest: str, betas: Sequence[str] = ()) -> Accepted | Rejected | Unknown:
        """POST a body once, and return what is known of the batch. Never raises, whatever the network or the SDK does.

        digest: the body's sha256 in hex; betas: of the whole batch.
        """
        headers = {"content-type": "application/json", **beta_header(betas)}
        if isinstance(self._client, SigningAWS):
            headers[BODY_DIGEST] = digest
        try:
            response = self._client.post(
                "/v1/messages/batches",
                content=body,
                cast_to=MessageBatch,
                options={"headers": headers, "follow_redirects": False},
            )
        except anthropic.APIStatusError as exc:
            return _refusal(exc, released=body.released)
        except Exception as exc:  # noqa: BLE001  # the libraries for credentials raise many types
            problem = in_words(exc)
            if not body.released:
                held_back = _was_held_back(exc)
                return Rejected(problem, wait=5.0, held_back=held_back, unreachable=not held_back)
            return Unknown(problem)
        if not shapes.is_batch(response):
            return Unknown("the response is not a batch")
        return Accepted(response, getattr(response, "_request_id", None))

    def retrieve(self, api_id: str) -> tuple[MessageBatch, float | None]:
        """Return a batch, and the API's retry-after in seconds; None without one. Raises NotFound."""
        with self._calls.translated_errors():
            response = self._client.messages.batches.with_raw_response.retrieve(api_id)
            batch = self._calls.parsed(response, lambda value: shapes.is_batch(value) and value.id == api_id)
            return batch, _seconds(response.headers.get("retry-after"))

    def newest_batches(self) -> Iterator[MessageBatch]:
        """Yield all batches of the workspace, newest first. Raises as `pages`."""
        for page in self.pages():
            yield from page.batches

    def pages(self) -> Iterator[Page]:
        """Yield all batches of the workspace, newest first, a page at a time.

        Raises if a page fails, belongs to another account, or repeats a batch, because half a listing proves nothing.
        """
        after: dict[str, str] = {}
        seen: set[str] = set()
        while True:
            page, response = self._page(limit=PAGE, **after)
            ids = [batch.id for batch in page.data]
            if not seen.isdisjoint(ids):
                raise NotTheApi(
                    f"{self.base_url} lists {ids[0]} twice: a page of the listing comes from a cache; "
                    "keep caches away from the API's responses"
                )
            if self._owner not in (None, _owner(response.headers)):
                raise NotTheApi(
                    f"{self.base_url} answers for another account than at the first call; "
                    "check what stands between this machine and the API"
                )
            yield Page(page.data, clock.date_of(response.headers))
            if not page.has_more:
                return
            seen.update(ids)
            after = {"after_id": ids[-1]}

    def _page(self, **asked: Any) -> tuple[Any, Any]:
        """Return one page of the listing, and its response."""
        with (
            self._calls.translated_errors()
        ):  # the page after a batch that was deleted meanwhile is a 400, and not our account's fault
            retrying = self._client.with_options(max_retries=2)
            response = retrying.messages.batches.with_raw_response.list(**asked)
            return self._calls.parsed(response, shapes.is_page), response

    def cancel(self, api_id: str) -> None:
        """Ask the API to cancel a batch; does nothing if the batch has ended. Raises NotFound."""
        with self._calls.translated_errors(), contextlib.suppress(anthropic.BadRequestError, anthropic.ConflictError):
            self._calls.checked(self._client.messages.batches.cancel(api_id), shapes.is_batch)

    def delete(self, api_id: str) -> None:
        """Delete an ended batch and its results. Raises NotFound if it is deleted already."""
        with self._calls.translated_errors():
            response = self._client.messages.batches.delete(api_id)
            self._calls.checked(response, lambda value: shapes.is_deleted(value, "message_batch_deleted"))

    def count_tokens(self, params: bytes, betas: Sequence[str] = ()) -> int:
        """Return the input tokens of one request. params: the bytes that are sent."""
        counted = {k: v for k, v in orjson.loads(params).items() if k in _COUNTED}
        with self._calls.translated_errors():
            retrying = self._client.with_options(max_retries=2)
            response = retrying.messages.count_tokens(**counted, extra_headers=beta_header(betas))
            return self._calls.checked(response, shapes.is_count).input_tokens

    def models(self) -> list[ModelInfo]:
        """Return the models that the key can use, newest first. Raises Stopped."""
        with self._calls.translated_errors():
            first = self._client.with_options(max_retries=2).models.with_raw_response.list(limit=PAGE)
            return [self._calls.checked(model, shapes.is_named) for model in self._calls.parsed(first, shapes.is_list)]

    def model(self, name: str) -> ModelInfo:
        """Return a model by its id or an alias. Raises NotFound if the API does not know it."""
        with self._calls.translated_errors():
            return self._calls.checked(self._client.with_options(max_retries=2).models.retrieve(name), shapes.is_named)

    def upload(self, name: str, data: bytes, media_type: str) -> str:
        """Upload a file and return its id. Raises RowProblem if the API refuses this file, or Stopped."""
        with self._calls.translated_errors():
            try:
                response = self._client.files.upload(file=(name, data, media_type))
            except anthropic.APIStatusError as exc:
                if exc.status_code not in (400, 413) or exc.error_code == "storage_quota_exceeded":
                    raise
                raise RowProblem(f"the Files API refuses {name}: {in_words(exc)}") from exc
            return self._calls.checked(response, shapes.is_named).id

    def has_file(self, file_id: str) -> bool:
        """Return whether the API still has this file."""
        try:
            with self._calls.translated_errors():
                response = self._client.with_options(max_retries=2).files.retrieve_metadata(file_id)
                self._calls.checked(response, shapes.is_named)
        except NotFound:
            return False
        return True

    def delete_file(self, file_id: str) -> None:
        """Delete a file. Raises NotFound if it is deleted already."""
        with self._calls.translated_errors():
            self._calls.checked(self._client.files.delete(file_id), shapes.is_named)

    @contextlib.contextmanager
    def results(self, api_id: str) -> Iterator[Iterator[bytes]]:
        """Yield the results of an ended batch as chunks of bytes, from our base URL.

        Raises NotFound, and ApiUnreachable, also if they come too slowly to end in useful time.
        """
        with self._calls.translated_errors():
            # with this header the SDK does not read the response at once
            response = self._client.get(
                f"/v1/messages/batches/{api_id}/results",
                cast_to=httpx2.Response,
                options={
                    "headers": {"accept": "application/binary", "X-Stainless-Raw-Response": "stream"},
                    "follow_redirects": False,
                },
            )
            try:
                yield _fast_enough(response.iter_bytes(), self.base_url, self._steadily)
            except httpx2.HTTPError as exc:
                raise ApiUnreachable(f"the results of {api_id} broke off: {in_words(exc)}") from exc
            finally:
                response.close()


def _fast_enough(chunks: Iterator[bytes], base_url: str, now: Callable[[], datetime]) -> Iterator[bytes]:
    """Yield the chunks. Raises ApiUnreachable after SLOW_AFTER of waiting with fewer than LEAST_BYTES.

    now: a clock that runs evenly.
    """
    waited, got = timedelta(), 0
    while True:
        began = now()
        chunk = next(chunks, None)
        if chunk is None:
            return
        waited, got = waited + (now() - began), got + len(chunk)
        if waited >= SLOW_AFTER:
            if got < LEAST_BYTES:
                raise ApiUnreachable(
                    f"{base_url} gives results too slowly: {got:,} bytes in {waited.total_seconds():.0f} s"
                )
            waited, got = timedelta(), 0
        yield chunk


def _key_digest(client: anthropic.Anthropic, workspace: str | None) -> str:
    """Return a digest of the key that stands for an account which the API does not name.

    workspace: the one that the client names; it is digested if there is no key, because tokens change.
    """
    secret = client.api_key or client.auth_token or workspace or ""
    return "key-" + hashlib.scrypt(secret.encode(), salt=b"batch-pipeline account", n=2**12, r=8, p=1).hex()[:24]


def _take_date(take_date: Callable[[httpx2.Headers], object], response: httpx2.Response) -> None:
    """Pass on the headers of a response, except with a 5xx, which often comes from a proxy."""
    if response.status_code < 500:
        take_date(response.headers)


def _owner(headers: httpx2.Headers) -> tuple[str | None, str | None]:
    """Return organization and workspace from the headers of a response; None where the API does not name them."""
    return headers.get("anthropic-organization-id"), headers.get("anthropic-workspace-id")


def _error_of_one_call(exc: anthropic.APIStatusError) -> Stopped:
    """Return the error for a status that says nothing of other calls."""
    if is_from_api(exc) and exc.status_code == 404:
        return NotFound(f"the API has no such object: {in_words(exc)}")
    return ApiUnreachable(f"the API answers {in_words(exc)}")


def _refusal(exc: anthropic.APIStatusError, *, released: bool) -> Rejected | Unknown:
    """Return what an error status of a create call proves. released: whether the last bytes of the body were sent."""
    problem = in_words(exc)
    retry_after = _seconds(exc.response.headers.get("retry-after"))
    own_envelope = is_from_api(exc)
    if exc.status_code == 413:  # even if a proxy answers it, the body did not get past the proxy
        return Rejected(problem, exc.request_id, too_large=True)
    if own_envelope and (exc.error_code in SPEND_CODES or exc.status_code in CIRCUIT_STATUSES):
        return Rejected(problem, exc.request_id, circuit=True)
    if own_envelope and exc.status_code in (429, 529):
        return Rejected(
            problem, exc.request_id, wait=min(retry_after if retry_after is not None else 20.0, LONGEST_WAIT)
        )
    if not released:
        return Rejected(problem, exc.request_id, wait=5.0)
    return Unknown(problem, exc.request_id)


def _class_names(client: anthropic.Anthropic) -> list[str]:
    """Return the names of a client's class and its base classes, without the plain client's."""
    return [kind.__name__ for kind in type(client).__mro__ if kind is not anthropic.Anthropic]


def beta_header(betas: Sequence[str]) -> dict[str, str]:
    """Return the header of a call with these betas."""
    return {"anthropic-beta": ",".join(betas)} if betas else {}


def _was_held_back(exc: BaseException | None) -> bool:
    """Return whether a call failed because we held back the end of its body."""
    while exc is not None:
        if isinstance(exc, HeldBack):
            return True
        exc = exc.__cause__ or exc.__context__
    return False


def _seconds(header: str | None) -> float | None:
    """Return a retry-after header in seconds, 0 or more; None if it is absent or not a number."""
    try:
        return max(0.0, float(header)) if header is not None else None
    except ValueError:
        return None
