"""The emulated prompt cache: how many tokens of a prompt are read from the cache, and how many are written to it."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from pipeline.emulator.model.answers import BYTES_PER_TOKEN, Usage, input_tokens, prompt_part_tokens
from pipeline.emulator.model.catalogue import Model

TTL_US = {"5m": 300 * 1_000_000, "1h": 3600 * 1_000_000}
LOOKBACK_BLOCKS = 20
MAX_BREAKPOINTS = 4
#: params whose change makes cached prefixes after the system prompt invalid
MESSAGE_LEVEL = ("tool_choice", "thinking", "output_config")


@dataclass
class FirstWave:
    """The first requests of a batch, which start together: each reads what was cached before, not what others write.

    size: the number of these requests, in the order of processing.
    """

    size: int
    before: dict[bytes, int] = field(default_factory=dict)  #: prefixes that they wrote, with the expiry before


class PromptCache:
    """The cached prefixes, by digest, with the time at which each expires. In memory only: a restart empties it."""

    def __init__(self, minimum_tokens: int | None = None) -> None:
        """minimum_tokens: the smallest prefix that is cached; None: the minimum of each model."""
        self._minimum = minimum_tokens
        self._expiry_us: dict[bytes, int] = {}
        self._lock = threading.Lock()

    def usage(
        self,
        params: dict[str, Any],
        model: Model,
        workspace: str,
        now_us: int,
        wave: FirstWave | None = None,
        rank: int = 0,
    ) -> Usage:
        """Return the usage of a request with cache_control, and update the cache. For others use `plain_usage`.

        wave: the first wave of its batch; None outside batches. rank: its place in the order of processing, from 0.
        """
        before = wave.before if wave is not None and rank < wave.size else None
        blocks = list(_prefixes(params, model, workspace))
        breakpoints = [i for i, (_, _, ttl) in enumerate(blocks) if ttl is not None][:MAX_BREAKPOINTS]
        minimum = self._minimum or model.cache_minimum
        with self._lock:
            read = max((self._hit(blocks, at, now_us, before or {}) for at in breakpoints), default=0)
            written: dict[str, int] = {}
            reached = read
            for at in breakpoints:
                digest, tokens, ttl = blocks[at]
                assert ttl is not None
                if tokens < minimum:
                    continue
                if before is not None:
                    before.setdefault(digest, self._expiry_us.get(digest, 0))
                self._expiry_us[digest] = max(self._expiry_us.get(digest, 0), now_us + TTL_US[ttl])
                if tokens > reached:
                    written[ttl] = written.get(ttl, 0) + tokens - reached
                    reached = tokens
        return Usage(max(input_tokens(params) - reached, 0), read, written)

    def _hit(self, blocks: list[tuple[bytes, int, str | None]], at: int, now_us: int, before: dict[bytes, int]) -> int:
        """Return the tokens of the longest cached prefix that ends at a breakpoint or up to LOOKBACK_BLOCKS before it.

        at: the breakpoint's block. before: expiries that replace those of the cache. 0: no prefix is cached.
        """
        for digest, tokens, _ in reversed(blocks[max(at - LOOKBACK_BLOCKS, 0) : at + 1]):
            if before.get(digest, self._expiry_us.get(digest, 0)) > now_us:
                return tokens
        return 0


def plain_usage(params: dict[str, Any]) -> Usage:
    """Return the usage of a request without cache_control."""
    return Usage(input_tokens(params))


def breakpoint_problem(params: dict[str, Any]) -> str | None:
    """Return what is wrong with the cache_control of a request, in the API's words; None if nothing is."""
    controls = [c for _, _, c in _blocks(params) if c is not None]
    if len(controls) > MAX_BREAKPOINTS:
        return f"A maximum of {MAX_BREAKPOINTS} blocks with cache_control may be provided. Found {len(controls)}."
    for control in controls:
        if not isinstance(control, dict) or control.get("type") != "ephemeral":
            return "cache_control.type: Input should be 'ephemeral'"
        if control.get("ttl", "5m") not in ("5m", "1h"):
            return "cache_control.ttl: Input should be '5m' or '1h'"
    ttls = [control.get("ttl", "5m") for control in controls]
    if "1h" in ttls[ttls.index("5m") :] if "5m" in ttls else False:
        return "a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block"
    return None


def _blocks(params: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield (where, block, its cache_control) in the order of the prompt: tools, system, messages."""
    flat: list[tuple[str, Any]] = [("tools", tool) for tool in params.get("tools") or ()]
    system = params.get("system")
    flat += [("system", b) for b in ([{"type": "text", "text": system}] if isinstance(system, str) else system or ())]
    for message in params["messages"]:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        flat += [(message["role"], part) for part in parts]
    for index, (where, block) in enumerate(flat):
        control = block.get("cache_control")
        if control is None and index == len(flat) - 1:
            control = params.get("cache_control")  # automatic caching sets a breakpoint at the end of the prompt
        yield where, block, control


def _prefixes(params: dict[str, Any], model: Model, workspace: str) -> Iterator[tuple[bytes, int, str | None]]:
    """Yield (digest, tokens, ttl) of the prompt up to and with each block. ttl None: the block is no breakpoint."""
    digest = hashlib.sha256(f"{workspace} {model.id}".encode())
    tokens, in_messages = 0, False
    for where, block, control in _blocks(params):
        if where not in ("tools", "system") and not in_messages:
            in_messages = True
            digest.update(orjson.dumps([params.get(name) for name in MESSAGE_LEVEL]))
        bare = {key: value for key, value in block.items() if key != "cache_control"}
        encoded = orjson.dumps(bare)
        digest.update(where.encode() + encoded)
        tokens += -(-len(encoded) // BYTES_PER_TOKEN) if where == "tools" else prompt_part_tokens([block])
        yield digest.digest(), tokens, control.get("ttl", "5m") if control else None
