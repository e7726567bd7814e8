"""What did a row use over all its rounds? Pure."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.answer.outcome import Outcome
from pipeline.state.turns import Earlier

#: The classes of tokens that add up, named as the fields of an outcome.
TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


def usage_of(outcome: Outcome, cost: float | None, attempts: int, calls: int) -> dict[str, Any]:
    """Return what one round used, as it is stored with its turn.

    cost: in US dollars; None: unknown. attempts: sendings of this round. calls: tools that its answer asks for.
    """
    used: dict[str, Any] = {name: getattr(outcome, name) for name in TOKENS}
    used |= {"cost_usd": cost, "attempts": attempts, "calls": calls}
    server_tools = (outcome.values or {}).get("server_tool_use")
    return used if server_tools is None else {**used, "server_tool_use": server_tools}


class Total(NamedTuple):
    """The outcome of a row with the sums over all its rounds. cost: in US dollars; None: of one it is unknown."""

    outcome: Outcome
    cost: float | None
    attempts: int

    @classmethod
    def of(
        cls, outcome: Outcome, cost: float | None, attempts: int, earlier: Earlier, *, counts_calls: bool
    ) -> "Total":
        """Add the earlier rounds of a row to its last one.

        outcome, cost, attempts: of the last round. counts_calls: whether the results table has a column `tool_calls`.
        """
        usages = earlier.usages
        sums = {name: getattr(outcome, name) + sum(used[name] for used in usages) for name in TOKENS} if usages else {}
        values: dict[str, Any] = {**(outcome.values or {}), "rounds": earlier.round}
        if counts_calls:
            values["tool_calls"] = sum(used["calls"] for used in usages)
        if server_tools := _added(used.get("server_tool_use") for used in (*usages, values)):
            values["server_tool_use"] = server_tools
        costs = [cost, *(used["cost_usd"] for used in usages)]
        known = [each for each in costs if each is not None]
        return cls(
            outcome._replace(values=values, **sums),
            round(sum(known), 12) if len(known) == len(costs) else None,
            attempts + sum(used["attempts"] for used in usages),
        )


def _added(uses: Any) -> dict[str, Any]:
    """Return how often each tool of the API was used in all rounds. uses: of each round; None: there were none."""
    total: Counter[str] = Counter()
    for of_round in uses:
        if isinstance(of_round, Mapping):
            total.update(of_round)
    return dict(total)
