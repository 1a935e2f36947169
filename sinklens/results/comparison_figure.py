"""The figure of a comparison: differences of effects with their intervals, a panel a metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..stats.effects import EffectSize
from .drawing.forests import MOST_ROWS, points
from .drawing.panel import Panel, below_each_other
from .drawing.style import COLOURS, SERIES, SYMBOLS
from .drawing.words import in_two_lines, metric_words
from .wording import place_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

INTERVALS = "95 % intervals"
Points = Sequence[tuple[str, EffectSize]]


def draw_differences(title: str, differences: Points) -> Figure:
    """Differences with their 95 % intervals; the largest where there are too many to be read.

    Args:
        title: What is shown.
        differences: Of each the label of its result, and the row.
    """
    every = list(dict.fromkeys(_label(row) for _, row in differences))
    chosen = set(_largest(differences))
    labels = [label for label in every if label in chosen]
    shown = [(result, row) for result, row in differences if _label(row) in chosen]
    cut = f"the largest {len(labels)} of {len(every)} rows" if len(labels) < len(every) else ""
    metrics = dict.fromkeys(row.metric for _, row in shown)
    results = list(dict.fromkeys(result for result, _ in differences))
    panels = [
        _panel([(name, row) for name, row in shown if row.metric == metric], labels, results, cut)
        for metric in metrics
    ]
    return below_each_other(panels, title, INTERVALS)


def _panel(rows: Points, labels: Sequence[str], results: Sequence[str], cut: str) -> Panel:
    """The differences in one metric, each result at its own height."""
    mine = [label for label in labels if label in {_label(row) for _, row in rows}]
    first = rows[0][1]
    unit = f" ({first.unit})" if first.unit else ""
    return Panel(
        metric_words(first.metric),
        list(_traces(rows, mine, results)),
        x={"title": {"text": f"difference{unit}"}, "nticks": 6},
        y={
            "tickvals": [-place for place in range(len(mine))],
            "ticktext": [in_two_lines(*label.partition(" ")[::2]) for label in mine],
            "range": [0.6 - len(mine), 0.6],
            "showgrid": False,
        },
        height=max(60, len(mine) * (14 + 10 * len(results))),
        zero=0.0,
        cut=cut,
    )


def _traces(rows: Points, labels: Sequence[str], results: Sequence[str]) -> Iterator[Any]:
    for number, result in enumerate(results):
        own = [row for name, row in rows if name == result]
        shift = 0.6 * ((number + 0.5) / len(results) - 0.5)
        heights = [-labels.index(_label(row)) - shift for row in own]
        marker = {"color": COLOURS[number % SERIES], "symbol": SYMBOLS[number % SERIES]}
        if own:
            yield points(result, own, heights, value=False, marker=marker)


def _largest(differences: Points) -> list[str]:
    """The labels of the rows whose difference is largest beside others of the same metric."""
    most: dict[str, float] = {}
    for _, row in differences:
        most[row.metric] = max(most.get(row.metric, 0.0), abs(row.effect))
    sizes: dict[str, float] = {}
    for _, row in differences:
        size = abs(row.effect) / most[row.metric] if most[row.metric] else 0.0
        sizes[_label(row)] = max(sizes.get(_label(row), 0.0), size)
    return sorted(sizes, key=lambda label: -sizes[label])[:MOST_ROWS]


def _label(row: EffectSize) -> str:
    """What names a row within its metric."""
    queries = f"queries {row.queries}" if row.queries else ""
    against = f"against {row.against}" if row.against else ""
    return " ".join(part for part in (row.condition, place_of(row), queries, against) if part)
