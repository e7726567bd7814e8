"""`models` lists the models that a key can use, their prices in a batch, and their capabilities."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.api.client import Api
from pipeline.cli import models_table
from pipeline.cli.models_table import Facts
from pipeline.emulator import Emulator
from pipeline.job.model import Price
from pipeline.money.prices import PriceList
from tests.api.test_capabilities import model
from tests.emulator.builders import client_of

EXTENDED = "output-300k-2026-03-24"


@pytest.fixture
def listed(tmp_path: Path) -> Iterator[dict[str, Facts]]:
    """Return the facts of the emulator's models, by id."""
    with Emulator(tmp_path) as emulator:
        models = Api(client_of(emulator)).models()
        yield {model["id"]: model for model in models_table.model_facts(models, PriceList())}


def facts(**fields: Any) -> Facts:
    """Return the facts of one model."""
    (found,) = models_table.model_facts([model(**fields)], PriceList())
    return found


def table(*models: Facts) -> list[list[str]]:
    """Return the printed lines, each split into its columns."""
    return [[cell for cell in line.split("  ") if cell] for line in map(str.strip, models_table.model_lines(models))]


def cells(models: list[list[str]], name: str) -> list[list[str]]:
    """Return the lines of one model without its id."""
    return [[cell.strip() for cell in line[1:]] for line in models if line and line[0] == name]


def test_all_facts_of_a_model_are_on_its_lines(listed: dict[str, Facts]) -> None:
    lines = table(listed["claude-opus-5"])

    assert cells(lines, "claude-opus-5") == [
        ["active", "yes", "1M", "128k, 300k*"],
        ["any", "$2.50", "$12.50", "$0.25", "$3.125", "$5.00"],
        ["yes", "yes", "adaptive/disabled", "low-max", "yes", "yes"],
    ]
    assert lines[-1] == [f"* with {EXTENDED} in request.betas"]


def test_a_deprecated_model_says_when_it_retires(listed: dict[str, Facts]) -> None:
    lines = table(listed["claude-sonnet-4-5-20250929"])

    assert cells(lines, "claude-sonnet-4-5-20250929")[0] == ["deprecated, retires 2026-11-30", "yes", "200k", "64k"]
    assert not any(EXTENDED in cell for line in lines for cell in line)


def test_a_model_whose_price_steps_up_has_a_line_for_each_size_of_prompt(listed: dict[str, Facts]) -> None:
    lines = table(listed["claude-haiku-5-5"])

    assert cells(lines, "claude-haiku-5-5")[1:3] == [
        ["up to 100k", "$0.05", "$0.25", "$0.005", "$0.0625", "$0.10"],
        ["above 100k", "$0.25", "$1.25", "$0.025", "$0.3125", "$0.50"],
    ]


def test_a_model_without_a_known_price_is_unpriced(listed: dict[str, Facts]) -> None:
    lines = table(listed["claude-mythos-5"])

    assert cells(lines, "claude-mythos-5")[1] == ["unpriced"]
    assert listed["claude-mythos-5"]["prices"] is None


def test_prices_of_the_job_replace_the_known_ones() -> None:
    own = PriceList({"claude-sonnet-5": Price(input=0.7, output=3)})

    (found,) = models_table.model_facts([model("claude-sonnet-5")], own)

    assert found["prices"]["input"] == [{"above_tokens": 0, "usd": 0.7}]


def test_prices_as_json_are_steps_of_the_prompt(listed: dict[str, Facts]) -> None:
    assert listed["claude-haiku-5-5"]["prices"]["input"] == [
        {"above_tokens": 0, "usd": 0.05},
        {"above_tokens": 100_000, "usd": 0.25},
    ]
    assert list(listed["claude-haiku-5-5"]["prices"]) == list(Price.RATES)


def test_every_model_is_listed_except_retired_ones(listed: dict[str, Facts]) -> None:
    assert "claude-opus-5" in listed
    assert "claude-3-haiku-20240307" not in listed
    assert {facts["lifecycle"] for facts in listed.values()} == {"active", "deprecated"}


def test_the_tables_fit_a_terminal_of_120_columns(listed: dict[str, Facts]) -> None:
    widest = facts(thinking=("adaptive", "between_tools", "disabled", "enabled"), efforts=("low", "high", "max"))

    lines = list(models_table.model_lines([*listed.values(), widest]))

    assert max(len(line) for line in lines) <= 120
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize(
    ("name", "forced"),
    [("claude-opus-5-5", False), ("claude-fable-5-1", False), ("claude-fable-5", True), ("claude-haiku-5-5", True)],
)
def test_the_list_says_whether_a_model_can_be_forced_to_use_a_tool(
    listed: dict[str, Facts], name: str, forced: bool
) -> None:
    assert listed[name]["forced_tools"] is forced


def test_a_model_that_takes_no_batches_says_so_and_whether_a_tool_can_be_forced() -> None:
    found = facts(name="claude-opus-5-5", without=("batch",))

    assert (found["batch"], found["forced_tools"]) == (False, False)
    assert cells(table(found), "claude-opus-5-5")[0][1] == "no"


@pytest.mark.parametrize(
    ("efforts", "said"),
    [
        ((), "no"),
        (("high",), "high"),
        (("low", "medium", "high", "max"), "low-high, max"),
        (("low", "medium", "high", "xhigh", "max"), "low-max"),
    ],
    ids=["none", "one", "a gap", "all"],
)
def test_consecutive_levels_of_effort_are_shown_as_a_range(efforts: tuple[str, ...], said: str) -> None:
    found = facts(name="claude-opus-5", efforts=efforts)

    assert cells(table(found), "claude-opus-5")[2][3] == said


def test_a_fact_that_the_api_does_not_give_is_a_question_mark() -> None:
    found = facts(name="claude-opus-9", capabilities=None, max_input_tokens=None, max_tokens=None)

    assert cells(table(found), "claude-opus-9") == [
        ["active", "?", "?", "?"],
        ["unpriced"],
        ["?", "?", "?", "?", "?", "yes"],
    ]


def test_an_empty_list_of_models_says_so() -> None:
    assert list(models_table.model_lines([])) == ["the API lists no model for this key"]
