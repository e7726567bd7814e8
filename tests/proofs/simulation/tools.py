"""The tools of the job: what they answer, and who has called them how often?"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tests.support.talking import TOOLS, answer_of

if TYPE_CHECKING:
    from tests.proofs.simulation.drivers import Process
    from tests.proofs.simulation.world import World

IN_A_CALL = ("the call of ", "the work of ", "the result of ")  #: how moments within a call are called
GAVE_UP = " s and was given up"  #: how the result of a call ends that took too long


def result_of(tool: str, given: Mapping[str, Any]) -> str:
    """Return what a tool returns. Raises ValueError for every fifth length of a word."""
    word = str(given["word"])
    if len(word) % 5 == 0:
        raise ValueError(f"nothing is known of {word}")
    return answer_of(tool, word)


class Tools:
    """The tools of a world, with a moment before and after each call, in which time may pass."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.functions: dict[str, Callable[[str], str]] = {tool: self._function(tool) for tool in TOOLS}
        self.callers: defaultdict[str, list[Process]] = defaultdict(list)  #: by the id of the call, in their order

    def note(self, call: str) -> None:
        """Note that the running driver makes a call. call: the id of the block that asks for it."""
        assert self._world.process is not None
        self.callers[call].append(self._world.process)

    def _function(self, tool: str) -> Callable[[str], str]:
        def called(word: str) -> str:
            world = self._world
            world.turns.moment(f"{IN_A_CALL[0]}{tool}")
            if world.chance.random() < 0.2:
                world.wait(lambda: False, world.chance.uniform(1, 20), f"{IN_A_CALL[1]}{tool}")
            world.turns.moment(f"{IN_A_CALL[2]}{tool}")
            return result_of(tool, {"word": word})

        called.__qualname__ = tool
        return called
