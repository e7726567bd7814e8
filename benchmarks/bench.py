"""Measure the pipeline and a plain script over the SDK, both against a bare server in another process.

python benchmarks/bench.py [--quick] [--only SCENARIOS] [--sizes 10000,100000,1000000] [--format csv|parquet|both]
                          [--repeat 3] [--out docs/performance] [--rows-folder DIR] [--flow] ...
python benchmarks/bench.py --against COMMIT [--sizes 100000] [--format csv] [--repeat 5]

Prints each measurement and, at the end, a table: what, measured, target, met or not. Exits with 1 if a table does not
have exactly its rows, each succeeded, or if a program failed; a target that is not met is no error. README.md beside
this file explains the figures.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import compare
import report
import scenarios
from harness import PROGRAMS, Bench, BenchError, Line, pipeline_command
from scenarios import SCENARIOS

SIZES = [10_000, 100_000, 1_000_000, 10_000_000]
QUICK = 1_000_000  # the largest number of rows with --quick


def bench(options: argparse.Namespace, folder: Path) -> int:
    """Measure the selected scenarios one by one and return the exit code. If one fails, the others continue."""
    machine = report.machine()
    print(report.described(machine))
    here, found, failed = Bench(options, folder), {}, 0
    for name in options.scenarios:
        print(f"\n{scenarios.title(name)}")
        here.measurements, here.tables = [], {}
        try:
            lines = list(scenarios.measure(name, here))
        except (BenchError, OSError, subprocess.SubprocessError) as exc:
            print(exc, file=sys.stderr)
            lines, failed = [Line(name, f"failed: {str(exc).splitlines()[0]}", "", met=False, value=0.0)], failed + 1
        found[name] = report.Scenario(lines, here.measurements, here.tables)
        if options.out is not None:  # after each scenario, because a whole benchmark takes an hour and may be stopped
            report.write(options.out, machine, found)
    if lines := [line for each in found.values() for line in each.lines]:
        print(f"\n{report.table(lines)}")
    return 1 if failed else 0


def against(options: argparse.Namespace, folder: Path) -> int:
    """Compare this tree with the commit of --against and return the exit code."""
    print(report.described(report.machine()))
    try:
        compare.compare(Bench(options, folder), options.against)
    except (BenchError, OSError, subprocess.SubprocessError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def _numbers(text: str) -> list[int]:
    return [int(part.replace("_", "")) for part in text.split(",")]


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in (*SCENARIOS, *PROGRAMS)]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is unknown; choose from {', '.join((*SCENARIOS, *PROGRAMS))}")
    return names


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the pipeline beside a plain script over the SDK.")
    parser.add_argument(
        "--only",
        type=_names,
        default=[],
        help=f"scenarios, by commas: {', '.join(SCENARIOS)}; or programs of whole runs: {', '.join(PROGRAMS)}",
    )
    parser.add_argument("--quick", action="store_true", help=f"no size above {QUICK:,} rows")
    parser.add_argument("--sizes", type=_numbers, default=SIZES, help="rows of whole runs, separated by commas")
    parser.add_argument(
        "--format", choices=("csv", "parquet", "both"), default="both", help="format of the source files of whole runs"
    )
    parser.add_argument("--csv-max", type=int, default=1_000_000, help="leave out CSV for more rows than this")
    parser.add_argument(
        "--plain-max", type=int, default=100_000, help="leave out the plain script for more rows than this"
    )
    parser.add_argument("--processes", type=int, help="how many processes the pipeline works with (default: its own)")
    parser.add_argument("--plain-batch", type=int, default=25_000, help="requests in one create of the plain script")
    parser.add_argument("--against", metavar="COMMIT", help="compare whole runs of the pipeline with those of a commit")
    parser.add_argument(
        "--repeat", type=int, help="repetitions of each run; the median is reported (default: 3; with --against: 5)"
    )
    parser.add_argument(
        "--repeat-max", type=int, default=100_000, help="do whole runs of more rows than this only once"
    )
    parser.add_argument("--quote-rows", type=int, default=1_000_000, help="rows of the scenario quote")
    parser.add_argument("--postgres-rows", type=int, default=100_000, help="rows of the scenario postgres")
    parser.add_argument("--lock-rows", type=int, default=40_000, help="rows of the scenario locks")
    parser.add_argument("--open-batches", type=int, default=1_000, help="open batches of the scenario poll")
    parser.add_argument("--documents", type=int, default=20_000, help="documents of the scenario documents")
    parser.add_argument("--kind-rows", type=int, default=100_000, help="rows of the scenario kinds")
    parser.add_argument("--equal-rows", type=int, default=1_000_000, help="rows of the scenario equal")
    parser.add_argument("--judged-rows", type=int, default=1_000_000, help="rows of the scenario judging")
    parser.add_argument("--flow", action="store_true", help="also measure whole runs as a Prefect flow")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for one run")
    parser.add_argument("--folder", type=Path, help="where rows and databases go (default: a temporary folder)")
    parser.add_argument("--rows-folder", type=Path, help="where rows are kept for the next time")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md, or the marked table in OUT.md")
    options = parser.parse_args()
    if options.against and not {*options.only} <= {"run", "pipeline"}:
        parser.error("--against compares whole runs of the pipeline only: leave out --only")
    options.repeat = options.repeat or (5 if options.against else 3)

    options.scenarios = [name for name in SCENARIOS if name in options.only or not options.only]
    options.programs = [name for name in PROGRAMS if name in options.only]
    if options.programs and "run" not in options.scenarios:
        options.scenarios.insert(0, "run")
    options.programs = options.programs or ["plain", "pipeline", *(["flow"] if options.flow else [])]
    if options.quick:
        options.sizes = [rows for rows in options.sizes if rows <= QUICK]
    options.formats = ["csv", "parquet"] if options.format == "both" else [options.format]
    return options


def main() -> int:
    options = _options()
    try:
        if options.programs != ["plain"]:
            pipeline_command()
        if options.out is not None and not options.against:
            report.check(options.out)
    except BenchError as exc:
        print(exc, file=sys.stderr)
        return 1
    folder = Path(tempfile.mkdtemp(prefix="batch-pipeline-bench-", dir=options.folder))
    code = against(options, folder) if options.against else bench(options, folder)
    if code == 0:  # otherwise the folder stays for inspection
        shutil.rmtree(folder)
    return code


if __name__ == "__main__":
    sys.exit(main())
