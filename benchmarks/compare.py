"""How do whole runs of this tree compare with those of another commit? For `bench.py --against COMMIT`."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from harness import HEADER, HERE, Bench, BenchError, Measurement, line, measure

THIS = HERE.parent
FIGURES: dict[str, Callable[[Measurement], float]] = {
    "wall s": lambda run: run.client.wall_seconds,
    "cpu s": lambda run: run.client.cpu_seconds,
    "peak MB": lambda run: run.client.peak_mb,
}


def compare(bench: Bench, commit: str) -> None:
    """Measure whole runs of this tree and of a commit in turn, and print the medians and their ratios."""
    options = bench.options
    with worktree(commit) as that:
        print(HEADER)
        for rows, source in itertools.product(options.sizes, options.formats):
            if source == "csv" and rows > options.csv_max:
                print(f"{rows:>10,}  all       csv     skipped: above --csv-max {options.csv_max:,}", flush=True)
                continue
            runs = [_round(bench, rows, source, {"this": THIS, commit: that}) for _ in range(options.repeat)]
            print("\n".join(summary(commit, runs)), flush=True)


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """Yield a git worktree of a commit in a temporary folder; remove it after the block, also on Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="batch-pipeline-against-") as folder:
        path = Path(folder).resolve() / "tree"
        try:
            _git("worktree", "add", "--detach", str(path), commit)
            yield path
        finally:
            subprocess.run(["git", "-C", str(THIS), "worktree", "remove", "--force", str(path)], capture_output=True)


def _git(*command: str) -> None:
    done = subprocess.run(["git", "-C", str(THIS), *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"git {' '.join(command)} ended with exit code {done.returncode}: {done.stderr.strip()}")


def _round(bench: Bench, rows: int, source: str, trees: dict[str, Path]) -> list[Measurement]:
    """Measure one whole run of each tree; each has the name of its tree as its program."""
    file, runs = bench.rows(rows, source), []
    for name, tree in trees.items():
        run = measure(bench, "run", "pipeline", file, rows, tree=tree)
        runs.append(replace(run, program=name[:9]))
        print(line(runs[-1]), flush=True)
    return runs


def summary(commit: str, rounds: Sequence[Sequence[Measurement]]) -> Iterator[str]:
    """Yield a table of the medians of both trees; each round has a run of this tree and one of the commit."""
    first = rounds[0][0]
    yield f"{first.rows:,} rows, {first.source}, medians of {len(rounds)} runs of each:"
    yield f"{'':<9}{'this':>9} {commit[:9]:>9}  this/that"
    for name, figure in FIGURES.items():
        this, that = (statistics.median(map(figure, runs)) for runs in zip(*rounds, strict=True))
        yield f"{name:<9}{this:>9.2f} {that:>9.2f} {this / that:>10.3f}"
