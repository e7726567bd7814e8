"""Draw a benchmark's report as a picture: rows per second, peak memory, time by stage.

python benchmarks/picture.py docs/performance.json docs/performance.svg

The ending of the name decides the kind of picture (.svg, .png). Needs matplotlib, which is in the extra `dev`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from harness import REST, STAGES, stage_seconds
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MEMORY_MB = 400  # the limit
COLORS = {"plain": "#b0a9a0", "csv": "#5b8db8", "parquet": "#c96442"}
STAGE_COLORS = ("#e8c9ba", "#c96442", "#5b8db8", "#cccccc")
NAMES = {"csv": "CSV", "parquet": "Parquet"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the report of a benchmark.")
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    report = json.loads(arguments.report.read_text(encoding="utf-8"))
    if "run" not in report["scenarios"]:
        parser.error(f"{arguments.report} has no whole runs to draw; measure them: bench.py --only run --out ...")
    runs = report["scenarios"]["run"]["measurements"]
    # The same report gives the same file: it has no date and no random ids.
    mpl.rcParams.update({"svg.hashsalt": "benchmark", "font.family": "sans-serif", "font.size": 9})
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    speed, memory, stages = figure.subplots(1, 3)
    draw_speed(speed, runs)
    draw_memory(memory, runs)
    draw_stages(stages, [run for run in runs if (run["program"], run["source"]) == ("pipeline", "parquet")])
    metadata = {"Date": None} if arguments.picture.suffix == ".svg" else {}
    figure.savefig(arguments.picture, dpi=150, metadata=metadata)


def draw_speed(axes: Axes, runs: list[dict[str, Any]]) -> None:
    """Draw the rows per second at each size, side by side."""
    sizes = sorted({run["rows"] for run in runs})
    bars = [("plain", "csv"), ("plain", "parquet"), ("pipeline", "csv"), ("pipeline", "parquet")]
    width = 0.8 / len(bars)
    for number, (program, source) in enumerate(bars):
        mine = [run for run in runs if (run["program"], run["source"]) == (program, source)]
        places = [sizes.index(run["rows"]) + (number - (len(bars) - 1) / 2) * width for run in mine]
        color, hatch = COLORS[source if program == "pipeline" else "plain"], "//" if source == "csv" else None
        label = f"{program if program == 'pipeline' else 'plain script'}, {NAMES[source]}"
        heights = [run["rows_per_second"] / 1e3 for run in mine]
        axes.bar(places, heights, width * 0.92, color=color, hatch=hatch, edgecolor="white", label=label)
    axes.set_xticks(range(len(sizes)), [_short(rows) for rows in sizes])
    axes.set(title="thousand rows per second", xlabel="rows")
    axes.set_ylim(top=axes.get_ylim()[1] * 1.45)  # room for the legend
    axes.legend(frameon=False, fontsize=7.5, ncols=2, loc="upper left")
    _bare(axes)


def draw_memory(axes: Axes, runs: list[dict[str, Any]]) -> None:
    """Draw the peak memory at each size."""
    for program, source in (("plain", "parquet"), ("pipeline", "csv"), ("pipeline", "parquet")):
        mine = sorted((run["rows"], run["client"]["peak_mb"]) for run in runs if _is(run, program, source))
        color = COLORS[source if program == "pipeline" else "plain"]
        label = "plain script" if program == "plain" else f"pipeline, {NAMES[source]}"
        axes.plot([rows for rows, _ in mine], [peak for _, peak in mine], marker="o", color=color, label=label)
    axes.axhline(MEMORY_MB, color="#888888", linewidth=0.8, linestyle="--", label=f"limit, {MEMORY_MB} MB")
    axes.set_xscale("log")
    sizes = sorted({run["rows"] for run in runs})
    axes.set_xticks(sizes, [_short(rows) for rows in sizes])
    axes.minorticks_off()
    axes.set(title="peak memory, MB", xlabel="rows")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.25)
    axes.legend(frameon=False, fontsize=7.5, loc="upper right")
    _bare(axes)


def draw_stages(axes: Axes, runs: list[dict[str, Any]]) -> None:
    """Draw the wall time of a row at each size, by stage, in microseconds."""
    runs = sorted((run for run in runs if stage_seconds(run)), key=lambda run: int(run["rows"]))
    places, below = list(range(len(runs))), [0.0] * len(runs)
    for number, (label, color) in enumerate(
        zip((*(name for *_, name in STAGES.values()), REST), STAGE_COLORS, strict=True)
    ):
        heights = [stage_seconds(run)[number] / run["rows"] * 1e6 for run in runs]
        axes.bar(places, heights, 0.6, bottom=below, color=color, label=label)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set_xticks(places, [_short(run["rows"]) for run in runs])
    axes.set(title="wall time per row, µs (pipeline, Parquet)", xlabel="rows")
    axes.set_ylim(top=axes.get_ylim()[1] * 1.35)
    axes.legend(frameon=False, fontsize=7.5, loc="upper right")
    _bare(axes)


def _is(run: dict[str, Any], program: str, source: str) -> bool:
    return (run["program"], run["source"]) == (program, source)


def _short(rows: int) -> str:
    return f"{rows // 1_000_000}M" if rows >= 1_000_000 else f"{rows // 1_000}k"


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(10)


if __name__ == "__main__":
    main()
