"""The pairs of query and key over which logits are read.

Ranges of queries, such as 1:8, each with all keys and without key 0. With key 0 most of what
relative position does not explain is the sink column; without it, what is left has to come by way
of the residual stream. A control edits a later position p: it is read at queries i > p, and its
second reading leaves out key p too.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...core.errors import UsageError
from ...functional.logit_forms import PairBasis, PairSet

KEYS = {"all_keys": False, "without_key0": True}
FEWEST_QUERIES = 3
Range = tuple[int, int]


def parse_queries(text: str) -> Range:
    """Start and end of a range of queries such as `1:8`.

    Raises:
        UsageError: It is none, it holds query 0, or it is too short.
    """
    start, _, end = text.partition(":")
    if not (start.isdigit() and end.isdigit()):
        raise UsageError(f"queries={text!r} is no range; one looks like 1:8")
    if int(start) < 1 or int(end) - int(start) < FEWEST_QUERIES:
        raise UsageError(
            f"queries={text!r}: a range starts at 1 or later (query 0 sees only itself) and holds "
            f"at least {FEWEST_QUERIES} queries"
        )
    return int(start), int(end)


def ranges_within(queries: Sequence[str], length: int) -> list[Range]:
    """The ranges of queries, as far as prompts of a length go.

    Raises:
        UsageError: None is left.
    """
    cut = [(start, min(end, length)) for start, end in map(parse_queries, queries)]
    ranges = [(start, end) for start, end in dict.fromkeys(cut) if end - start >= FEWEST_QUERIES]
    if not ranges:
        raise UsageError(
            f"no range of queries is left in prompts of {length} tokens: one needs at least "
            f"{FEWEST_QUERIES} queries behind query 0; use longer prompts (--length)"
        )
    return ranges


class PairSets:
    """The sets of pairs of a run: by range of queries, reading of the keys and edited position."""

    def __init__(self, ranges: Sequence[Range], positions: Sequence[int]) -> None:
        """Make them; the last two are those of the longest range, for the curves.

        Args:
            ranges: Start and end of each range of queries.
            positions: Where controls edit.
        """
        self._ranges = sorted(ranges, key=lambda queries: (queries[1], -queries[0]))
        self.labels = [f"{start}:{end}" for start, end in self._ranges]
        self.first, self.last = self.labels[0], self.labels[-1]
        self.size = self._ranges[-1][1]
        self._sets = [
            self._set(queries, keys, place)
            for place in [*sorted({*positions}), 0]
            for queries in self._ranges
            for keys in KEYS
        ]
        self._number = {pairs: number for number, pairs in enumerate(self._sets)}

    @staticmethod
    def _set(queries: Range, keys: str, place: int) -> PairSet:
        without = tuple(sorted({0, place})) if KEYS[keys] else ()
        return PairSet(max(queries[0], place + 1), queries[1], without)

    def number(self, label: str, keys: str, place: int = 0) -> int:
        """The number of a set."""
        return self._number[self._set(self._ranges[self.labels.index(label)], keys, place)]

    def basis(self, windows: Sequence[int], forms: Sequence[str]) -> dict[int, PairBasis]:
        """By layer, what `LogitForms` needs; layers with the same window share it."""
        by_window = {window: PairBasis(self._sets, forms, window) for window in set(windows)}
        return {layer: by_window[window] for layer, window in enumerate(windows)}
