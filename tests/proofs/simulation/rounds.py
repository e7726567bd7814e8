"""What must hold of rows in rounds: each request goes on from the one before, and no call is made without need."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.states import CONTINUED
from tests.proofs.simulation.books import Sent, uses_of
from tests.proofs.simulation.tools import GAVE_UP, result_of

if TYPE_CHECKING:
    from tests.proofs.simulation.drivers import Process
    from tests.proofs.simulation.world import World


class Conversations:
    """The conversations of the rows of a world, from request to request."""

    def __init__(self, world: "World") -> None:
        self._world, self._books = world, world.books
        self._before: dict[tuple[str, str], Sent] = {}
        self.gave_up: set[tuple[str, str]] = set()  #: requests with a result of a call that took too long

    def enter(self, key: str, earlier: Sequence[Sent], now: Sent) -> None:
        """Note which request a later round goes on from, and that the answer and the results of its tools are right."""
        rounds = [sent for sent in earlier if sent.round == now.round - 1]
        before = next((sent for sent in reversed(rounds) if self._goes_on(sent, now)), None)
        if before is None:
            self._world.violated(f"{key} is accepted in {now.api_id} in round {now.round} of nothing: {rounds}")
            return
        self._before[now.api_id, now.custom_id] = before
        if (before.api_id, before.custom_id) in self.gave_up:
            self.gave_up.add((now.api_id, now.custom_id))

    def _goes_on(self, before: Sent, now: Sent) -> bool:
        """Return whether a request is the one before with its answer, and a right result for each call of a tool."""
        result = self._books.result(before)
        if result is None or self._books.status(before)[0] != CONTINUED:
            return False
        first, second = self._books.params(before), self._books.params(now)
        rest = [{name: value for name, value in each.items() if name != "messages"} for each in (first, second)]
        turns = [*first["messages"], {"role": "assistant", "content": result["message"]["content"]}]
        added = second["messages"][len(turns) :]
        if rest[0] != rest[1] or second["messages"][: len(turns)] != turns:
            return False
        uses = uses_of(result)
        if not uses:
            return not added
        results = added[0]["content"] if len(added) == 1 and added[0]["role"] == "user" else []
        return len(results) == len(uses) and all(
            self._is_right(now, use, made) for use, made in zip(uses, results, strict=True)
        )

    def _is_right(self, now: Sent, use: dict[str, Any], made: dict[str, Any]) -> bool:
        """Return whether a result is that of this call. One that took too long is noted."""
        right: dict[str, Any] = {"type": "tool_result", "tool_use_id": use["id"]}
        try:
            right["content"] = result_of(use["name"], use["input"])
        except ValueError as exc:
            right |= {"content": f"{use['name']} failed: ValueError: {exc}", "is_error": True}
        if made == right:
            return True
        self.gave_up.add((now.api_id, now.custom_id))
        return bool(made.get("is_error")) and made["tool_use_id"] == use["id"] and made["content"].endswith(GAVE_UP)

    def whole(self, last: Sent) -> list[Sent]:
        """Return the requests of a conversation up to this one, each in its last try."""
        found = [last]
        while found[0].round > 1 and (before := self._before.get((found[0].api_id, found[0].custom_id))) is not None:
            found.insert(0, before)
        return found

    def has_trouble(self, key: str, answer: Any, sent: Sent) -> str | None:
        """Return what is wrong with the sums of an answer over its rounds; None: nothing."""
        conversation = self.whole(sent)
        cost = sum(map(self._books.cost_of, conversation))
        calls = sum(len(uses_of(self._books.result(each) or {})) for each in conversation[:-1])
        if answer.rounds != sent.round or answer.tool_calls != calls:
            return f"{key} has {answer.rounds} rounds and {answer.tool_calls} calls instead of {sent.round} and {calls}"
        if abs(answer.cost_usd - cost) > 1e-9 and not self._world.odd:
            return f"{key} costs {answer.cost_usd}, and its rounds {cost}"
        return None

    def check_calls(self) -> None:
        """Check that each call was asked for, and made again only after a driver died or could be presumed dead."""
        self._books.read_results()
        for call, callers in self._world.tools.callers.items():
            asked = self._books.asked[call]
            troubled = sum(map(self._is_troubled, callers))
            if not asked or len(callers) > asked + troubled:
                names = ", ".join(process.name for process in callers)
                self._world.violated(f"{call} was asked for {asked} times, and called by {names}")

    def _is_troubled(self, process: "Process") -> bool:
        """Return whether the result of a call by this driver may not have been stored."""
        world = self._world
        # on SQLite drivers see by their own clocks whether another one still lives
        wrong_clocks = world.shared.is_sqlite and any(each.skew for each in world.processes)
        ended = process.state == "dead" or process.error is not None or process.stop.event.is_set()
        return ended or process.was_stopped or wrong_clocks
