"""The control calls under /_emulator/: faults, clock, log, accepted, audit. They need no key and are not logged."""

from collections.abc import Iterator
from typing import Any

import orjson

from pipeline.emulator import audit
from pipeline.emulator.core import Core
from pipeline.emulator.errors import ApiError, EmulatorError
from pipeline.emulator.faults import parse_faults
from pipeline.emulator.wire import Call, Reply, json_reply

NDJSON = {"content-type": "application/x-ndjson"}
LINES_PER_CHUNK = 500


def control(core: Core, call: Call) -> Reply:
    """Answer a control call. Raises ApiError 404 if the path is unknown, 400 if the body is wrong."""
    match call.method, call.path.removeprefix("/_emulator/"):
        case "GET", "faults":
            rules = [rule.model_dump(exclude_defaults=True) for rule in core.faults.rules()]
            return json_reply({"faults": rules})
        case "POST", "faults":
            _add_faults(core, _json(call))
            return json_reply({"faults": len(core.faults.rules())})
        case "DELETE", "faults":
            core.clear_faults()
            return json_reply({"faults": 0})
        case "GET", "clock":
            return _clock(core)
        case "POST", "clock":
            _advance(core, _json(call))
            return _clock(core)
        case "GET", "log":
            return Reply(200, _ndjson(core.folder.log()), NDJSON)
        case "GET", "accepted":
            return Reply(200, _ndjson(audit.accepted(core.store)), NDJSON)
        case "GET", "audit":
            return json_reply(audit.audit(core.store))
    raise ApiError(404, f"{call.method} {call.path} is not part of the emulator's control surface")


def _json(call: Call) -> Any:
    try:
        return orjson.loads(call.read())
    except orjson.JSONDecodeError as exc:
        raise ApiError(400, f"the body is not JSON: {exc}") from None


def _add_faults(core: Core, body: Any) -> None:
    """Add one rule, a list of rules, or {"faults": [...]}. If one rule is wrong, none is added."""
    if isinstance(body, dict):
        body = body.get("faults", [body])
    try:
        for rule in parse_faults(body):
            core.faults.add(rule)
    except EmulatorError as exc:
        raise ApiError(400, str(exc)) from exc


def _advance(core: Core, body: Any) -> None:
    """Advance the clock as the body says. Raises ApiError 400 for a wrong body."""
    seconds = body.get("advance_seconds") if isinstance(body, dict) else None
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds < 0:
        raise ApiError(400, "advance_seconds must be a number, 0 or more")
    core.clock.advance(seconds)


def _clock(core: Core) -> Reply:
    clock = core.clock
    now = clock.now().isoformat(timespec="microseconds")
    return json_reply({"now": now, "offset_seconds": clock.offset_seconds})


def _ndjson(rows: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    """Yield the rows as lines of JSON, LINES_PER_CHUNK in a chunk."""
    chunk: list[bytes] = []
    for row in rows:
        chunk.append(orjson.dumps(row) + b"\n")
        if len(chunk) == LINES_PER_CHUNK:
            yield b"".join(chunk)
            chunk = []
    yield b"".join(chunk)
