"""What `massive_activations` says in words: where the largest entry is, and what its edits do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...results.result import ExperimentResult
from ...results.wording import describe
from ...runner.old_comparison import ROUNDING, beside_null
from ...stats.effects import is_significant
from . import _search as spike_search
from ._edits import EDITS, EQUAL_NORM
from ._rows import POSITION0


def summary(result: ExperimentResult) -> list[str]:
    """Where the largest entry is, what writes it, and what its edits do."""
    return [*_found(result), *_effects(result)][:12]


def _found(result: ExperimentResult) -> Iterator[str]:
    """What the search found, beside its nulls."""
    drawn = result.settings["draws_made"]
    spikes, entries = drawn["spikes"], drawn["entries"]["channels"]
    rows = {(row.metric, row.condition): row for row in result.effects if row.kind == "measurement"}
    ratio, first = rows["peak_ratio", "layer_median"], rows["peak_at_position0", "peak"]
    size = float(result.arrays["top_magnitude"].values[spikes["peak_stage"], 0])
    yield (
        f"The activation that stands out most has a size of {size:,.4g} on average, after "
        f"{spikes['peak_after']}: {ratio.value:,.4g} times the median, {beside_null(ratio)} "
        f"Gaussian entries ({ratio.baseline:.2g}); it leads in channel {spikes['channels'][0]}, "
        f"and at position 0 in {first.value:.0%} of prompts ({beside_null(first)} "
        f"{first.baseline:.0%})."
    )
    shares = ", ".join(
        f"{row.value:.0%} ({name}, {beside_null(row)} {row.baseline:.2g})"
        for (metric, name), row in rows.items()
        if metric == "massive"
    )
    yield f"Prompts with a massive activation: {shares}."
    for name, verb in (("up", "writes"), ("down", "takes away")):
        step = spikes["steps"][name]
        if step and step["block"]:
            share = max(0.0, step["share"] if name == "up" else -step["share"])
            if name == "down" and share < spike_search.NAMED_SHARE:
                yield f"No sub-block takes {spike_search.NAMED_SHARE:.0%} of it away."
                continue
            enough = share >= spike_search.STEP_SHARE
            said = f"{step['after']} (sub-block {step['block']}) {verb} {share:.0%} of it"
            row = rows[f"step_{name}", step["after"]]
            end = row.ci_low if name == "up" else row.ci_high
            sign = 1 if name == "up" else -1
            beyond = "more" if end is not None and sign * end > ROUNDING else "not more"
            said += f" ({beyond} than the largest of as many random shares, "
            said += f"{abs(row.baseline):.1%})"
            said += _others(spikes, name)
            yield f"{said}." if enough else f"No single sub-block steps {name}: {said}."
        elif step:
            yield "The embedding already holds it."
    here = _position0(result, drawn["layer"])
    if entries:
        what = "; ".join(
            f"channel {one['channel']} at {one['place']}: {one['mean']:,.4g}, "
            f"{one['per_prompt']:.2g} a prompt"
            for one in entries[:3]
        )
        yield f"{here}; edited there ({spikes['criterion']}): {what}."
    else:
        yield f"{here}; nothing was edited: {next(iter(result.settings['left_out'].values()))}."
    if drawn["vocabulary"]:
        swept = next(iter(drawn["vocabulary"].values()))
        shares = ", ".join(
            f"{one['share']:.2%} [{one['ci_low']:.2%}, {one['ci_high']:.2%}] at {place} "
            f"({'above' if one['ci_low'] > one['null'] else 'not above'} Gaussian entries)"
            for place, one in drawn["vocabulary"].items()
        )
        tried = f"{swept['tokens']:,} of {swept['of']:,} tried"
        yield f"Of the tokens of the vocabulary spike: {shares} ({tried})."


def _position0(result: ExperimentResult, layer: int) -> str:
    """How far position 0 of the stream that is edited stands out, against a later position."""
    found = {
        row.kind: row
        for row in result.effects
        if (row.metric, row.condition) == ("peak_ratio", POSITION0)
    }
    first = found["measurement"]
    blocks = (len(result.arrays["top_magnitude"].values) - 1) // 2
    where = f"Entering layer {layer}" if layer < blocks else "Leaving the last layer"
    said = f"{where} the largest entry of position 0 is {first.value:,.4g} times the median, "
    said += f"{beside_null(first)} Gaussian entries ({first.baseline:.2g})"
    if "contrast" in found:
        later = found["control"].value
        said += f", at a later position {later:,.4g}{_doubt(is_significant(found['contrast']))}"
    return said


def _others(spikes: Mapping[str, Any], name: str) -> str:
    """What sub-blocks besides the largest write, or take away, of the peak."""
    sign = 1 if name == "up" else -1
    largest = spikes["steps"][name]["after"]
    others = ", ".join(
        f"{sign * share:.0%} ({after})"
        for after, share in spikes["writers"].items()
        if sign * share > 0 and after != largest
    )
    return f", besides {others}" if others else ""


def _effects(result: ExperimentResult) -> Iterator[str]:
    """What each edit does, against its controls."""
    found = {(row.metric, row.condition, row.kind): row for row in result.effects}
    for metric, edits in (("loss", EDITS), ("sink_mass", ("zero", "flipped_mean"))):
        for edit in edits:
            same = (edit, f"{edit}{EQUAL_NORM}")
            treated = next((r for c in same if (r := found.get((metric, c, "treatment")))), None)
            if treated is None:
                continue
            names = ("median-size entries", "an equal change elsewhere")
            against = [
                f"{row.effect:+.3g} against {name}{_doubt(is_significant(row))}"
                for c, name in zip(same, names, strict=True)
                if (row := found.get((metric, c, "contrast")))
            ]
            said = "; ".join(against) or "there is no control"
            footnote = result.settings["footnotes"].get(edit, "")
            note = " (by construction)" if "the effect is 0" in footnote else ""
            yield f"{edit}: {metric} {describe(treated)}{note}; {said}."


def _doubt(significant: bool) -> str:
    return "" if significant else " (not told apart)"
