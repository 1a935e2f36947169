"""The vocabulary of every experiment: a value beside its null, and what it is compared with.

A `Sample` is one number per prompt beside its null, an `Effect` the values of an intervened run
beside those of the clean run, a `Share` a share of tokens. Each can be compared with
`Reference`s: matched controls, or empirical nulls. `rows_of` makes the rows of a result:

    the sample        value beside its null
    each reference    value beside its own null (kind `control` or `null`)
    each contrast     distance of the sample from its null minus that of the reference,
                      paired by prompt and tested by sign flips
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from scipy import stats
from torch import Tensor

from ..stats.effects import ROUNDING, STUDENT_T, Draws, Row, Values, paired_row
from ..stats.models import OfModels, expected_contrasts, p_beside_models

RANDOM_MODELS = "random_weights"
"""In `against`, before the name of a control: the contrast in models with random weights."""
NOT_TESTED: OfModels = np.zeros(0)
"""`Reference.models` where the null of a contrast is not 0 and no models give it: what is compared
was chosen for it; position 0 differs from others in any model, and so do keys and offsets from
permuted ones; a single model with random weights differs from the next one, which its interval over
prompts leaves out (none is given)."""
OF_PROMPTS = "share of prompts"
"""The unit of what is so or not so of each prompt; such rows have Wilson's interval."""


@dataclass(frozen=True)
class Measure:
    """What a metric measures; declared once for every metric of an experiment.

    Attributes:
        unit: The unit of values, nulls and differences.
        null: The null in words: `uniform attention`, `Gaussian entries`.
        form: How a value is written, such as `.3g` or `.1%`.
        signed: Whether a difference from the null can have either sign. Where it cannot (a
            divergence), a sign-flip test is not meaningful and is not run.
        lowest: The smallest value that there can be, which no interval leaves; None for any.
        highest: The largest, likewise.
    """

    unit: str
    null: str = "0"
    form: str = ".3g"
    signed: bool = True
    lowest: float | None = None
    highest: float | None = None

    def is_edge(self, null: float) -> bool:
        """Whether a null is, as printed, a bound, so that values lie on one side of it anyway."""
        ends = (self.lowest, self.highest)
        return f"{null:{self.form}}" in [f"{end:{self.form}}" for end in ends if end is not None]

    def within(self, row: Row) -> Row:
        """A row whose interval holds only what can be: no share below 0 or above all."""
        effect = row.effect
        if effect.ci_low is None or effect.ci_high is None:
            return row
        lowest = -math.inf if self.lowest is None else self.lowest
        highest = math.inf if self.highest is None else self.highest
        low, high = lowest - effect.baseline, highest - effect.baseline
        if effect.kind == "contrast":
            low, high = lowest - highest, highest - lowest
        # A value may lie beyond by rounding; its interval still holds it.
        low, high = min(low, effect.effect), max(high, effect.effect)
        low, high = max(low, effect.ci_low), min(high, effect.ci_high)
        return replace(row, effect=replace(effect, ci_low=low, ci_high=high))


proportion = partial(Measure, lowest=0.0, highest=1.0)
"""The measure of a share of a whole."""


@dataclass(frozen=True)
class Sample:
    """A measured number beside its null.

    Attributes:
        values: One number per prompt, or per draw and prompt, `[draw, prompt]`, whose interval
            covers the choice of draws as well; a plain number where it does not depend on the
            prompts, which has no spread and so no interval.
        null: The null expectation: one number, or as many as there are values.
        draws: The number of different draws in each value.
    """

    values: Any
    null: Any = 0.0
    draws: int = 1
    kind: ClassVar[str] = "measurement"

    def by_draw(self, prompts: int = 1) -> Draws:
        """The distance from the null, by draw and prompt."""
        values, null = self.sides(prompts)
        return np.atleast_2d(values - null)

    def sides(self, prompts: int) -> tuple[Values | Draws, Values | Draws]:
        """Values and null, as many of each."""
        both = (_numbers(part, prompts) for part in (self.values, self.null))
        values, null = np.broadcast_arrays(*both)
        return values, null

    def distance(self, prompts: int) -> Values:
        """The distance from the null, by prompt."""
        distance: Values = self.by_draw(prompts).mean(0)
        return distance


@dataclass(frozen=True)
class Effect(Sample):
    """An intervention: values of the intervened run, with those of the clean run as `null`."""

    kind: ClassVar[str] = "treatment"


@dataclass(frozen=True)
class Share:
    """A share of the tested tokens, with Wilson's interval over tokens.

    Attributes:
        hits: The number of tokens that count.
        of: The number of tested tokens.
        null: The null expectation of the share.
    """

    hits: int
    of: int
    null: float = 0.0


@dataclass(frozen=True)
class Reference:
    """A matched control, or an empirical null.

    Attributes:
        sample: Its values beside their own null.
        name: Its name in tables (`later_position`), and with blanks in sentences.
        kind: `control` (the same elsewhere) or `null` (the same without the mechanism).
        own: The value it is compared with, where that is not the sample itself: read at the same
            queries and layers, or over as many heads.
        models: The contrast in models with random weights, by which it is judged, as
            `stats.models.contrast_of` measures it; not tested where there are none.
        layers: The layers that both average, where they are not all.
    """

    sample: Sample
    name: str
    kind: Literal["control", "null"] = "control"
    own: Sample | None = None
    models: OfModels | None = None
    layers: str | None = None


@dataclass(frozen=True)
class Place:
    """Where in the model and the prompts a row is about, as far as it is about one place.

    Attributes:
        layer: The layer.
        head: The query head.
        queries: The range of queries, such as `1:8`.
        layers: The layers that are averaged, such as `L12-L29`.
    """

    layer: int | None = None
    head: int | None = None
    queries: str | None = None
    layers: str | None = None


def rows_of(
    metric: str,
    measure: Measure,
    condition: str,
    sample: Sample,
    *references: Reference,
    prompts: int,
    seed: int,
    place: Place | None = None,
    method: str = STUDENT_T,
) -> Iterator[Row]:
    """The row of a sample, and for each reference its row and the contrast.

    Args:
        metric: What was measured.
        measure: What kind of number it is.
        condition: The condition.
        sample: The values.
        references: Controls and empirical nulls.
        prompts: The number of prompts.
        seed: Seed of the resamples of the tests.
        place: What the rows are about, if it is one layer, head, range of queries, or some layers.
        method: How intervals over prompts are made, a key of `stats.effects.INTERVALS`.
    """
    named: dict[str, Any] = {"unit": measure.unit, "seed": seed, "method": method}
    named |= vars(place or Place())
    values, nulls = sample.sides(prompts)
    tested = sample.kind == "treatment" and measure.signed and not _is_nothing(values, nulls)
    row = paired_row(
        metric,
        condition,
        sample.kind,
        values,
        nulls,
        tested=tested,
        n_draws=sample.draws,
        **named,
    )
    if np.ndim(sample.values) == 0:
        row = _without_spread(row)
    elif measure.unit == OF_PROMPTS and np.isin(row.values, (0, 1)).all():
        row = _with_wilson(row, int(row.values.sum()), len(row.values))
    yield measure.within(row)
    for one in references:
        its, own = one.sample, one.own or sample
        named |= {"against": one.name, "layers": one.layers, "method": method}
        nothing = _is_nothing(*own.sides(prompts)) and _is_nothing(*its.sides(prompts))
        values, nulls = its.sides(prompts)
        row = paired_row(metric, condition, one.kind, values, nulls, n_draws=its.draws, **named)
        yield measure.within(row)
        both = (own.by_draw(prompts), its.by_draw(prompts))
        first, second = np.broadcast_arrays(*both)
        contrast = measure.within(
            paired_row(
                metric,
                condition,
                "contrast",
                first,
                second,
                tested=one.models is None and not nothing,
                n_draws=max(its.draws, one.own.draws if one.own else 1),
                **named,
            )
        )
        if one.models is None:
            yield contrast
            continue
        if one.name == RANDOM_MODELS or np.ndim(its.values) == 0:
            contrast = _without_spread(contrast)
        ratio = not measure.signed
        p = p_beside_models(first, second, one.models, ratio=ratio)
        p = None if nothing and not ratio else p
        yield replace(contrast, effect=replace(contrast.effect, p_value=p))
        if not len(one.models):
            continue
        named |= {"against": f"{RANDOM_MODELS}:{one.name}", "method": STUDENT_T}
        expected = expected_contrasts(second, one.models, ratio=ratio)
        yield paired_row(
            metric, condition, "null", expected, np.zeros_like(expected), resampled="model", **named
        )


def share_row(metric: str, measure: Measure, condition: str, share: Share) -> Row:
    """The row of a share of tokens, whose resampling unit is the token."""
    hits = (np.arange(share.of) < share.hits).astype(float)
    row = paired_row(
        metric,
        condition,
        "measurement",
        hits,
        np.full(share.of, share.null),
        unit=measure.unit,
        resampled="token",
    )
    return _with_wilson(row, share.hits, share.of)


def _with_wilson(row: Row, hits: int, of: int) -> Row:
    """A row of a share of prompts or tokens, with Wilson's interval instead of Student's t."""
    if of < 2:
        return row
    ends = stats.binomtest(hits, of).proportion_ci(method="wilson")
    low, high = (float(end) - row.effect.baseline for end in (ends.low, ends.high))
    return replace(row, effect=replace(row.effect, ci_low=low, ci_high=high))


def _is_nothing(values: Values | Draws, nulls: Values | Draws) -> bool:
    """Whether values are their null but for float32 rounding, so that there is nothing to test."""
    return bool(np.abs(values - nulls).max() <= ROUNDING * np.abs([values, nulls]).max())


def _without_spread(row: Row) -> Row:
    """A row of a number that does not depend on the prompts."""
    return replace(row, effect=replace(row.effect, ci_low=None, ci_high=None))


def _numbers(values: Any, prompts: int) -> Values | Draws:
    """One float64 number per prompt, or per draw and prompt."""
    if isinstance(values, Tensor):
        values = values.detach().double().cpu().numpy()
    numbers = np.asarray(values, float)
    return np.full(prompts, float(numbers)) if numbers.ndim == 0 else numbers
