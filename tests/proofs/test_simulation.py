"""Random schedules of several drivers: no row is lost or paid for twice, after every step of each.

A schedule that fails is printed with its seed and the command that replays it. `make soak` tries others: all that fit.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SCHEDULES = 30  # schedules of each part, so that several processes can share them


@pytest.mark.parametrize("first", range(0, 4 * SCHEDULES, SCHEDULES))
def test_every_promise_holds_after_every_step_of_random_schedules(first: int) -> None:
    command = [sys.executable, "-m", "tests.proofs.simulation", "--first", str(first), "--schedules", str(SCHEDULES)]

    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout == f"{SCHEDULES} schedules from seed {first} on, 0 failed\n"
