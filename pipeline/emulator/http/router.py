"""Answer calls: find the operation, check the key and the version, apply faults, and write the log of calls."""

import re
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

import orjson

from pipeline.emulator.clock import wire_time
from pipeline.emulator.core import Core
from pipeline.emulator.errors import ApiError
from pipeline.emulator.faults import CallFacts
from pipeline.emulator.http.call_faults import shown_date, with_fault
from pipeline.emulator.ids import derived_id, random_id
from pipeline.emulator.model.validate import VERSIONS
from pipeline.emulator.operations import batches, files, messages, models
from pipeline.emulator.operations.control import control
from pipeline.emulator.operations.worker import Worker
from pipeline.emulator.rules import CALL_FAULTS, Fault
from pipeline.emulator.wire import ORGANIZATION_ID, Call, Reply, reply_or_error

CREATE_PATH = "/v1/messages/batches"
DEFAULT_WORKSPACE = "default"
#: (method, pattern of the path, name of the operation in fault rules, function)
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


class Router:
    """Answer the calls of the HTTP server and of the in-process transport.

    worker: if it has no thread, each call first processes the batches that are due.
    """

    def __init__(self, core: Core, worker: Worker) -> None:
        self._core, self._worker = core, worker
        self._folder, self.clock = core.folder, core.clock
        self._calls = self._folder.log_size()
        self._log_lock = threading.Lock()

    def upload_path(self) -> Path:
        """Return a new path for the body of a call. The caller removes the file."""
        return self._folder.uploads / secrets.token_hex(12)

    def handle(self, call: Call) -> Reply:
        """Answer one call whose body has arrived. Errors of the client give an error reply, not an exception."""
        if not self._worker.is_started:
            self._worker.do_due_work()
        request_id = random_id("req")
        if call.path.startswith("/_emulator/"):
            return self._finished(reply_or_error(lambda: control(self._core, call), request_id), request_id, call)
        fault: Fault | None = None
        date: Fault | None = None

        def work() -> Reply:
            nonlocal fault, date
            operation, args = self._admitted(call)
            fault, date = self._faults(call, args)
            if fault is None:
                return operation(self._core, call, *args)
            return with_fault(fault, self._core, call, lambda: operation(self._core, call, *args), request_id)

        reply = self._finished(reply_or_error(work, request_id), request_id, call, date)
        self._append_log(call, reply, request_id, fault)
        return reply

    def _admitted(self, call: Call) -> tuple[Callable[..., Reply], tuple[str, ...]]:
        """Return the operation's function and arguments, and fill in the call's fields.

        Raises ApiError if the path, key or version is wrong.
        """
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
        """Return the first call fault and the first date fault that fire; each is None if none fires.

        `match` is searched in the body of calls that create something, and in the path of all others.
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
        """Add the headers that all answers have. date: the fault that makes the Date header wrong; None: no fault."""
        shown = shown_date(self.clock.now_us(), date)
        common = {
            **({"date": shown} if shown else {}),
            "request-id": request_id,
            "anthropic-organization-id": ORGANIZATION_ID,
        }
        if call.workspace:  # empty if the key was not checked
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
            self._folder.append_log(orjson.dumps(entry))

    def log_broken_upload(self, method: str, path: str) -> None:
        """Log a call whose body did not arrive completely. Nothing was accepted, and the client is gone."""
        call = Call(method, path, {}, {}, b"", "")
        self._append_log(call, Reply(dropped=True), random_id("req"), None)


def _route(call: Call) -> tuple[str, Callable[..., Reply], tuple[str, ...]]:
    """Return the operation of a call, its function and the ids in its path. Raises ApiError 404 or 405."""
    path_known = False
    for method, pattern, operation, function in ROUTES:
        match = pattern.fullmatch(call.path)
        if match and method == call.method:
            return operation, function, match.groups()
        path_known = path_known or match is not None
    if path_known:
        raise ApiError(405, "Method Not Allowed")
    raise ApiError(404, "Not found")


def _workspace(call: Call) -> str:
    """Return the workspace of the call's key: NAME for a key `...@NAME`, otherwise the default workspace.

    Raises ApiError 401 if there is no key.
    """
    bearer = call.headers.get("authorization", "")
    key = call.headers.get("x-api-key") or (bearer[7:].strip() if bearer.lower().startswith("bearer ") else "")
    if not key:
        raise ApiError(401, "x-api-key header is required")
    return key.rpartition("@")[2] if "@" in key else DEFAULT_WORKSPACE
