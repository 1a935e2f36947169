"""Effect sizes: paired differences with intervals and tests, one number per prompt.

For each prompt the difference intervened - clean is taken; draws are averaged within the prompt
first. The resampling unit is the prompt. Interval: Student's t on the differences (95 %), or the
bootstrapped one (`INTERVALS`). p-value: the sign-flip test of the null that the differences are
symmetric about 0 (20,000 resamples, exact where fewer exist). q-value: Benjamini-Hochberg over the
treatment rows of one metric; contrasts are a family of their own. With few prompts the smallest
attainable p is large (2^(1-n)), and for a skewed distribution Student's interval is too narrow
(`skewness`); `d_z` is mean over standard deviation.

With several random draws (tokens, positions, heads), each of them run on every prompt, their choice
is uncertain as well. Mean squares of a two-way layout without replication,

    variance of the mean = (MS_prompt + max(0, MS_draw - MS_rest)) / (draws * prompts),

with Satterthwaite's degrees of freedom (1946), which few draws keep small; p is then the larger of
the sign-flip test's and that of the t-test with this error.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy import stats

from .bootstrap import pivot_quantiles

RESAMPLES = 20_000
EPSILON, ROUNDING_STEPS = float(np.finfo(float).eps), 10  # as scipy judges loss of precision
LEVEL = 0.05
ROUNDING = 1e-6
"""Float32 rounding, relative to what was measured."""
OVER_PROMPTS = ("prompt", "document")
"""What is resampled in rows of one value per prompt."""
Values = Float[np.ndarray, " prompt"]
Draws = Float[np.ndarray, "draw prompt"]
Ends = tuple[float | None, float | None]
STUDENT_T, BOOTSTRAP_T = "student_t", "bootstrap_t"
"""How the interval of a row is made."""


@dataclass(frozen=True)
class EffectSize:
    """One row of a result.

    Attributes:
        metric: What was measured.
        condition: The intervention or input.
        kind: `treatment` or `control` (intervened against clean), `measurement` (a value beside its
            analytic null), `null` (an empirical null; the control of a measurement is the same
            measurement elsewhere, beside its own null) or `contrast` (the effect of the treatment
            minus that of the control, or the distance of a value from its null minus that of a
            control or empirical null).
        against: The name of the control or null that the row is about; None for a treatment or a
            measurement.
        resampled: The unit that is resampled: `prompt`, `document`, `token` or `seed`.
        layer: The layer, where the row is about one.
        head: The query head, where the row is about one.
        queries: The range of queries, such as `1:8`, where the row is about one.
        baseline: Mean over prompts of the clean run, the null, or the control in a contrast.
        value: Mean over prompts of the measured value.
        effect: Mean of the paired differences, value - baseline.
        ci_low: Lower end of the 95 % interval, None for fewer than two prompts.
        ci_high: Upper end.
        p_value: Sign-flip test, where it is applicable.
        q_value: Benjamini-Hochberg within the family.
        d_z: Mean difference over its standard deviation, None where that is 0.
        n_prompts: The number of resampled units: prompts, or what `resampled` names.
        n_draws: The number of draws averaged within each prompt.
        unit: The unit of baseline, value, effect and interval.
        layers: The layers that the row averages, such as `L12-L29`, where an intervention cannot
            reach all; None where they are all or the row has none.
    """

    metric: str
    condition: str
    kind: str
    against: str | None
    resampled: str
    layer: int | None
    head: int | None
    queries: str | None
    baseline: float
    value: float
    effect: float
    ci_low: float | None
    ci_high: float | None
    p_value: float | None
    q_value: float | None
    d_z: float | None
    n_prompts: int
    n_draws: int
    unit: str
    layers: str | None = None


@dataclass(frozen=True)
class Row:
    """An effect with the values per prompt from which it was computed."""

    effect: EffectSize
    values: Values
    baselines: Values


def paired_row(
    metric: str,
    condition: str,
    kind: str,
    values: Values | Draws,
    baselines: Values | Draws,
    *,
    unit: str = "",
    tested: bool = False,
    seed: int = 0,
    layer: int | None = None,
    head: int | None = None,
    queries: str | None = None,
    n_draws: int = 1,
    against: str | None = None,
    resampled: str = "prompt",
    layers: str | None = None,
    method: str = STUDENT_T,
) -> Row:
    """The effect of paired values, one per prompt.

    Args:
        metric: What was measured.
        condition: The intervention or input.
        kind: See `EffectSize`.
        values: One value per prompt, or per draw and prompt.
        baselines: What each value is compared with.
        unit: The unit.
        tested: Whether to run the sign-flip test.
        seed: Seed of the resamples of the test.
        layer: The layer, if the row is about one.
        head: The head, if the row is about one.
        queries: The range of queries, if the row is about one.
        n_draws: The number of draws averaged in each value.
        against: The control or null that the row is about.
        resampled: The unit of which each value is one.
        layers: The layers that the row averages, where they are not all.
        method: How its interval is made, a key of `INTERVALS`.
    """
    by_draw = np.atleast_2d(np.asarray(values, float) - np.asarray(baselines, float))
    low, high = INTERVALS[method](by_draw, seed)
    differences = by_draw.mean(0)
    values, baselines = (np.atleast_2d(part).mean(0) for part in (values, baselines))
    spread = len(differences) > 1 and not _are_equal(differences)
    deviation = float(differences.std(ddof=1)) if spread else 0.0
    effect = EffectSize(
        metric,
        condition,
        kind,
        against,
        resampled,
        layer,
        head,
        queries,
        baseline=float(baselines.mean()),
        value=float(values.mean()),
        effect=float(differences.mean()),
        ci_low=low,
        ci_high=high,
        p_value=p_value(by_draw, seed) if tested and len(differences) > 1 else None,
        q_value=None,
        d_z=float(differences.mean()) / deviation if deviation > 0 else None,
        n_prompts=len(differences),
        n_draws=n_draws,
        unit=unit,
        layers=layers,
    )
    return Row(effect, values, baselines)


def interval(differences: Values | Draws, seed: int = 0) -> Ends:
    """Student's t interval (95 %) of the mean; a single point where all values are equal."""
    by_draw = np.atleast_2d(differences)
    if by_draw.shape[1] < 2:
        return None, None
    if _are_equal(by_draw):
        return float(by_draw.mean()), float(by_draw.mean())
    error, freedom = standard_error(by_draw)
    if error == 0:  # draws that differ cancel in every prompt
        return float(by_draw.mean()), float(by_draw.mean())
    low, high = stats.t.interval(1 - LEVEL, freedom, by_draw.mean(), error)
    return float(low), float(high)


def bootstrap_t(differences: Values | Draws, seed: int = 0) -> Ends:
    """Student's interval whose sides are as long as bootstrapped prompts say (Efron 1981).

    In place of the quantiles of Student's t stand those of (mean* - mean) / error* over resampled
    prompts, which are not symmetric where the differences are skewed. With one draw this is the
    bootstrap-t interval; with several, each side is stretched alike. Student's own where too few
    prompts differ for these quantiles.
    """
    by_draw = np.atleast_2d(differences)
    low, high = interval(by_draw)
    if low is None or high is None or _are_equal(by_draw.mean(0)):
        return low, high
    quantiles = pivot_quantiles(by_draw.mean(0), LEVEL, seed)
    if quantiles is None:
        return low, high
    mean, usual = float(by_draw.mean()), float(stats.t.ppf(1 - LEVEL / 2, by_draw.shape[1] - 1))
    return mean - (mean - low) * quantiles[1] / usual, mean - (high - mean) * quantiles[0] / usual


INTERVALS: Mapping[str, Callable[[Values | Draws, int], Ends]] = {
    STUDENT_T: interval,
    BOOTSTRAP_T: bootstrap_t,
}


def standard_error(differences: Draws) -> tuple[float, float]:
    """The standard error of the mean over draws and prompts, and its degrees of freedom.

    Args:
        differences: Of every draw on every prompt; at least two prompts.
    """
    draws, prompts = differences.shape
    by_prompt, mean = differences.mean(0), differences.mean()
    of_prompts, freedom = draws * by_prompt.var(ddof=1), float(prompts - 1)
    excess = 0.0
    if draws > 1:
        of_draws = prompts * differences.mean(1).var(ddof=1)
        rest = differences - by_prompt - differences.mean(1, keepdims=True) + mean
        rest = (rest**2).sum() / ((prompts - 1) * (draws - 1))
        excess = max(0.0, of_draws - rest)
    total = of_prompts + excess
    if excess:
        satterthwaite = total**2 / (
            of_prompts**2 / (prompts - 1)
            + of_draws**2 / (draws - 1)
            + rest**2 / ((prompts - 1) * (draws - 1))
        )
        # A small difference of mean squares would leave it below that of either alone.
        freedom = max(satterthwaite, min(prompts, draws) - 1)
    return float(np.sqrt(total / differences.size)), float(freedom)


def p_value(differences: Values | Draws, seed: int = 0) -> float:
    """Two-sided p of the mean: by sign flips, with several draws at least the t-test's."""
    by_draw = np.atleast_2d(differences)
    p = sign_flip_p(by_draw.mean(0), seed)
    if len(by_draw) == 1 or _are_equal(by_draw):
        return p
    error, freedom = standard_error(by_draw)
    return p if error == 0 else max(p, float(2 * stats.t.sf(abs(by_draw.mean()) / error, freedom)))


def _are_equal(differences: Values | Draws) -> bool:
    """Whether values are equal within float rounding, so that their variance is only rounding."""
    mean = differences.mean()
    return bool(np.abs(differences - mean).max() <= ROUNDING_STEPS * EPSILON * abs(mean))


def sign_flip_p(differences: Values, seed: int = 0) -> float:
    """Two-sided p of the sign-flip test: how often random signs give as large a mean."""
    test = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def smallest_p(n_prompts: int) -> float:
    """The smallest p-value that the sign-flip test can give."""
    return max(2.0 ** (1 - n_prompts), 2 / (RESAMPLES + 1))


def with_q_values(rows: Sequence[Row]) -> list[Row]:
    """The rows with Benjamini-Hochberg q-values, by metric and kind."""
    effects = effects_with_q([row.effect for row in rows])
    return [replace(row, effect=effect) for row, effect in zip(rows, effects, strict=True)]


def effects_with_q(effects: Sequence[EffectSize]) -> list[EffectSize]:
    """The effects with Benjamini-Hochberg q-values, by metric and kind."""
    families: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for number, effect in enumerate(effects):
        if effect.p_value is not None:
            families[effect.metric, effect.kind].append(number)
    result = list(effects)
    for members in families.values():
        q_values = stats.false_discovery_control([effects[i].p_value for i in members])
        for number, q in zip(members, q_values, strict=True):
            result[number] = replace(effects[number], q_value=float(q))
    return result


def underpowered_families(effects: Sequence[EffectSize]) -> list[str]:
    """A sentence for each number of prompts with which one row alone cannot be significant.

    Under Benjamini-Hochberg k of m rows at the smallest attainable p have q = p m / k, so that
    several small p-values carry each other; one alone cannot have a q of 0.05 where p m is above.
    """
    sizes: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for effect in effects:
        if effect.p_value is not None:
            sizes[effect.n_prompts][f"{effect.metric} {effect.kind}"] += 1
    lines = []
    for n, families in sizes.items():
        (family, size), least = families.most_common(1)[0], smallest_p(n)
        said = f"Underpowered: with {n} prompts the smallest p of a sign-flip test is {least:.2g}"
        if least > LEVEL:
            lines.append(f"{said}, so that no row that it tests can be significant.")
        elif least * size > LEVEL:
            lines.append(
                f"{said}; in a family of more than {int(LEVEL / least)} rows (the largest: {size} "
                f"{family} rows) one such row alone cannot be significant after FDR correction."
            )
    return lines


def within_rounding(value: float, *measured: float) -> bool:
    """Whether a number is 0 but for float32 rounding of what was measured (or of 1)."""
    return abs(value) <= ROUNDING * max([1.0, *map(abs, measured)])


def is_significant(effect: EffectSize) -> bool:
    """Whether q (or, outside a family, p) is at most 0.05."""
    q = effect.q_value if effect.q_value is not None else effect.p_value
    return q is not None and not math.isnan(q) and q <= LEVEL
