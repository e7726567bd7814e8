"""The results of a batch are downloaded and stored."""

import threading
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


@pytest.mark.parametrize("memory", [0, 16_000_000])  # bytes of results that stay in memory
@pytest.mark.parametrize("fault", [None, "duplicate_lines", "conflicting_lines", "unknown_lines"])
def test_each_row_gets_its_own_result_in_whatever_order_and_pieces_results_arrive(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: str | None, memory: int
) -> None:
    monkeypatch.setattr(results_file, "MEMORY_BYTES", memory)
    monkeypatch.setattr(results_file, "STRETCH_BYTES", 3_000)  # a few lines
    monkeypatch.setattr(results_file, "CHUNK_BYTES", 5_000)
    world.rows(texts(50))
    if fault is not None:
        world.emulator.add_fault(on="results", do=fault)

    world.run(world.job())

    answers = world.answers()
    assert {key: answer["status"] for key, answer in answers.items()} == {f"r{i}": "succeeded" for i in range(50)}
    assert all(f"Text number {key[1:]} " in answer["text"] for key, answer in answers.items())


def test_a_driver_asked_to_stop_removes_what_it_has_fetched_ahead(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_file, "MEMORY_BYTES", 0)  # so that results go to files
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


@pytest.mark.parametrize(
    ("size", "windows"),
    [
        pytest.param(10, [(0, 4), (5, 9)], id="short answers: 50 rows"),
        pytest.param(900, [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)], id="20 rows"),
        pytest.param(5_000, [(n, n) for n in range(10)], id="long answers: 10 rows"),
    ],
)
def test_more_rows_that_share_requests_are_in_a_window_if_their_answers_are_short(
    planned: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, windows: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(results_file, "CHUNK_ROWS", 10)
    monkeypatch.setattr(results_file, "MORE_SHARING", 5)
    monkeypatch.setattr(results_file, "CHUNK_BYTES", 20_000)
    with planned.database.read() as conn:
        (batch,) = batches_in(conn, planned.known().id, BatchState.PLANNED)
    found = results_file.Found(tmp_path / "r.results", replace(batch, requests=10))
    found.add(result_line(f"{batch.nonce}-{n}", "succeeded", size) for n in range(10))
    found.finish()

    assert list(found.windows(dict.fromkeys(range(10), 10))) == windows


def result_line(custom_id: str, kind: str, size: int) -> bytes:
    """Return a result line that begins as the API's; `cut`: one that cannot be read."""
    line = f'{{"custom_id":"{custom_id}","result":{{"type":"{kind}","note":"{size * "x"}"}}}}'.encode()
    return line[:-1] if kind == "cut" else line


@given(
    answered=st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from(["succeeded", "expired", "cut"]), st.integers(0, 9))
    ),
    in_order=st.booleans(),
    piece=st.integers(1, 4),
    memory=st.sampled_from([0, 150, 300, 10_000]),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_results_in_memory_and_in_a_file_are_equal(
    planned: World,
    tmp_path: Path,
    answered: list[tuple[int, str, int]],
    in_order: bool,
    piece: int,
    memory: int,
) -> None:
    with planned.database.read() as conn:
        (batch,) = batches_in(conn, planned.known().id, BatchState.PLANNED)
    file = tmp_path / "r.results"
    file.unlink(missing_ok=True)
    answered = sorted(answered, key=lambda each: each[0]) if in_order else answered
    lines = [result_line(f"{batch.nonce}-{n}", kind, size) for n, kind, size in answered]
    rank = {"cut": 0, "expired": 1, "succeeded": 2}
    expected: dict[int, tuple[int, bytes]] = {}
    for (n, kind, _), line in zip(answered, lines, strict=True):
        if n not in expected or rank[kind] > expected[n][0]:
            expected[n] = rank[kind], line

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results_file, "MEMORY_BYTES", memory)
        patch.setattr(results_file, "STRETCH_BYTES", 100)
        found = results_file.Found(file, replace(batch, requests=10))
        for at in range(0, len(lines), piece):
            found.add([*lines[at : at + piece], b'{"custom_id":"another"}', b""])
        found.finish()

    with found.opened() as lines_at:
        stored = lines_at(0, 4) | lines_at(5, 9)
    assert stored == {n: line for n, (_, line) in expected.items()}
    assert found.known == len(lines)
    assert found.unknown == len(range(0, len(lines), piece))
    assert file.exists() == (sum(len(line) + 1 for line in lines) > memory)
