"""Make conversations.parquet: ten chats with a support desk, each up to the customer's last message.

python sample_data/make_conversations.py [OUT]

conversation_id, account, turns (list of {role, content}; empty for a chat that only begins), message

Everything is invented. The same polars gives the same bytes; another version gives the same rows, in other bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

#: (account, the earlier messages of customer and desk in turns, the customer's last message)
CHATS: list[tuple[str, list[str], str]] = [
    (
        "Mossgrove Candles",
        [
            "Hi, our labels come out half a centimetre too high since this morning.",
            "Sorry to hear that. Which printer is it, and did its driver get an update?",
        ],
        "A Zebra. And yes, Windows has updated it last night.",
    ),
    (
        "The Wool Cupboard",
        [
            "Where do I find the invoice for October?",
            "Under Account, Invoices. It has the number FP-2026-05120.",
            "Found it, thanks. It says 79.00, our plan costs 49.00.",
            "The difference of 30.00 is for 60 parcels above the 200 that your plan has.",
        ],
        "We sent 214 parcels in October. Where do the 60 come from?",
    ),
    ("Tin Roof Records", [], "Hello, is there a way to print the label in A6 instead of A4?"),
    (
        "Lumen & Loom",
        ["The tracking page says “delivered”, the customer says it is not there.", "Which parcel is it?"],
        "FP-20420, to Brightwater.",
    ),
    (
        "Kettle & Crumb",
        [
            "Your import drops the house number when it stands before the street.",
            "Could you send one line of the file, with an invented name?",
            "3 Station Parade;Hollowbrook;J. Doe",
            "Thank you, that is enough to see it. It is a fault of ours; we are at it.",
        ],
        "It has been a week. Should I turn the columns around myself?",
    ),
    (
        "Rook's Nest Games",
        ["How heavy may a parcel be?", "30 kilograms; from 8 on it needs the mark HEAVY."],
        "Does the mark cost anything?",
    ),
    (
        "Juniper Soapworks",
        ["Please delete the address of a customer of ours.", "Which one? We only need the number of the parcel."],
        "FP-20423. And how long would you have kept it otherwise?",
    ),
    ("Świt Ceramika", [], "Dzień dobry, czy mogę zmienić adres odbiorcy po wydrukowaniu etykiety?"),
    (
        "Two Rivers Honey",
        [
            "Can we end the frame agreement this year?",
            "It runs until 1 March 2028 and can be ended three months before.",
            "And if we only want to send less?",
            "Nothing obliges you to a number of parcels. Below 200 a month each costs 4.35 instead of 3.80.",
        ],
        "Then we stay. Please send me the prices in writing.",
    ),
    (
        "Stellan Berg",
        ["The pickup did not come today.", "Sorry. Would tomorrow between 15:00 and 17:00 do?"],
        "Yes, but then please ring the bell, not the one of the shop next door.",
    ),
]

ROLES = ("user", "assistant")


def conversations() -> pl.DataFrame:
    """Return all chats as the rows of the file."""
    rows = [
        (f"c{n:02d}", account, [{"role": ROLES[i % 2], "content": said} for i, said in enumerate(before)], now)
        for n, (account, before, now) in enumerate(CHATS, 1)
    ]
    return pl.DataFrame(
        rows,
        schema={
            "conversation_id": pl.String,
            "account": pl.String,
            "turns": pl.List(pl.Struct({"role": pl.String, "content": pl.String})),
            "message": pl.String,
        },
        orient="row",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make conversations.parquet.")
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parent / "conversations.parquet")
    out: Path = parser.parse_args().out

    made = conversations()
    made.write_parquet(out, compression="zstd")
    print(f"{out}: {made.height} conversations")


if __name__ == "__main__":
    main()
