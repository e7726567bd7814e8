"""Count the answers to rows with gold, by the gold table. Edge: SQL."""

from collections.abc import Sequence

from pipeline.job.gold import Gold
from pipeline.quality.gold_columns import GoldColumn
from pipeline.quality.tally import JUDGED, Tally
from pipeline.sink.pairs import Pairs


def tallied(pairs: Pairs, gold: Gold, columns: Sequence[GoldColumn], by: Sequence[str] = ()) -> Tally:
    """Return the answers of these pairs, counted.

    gold: of the job; columns: those with gold. by: names of the columns for slices, which the pairs have, too.
    """
    empty_is_null = gold.empty == "null"
    tally = Tally(columns, pairs.layout, empty_is_null=empty_is_null, shared=pairs.shared_requests(JUDGED), by=by)
    for page in pairs.pages():
        tally.add(page)
    return tally
