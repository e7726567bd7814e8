"""The rows of the jobs in which a command dies at one place."""

from typing import Any

MODEL = "claude-haiku-4-5"
#: text in a body whose first request is that of a row that begins with "lost"
LOST = '-0","params":{"model":"claude-haiku-4-5","max_tokens":30,"messages":[{"role":"user","content":"lost '
MAX_BATCH_BYTES = 2_400  # the emulator's limit: less than two long rows
LONG = "A long one. " * 100
ENDLESS = "and on " * 160  # an answer starts like its text, so this one is longer than max_tokens


def faulty(name: str) -> list[str]:
    """Texts of rows that make one batch, which is too large: it is split in two. In one of them a row fails at first,
    the other is accepted without an answer, and a row of it is cut off. The row without a text cannot be sent.

    name: of the point, so that its requests are its own.
    """
    return [f"again {name} {LONG}", f"a {name}", "", f"lost {name} {ENDLESS}", f"b {name}"]


def gated(name: str) -> list[str]:
    """Return the texts of ten rows: the first is sent before the others, and the answer of one is cut off."""
    return [f"first {name}", f"cut {name} {ENDLESS}", *(f"{i} {name}" for i in range(8))]


GATED: dict[str, Any] = {
    "canary": {"rows": 1},
    "limits": {"max_batch_requests": 9, "max_cost_usd": 1.0},
    "retry": {"change": {"truncated": {"max_tokens": "20x"}}},
}


def waiting(name: str) -> list[str]:
    """Return texts for batches of two rows: one gets no response, one gets a response, and one has no room."""
    return [f"{text} {name}" for text in ("lost", "a", "b", "c", "d", "e")]


def alike(name: str) -> list[str]:
    """Return the texts of nine rows, of which six share three requests; batches hold two.

    The second of each pair joins the batch of the first, or copies its answer when that is stored. One request fails
    at first.
    """
    return [f"{text} {name}" for text in ("a", "again", "b", "a", "c", "again", "d", "b", "a")]
