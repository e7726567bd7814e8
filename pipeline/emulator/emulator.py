"""The emulator without sockets: a call in, a reply out; for HTTP, for the in-process transport, for tests."""

import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.emulator import audit, batches, files, messages, models
from pipeline.emulator.caching import PromptCache
from pipeline.emulator.clock import Clock, wire_time
from pipeline.emulator.control import control
from pipeline.emulator.core import Core
from pipeline.emulator.errors import ApiError
from pipeline.emulator.faults import CALL_FAULTS, CallFacts, Fault, FaultBook, parse_faults
from pipeline.emulator.processing import process
from pipeline.emulator.settings import Settings
from pipeline.emulator.store import Store
from pipeline.emulator.validate import VERSIONS
from pipeline.emulator.wire import ORGANIZATION_ID, Call, Reply, derived_id, error_reply, http_date, random_id

if TYPE_CHECKING:
    from pipeline.emulator.transport import Transport

CREATE_PATH = "/v1/messages/batches"
DEFAULT_WORKSPACE = "default"
WORKER_PAUSE_SECONDS = 0.5  #: the longest the worker sleeps; real time moves the clock too
#: (method, path, operation as fault rules name it, function)
ROUTES: list[tuple[str, re.Pattern[str], str, Callable[..., Reply]]] = [
    (method, re.compile(path), operation, function)
    for method, path, operation, function in (
        ("POST", CREATE_PATH, "create", batches.create),
        ("GET", CREATE_PATH, "list", batches.list_batches),
        ("GET", f"{CREATE_PATH}/([^/]+)", "retrieve", batches.retrieve),
        ("DELETE", f"{CREATE_PATH}/([^/]+)", "delete", batches.delete),
        ("POST", f"{CREATE_PATH}/([^/]+)/cancel", "cancel", batches.cancel),
        ("GET", f"{CREATE_PATH}/([^/]+)/results", "results", batches.results),
        ("POST", "/v1/messages", "messages", messages.create),
        ("POST", "/v1/messages/count_tokens", "count_tokens", messages.count_tokens),
        ("POST", "/v1/files", "files_create", files.create),
        ("GET", "/v1/files", "files_list", files.list_files),
        ("GET", "/v1/files/([^/]+)", "files_retrieve", files.retrieve),
        ("DELETE", "/v1/files/([^/]+)", "files_delete", files.delete),
        ("GET", "/v1/files/([^/]+)/content", "files_content", files.content),
        ("GET", "/v1/models", "models", models.list_models),
        ("GET", "/v1/models/([^/]+)", "models", models.get_model),
    )
]


class Emulator:
    """The Messages, Message Batches and Files API on a data folder.

    data: made if it is not there; one emulator at a time, else EmulatorError. processing_seconds: from create to ended,
    by the clock. clock: by default real time, plus what this folder's was advanced by. faults: rules as Fault
    or plain dicts. settings: switches for behaviour that is not known for certain.

    Work that is due is done at the start of each call and in `do_due_work`, or by `start_worker`'s thread.
    """

    def __init__(
        self,
        data: Path,
        *,
        processing_seconds: float = 0,
        clock: Clock | None = None,
        faults: Iterable[Fault | Mapping[str, Any]] | None = None,
        settings: Settings | None = None,
    ) -> None:
        rules = parse_faults(list(faults or ()))
        self.settings = settings or Settings()
        self._store = Store(Path(data))
        self.clock = clock or Clock(float(self._store.load("offset_seconds") or 0))
        self._core = Core(
            self._store,
            self.clock,
            self.settings,
            FaultBook(rules),
            PromptCache(self.settings.cache_minimum_tokens),
            processing_seconds,
            self._wake,
        )
        self._calls = self._store.log_size()
        self._log_lock = threading.Lock()
        self._work_lock = threading.Lock()  # one batch at a time, whoever works
        self._moved = threading.Condition()
        self._stopping = False
        self._worker: threading.Thread | None = None
        self.clock.subscribe(self._clock_advanced)

    @property
    def data(self) -> Path:
        return self._store.folder

    def close(self) -> None:
        """Stop working and give the data folder free. Safe to call twice."""
        with self._moved:
            self._stopping = True
            self._moved.notify_all()
        if self._worker is not None:
            self._worker.join()
        self._store.close()

    def __enter__(self) -> "Emulator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_url(self, url: str) -> None:
        """Tell others who want this data folder where its emulator is."""
        self._store.set_url(url)

    def transport(self) -> "Transport":
        """For `anthropic.Anthropic(http_client=httpx2.Client(transport=...))`: no socket, no thread."""
        from pipeline.emulator.transport import Transport  # it imports this module

        return Transport(self)

    # work

    def _wake(self) -> None:
        with self._moved:
            self._moved.notify_all()

    def _clock_advanced(self) -> None:
        if not self._stopping:
            self._store.save("offset_seconds", repr(self.clock.offset_seconds))
        self._wake()

    def do_due_work(self) -> None:
        """Process every batch whose time has come, and archive old ones; returns when that is done."""
        with self._work_lock:
            for batch in self._store.running():
                if self._stopping:
                    return
                if self._core.due_us(batch) <= self.clock.now_us():
                    process(self._core, batch, lambda: self._stopping)
                    self._wake()
            self._store.mark_archived(self.clock.now_us())

    def start_worker(self) -> None:
        """Do due work in a thread from now on, so that calls need not."""
        self._worker = threading.Thread(target=self._work, name="emulator-worker", daemon=True)
        self._worker.start()

    def _work(self) -> None:
        while not self._stopping:
            self.do_due_work()
            with self._moved:
                pause = self._seconds_to_next()
                if pause > 0 and not self._stopping:
                    self._moved.wait(pause)

    def _seconds_to_next(self) -> float:
        now = self.clock.now_us()
        waits = [(self._core.due_us(batch) - now) / 1e6 for batch in self._store.running()]
        return min([WORKER_PAUSE_SECONDS, *waits])

    def wait_idle(self, timeout_seconds: float = 60) -> None:
        """Return when no batch is left whose time has come. Raises TimeoutError."""
        if self._worker is None:
            self.do_due_work()
            return
        deadline = time.monotonic() + timeout_seconds
        with self._moved:
            while self._seconds_to_next() <= 0:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"batches are still being processed after {timeout_seconds} s")
                self._moved.wait(left)

    # control, the same as under /_emulator/

    def add_fault(self, rule: Fault | Mapping[str, Any] | None = None, /, **fields: Any) -> Fault:
        """`add_fault(on="create", do="drop_after")`, or a rule. Raises EmulatorError naming the wrong field."""
        fault = parse_faults([fields if rule is None else rule])[0]
        self._core.faults.add(fault)
        return fault

    def clear_faults(self) -> None:
        self._core.faults.clear()

    def faults(self) -> list[Fault]:
        return self._core.faults.rules()

    def log(self) -> Iterator[dict[str, Any]]:
        """Each HTTP call, oldest first: n, time, method, path, status (None: no answer), request_id, fault, batch."""
        return (orjson.loads(line) for line in self._store.log_lines())

    def accepted(self) -> Iterator[dict[str, Any]]:
        """Each request ever accepted: batch_id, custom_id, created_at, params_sha256, result."""
        return audit.accepted(self._store)

    def audit(self) -> dict[str, Any]:
        """batches, requests_accepted, distinct_params, accepted_again, accepted_twice_count, accepted_twice."""
        return audit.audit(self._store)

    # calls

    def upload_path(self) -> Path:
        """Where to spool a body that comes in; the caller removes it."""
        return self._store.uploads / secrets.token_hex(12)

    def handle(self, call: Call) -> Reply:
        """Answer one call, its body complete. Never raises for what a client sends."""
        if self._worker is None:
            self.do_due_work()
        request_id = random_id("req")
        if call.path.startswith("/_emulator/"):
            return self._finished(self._try(lambda: control(self, call), request_id), request_id, call)
        fault: Fault | None = None

        def work() -> Reply:
            nonlocal fault
            operation, args = self._admitted(call)
            fault = self._fault(call, args)
            return self._with_fault(fault, lambda: operation(self._core, call, *args), request_id)

        reply = self._finished(self._try(work, request_id), request_id, call)
        self._append_log(call, reply, request_id, fault)
        return reply

    @staticmethod
    def _try(work: Callable[[], Reply], request_id: str) -> Reply:
        try:
            return work()
        except ApiError as exc:
            return error_reply(exc, request_id)

    def _admitted(self, call: Call) -> tuple[Callable[..., Reply], tuple[str, ...]]:
        """Find the operation, check key and version; fills in the call's fields that depend on them."""
        operation, function, args = _route(call)
        call.operation = operation
        if operation in ("retrieve", "delete", "cancel", "results"):
            call.batch_id = args[0]
        call.workspace = _workspace(call)
        version = call.headers.get("anthropic-version")
        if version is None:
            raise ApiError(400, "anthropic-version: header is required")
        if version not in VERSIONS:
            raise ApiError(400, f'anthropic-version: "{version}" is not a valid version')
        call.version = version
        betas = call.headers.get("anthropic-beta", "").split(",")
        call.betas = frozenset(beta.strip() for beta in betas if beta.strip())
        return function, args

    def _fault(self, call: Call, args: tuple[str, ...]) -> Fault | None:
        """The first call fault that fires. `match` looks into the body of what is created, elsewhere into the path."""
        if not self._core.faults.rules():
            return None
        page = batches.list_page(self._core, call) if call.operation == "list" else 1
        contains = call.contains if call.operation in ("create", "files_create") else call.path.__contains__
        fired = self._core.faults.for_call(
            call.operation, CALL_FAULTS, CallFacts(args[0] if args else None, page, contains)
        )
        return fired[0] if fired else None

    def _with_fault(self, fault: Fault | None, work: Callable[[], Reply], request_id: str) -> Reply:
        if fault is None:
            return work()
        if fault.do == "drop_before":
            return Reply(dropped=True)
        if fault.do == "status" and not fault.accept:
            raise _fault_error(fault)
        reply = self._try(work, request_id)
        if fault.do == "drop_after":
            return Reply(dropped=True)
        if fault.do == "status":
            raise _fault_error(fault)
        reply.delay_seconds = fault.seconds or 0
        return reply

    def _finished(self, reply: Reply, request_id: str, call: Call) -> Reply:
        """Add the headers every answer has."""
        common = {
            "date": http_date(self.clock.now_us()),
            "request-id": request_id,
            "anthropic-organization-id": ORGANIZATION_ID,
        }
        if call.workspace:  # unknown until the key was checked
            common["anthropic-workspace-id"] = derived_id("wrkspc", call.workspace)
        reply.headers = {**common, **reply.headers}
        return reply

    def _append_log(self, call: Call, reply: Reply, request_id: str, fault: Fault | None) -> None:
        with self._log_lock:
            self._calls += 1
            entry = {
                "n": self._calls,
                "time": wire_time(self.clock.now_us()),
                "method": call.method,
                "path": call.path,
                "status": None if reply.dropped else reply.status,
                "request_id": request_id,
                "fault": fault.label if fault else None,
                "batch": call.batch_id,
            }
            self._store.append_log(orjson.dumps(entry))

    def log_broken_upload(self, method: str, path: str) -> None:
        """A body that did not arrive whole: nothing was accepted, nobody is left to answer."""
        call = Call(method, path, {}, {}, b"", "")
        self._append_log(call, Reply(dropped=True), random_id("req"), None)


def _route(call: Call) -> tuple[str, Callable[..., Reply], tuple[str, ...]]:
    path_known = False
    for method, pattern, operation, function in ROUTES:
        found = pattern.fullmatch(call.path)
        if found and method == call.method:
            return operation, function, found.groups()
        path_known = path_known or found is not None
    if path_known:
        raise ApiError(405, "Method Not Allowed")
    raise ApiError(404, "Not found")


def _workspace(call: Call) -> str:
    """The workspace of the key: the default one, of keys like `...@NAME` another. Raises ApiError 401 without a key."""
    bearer = call.headers.get("authorization", "")
    key = call.headers.get("x-api-key") or (bearer[7:].strip() if bearer.lower().startswith("bearer ") else "")
    if not key:
        raise ApiError(401, "x-api-key header is required")
    return key.rpartition("@")[2] if "@" in key else DEFAULT_WORKSPACE


def _fault_error(fault: Fault) -> ApiError:
    assert fault.status is not None
    headers = dict(fault.headers)
    if fault.retry_after is not None:
        headers["retry-after"] = f"{fault.retry_after:g}"
    if fault.should_retry is not None:
        headers["x-should-retry"] = str(fault.should_retry).lower()
    details = {"error_code": fault.error_code} if fault.error_code else None
    text = fault.message or FAULT_MESSAGES.get(fault.error_code or "") or FAULT_MESSAGES.get(str(fault.status), "Error")
    return ApiError(
        fault.status,
        text,
        error_type=fault.error_type,
        details=details,
        headers=headers,
        html=fault.page == "html",
    )


FAULT_MESSAGES = {
    "400": "Invalid request",
    "401": "invalid x-api-key",
    "402": "There is an issue with your billing or payment information.",
    "403": "Your API key does not have permission to use the specified resource.",
    "404": "The requested resource could not be found.",
    "408": "Request timed out",
    "409": "The request conflicts with another one.",
    "413": "Request exceeds the maximum size",
    "429": "This request would exceed your organization's rate limit.",
    "500": "Internal server error",
    "502": "Bad gateway",
    "503": "Service unavailable",
    "504": "Request timed out",
    "529": "Overloaded",
    "enforced_spend_limit_reached": (
        "You have reached your API usage limits: your organization has crossed its monthly API usage threshold, set "
        "based on your organization's API tier. You will regain access on 2026-12-01 at 00:00 UTC."
    ),
    "storage_quota_exceeded": "Your organization's file storage quota is exhausted.",
    "contract_spend_limit_reached": "You have reached your API usage limits: the limit of your contract.",
}
