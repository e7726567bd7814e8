"""Which part of a job's requests is shared by all rows and ends with a cache breakpoint? Pure."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from pipeline.job.model import Job
from pipeline.request.build import shared

DEFAULT_TTL = "5m"  # of a block whose cache_control has no ttl


class CachedPrefix(NamedTuple):
    """The prefix that all requests of a job share, up to its last breakpoint.

    params: without model and max_tokens. turns: the first messages. breakpoints: how many blocks of it have
    cache_control. ttl: the longest time for which a part of it is cached, 5m or 1h.
    """

    params: dict[str, Any]
    turns: list[dict[str, Any]]
    breakpoints: int
    ttl: str


def cached_prefix(job: Job) -> CachedPrefix | None:
    """Return the shared prefix that the job caches; None if no block that all requests share has cache_control.

    The breakpoint may be that of `request.cache`, or the user's own in a tool, a block of the system prompt, or a block
    of a shared turn. `request.params.cache_control` is none of these: it is at the end of each request.
    """
    params, turns = shared(job)
    found = list(_breakpoints(params, turns))
    if not found:
        return None
    where, last, block, _ = found[-1]
    ttl = "1h" if "1h" in [ttl for *_, ttl in found] else "5m"
    if where == "turns":
        turn = {**turns[last], "content": turns[last]["content"][: block + 1]}
        return CachedPrefix(params, [*turns[:last], turn], len(found), ttl)
    upto = {name: value for name, value in params.items() if not (where == "tools" and name == "system")}
    return CachedPrefix({**upto, where: params[where][: block + 1]}, [], len(found), ttl)


def _breakpoints(params: dict[str, Any], turns: list[dict[str, Any]]) -> Iterator[tuple[str, int, int, str]]:
    """Yield (where, turn, block, ttl) of each shared block with cache_control, in the order in which the API reads."""
    parts = [(where, 0, params.get(where)) for where in ("tools", "system")]
    parts += [("turns", i, turn["content"]) for i, turn in enumerate(turns)]
    for where, turn, blocks in parts:
        for i, block in enumerate(blocks if isinstance(blocks, list) else ()):
            control = block.get("cache_control") if isinstance(block, dict) else None
            if isinstance(control, dict):
                yield where, turn, i, control.get("ttl") or DEFAULT_TTL
