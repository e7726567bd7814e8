"""Run the schedules that the command line asks for."""

import argparse
import itertools
import secrets
import subprocess
import sys
import time

from tests.proofs.simulation.constants import (
    Violation,
)
from tests.proofs.simulation.running import a_shelf, replay, simulate


def main() -> int:
    """Run the schedules that the command line asks for; return 1 if a rule was violated."""
    asked = _arguments()
    if asked.processes > 1:
        return _in_processes(asked)
    seeds = itertools.count(asked.first, asked.step) if asked.seed is None else iter((asked.seed,))
    until = time.monotonic() + asked.seconds if asked.seconds else float("inf")
    done = failed = 0
    with a_shelf(postgresql=asked.postgresql) as shelf:
        for seed in itertools.islice(seeds, asked.schedules):
            if time.monotonic() > until:
                break
            try:
                simulate(seed, shelf, _write if asked.verbose else lambda what: None)
            except Violation as exc:
                failed += 1
                _write(f"seed {seed}: {exc}\n  {replay(seed)}")
            done += 1
    _write(f"{done} schedules from seed {asked.first if asked.seed is None else asked.seed} on, {failed} failed")
    return min(failed, 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Random schedules of several drivers over one job.")
    parser.add_argument("--seed", type=int, help="only this schedule")
    parser.add_argument("-v", "--verbose", action="store_true", help="print each step")
    parser.add_argument("--first", type=int, default=secrets.randbelow(10**9), help="the first seed")
    parser.add_argument("--step", type=int, default=1, help="from one seed to the next")
    parser.add_argument("--schedules", type=int, help="at most so many")
    parser.add_argument("--seconds", type=float, help="as many as fit")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--postgresql", action="store_true", help="on a server of its own, instead of SQLite")
    return parser.parse_args()


def _in_processes(asked: argparse.Namespace) -> int:
    """Divide the seeds among several processes and return the worst of their exit codes."""
    shared = ["--step", str(asked.processes)]
    shared += ["--postgresql"] if asked.postgresql else []
    shared += ["--seconds", str(asked.seconds)] if asked.seconds else []
    shared += ["--schedules", str(-(-asked.schedules // asked.processes))] if asked.schedules else []
    command = [sys.executable, "-m", "tests.proofs.simulation", *shared]
    children = [subprocess.Popen([*command, "--first", str(asked.first + i)]) for i in range(asked.processes)]
    return max(child.wait() for child in children)


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
