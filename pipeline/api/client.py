"""Anthropic's API as the pipeline uses it, through the installed SDK. Edge: HTTP.

The SDK does authentication, base URL, versions and error types. Two things are done differently from its batches
resource: a create streams its body from the spool and is never retried (a retry whose first response was lost is a
second, billed batch), and results are read from the configured base URL, never from the host that results_url names.

Gateways and proxies answer in the API's place. An answer that has not the shape of the API's own proves nothing: it
counts as no answer.
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
from pipeline.api.connect import BODY_DIGEST, CLIENTS, Reach, SigningAWS, made
from pipeline.api.failures import CIRCUIT_STATUSES, SPEND_CODES, in_words, is_own, not_the_api
from pipeline.errors import ApiUnreachable, NotTheApi, RowProblem, Stopped
from pipeline.spool.body import BodyReader, HeldBack

EMULATOR = "b5a9c1f0-0e1a-4e0d-9c0f-e3a1a7ed0001"  # the organization that the emulator says it is

#: Those of CIRCUIT_STATUSES that a call about one batch, model or file can meet; 404 is of that one.
_ACCOUNT_STATUSES = CIRCUIT_STATUSES - {404}
#: What of a request's params the count of its tokens takes.
_COUNTED = frozenset({"model", "messages", "system", "thinking", "tool_choice", "tools", "output_config"})
PAGE = 1_000  # batches of one listing call
SLOW_AFTER = timedelta(minutes=5)  # waited for results that are fewer than
LEAST_BYTES = 30_000
LONGEST_WAIT = 3600.0  # seconds: what we believe of a retry-after at most


@dataclass(frozen=True)
class Accepted:
    """The API took the batch."""

    batch: MessageBatch
    request_id: str | None


@dataclass(frozen=True)
class Rejected:
    """Proven: the API took nothing. wait: seconds before it is worth trying again."""

    problem: str
    request_id: str | None = None
    wait: float = 0.0
    circuit: bool = False  #: it speaks of the account: stop submitting
    too_large: bool = False
    held_back: bool = False  #: we did not let the last bytes go
    unreachable: bool = False  #: the connection failed, so others will too


@dataclass(frozen=True)
class Unknown:
    """The API may or may not have taken it."""

    problem: str
    request_id: str | None = None


class NotFound(Stopped):
    """The API does not know this batch, or no longer has its results."""


@dataclass(frozen=True)
class Page:
    """A page of the listing. date: when the API made it, by its clock; None when it does not say."""

    batches: list[MessageBatch]
    date: datetime | None


_T = TypeVar("_T")


class Api:
    """A client of one account."""

    def __init__(self, client: anthropic.Anthropic, *, now: Callable[[], datetime] = clock.steady) -> None:
        """now: a clock that runs evenly, wherever it begins; the API's time is kept by it."""
        self._client = client
        self._client_name = next((name for name, kind in CLIENTS.items() if kind in _classes(client)), "default")
        self._steadily, self._clock = now, clock.ApiClock(now)
        self._owner: tuple[str | None, str | None] | None = None  # organization and workspace that the API says we are
        hear = self._clock.hear
        client._client.event_hooks["response"].append(lambda response: _heard(hear, response))

    @classmethod
    def connect(cls, reach: Reach) -> "Api":
        """A client as `made` makes it."""
        return cls(made(reach))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @property
    def base_url(self) -> str:
        """The address that requests go to."""
        return str(self._client.base_url).rstrip("/")

    def now(self) -> datetime:
        """The time by the API's clock, as far as its Date headers told."""
        return self._clock.now()

    def identity(self) -> Account:
        """Ask the API who we are, and what time it is.

        Raises InputError without a key, AccountStopped for a refused one, NotTheApi, ApiUnreachable.
        """
        for _ in range(clock.KEPT):  # one Date alone may be wrong, and one may be missing
            response = self._page(limit=1)[1]
            if self._clock.is_witnessed:
                break
        self._owner = _owner(response.headers)
        sent = response.http_request.headers.get("anthropic-workspace-id")
        organization = response.headers.get("anthropic-organization-id") or self._key_digest(sent)
        return Account(
            base_url=self.base_url,
            organization=organization,
            workspace=response.headers.get("anthropic-workspace-id") or "",
            emulated=organization == EMULATOR,
        )

    def create(self, body: BodyReader, digest: str, betas: Sequence[str] = ()) -> Accepted | Rejected | Unknown:
        """POST a body once, and say what became of it. Never raises, whatever the network, the API or the SDK does.

        digest: the body's sha256 in hex; betas: that the whole batch is under.
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
        except Exception as exc:  # noqa: BLE001  # also what libraries for credentials raise, which are many
            problem = in_words(exc)
            if not body.released:
                ours = _cause_is_ours(exc)
                return Rejected(problem, wait=5.0, held_back=ours, unreachable=not ours)
            return Unknown(problem)
        if not shapes.is_batch(response):
            return Unknown("what came back is not a batch")
        return Accepted(response, getattr(response, "_request_id", None))

    def retrieve(self, api_id: str) -> tuple[MessageBatch, float | None]:
        """A batch, and the seconds after which the API would like to be asked again. Raises NotFound."""
        with self._sentences():
            response = self._client.messages.batches.with_raw_response.retrieve(api_id)
            batch = self._parsed(response, lambda value: shapes.is_batch(value) and value.id == api_id)
            return batch, _seconds(response.headers.get("retry-after"))

    def newest_batches(self) -> Iterator[MessageBatch]:
        """All batches of the workspace, newest first. Raises as `pages` does."""
        for page in self.pages():
            yield from page.batches

    def pages(self) -> Iterator[Page]:
        """All batches of the workspace, newest first, a page at a time.

        Raises if any page fails, or is of another account, or repeats another one: half a listing proves nothing.
        """
        after: dict[str, str] = {}
        seen: set[str] = set()
        while True:
            page, response = self._page(limit=PAGE, **after)
            ids = [batch.id for batch in page.data]
            if not seen.isdisjoint(ids):
                raise NotTheApi(f"{self.base_url} lists {ids[0]} twice: a page of its listing comes from a cache")
            if self._owner not in (None, _owner(response.headers)):
                raise NotTheApi(f"{self.base_url} answers for another account than before")
            yield Page(page.data, clock.date_of(response.headers))
            if not page.has_more:
                return
            seen.update(ids)
            after = {"after_id": ids[-1]}

    def _page(self, **asked: Any) -> tuple[Any, Any]:
        """One page of the listing, and the response that it came with."""
        with self._sentences():  # a page after a batch that was deleted meanwhile is a 400, which says nothing of us
            patient = self._client.with_options(max_retries=2)
            response = patient.messages.batches.with_raw_response.list(**asked)
            return self._parsed(response, shapes.is_page), response

    def cancel(self, api_id: str) -> None:
        """Ask the API to cancel a batch. One that has ended meanwhile is left as it is. Raises NotFound."""
        with self._sentences(), contextlib.suppress(anthropic.BadRequestError, anthropic.ConflictError):
            self._believed(self._client.messages.batches.cancel(api_id), shapes.is_batch)

    def delete(self, api_id: str) -> None:
        """Delete an ended batch and its results. Raises NotFound when it is gone already."""
        with self._sentences():
            said = self._client.messages.batches.delete(api_id)
            self._believed(said, lambda value: shapes.is_deleted(value, "message_batch_deleted"))

    def count_tokens(self, params: bytes, betas: Sequence[str] = ()) -> int:
        """Input tokens of one request. params: as they are sent."""
        counted = {k: v for k, v in orjson.loads(params).items() if k in _COUNTED}
        with self._sentences():
            patient = self._client.with_options(max_retries=2)
            said = patient.messages.count_tokens(**counted, extra_headers=beta_header(betas))
            return self._believed(said, shapes.is_count).input_tokens

    def models(self) -> list[ModelInfo]:
        """The models that the key can use, newest first. Raises Stopped."""
        with self._sentences():
            first = self._client.with_options(max_retries=2).models.with_raw_response.list(limit=PAGE)
            return [self._believed(model, shapes.is_named) for model in self._parsed(first, shapes.is_list)]

    def model(self, name: str) -> ModelInfo:
        """One model, also by an alias. Raises NotFound for one that the API does not know."""
        with self._sentences():
            return self._believed(self._client.with_options(max_retries=2).models.retrieve(name), shapes.is_named)

    def upload(self, name: str, data: bytes, media_type: str) -> str:
        """Put a file up, and its id at the API. Raises RowProblem when it is this file that is refused, or Stopped."""
        with self._sentences():
            try:
                said = self._client.files.upload(file=(name, data, media_type))
            except anthropic.APIStatusError as exc:
                if exc.status_code not in (400, 413) or exc.error_code == "storage_quota_exceeded":
                    raise
                raise RowProblem(f"the Files API refuses {name}: {in_words(exc)}") from exc
            return self._believed(said, shapes.is_named).id

    def has_file(self, file_id: str) -> bool:
        """Whether the API still has this file."""
        try:
            with self._sentences():
                said = self._client.with_options(max_retries=2).files.retrieve_metadata(file_id)
                self._believed(said, shapes.is_named)
        except NotFound:
            return False
        return True

    def delete_file(self, file_id: str) -> None:
        """Remove a file. Raises NotFound when it is gone already."""
        with self._sentences():
            self._believed(self._client.files.delete(file_id), shapes.is_named)

    @contextlib.contextmanager
    def results(self, api_id: str) -> Iterator[Iterator[bytes]]:
        """The results of an ended batch as chunks of bytes, from our base URL.

        Raises NotFound, and ApiUnreachable, also when they come so slowly that they would never end.
        """
        with self._sentences():
            # The header is how the SDK itself asks for an answer that is not read at once.
            response = self._client.get(
                f"/v1/messages/batches/{api_id}/results",
                cast_to=httpx2.Response,
                options={
                    "headers": {"accept": "application/binary", "X-Stainless-Raw-Response": "stream"},
                    "follow_redirects": False,
                },
            )
            try:
                yield self._fast_enough(response.iter_bytes())
            except httpx2.HTTPError as exc:
                raise ApiUnreachable(f"the results of {api_id} broke off: {in_words(exc)}") from exc
            finally:
                response.close()

    def _fast_enough(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        waited, got = timedelta(), 0
        while True:
            began = self._steadily()
            chunk = next(chunks, None)
            if chunk is None:
                return
            waited, got = waited + (self._steadily() - began), got + len(chunk)
            if waited >= SLOW_AFTER:
                if got < LEAST_BYTES:
                    raise ApiUnreachable(
                        f"{self.base_url} gives results too slowly: {got:,} bytes in {waited.total_seconds():.0f} s"
                    )
                waited, got = timedelta(), 0
            yield chunk

    def _key_digest(self, workspace: str | None) -> str:
        """What tells our account from others when the API does not. workspace: that the client names; tokens change."""
        secret = self._client.api_key or self._client.auth_token or workspace or ""
        return "key-" + hashlib.scrypt(secret.encode(), salt=b"batch-pipeline account", n=2**12, r=8, p=1).hex()[:24]

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        """Turn what the SDK raises into our errors."""
        try:
            yield
        except Exception as exc:
            translated = failures.of_all_calls(
                exc, self.base_url, account_statuses=_ACCOUNT_STATUSES, client=self._client_name
            )
            if translated is None and isinstance(exc, anthropic.APIStatusError):
                translated = _of_this_call(exc)
            if translated is None:
                raise
            raise translated from exc

    def _parsed(self, response: Any, fits: Callable[[Any], bool]) -> Any:
        """What a response holds, if it has the shape of the API's answers. Raises NotTheApi."""
        try:
            value = response.parse()
        except (AttributeError, TypeError, ValueError) as exc:  # the SDK takes the shape for granted
            raise not_the_api(self.base_url, "a page of another kind") from exc
        return self._believed(value, fits)

    def _believed(self, value: _T, fits: Callable[[Any], bool]) -> _T:
        """The value, if it has the shape of the API's answers. Raises NotTheApi."""
        if not fits(value):
            raise not_the_api(self.base_url, "a page of another kind")
        return value


def _heard(hear: Callable[[httpx2.Headers], object], response: httpx2.Response) -> None:
    """Pass the Date of an answer on, but for those of errors, which are often a proxy's."""
    if response.status_code < 500:
        hear(response.headers)


def _owner(headers: httpx2.Headers) -> tuple[str | None, str | None]:
    """Organization and workspace, as the API names them in each answer; None where it does not."""
    return headers.get("anthropic-organization-id"), headers.get("anthropic-workspace-id")


def _of_this_call(exc: anthropic.APIStatusError) -> Stopped:
    """Return the error for a status that says nothing of other calls."""
    if is_own(exc) and exc.status_code == 404:
        return NotFound(f"the API does not find it: {in_words(exc)}")
    return ApiUnreachable(f"the API answers {in_words(exc)}")


def _refusal(exc: anthropic.APIStatusError, *, released: bool) -> Rejected | Unknown:
    """What an error status on a create proves."""
    problem = in_words(exc)
    told = _seconds(exc.response.headers.get("retry-after"))
    own_envelope = is_own(exc)
    if exc.status_code == 413:  # a proxy may answer this one in the API's place, and nothing got behind it
        return Rejected(problem, exc.request_id, too_large=True)
    if own_envelope and (exc.error_code in SPEND_CODES or exc.status_code in CIRCUIT_STATUSES):
        return Rejected(problem, exc.request_id, circuit=True)
    if own_envelope and exc.status_code in (429, 529):
        return Rejected(problem, exc.request_id, wait=min(told if told is not None else 20.0, LONGEST_WAIT))
    if not released:
        return Rejected(problem, exc.request_id, wait=5.0)
    return Unknown(problem, exc.request_id)


def _classes(client: anthropic.Anthropic) -> list[str]:
    """The names of the client's class and of those it is made from, but for the plain client's."""
    return [kind.__name__ for kind in type(client).__mro__ if kind is not anthropic.Anthropic]


def beta_header(betas: Sequence[str]) -> dict[str, str]:
    """The header of a call under these betas."""
    return {"anthropic-beta": ",".join(betas)} if betas else {}


def _cause_is_ours(exc: BaseException | None) -> bool:
    while exc is not None:
        if isinstance(exc, HeldBack):
            return True
        exc = exc.__cause__ or exc.__context__
    return False


def _seconds(header: str | None) -> float | None:
    """A retry-after header in seconds; None when there is none or it is no number."""
    try:
        return max(0.0, float(header)) if header is not None else None
    except ValueError:
        return None
