"""The results of a batch are downloaded and stored."""

import threading
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from pipeline.runner.options import Options
from pipeline.runner.run import run
from pipeline.runner.sweep import sweep
from pipeline.state.batches import batches_in
from pipeline.states import BatchState
from pipeline.steps import results_file
from tests.conftest import World, texts


class Asked(httpx2.BaseTransport):
    """Records whose results were requested, in order."""

    def __init__(self, world: World) -> None:
        self._inner = world.emulator.transport()
        self.second = threading.Event()
        self.paths: list[str] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("/results"):
            self.paths.append(request.url.path)
            if len(self.paths) == 2:
                self.second.set()
        return self._inner.handle_request(request)


def test_the_next_results_are_fetched_while_those_of_a_batch_are_stored(world: World) -> None:
    world.rows(texts(4))
    run(world.job(limits={"max_batch_requests": 2}), world.where(), Options(detach=True))
    world.clock.advance(61)
    asked = Asked(world)
    fetched: list[bool] = []
    world.on_event = lambda event, facts: fetched.append(asked.second.wait(30)) if event == "collected" else None

    sweep(world.where(asked))

    assert fetched == [True, True]
    assert world.statuses() == {f"r{i}": "succeeded" for i in range(4)}


@pytest.mark.parametrize("fault", [None, "duplicate_lines", "conflicting_lines", "unknown_lines"])
def test_each_row_gets_its_own_result_in_whatever_order_and_pieces_results_arrive(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: str | None
) -> None:
    monkeypatch.setattr(results_file, "STRETCH_BYTES", 3_000)  # a few lines
    monkeypatch.setattr(results_file, "CHUNK_BYTES", 5_000)
    world.rows(texts(50))
    if fault is not None:
        world.emulator.add_fault(on="results", do=fault)

    world.run(world.job())

    answers = world.answers()
    assert {key: answer["status"] for key, answer in answers.items()} == {f"r{i}": "succeeded" for i in range(50)}
    assert all(f"Text number {key[1:]} " in answer["text"] for key, answer in answers.items())


def test_a_driver_asked_to_stop_removes_what_it_has_fetched_ahead(world: World) -> None:
    world.rows(texts(6))
    job = world.job(limits={"max_batch_requests": 2})

    world.dies_at(job, "collected")

    assert fetched_files(world) == []
    assert sorted(world.states().values()) == 4 * ["in_flight"] + 2 * ["succeeded"]
    assert world.run(job).rows == {"succeeded": 6}
    assert world.sent_twice() == []


def fetched_files(world: World) -> list[Path]:
    return list(world.folder.rglob("*.results"))


def test_windows_of_results_are_cut_by_the_rows_of_each_request(
    planned: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_file, "CHUNK_ROWS", 10)
    with planned.database.read() as conn:
        (batch,) = batches_in(conn, planned.known().id, BatchState.PLANNED)
    found = results_file.Found(tmp_path / "r.results", replace(batch, requests=25))

    assert list(found.windows({})) == [(0, 9), (10, 19), (20, 24)]
    assert list(found.windows({3: 1_000, 24: 10})) == [(0, 2), (3, 3), (4, 13), (14, 23), (24, 24)]
