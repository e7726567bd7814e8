"""The HTTP server of the emulator, its data folder across restarts and crashes, and its control calls."""

import gzip
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import orjson
import pytest

from pipeline.emulator import Clock, Emulator, EmulatorError, RunningEmulator, serve, start
from tests.emulator.builders import client_of, http_of, params, requests, result_lines

HEADERS = {"x-api-key": "emulated", "anthropic-version": "2026-10-21"}
BATCHES = "/v1/messages/batches"
SERVE = (
    "import sys; from pathlib import Path; from pipeline.emulator import serve; "
    "serve(Path(sys.argv[1]), port=0, processing_seconds=float(sys.argv[2]))"
)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningEmulator]:
    with start(tmp_path / "data") as running:
        yield running


@pytest.fixture
def http(running: RunningEmulator) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=running.url, headers=HEADERS) as http:
        yield http


def create(http: httpx2.Client, number: int = 2) -> str:
    answer = http.post(BATCHES, content=orjson.dumps({"requests": requests(number)})).raise_for_status()
    batch_id: str = answer.json()["id"]
    return batch_id


# start and stop


def test_the_emulator_starts_and_stops_quickly_and_releases_its_folder(tmp_path: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    begun = time.monotonic()
    running = start(tmp_path)
    started = time.monotonic() - begun
    httpx2.get(f"{running.url}/v1/models", headers=HEADERS).raise_for_status()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    running.stop()
    running.stop()

    assert started < 1
    assert time.monotonic() - begun < 2
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(running.url)
    Emulator(tmp_path).close()


def test_the_emulator_listens_on_this_machine_only(running: RunningEmulator) -> None:
    assert running.url.startswith("http://127.0.0.1:")
    assert running._socket.getsockname()[0] == "127.0.0.1"


def test_a_port_in_use_is_refused_with_one_sentence(running: RunningEmulator, tmp_path: Path) -> None:
    port = int(running.url.rpartition(":")[2])

    with pytest.raises(EmulatorError, match=rf"^port {port} on 127\.0\.0\.1 cannot be used \(Address already in use\)"):
        start(tmp_path / "other", port=port)
    with pytest.raises(EmulatorError, match=f"port {port}"):
        serve(tmp_path / "other", port=port, processing_seconds=0)


def test_a_folder_in_use_is_refused_with_the_process_that_uses_it(running: RunningEmulator) -> None:
    folder = running.emulator.data

    with pytest.raises(EmulatorError) as refused:
        Emulator(folder)

    assert str(refused.value) == (
        f"the data folder {folder} is used by another emulator (pid {os.getpid()}, {running.url}); "
        "use that one, stop it, or choose another folder"
    )


def test_the_folder_is_private(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)

    with Emulator(tmp_path / "data") as emulator:
        assert stat.S_IMODE(emulator.data.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(EmulatorError, match="cannot be used"):
        Emulator(tmp_path / "file")


def test_a_stop_does_not_wait_for_a_delayed_answer(tmp_path: Path) -> None:
    with start(tmp_path, faults=[{"on": "list", "do": "delay", "seconds": 60}]) as running:
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.get(running.url + BATCHES, headers=HEADERS, timeout=0.2)
        begun = time.monotonic()

    assert time.monotonic() - begun < 2


# restart and crash


def test_the_emulator_continues_after_a_restart(tmp_path: Path) -> None:
    with Emulator(tmp_path, processing_seconds=3600) as before:
        batch = client_of(before).messages.batches.create(requests=requests(2))
        before.clock.advance(10 * 24 * 3600)

    with Emulator(tmp_path, processing_seconds=3600) as after:
        ended = client_of(after).messages.batches.retrieve(batch.id)
        assert (after.clock.now() - batch.created_at).days == 10
        assert ended.created_at == batch.created_at
        assert ended.processing_status == "ended"
        assert len(result_lines(client_of(after), batch.id)) == 2


def test_a_clock_that_is_passed_in_is_used_unchanged(tmp_path: Path) -> None:
    clock = Clock(86400)

    with Emulator(tmp_path, clock=clock) as emulator:
        assert emulator.clock is clock
        with pytest.raises(ValueError, match="cannot be advanced by"):
            clock.advance(-1)


def serving(data: Path, processing_seconds: float) -> tuple[subprocess.Popen[str], str]:
    """Run `serve` in another process; return the process and the first line that it printed."""
    command = [sys.executable, "-c", SERVE, str(data), str(processing_seconds)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    return process, process.stderr.readline()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_in_the_foreground_the_server_prints_its_address_and_stops_cleanly(
    tmp_path: Path, ending: signal.Signals
) -> None:
    process, said = serving(tmp_path, 0)
    url = said.split()[2].rstrip(",")
    with process:
        status = httpx2.get(f"{url}/v1/models", headers=HEADERS).status_code
        process.send_signal(ending)
        code = process.wait(10)
        assert process.stderr is not None
        rest = process.stderr.read()

    assert said == (
        f"emulator at {url}, data in {tmp_path}; "
        f"export ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY=emulated; Ctrl-C stops it\n"
    )
    assert (status, code, rest) == (200, 0, "")


def test_accepted_batches_survive_kill_9(tmp_path: Path) -> None:
    process, said = serving(tmp_path, 3600)
    with process, httpx2.Client(base_url=said.split()[2].rstrip(","), headers=HEADERS) as http:
        batch_id = create(http, 50)
        process.kill()
        process.wait(10)

    with Emulator(tmp_path) as emulator:
        lines = result_lines(client_of(emulator), batch_id)

    assert {line["custom_id"] for line in lines} == {f"row-{n}" for n in range(50)}


def test_half_written_data_of_a_crash_is_removed(tmp_path: Path) -> None:
    with Emulator(tmp_path, processing_seconds=3600) as before:
        batch = client_of(before).messages.batches.create(requests=requests(2))
    (tmp_path / "uploads" / "half").write_bytes(b"{")
    (tmp_path / "batches" / "msgbatch_unknown").mkdir()
    (tmp_path / "batches" / batch.id / "results.tmp").write_bytes(b'{"custom')
    with (tmp_path / "log.ndjson").open("ab") as log:
        log.write(b'{"n": 2, "ti')

    with Emulator(tmp_path) as after:
        lines = result_lines(client_of(after), batch.id)
        numbers = [entry["n"] for entry in after.log()]

    assert len(lines) == 2
    assert list((tmp_path / "uploads").iterdir()) == []
    assert [path.name for path in (tmp_path / "batches").iterdir()] == [batch.id]
    assert numbers == [1, 2, 3]


# broken connections


def test_an_upload_that_breaks_off_is_not_accepted(running: RunningEmulator, http: httpx2.Client) -> None:
    body = orjson.dumps({"requests": requests(3)})
    head = f"POST {BATCHES} HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\nanthropic-version: 2026-10-21\r\n"
    with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2]))) as raw:
        raw.sendall(f"{head}content-length: {len(body) + 1}\r\n\r\n".encode() + body)
        raw.shutdown(socket.SHUT_WR)
        answer = raw.recv(1000)

    _until(lambda: len(list(running.emulator.log())) == 1)
    assert b"200 OK" not in answer
    assert list(running.emulator.accepted()) == []
    assert [entry["status"] for entry in running.emulator.log()] == [None]
    assert create(http)


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ({"on": "create", "do": "drop_after"}, httpx2.RemoteProtocolError),
        ({"on": "create", "do": "drop_before"}, httpx2.RemoteProtocolError),
    ],
    ids=["accepted", "not accepted"],
)
def test_a_dropped_connection_gives_no_answer(
    running: RunningEmulator, http: httpx2.Client, rule: dict[str, str], error: type[Exception]
) -> None:
    running.emulator.add_fault(rule)

    with pytest.raises(error, match="Server disconnected without sending a response"):
        create(http)

    assert len(list(running.emulator.accepted())) == (2 if rule["do"] == "drop_after" else 0)


@pytest.mark.parametrize(
    ("end", "error"),
    [("clean", None), ("cut", httpx2.RemoteProtocolError), ("reset", httpx2.ReadError)],
    ids=["clean", "cut", "reset"],
)
def test_a_download_breaks_where_the_fault_says(
    running: RunningEmulator, http: httpx2.Client, end: str, error: type[Exception] | None
) -> None:
    batch_id = create(http, 40)
    running.emulator.wait_idle()
    running.emulator.add_fault(on="results", do="truncate", end=end, times=1)

    received, raised = b"", None
    with http.stream("GET", f"{BATCHES}/{batch_id}/results") as response:
        try:
            for chunk in response.iter_bytes():
                received += chunk
        except httpx2.TransportError as exc:
            raised = type(exc)
    whole = http.get(f"{BATCHES}/{batch_id}/results").content

    assert raised is error
    assert end == "reset" or received.count(b"\n") == 19  # a reset may take what was on its way
    assert whole.count(b"\n") == 39


def test_a_delayed_answer_runs_into_the_clients_timeout(running: RunningEmulator) -> None:
    running.emulator.add_fault(on="create", do="delay", seconds=60)
    client = anthropic.Anthropic(base_url=running.url, api_key="k", max_retries=0, timeout=0.3)

    with client, pytest.raises(anthropic.APITimeoutError):
        client.messages.batches.create(requests=requests(2))

    assert len(list(running.emulator.accepted())) == 2


# the in-process transport


def test_an_error_while_the_body_is_read_reaches_the_caller_and_nothing_is_accepted(emulator: Emulator) -> None:
    body = orjson.dumps({"requests": requests(2)})

    def chunks() -> Iterator[bytes]:
        yield body[:100]
        raise InterruptedError("held back")

    with pytest.raises(InterruptedError, match="held back"):
        http_of(emulator).post(BATCHES, content=chunks(), headers={"content-length": str(len(body))})

    assert list(emulator.accepted()) == []
    assert list((emulator.data / "uploads").iterdir()) == []


def test_a_body_shorter_than_its_content_length_is_a_broken_upload(emulator: Emulator) -> None:
    body = orjson.dumps({"requests": requests(2)})

    with pytest.raises(httpx2.LocalProtocolError, match="Too little data for declared Content-Length"):
        http_of(emulator).post(BATCHES, content=iter([body]), headers={"content-length": str(len(body) + 1)})

    assert list(emulator.accepted()) == []


# other calls


def test_a_compressed_message_call_is_accepted_in_gzip_only(http: httpx2.Client) -> None:
    body = orjson.dumps(params())

    packed = http.post("/v1/messages", content=gzip.compress(body), headers={"content-encoding": "gzip"})
    counted = http.post(
        "/v1/messages/count_tokens",
        content=gzip.compress(orjson.dumps(params(max_tokens=None))),
        headers={"content-encoding": "gzip"},
    )
    brotli = http.post("/v1/messages", content=body, headers={"content-encoding": "br"})
    broken = http.post("/v1/messages", content=body, headers={"content-encoding": "gzip"})

    assert (packed.status_code, counted.status_code) == (200, 200)
    assert brotli.json()["error"]["details"]["error_code"] == "request_body_encoding_unsupported"
    assert broken.json()["error"]["details"]["error_code"] == "request_body_encoding_invalid"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("PUT", BATCHES, 405), ("GET", "/", 404), ("GET", "/_emulator/nothing", 404)],
    ids=["path", "method", "root", "control"],
)
def test_an_unknown_path_gets_an_error_of_the_api(http: httpx2.Client, method: str, path: str, status: int) -> None:
    answer = http.request(method, path)

    assert answer.status_code == status
    assert answer.json()["type"] == "error"


def test_models_can_be_listed_by_lifecycle(running: RunningEmulator) -> None:
    with anthropic.Anthropic(base_url=running.url, api_key="k") as client:
        default = {model.lifecycle for model in client.models.list(limit=1000)}
        retired = list(client.models.list(lifecycle=["retired"], limit=2))
        both = {model.lifecycle for model in client.models.list(lifecycle=["retired", "deprecated"])}

    assert default == {"active", "deprecated"}
    assert both == {"retired", "deprecated"}
    assert len(retired) == 6
    assert {model.lifecycle for model in retired} == {"retired"}
    assert all(model.retires_at for model in retired)


def test_tool_calls_and_thinking_are_streamed(running: RunningEmulator) -> None:
    schema: Any = {"type": "object", "properties": {"ship": {"type": "string"}}, "required": ["ship"]}
    with (
        anthropic.Anthropic(base_url=running.url, api_key="k") as client,
        client.messages.stream(
            model="claude-opus-4-8",
            max_tokens=300,
            messages=[{"role": "user", "content": "Name a ship."}],
            thinking={"type": "adaptive", "display": "summarized"},
            tools=[{"name": "look", "input_schema": schema}],
            tool_choice={"type": "any"},
        ) as stream,
    ):
        message = stream.get_final_message()

    assert [block.type for block in message.content] == ["thinking", "tool_use"]
    assert message.content[0].to_dict()["signature"] == "ZW11bGF0ZWQ="
    assert message.content[1].to_dict()["input"] == {"ship": "[emulated] Name a ship."}
    assert message.stop_reason == "tool_use"


# control calls


def test_the_clock_is_read_and_advanced_over_http_without_a_key(running: RunningEmulator) -> None:
    url = f"{running.url}/_emulator/clock"

    before = httpx2.get(url).json()
    after = httpx2.post(url, json={"advance_seconds": 90}).json()
    refused = [httpx2.post(url, content=body).status_code for body in (b"", b"[]", b'{"advance_seconds": -1}')]

    assert before["offset_seconds"] == 0
    assert after["offset_seconds"] == 90
    assert before["now"] < after["now"] <= running.emulator.clock.now().isoformat()
    assert refused == [400, 400, 400]


def test_advancing_the_clock_ends_a_batch_at_once(tmp_path: Path) -> None:
    running = start(tmp_path, processing_seconds=3600)
    with running, httpx2.Client(base_url=running.url, headers=HEADERS) as http:
        batch_id = create(http)
        http.post("/_emulator/clock", json={"advance_seconds": 3600})
        running.emulator.wait_idle()

        assert http.get(f"{BATCHES}/{batch_id}").json()["processing_status"] == "ended"


def test_faults_are_added_listed_and_cleared_over_http(http: httpx2.Client) -> None:
    one = {"on": "list", "do": "status", "status": 500}
    two = {"on": "item", "do": "expire", "share": 0.1}

    added = [http.post("/_emulator/faults", json=body).json() for body in (one, [two], {"faults": [one, two]})]
    listed = http.get("/_emulator/faults").json()
    broken = http.get(BATCHES).status_code
    cleared = http.delete("/_emulator/faults").json()

    assert added == [{"faults": 1}, {"faults": 2}, {"faults": 4}]
    assert listed == {"faults": [one, two, one, two]}
    assert broken == 500
    assert cleared == {"faults": 0}
    assert http.get(BATCHES).status_code == 200


def test_log_accepted_and_audit_are_read_over_http(running: RunningEmulator, http: httpx2.Client) -> None:
    create(http, 1200)
    running.emulator.wait_idle()

    log = [orjson.loads(line) for line in http.get("/_emulator/log").text.splitlines()]
    accepted = [orjson.loads(line) for line in http.get("/_emulator/accepted").text.splitlines()]
    audit = http.get("/_emulator/audit").json()

    assert log == list(running.emulator.log())
    assert [entry["path"] for entry in log] == [BATCHES]  # the control surface is not logged
    assert accepted == list(running.emulator.accepted())
    assert len(accepted) == 1200
    assert audit == running.emulator.audit()


def test_wait_idle_raises_after_its_timeout(running: RunningEmulator, http: httpx2.Client) -> None:
    with running.emulator._worker._work_lock:  # nothing is processed meanwhile
        create(http)
        with pytest.raises(TimeoutError, match=r"after 0\.01 s"):
            running.emulator.wait_idle(0.01)
    running.emulator.wait_idle()
