"""The process that holds a lease is dead only if this process can see that it is."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.state import holders
from pipeline.state.holders import holder, is_dead, lives

LIVES, ENDED, NOT_SEEN = True, False, None


@contextmanager
def another_process(program: str = "") -> Iterator[subprocess.Popen[str]]:
    """Start a process that has run the program and waits."""
    command = [sys.executable, "-c", f"{program}\nprint('there', flush=True)\ninput()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "there\n"
        yield other
        other.kill()


def holder_of(pid: int) -> dict[str, Any]:
    """Return the holder that describes this process of the machine."""
    stat = holders._stat(pid)
    assert stat is not None
    return holder() | {"pid": pid, "started": stat.started}


@pytest.mark.parametrize(
    ("difference", "seen"),
    [
        pytest.param({}, LIVES, id="this very process"),
        pytest.param({"started": "0"}, ENDED, id="another process has its number by now"),
        pytest.param({"host": "renamed"}, LIVES, id="the machine has another name by now"),
        pytest.param({"host": "renamed", "started": "0"}, ENDED, id="the machine was renamed since it died"),
        pytest.param({"boot": "another"}, NOT_SEEN, id="another machine of this name, or this one before its restart"),
        pytest.param({"boot": "another", "started": "0"}, NOT_SEEN, id="the same, and its number is another's here"),
        pytest.param({"boot": "another", "pid": 2**22}, NOT_SEEN, id="the same, and no process here has its id"),
        pytest.param({"boot": None, "started": "0"}, NOT_SEEN, id="a machine without /proc"),
        pytest.param({"namespace": "pid:[1]", "started": "0"}, NOT_SEEN, id="another container"),
        pytest.param({"namespace": None, "started": "0"}, NOT_SEEN, id="an unknown container"),
        pytest.param({"started": None}, NOT_SEEN, id="it could not read its start time"),
        pytest.param({"started": None, "pid": 2**22}, NOT_SEEN, id="the same, and no process has its id"),
        pytest.param({"started": ""}, NOT_SEEN, id="a start time that is empty"),
        pytest.param({"started": "today"}, NOT_SEEN, id="a start time that is no number of ticks"),
        pytest.param({"started": 0}, NOT_SEEN, id="a start time of another type"),
        pytest.param({"pid": None}, NOT_SEEN, id="no number"),
        pytest.param({"pid": "1", "started": "0"}, NOT_SEEN, id="a number that is text"),
        pytest.param({"pid": True, "started": "0"}, NOT_SEEN, id="a number that is a bool"),
        pytest.param({"pid": 0, "started": "0"}, NOT_SEEN, id="the number of a group"),
        pytest.param({"pid": -1, "started": "0"}, NOT_SEEN, id="the number of all processes"),
        pytest.param({"pid": 2**22 + 1, "started": "0"}, NOT_SEEN, id="a number that no process has"),
        pytest.param({"pid": 2**70, "started": "0"}, NOT_SEEN, id="a number that no system call takes"),
    ],
)
def test_a_holder_is_dead_only_if_that_is_certain(difference: dict[str, Any], seen: bool | None) -> None:
    other = holder() | difference

    assert lives(other) is seen
    assert is_dead(other) is (seen is ENDED)


@pytest.mark.parametrize("part", ["boot", "namespace", "pid", "started"])
def test_a_holder_that_lacks_a_part_is_not_dead(part: str) -> None:
    other = {name: value for name, value in (holder() | {"started": "0"}).items() if name != part}

    assert lives(other) is NOT_SEEN


@pytest.mark.parametrize("other", [None, {}, [], "process 1", 1, True])
def test_a_malformed_holder_is_not_dead_and_still_has_a_name(other: object) -> None:
    assert lives(other) is NOT_SEEN
    assert holders.in_words(other) == "process ? on an unknown machine"


def test_a_killed_process_is_dead_even_as_a_zombie() -> None:
    with another_process() as other:
        its = holder_of(other.pid)
        alive = lives(its)
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        zombie = lives(its)

    assert (alive, zombie, lives(its)) == (LIVES, ENDED, ENDED)


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a) Z 1 (b", b"a b\nc"], ids=["no text", "brackets", "blanks"])
def test_a_process_may_have_any_name(name: bytes) -> None:
    with another_process(f"open('/proc/self/comm', 'wb').write({name!r})") as other:
        its = holder_of(other.pid)
        alive = lives(its)

    assert (alive, lives(its)) == (LIVES, ENDED)


# -- an incomplete /proc ---------------------------------------------------------------------------------------------


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc that shows this process and no other one."""
    here = holder()
    for name, text in (("sys/kernel/random/boot_id", here["boot"]), ("self/stat", Path("/proc/self/stat").read_text())):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "self/ns").mkdir()
    (tmp_path / "self/ns/pid").symlink_to(here["namespace"])
    monkeypatch.setattr(holders, "PROC", tmp_path)
    assert holder() == here
    return tmp_path


def test_a_process_that_proc_hides_is_not_dead_while_it_runs(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with another_process() as other:
        with monkeypatch.context() as patch:
            patch.setattr(holders, "PROC", Path("/proc"))
            its = holder_of(other.pid)
        hidden = lives(its)

    assert (hidden, lives(its)) == (NOT_SEEN, ENDED)


def test_a_process_of_another_user_that_proc_hides_is_not_dead(proc: Path) -> None:
    assert lives(holder() | {"pid": 1, "started": "0"}) is NOT_SEEN


@pytest.mark.parametrize("gone", ["sys/kernel/random/boot_id", "self/ns/pid", "self/stat"])
def test_without_proc_no_process_is_dead(proc: Path, gone: str) -> None:
    its = holder() | {"pid": 2**22}
    seen = lives(its)
    (proc / gone).unlink()

    assert (seen, lives(its), lives(its | holder())) == (ENDED, NOT_SEEN, NOT_SEEN)


def test_with_a_proc_of_another_pid_namespace_no_process_is_dead(proc: Path) -> None:
    its = holder() | {"pid": 2**22}
    stat = (proc / "self/stat").read_text()
    (proc / "self/stat").write_text(stat.replace(str(os.getpid()), str(os.getpid() + 1), 1))

    assert holder()["started"] is None
    assert lives(its) is NOT_SEEN


def test_with_an_incomplete_proc_no_process_can_be_seen(proc: Path) -> None:
    (proc / "self/stat").write_text(f"{os.getpid()} (python) S 1 2 3")

    assert holder()["started"] is None
