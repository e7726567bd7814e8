"""How does `models` show a model, as JSON and as tables? Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.api.capabilities import EFFORTS, EXTENDED_OUTPUT_BETA, THINKING_TYPES, day, output_limit, refusal, says
from pipeline.money.prices import PriceList, Prices, Rate
from pipeline.text import table_lines

if TYPE_CHECKING:
    from anthropic.types import ModelInfo


Facts = dict[str, Any]

PRICE_COLUMNS = {
    "input": "INPUT",
    "output": "OUTPUT",
    "cache_read": "CACHE READ",
    "cache_write": "CACHE WRITE 5m",
    "cache_write_1h": "CACHE WRITE 1h",
}


def model_facts(models: Iterable["ModelInfo"], listed: PriceList) -> list[Facts]:
    """Return each model for --json, in the order given. None stands for what the API does not say.

    The key `prices` holds US dollars per million tokens in a batch, in steps: each step is for prompts of more tokens
    than its `above_tokens`. It is None for a model without a known price.
    """
    return [_one_model(info, listed.of(info.id)) for info in models]


def _one_model(info: "ModelInfo", prices: Prices | None) -> Facts:
    extended, retires = output_limit(info, {EXTENDED_OUTPUT_BETA}), day(info.retires_at)
    return {
        "id": info.id,
        "name": info.display_name,
        "lifecycle": info.lifecycle,
        "retires": None if retires is None else retires.isoformat(),
        "batch": says(info, "batch"),
        "context_tokens": info.max_input_tokens,
        "output_tokens": info.max_tokens,
        "extended_output_tokens": extended if extended != info.max_tokens else None,
        "prices": None if prices is None else {name: _steps(getattr(prices, name)) for name in PRICE_COLUMNS},
        "images": says(info, "image_input"),
        "pdf": says(info, "pdf_input"),
        "thinking": _supported(info, THINKING_TYPES, "thinking", "types"),
        "effort": _supported(info, EFFORTS, "effort"),
        "structured_outputs": says(info, "structured_outputs"),
        "forced_tools": _can_be_forced(info),
    }


def _supported(info: "ModelInfo", names: Sequence[str], *path: str) -> list[str] | None:
    """Return the names that the API says are supported; None if it says nothing of any of them."""
    said = {name: says(info, *path, name) for name in names}
    if all(value is None for value in said.values()):
        return None
    return [name for name, value in said.items() if value]


def _can_be_forced(info: "ModelInfo") -> bool:
    """Return whether a request can force the model to call a tool. Other reasons to refuse it are left out."""
    bare = info.model_copy(update={"capabilities": None, "lifecycle": "active"})
    return refusal({"model": info.id, "tool_choice": {"type": "any"}}, bare) is None


def _steps(rate: Rate) -> list[dict[str, float]]:
    steps = [(0, rate.base), *rate.steps]
    return [{"above_tokens": above, "usd": round(price * 1e6, 6)} for above, price in steps]


# -- as a table ------------------------------------------------------------------------------------------------------


def model_lines(models: Sequence[Facts]) -> Iterator[str]:
    """Yield three tables of plain text, up to 120 columns wide: lifecycle and limits, batch prices, capabilities.

    SCHEMA: structured outputs, which output.schema and output.labels need; FORCED TOOLS: what output.tool needs.
    """
    if not models:
        yield "the API lists no model for this key"
        return
    yield from table_lines(
        ["MODEL", "LIFECYCLE", "BATCH", "CONTEXT", "OUTPUT"], [_lifecycle_row(model) for model in models]
    )
    yield ""
    yield "US dollars per million tokens in a batch; a longer prompt has the higher price for its whole request"
    priced = [row for model in models for row in _price_rows(model)]
    yield from table_lines(["MODEL", "PROMPT", *PRICE_COLUMNS.values()], priced, right=range(2, 2 + len(PRICE_COLUMNS)))
    yield ""
    headings = ["MODEL", "IMAGES", "PDF", "THINKING", "EFFORT", "SCHEMA", "FORCED TOOLS"]
    yield from table_lines(headings, [_capability_row(model) for model in models])
    if any(model["extended_output_tokens"] for model in models):
        yield ""
        yield f"* with {EXTENDED_OUTPUT_BETA} in request.betas"


def _lifecycle_row(model: Facts) -> list[str]:
    lifecycle, extended = str(model["lifecycle"]), model["extended_output_tokens"]
    retires = f", retires {model['retires']}" if model["retires"] else ""
    output = _tokens(model["output_tokens"]) + (f", {_tokens(extended)}*" if extended else "")
    return [model["id"], lifecycle + retires, _yes(model["batch"]), _tokens(model["context_tokens"]), output]


def _price_rows(model: Facts) -> Iterator[list[str]]:
    """Yield a row for each size of prompt that has its own prices."""
    prices: Mapping[str, list[dict[str, float]]] | None = model["prices"]
    if prices is None:
        yield [model["id"], "unpriced"]
        return
    sizes = sorted({step["above_tokens"] for steps in prices.values() for step in steps})
    for above, up_to in zip(sizes, [*sizes[1:], None], strict=True):
        prompt = f"above {_tokens(above)}" if above else f"up to {_tokens(up_to)}" if up_to else "any"
        yield [model["id"], prompt, *(_dollars(_price_of_step(steps, above)) for steps in prices.values())]


def _price_of_step(steps: Sequence[Mapping[str, float]], above: float) -> float:
    return next(step["usd"] for step in reversed(steps) if step["above_tokens"] <= above)


def _capability_row(model: Facts) -> list[str]:
    thinking, effort = model["thinking"], model["effort"]
    return [
        model["id"],
        _yes(model["images"]),
        _yes(model["pdf"]),
        "?" if thinking is None else "/".join(thinking) or "no",
        "?" if effort is None else ", ".join(_ranges(effort)) or "no",
        _yes(model["structured_outputs"]),
        _yes(model["forced_tools"]),
    ]


def _ranges(effort: Sequence[str]) -> Iterator[str]:
    """Yield `low-high`, `max`: adjacent levels are joined to one range."""
    run: list[str] = []
    for level in (*EFFORTS, None):
        if level in effort:
            run.append(str(level))
        elif run:
            yield run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}"
            run = []


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "?"}[value]


def _tokens(n: float | None) -> str:
    """Return `1M`, `200k`, or all digits of a number that is not a multiple of 1,000; `?` for None."""
    if n is None:
        return "?"
    whole = int(n)
    if whole and whole % 1_000_000 == 0:
        return f"{whole // 1_000_000}M"
    return f"{whole // 1_000}k" if whole and whole % 1_000 == 0 else f"{whole:,}"


def _dollars(usd: float) -> str:
    """Return a price with at least two digits after the point, and no digit lost up to six."""
    whole, _, digits = f"{usd:.6f}".partition(".")
    return f"${whole}.{digits.rstrip('0').ljust(2, '0')}"
