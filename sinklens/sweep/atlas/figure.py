"""Figures of comparisons: models by the value that they share, or by size, as pictures."""

from __future__ import annotations

import math
from typing import Any

from ...results.drawing.panel import Panel, below_each_other
from ...results.drawing.static import to_svg
from ...results.drawing.style import escaped
from ...results.drawing.words import in_two_lines
from ...results.wording import written
from ..figure import ROW, points
from .comparing import SIZE, Comparison

WIDTHS = {"wide": 860, "narrow": 350}
"""In pixels; the narrow one is that of a page of 390."""
SHORT = 17
"""Characters of a label on a narrow page."""
POOLED = "pooled, random effects"


def pictures(comparison: Comparison) -> str:
    """A comparison for a wide and for a narrow page, of which style shows one."""
    draw = _by_size if comparison.attribute == SIZE else _by_value
    return "".join(
        f'<div class="{name}">{to_svg(draw(comparison, width), width)}</div>'
        for name, width in WIDTHS.items()
    )


def _title(comparison: Comparison) -> tuple[str, str]:
    one = comparison.measured
    return one.headline.title, f"{one.headline.compared}, 95 % intervals"


def _by_value(comparison: Comparison, width: int) -> Any:
    """Models below the value that they share, and its pooled effect below them."""
    places: dict[float, str] = {}
    traces, at = [], 0.0
    for value in comparison.values():
        own = comparison.units[comparison.units[comparison.attribute] == value]
        heights = [at - number for number in range(1, len(own) + 1)]
        places[at] = _label(f"{value}:", width)
        labels = [_label(str(label), width) for label in own["label"]]
        places |= dict(zip(heights, labels, strict=True))
        traces.append(_models(own, heights))
        at = heights[-1] - 1
        if value in comparison.pooled:
            places[at] = "pooled"
            traces.append(_pooled(comparison.pooled[value], at))
            at -= 1
        at -= 0.4
    if comparison.overall is not None:
        places[at] = "all models"
        traces.append(_pooled(comparison.overall, at))
        at -= 1
    panel = Panel(
        "",
        traces,
        x={"title": {"text": _axis(comparison)}, "nticks": 5 if width > WIDTHS["narrow"] else 4},
        y={
            "tickvals": list(places),
            "ticktext": list(places.values()),
            "range": [at + 0.4, 0.6],
            "showgrid": False,
        },
        height=max(80, int(ROW * -at)),
        zero=0.0,
    )
    return below_each_other([panel], *_title(comparison), width)


def _label(name: str, width: int) -> str:
    """A name beside the figure; on a narrow page without the organisation, and cut."""
    if width > WIDTHS["narrow"]:
        return in_two_lines(name, "")
    own = name.rpartition("/")[2]
    return escaped(own if len(own) <= SHORT else f"{own[: SHORT - 3]}...")


def _axis(comparison: Comparison) -> str:
    unit = comparison.measured.unit
    return escaped(f"effect ({unit})" if unit else "effect")


def _models(own: Any, heights: list[float]) -> Any:
    ends = (own["effect"], own["ci_low"], own["ci_high"])
    return points("each model", *ends, heights, 0, "circle")


def _pooled(one: Any, height: float) -> Any:
    ends = ([one.estimate], [one.ci_low], [one.ci_high])
    return points(POOLED, *ends, [height], 1, "diamond")


def _by_size(comparison: Comparison, width: int) -> Any:
    """Models by the logarithm of their number of parameters."""
    units = comparison.units
    sizes = [math.log10(max(1.0, float(size))) for size in units[SIZE]]
    trace = points(
        "each model",
        units["effect"],
        units["ci_low"],
        units["ci_high"],
        sizes,
        0,
        "circle",
        along="y",
    )
    trace.hovertext = [
        f"{escaped(str(label))}: {said}"
        for label, said in zip(units["label"], trace.hovertext, strict=True)
    ]
    ticks = _ticks(min(sizes), max(sizes))
    panel = Panel(
        "",
        [trace],
        x={
            "title": {"text": "parameters"},
            "tickvals": ticks,
            "ticktext": [in_words(10**tick) for tick in ticks],
            "range": [min(sizes) - 0.1, max(sizes) + 0.1],
        },
        y={"title": {"text": _axis(comparison)}, "nticks": 6},
        height=240,
        level=0.0,
    )
    return below_each_other([panel], *_title(comparison), width)


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten within, and three times them where these are few."""
    whole = range(math.floor(low), math.ceil(high) + 1)
    steps = [0.0, math.log10(3)] if high - low < 2 else [0.0]
    ticks = [power + step for power in whole for step in steps]
    return [tick for tick in ticks if low - 0.1 <= tick <= high + 0.1] or [(low + high) / 2]


def in_words(count: float) -> str:
    """A number of parameters: `135M`."""
    for unit, word in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit * 0.999:
            return f"{written(count / unit, '.3g')}{word}"
    return written(count, ".3g")
