"""Measure the CPU time and memory of the emulator for a full batch: `python -m benchmarks.emulator_speed [REQUESTS]`.

The emulator runs in a process of its own, so that it is measured alone. Another thread calls it all the time, to see
how long other calls have to wait.
"""

import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import orjson

SERVE = (
    "import sys; from pathlib import Path; from pipeline.emulator import serve; "
    "serve(Path(sys.argv[1]), port=0, processing_seconds=0)"
)
HEADERS = {"x-api-key": "emulated", "anthropic-version": "2026-10-21", "content-type": "application/json"}
TEXT = "The customer writes that the invoice of last month was charged twice. " * 14


def body(requests: int) -> bytes:
    """Return the body of a create call with so many requests of about 1.1 kB each."""
    return orjson.dumps({"requests": [request(number) for number in range(requests)]})


def request(number: int) -> dict[str, object]:
    content = f"Summarize in one sentence. <ticket>Ticket {number}. {TEXT}</ticket>"
    params = {"model": "claude-haiku-4-5", "max_tokens": 300, "messages": [{"role": "user", "content": content}]}
    return {"custom_id": f"row-{number}", "params": params}


def slowest_call(url: str, stop: threading.Event, slowest: list[float]) -> None:
    """List batches repeatedly until `stop` is set; keep the longest time of a call in `slowest[0]`."""
    with httpx2.Client(headers=HEADERS, timeout=60) as client:
        while not stop.wait(0.02):
            begun = time.perf_counter()
            client.get(f"{url}/v1/messages/batches?limit=1").raise_for_status()
            slowest[0] = max(slowest[0], time.perf_counter() - begun)


def lines(client: httpx2.Client, url: str) -> Iterator[bytes]:
    with client.stream("GET", url) as response:
        yield from response.iter_bytes()


def once(client: httpx2.Client, url: str, content: bytes) -> tuple[float, float, float, int]:
    """Return the seconds of create, processing and download, and the number of lines downloaded."""
    begun = time.perf_counter()
    batch = client.post(f"{url}/v1/messages/batches", content=content).raise_for_status().json()
    created = time.perf_counter()
    while batch["processing_status"] != "ended":
        time.sleep(0.05)
        batch = client.get(f"{url}/v1/messages/batches/{batch['id']}").json()
    ended = time.perf_counter()
    number = 1 + sum(chunk.count(b"\n") for chunk in lines(client, batch["results_url"]))
    return created - begun, ended - created, time.perf_counter() - ended, number


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", SERVE, str(Path(folder) / "data")]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert server.stderr
        url = server.stderr.readline().split()[2].rstrip(",")
        # after the start of the server, because a child's peak RSS starts at that of its parent
        content = body(requests)
        stop, slowest = threading.Event(), [0.0]
        watcher = threading.Thread(target=slowest_call, args=(url, stop, slowest), daemon=True)
        watcher.start()
        with httpx2.Client(headers=HEADERS, timeout=600) as client:
            create, process, download, number = once(client, url, content)
        stop.set()
        watcher.join()
        server.send_signal(signal.SIGTERM)
        code = server.wait()
        server.stderr.close()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    sys.stdout.write(
        f"{requests} requests, body {len(content) / 1e6:.1f} MB, {number} result lines, exit code {code}\n"
        f"wall: create {create:.2f} s, processing {process:.2f} s, download {download:.2f} s\n"
        f"CPU of the emulator: {used.ru_utime + used.ru_stime:.2f} s, peak RSS {used.ru_maxrss / 1024:.0f} MB\n"
        f"slowest other call meanwhile: {slowest[0] * 1000:.0f} ms\n"
    )


if __name__ == "__main__":
    main()
