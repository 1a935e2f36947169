"""The sentences and the figure of `reference_frame`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..effects import EffectSize, is_significant
from ..frames import FRAME_TYPES
from ..plots import forest
from ..results import LONGEST_SUMMARY, ExperimentResult, describe
from .comparison import ROUNDING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

NO_FRAME = "none"
Found = dict[tuple[str, str, str], EffectSize]


def summary(result: ExperimentResult) -> list[str]:
    """Which frame, how strong beside its nulls, and what hangs on it."""
    found = {(row.metric, row.condition, row.kind): row for row in result.effects}
    parts = (_frame, _graph, _spectrum, _shares, _head_kl, _topology, _fisher, _published)
    lines = [line for part in parts for line in part(result, found)]
    return lines[:LONGEST_SUMMARY]


def frame_label(found: Found, least: dict[str, float]) -> str:
    """The type of frame whose score is most above its null, if by enough.

    Above row-permuted attention where it was drawn, else above uniform attention.
    """
    above = {}
    for name in FRAME_TYPES:
        row = found.get((name, "attention", "contrast")) or found[name, "attention", "measurement"]
        if row.effect >= least[name]:
            above[name] = row.effect
    return max(above, key=lambda name: above[name]) if above else NO_FRAME


def _frame(result: ExperimentResult, found: Found) -> Iterator[str]:
    if ("largest_column", "attention", "measurement") not in found:
        return
    least = {name: result.settings[name] for name in FRAME_TYPES}
    scores = ", ".join(
        f"{name} {found[name, 'attention', 'measurement'].value:.3f}"
        f"{_null_value(found, name, 'attention')}"
        for name in FRAME_TYPES
    )
    yield f"Frame: {frame_label(found, least)}; scores (ours): {scores}."
    yield (
        f"The largest column gets {_said(found, 'largest_column', 'attention', '.2%')}; "
        f"effective anchors: {_said(found, 'effective_anchors', 'attention')}."
    )
    ends = ("first_share", "last_share")
    first, last = (found[name, "attention", "measurement"] for name in ends)
    yield (
        f"The first token has {first.value:.2%} of the columns ({_side(first)} uniform, "
        f"{first.baseline:.2%}), the last {last.value:.2%} ({_side(last)} uniform, "
        f"{last.baseline:.2%})."
    )
    if ("stability", "attention", "measurement") in found:
        said = _said(found, "stability", "attention", ".1%", "keys drawn at random")
        yield f"Pairs of layers with the same leading key: {said}."


def _graph(result: ExperimentResult, found: Found) -> Iterator[str]:
    stars = [c for m, c, kind in found if (m, kind) == ("star_likeness", "measurement")]
    said = [
        f"{name.replace('_', ' ')} it is {_said(found, 'star_likeness', name)}"
        for name in stars
        if not name.startswith("published")
    ]
    if said:
        yield f"Star-likeness of the graph: {'; '.join(said)}."


def _spectrum(result: ExperimentResult, found: Found) -> Iterator[str]:
    if ("stable_rank", "attention", "measurement") in found:
        yield f"The stable rank of attention is {_said(found, 'stable_rank', 'attention')}."


def _shares(result: ExperimentResult, found: Found) -> Iterator[str]:
    rows = [
        row
        for (metric, _, kind), row in found.items()
        if (metric, kind) == ("reference_share", "measurement")
    ]
    if rows:
        said = ", ".join(
            f"{row.value:.0%} in {row.condition.replace('_', '-')} space ({_side(row)} uniform, "
            f"{row.baseline:.0%})"
            for row in rows
        )
        yield f"Of what other queries read, reference points supply {said}."


def _head_kl(result: ExperimentResult, found: Found) -> Iterator[str]:
    rows = [row for (m, _, kind), row in found.items() if (m, kind) == ("head_kl", "treatment")]
    if not rows:
        return
    row = rows[len(rows) // 2]
    contrast = found.get(("head_kl", row.condition, "contrast"))
    verb = "lowers" if row.effect < 0 else "raises"
    against = "there is no control"
    if contrast:
        doubt = "" if is_significant(contrast) else ", not told apart"
        against = f"{contrast.effect:+.3g} against as many random columns{doubt}"
    share = 1 - float(row.condition.split(":")[1])
    reduction = "" if row.effect < 0 else ", so there is no KL reduction"
    yield (
        f"Without the top {share:.0%} of columns the KL of heads to their mean changes by "
        f"{describe(row)}: that {verb} it ({against}){reduction}."
    )


def _topology(result: ExperimentResult, found: Found) -> Iterator[str]:
    kinds = (("persistence0", "components"), ("persistence1", "loops"))
    if ("persistence0", "symmetric", "measurement") in found:
        said = "; ".join(f"of {what} {_said(found, name, 'symmetric')}" for name, what in kinds)
        yield f"Persistence sums: {said}."


def _fisher(result: ExperimentResult, found: Found) -> Iterator[str]:
    shares = [row for (metric, _, _), row in found.items() if metric == "fisher_share"]
    if not shares:
        return
    said = ", ".join(
        f"{row.condition} {row.value:.1%} ({_side(row)} its share of the weights, "
        f"{row.baseline:.1%})"
        for row in shares
    )
    depth = ", ".join(
        f"{row.value:+.2f} in {row.condition} ({_side(row)} 0)"
        for (metric, _, _), row in found.items()
        if metric == "fisher_depth"
    )
    yield f"Fisher trace: {said}" + (f"; rank correlation with depth {depth}." if depth else ".")


def _published(result: ExperimentResult, found: Found) -> Iterator[str]:
    stars = {
        condition.removeprefix("published:above_"): row
        for (metric, condition, _), row in found.items()
        if metric == "star_likeness" and condition.startswith("published:")
    }
    if not stars:
        return
    alike = [threshold for threshold, row in stars.items() if _side(row) != "above"]
    said = "above that of uniform attention at every threshold"
    if alike:
        said = f"not above that of uniform attention at thresholds {', '.join(alike)}"
    yield f"As published, star-likeness is {said}; see the note below the table."


def _said(
    found: Found, metric: str, condition: str, form: str = ".3g", uniform: str = "uniform attention"
) -> str:
    """A value, and on which side of its nulls it lies."""
    row = found[metric, condition, "measurement"]
    said = f"{row.value:{form}}, {_side(row)} {uniform} ({row.baseline:{form}})"
    null, contrast = (found.get((metric, condition, kind)) for kind in ("null", "contrast"))
    if null and contrast:
        said += f" and {_side(contrast)} row-permuted attention ({null.value:{form}})"
    return said


def _null_value(found: Found, metric: str, condition: str) -> str:
    """The value of row-permuted attention, where it was drawn."""
    null = found.get((metric, condition, "null"))
    contrast = found.get((metric, condition, "contrast"))
    if null is None or contrast is None:
        return ""
    return f" ({_side(contrast)} the null, {null.value:.3f})"


def _side(row: EffectSize) -> str:
    """Above, below or not above what a row is compared with, by its interval."""
    if row.ci_low is not None and row.ci_low > ROUNDING:
        return "above"
    below = row.ci_high is not None and row.ci_high < -ROUNDING
    return "below" if below else "not above"


def plot(result: ExperimentResult) -> Figure:
    """The columns of every layer, and the largest one beside its nulls."""
    if "columns" not in result.arrays:
        return forest(result)
    from plotly import graph_objects
    from plotly.subplots import make_subplots

    drawn = make_subplots(
        rows=1,
        cols=2,
        column_widths=[0.55, 0.45],
        subplot_titles=["attention that each key gets", "the largest column"],
        horizontal_spacing=0.16,
    )
    columns = result.arrays["columns"].values
    drawn.add_trace(
        graph_objects.Heatmap(
            z=columns.numpy(),
            colorscale="Blues",
            zmin=0,
            zmax=max(0.05, float(columns.max())),
            colorbar={"title": "share", "x": 0.47},
        ),
        1,
        1,
    )
    layers = list(range(len(columns)))
    for name, array in result.arrays.items():
        metric, _, source = name.partition(":")
        if metric == "largest_column":
            nulls = {"line": {"dash": "dot"}} if source else {}
            drawn.add_trace(
                graph_objects.Scatter(
                    x=layers,
                    y=array.values.tolist(),
                    name=source or "attention",
                    mode="lines+markers",
                    **nulls,
                ),
                1,
                2,
            )
    drawn.update_xaxes(title_text="key position", row=1, col=1)
    drawn.update_yaxes(title_text="layer", row=1, col=1)
    drawn.update_xaxes(title_text="layer", row=1, col=2)
    drawn.update_yaxes(title_text="mean attention received", rangemode="tozero", row=1, col=2)
    bos = "with" if result.provenance["bos"] else "without"
    drawn.update_layout(
        title=f"Reference frame, {result.provenance['model']['name']} {bos} BOS",
        template="simple_white",
        height=460,
        width=1100,
    )
    return drawn
