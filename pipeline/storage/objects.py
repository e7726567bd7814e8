"""Read, write, list and delete objects on S3, Google Cloud Storage and Azure, by URL. Edge: network.

obstore (the object_store library that polars reads with) sends the requests and retries them. Credentials and endpoints
come from each cloud's own SDK, out of its own variables and files. Each request for a part of an object carries the
object's ETag: if the object was replaced since it was looked up, reading it is an error, never a mixture of both.
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

RETRY_SECONDS = 60.0  # how long a failed request is retried, with growing pauses
REQUEST_SECONDS = 120.0  # the timeout of one request, which is then retried
PART_BYTES = 8_000_000  # of one part of a multipart upload or of a download
READ_BYTES = 4_000_000  # of one request, when an object is read from start to end
LONGEST_SHOWN = 300  # characters of a store's error text in a message

_T = TypeVar("_T")

#: For each there is an extra of this package with the same name, which installs the SDK that reads the credentials.
SCHEMES = ("s3", "gs", "az")
ADDRESSES = "s3://BUCKET/NAME, gs://BUCKET/NAME or az://CONTAINER/NAME"  # for messages


class NotFound(InputError):
    """The object does not exist, or its bucket does not."""


class BucketNotFound(NotFound):
    """The bucket does not exist."""


class AccessDenied(InputError):
    """Credentials are missing, or the store refuses them."""


class Replaced(InputError):
    """Another object has replaced the one that was looked up."""


class BrokenOff(Stopped):
    """The connection broke while an answer came. The same request may succeed now."""


class AlreadyExists(InputError):
    """An object of this name exists already."""


class Object(NamedTuple):
    """One object, as it was when it was looked up.

    url: its whole address; size: in bytes; etag: changes whenever the content does; written_at: by the store's clock.
    """

    url: str
    size: int
    etag: str
    written_at: datetime


def is_url(path: str) -> bool:
    """Return whether `path` is a URL on object storage: s3://, gs:// or az://."""
    return urlsplit(path).scheme in SCHEMES and "://" in path


def head(url: str) -> Object:
    """Look up the object at this URL: its size, ETag and date. Raises NotFound, AccessDenied, Stopped."""
    import obstore

    bucket, key = _parts(url)
    return _object(bucket, _retried(url, lambda: obstore.head(_store(bucket), key)))


def list_objects(url: str) -> Iterator[Object]:
    """Yield all objects below this folder, at any depth, ordered by name; possibly none. Raises as `head`."""
    import obstore

    bucket, prefix = _parts(url)
    last: str | None = None
    for attempt in _attempts():
        with attempt, _translated_errors(url):
            for page in obstore.list(_store(bucket), prefix or None, offset=last, chunk_size=1000):
                for item in page:
                    last = item["path"]
                    yield _object(bucket, item)


def read(obj: Object) -> bytes:
    """Return the content of the whole object. Raises as `head`, and Replaced if it was replaced since."""
    return _range(obj, 0, obj.size) if obj.size else b""


def get(url: str) -> bytes:
    """Return the content of a small object, in one request. Raises as `head`, and BucketNotFound."""
    import obstore

    bucket, key = _parts(url)
    return _retried(url, lambda: bytes(obstore.get(_store(bucket), key).bytes()))


def download(obj: Object, file: BinaryIO) -> None:
    """Write the object's content into an open file, a part at a time. Raises as `read`, and OSError."""
    for start in range(0, obj.size, PART_BYTES):
        file.write(_range(obj, start, min(start + PART_BYTES, obj.size)))


def open_object(obj: Object, *, buffered: int = READ_BYTES) -> io.BufferedReader:
    """Return the object as a file that can be read and seeked; reading from it raises as `read`.

    buffered: bytes that are fetched by one request.
    """
    return io.BufferedReader(_Reader(obj), buffered)


def put(url: str, data: bytes | Path | Iterable[bytes], *, create: bool = False) -> None:
    """Write an object, whole or not at all: a multipart upload becomes visible with its last part.

    data: the content, a local file, or chunks, which are read once. create: write only if there is no object at this
    URL, else raise AlreadyExists; data must then be bytes. Raises as `head`, and what reading `data` raises.
    """
    import obstore

    bucket, key = _parts(url)
    if not isinstance(data, bytes | Path):
        data = _whole_if_small(iter(data))

    def upload() -> None:
        obstore.put(_store(bucket), key, data, chunk_size=PART_BYTES, max_concurrency=4)

    if create:
        with _translated_errors(url):
            obstore.put(_store(bucket), key, data, mode="create", use_multipart=False)
    elif isinstance(data, bytes | Path):
        _retried(url, upload)
    else:  # an iterator can be read only once, so there is no second try
        with _translated_errors(url):
            upload()


def _whole_if_small(data: Iterator[bytes]) -> bytes | Iterator[bytes]:
    """Return the chunk if there is only one, else all chunks: for a single chunk one request does instead of three."""
    first, second = next(data, b""), next(data, None)
    return first if second is None else itertools.chain((first, second), data)


def remove(url: str) -> None:
    """Delete an object; do nothing if it does not exist. Raises AccessDenied, Stopped."""
    import obstore

    bucket, key = _parts(url)
    with suppress(NotFound):
        _retried(url, lambda: obstore.delete(_store(bucket), key))


def abandon_uploads(folder: str) -> None:
    """Abort the unfinished multipart uploads below this folder. Only S3 needs it; errors are ignored.

    A process that is killed leaves such uploads: listings do not show their parts, and Amazon charges for them. Azure
    removes uncommitted parts after a week; on Google Cloud Storage a lifecycle rule of the bucket removes them.
    """
    bucket, prefix = _parts(folder)
    if urlsplit(bucket).scheme == "s3":
        _abandon_s3(urlsplit(bucket).netloc, f"{prefix}/")


def forget_stores() -> None:
    """Drop the cached stores: the next request looks for credentials and endpoints again."""
    _store.cache_clear()


def _retried(url: str, send: Callable[[], _T]) -> _T:
    """Return what `send` returns, with two more tries if a response breaks off: obstore retries only some of these."""
    for attempt in _attempts():
        with attempt, _translated_errors(url):
            return send()
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
    """Return the object's bytes from `start` to before `end`. Raises as `read`."""
    import obstore

    bucket, key = _parts(obj.url)
    options: Any = {"range": (start, end), "if_match": obj.etag}
    data = _retried(obj.url, lambda: bytes(obstore.get(_store(bucket), key, options=options).bytes()))
    if len(data) != end - start:
        raise Stopped(f"{obj.url}: the store sent {len(data):,} bytes of {end - start:,}; safe to run again")
    return data


class _Reader(io.RawIOBase):
    """An object as an unbuffered, seekable file."""

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
    # a store without ETags: the time at which the object was written stands in for it
    written_at = item["last_modified"]
    return Object(f"{bucket}/{item['path']}", item["size"], item["e_tag"] or str(written_at), written_at)


def root_of(url: str) -> str:
    """Return the URL of the bucket: s3://bucket. Raises InputError if `url` names no bucket."""
    return _parts(url)[0]


def path_of(url: str) -> str:
    """Return the part of the URL after the bucket: folder/name, or an empty text. Raises InputError as `root_of`."""
    return _parts(url)[1]


def _parts(url: str) -> tuple[str, str]:
    """Return the bucket's URL and the key: ("s3://bucket", "folder/name")."""
    split = urlsplit(url)
    if split.scheme not in SCHEMES or not split.netloc:
        raise InputError(f"{url}: not an address on object storage; write {ADDRESSES}")
    start = f"{split.scheme}://{split.netloc}"
    return start, url[len(start) :].lstrip("/")


# -- the errors of a store -------------------------------------------------------------------------------------------


@contextmanager
def _translated_errors(url: str) -> Iterator[None]:
    """Turn what obstore raises into our errors, which name the URL."""
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
    except ValueError as exc:  # a part of the key is empty, "." or ".."
        raise InputError(f"{url}: no object can have this name ({_line(str(exc))})") from exc
    except AlreadyExistsError as exc:
        raise AlreadyExists(f"{url} exists") from exc
    except (PreconditionError, NotModifiedError) as exc:
        raise Replaced(
            f"{url} was replaced while it was read; wait until the program that writes it has finished, and run again"
        ) from exc
    except (PermissionDeniedError, UnauthenticatedError) as exc:
        raise _refused(url, str(exc)) from exc
    except BaseError as exc:
        text = str(exc)
        if "NoSuchBucket" in text or "ContainerNotFound" in text or "The specified bucket does not exist" in text:
            raise _missing(url, text) from exc
        if "redirect" in text or "PermanentRedirect" in text:
            raise AccessDenied(f"{url}: the bucket is in another region; set AWS_REGION to it") from exc
        if "403 Forbidden" in text or "401 Unauthorized" in text:  # a listing gives these
            raise _refused(url, text) from exc
        failed = BrokenOff if "request or response body error" in text else Stopped
        raise failed(f"{url}: the store cannot be reached ({_line(text)}); safe to run again") from exc


def _refused(url: str, text: str) -> AccessDenied:
    """Return the error for credentials that the store refuses. text: the store's error text."""
    return AccessDenied(f"{url}: the store refuses the credentials ({_code(text)}); {_tried(url)}")


def _missing(url: str, text: str) -> NotFound:
    """Return the error for a missing object or bucket. text: the store's error text, which tells which."""
    bucket, _ = _parts(url)
    if "NoSuchBucket" in text or "ContainerNotFound" in text or "bucket does not exist" in text:
        return BucketNotFound(
            f"{url}: there is no bucket {bucket}; check its name, and {_ENDPOINTS[urlsplit(url).scheme]}"
        )
    return NotFound(f"{url} does not exist")


def _code(text: str) -> str:
    """Return the store's error code, such as AccessDenied, out of its error text; the first line if there is none."""
    _, _, rest = text.partition("<Code>")
    return rest.partition("</Code>")[0] or _line(text)


def _line(text: str) -> str:
    """Return the first line of the store's error text, without the number and duration of the tries."""
    shorter = re.sub(
        r"^Generic \w+ error: |Error performing | in [\d.]+m?s\b|, after \d+ retries.*?retry_timeout: \S+", "", text
    )
    return " ".join(shorter.partition("\n")[0].split())[:LONGEST_SHOWN]


#: By scheme, the setting that names the store, for messages.
_ENDPOINTS = {
    "s3": "AWS_ENDPOINT_URL if the store is not Amazon's",
    "gs": "STORAGE_EMULATOR_HOST if the store is not Google's",
    "az": "AZURE_STORAGE_ACCOUNT_NAME",
}


def _tried(url: str) -> str:
    """Return, for a message, where credentials were looked for and which variables are set; never their values."""
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
    """Return obstore's store for a bucket, with the credentials of this moment. Raises AccessDenied."""
    split = urlsplit(bucket)
    options: dict[str, Any] = {
        "retry_config": {"max_retries": 10, "retry_timeout": timedelta(seconds=RETRY_SECONDS)},
        # an endpoint on http was set on purpose; the timeout is that of one request, of READ_BYTES at most
        "client_options": {"allow_http": True, "timeout": timedelta(seconds=REQUEST_SECONDS)},
    }
    try:
        return _MAKERS[split.scheme](split.netloc, options)
    except ImportError as exc:
        library = f"the library {exc.name}" if exc.name else f"a library ({' '.join(str(exc).split())})"
        remedy = f"pip install 'batch-pipeline[{split.scheme}]'"
        raise AccessDenied(f"{bucket} needs {library}, which is not installed: {remedy}") from exc


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
        raise AccessDenied(f"s3://{bucket}: there are no credentials; {_tried('s3://')}")
    return S3Store(bucket, credential_provider=Boto3CredentialProvider(session), **config, **options)


def _amazon(bucket: str) -> tuple[Any, Any]:
    """Return boto3's session and its S3 client. Raises AccessDenied if the SDK's settings cannot be used."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    try:
        session = boto3.Session()
        # the SDK reads AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL and its own files
        config = Config(connect_timeout=10, read_timeout=60, retries={"total_max_attempts": 3})
        return session, session.client("s3", region_name=session.region_name or "us-east-1", config=config)
    except BotoCoreError as exc:  # a missing profile, a broken file
        raise AccessDenied(f"s3://{bucket}: {exc}; {_tried('s3://')}") from exc


def _abandon_s3(bucket: str, prefix: str) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    _, client = _amazon(bucket)
    try:  # a client of its own, closed below: this is asked once a run
        for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
            for upload in page.get("Uploads", []):
                client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    except (BotoCoreError, ClientError):
        pass  # we may lack the permission; then a lifecycle rule of the bucket has to remove them
    finally:
        client.close()


def _gs(bucket: str, options: dict[str, Any]) -> Any:
    from obstore.store import GCSStore

    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator:  # as in Google's SDK: this address, with unsigned requests
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
        raise AccessDenied(f"gs://{bucket}: there are no credentials; {_tried('gs://')}") from exc

    def token() -> Any:
        credentials.refresh(Request())  # type: ignore[no-untyped-call]
        expiry = credentials.expiry and credentials.expiry.replace(tzinfo=UTC)
        return {"token": credentials.token, "expires_at": expiry}

    return token


def _az(container: str, options: dict[str, Any]) -> Any:
    from obstore.store import AzureStore

    pairs = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";")
    fields = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    settings = {
        "account_name": fields.get("AccountName") or os.environ.get("AZURE_STORAGE_ACCOUNT"),
        "account_key": fields.get("AccountKey"),
        "sas_key": fields.get("SharedAccessSignature"),
        "endpoint": fields.get("BlobEndpoint"),
    }
    config: dict[str, Any] = {name: value for name, value in settings.items() if value}
    signed = ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY", "AZURE_SKIP_SIGNATURE")
    if "account_name" not in config and not os.environ.get("AZURE_STORAGE_ACCOUNT_NAME"):
        raise AccessDenied(f"az://{container}: no storage account is named; {_tried('az://')}")
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
