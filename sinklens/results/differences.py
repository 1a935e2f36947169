"""The differences of effects between two results, row by row.

Paired by prompt where both were run on the same prompts (the same hash), with Student's t interval
and the sign-flip test of `stats.effects`; elsewhere unpaired, by Welch's t (`stats.unpaired`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..stats.effects import OVER_PROMPTS, EffectSize, Values, paired_row
from ..stats.unpaired import Group, OtherGroup, welch
from .record import Record

COMPARED = ("treatment", "measurement", "contrast")
KEY = ("metric", "condition", "kind", "against", "layer", "head", "queries", "layers")
ASPECTS = ("revision", "step", "seed")
Rows = tuple[EffectSize, EffectSize, EffectSize]
NOT_SETTINGS = {"notes", "footnotes", "left_out", "uneven"}


@dataclass(frozen=True)
class Difference:
    """How the effect of one row differs between two results.

    Attributes:
        result: The label of the other result.
        first: The row of the first result.
        other: The same row of the other.
        effect: The difference of their effects: `baseline` is the first effect, `value` the other.
        paired: Whether it is paired by prompt.
    """

    result: str
    first: EffectSize
    other: EffectSize
    effect: EffectSize
    paired: bool

    @property
    def over(self) -> str:
        """What was resampled."""
        return f"{self.effect.n_prompts} prompts{', paired' if self.paired else ''}"


def labels_of(results: Sequence[Record]) -> list[str]:
    """A label for each result: its model, and as much else as tells them apart."""
    models = [result.provenance["model"] for result in results]
    labels = [f"{model['name']}" for model in models]
    parts = [
        *([_aspect(model, name) for model in models] for name in ASPECTS),
        [f"on {result.provenance['prompts']['source']}" for result in results],
        [f"{'with' if result.provenance['bos'] else 'without'} BOS" for result in results],
        [f"{result.provenance['prompts']['length']} tokens" for result in results],
    ]
    for part in parts:
        pairs = list(zip(labels, part, strict=True))
        kinds = {label: {own for other, own in pairs if other == label} for label in labels}
        labels = [
            f"{label} {own}".strip() if len(kinds[label]) > 1 else label for label, own in pairs
        ]
    numbers = [labels[: place + 1].count(label) for place, label in enumerate(labels)]
    return [
        f"{label} ({number})" if labels.count(label) > 1 else label
        for label, number in zip(labels, numbers, strict=True)
    ]


def _aspect(model: Mapping[str, Any], name: str) -> str:
    """One thing that is known of a model in words, empty where it is not: `step 64`."""
    return "" if model.get(name) is None else f"{name} {model[name]}"


def differences(first: Record, other: Record) -> Iterator[Rows]:
    """Every row that both have: of the first, of the other, and the difference of the two."""
    paired = same_prompts(first, other)
    theirs = {_key(row): (row, values) for row, values in _by_prompt(other)}
    for row, values in _by_prompt(first):
        if _key(row) in theirs:
            its, its_values = theirs[_key(row)]
            yield row, its, _difference(row, its, values, its_values, paired)


def _difference(
    row: EffectSize, other: EffectSize, first: Group, second: OtherGroup, paired: bool
) -> EffectSize:
    """The difference of two effects, paired by prompt or between two groups of prompts."""
    named = {name: getattr(row, name) for name in ("layer", "head", "queries", "layers")}
    named |= {"against": row.against, "unit": row.unit, "n_draws": row.n_draws}
    spread = row.ci_low is not None and other.ci_low is not None
    if paired:
        effect = paired_row(
            row.metric, row.condition, row.kind, second, first, tested=spread, **named
        ).effect
        return effect if spread else replace(effect, ci_low=None, ci_high=None)
    low, high, p = welch(second, first) if spread else (None, None, None)
    means = float(np.mean(first)), float(np.mean(second))
    return replace(
        row,
        baseline=means[0],
        value=means[1],
        effect=means[1] - means[0],
        ci_low=low,
        ci_high=high,
        p_value=p,
        q_value=None,
        d_z=None,
        n_prompts=len(first) + len(second),
        resampled="prompt",
    )


def _by_prompt(result: Record) -> Iterator[tuple[EffectSize, Values]]:
    """The rows that are compared, with their effect by prompt."""
    effects = (result.per_prompt["value"] - result.per_prompt["baseline"]).double().numpy()
    for row, values in zip(result.effects, effects, strict=True):
        if row.kind in COMPARED and row.resampled in OVER_PROMPTS:
            yield row, values


def remarks(first: Record, other: Record, base: str, label: str) -> Iterator[str]:
    """How two results are compared, and what could not be."""
    if same_prompts(first, other):
        yield f"{label} and {base} were run on the same prompts and are compared prompt by prompt."
    else:
        yield (
            f"{label} and {base} were run on different prompts: the difference is unpaired "
            "(Welch), and less sensitive than on the same."
        )
        if "document" in {row.resampled for row in (*first.effects, *other.effects)}:
            yield (
                "Several prompts come from one document, which this difference does not cluster: "
                "its interval can be too narrow."
            )
    settings = [
        name
        for name in sorted({*first.settings, *other.settings} - NOT_SETTINGS)
        if first.settings.get(name) != other.settings.get(name)
    ]
    if settings:
        yield f"{label} was run with other settings: {', '.join(settings)}."
    keys = [
        {_key(row) for row in one.effects if row.kind in COMPARED and row.resampled in OVER_PROMPTS}
        for one in (first, other)
    ]
    if keys[0] ^ keys[1]:
        yield f"{len(keys[0] ^ keys[1])} rows are in only one of {base} and {label}."
    skipped = {row.resampled for row in first.effects if row.kind in COMPARED}
    skipped -= {*OVER_PROMPTS}
    if skipped:
        yield f"Rows over {' and '.join(f'{unit}s' for unit in sorted(skipped))} are not compared."


def _key(row: EffectSize) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in KEY)


def same_prompts(first: Record, other: Record) -> bool:
    """Whether two results are of the same tokens in the same order."""
    hashes = [result.provenance["prompts"]["hash"] for result in (first, other)]
    return bool(hashes[0] == hashes[1])
