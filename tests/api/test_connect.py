"""A job reaches the API with the right client and credentials, also by gateways and proxies, over real HTTP.

A relay in front of the emulator records each call; it acts as a gateway, a proxy or a TLS endpoint.
"""

import contextlib
import http.client
import ipaddress
import os
import re
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import orjson
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from pipeline.api.client import Api
from pipeline.api.created import Rejected
from pipeline.api.reach import Reach
from pipeline.emulator import RunningEmulator, start
from pipeline.spool.body import BodyReader, digest
from tests.cli.test_bad_input import JOB, Command, Ran, api, command, folder, running  # noqa: F401  # fixtures

# -- what stands between the pipeline and the emulator ---------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A call as it was received. headers: with their names in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def name(self) -> str:
        """Method and path, without the batch's id."""
        return f"{self.method} {re.sub('msgbatch_[^/]+', 'ID', urlsplit(self.target).path)}"


@dataclass
class Relay:
    """An HTTP server that records each call and passes it on to `upstream`; it can also be a forward proxy.

    prefix: what it strips of each path; key: an API key that it adds; hidden: headers of answers that it keeps to
    itself; own: what it answers itself, by path; tls: its certificate, or None.
    """

    upstream: str
    prefix: str = ""
    key: str | None = None
    hidden: tuple[str, ...] = ()
    own: Mapping[str, Any] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    calls: list[Call] = field(default_factory=list)
    tunnels: list[str] = field(default_factory=list)  #: where CONNECT led to

    def __enter__(self) -> Self:
        relay = self

        class Handler(_Handler):
            def passed_on(self) -> None:
                relay._pass_on(self)

            do_GET = do_POST = do_DELETE = passed_on

            def do_CONNECT(self) -> None:
                relay.tunnels.append(self.path)
                self.tunnel()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if self.tls is not None:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The address where it listens."""
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self._server.server_port}"

    def names(self) -> set[str]:
        """Return the names of the calls received."""
        return {call.name for call in self.calls}

    def _pass_on(self, request: "_Handler") -> None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = request.rfile.read(int(headers.get("content-length", 0)))
        self.calls.append(Call(request.command, request.path, headers, body))
        split = urlsplit(request.path)
        if split.path in self.own:
            request.answer(200, [("content-type", "application/json")], orjson.dumps(self.own[split.path]))
            return
        if not split.path.startswith(self.prefix):
            request.answer(404, [], b"no such page")
            return
        sent = {name: value for name, value in headers.items() if name not in ("host", "connection")}
        if self.key is not None:
            sent["x-api-key"] = self.key
        target = split._replace(scheme="", netloc="", path=split.path.removeprefix(self.prefix)).geturl()
        upstream = http.client.HTTPConnection(urlsplit(self.upstream).netloc)
        with contextlib.closing(upstream):
            upstream.request(request.command, target, body, sent)
            answer = upstream.getresponse()
            left_out = {"transfer-encoding", "content-length", "connection", *self.hidden}
            kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in left_out]
            request.answer(answer.status, kept, answer.read())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer leaves as one packet

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in (*headers, ("content-length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def tunnel(self) -> None:
        """Join the two connections until both ends have ended."""
        host, _, port = self.path.partition(":")
        with socket.create_connection((host, int(port))) as far:
            self.send_response_only(200)
            self.end_headers()
            self.wfile.flush()
            back = threading.Thread(target=_copy, args=(far, self.connection), daemon=True)
            back.start()
            _copy(self.connection, far)
            back.join()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def _copy(source: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            to.sendall(data)
    with contextlib.suppress(OSError):
        to.shutdown(socket.SHUT_WR)


# -- the machine on which the commands run ---------------------------------------------------------------------------

#: Variables that the SDK, httpx2, botocore, google-auth and requests read.
READ = re.compile(
    r"(ANTHROPIC|AWS|BOTO|GOOGLE|GCLOUD|CLOUDSDK|BATCH)_.*|(HTTPS?|ALL|NO)_PROXY|SSL_CERT_(FILE|DIR)|\w+_CA_BUNDLE",
    re.IGNORECASE,
)


@dataclass
class Machine:
    """A folder with jobs, an environment with only the variables that a test sets, and the command line."""

    folder: Path
    home: Path
    running: RunningEmulator
    patch: pytest.MonkeyPatch
    command: Command

    def set(self, **variables: str) -> None:
        """Set variables of the environment."""
        for name, value in variables.items():
            self.patch.setenv(name, value)

    def unset(self, *names: str) -> None:
        """Remove variables of the environment."""
        for name in names:
            self.patch.delenv(name)

    def job(self, client: str, name: str = "tickets") -> str:
        """Write a job that uses this client and return its file name. Its answers are in table answers_NAME."""
        text = JOB.replace("name: tickets", f"name: {name}").replace("table: answers", f"table: answers_{name}")
        (self.folder / f"{name}.yaml").write_text(f"{text}api: {{client: {client}}}\n")
        return f"{name}.yaml"

    def __call__(self, *arguments: str) -> Ran:
        """Run a command."""
        return self.command(*arguments)

    def statuses(self, name: str = "tickets") -> list[str]:
        """Return the status of each row that has an answer."""
        return [status for (status,) in self.rows(f"SELECT status FROM answers_{name}")]

    def accounts(self) -> list[tuple[str, str]]:
        """Return organization and workspace of each account in the database."""
        return self.rows("SELECT organization, workspace FROM accounts ORDER BY id")

    def rows(self, query: str) -> list[Any]:
        """Return the rows of a query of the database."""
        with contextlib.closing(sqlite3.connect(self.folder / "batches.db")) as database:
            return database.execute(query).fetchall()


@pytest.fixture
def machine(
    folder: Path,  # noqa: F811  # a fixture, as the next ones
    command: Command,  # noqa: F811
    running: RunningEmulator,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Machine:
    """Return a machine without credentials, proxy or other settings of the real machine."""
    for name in [name for name in os.environ if READ.fullmatch(name)]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    made = Machine(folder, home, running, monkeypatch, command)
    made.set(
        HOME=str(home),
        BATCH_POLL_SECONDS="0.01",
        ANTHROPIC_BASE_URL=running.url,
        AWS_EC2_METADATA_DISABLED="true",  # neither cloud's machines are asked who they are
        NO_GCE_CHECK="true",
    )
    return made


@pytest.fixture
def relay(running: RunningEmulator) -> Iterator[Relay]:  # noqa: F811
    """Run a relay that changes nothing."""
    with Relay(running.url) as relay:
        yield relay


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[RunningEmulator]:
    """Run an emulator whose batches run for an hour, unless its clock is advanced."""
    with start(tmp_path / "slow", processing_seconds=3600) as slow:
        yield slow


def end_all_batches(slow: RunningEmulator) -> None:
    slow.emulator.clock.advance(7200)
    slow.emulator.wait_idle()


def assert_refused(ran: Ran, *said: str) -> None:
    """Assert exit code 2 and one sentence with all these parts."""
    assert "Traceback" not in ran.err
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert (ran.code, len(errors)) == (2, 1), ran.err
    assert "unexpected" not in errors[0]
    for part in said:
        assert part in errors[0]


def counted(machine: Machine) -> int:
    """Return how many requests the machine's emulator has accepted so far."""
    return len(list(machine.running.emulator.accepted()))


def bearers(relay: Relay) -> set[str]:
    """Return the Authorization headers that were received."""
    return {call.headers.get("authorization", "") for call in relay.calls}


#: What a run of one batch calls.
WHOLE_RUN = {
    "POST /v1/messages/count_tokens",
    "GET /v1/messages/batches",
    "GET /v1/models/claude-haiku-4-5",
    "POST /v1/messages/batches",
    "GET /v1/messages/batches/ID",
    "GET /v1/messages/batches/ID/results",
}


def apart(machine: Machine, *arguments: str, hidden: tuple[str, ...] = ()) -> Ran:
    """Run a command in a process of its own, as if the `hidden` modules were not installed."""
    code = f"""
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if any(name == module or name.startswith(module + ".") for module in {hidden}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
from pipeline.cli.app import main

main()
"""
    words = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(words, cwd=machine.folder, capture_output=True, text=True, check=False)
    return Ran(ended.returncode, ended.stdout, ended.stderr)


# -- client: default -------------------------------------------------------------------------------------------------


def profile(config: Path, name: str, token: str, **fields: Any) -> None:
    """Write a profile of the SDK, as a login or a sidecar does: two files, the second one secret."""
    for part, content in (
        ("configs", {"authentication": {"type": "user_oauth"}, **fields}),
        ("credentials", {"type": "oauth_token", "access_token": token}),
    ):
        file = config / part / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(orjson.dumps(content))
        file.chmod(0o600)


def test_an_api_key_is_sent_as_a_bearer_token(machine: Machine, relay: Relay) -> None:
    machine.set(ANTHROPIC_API_KEY="emulated", ANTHROPIC_BASE_URL=relay.url)

    ran = machine("run", machine.job("default"))

    assert ran.code == 0, ran.err
    assert machine.statuses() == ["succeeded"] * 3
    assert relay.names() == WHOLE_RUN
    assert bearers(relay) == {"Bearer emulated"}


def test_a_token_alone_is_enough(machine: Machine, relay: Relay) -> None:
    machine.set(ANTHROPIC_AUTH_TOKEN="a-token", ANTHROPIC_BASE_URL=relay.url)

    ran = machine("run", machine.job("default"))

    assert ran.code == 0, ran.err
    assert machine.statuses() == ["succeeded"] * 3
    assert bearers(relay) == {"Bearer a-token"}


def test_an_api_key_wins_over_a_token(machine: Machine, relay: Relay) -> None:
    machine.set(ANTHROPIC_API_KEY="emulated", ANTHROPIC_AUTH_TOKEN="a-token", ANTHROPIC_BASE_URL=relay.url)

    ran = machine("models")

    assert ran.code == 0, ran.err
    assert bearers(relay) == {"Bearer emulated"}


def test_the_default_profile_in_the_home_folder_is_used(machine: Machine, relay: Relay) -> None:
    profile(machine.home / ".config" / "anthropic", "default", "of-default")
    machine.set(ANTHROPIC_BASE_URL=relay.url)

    ran = machine("run", machine.job("default"))

    assert ran.code == 0, ran.err
    assert machine.statuses() == ["succeeded"] * 3
    assert bearers(relay) == {"Bearer of-default"}


def test_a_profile_in_a_chosen_folder_sets_address_and_workspace(
    machine: Machine, relay: Relay, tmp_path: Path
) -> None:
    profile(tmp_path / "config", "work", "of-work", base_url=relay.url, workspace_id="wrkspc_1")
    machine.set(ANTHROPIC_CONFIG_DIR=str(tmp_path / "config"), ANTHROPIC_PROFILE="work")
    machine.unset("ANTHROPIC_BASE_URL")

    ran = machine("run", machine.job("default"))

    assert ran.code == 0, ran.err
    assert relay.names() == WHOLE_RUN
    assert bearers(relay) == {"Bearer of-work"}
    assert {call.headers.get("anthropic-workspace-id") for call in relay.calls} == {"wrkspc_1"}


def test_a_preview_uses_the_profile_too(machine: Machine, relay: Relay) -> None:
    profile(machine.home / ".config" / "anthropic", "default", "of-default")
    machine.set(ANTHROPIC_BASE_URL=relay.url)

    ran = machine("preview", machine.job("default"))

    assert ran.code == 0, ran.err
    assert ran.out.count("[emulated]") == 3
    assert bearers(relay) == {"Bearer of-default"}


def test_the_betas_of_a_job_are_sent_together_with_the_beta_of_a_profile(machine: Machine, relay: Relay) -> None:
    profile(machine.home / ".config" / "anthropic", "default", "of-default")
    machine.set(ANTHROPIC_BASE_URL=relay.url)
    job = machine.folder / machine.job("default")
    job.write_text(job.read_text().replace("  max_tokens:", "  betas: [output-300k-2026-03-24]\n  max_tokens:"))

    ran = machine("run", job.name)

    assert ran.code == 0, ran.err
    (create,) = (call for call in relay.calls if call.name == "POST /v1/messages/batches")
    assert {"output-300k-2026-03-24", "oauth-2025-04-20"} <= set(re.split(", *", create.headers["anthropic-beta"]))


def test_a_workload_identity_is_exchanged_for_a_token(machine: Machine, tmp_path: Path) -> None:
    token = {"access_token": "exchanged", "token_type": "Bearer", "expires_in": 3600}
    (tmp_path / "identity").write_text("a-jwt")
    with Relay(machine.running.url, own={"/v1/oauth/token": token}) as relay:
        machine.set(
            ANTHROPIC_BASE_URL=relay.url,
            ANTHROPIC_FEDERATION_RULE_ID="fdrl_1",
            ANTHROPIC_ORGANIZATION_ID="b5a9c1f0-0000-0000-0000-000000000001",
            ANTHROPIC_IDENTITY_TOKEN_FILE=str(tmp_path / "identity"),
        )

        ran = machine("run", machine.job("default"))

    assert ran.code == 0, ran.err
    assert machine.statuses() == ["succeeded"] * 3
    assert relay.calls[0].name == "POST /v1/oauth/token"
    assert orjson.loads(relay.calls[0].body)["assertion"] == "a-jwt"
    assert {call.headers.get("authorization") for call in relay.calls[1:]} == {"Bearer exchanged"}


@pytest.mark.parametrize("arguments", [["run"], ["preview"], ["models"]], ids=lambda arguments: arguments[0])
def test_a_command_without_credentials_says_what_to_set(machine: Machine, arguments: list[str]) -> None:
    job = machine.job("default")
    before = counted(machine)

    ran = machine(*arguments, *([] if arguments == ["models"] else [job]))

    assert_refused(ran, "ANTHROPIC_API_KEY", "--emulator")
    assert counted(machine) == before


@pytest.mark.parametrize("name", ["check", "estimate"])
def test_a_check_without_credentials_warns_that_the_api_was_not_asked(machine: Machine, name: str) -> None:
    ran = machine(name, machine.job("default"))

    assert ran.code == 0, ran.err
    (warning,) = (line for line in ran.err.splitlines() if line.startswith("warning"))
    assert "ANTHROPIC_API_KEY" in warning


@pytest.mark.parametrize("name", ["run", "preview"])
def test_a_profile_whose_secret_is_gone_is_named(machine: Machine, name: str) -> None:
    profile(machine.home / ".config" / "anthropic", "default", "of-default")
    secret = machine.home / ".config" / "anthropic" / "credentials" / "default.json"
    secret.unlink()

    ran = machine(name, machine.job("default"))

    assert_refused(ran, "no credentials", str(secret))


@pytest.mark.parametrize("name", ["run", "preview"])
def test_a_profile_that_does_not_exist_is_named(machine: Machine, name: str) -> None:
    machine.set(ANTHROPIC_PROFILE="nightly")

    ran = machine(name, machine.job("default"))

    assert_refused(ran, "nightly", "ANTHROPIC_PROFILE")


def said_in_time(machine: Machine, job: str, words: str) -> bool:
    """Return whether a sweep says this soon. The API's time has whole seconds, so a batch may be due a moment later."""
    return any(words in machine("collect", job).err for _ in range(50))


def test_two_profiles_are_two_accounts_when_the_api_does_not_name_their_account(
    machine: Machine, slow: RunningEmulator
) -> None:
    job = machine.job("default")
    machine.set(BATCH_POLL_SECONDS="0")
    profile(machine.home / ".config" / "anthropic", "first", "token@first", workspace_id="wrkspc_1")
    profile(machine.home / ".config" / "anthropic", "second", "token@second", workspace_id="wrkspc_2")
    with Relay(slow.url, hidden=("anthropic-organization-id", "anthropic-workspace-id")) as relay:
        machine.set(ANTHROPIC_BASE_URL=relay.url, ANTHROPIC_PROFILE="first")
        sent = machine("run", job, "--detach")
        machine.set(ANTHROPIC_PROFILE="second")
        assert said_in_time(machine, job, "another account")

    assert sent.code == 0, sent.err
    assert len(machine.accounts()) == 2, machine.accounts()


# -- client: aws -----------------------------------------------------------------------------------------------------


def by_aws_key(machine: Machine, url: str) -> None:
    """Set the variables of the AWS client with an API key, which needs no region."""
    machine.set(ANTHROPIC_AWS_BASE_URL=url, ANTHROPIC_AWS_API_KEY="key@aws", ANTHROPIC_AWS_WORKSPACE_ID="wrkspc_aws")
    machine.unset("ANTHROPIC_BASE_URL")


def by_aws_signature(machine: Machine, url: str) -> None:
    """Set the variables of the AWS client with AWS credentials."""
    machine.set(
        ANTHROPIC_AWS_BASE_URL=url,
        ANTHROPIC_AWS_WORKSPACE_ID="wrkspc_aws",
        AWS_ACCESS_KEY_ID="AKIDEXAMPLE",
        AWS_SECRET_ACCESS_KEY="a-secret",
        AWS_REGION="eu-west-1",
    )
    machine.unset("ANTHROPIC_BASE_URL")


def test_a_job_of_the_aws_client_runs_with_an_api_key(machine: Machine, relay: Relay) -> None:
    by_aws_key(machine, relay.url)

    ran = machine("run", machine.job("aws"))

    assert ran.code == 0, ran.err
    assert machine.statuses() == ["succeeded"] * 3
    assert relay.names() == WHOLE_RUN
    assert bearers(relay) == {"Bearer key@aws"}
    assert {call.headers.get("anthropic-workspace-id") for call in relay.calls} == {"wrkspc_aws"}


@pytest.mark.parametrize("name", ["check", "estimate", "preview", "models"])
def test_commands_without_a_database_use_the_aws_client_too(machine: Machine, relay: Relay, name: str) -> None:
    by_aws_key(machine, relay.url)
    job = machine.job("aws")

    ran = machine("models", "--client", "aws") if name == "models" else machine(name, job)

    assert ran.code == 0, ran.err
    assert "warning" not in ran.err
    assert relay.calls
    assert bearers(relay) == {"Bearer key@aws"}


def test_a_detached_job_of_the_aws_client_is_shown_and_collected(machine: Machine, slow: RunningEmulator) -> None:
    job = machine.job("aws")
    with Relay(slow.url) as relay:
        by_aws_key(machine, relay.url)
        sent = machine("run", job, "--detach")
        end_all_batches(slow)
        relay.calls.clear()
        shown = machine("status", job)
        assert relay.calls == []
        collected = machine("collect", job)

    assert (sent.code, shown.code, collected.code) == (0, 0, 0), sent.err + shown.err + collected.err
    assert machine.statuses() == ["succeeded"] * 3
    assert "GET /v1/messages/batches/ID/results" in relay.names()
    assert bearers(relay) == {"Bearer key@aws"}


def test_a_job_of_the_aws_client_is_canceled_with_that_client(machine: Machine, slow: RunningEmulator) -> None:
    job = machine.job("aws")
    with Relay(slow.url) as relay:
        by_aws_key(machine, relay.url)
        machine("run", job, "--detach")
        canceled = machine("cancel", job)
        end_all_batches(slow)
        collected = machine("collect", job)

    assert (canceled.code, collected.code) == (0, 0), canceled.err + collected.err
    assert "POST /v1/messages/batches/ID/cancel" in relay.names()
    assert bearers(relay) == {"Bearer key@aws"}
    assert "canceled" in machine.statuses()


def assert_signed(call: Call, host: str, *, key: str = "AKIDEXAMPLE", region: str = "eu-west-1") -> None:
    """Assert that the signature matches the received call, its body included."""
    credentials = Credentials(key, "a-secret")
    authorization = call.headers["authorization"]
    assert authorization.startswith(f"AWS4-HMAC-SHA256 Credential={key}/"), authorization
    signed = re.search("SignedHeaders=([^,]+)", authorization)
    assert signed is not None
    headers = {name: call.headers[name] for name in signed[1].split(";")}
    request = AWSRequest(method=call.method, url=f"{host}{call.target}", headers=headers, data=call.body)
    request.context["timestamp"] = call.headers["x-amz-date"]
    signer = SigV4Auth(credentials, "aws-external-anthropic", region)
    expected = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    assert authorization.endswith(f"Signature={expected}")
    assert "anthropic-workspace-id" in headers


def test_every_call_of_a_run_with_aws_credentials_is_signed_with_its_body(machine: Machine) -> None:
    with Relay(machine.running.url, key="added@aws") as relay:
        by_aws_signature(machine, relay.url)

        ran = machine("run", machine.job("aws"))

        assert ran.code == 0, ran.err
        assert machine.statuses() == ["succeeded"] * 3
        assert relay.names() == WHOLE_RUN
        for call in relay.calls:
            assert_signed(call, relay.url)


@pytest.mark.parametrize("name", ["check", "preview", "models"])
def test_calls_of_commands_without_a_database_are_signed_too(machine: Machine, name: str) -> None:
    with Relay(machine.running.url, key="added@aws") as relay:
        by_aws_signature(machine, relay.url)

        ran = machine("models", "--client", "aws") if name == "models" else machine(name, machine.job("aws"))

        assert ran.code == 0, ran.err
        assert "warning" not in ran.err
        for call in relay.calls:
            assert_signed(call, relay.url)
        assert relay.calls


def test_calls_with_an_aws_profile_are_signed(machine: Machine) -> None:
    (machine.home / ".aws").mkdir()
    (machine.home / ".aws" / "credentials").write_text(
        "[nightly]\naws_access_key_id = AKIDPROFILE\naws_secret_access_key = a-secret\n"
    )
    with Relay(machine.running.url, key="added@aws") as relay:
        by_aws_signature(machine, relay.url)
        machine.unset("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        machine.set(AWS_PROFILE="nightly", AWS_REGION="us-west-2")  # the SDK keeps what it once found in a region

        ran = machine("models", "--client", "aws")

        assert ran.code == 0, ran.err
        for call in relay.calls:
            assert_signed(call, relay.url, key="AKIDPROFILE", region="us-west-2")


def test_two_aws_accounts_are_two_accounts_when_the_api_does_not_name_their_account(
    machine: Machine, slow: RunningEmulator
) -> None:
    job = machine.job("aws")
    machine.set(BATCH_POLL_SECONDS="0")
    hidden = ("anthropic-organization-id", "anthropic-workspace-id")
    with Relay(slow.url, key="added@first", hidden=hidden) as relay:
        by_aws_signature(machine, relay.url)
        sent = machine("run", job, "--detach")
        relay.key = "added@second"
        machine.set(AWS_ACCESS_KEY_ID="AKIDOTHER", ANTHROPIC_AWS_WORKSPACE_ID="wrkspc_other")
        assert said_in_time(machine, job, "another account")

    assert sent.code == 0, sent.err
    assert len(machine.accounts()) == 2, machine.accounts()


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        pytest.param("ANTHROPIC_AWS_WORKSPACE_ID", ["ANTHROPIC_AWS_WORKSPACE_ID"], id="no workspace"),
        pytest.param("AWS_REGION", ["AWS_REGION", "AWS_DEFAULT_REGION"], id="no region"),
    ],
)
@pytest.mark.parametrize("name", ["run", "preview", "models"])
def test_a_missing_setting_of_the_aws_client_is_named(
    machine: Machine, relay: Relay, name: str, left_out: str, said: list[str]
) -> None:
    by_aws_signature(machine, relay.url)
    machine.unset(left_out)

    ran = machine("models", "--client", "aws") if name == "models" else machine(name, machine.job("aws"))

    assert_refused(ran, "aws", *said)
    assert relay.calls == []


@pytest.mark.parametrize("name", ["run", "preview"])
def test_a_command_without_aws_credentials_says_so(machine: Machine, relay: Relay, name: str) -> None:
    by_aws_signature(machine, relay.url)
    machine.unset("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

    machine.set(AWS_REGION="us-east-2")  # the SDK keeps what it once found in a region

    ran = machine(name, machine.job("aws"))

    assert_refused(ran, "AWS credentials")
    assert relay.calls == []


@pytest.mark.parametrize("name", ["run", "preview", "check"])
def test_a_command_without_boto3_says_which_extra_to_install(machine: Machine, relay: Relay, name: str) -> None:
    job = machine.job("aws")
    by_aws_signature(machine, relay.url)

    ran = apart(machine, name, job, hidden=("boto3", "botocore"))

    if name == "check":
        assert ran.code == 0, ran.err
        assert "[aws]" in ran.err
    else:
        assert_refused(ran, "is not installed: pip install 'batch-pipeline[aws]'")
    assert "credentials" not in ran.err
    assert relay.calls == []


def a_body(path: Path, *, held_back: str | None = None) -> BodyReader:
    path.write_bytes(b'{"requests": []}')
    return BodyReader(path, lambda: held_back)


@pytest.fixture(params=["key", "signature"])
def aws(request: pytest.FixtureRequest, machine: Machine) -> str:
    """Set up an AWS endpoint where no server listens, for both kinds of credentials, and return its address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    {"key": by_aws_key, "signature": by_aws_signature}[request.param](machine, url)
    return url


def test_a_create_that_never_connected_is_proven_not_sent(aws: str, tmp_path: Path) -> None:
    with contextlib.closing(Api.connect(Reach("aws", 10.0))) as client, a_body(tmp_path / "body") as body:
        end = client.create(body, digest(Path(body.name)) or "")

    assert isinstance(end, Rejected), end
    assert end.unreachable


def test_a_create_whose_last_chunk_is_held_back_is_proven_not_sent(aws: str, tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", int(aws.rpartition(":")[2]))),
        contextlib.closing(Api.connect(Reach("aws", 10.0))) as client,
        a_body(tmp_path / "body", held_back="asked to stop") as body,
    ):
        end = client.create(body, digest(Path(body.name)) or "")

    assert isinstance(end, Rejected), end
    assert (end.held_back, end.problem.endswith("asked to stop")) == (True, True)


def test_the_last_chunk_of_a_create_is_not_sent_when_the_driver_is_asked_to_stop(aws: str, tmp_path: Path) -> None:
    size = 32_000_000  # more than waits between two sockets
    stop = threading.Event()
    came: list[int] = []
    (tmp_path / "body").write_bytes(b" " * size)

    def listen(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, contextlib.suppress(ConnectionResetError):
            came.append(len(connection.recv(1_000)))
            stop.set()  # and only now the rest is read
            while data := connection.recv(1 << 20):
                came.append(len(data))

    with (
        socket.create_server(("127.0.0.1", int(aws.rpartition(":")[2]))) as server,
        contextlib.closing(Api.connect(Reach("aws", 2.0))) as client,
        BodyReader(tmp_path / "body", lambda: "asked to stop" if stop.is_set() else None) as body,
    ):
        listener = threading.Thread(target=listen, args=(server,), daemon=True)
        listener.start()
        end = client.create(body, digest(Path(body.name)) or "")
    listener.join()

    assert sum(came) < size
    assert isinstance(end, Rejected), end


# -- client: google --------------------------------------------------------------------------------------------------

GOOGLE_TOKEN = {"access_token": "token@google", "token_type": "Bearer", "expires_in": 3600}


def by_service_account(machine: Machine, relay: Relay) -> None:
    """Set the variables of the Google client with the file of a service account, whose tokens the relay gives."""
    private = rsa.generate_private_key(65537, 2048)
    file = machine.home / "service-account.json"
    account = {
        "type": "service_account",
        "project_id": "project-1",
        "private_key_id": "1",
        "private_key": private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
        "client_email": "nightly@project-1.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": f"{relay.url}/token",
    }
    file.write_bytes(orjson.dumps(account))
    machine.set(
        GOOGLE_APPLICATION_CREDENTIALS=str(file),
        ANTHROPIC_GOOGLE_CLOUD_PROJECT="project-1",
        ANTHROPIC_GOOGLE_CLOUD_WORKSPACE_ID="wrkspc_google",
        ANTHROPIC_GOOGLE_CLOUD_BASE_URL=f"{relay.url}{relay.prefix}",
    )


@pytest.fixture
def google(running: RunningEmulator) -> Iterator[Relay]:  # noqa: F811
    """Run a gateway like Google's, with the path of a workspace, that also gives tokens."""
    path = "/v1/projects/project-1/locations/global/workspaces/wrkspc_google/invoke"
    with Relay(running.url, prefix=path, own={"/token": GOOGLE_TOKEN}) as relay:
        yield relay


def test_a_job_of_the_google_client_runs_with_a_service_account(machine: Machine, google: Relay) -> None:
    by_service_account(machine, google)
    machine.set(ANTHROPIC_BASE_URL="http://127.0.0.1:9", ANTHROPIC_API_KEY="of-another-client")

    ran = machine("run", machine.job("google"))

    assert ran.code == 0, ran.err
    assert machine.statuses() == ["succeeded"] * 3
    assert google.names() == {"POST /token"} | {name.replace("/v1", f"{google.prefix}/v1", 1) for name in WHOLE_RUN}
    assert {call.headers.get("authorization") for call in google.calls if call.target != "/token"} == {
        "Bearer token@google"
    }


@pytest.mark.parametrize("name", ["check", "preview", "models"])
def test_commands_without_a_database_use_the_google_client_too(machine: Machine, google: Relay, name: str) -> None:
    by_service_account(machine, google)

    ran = machine("models", "--client", "google") if name == "models" else machine(name, machine.job("google"))

    assert ran.code == 0, ran.err
    assert "warning" not in ran.err
    assert {call.headers.get("authorization") for call in google.calls if call.target != "/token"} == {
        "Bearer token@google"
    }


def test_a_whole_run_uses_one_google_token(machine: Machine, google: Relay) -> None:
    by_service_account(machine, google)

    machine("run", machine.job("google"))

    assert [call.target for call in google.calls].count("/token") == 1


@pytest.mark.parametrize("name", ["run", "preview", "check"])
def test_a_command_without_google_auth_says_which_extra_to_install(machine: Machine, google: Relay, name: str) -> None:
    by_service_account(machine, google)
    job = machine.job("google")

    ran = apart(machine, name, job, hidden=("google",))

    if name == "check":
        assert ran.code == 0, ran.err
        assert "google" in ran.err.partition("warning")[2]
    else:
        assert_refused(ran, "the library google-auth is not installed: pip install 'batch-pipeline[google]'")
    assert "credentials" not in ran.err
    assert google.calls == []


@pytest.mark.parametrize("name", ["run", "preview", "models", "check"])
def test_a_command_without_google_credentials_says_so(machine: Machine, google: Relay, name: str) -> None:
    by_service_account(machine, google)
    machine.unset("GOOGLE_APPLICATION_CREDENTIALS")

    ran = machine("models", "--client", "google") if name == "models" else machine(name, machine.job("google"))

    if name == "check":
        assert ran.code == 0, ran.err
        assert "credentials" in ran.err.partition("warning")[2]
    else:
        assert_refused(ran, "no credentials")
    assert google.calls == []


@pytest.mark.parametrize("name", ["run", "preview", "models"])
def test_a_missing_google_workspace_is_named(machine: Machine, google: Relay, name: str) -> None:
    by_service_account(machine, google)
    machine.unset("ANTHROPIC_GOOGLE_CLOUD_BASE_URL", "ANTHROPIC_GOOGLE_CLOUD_WORKSPACE_ID")

    ran = machine("models", "--client", "google") if name == "models" else machine(name, machine.job("google"))

    assert_refused(ran, "ANTHROPIC_GOOGLE_CLOUD_WORKSPACE_ID")


def test_a_token_request_that_google_refuses_is_reported(machine: Machine) -> None:
    with Relay(machine.running.url) as relay:  # which knows no /token
        by_service_account(machine, relay)

        ran = machine("run", machine.job("google"))

    assert_refused(ran, "no credentials")
    assert relay.names() == {"POST /token"}


def test_a_create_without_a_token_is_proven_not_sent(machine: Machine, tmp_path: Path) -> None:
    with (
        Relay(machine.running.url) as relay,
        a_body(tmp_path / "body") as body,
    ):
        by_service_account(machine, relay)
        with contextlib.closing(Api.connect(Reach("google", 10.0))) as client:
            end = client.create(body, digest(Path(body.name)) or "")

    assert isinstance(end, Rejected), end


# -- jobs of several clients in one database -------------------------------------------------------------------------


def test_one_sweep_collects_each_job_with_its_own_client(machine: Machine, slow: RunningEmulator) -> None:
    with Relay(slow.url) as ours, Relay(slow.url) as at_aws:
        machine.set(ANTHROPIC_BASE_URL=ours.url, ANTHROPIC_API_KEY="key@ours")
        machine.set(ANTHROPIC_AWS_BASE_URL=at_aws.url, ANTHROPIC_AWS_API_KEY="key@aws", ANTHROPIC_AWS_WORKSPACE_ID="w")
        for client in ("default", "aws"):
            assert machine("run", machine.job(client, f"of_{client}"), "--detach").code == 0
        end_all_batches(slow)

        swept = machine("collect", "--json")

    assert swept.code == 0, swept.err
    events = [orjson.loads(line) for line in swept.out.splitlines()]
    assert {event["job"]: event["problem"] for event in events if event["event"] == "swept"} == {
        "of_default": None,
        "of_aws": None,
    }
    assert machine.statuses("of_default") == machine.statuses("of_aws") == ["succeeded"] * 3
    assert (bearers(ours), bearers(at_aws)) == ({"Bearer key@ours"}, {"Bearer key@aws"})
    assert len(machine.accounts()) == 2


def test_a_client_that_cannot_be_created_does_not_stop_the_sweep_of_other_jobs(
    machine: Machine, slow: RunningEmulator
) -> None:
    machine.set(ANTHROPIC_AWS_BASE_URL=slow.url, ANTHROPIC_AWS_API_KEY="key@aws", ANTHROPIC_AWS_WORKSPACE_ID="w")
    machine.set(ANTHROPIC_BASE_URL=slow.url, ANTHROPIC_API_KEY="key@ours")
    for client in ("aws", "default"):
        assert machine("run", machine.job(client, f"of_{client}"), "--detach").code == 0
    end_all_batches(slow)
    machine.unset("ANTHROPIC_AWS_WORKSPACE_ID")

    swept = machine("collect")

    assert swept.code == 3, swept.err
    assert machine.statuses("of_default") == ["succeeded"] * 3
    assert machine.statuses("of_aws") == []
    assert "ANTHROPIC_AWS_WORKSPACE_ID" in swept.err


def test_a_job_with_a_new_client_leaves_batches_of_the_other_account_alone(
    machine: Machine, slow: RunningEmulator
) -> None:
    machine.set(ANTHROPIC_BASE_URL=slow.url, ANTHROPIC_API_KEY="key@ours")
    machine.set(ANTHROPIC_AWS_BASE_URL=slow.url, ANTHROPIC_AWS_API_KEY="key@aws", ANTHROPIC_AWS_WORKSPACE_ID="w")
    assert machine("run", machine.job("default"), "--detach").code == 0

    by_the_other = machine("run", machine.job("aws"))
    end_all_batches(slow)
    by_the_first = machine("run", machine.job("default"))

    assert by_the_other.code == 3, by_the_other.err
    assert "sent by another account" in by_the_other.err
    assert by_the_first.code == 0, by_the_first.err
    assert machine.statuses() == ["succeeded"] * 3
    assert len(list(slow.emulator.accepted())) == 3


# -- the way there: gateways, proxies, certificates, timeouts --------------------------------------------------------


@pytest.mark.parametrize("client", ["default", "aws"])
def test_a_whole_run_with_its_results_works_over_a_gateway_with_a_path(machine: Machine, client: str) -> None:
    job = machine.job(client)
    with Relay(machine.running.url, prefix="/gateway") as gateway:
        if client == "aws":
            by_aws_key(machine, f"{gateway.url}/gateway")
        else:
            machine.set(ANTHROPIC_BASE_URL=f"{gateway.url}/gateway/", ANTHROPIC_API_KEY="emulated")

        ran = machine("run", job)

    assert ran.code == 0, ran.err
    assert machine.statuses() == ["succeeded"] * 3
    assert gateway.names() == {name.replace("/v1", "/gateway/v1", 1) for name in WHOLE_RUN}


def test_results_are_read_from_the_gateway_although_results_url_names_another_host(
    machine: Machine, tmp_path: Path
) -> None:
    elsewhere = {"on": "retrieve", "do": "results_url", "host": "http://127.0.0.1:9"}
    with (
        start(tmp_path / "elsewhere", faults=[elsewhere]) as emulator,
        Relay(emulator.url, prefix="/gateway") as gateway,
    ):
        machine.set(ANTHROPIC_BASE_URL=f"{gateway.url}/gateway", ANTHROPIC_API_KEY="emulated")

        ran = machine("run", machine.job("default"))

    assert ran.code == 0, ran.err
    assert machine.statuses() == ["succeeded"] * 3
    assert "GET /gateway/v1/messages/batches/ID/results" in gateway.names()


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_run_goes_through_the_proxy_that_the_environment_names(machine: Machine, relay: Relay, variable: str) -> None:
    machine.set(ANTHROPIC_BASE_URL="http://api.beyond-the-proxy.invalid", ANTHROPIC_API_KEY="emulated")
    machine.set(**{variable: relay.url})

    ran = machine("run", machine.job("default"))

    assert ran.code == 0, ran.err
    assert machine.statuses() == ["succeeded"] * 3
    assert relay.names() == WHOLE_RUN
    assert all(call.target.startswith("http://api.beyond-the-proxy.invalid/v1/") for call in relay.calls)


def test_a_preview_goes_through_the_proxy_too(machine: Machine, relay: Relay) -> None:
    machine.set(ANTHROPIC_BASE_URL="http://api.beyond-the-proxy.invalid", ANTHROPIC_API_KEY="emulated")
    machine.set(HTTP_PROXY=relay.url)

    ran = machine("preview", machine.job("default"))

    assert ran.code == 0, ran.err
    assert relay.names() == {"POST /v1/messages"}


@pytest.mark.parametrize("hosts", ["*", "127.0.0.1", "example.com,127.0.0.1"])
def test_an_address_in_no_proxy_is_reached_without_one(machine: Machine, relay: Relay, hosts: str) -> None:
    machine.set(ANTHROPIC_API_KEY="emulated", HTTP_PROXY=relay.url, NO_PROXY=hosts)

    ran = machine("run", machine.job("default"))

    assert ran.code == 0, ran.err
    assert machine.statuses() == ["succeeded"] * 3
    assert relay.calls == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a self-signed certificate of 127.0.0.1 and its key."""
    made_in = tmp_path_factory.mktemp("certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "relay")])
    now = datetime.now(UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (made_in / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (made_in / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made_in


@pytest.fixture
def tls(running: RunningEmulator, certificate: Path) -> Iterator[Relay]:  # noqa: F811
    """Run a TLS endpoint with an untrusted certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    with Relay(running.url, tls=context) as relay:
        yield relay


@pytest.mark.parametrize("name", ["run", "preview"])
def test_a_certificate_in_ssl_cert_file_is_trusted(machine: Machine, tls: Relay, certificate: Path, name: str) -> None:
    machine.set(ANTHROPIC_BASE_URL=tls.url, ANTHROPIC_API_KEY="emulated")
    machine.set(SSL_CERT_FILE=str(certificate / "cert.pem"))

    ran = machine(name, machine.job("default"))

    assert ran.code == 0, ran.err
    assert tls.names() == (WHOLE_RUN if name == "run" else {"POST /v1/messages"})


@pytest.mark.parametrize("variable", [None, "REQUESTS_CA_BUNDLE"])
def test_an_untrusted_certificate_is_refused(
    machine: Machine, tls: Relay, certificate: Path, variable: str | None
) -> None:
    machine.set(ANTHROPIC_BASE_URL=tls.url, ANTHROPIC_API_KEY="emulated")
    if variable is not None:  # which is read by another library
        machine.set(**{variable: str(certificate / "cert.pem")})

    ran = machine("run", machine.job("default"))

    assert_refused(ran, tls.url, "CERTIFICATE_VERIFY_FAILED", "nothing was sent")
    assert tls.calls == []


def test_a_missing_ssl_cert_file_is_refused(machine: Machine, tls: Relay, tmp_path: Path) -> None:
    machine.set(ANTHROPIC_BASE_URL=tls.url, ANTHROPIC_API_KEY="emulated", SSL_CERT_FILE=str(tmp_path / "none.pem"))

    ran = apart(
        machine, "run", machine.job("default")
    )  # for the SDK's client, half made, is loud when it is cleared up

    assert_refused(ran, "SSL_CERT_FILE")


def test_tls_goes_through_the_tunnel_of_a_proxy(machine: Machine, relay: Relay, tls: Relay, certificate: Path) -> None:
    machine.set(ANTHROPIC_BASE_URL=tls.url, ANTHROPIC_API_KEY="emulated", HTTPS_PROXY=relay.url)
    machine.set(SSL_CERT_FILE=str(certificate / "cert.pem"))

    ran = machine("run", machine.job("default"))

    assert ran.code == 0, ran.err
    assert tls.names() == WHOLE_RUN
    assert set(relay.tunnels) == {tls.url.removeprefix("https://")}
    assert relay.calls == []


@pytest.mark.parametrize("client", ["default", "aws"])
def test_every_call_has_the_timeout_of_the_environment(machine: Machine, relay: Relay, client: str) -> None:
    job = machine.job(client)
    by_aws_key(machine, relay.url)
    machine.set(ANTHROPIC_BASE_URL=relay.url, ANTHROPIC_API_KEY="emulated", BATCH_TIMEOUT_SECONDS="7.5")

    for name in ("run", "preview"):
        assert machine(name, job).code == 0

    assert {"POST /v1/messages", *WHOLE_RUN} == relay.names()
    assert {call.headers["x-stainless-read-timeout"] for call in relay.calls} == {"7.5"}


def test_a_call_to_an_api_that_never_answers_ends_after_the_timeout(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        machine.set(ANTHROPIC_BASE_URL=f"http://127.0.0.1:{silent.getsockname()[1]}", ANTHROPIC_API_KEY="emulated")
        machine.set(BATCH_TIMEOUT_SECONDS="1")

        ran = machine("preview", machine.job("default"))

    assert_refused(ran, "no answer from http://127.0.0.1", "no row was answered")
