"""Words that quotes, summaries and the status share. Pure."""

from collections.abc import Mapping

from pipeline.text import count, money


def cost_range(usd: Mapping[str, float | None]) -> str:
    """Return `about $2.60; $2.14 at least, $3.34 at worst`. usd: see estimate.Money; `about` needs an expected cost."""
    about = "" if usd["expected"] is None else f"about {money(usd['expected'])}; "
    return f"{about}{money(usd['low'])} at least, {money(usd['worst'])} at worst"


def gone_words(rows: int) -> str:
    """Return `12 rows of the job are no longer in its source`."""
    return f"{count(rows, 'row')} of the job {'is' if rows == 1 else 'are'} no longer in its source"
