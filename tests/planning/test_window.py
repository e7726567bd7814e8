"""A request that is too long for its model is invalid when it is planned, not errored an hour later."""

from typing import Any

import pytest

from pipeline.emulator import Emulator
from tests.conftest import World, texts

HAIKU = 200_000  # tokens that claude-haiku-4-5 reads; the emulator counts a token for every four bytes
FITS, LONG = "word " * 150_000, "word " * 170_000


def counted(emulator: Emulator) -> int:
    return sum(call["path"].endswith("/count_tokens") for call in emulator.log())


def rows(world: World, *long: str) -> None:
    world.rows([*texts(3), *({"id": f"long{i}", "text": text} for i, text in enumerate(long))])


def problem(world: World, key: str) -> Any:
    answer = world.answers()[key]
    return answer["status"], answer["error_message"]


def test_a_row_too_long_for_its_model_is_invalid_and_names_a_model_that_can_read_it(world: World) -> None:
    rows(world, FITS, LONG)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 4, "invalid": 1}
    status, said = problem(world, "long1")
    assert status == "invalid"
    assert said.startswith("the request has 212,5")
    assert (
        "tokens, and claude-haiku-4-5 reads at most 200,000: shorten the row, or set request.model to claude-haiku-5-5"
        in said
    )
    assert said.endswith("which reads 1,000,000")
    assert world.accepted() == 4


def test_a_row_is_sent_when_its_model_has_a_larger_window(world: World) -> None:
    rows(world, LONG)

    assert world.run(world.job(request={"model": "claude-haiku-5-5"})).rows == {"succeeded": 4}


def test_only_rows_near_the_window_are_counted_when_they_are_planned(world: World) -> None:
    rows(world, "word " * 20_000, LONG)
    world.run(world.job(), dry_run=True)
    before = counted(world.emulator)

    world.run(world.job())

    assert before == 5  # the sample of the quote
    assert counted(world.emulator) == 2 * before + 1  # a dry run of a new job stores nothing


@pytest.mark.parametrize(
    ("text", "rows_by_state"),
    [
        pytest.param(LONG, {"succeeded": 3, "errored": 1}, id="it may fit"),
        pytest.param("word " * 900_000, {"succeeded": 3, "invalid": 1}, id="it cannot fit"),
    ],
)
def test_without_a_count_of_the_api_only_rows_that_cannot_fit_are_invalid(
    world: World, text: str, rows_by_state: dict[str, int]
) -> None:
    world.emulator.add_fault(on="count_tokens", do="status", status=404, error_type="not_found_error", times=1000)
    rows(world, text)

    assert world.run(world.job()).rows == rows_by_state
