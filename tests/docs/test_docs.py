"""docs/reliability.md names tests that there are, and leaves out no fault."""

import re
from pathlib import Path
from typing import get_args

from pipeline.emulator.rules import Do

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_test_that_it_names_exists() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))

    named = set(re.findall(r"`(test_\w+)`", TEXT))

    assert {name for name in named if f"def {name}(" not in code} == set()
    assert len(named) > 40


def test_every_fault_of_the_emulator_is_in_it() -> None:
    assert {fault for fault in get_args(Do) if f"`{fault}`" not in TEXT} == set()
