from collections.abc import Iterator
from pathlib import Path

import anthropic
import httpx2
import pytest

from pipeline.emulator import Emulator, start
from tests.emulator.builders import HEADERS, Served, client_of, http_of


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[Emulator]:
    """An emulator in this process whose batches end at once."""
    with Emulator(tmp_path / "data") as emulator:
        yield emulator


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Emulator]:
    """An emulator in this process whose batches take an hour by its clock."""
    with Emulator(tmp_path / "slow", processing_seconds=3600) as emulator:
        yield emulator


@pytest.fixture
def client(emulator: Emulator) -> anthropic.Anthropic:
    return client_of(emulator)


@pytest.fixture(params=["in process", "over HTTP"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    """An emulator whose batches end at once, with a client: once in this process, once over HTTP."""
    if request.param == "in process":
        with Emulator(tmp_path / "data") as emulator:
            yield Served(emulator, http_of(emulator))
        return
    with start(tmp_path / "data") as running, httpx2.Client(base_url=running.url, headers=HEADERS) as http:
        yield Served(running.emulator, http)
