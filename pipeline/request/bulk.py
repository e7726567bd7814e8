"""Which bytes are the params of many rows, if only the prompt differs and it is fixed text and columns? Pure.

The prompts are filled and written as JSON column by column, which takes a quarter of the time of doing it row by row.
The bytes are those that orjson writes; if another version of polars writes other bytes, nothing is built here.
"""

import functools
import re
from collections.abc import Sequence

import orjson
import polars as pl

#: Types whose values polars prints as Python does.
TYPES = (pl.String, pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
_PARTS = re.compile(r"%s|(?:%%|[^%])+")
_SPACES = "".join(filter(str.isspace, map(chr, range(0x3001))))  # all characters that Python counts as blank


def is_possible(columns: Sequence[pl.Series]) -> bool:
    """Return whether polars prints the values of these columns as Python does, and writes JSON as orjson does."""
    return all(column.dtype in TYPES for column in columns) and _json_is_exact()


def params(opening: bytes, pattern: str, columns: Sequence[pl.Series]) -> list[bytes]:
    """Return the params of each row; b"" for a row with a null, or with an empty prompt.

    opening: what comes before the turn with the prompt. pattern: the prompt, with `%s` for each of `columns` and `%%`
    for a percent sign.
    """
    frame = pl.DataFrame([column.alias(str(i)) for i, column in enumerate(columns)])
    numbers = iter(range(len(columns)))
    parts = [pl.col(str(next(numbers))) if part == "%s" else pl.lit(part % ()) for part in _PARTS.findall(pattern)]
    prompts = frame.select(content=pl.concat_str(parts)).to_series()
    if not pattern.replace("%s", "").strip():
        prompts = prompts.set((prompts.str.strip_chars_start(_SPACES) == "").fill_null(value=False), None)
    made = prompts.to_frame().select(pl.concat_str([pl.lit(opening.decode()), _turn(), pl.lit("]}")]).cast(pl.Binary))
    found: list[bytes] = made.to_series().to_list()
    for i in prompts.is_null().arg_true() if prompts.null_count() else ():
        found[i] = b""
    return found


def _turn() -> pl.Expr:
    """Return an expression for the user's turn, as JSON, whose content is the column `content`."""
    return pl.struct(pl.lit("user").alias("role"), pl.col("content")).struct.json_encode()


@functools.cache
def _json_is_exact() -> bool:
    """Return whether polars writes each character in a turn as orjson does. JSON escapes characters one by one."""
    text = "".join(map(chr, [*range(0x3001), 0xFEFF, 0xFFFD, 0xFFFF, 0x1F600, 0x10FFFF]))
    found = pl.DataFrame({"content": [text]}).select(_turn()).item()
    return bool(found == orjson.dumps({"role": "user", "content": text}).decode())
