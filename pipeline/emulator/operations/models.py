"""The operations of the Models resource, and the page size of all listings."""

from typing import Any

from pipeline.emulator.core import Core
from pipeline.emulator.errors import ApiError
from pipeline.emulator.model.catalogue import BY_NAME, CATALOGUE, EFFORTS, Model
from pipeline.emulator.settings import Settings
from pipeline.emulator.wire import Call, Reply, json_reply


def model_info(model: Model, settings: Settings) -> dict[str, Any]:
    """Return ModelInfo as the API sends it."""
    yes, no = {"supported": True}, {"supported": False}

    def support(value: bool) -> dict[str, bool]:
        return yes if value else no

    vision = not model.named_in(settings.models_without_vision)
    current = model.generation >= (4, 5)
    efforts = {name: support(name in model.efforts) for name in EFFORTS}
    thinking = {n: support(n in model.thinking_types) for n in ("adaptive", "enabled", "disabled", "between_tools")}
    return {
        "id": model.id,
        "type": "model",
        "display_name": model.display_name,
        "created_at": model.created_at,
        "lifecycle": model.lifecycle,
        "deprecated_at": model.deprecated_at,
        "retires_at": model.retires_at,
        "line": model.line,
        "max_input_tokens": model.context,
        "max_tokens": model.max_tokens,
        "capabilities": {
            "batch": support(not model.named_in(settings.models_without_batch)),
            "citations": yes,
            "code_execution": support(current),
            "image_input": support(vision),
            "pdf_input": support(vision),
            "structured_outputs": support(current),
            "effort": {"supported": bool(model.efforts), **efforts},
            "thinking": {"supported": True, "types": thinking},
            "context_management": {
                "supported": current,
                "clear_thinking_20251015": support(current),
                "clear_tool_uses_20250919": support(current),
                "compact_20260112": support(model.generation >= (4, 6)),
            },
            "server_tools": {"supported": current, "web_search": support(current), "code_execution": support(current)},
        },
    }


def page_limit(call: Call) -> int:
    """Return the `limit` of a list call, 1 to 1000; 20 if it is not given. Raises ApiError for other values."""
    text = call.query.get("limit", "20")
    try:
        limit = int(text)
    except ValueError:
        raise ApiError(400, "limit: Input should be a valid integer, unable to parse string as an integer") from None
    if limit < 1:
        raise ApiError(400, "limit: Input should be greater than or equal to 1")
    if limit > 1000:
        raise ApiError(400, "limit: Input should be less than or equal to 1000")
    return limit


def list_models(core: Core, call: Call) -> Reply:
    """List models, newest first. `lifecycle` may have several values, joined by commas or repeated as `lifecycle[]`."""
    wanted = set((call.query.get("lifecycle[]") or call.query.get("lifecycle") or "active,deprecated").split(","))
    unknown = wanted - {"active", "deprecated", "retired"}
    if unknown:
        raise ApiError(400, "lifecycle: Input should be 'active', 'deprecated' or 'retired'")
    rows = [model_info(m, core.settings) for m in CATALOGUE if m.lifecycle in wanted]
    ids = [row["id"] for row in rows]
    limit = page_limit(call)
    if after := call.query.get("after_id"):
        rows = rows[ids.index(after) + 1 :] if after in ids else []
        page, has_more = rows[:limit], len(rows) > limit
    elif before := call.query.get("before_id"):
        rows = rows[: ids.index(before)] if before in ids else []
        page, has_more = rows[-limit:], len(rows) > limit
    else:
        page, has_more = rows[:limit], len(rows) > limit
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return json_reply({"data": page, "has_more": has_more, "first_id": first, "last_id": last})


def get_model(core: Core, call: Call, name: str) -> Reply:
    """Return the description of one model by its id or alias. Raises ApiError 404 if there is none."""
    if name not in BY_NAME:
        raise ApiError(404, f"model: {name}")
    return json_reply(model_info(BY_NAME[name], core.settings))
