"""The fewest tokens of a prefix that a model writes to the prompt cache. Pure.

The pipeline and the emulator use this one table. Source:
platform.claude.com/docs/en/build-with-claude/prompt-caching, "Cache limitations".
"""

OF_OTHERS = 1024
#: By the model's line and generation, where it is not OF_OTHERS. (5, 0) is 5, (4, 7) of mythos is Mythos Preview.
_BY_MODEL: dict[tuple[str, tuple[int, int]], int] = {
    ("opus", (4, 5)): 4096,
    ("opus", (4, 6)): 4096,
    ("haiku", (4, 5)): 4096,
    ("opus", (4, 7)): 2048,
    ("mythos", (4, 7)): 2048,
    ("opus", (5, 0)): 512,
    ("opus", (5, 5)): 512,
    ("sonnet", (5, 5)): 512,
    ("haiku", (5, 5)): 512,
    ("fable", (5, 0)): 512,
    ("fable", (5, 1)): 512,
    ("mythos", (5, 0)): 512,
    ("mythos", (5, 1)): 512,
}


def fewest_tokens(line: str, generation: tuple[int, int]) -> int:
    """Return the fewest tokens of a prefix that this model caches. generation: (4, 6) for 4.6."""
    return _BY_MODEL.get((line, generation), OF_OTHERS)
