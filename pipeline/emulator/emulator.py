"""The emulator without sockets: a call in, a reply out; for HTTP, for the in-process transport, for tests."""

import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.emulator import audit, models
from pipeline.emulator.clock import Clock, wire_time
from pipeline.emulator.core import Core
from pipeline.emulator.errors import ApiError
from pipeline.emulator.faults import CallFacts, FaultBook, parse_faults
from pipeline.emulator.http.call_faults import shown_date, with_fault
from pipeline.emulator.model.caching import PromptCache
from pipeline.emulator.model.validate import VERSIONS
from pipeline.emulator.operations import batches, files, messages
from pipeline.emulator.operations.control import control
from pipeline.emulator.operations.processing import process
from pipeline.emulator.rules import CALL_FAULTS, Fault
from pipeline.emulator.settings import Settings
from pipeline.emulator.store import Batch, Store
from pipeline.emulator.wire import ORGANIZATION_ID, Call, Reply, derived_id, random_id, tried

if TYPE_CHECKING:
    from pipeline.emulator.http.transport import Transport

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
        from pipeline.emulator.http.transport import Transport  # it imports this module

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
            for batch in self._to_process():
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
        waits = [(self._core.due_us(batch) - now) / 1e6 for batch in self._to_process()]
        return min([WORKER_PAUSE_SECONDS, *waits])

    def _to_process(self) -> list[Batch]:
        """Batches that run, but for those that a fault keeps from ending."""
        return [batch for batch in self._store.running() if not self._core.faults.holds(batch.id)]

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
        self._wake()  # batches that a fault kept from ending may be due

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
            return self._finished(tried(lambda: control(self, call), request_id), request_id, call)
        fault: Fault | None = None
        date: Fault | None = None

        def work() -> Reply:
            nonlocal fault, date
            operation, args = self._admitted(call)
            fault, date = self._faults(call, args)
            if fault is None:
                return operation(self._core, call, *args)
            return with_fault(fault, self._core, call, lambda: operation(self._core, call, *args), request_id)

        reply = self._finished(tried(work, request_id), request_id, call, date)
        self._append_log(call, reply, request_id, fault)
        return reply

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

    def _faults(self, call: Call, args: tuple[str, ...]) -> tuple[Fault | None, Fault | None]:
        """The first call fault and the first date fault that fire.

        `match` looks into the body of what is created, elsewhere into the path.
        """
        faults = self._core.faults
        if faults.empty:
            return None, None
        page = batches.list_page(self._core, call) if call.operation == "list" else 1
        contains = call.contains if call.operation in ("create", "files_create") else call.path.__contains__
        facts = CallFacts(args[0] if args else None, page, contains)
        fault, date = (faults.first_for_call(call.operation, dos, facts) for dos in (CALL_FAULTS, frozenset({"date"})))
        return fault, date

    def _finished(self, reply: Reply, request_id: str, call: Call, date: Fault | None = None) -> Reply:
        """Add the headers every answer has. date: the rule that says what its Date is, if it is to be wrong."""
        shown = shown_date(self.clock.now_us(), date)
        common = {
            **({"date": shown} if shown else {}),
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
