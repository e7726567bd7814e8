"""The commands that judge answers: `evaluate`, `compare`, `report`, `review`, over 1,000,000 rows with gold labels."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import harness
import polars as pl
from harness import SUMMARY, Bench, Kind, Line, Usage, below, median_of

ROWS = 1_000_000  # for which the targets are defined
LABELS = ["billing", "outage", "how_to"]
GOLD = "gold: {path: gold.parquet, columns: {label: truth}}"
KIND = Kind(
    SUMMARY.request,
    f"output: {{labels: [{', '.join(LABELS)}]}}\n{GOLD}\n",
    '{"label":"billing"}',
)
WRONG_EACH = {"bench_answers": 10, "other_answers": 7}  # by results table: one of so many answers is wrong
MEGABYTES = 300
#: The words of each command, and the seconds it may take; None: no target.
COMMANDS: dict[str, tuple[list[str], float | None]] = {
    "evaluate": (["evaluate", "bench.yaml"], 10.0),
    "compare": (["compare", "bench.yaml", "job:other", "current"], 20.0),
    "report": (["report", "bench", "-o", "report.html", "--overwrite"], 10.0),
    "review export of 200": (["review", "bench", "export", "sheet.csv", "--sample", "200", "--by", "label"], None),
}


def measure(bench: Bench) -> Iterator[Line]:
    """Let two jobs answer the same rows, mix their answers, and measure each of COMMANDS."""
    rows = bench.options.judged_rows
    with bench.fresh_folder("judging") as folder:
        _answered(bench, folder, rows)
        for name, (words, seconds) in COMMANDS.items():
            usage = median_of(partial(_once, bench, folder, words), bench.options.repeat, _wall)
            print(f"{name}: {usage.wall_seconds:.1f} s, {usage.peak_mb:.0f} MB", flush=True)
            what, judged, shown = f"{name}, {rows:,} rows", rows == ROWS, f"{usage.wall_seconds:.1f} s"
            if seconds is None:
                yield Line(what, shown, "", met=None, value=usage.wall_seconds)
            else:
                yield below(what, usage.wall_seconds, shown, seconds, f"under {seconds:.0f} s", judged=judged)
            memory = f"{usage.peak_mb:.0f} MB"
            yield below(f"{what}: memory", usage.peak_mb, memory, MEGABYTES, f"under {MEGABYTES} MB", judged=judged)


def _wall(usage: Usage) -> float:
    return usage.wall_seconds


def _answered(bench: Bench, folder: Path, rows: int) -> None:
    """Run a job and a copy of it over the same rows, and mix their answers, which are all the same label."""
    numbers = pl.int_range(rows, eager=True)
    truth = (numbers % len(LABELS)).replace_strict(list(range(len(LABELS))), LABELS)
    keys = "doc-" + numbers.cast(pl.String).str.zfill(8)
    pl.DataFrame({"id": keys, "truth": truth}).write_parquet(folder / "gold.parquet")
    job = harness.write_job(folder, bench.rows(rows, "parquet"), kind=KIND)
    other = folder / "other.yaml"
    text = (
        job.read_text(encoding="utf-8").replace("name: bench", "name: other").replace("bench_answers", "other_answers")
    )
    other.write_text(text, encoding="utf-8")
    with harness.served("bare_server.py", "--answer", KIND.answer) as server:
        environment = harness.environment_for(server.url, folder)
        for file in (job, other):
            command = [harness.pipeline_command(), "run", str(file), "--yes", "--json"]
            usage, _ = harness.run(command, folder, environment, timeout=bench.options.timeout)
            harness.succeeded(usage, f"the run of {file.name}", folder)
    with closing(sqlite3.connect(folder / harness.SQLITE_FILES["pipeline"])) as database:
        for table, each in WRONG_EACH.items():
            number = "CAST(substr(id, 5) AS INTEGER)"
            place = f"({number} + ({number} % {each} = 0)) % {len(LABELS)}"
            whens = " ".join(f"WHEN {i} THEN '{label}'" for i, label in enumerate(LABELS))
            database.execute(f"UPDATE {table} SET label = CASE {place} {whens} END")
        database.commit()


def _once(bench: Bench, folder: Path, words: list[str]) -> Usage:
    (folder / "sheet.csv").unlink(missing_ok=True)
    environment = harness.environment_for("http://127.0.0.1:9", folder)  # they ask no API
    command = [harness.pipeline_command(), *words]
    usage, _ = harness.run(command, folder, environment, timeout=bench.options.timeout)
    return harness.succeeded(usage, " ".join(words[:2]), folder)
