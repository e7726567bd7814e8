"""Objects on S3, Google Cloud Storage and Azure, by URL. Edge: network.

obstore (the object_store that polars reads with) does the requests and tries them again; who asks, and where, each
cloud's own SDK says from its own variables and files. An object is read as it was when it was found: each request for a
part of it carries its ETag, so that a new object under the same name is an error and never a mixture of two.
"""

import functools
import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar
from urllib.parse import urlsplit

from pipeline.errors import InputError, Stopped

if TYPE_CHECKING:
    from stamina import Attempt

RETRY_SECONDS = 60.0  # that a request is tried again, with pauses that grow
REQUEST_SECONDS = 120.0  # that one request may take before it is given up, and tried again
PART_BYTES = 8_000_000  # of a body or a file that goes up in parts
READ_BYTES = 4_000_000  # read at once by who reads an object from its start to its end
SHOWN = 300  # characters of what a store says

_T = TypeVar("_T")

#: Of each an extra of this package has the name, which brings the SDK that reads the credentials.
SCHEMES = ("s3", "gs", "az")
ADDRESSES = "s3://BUCKET/NAME, gs://BUCKET/NAME or az://CONTAINER/NAME"  # for messages


class NotThere(InputError):
    """There is no such object, or no such bucket."""


class NoBucket(NotThere):
    """There is no such bucket."""


class NoAccess(InputError):
    """Credentials are missing, or the store refuses them."""


class Replaced(InputError):
    """The object is not the one any more that was found."""


class BrokenOff(Stopped):
    """The connection broke while an answer came. The same request may succeed now."""


class Exists(InputError):
    """There is an object of that name already."""


class Object(NamedTuple):
    """One object as it was found. url: its whole address; size: bytes; etag: another one when its content changes.

    written_at: by the store's clock.
    """

    url: str
    size: int
    etag: str
    written_at: datetime


def is_url(path: str) -> bool:
    """Whether this is the address of something on object storage."""
    return urlsplit(path).scheme in SCHEMES and "://" in path


def found(url: str) -> Object:
    """What is at this address now. Raises NotThere, NoAccess, Stopped."""
    import obstore

    bucket, key = _parts(url)
    return _object(bucket, _again(url, lambda: obstore.head(_store(bucket), key)))


def listed(url: str) -> Iterator[Object]:
    """All objects whose address is below this folder's, in the order of their names. Raises as `found`."""
    import obstore

    bucket, prefix = _parts(url)
    last: str | None = None
    for attempt in _attempts():
        with attempt, _said(url):
            for some in obstore.list(_store(bucket), prefix or None, offset=last, chunk_size=1000):
                for item in some:
                    last = item["path"]
                    yield _object(bucket, item)


def read(obj: Object) -> bytes:
    """The whole object. Raises as `found`, and Replaced when it is another one by now."""
    return _range(obj, 0, obj.size) if obj.size else b""


def content(url: str) -> bytes:
    """The whole of a small object, in one request. Raises as `found`; unlike it this can tell a missing bucket."""
    import obstore

    bucket, key = _parts(url)
    return _again(url, lambda: bytes(obstore.get(_store(bucket), key).bytes()))


def download(obj: Object, file: BinaryIO) -> None:
    """Write the object into a file, a part at a time. Raises as `read`, and OSError."""
    for start in range(0, obj.size, PART_BYTES):
        file.write(_range(obj, start, min(start + PART_BYTES, obj.size)))


def opened(obj: Object, *, buffered: int = READ_BYTES) -> io.BufferedReader:
    """The object as a file to read and to seek in. Raises as `read`, when it is read from."""
    return io.BufferedReader(_Reader(obj), buffered)


def put(url: str, data: bytes | Path | Iterable[bytes], *, create: bool = False) -> None:
    """Put an object there, whole or not at all: one of several parts is there once the last part is.

    create: only if there is none, else Exists; then data must be bytes. Raises as `found`, or what `data` raises.
    """
    import obstore

    bucket, key = _parts(url)
    if not isinstance(data, bytes | Path):
        data = _whole_if_small(iter(data))

    def whole() -> None:
        obstore.put(_store(bucket), key, data, chunk_size=PART_BYTES, max_concurrency=4)

    if create:
        with _said(url):
            obstore.put(_store(bucket), key, data, mode="create", use_multipart=False)
    elif isinstance(data, bytes | Path):
        _again(url, whole)
    else:  # what it gave is gone
        with _said(url):
            whole()


def _whole_if_small(data: Iterator[bytes]) -> bytes | Iterator[bytes]:
    """What comes in one piece need not go up in parts: one request instead of three."""
    first, second = next(data, b""), next(data, None)
    return first if second is None else itertools.chain((first, second), data)


def remove(url: str) -> None:
    """Remove an object; it does not have to be there. Raises NoAccess, Stopped."""
    import obstore

    bucket, key = _parts(url)
    with suppress(NotThere):
        _again(url, lambda: obstore.delete(_store(bucket), key))


def abandon_uploads(folder: str) -> None:
    """End the uploads in parts below this folder that nobody has come to the end of, as far as we may and can.

    A process that is killed leaves them: no listing shows their parts, and Amazon takes money for them. Azure drops
    what was not committed after a week; for Google a rule of the bucket's lifecycle does it.
    """
    bucket, prefix = _parts(folder)
    if urlsplit(bucket).scheme == "s3":
        _abandon_s3(urlsplit(bucket).netloc, f"{prefix}/")


def forget_stores() -> None:
    """Look anew for credentials and addresses when a store is needed next."""
    _store.cache_clear()


def _again(url: str, ask: Callable[[], _T]) -> _T:
    """Return what the store answers; ask again when an answer breaks off, which obstore does for some requests only."""
    for attempt in _attempts():
        with attempt, _said(url):
            return ask()
    raise AssertionError("the last attempt returns or raises")


def _attempts() -> "Iterable[Attempt]":
    """Return the attempts at one request, as contexts: one more after each that raises BrokenOff, three in all."""
    import stamina

    _silence_stamina()
    return stamina.retry_context(on=BrokenOff, attempts=3, timeout=None, wait_max=1.0, wait_jitter=0.1)


@functools.cache
def _silence_stamina() -> None:
    """Let stamina write nothing about what it tries again: the terminal and stdout belong to the commands."""
    from stamina.instrumentation import set_on_retry_hooks

    set_on_retry_hooks(())


def _range(obj: Object, start: int, end: int) -> bytes:
    """Its bytes from `start` to before `end`."""
    import obstore

    bucket, key = _parts(obj.url)
    options: Any = {"range": (start, end), "if_match": obj.etag}
    data = _again(obj.url, lambda: bytes(obstore.get(_store(bucket), key, options=options).bytes()))
    if len(data) != end - start:
        raise Stopped(f"{obj.url}: the store gave {len(data):,} bytes of {end - start:,}; safe to run again")
    return data


class _Reader(io.RawIOBase):
    """An object as a raw file."""

    def __init__(self, obj: Object) -> None:
        self._object, self._at = obj, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._object.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        end = min(self._at + len(buffer), self._object.size)
        if end <= self._at:
            return 0
        data = _range(self._object, self._at, end)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _object(bucket: str, item: Any) -> Object:
    # a store without ETags says at least when the object was written
    written_at = item["last_modified"]
    return Object(f"{bucket}/{item['path']}", item["size"], item["e_tag"] or str(written_at), written_at)


def root_of(url: str) -> str:
    """The address of its bucket: s3://bucket."""
    return _parts(url)[0]


def path_of(url: str) -> str:
    """What stands behind the bucket: folder/name."""
    return _parts(url)[1]


def _parts(url: str) -> tuple[str, str]:
    """The bucket's URL and the key: s3://bucket, folder/name."""
    split = urlsplit(url)
    if split.scheme not in SCHEMES or not split.netloc:
        raise InputError(f"{url}: an address on object storage is {ADDRESSES}")
    start = f"{split.scheme}://{split.netloc}"
    return start, url[len(start) :].lstrip("/")


# -- what a store says -----------------------------------------------------------------------------------------------


@contextmanager
def _said(url: str) -> Iterator[None]:
    """Turns what obstore raises into our errors, with the address."""
    from obstore.exceptions import (
        AlreadyExistsError,
        BaseError,
        NotModifiedError,
        PermissionDeniedError,
        PreconditionError,
        UnauthenticatedError,
    )

    try:
        yield
    except FileNotFoundError as exc:
        raise _missing(url, str(exc)) from exc
    except ValueError as exc:  # an empty segment, or one of dots
        raise InputError(f"{url}: no object can have this name ({_line(str(exc))})") from exc
    except AlreadyExistsError as exc:
        raise Exists(f"{url} exists") from exc
    except (PreconditionError, NotModifiedError) as exc:
        raise Replaced(
            f"{url} was replaced while it was read; let whoever writes it come to its end, and run again"
        ) from exc
    except (PermissionDeniedError, UnauthenticatedError) as exc:
        raise NoAccess(f"{url}: the store refuses the credentials ({_code(str(exc))}); {_tried(url)}") from exc
    except BaseError as exc:
        text = str(exc)
        if "NoSuchBucket" in text or "ContainerNotFound" in text or "The specified bucket does not exist" in text:
            raise _missing(url, text) from exc
        if "redirect" in text or "PermanentRedirect" in text:
            raise NoAccess(f"{url}: the bucket is in another region; name it by AWS_REGION") from exc
        if "403 Forbidden" in text or "401 Unauthorized" in text:  # of a listing
            raise NoAccess(f"{url}: the store refuses the credentials ({_code(text)}); {_tried(url)}") from exc
        failed = BrokenOff if "request or response body error" in text else Stopped
        raise failed(f"{url}: the store cannot be reached ({_line(text)}); safe to run again") from exc


def _missing(url: str, text: str) -> NotThere:
    bucket, _ = _parts(url)
    if "NoSuchBucket" in text or "ContainerNotFound" in text or "bucket does not exist" in text:
        return NoBucket(f"{url}: there is no bucket {bucket}; check its name, and {_ENDPOINTS[urlsplit(url).scheme]}")
    return NotThere(f"{url} does not exist")


def _code(text: str) -> str:
    """The store's own word for it: AccessDenied."""
    _, _, rest = text.partition("<Code>")
    return rest.partition("</Code>")[0] or _line(text)


def _line(text: str) -> str:
    """What went wrong, in a line, without how long it was tried."""
    said = re.sub(
        r"^Generic \w+ error: |Error performing | in [\d.]+m?s\b|, after \d+ retries.*?retry_timeout: \S+", "", text
    )
    return " ".join(said.partition("\n")[0].split())[:SHOWN]


#: What names the store that is asked.
_ENDPOINTS = {
    "s3": "AWS_ENDPOINT_URL if the store is not Amazon's",
    "gs": "STORAGE_EMULATOR_HOST if the store is not Google's",
    "az": "AZURE_STORAGE_ACCOUNT_NAME",
}


def _tried(url: str) -> str:
    """Where credentials are looked for, and what of that is set; never a value."""
    scheme = urlsplit(url).scheme
    names = _VARIABLES[scheme]
    given = [name for name in names if os.environ.get(name)]
    return f"tried {', '.join(names)} (set: {', '.join(given) or 'none'}), {_ELSEWHERE[scheme]}"


_VARIABLES = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ROLE_ARN"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST"),
    "az": (
        *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"),
        *("AZURE_STORAGE_CONNECTION_STRING", "AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET"),
    ),
}
_ELSEWHERE = {
    "s3": "the files in ~/.aws, and the roles of containers and machines",
    "gs": "gcloud's application default credentials, and the service account of the machine",
    "az": "the managed identity of the machine, and the Azure command line's login",
}


# -- the stores ------------------------------------------------------------------------------------------------------


@functools.cache
def _store(bucket: str) -> Any:
    """The store of a bucket, with the credentials that are there now."""
    split = urlsplit(bucket)
    options: dict[str, Any] = {
        "retry_config": {"max_retries": 10, "retry_timeout": timedelta(seconds=RETRY_SECONDS)},
        # an address of ours on http is meant so; the time is of one request, of READ_BYTES at most
        "client_options": {"allow_http": True, "timeout": timedelta(seconds=REQUEST_SECONDS)},
    }
    try:
        return _MAKERS[split.scheme](split.netloc, options)
    except ImportError as exc:
        library = f"the library {exc.name}" if exc.name else f"a library ({' '.join(str(exc).split())})"
        remedy = f"pip install 'batch-pipeline[{split.scheme}]'"
        raise NoAccess(f"{bucket} needs {library}, which is not installed: {remedy}") from exc


def _s3(bucket: str, options: dict[str, Any]) -> Any:
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    session, client = _amazon(bucket)
    config: dict[str, Any] = {"region": client.meta.region_name}
    if not (urlsplit(client.meta.endpoint_url).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn")):
        config["endpoint"] = client.meta.endpoint_url
    if os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true"):
        return S3Store(bucket, skip_signature=True, **config, **options)
    if session.get_credentials() is None:
        raise NoAccess(f"s3://{bucket}: there are no credentials; {_tried('s3://')}")
    return S3Store(bucket, credential_provider=Boto3CredentialProvider(session), **config, **options)


def _amazon(bucket: str) -> tuple[Any, Any]:
    """The SDK's session, and its client for S3."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    try:
        session = boto3.Session()
        # the SDK knows of AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, and what stands in its files
        config = Config(connect_timeout=10, read_timeout=60, retries={"total_max_attempts": 3})
        return session, session.client("s3", region_name=session.region_name or "us-east-1", config=config)
    except BotoCoreError as exc:  # a profile that is not there, a file that is broken
        raise NoAccess(f"s3://{bucket}: {exc}; {_tried('s3://')}") from exc


def _abandon_s3(bucket: str, prefix: str) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    _, client = _amazon(bucket)
    try:  # what is asked once a run need not keep the store's connection
        for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
            for upload in page.get("Uploads", []):
                client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    except (BotoCoreError, ClientError):
        pass  # it may be forbidden to us: then a rule of the bucket's lifecycle has to do it
    finally:
        client.close()


def _gs(bucket: str, options: dict[str, Any]) -> Any:
    from obstore.store import GCSStore

    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator:  # as Google's SDK has it: that address, and nobody signs
        address = emulator if "://" in emulator else f"http://{emulator}"
        return GCSStore(bucket, base_url=address.rstrip("/"), skip_signature=True, **options)
    return GCSStore(bucket, credential_provider=_google_token(bucket), **options)


def _google_token(bucket: str) -> Callable[[], Any]:
    import google.auth
    import google.auth.exceptions
    from google.auth.transport.requests import Request

    try:
        credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/devstorage.read_write"])
    except google.auth.exceptions.DefaultCredentialsError as exc:
        raise NoAccess(f"gs://{bucket}: there are no credentials; {_tried('gs://')}") from exc

    def token() -> Any:
        credentials.refresh(Request())  # type: ignore[no-untyped-call]
        expiry = credentials.expiry and credentials.expiry.replace(tzinfo=UTC)
        return {"token": credentials.token, "expires_at": expiry}

    return token


def _az(container: str, options: dict[str, Any]) -> Any:
    from obstore.store import AzureStore

    pairs = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";")
    said = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    wanted = {
        "account_name": said.get("AccountName") or os.environ.get("AZURE_STORAGE_ACCOUNT"),
        "account_key": said.get("AccountKey"),
        "sas_key": said.get("SharedAccessSignature"),
        "endpoint": said.get("BlobEndpoint"),
    }
    config: dict[str, Any] = {name: value for name, value in wanted.items() if value}
    signed = ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY", "AZURE_SKIP_SIGNATURE")
    if "account_name" not in config and not os.environ.get("AZURE_STORAGE_ACCOUNT_NAME"):
        raise NoAccess(f"az://{container}: no account is named; {_tried('az://')}")
    if config.keys() & {"account_key", "sas_key"} or any(os.environ.get(name) for name in signed):
        return AzureStore(container, **config, **options)
    return AzureStore(container, credential_provider=_azure_token(), **config, **options)


def _azure_token() -> Callable[[], Any]:
    import azure.identity

    credential = azure.identity.DefaultAzureCredential()

    def token() -> Any:
        got = credential.get_token("https://storage.azure.com/.default")
        return {"token": got.token, "expires_at": datetime.fromtimestamp(got.expires_on, UTC)}

    return token


_MAKERS: dict[str, Callable[[str, dict[str, Any]], Any]] = {"s3": _s3, "gs": _gs, "az": _az}
