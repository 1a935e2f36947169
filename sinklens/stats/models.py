"""A contrast beside that of several models without a mechanism.

A contrast is one number of a model: the difference of two effects, or for a measure without sign
(KL) the logarithm of their ratio, which does not depend on the scale of both. That of K other
models, of which one more would be a draw, gives the null: with error the standard error of the
contrast over prompts and draws,

    t = (c - mean(c_k)) / sqrt(error^2 + (1 + 1/K) variance(c_k)),

the distance of a new observation from a sample, with degrees of freedom by Satterthwaite (1946).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import stats

from .effects import Draws, standard_error

OfModels = Float[np.ndarray, " model"]

FLOOR = 1e-11
"""In nats: what float32 rounding of logits of about 30 makes of a KL that is 0."""


def contrast_of(own: Draws, other: Draws, *, ratio: bool) -> float:
    """The contrast of two effects by draw and prompt; not a number where a ratio has no logarithm.

    That is also where one of the two is only rounding, of which there is no ratio.
    """
    if not ratio:
        return float((own - other).mean())
    if min(own.mean(), other.mean()) <= FLOOR:
        return float("nan")
    return float(np.log(own.mean() / other.mean()))


def expected_contrasts(other: Draws, models: OfModels, *, ratio: bool) -> OfModels:
    """What the contrast would be if it were that of each of the models, given the control's effect.

    Args:
        other: The control's effect, by draw and prompt.
        models: The models' contrasts, by `contrast_of`.
        ratio: Whether these are logarithms of ratios.
    """
    return np.asarray(other.mean() * np.expm1(models) if ratio else models, float)


def p_beside_models(own: Draws, other: Draws, models: OfModels, *, ratio: bool) -> float | None:
    """Two-sided p of the distance of a contrast from those of the models.

    Args:
        own: The effect, by draw and prompt.
        other: The control's, likewise.
        models: The models' contrasts, by `contrast_of`.
        ratio: Whether to compare logarithms of ratios.

    Returns:
        None for fewer than two prompts or models, and where a ratio has no logarithm.
    """
    contrast = contrast_of(own, other, ratio=ratio)
    if own.shape[1] < 2 or len(models) < 2 or not np.isfinite(contrast):
        return None
    by_draw = own / own.mean() - other / other.mean() if ratio else own - other
    error, freedom = standard_error(by_draw)
    spread = (1 + 1 / len(models)) * models.var(ddof=1)
    total = error**2 + spread
    if total == 0:
        return 1.0 if contrast == models.mean() else 0.0
    freedom = total**2 / (error**4 / freedom + spread**2 / (len(models) - 1))
    return float(2 * stats.t.sf(abs(contrast - models.mean()) / np.sqrt(total), freedom))
