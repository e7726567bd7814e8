"""docs/emulator.md explains every fault rule and every setting, and its examples are valid."""

import re
from pathlib import Path
from typing import get_args

import pytest
from ruamel.yaml import YAML

from pipeline.emulator import Settings
from pipeline.emulator.faults import parse_faults
from pipeline.emulator.http.router import ROUTES
from pipeline.emulator.rules import Do, Fault, On

TEXT = (Path(__file__).parents[2] / "docs" / "emulator.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"`(\{on: .*?\})`", TEXT)


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_in_the_docs_is_a_valid_rule(example: str) -> None:
    assert parse_faults([YAML(typ="safe").load(example)])


def test_every_fault_has_an_example_and_every_field_is_explained() -> None:
    rules = parse_faults([YAML(typ="safe").load(example) for example in EXAMPLES])

    assert {rule.do for rule in rules} == set(get_args(Do))
    assert {name for name in Fault.model_fields if f"`{name}`" not in TEXT} == set()
    assert {name for name in get_args(On) if f"`{name}`" not in TEXT} == set()


def test_every_setting_and_every_operation_is_explained() -> None:
    assert {name for name in Settings.model_fields if f"`{name}`" not in TEXT} == set()
    paths = {pattern.pattern.replace("([^/]+)", "{id}") for _, pattern, _, _ in ROUTES}
    assert {path for path in paths if f"{path}`" not in TEXT} == set()


def test_the_example_file_of_the_docs_is_valid() -> None:
    block = re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)

    assert block is not None
    value = YAML(typ="safe").load(block.group(1))
    Settings.model_validate(value["settings"])
    assert parse_faults(value["faults"])
