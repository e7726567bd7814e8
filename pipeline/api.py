"""Anthropic's API as the pipeline uses it, through the installed SDK. Edge: HTTP.

The SDK does authentication, base URL, versions and error types. Two things are done differently from its batches
resource: a create streams its body from the spool and is never retried (a retry whose first answer got lost is a
second, billed batch), and results are read from the configured base URL, never from the host that results_url names.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import anthropic
import httpx2
import orjson
from anthropic.types import ModelInfo
from anthropic.types.messages import MessageBatch

from pipeline.account import Identity
from pipeline.clients import BODY_DIGEST, CLIENTS, Reach, SigningAWS, made, of_credentials
from pipeline.errors import AccountStopped, ApiUnreachable, InputError, Stopped
from pipeline.spool import BodyReader, HeldBack
from pipeline.templates import RowProblem

EMULATOR = "b5a9c1f0-0e1a-4e0d-9c0f-e3a1a7ed0001"  # the organization that the emulator says it is

#: Statuses that speak of the account or of us, never of a row: sending anything else would end the same way.
CIRCUIT_STATUSES = frozenset({400, 401, 402, 403, 404, 405, 422})
SPEND_CODES = frozenset({"enforced_spend_limit_reached", "contract_spend_limit_reached"})
#: What of a request's params the count of its tokens takes.
_COUNTED = frozenset({"model", "messages", "system", "thinking", "tool_choice", "tools", "output_config"})
PAGE = 1_000  # batches of one listing call
CLOCK_WITHIN = timedelta(seconds=30)  # how well we want to know the API's time
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


class Api:
    """A client of one account."""

    def __init__(self, client: anthropic.Anthropic, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._client = client
        self._client_name = next((name for name, kind in CLIENTS.items() if kind in _classes(client)), "default")
        self._local_now = now
        self._offset = timedelta(0)  # of the API's clock against ours

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
        return self._local_now() + self._offset

    def identity(self) -> Identity:
        """Ask the API who we are. Raises InputError without a key, AccountStopped for a refused one, ApiUnreachable."""
        with self._sentences():
            patient = self._client.with_options(max_retries=2)
            for _ in range(3):  # an answer that took long says little of the time
                before = self._local_now()
                response = patient.messages.batches.with_raw_response.list(limit=1)
                if self._local_now() - before < CLOCK_WITHIN:
                    break
        self._learn_clock(response.headers, before)
        sent = response.http_request.headers.get("anthropic-workspace-id")
        organization = response.headers.get("anthropic-organization-id") or self._key_digest(sent)
        return Identity(
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
        if not isinstance(getattr(response, "id", None), str) or not response.id:
            return Unknown("the answer to the create is not a batch")
        return Accepted(response, getattr(response, "_request_id", None))

    def retrieve(self, api_id: str) -> tuple[MessageBatch, float | None]:
        """A batch, and the seconds after which the API would like to be asked again. Raises NotFound."""
        with self._sentences():
            response = self._client.messages.batches.with_raw_response.retrieve(api_id)
            return response.parse(), _seconds(response.headers.get("retry-after"))

    def newest_batches(self) -> Iterator[MessageBatch]:
        """All batches of the workspace, newest first. Raises if any page fails: half a listing proves nothing."""
        with self._sentences():  # a page after a batch that was deleted meanwhile is a 400, which says nothing of us
            yield from self._client.with_options(max_retries=2).messages.batches.list(limit=PAGE)

    def cancel(self, api_id: str) -> None:
        """Ask the API to cancel a batch. One that has ended meanwhile is left as it is. Raises NotFound."""
        with self._sentences(), contextlib.suppress(anthropic.BadRequestError, anthropic.ConflictError):
            self._client.messages.batches.cancel(api_id)

    def delete(self, api_id: str) -> None:
        """Delete an ended batch and its results. Raises NotFound when it is gone already."""
        with self._sentences():
            self._client.messages.batches.delete(api_id)

    def count_tokens(self, params: bytes, betas: Sequence[str] = ()) -> int:
        """Input tokens of one request. params: as they are sent."""
        counted = {k: v for k, v in orjson.loads(params).items() if k in _COUNTED}
        with self._sentences():
            patient = self._client.with_options(max_retries=2)
            return patient.messages.count_tokens(**counted, extra_headers=beta_header(betas)).input_tokens

    def models(self) -> list[ModelInfo]:
        """The models that the key can use, newest first. Raises Stopped."""
        with self._sentences():
            return list(self._client.with_options(max_retries=2).models.list(limit=PAGE))

    def model(self, name: str) -> ModelInfo:
        """One model, also by an alias. Raises NotFound for one that the API does not know."""
        with self._sentences():
            return self._client.with_options(max_retries=2).models.retrieve(name)

    def upload(self, name: str, data: bytes, media_type: str) -> str:
        """Put a file up, and its id at the API. Raises RowProblem when it is this file that is refused, or Stopped."""
        with self._sentences():
            try:
                return self._client.files.upload(file=(name, data, media_type)).id
            except anthropic.APIStatusError as exc:
                if exc.status_code not in (400, 413) or exc.error_code == "storage_quota_exceeded":
                    raise
                raise RowProblem(f"the Files API refuses {name}: {in_words(exc)}") from exc

    def has_file(self, file_id: str) -> bool:
        """Whether the API still has this file."""
        try:
            with self._sentences():
                self._client.with_options(max_retries=2).files.retrieve_metadata(file_id)
        except NotFound:
            return False
        return True

    def delete_file(self, file_id: str) -> None:
        """Remove a file. Raises NotFound when it is gone already."""
        with self._sentences():
            self._client.files.delete(file_id)

    @contextlib.contextmanager
    def results(self, api_id: str) -> Iterator[Iterator[bytes]]:
        """The results of an ended batch as chunks of bytes, from our base URL. Raises NotFound, ApiUnreachable."""
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
                yield response.iter_bytes()
            finally:
                response.close()

    def _learn_clock(self, headers: httpx2.Headers, before: datetime) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._offset = parsedate_to_datetime(headers["date"]) - before

    def _key_digest(self, workspace: str | None) -> str:
        """What tells our account from others when the API does not. workspace: that the client names; tokens change."""
        secret = self._client.api_key or self._client.auth_token or workspace or ""
        return "key-" + hashlib.scrypt(secret.encode(), salt=b"batch-pipeline account", n=2**12, r=8, p=1).hex()[:24]

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except anthropic.NotFoundError as exc:
            raise NotFound(f"the API does not find it: {in_words(exc)}") from exc
        except anthropic.APIStatusError as exc:
            if exc.status_code in CIRCUIT_STATUSES or exc.error_code in SPEND_CODES:
                raise AccountStopped(f"the API refuses this account: {in_words(exc)}") from exc
            raise ApiUnreachable(f"the API answers {in_words(exc)}") from exc
        except (anthropic.APIConnectionError, httpx2.HTTPError) as exc:
            raise ApiUnreachable(
                f"no answer from {self._client.base_url}: {in_words(exc)}; check ANTHROPIC_BASE_URL and the network"
            ) from exc
        except Exception as exc:
            problem = of_credentials(exc, self._client_name)
            if problem is None:
                raise
            raise InputError(problem) from exc


def _refusal(exc: anthropic.APIStatusError, *, released: bool) -> Rejected | Unknown:
    """What an error status on a create proves."""
    problem = in_words(exc)
    told = _seconds(exc.response.headers.get("retry-after"))
    own_envelope = exc.type is not None and exc.api_message is not None
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


def in_words(exc: BaseException) -> str:
    """An error in one line: status, type, message and request id where the API gave them."""
    if isinstance(exc, anthropic.APIStatusError):
        said = exc.api_message or exc.response.reason_phrase
        request = f" ({exc.request_id})" if exc.request_id else ""
        return f"{exc.status_code} {exc.type or ''}: {said}{request}".replace(" :", ":").replace("\x00", "\ufffd")
    root = exc
    while root.__cause__ is not None:
        root = root.__cause__
    return f"{type(exc).__name__}: {str(root) or exc}".splitlines()[0][:300]


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
