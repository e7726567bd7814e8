from collections.abc import Iterator
from pathlib import Path

import anthropic
import pytest

from pipeline.emulator import Emulator
from tests.emulator.builders import client_of


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[Emulator]:
    """In process, batches end at once."""
    with Emulator(tmp_path / "data") as emulator:
        yield emulator


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Emulator]:
    """In process, a batch takes an hour by the clock."""
    with Emulator(tmp_path / "slow", processing_seconds=3600) as emulator:
        yield emulator


@pytest.fixture
def client(emulator: Emulator) -> anthropic.Anthropic:
    return client_of(emulator)
