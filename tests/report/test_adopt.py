"""`compare` chooses the trial that should be the job's, and writes what it asks otherwise as YAML."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.job import yamlfile
from pipeline.quality.compare import Comparison, GoldComparison, SideComparison
from pipeline.quality.figures import Share
from pipeline.quality.pair_tally import PairTally
from pipeline.quality.statistics import Interval
from pipeline.report.adopt import adoption, yaml_lines

VALUES = st.recursive(
    st.text() | st.integers(-(10**15), 10**15) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=5,
)
#: Characters that no YAML file can hold, so that no job file has them.
NEVER = str.maketrans(dict.fromkeys([*range(0x7F, 0xA0), 0xFFFE, 0xFFFF, 0xFEFF], "x"))


def without(value: Any) -> Any:
    """Return the value without the characters of NEVER, and without empty mappings."""
    if isinstance(value, str):
        return value.translate(NEVER)
    if isinstance(value, list):
        return [without(each) for each in value]
    return {name: without(each) for name, each in value.items()} if isinstance(value, dict) else value


@given(prompt=st.text(), value=VALUES)
def test_what_is_written_is_read_as_the_same(prompt: str, value: Any) -> None:
    changes = {"request.prompt": without(prompt), "request.params.x": without(value), "request.model": "a-1"}

    parsed, _ = yamlfile.parse("\n".join(yaml_lines(changes)) + "\n", "adopt")

    assert parsed == {"request": {"prompt": without(prompt), "params": {"x": without(value)}, "model": "a-1"}}


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("One line.", ["request:", '  prompt: "One line."']),
        ("Two\n\n  lines\n", ["request:", "  prompt: |", "    Two", "", "      lines"]),
        ("Two\nlines", ["request:", "  prompt: |-", "    Two", "    lines"]),
        ("Two\nlines\n\n", ["request:", "  prompt: |+", "    Two", "    lines", ""]),
        (" indented\nlines", ["request:", '  prompt: " indented\\nlines"']),
    ],
)
def test_texts_of_several_lines_are_blocks(text: str, lines: list[str]) -> None:
    assert list(yaml_lines({"request.prompt": text})) == lines


def side(name: str, right: int, *, only_base: int, only_other: int, p: float, cost: float = 1.0) -> SideComparison:
    tally = PairTally({}, pairs=100, agree=50, cost_usd=[1.0, cost], statuses=Counter())
    gold = GoldComparison(
        accuracies=(Share(80, 100, 100), Share(right, 100, 100)),
        only_base=only_base,
        only_other=only_other,
        requests=100,
        difference=Interval(-0.1, 0.1),
        p=p,
        p_adjusted=p,
        loss=0.03,
        needed=None,
    )
    return SideComparison(name, tally, 100, cost, True, gold)


def chosen(base: str, *sides: SideComparison, max_drop: float | None = None) -> str | None:
    changes = {name: {"request.model": name} for name in ("a", "b", "c")} | {"same": {}}
    found = adoption(Comparison(base, 100, 1.0, list(sides), changes, chosen=False), max_drop)
    return None if found is None else found.side


def test_the_best_of_the_better_sides_is_chosen() -> None:
    good, best = (side(n, right, only_base=0, only_other=9, p=0.01) for n, right in (("a", 85), ("b", 90)))
    alike = side("c", 99, only_base=4, only_other=5, p=0.9)

    assert chosen("current", good, best, alike) == "b"
    assert chosen("current", alike) is None
    assert chosen("current", side("current", 90, only_base=0, only_other=9, p=0.01)) is None
    assert chosen("current", side("same", 90, only_base=0, only_other=9, p=0.01)) is None


def test_the_base_is_chosen_if_the_present_answers_are_worse() -> None:
    assert chosen("a", side("current", 60, only_base=9, only_other=0, p=0.01)) == "a"
    assert chosen("a", side("b", 60, only_base=9, only_other=0, p=0.01)) is None


def test_a_cheaper_side_is_chosen_if_the_loss_is_allowed() -> None:
    cheap, cheapest = (side(n, 79, only_base=5, only_other=4, p=0.9, cost=c) for n, c in (("a", 0.5), ("b", 0.2)))
    dear = side("c", 81, only_base=4, only_other=5, p=0.9, cost=3.0)

    assert chosen("current", cheap, cheapest, dear, max_drop=0.05) == "b"
    assert chosen("current", cheap, cheapest, dear, max_drop=0.01) is None
    assert chosen("current", cheap, cheapest, dear) is None
