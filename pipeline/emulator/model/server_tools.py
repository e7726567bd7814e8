"""The server tools, which run at the API: web search, web fetch and code execution, with invented results."""

import base64
import re
from typing import Any

import orjson

from pipeline.emulator.ids import derived_id
from pipeline.emulator.model.wording import MARK

URL = re.compile(r"https?://[^\s<>\"']+")
PAGE = "https://example.com/emulated"
DIRECT = {"type": "direct"}
#: this version runs shell commands; earlier and later ones run Python
SHELL_VERSION = "code_execution_20250825"


def server_tool(tools: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the first server tool that can be emulated; None if there is none."""
    return next((tool for tool in tools if is_server_tool(tool)), None)


def is_server_tool(tool: dict[str, Any]) -> bool:
    """Return whether a tool runs at the API and can be emulated."""
    return str(tool.get("type")).startswith(("web_search_", "web_fetch_", "code_execution_"))


def use(tool: dict[str, Any], gist: str, source: str, seed: str) -> list[dict[str, Any]]:
    """Return the content blocks of a server tool's call and its result.

    gist: one sentence about the request. source: its text. seed: the SHA-256 of the params in hex, for the ids.
    """
    kind: str = tool["type"]
    call_id = derived_id("srvtoolu", seed)
    call = {"type": "server_tool_use", "id": call_id}
    if kind.startswith("web_search_"):
        return [
            {**call, "name": "web_search", "input": {"query": gist}, "caller": DIRECT},
            {"type": "web_search_tool_result", "tool_use_id": call_id, "content": [_hit(gist)], "caller": DIRECT},
        ]
    if kind.startswith("web_fetch_"):
        named = URL.search(source)
        url = named.group() if named else PAGE
        return [
            {**call, "name": "web_fetch", "input": {"url": url}, "caller": DIRECT},
            {"type": "web_fetch_tool_result", "tool_use_id": call_id, "content": _fetched(url), "caller": DIRECT},
        ]
    ran = {"stdout": f"{MARK} {gist}\n", "stderr": "", "return_code": 0, "content": []}
    if kind == SHELL_VERSION:
        return [
            {**call, "name": "bash_code_execution", "input": {"command": "echo emulated"}},
            {
                "type": "bash_code_execution_tool_result",
                "tool_use_id": call_id,
                "content": {"type": "bash_code_execution_result", **ran},
            },
        ]
    return [
        {**call, "name": "code_execution", "input": {"code": "print('emulated')"}},
        {
            "type": "code_execution_tool_result",
            "tool_use_id": call_id,
            "content": {"type": "code_execution_result", **ran},
        },
    ]


def _hit(gist: str) -> dict[str, Any]:
    return {
        "type": "web_search_result",
        "title": f"{MARK} {gist}",
        "url": PAGE,
        "encrypted_content": base64.b64encode(f"{MARK} {gist}".encode()).decode(),
        "page_age": None,
    }


def _fetched(url: str) -> dict[str, Any]:
    source = {"type": "text", "media_type": "text/plain", "data": f"{MARK} What {url} says."}
    document = {"type": "document", "source": source, "title": f"{MARK} A page", "citations": None}
    return {"type": "web_fetch_result", "url": url, "content": document, "retrieved_at": None}


def requests_of(content: list[dict[str, Any]]) -> dict[str, int]:
    """Return usage.server_tool_use for these blocks."""
    names = [block["name"] for block in content if block["type"] == "server_tool_use"]
    return {"web_search_requests": names.count("web_search"), "web_fetch_requests": names.count("web_fetch")}


def size_of(blocks: list[dict[str, Any]]) -> int:
    """Return how many bytes of these blocks the model wrote: the inputs of the tool calls."""
    return sum(len(orjson.dumps(block["input"])) for block in blocks if block["type"] == "server_tool_use")
