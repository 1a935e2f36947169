"""The sentences and the figure of `reference_frame`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...functional.frames import FRAME_TYPES
from ...probes.patterns import ATTENTION
from ...results.old_figures import forest
from ...results.result import ExperimentResult
from ...results.wording import LONGEST_SUMMARY, describe
from ...runner.old_comparison import ROUNDING
from ...stats.effects import EffectSize, is_significant
from ._rows import NEARBY
from ._table import random_condition

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
    """The type of frame whose score is most above row-permuted attention, if by enough.

    Uniform attention has no scatter, and whatever scatters has a distributed score; so there is no
    name without row-permuted attention.
    """
    contrasts = {name: found.get((name, ATTENTION, "contrast")) for name in FRAME_TYPES}
    rows = {name: row for name, row in contrasts.items() if row is not None}
    if not rows:
        return "no name without row-permuted attention (draws is 0)"
    if any(row.ci_low is None for row in rows.values()):
        return "no name from a single prompt, which has no interval"
    above = {
        name: row.effect
        for name, row in rows.items()
        if row.effect >= least[name] and _side(row) == "above"
    }
    return max(above, key=lambda name: above[name]) if above else NO_FRAME


def _frame(result: ExperimentResult, found: Found) -> Iterator[str]:
    if ("largest_column", "attention", "measurement") not in found:
        return
    least = {name: result.settings[name] for name in FRAME_TYPES}
    scores = "; ".join(f"{name} {_score(found, name)}" for name in FRAME_TYPES)
    yield f"Frame: {frame_label(found, least)}. Scores (ours): {scores}."
    yield (
        f"The largest column gets {_said(found, 'largest_column', 'attention', '.2%')}; "
        f"effective anchors: {_said(found, 'effective_anchors', 'attention')}."
    )
    yield (
        f"Of the columns the first token has {_said(found, 'first_share', 'attention', '.2%')}; "
        f"the last {_said(found, 'last_share', 'attention', '.2%')}."
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
        said = "; ".join(
            f"in {row.condition.replace('_', '-')} space "
            f"{_said(found, 'reference_share', row.condition, '.0%')}"
            for row in rows
        )
        yield f"Of what other queries read, reference points supply {said}."


def _head_kl(result: ExperimentResult, found: Found) -> Iterator[str]:
    rows = [row for (m, _, kind), row in found.items() if (m, kind) == ("head_kl", "treatment")]
    if not rows:
        return
    row = rows[len(rows) // 2]
    against = []
    for suffix, words in (("", "random columns"), (NEARBY, "others nearby")):
        contrast = found.get(("head_kl", row.condition + suffix, "contrast"))
        if contrast:
            doubt = "" if is_significant(contrast) else ", not told apart"
            against.append(f"{contrast.effect:+.3g} against as many {words}{doubt}")
    share = 1 - float(row.condition.split(":")[1])
    side = _side(row)
    verb = {"above": "that raises it", "below": "that lowers it"}.get(side, "not told apart from 0")
    reduction = ", so there is no KL reduction" if side.endswith("above") else ""
    yield (
        f"Without the top {share:.0%} of columns the KL of heads to their mean changes by "
        f"{describe(row)}: {verb} ({'; '.join(against) or 'there is no control'}){reduction}."
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
    sides: dict[str, list[str]] = {}
    for threshold, row in stars.items():
        sides.setdefault(_side(row), []).append(threshold)
    said = "; ".join(
        f"{side} that of uniform attention at thresholds {', '.join(thresholds)}"
        for side, thresholds in sides.items()
    )
    yield f"As published, star-likeness is {said}; see the note below the table."


def _nulls(
    found: Found, metric: str, condition: str, uniform: str
) -> Iterator[tuple[str, str, float]]:
    """By null that was made: the side on which the value lies, what it is, and its value."""
    row = found[metric, condition, "measurement"]
    yield _side(row), uniform, row.baseline
    others = (
        (condition, "row-permuted attention"),
        (random_condition(condition), "random weights"),
    )
    for name, words in others:
        null, contrast = (found.get((metric, name, kind)) for kind in ("null", "contrast"))
        if null and contrast:
            yield _side(contrast), words, null.value


def _said(
    found: Found, metric: str, condition: str, form: str = ".3g", uniform: str = "uniform attention"
) -> str:
    """A value, and on which side of its nulls it lies: `0.4, above uniform attention (0.1)`."""
    sides: dict[str, list[str]] = {}
    for side, words, value in _nulls(found, metric, condition, uniform):
        sides.setdefault(side, []).append(f"{words} ({value:{form}})")
    said = " and ".join(f"{side} {', '.join(nulls)}" for side, nulls in sides.items())
    return f"{found[metric, condition, 'measurement'].value:{form}}, {said}"


def _score(found: Found, name: str) -> str:
    """The score of a type of frame, and the nulls that it is not above, if any."""
    nulls = list(_nulls(found, name, ATTENTION, "uniform attention"))
    said = f"above its nulls (at most {max(value for *_, value in nulls):.3f})"
    sides: dict[str, list[str]] = {}
    for side, words, value in nulls:
        sides.setdefault(side, []).append(f"{words} ({value:.3f})")
    if set(sides) != {"above"}:
        said = " and ".join(
            f"{side} {', '.join(those)}" for side, those in sides.items() if side != "above"
        )
    return f"{found[name, ATTENTION, 'measurement'].value:.3f}, {said}"


def _side(row: EffectSize) -> str:
    """Above, below or not above what a row is compared with, by its interval.

    A row without an interval, as of a single prompt, cannot tell.
    """
    if row.ci_low is None or row.ci_high is None:
        return "not told apart from"
    if row.ci_low > ROUNDING:
        return "above"
    return "below" if row.ci_high < -ROUNDING else "not above"


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
