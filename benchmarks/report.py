"""Write the table at the end of a benchmark to OUT.json, and to OUT.md or a part of it.

Scenarios that were not measured this time stay in the files unchanged, each with its date and commit, if they were
measured on a machine like this one.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from harness import HERE, REST, STAGES, BenchError, Line, Measurement, stage_seconds

BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
HEAD = ("what", "measured", "target", "met")
MET = {True: "yes", False: "**no**", None: ""}


class Scenario(NamedTuple):
    """The result of one scenario."""

    lines: list[Line]
    measurements: list[Measurement]
    tables: dict[str, list[tuple[str, ...]]]  # by title; the first row is the head


def machine() -> dict[str, Any]:
    """The machine, on which the figures depend. memory_gb: in 10**9 bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpus": os.cpu_count(),
        "processor": _processor(),
        "memory_gb": round(memory / 1e9),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def described(facts: Mapping[str, Any]) -> str:
    """Return a machine as a sentence."""
    about = f"{facts['processor']}, {facts['memory_gb']} GB, {facts['system']}"
    return f"{facts['cpus']} CPUs ({about}), Python {facts['python']}"


def table(lines: Iterable[Line]) -> str:
    """Return the lines as a Markdown table that is also readable on a terminal."""
    return _ruled(HEAD, [(line.what, line.measured, line.target, MET[line.met]) for line in lines])


def _ruled(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    ruled = [head, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in ruled)


def check(out: Path) -> None:
    """Raise BenchError if the report cannot be written. Called before the measurements, which may take an hour."""
    if not out.parent.is_dir():
        raise BenchError(f"--out {out}: there is no folder {out.parent}")
    text = _text(out)
    if text and (text.count(BEGIN), text.count(END)) != (1, 1):
        raise BenchError(
            f"--out {out}: {out}.md exists, but does not have exactly one {BEGIN} and one {END}; choose another name"
        )


def write(out: Path, facts: Mapping[str, Any], found: Mapping[str, Scenario]) -> None:
    """Write the results to OUT.json and OUT.md."""
    whole = {"machine": dict(facts), "scenarios": _earlier(out, facts)}
    for name, scenario in found.items():
        whole["scenarios"][name] = {
            "measured_on": datetime.now(UTC).date().isoformat(),
            "commit": _commit(),
            "lines": [line._asdict() for line in scenario.lines],
            "measurements": [measurement.as_json() for measurement in scenario.measurements],
            "tables": scenario.tables,
        }
    _json(out).write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    before, _, rest = _text(out).partition(BEGIN)
    after = rest.partition(END)[2] or "\n"
    _markdown(out).write_text(f"{before}{BEGIN}\n{as_markdown(whole)}\n{END}{after}", encoding="utf-8")


def as_markdown(whole: Mapping[str, Any]) -> str:
    """Return the report as Markdown: the machine, the dates of measurements, the table."""
    lines: list[Line] = []
    names: dict[tuple[str, str], list[str]] = {}
    for name, scenario in whole["scenarios"].items():
        lines += [Line(**line) for line in scenario["lines"]]
        names.setdefault((scenario["measured_on"], scenario["commit"]), []).append(name)
    when = "; ".join(f"{', '.join(some)}: {day}, {commit}" for (day, commit), some in names.items())
    parts = [described(whole["machine"]), f"Measured: {when}", *([table(lines)] if lines else [])]
    runs = whole["scenarios"].get("run", {}).get("measurements", [])
    if with_stages := [run for run in runs if stage_seconds(run)]:
        parts += [
            "Seconds of whole runs of the pipeline by stage, and what the database then has on the disk:",
            _stages(with_stages),
        ]
    for scenario in whole["scenarios"].values():
        for title, (head, *rows) in scenario["tables"].items():
            parts += [title, _ruled(head, rows)]
    return "\n\n".join(parts)


def _stages(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the wall time of whole runs by stage, and of the size of the database."""
    head = ("rows", "source", *(name for *_, name in STAGES.values()), REST, "rows/s", "database")
    rows = [
        (
            f"{run['rows']:,}",
            run["source"],
            *(f"{seconds:.1f}" for seconds in stage_seconds(run)),
            f"{run['rows_per_second']:,.0f}",
            f"{run['database_bytes'] / 1e6:,.0f} MB" if run["database_bytes"] else "",
        )
        for run in runs
    ]
    return _ruled(head, rows)


def _earlier(out: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scenarios of the existing file if its machine was like this one; otherwise none."""
    if not _json(out).exists():
        return {}
    whole = json.loads(_json(out).read_text(encoding="utf-8"))
    scenarios: dict[str, Any] = whole["scenarios"] if whole["machine"] == facts else {}
    return scenarios


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=HERE.parent, capture_output=True, text=True, check=False
        ).stdout.strip()

    changes = git("status", "--porcelain", "--", "pipeline", "flows", "benchmarks")
    return f"commit {git('rev-parse', '--short', 'HEAD')}{' with changes' if changes else ''}"


def _json(out: Path) -> Path:
    return out.with_name(f"{out.name}.json")


def _markdown(out: Path) -> Path:
    return out.with_name(f"{out.name}.md")


def _text(out: Path) -> str:
    return _markdown(out).read_text(encoding="utf-8") if _markdown(out).exists() else ""
