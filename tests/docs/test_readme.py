"""The README says what is so."""

import re
from pathlib import Path

import typer.main

from pipeline.cli.app import app
from pipeline.sink.columns import FIXED
from pipeline.states import BATCH_MOVES, OUTCOMES

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_its_state_diagram_shows_just_the_legal_moves() -> None:
    drawn = {(before, after) for before, after in re.findall(r"^    (\w+) --> (\w+)", README, re.MULTILINE)}

    assert drawn == {(before.value, after.value) for before, moves in BATCH_MOVES.items() for after in moves}


def test_it_names_every_command_and_every_option() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]

    for name, command in commands.items():
        assert f"| `{name}" in README, name
        for parameter in command.params:
            if not getattr(parameter, "hidden", False):
                assert any(option in README for option in parameter.opts if option[0] == "-" or parameter.metavar)


def test_it_names_every_status_and_every_column() -> None:
    assert all(f"`{status}`" in README for status in OUTCOMES)
    assert all(f"`{column}`" in README for column, _ in FIXED)


def test_it_names_every_variable_that_the_code_reads() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (Path(__file__).parents[2] / "pipeline").rglob("*.py"))

    assert all(name in README for name in re.findall(r'"(BATCH_[A-Z_]+)"', code))
