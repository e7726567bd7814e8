"""An S3 server for tests: moto over HTTP, with faults in front of it."""

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest
import stamina
from moto.moto_api._internal.models import moto_api_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from pipeline.storage import objects

Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]
KEY = "AKIDTESTS"


@dataclass
class S3:
    """A server with one bucket. requests: method and path of each request so far, as they came; sent: bytes answered.

    faults: for each of the next requests what to do with it, "ok" included; used up one by one: "503", "cut" (the
    connection breaks when half of the answer is out), "403" (as for wrong credentials), "slow" (no answer comes until
    the test has ended). broken: requests (method, path
    and query) that are answered by 503 as long as it says so. latency: seconds before a GET is answered, as a store has
    that is far away.
    """

    address: str
    bucket: str = "bucket"
    requests: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    sent: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    broken: Callable[[str], bool] = lambda request: False
    latency: float = 0.0

    @property
    def url(self) -> str:
        """Return the address of the bucket."""
        return f"s3://{self.bucket}"

    @property
    def client(self) -> Any:
        """Return a boto3 client of this server."""
        return boto3.client(
            "s3",
            endpoint_url=self.address,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key="secret",
        )

    def put(self, key: str, data: bytes) -> str:
        """Store an object and return its URL."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)
        return f"{self.url}/{key}"

    def get(self, key: str) -> bytes:
        """Return the content of an object."""
        return bytes(self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read())

    def keys(self, prefix: str = "") -> list[str]:
        """Return the names of all objects with this prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def unfinished(self) -> list[str]:
        """Return the names of uploads in parts that were not completed."""
        return [upload["Key"] for upload in self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])]

    def between(self, app: Wsgi) -> Wsgi:
        """Call `app`, with the faults applied."""

        def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
            self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
            fault = self.faults.pop(0) if self.faults else "ok"
            if self.broken(f"{self.requests[-1]}?{environ.get('QUERY_STRING', '')}"):
                fault = "503"
            if environ["REQUEST_METHOD"] == "GET":
                time.sleep(self.latency)
            if fault in _REFUSALS:
                status, code = _REFUSALS[fault]
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start(status, [("Content-Type", "application/xml")])
                return [f"<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>".encode()]
            if fault == "slow":
                self.ended.wait()
            if fault == "cut":
                return _cut(app(environ, start), environ)
            body = [b"".join(app(environ, start))]
            self.sent += len(body[0])
            return body

        return answer


_REFUSALS = {
    "503": ("503 Slow Down", "SlowDown"),
    "403": ("403 Forbidden", "InvalidAccessKeyId"),
}


def _cut(body: Iterable[bytes], environ: dict[str, Any]) -> Iterator[bytes]:
    data = b"".join(body)
    yield data[: len(data) // 2]
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[BaseWSGIServer, list[S3]]]:
    """The thread of the server, and the bucket that its requests are for now."""
    now: list[S3] = []
    moto: Wsgi = DomainDispatcherApplication(create_backend_app)

    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        return now[0].between(moto)(environ, start)

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server, now
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def s3(s3_server: tuple[BaseWSGIServer, list[S3]], monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[S3]:
    """An S3 server with an empty bucket; the environment of this process names it and has credentials."""
    server, now = s3_server
    world = S3(f"http://127.0.0.1:{server.server_port}")
    now[:] = [world]
    moto_api_backend.reset()
    for name, value in {
        "AWS_ENDPOINT_URL": world.address,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        # no settings of the machine that runs the tests
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(objects, "RETRY_SECONDS", 5.0)
    objects.forget_stores()
    world.client.create_bucket(Bucket=world.bucket)
    world.requests.clear()
    with stamina.set_testing(True, attempts=3, cap=True):  # retries without waiting
        yield world
    world.ended.set()
    objects.forget_stores()
