"""What `sink_emergence` says in words: when each trait appears, and which orders can be told."""

from __future__ import annotations

import numpy as np

from ...models.random_weights import RANDOM_WEIGHTS
from ...results.result import ExperimentResult
from ...stats.effects import EffectSize, is_significant
from ._onsets import side_of_zero
from ._traits import LATER, Values


def summary(result: ExperimentResult) -> list[str]:
    """When each trait appears, and which orders can be told apart."""
    lines = []
    for name, found in result.settings["onsets"].items():
        mine = [r for r in result.effects if r.metric == name and r.kind == "measurement"]
        first, last = mine[0], mine[-1]
        nulls = f"null {last.baseline:.3g}{_others(result, name)}"
        said = f"{name} goes from {first.value:.3g} to {last.value:.3g} ({nulls})"
        if found is None:
            side = {1: "above", -1: "below"}
            beyond = side_of_zero(_distance(result, last))
            where = f"ends {side[beyond]} its null" if beyond else "not told apart from its null"
            few = min(len(mine), last.n_prompts) < 3
            why = "too few checkpoints or prompts" if few else f"it does not appear ({where})"
            lines.append(f"{said}: {why}.")
            continue
        ends = ""
        if found["ci_low"] is not None:
            ends = f" [{found['ci_low']:,.0f}, {found['ci_high']:,.0f}]"
        between = " and ".join(f"{step:,}" for step in found["between"])
        lines.append(
            f"{said}, half of it by step {found['step']:,.0f}{ends}, between checkpoints {between}."
        )
    lines += [
        f"{row.condition}: {_order(result, row)}."
        for row in result.effects
        if row.metric == "onset_order" and row.ci_low is not None
    ]
    return [*lines[:11], "One training run; another seed may order them otherwise."]


def _order(result: ExperimentResult, row: EffectSize) -> str:
    """Whether one trait appears after another, as far as prompts and checkpoints can tell."""
    onsets = result.settings["onsets"]
    ends = [onsets[name]["between"] for name in row.condition.split(" after ")]
    if max(low for low, _ in ends) < min(high for _, high in ends):
        return "not told apart, both may lie between the same two checkpoints"
    return "yes" if row.ci_low is not None and row.ci_low > 0 else "not told apart"


def _others(result: ExperimentResult, name: str) -> str:
    """What a trait is set against, with a word where the two are not told apart."""
    words = {LATER: "at a later position", RANDOM_WEIGHTS: "random weights"}
    said = ""
    last = [r for r in result.effects if r.metric == name and r.kind == "measurement"][-1]
    for row in result.effects:
        if row.metric == name and row.kind in ("control", "null"):
            contrast = result.find(metric=name, condition=row.condition, kind="contrast")
            doubt = "" if contrast.effect * last.effect > 0 else ", further from its null"
            doubt = doubt if is_significant(contrast) else ", not told apart"
            what = words.get(row.condition, row.condition.replace("_", " "))
            if (name, row.condition) == ("spike", LATER):  # where position 0 is compared
                what = f"position 0 {contrast.value + row.baseline:.3g}, a later one"
            said += f"; {what} {row.value:.3g}{doubt}"
    return said


def _distance(result: ExperimentResult, row: EffectSize) -> Values:
    """How far the prompts of a row are from their nulls."""
    number = result.effects.index(row)
    value, null = (result.per_prompt[side][number] for side in ("value", "baseline"))
    return np.asarray((value - null).double())
