"""What `spike_sink_decoupling` says in words: two-by-two table, other models, a spike's nature."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...results.result import ExperimentResult
from ...results.wording import describe
from ...runner.old_comparison import beside_null
from ...stats.effects import EffectSize, is_significant
from ._interaction import CONDITIONS, INTERACTION


def summary(result: ExperimentResult) -> list[str]:
    """What each edit does to the other's figure, and what makes a spike a sink."""
    models = list(_models(result))
    return [*_cells(result), *models, *_nature(result)][:12]


def _cells(result: ExperimentResult) -> Iterator[str]:
    """The two-by-two table in words."""
    drawn = result.settings["draws_made"]
    found = {(row.metric, row.condition, row.kind): row for row in result.effects}
    for what, reason in result.settings["left_out"].items():
        yield f"{what} was left out: {reason}."
    cells = (
        ("clamp_spikes", "sink_mass", f"Clamping spikes entering layer {drawn['layer']}"),
        ("drop_edge", "spike", f"Dropping the sink edge in {len(drawn['heads'])} heads"),
    )
    for condition, metric, said in cells:
        treated = found.get((metric, condition, "treatment"))
        contrast = found.get((metric, condition, "contrast"))
        if treated:
            against = "there is no control"
            if condition == "drop_edge" and drawn["spikes_at_position0_only"]:
                against = "by construction: position 0 sees only itself, the median moves"
            elif contrast:
                against = _against(contrast)
            yield (
                f"{said} moves {metric} from {treated.baseline:.3g} by {describe(treated)}; "
                f"{against}."
            )
    for condition in CONDITIONS:
        loss = found.get(("loss", condition, "treatment"))
        contrast = found.get(("loss", condition, "contrast"))
        if loss:
            against = "" if contrast is None else f"; {_against(contrast)}"
            yield f"{condition}: loss {describe(loss)}{against}."
    loss = found.get(("loss", INTERACTION, "treatment"))
    if loss:
        doubt = "" if is_significant(loss) else ", not told apart from 0"
        beyond = found.get(("loss", INTERACTION, "contrast"))
        against = "" if beyond is None else f"; {_against(beyond)}"
        yield f"Interaction in the loss: {describe(loss)}{doubt}{against}."


def _against(contrast: EffectSize) -> str:
    """How much more than the control, and whether it can be told."""
    doubt = "" if is_significant(contrast) else ", not told apart from it"
    return f"{contrast.effect:+.3g} against its control{doubt}"


def _nature(result: ExperimentResult) -> Iterator[str]:
    """Sparsity, constancy, gap and quadratic form, each beside its null."""
    found = {
        (row.metric, row.condition): row for row in result.effects if row.kind == "measurement"
    }
    sparsity = found.get(("sparsity", "spike_tokens"))
    constancy = found.get(("constancy", "position0"))
    if sparsity and constancy:
        before = found["constancy", "position0:before"].value
        spiking = found["first_token_spikes", "position0"].value
        yield (
            f"Spike channels hold {sparsity.value:.1%} of the squared norm at spike tokens, "
            f"{beside_null(sparsity)} what as many, the largest, hold at others "
            f"({sparsity.baseline:.1%}); ordinary first tokens, "
            f"of which {spiking:.0%} spike, have a cosine of {constancy.value:.2f} with each "
            f"other, {before:.2f} before the step-up (later positions {constancy.baseline:.2f}; "
            "neither has an interval)."
        )
    gap = found.get(("logit_gap", "sink_heads"))
    if gap:
        others = found.get(("logit_gap", "other_heads"))
        beside = "" if others is None else f", in other heads {others.value:.2f}"
        rows = {row.kind: row for row in result.effects if _is_gap(row)}
        if "contrast" in rows:
            doubt = "" if is_significant(rows["contrast"]) else ", not told apart"
            beside += f", for a later key {rows['control'].value:.2f}{doubt}"
        yield (
            f"In sink heads the logit for position 0 lies {gap.value:.2f} nats from the mean of "
            f"the others ({beside_null(gap)} 0{beside})."
        )
    aligned = next((row for (metric, _), row in found.items() if metric == "alignment"), None)
    if aligned:
        norm = found["quadratic_norm", aligned.condition]
        yield (
            f"The step-up block's quadratic form for {aligned.condition} has "
            f"{norm.value / norm.baseline:.3g} times the median channel's norm; its eigenvector "
            f"holds {aligned.value:.0%} of the input at spike tokens, {beside_null(aligned)} "
            f"elsewhere ({aligned.baseline:.0%})."
        )


def _is_gap(row: EffectSize) -> bool:
    return (row.metric, row.condition) == ("logit_gap", "sink_heads")


def _models(result: ExperimentResult) -> Iterator[str]:
    """Spike and sinks of the other models, the range over seeds where there are several."""
    named = result.settings["draws_made"]["compared"]
    for source in dict.fromkeys(name.split(", seed")[0] for name in named):
        mine = {name for name in named if name.split(", seed")[0] == source}
        rows = [row for row in result.effects if row.condition in mine and row.kind != "contrast"]
        contrasts = [r for r in result.effects if r.condition in mine and r.kind == "contrast"]
        spikes, masses, rates = (
            [row for row in rows if row.metric == metric]
            for metric in ("peak_ratio", "sink_mass", "sink_rate")
        )
        yield (
            f"{source}: spike {_beside_nulls(spikes, '.3g', 'Gaussian entries')} times the median, "
            f"sink mass {_beside_nulls(masses, '.3f', 'uniform')}, sink rate "
            f"{_beside_nulls(rates, '.2f', 'uniform')}{_more_here(contrasts)}."
        )


def _beside_nulls(rows: Sequence[EffectSize], digits: str, null: str) -> str:
    """The values of one figure, and whether all of them are above their null."""
    sides = dict.fromkeys(map(beside_null, rows))
    said = next(iter(sides)) if len(sides) == 1 else "not all above"
    values = _range([row.value for row in rows], digits)
    return f"{values} ({said} {null}, {rows[0].baseline:{digits}})"


def _more_here(contrasts: Sequence[EffectSize]) -> str:
    """How much further above its nulls the model of the run is, if the rows are of another one."""
    if not contrasts:
        return ""
    differences = []
    for metric, digits in (("peak_ratio", "+.3g"), ("sink_mass", "+.3f")):
        rows = [row for row in contrasts if row.metric == metric]
        sure = all(map(is_significant, rows))
        doubt = "" if sure else " (not told apart)" if len(rows) == 1 else " (not all told apart)"
        differences.append(f"{_range([row.effect for row in rows], digits)}{doubt}")
    return f"; here the first two lie {' and '.join(differences)} further above their nulls"


def _range(values: Sequence[float], digits: str) -> str:
    """One value, or the ends of several."""
    low, high = min(values), max(values)
    return f"{low:{digits}}" if len(values) == 1 else f"{low:{digits}} to {high:{digits}}"
