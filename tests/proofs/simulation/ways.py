"""What properties do the job and the API of a schedule have?"""

import random
from dataclasses import dataclass


@dataclass
class Ways:
    """The properties of the job and the API of one schedule."""

    rows: int
    batch_requests: int
    processing_seconds: float
    budget_usd: float | None
    in_flight: int
    attempts: int
    dedupe: bool
    history: bool
    delete_remote: bool
    accounts: int
    canary: bool = False
    alike: bool = False  #: most rows have the text of another row, so that they share requests
    retries: bool = False  #: many answers are cut off, and a person retries such rows again and again
    trial: str | None = None  #: what kind of trial the job has, see `asked.CHANGES`; None: it has none
    sample: int = 400  #: rows of the trial
    rounds: int = 1  #: the most rounds of a row; 1: the job has no tools, and no answer goes on
    wait: str = "10m"  #: how long a round waits for other rows
    tool_seconds: float = 30  #: the longest time of a call
    recipe: int = 0

    @classmethod
    def draw(cls, chance: random.Random) -> "Ways":
        """Return random properties."""
        drawn = cls(
            rows=chance.randint(2, 6),
            batch_requests=chance.randint(1, 3),
            processing_seconds=chance.choice((50, 50, 50, 400, 3_000, 90_000)),
            budget_usd=chance.choice((None, None, None, chance.uniform(0.0003, 0.003))),
            in_flight=chance.choice((200_000, 200_000, chance.randint(1, 4))),
            attempts=chance.randint(1, 3),
            dedupe=chance.random() < 0.7,
            history=chance.random() < 0.5,
            delete_remote=chance.random() < 0.3,
            accounts=chance.choice((1, 1, 1, 1, 2)),
        )
        if chance.random() < 0.2:
            drawn.rows, drawn.canary = chance.randint(10, 12), True
            # with smaller batches one after the other, the schedule would take weeks
            drawn.batch_requests, drawn.in_flight = 3, 200_000
        elif chance.random() < 0.3:
            drawn.retries, drawn.processing_seconds = True, 50
        if chance.random() < 0.4:
            drawn.alike, drawn.rows, drawn.batch_requests = True, drawn.rows + 4, min(2, drawn.batch_requests)
        if chance.random() < 0.35:
            drawn.trial, drawn.sample = chance.choice(("prompt", "prompt", "tokens")), chance.choice((2, 400))
        if chance.random() < 0.35:
            drawn.rounds, drawn.wait = chance.choice((2, 3, 4, 6)), chance.choice(("1m", "10m", "2h"))
            drawn.tool_seconds = chance.choice((30, 86_400, 86_400))
            drawn.processing_seconds = min(drawn.processing_seconds, 3_000)  # of each round
        if drawn.processing_seconds > 3_000:  # one batch after the other would take weeks
            drawn.in_flight = 200_000
        return drawn
