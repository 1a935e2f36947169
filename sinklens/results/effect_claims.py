"""What a diagnosis claims of interventions, made from the rows of its experiments by these rules.

3  Replacing BOS. `bos_replacement`: `sink_mass` and `loss` (else `kl`) of `random_token`; of
   `mean`, else `zero`, where that was not run, which is then said. If the sink changes
   significantly more than under its control (`does_more`), it is removed where its mass falls
   by half or more, weakened where by less, strengthened where it rises, and hardly changed
   within a tenth either way. Without models with random weights (a quick run) none of these is
   tested: a change of a tenth or more is given, and said to be untested.
4  Cutting the edge. `sink_head_ablation`: `loss` (else `kl`) of `drop_edge`.
5  By layer. `position0_patching`: `loss` (else `kl`) of `other_token:residual` by layer. It matters
   most where its difference from the control is largest of those that are significantly larger
   (`does_more`), and least where it is smallest.

Each effect is said against the clean run, whose loss stands in brackets, then whether it is more
than its control (`control_verdict`), with the difference where both count; of a metric without sign
(KL) that is judged by the ratio in models with random weights, which is said. It raises the loss if
its interval lies above 0. Where two lines have no room for all, the clean loss is left out first,
then the interval of the difference; by layer, that of the least effect.
"""

from __future__ import annotations

from collections.abc import Callable

from ..stats.effects import LEVEL, EffectSize, smallest_p
from .claim import UNTESTED, Claim, cited, fitting, percent, row_of
from .effect_sentences import does_more
from .record import Record
from .wording import (
    control_verdict,
    describe,
    effect_of,
    interval_of,
    null_verdict,
    written,
)

HALF, HARDLY, FEW = 0.5, 0.1, 4
PATCHING = "Another token's state at position 0"
REPLACEMENTS = {
    "random_token": "Another token for BOS",
    "mean": "The mean embedding for BOS",
    "zero": "Zero for BOS",
}
CHANGES = {
    "removes": "removes the sink",
    "weakens": "weakens the sink",
    "strengthens": "strengthens the sink",
    "hardly": "hardly changes the sink",
    "no more": "changes the sink no more than its control",
    "untested": "changes the sink",
}


def replacing_bos(result: Record, sink: bool) -> Claim:
    """Claim 3: what another token in place of BOS does to the sink and to the loss."""
    treated = {row.condition for row in result.effects if row.kind == "treatment"}
    condition = next((name for name in REPLACEMENTS if name in treated), None)
    cost = None if condition is None else _cost(result, condition)
    if condition is None or cost is None:
        return Claim("bos_replacement has no row of another token.")
    mass = row_of(result, "sink_mass", condition)
    said, rows, verdict = f"{REPLACEMENTS[condition]} ", [cost], ""
    if sink and mass is not None:
        verdict = changing(result, mass)
        at = f" over {mass.layers}" if mass.layers else ""
        values = f"{percent(mass.baseline)} -> {percent(mass.value)}{at}"
        untested = "; not tested" if verdict == "untested" else ""
        said += f"{CHANGES[verdict]} ({values}{untested}) and "
        rows.insert(0, mass)
    costs = _costs(result, cost, "for a later token")
    if verdict == "removes":
        verdict = f"removes, {_use(result, cost)}"
    text = fitting(*(f"{said}{words}." for words in costs))
    return Claim(text, cited(result, rows), verdict)


def changing(result: Record, mass: EffectSize) -> str:
    """What an intervention does to the sink, by its mass before and after and its control."""
    small = abs(mass.effect) < HARDLY * mass.baseline
    if _side(result, mass) in UNTESTED:
        return "hardly" if small else "untested"
    if not does_more(result, mass):
        return "no more"
    if small:
        return "hardly"
    if mass.effect > 0:
        return "strengthens"
    return "removes" if mass.value <= HALF * mass.baseline else "weakens"


def cutting_the_edge(result: Record) -> Claim:
    """Claim 4: what the attention of the sink heads to position 0 is worth."""
    cost = _cost(result, "drop_edge")
    if cost is None:
        return Claim("sink_head_ablation has no row of a cut edge.")
    heads = len(result.draws.get("heads", ()))
    of = f"in {heads} sink heads" if heads else "in the sink heads"
    costs = _costs(result, cost, "that to a later key")
    cutting = f"Cutting the attention to position 0 {of}"
    text = fitting(*(f"{cutting} {words}." for words in costs))
    return Claim(text, cited(result, [cost]), _use(result, cost))


def by_layer(result: Record) -> Claim:
    """Claim 5: entering which layer it matters what position 0 holds."""
    rows = [
        row
        for row in result.effects
        if (row.kind, row.condition) == ("treatment", "other_token:residual")
        and row.metric == _loss_of(result)
    ]
    compared = [(row, pair[1]) for row in rows for pair in result.references(row)[:1]]
    if not compared:
        return Claim("What position 0 holds was not compared with a later position by layer.")
    compared.sort(key=lambda pair: pair[1].effect)
    larger = [pair for pair in compared if does_more(result, pair[0]) and pair[1].effect > 0]
    if larger:
        return _largest_layer(result, larger[-1], compared[0])
    most, difference = compared[-1]
    largest = f"the highest difference is {describe(difference)} (L{most.layer})"
    of = f"{len(rows)} layers"
    if len(rows) <= FEW:
        of += f" ({', '.join(f'L{row.layer}' for row in rows)})"
    if _side(result, most) in UNTESTED:
        text = f"{PATCHING} is not tested beside a later position in {of}; {largest}."
        return Claim(text, cited(result, [most]))
    if len(rows) == 1:
        largest = f"the difference is {describe(difference)}"
        text = f"{PATCHING} costs no more than at a later position entering L{most.layer}"
    else:
        text = f"{PATCHING} costs more than at a later position in none of {of}"
    return Claim(f"{text}; {largest}.", cited(result, [most]), "none")


def _largest_layer(
    result: Record, largest: tuple[EffectSize, EffectSize], smallest: tuple[EffectSize, EffectSize]
) -> Claim:
    """Claim 5 where it matters: the layers with the largest and smallest difference."""
    (most, difference), (least, other) = largest, smallest
    said = (
        f"{PATCHING} costs most entering L{most.layer}: {describe(most)}, "
        f"{effect_of(difference)}{interval_of(difference)} more than at a later position"
    )
    text = f"{said}."
    if least is not most:
        more = "" if does_more(result, least) else ", not significantly more"
        lowest = f"{said}; least entering L{least.layer}: {effect_of(other)}"
        text = fitting(f"{lowest}{interval_of(other)}{more}.", f"{lowest}{more}.")
    return Claim(text, cited(result, [most, least]), f"L{most.layer}")


def _costs(result: Record, row: EffectSize, control: str) -> list[str]:
    """An effect on loss or KL against the clean run, then beside its control; shorter forms."""
    long, short = (_beside(result, row, control, interval) for interval in (interval_of, _none))
    if row.metric != "loss":
        return [f"shifts predictions by a KL of {describe(row)}{end}" for end in (long, short)]
    verb = "raises" if null_verdict(row) == "above" else "changes"
    clean = f"(clean {written(row.baseline, '.3g')}) "
    forms = ((clean, long), ("", long), ("", short))
    return [f"{verb} loss {loss}by {describe(row)}{end}" for loss, end in forms]


def _beside(
    result: Record, row: EffectSize, control: str, interval: Callable[[EffectSize], str]
) -> str:
    """Whether an effect is more than its control, with the difference."""
    for _, contrast in result.references(row)[:1]:
        difference = f"difference {effect_of(contrast)}{interval(contrast)}"
        judged = ""
        if not result.measure(row.metric).signed and result.of_random_models(contrast) is not None:
            judged = ", by models with random weights"
        side = _side(result, row)
        beside = control
        if control.startswith("for ") and not side.endswith("than"):
            beside = f"{control.removeprefix('for ')}'s"  # not "different from for a later token"
        return f", {side} {beside}{judged} ({difference})"
    return ", without a control"


def _none(row: EffectSize) -> str:
    return ""


def _side(result: Record, row: EffectSize) -> str:
    """On which side of its control an effect is; empty where it has none."""
    for _, contrast in result.references(row)[:1]:
        return control_verdict(contrast, result.of_random_models(contrast))
    return ""


def _use(result: Record, row: EffectSize) -> str:
    """The verdict on a cost; `too few` where no result of that many prompts is significant."""
    side = _side(result, row)
    if side == "not significantly different from" and smallest_p(row.n_prompts) > LEVEL:
        return "too few"
    return side


def _cost(result: Record, condition: str) -> EffectSize | None:
    return row_of(result, _loss_of(result), condition)


def _loss_of(result: Record) -> str:
    return "loss" if any(row.metric == "loss" for row in result.effects) else "kl"
