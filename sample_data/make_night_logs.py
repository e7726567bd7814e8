"""Make night_logs.parquet: the logs of four parcel depots in one night, each longer than 50,000 tokens.

python sample_data/make_night_logs.py [OUT]

depot, log (text), question (about the log), follow_up (the next question of the same person)

Everything is invented. The same polars gives the same bytes; another version gives the same rows, in other bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

LINES = 4_320  # of one log: twelve hours

#: (depot, its fault, the time at which it begins in seconds after 22:00, the next question)
NIGHTS: list[tuple[str, str, int, str]] = [
    ("Northgate", "belt 3 stopped, motor too hot", 15_120, "Which belt should be looked at first?"),
    ("Harbour", "scanner 2 read no code", 6_300, "Did it recover by itself?"),
    ("Millfield", "door 7 stayed open", 21_840, "Who has to be told in the morning?"),
    ("Quarry Road", "printer 1 was out of labels", 9_000, "How many parcels had no label?"),
]


def log(fault: str, begins: int) -> str:
    """Return the log of one night: a line every ten seconds, and the fault for a quarter of an hour."""
    lines = []
    for n in range(LINES):
        at = 10 * n
        clock = f"{(22 + at // 3600) % 24:02d}:{at // 60 % 60:02d}:{at % 60:02d}"
        is_fault = begins <= at < begins + 900
        state = f"WARNING {fault}" if is_fault else f"ok, {20 + n * 7 % 13} parcels on belt {1 + n % 4}"
        lines.append(f"{clock} depot sorting {state}")
    return "\n".join(lines)


def night_logs() -> pl.DataFrame:
    """Return all nights as the rows of the file."""
    rows = [(depot, log(fault, begins), "What went wrong, and when?", later) for depot, fault, begins, later in NIGHTS]
    return pl.DataFrame(rows, schema=["depot", "log", "question", "follow_up"], orient="row")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make night_logs.parquet.")
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parent / "night_logs.parquet")
    out: Path = parser.parse_args().out

    made = night_logs()
    made.write_parquet(out, compression="zstd")
    print(f"{out}: {made.height} logs")


if __name__ == "__main__":
    main()
