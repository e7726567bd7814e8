"""Make attachments/: eight photographed parcel labels and three contracts, with the tables that name them.

python sample_data/make_attachments.py [OUT]

parcels.csv      parcel_id, photo (path), note: does the label say what the note says?
contracts.parquet  contract_id, files (list of paths), question: one or two documents each, some in several rows
terms.txt        a document that is plain text

Everything is invented. The same Pillow and polars give the same bytes; other versions give the same pictures and rows,
in other bytes. The PDFs are written by hand, so they are the same everywhere.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl
from PIL import Image, ImageDraw, ImageFont

LABEL = (480, 320)  # pixels
PAPER, INK, TABLE = (250, 248, 240), (30, 30, 30), (120, 100, 80)


class Parcel(NamedTuple):
    """A parcel's label, and a person's description of it. file: its ending may differ from the format."""

    parcel_id: str
    file: str
    format: str
    to: str
    service: str
    grams: int
    mark: str
    note: str


PARCELS = [
    Parcel(
        "FP-20417", "fp-20417.png", "PNG", "M. Adeyemi\n4 Quarry Row\nMossgrove", "STANDARD", 850, "",
        "Two candles, under one kilo, no hurry.",
    ),
    Parcel(
        "FP-20418", "fp-20418.jpg", "JPEG", "The Wool Cupboard\n19 Harbour Lane\nSaltmarsh", "EXPRESS", 2300, "FRAGILE",
        "Glass buttons, please mark as fragile.",
    ),
    Parcel(
        "FP-20419", "fp-20419.webp", "WEBP", "Tin Roof Records\n7 Maple Street\nTwo Rivers", "STANDARD", 4100, "",
        "Records! The label should say fragile.",
    ),
    Parcel(
        "FP-20420", "fp-20420.gif", "GIF", "Lumen & Loom\n52 Weaver Yard\nBrightwater", "EXPRESS", 640, "",
        "Express, a bit more than half a kilo.",
    ),
    Parcel(
        # the name is wrong on purpose: the content decides the kind of a file
        "FP-20421", "fp-20421.jpg", "PNG", "Kettle & Crumb\n3 Station Parade\nHollowbrook", "PICKUP", 1200,
        "THIS SIDE UP", "Customer collects it at the shop.",
    ),
    Parcel(
        "FP-20422", "fp-20422.jpeg", "JPEG", "Rook's Nest Games\n88 Finch Road\nAlder", "STANDARD", 9800, "HEAVY",
        "Light as a feather.",
    ),
    Parcel(
        "FP-20423", "fp-20423.png", "PNG", "Juniper Soapworks\n11 Ember Close\nGannet Bay", "EXPRESS", 1500, "KEEP DRY",
        "Soap, to Gannet Bay, must stay dry.",
    ),
    Parcel(
        "FP-20424", "fp-20424.webp", "WEBP", "Stellan Berg\n30 Velvet Hill\nCopperleaf", "STANDARD", 300, "",
        "Goes to Thistle Street, number 30.",
    ),
]  # fmt: skip

#: Each PDF's pages, each page's paragraphs; the first of a page is its heading.
CONTRACTS = {
    "storage.pdf": [
        [
            "Storage agreement FS-118",
            "between Fernpost Lager Ltd. (the keeper) and Mossgrove Candles (the owner).",
            "1. The keeper stores up to 40 pallets of the owner's goods in hall C at Quarry Row.",
            "2. The fee is 11.50 a pallet and month, due on the fifth working day of the month that follows.",
            "3. Either side may end this agreement in writing, with eight weeks' notice to the end of a month.",
            "4. Goods that can catch fire are kept apart; the owner names them before they arrive.",
        ]
    ],
    "carriage.pdf": [
        [
            "Contract of carriage FC-2031",
            "between Fernpost Ltd. (the carrier) and The Wool Cupboard (the sender).",
            "1. The carrier collects parcels on working days between 15:00 and 17:00 at 19 Harbour Lane.",
            "2. A standard parcel arrives within three working days, an express parcel on the next one.",
            "3. For an express parcel that arrives late, the carrier gives back the difference to the standard price.",
        ],
        [
            "Annex: liability",
            "4. The carrier is liable up to 500.00 a parcel, and up to 2,000.00 if its value was declared.",
            "5. Damage that can be seen from outside is reported within three days, any other within ten.",
            "6. Nothing is paid for goods that were not packed as the terms ask.",
        ],
    ],
    "frame.pdf": [
        [
            "Frame agreement FR-7",
            "between Fernpost Ltd. and Two Rivers Honey, for all services from 1 March 2026 on.",
            "1. Each service is ordered by itself; this agreement holds for all of them.",
            "2. It runs for two years and is renewed for one year each, unless it is ended three months before.",
        ],
        [
            "Prices",
            "3. From 200 parcels a month on, each parcel costs 3.80; below that, 4.35.",
            "4. Prices may change once a year, by at most four in a hundred, and not in the first twelve months.",
            "5. Fuel is not charged for apart.",
        ],
        [
            "Data and law",
            "6. Addresses are kept for ninety days after delivery and then deleted.",
            "7. The courts of Alder decide. The contract of carriage applies where this agreement is silent.",
        ],
    ],
}

TERMS = """\
Terms of packing (Fernpost, as of March 2026)

1. A parcel weighs at most 30 kilograms and is at most 120 centimetres long.
2. Glass and pottery lie in at least five centimetres of padding on every side, and the label says FRAGILE.
3. Liquids – soap, honey, ink – stand in a bag that is closed, and the label says KEEP DRY or THIS SIDE UP.
4. What is above 8 kilograms carries the mark HEAVY.
"""

QUESTIONS = [
    ("FS-118", ["contracts/storage.pdf"], "With how much notice can this agreement be ended?"),
    ("FS-118/fire", ["contracts/storage.pdf"], "Who has to say that goods can catch fire, and when?"),
    ("FC-2031", ["contracts/carriage.pdf"], "What does the carrier owe for an express parcel that comes late?"),
    ("FC-2031/packing", ["contracts/carriage.pdf", "terms.txt"], "A vase broke in thin padding. Is it paid?"),
    ("FR-7", ["contracts/frame.pdf"], "What does a parcel cost at 250 parcels a month?"),
    ("FR-7/liability", ["contracts/frame.pdf", "contracts/carriage.pdf"], "How far is Fernpost liable?"),
]  # fmt: skip


def photo(parcel: Parcel) -> Image.Image:
    """Draw a label that lies on a table, seen from above."""
    image = Image.new("RGB", LABEL, TABLE)
    draw = ImageDraw.Draw(image)
    small, large = ImageFont.load_default(size=18), ImageFont.load_default(size=30)
    draw.rectangle((20, 20, LABEL[0] - 20, LABEL[1] - 20), fill=PAPER, outline=INK, width=2)
    draw.text((40, 34), "FERNPOST", fill=INK, font=large)
    draw.text((300, 42), parcel.service, fill=INK, font=small)
    draw.multiline_text((40, 90), parcel.to, fill=INK, font=small, spacing=8)
    draw.text((300, 90), f"{parcel.grams / 1000:.2f} kg", fill=INK, font=small)
    if parcel.mark:
        draw.rectangle((290, 130, 444, 166), fill=INK)
        draw.text((300, 138), parcel.mark, fill=PAPER, font=small)
    for i, byte in enumerate(
        hashlib.sha256(parcel.parcel_id.encode()).digest()
    ):  # bars like a barcode, without a meaning
        draw.rectangle((40 + i * 12, 200, 40 + i * 12 + byte % 9, 255), fill=INK)
    draw.text((40, 264), parcel.parcel_id, fill=INK, font=small)
    return image


def pdf(pages: Sequence[Sequence[str]]) -> bytes:
    """Return a PDF of text on A4 pages, in a font that every reader has."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for i, paragraphs in enumerate(pages):
        content = page(paragraphs)
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {5 + 2 * i} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>".encode(),
            b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        ]
    return _numbered(objects)


def page(paragraphs: Sequence[str]) -> bytes:
    """Return the drawing commands of a page: a heading, and paragraphs below it."""
    heading, *rest = paragraphs
    lines = [f"BT /F1 18 Tf 60 770 Td ({_escaped(heading)}) Tj /F1 11 Tf 0 -20 Td 16 TL"]
    for paragraph in rest:
        lines += ["T*", *(f"({_escaped(line)}) Tj T*" for line in textwrap.wrap(paragraph, 85))]
    return "\n".join([*lines, "ET"]).encode("cp1252")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")


def _numbered(objects: Sequence[bytes]) -> bytes:
    """Return the bytes of the PDF: its objects, and the table of their offsets."""
    out = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"
    begins = []
    for number, content in enumerate(objects, 1):
        begins.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % begin for begin in begins)
    size = len(objects) + 1
    return out + (
        b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table)
        + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(out))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make attachments/: parcel labels, contracts and their tables.")
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parent / "attachments")
    out: Path = parser.parse_args().out

    for folder in ("photos", "contracts"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for parcel in PARCELS:
        photo(parcel).save(out / "photos" / parcel.file, parcel.format, quality=60, optimize=True)
    for name, pages in CONTRACTS.items():
        (out / "contracts" / name).write_bytes(pdf(pages))
    (out / "terms.txt").write_bytes(TERMS.encode())
    with (out / "parcels.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["parcel_id", "photo", "note"])
        rows.writerows((parcel.parcel_id, f"photos/{parcel.file}", parcel.note) for parcel in PARCELS)
    pl.DataFrame(
        QUESTIONS,
        schema={"contract_id": pl.String, "files": pl.List(pl.String), "question": pl.String},
        orient="row",
    ).write_parquet(out / "contracts.parquet", compression="zstd")
    print(f"{out}: {len(PARCELS)} parcels, {len(QUESTIONS)} questions about {len(CONTRACTS)} contracts")


if __name__ == "__main__":
    main()
