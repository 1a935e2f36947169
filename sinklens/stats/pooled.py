"""Effects of several models together: a random-effects mean, and its dependence on a covariate.

Each model has an effect y_i with a standard error s_i, and true effects differ between models:

    y_i = mu + u_i + e_i,   var(e_i) = s_i^2,   var(u_i) = tau^2.

The mean is weighted by 1 / (s_i^2 + tau^2); tau^2 is that of Paule and Mandel (1982), by
`statsmodels.stats.meta_analysis.combine_effects`. Its interval is Student's t with one degree of
freedom fewer than there are models, which is that of Hartung and Knapp (2001) where tau^2 > 0, and
no narrower where it is 0. The regression takes tau^2 by restricted maximum likelihood (PyMARE) and
is weighted least squares (statsmodels), whose estimated scale is that of Knapp and Hartung (2003).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from ..core.errors import SinklensError

ByUnit = Float[np.ndarray, " unit"]
Design = Float[np.ndarray, "unit term"]
MISSING = "needs statsmodels and PyMARE: pip install 'sinklens[sweep]'"


@dataclass(frozen=True)
class PooledEffect:
    """A random-effects mean.

    Attributes:
        estimate: The mean.
        error: Its standard error.
        ci_low: Lower end of the 95 % interval.
        ci_high: Upper end.
        p_value: Of no effect, by Student's t.
        tau: The standard deviation of true effects between units.
        i2: The share of the variance that is between units.
        q: Cochran's Q.
        q_p_value: Of equal effects, by the chi-squared distribution of Q.
        weights: The weight of each unit; they sum to 1.
    """

    estimate: float
    error: float
    ci_low: float
    ci_high: float
    p_value: float
    tau: float
    i2: float
    q: float
    q_p_value: float
    weights: ByUnit


@dataclass(frozen=True)
class Slope:
    """One term of a meta-regression.

    Attributes:
        term: Its name.
        estimate: The coefficient.
        ci_low: Lower end of the 95 % interval.
        ci_high: Upper end.
        p_value: Of a coefficient of 0.
    """

    term: str
    estimate: float
    ci_low: float
    ci_high: float
    p_value: float


@dataclass(frozen=True)
class MetaRegression:
    """How effects depend on a covariate.

    Attributes:
        terms: The coefficients, that of the constant first.
        p_value: Of no dependence, all terms but the constant together (F test).
        tau: The standard deviation of true effects that the covariate leaves.
    """

    terms: list[Slope]
    p_value: float
    tau: float


def pooled(effects: ByUnit, errors: ByUnit) -> PooledEffect:
    """The random-effects mean of at least two units.

    Args:
        effects: The effect of each unit.
        errors: Its standard error, above 0.

    Raises:
        SinklensError: statsmodels is not installed.
    """
    found = _combined(effects, errors**2)
    low, high = found.conf_int()[1]
    heterogeneity, mean = found.test_homogeneity(), float(found.mean_effect_re)
    spread = float(found.sd_eff_w_re)
    return PooledEffect(
        estimate=mean,
        error=spread,
        ci_low=float(low),
        ci_high=float(high),
        p_value=float(2 * stats.t.sf(abs(mean) / spread, len(effects) - 1)),
        tau=float(np.sqrt(max(0.0, found.tau2))),
        i2=max(0.0, float(found.i2)),
        q=float(heterogeneity.statistic),
        q_p_value=float(heterogeneity.pvalue),
        weights=np.asarray(found.weights_rel_re, float),
    )


def _combined(effects: ByUnit, variances: ByUnit) -> Any:
    """What statsmodels makes of effects.

    It takes tau^2 for 0 where rounding carries its last step beyond the solution, which is seen by
    Q, and then stops earlier.

    Raises:
        SinklensError: statsmodels is not installed.
    """
    try:
        from statsmodels.stats.meta_analysis import combine_effects
    except ImportError as error:
        raise SinklensError(f"pooling {MISSING}") from error
    for near in (1e-10, 1e-8, 1e-6, 1e-5):
        how = {"use_t": True, "atol": near, "maxiter": 1000}
        with np.errstate(divide="ignore"):  # I^2 of effects that are equal
            found = combine_effects(effects, variances, "iterated", **how)
        if found.tau2 > 0 or found.q <= len(effects) - 1:
            return found
    return combine_effects(effects, variances, "chi2", use_t=True)


def regression(effects: ByUnit, errors: ByUnit, design: Design, terms: list[str]) -> MetaRegression:
    """How effects depend on the columns of a design.

    Args:
        effects: The effect of each unit.
        errors: Its standard error, above 0.
        design: One column a term, without the constant.
        terms: Their names.

    Raises:
        SinklensError: statsmodels or PyMARE is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of a file that PyMARE leaves open
            from pymare.estimators import VarianceBasedLikelihoodEstimator
        from statsmodels.regression.linear_model import WLS
    except ImportError as error:
        raise SinklensError(f"meta-regression {MISSING}") from error
    # Its solver stops at absolute steps.
    size = float(np.sqrt(np.mean(effects**2) + np.mean(errors**2)))
    y, variances = effects / size, (errors / size) ** 2
    columns = np.column_stack([np.ones(len(y)), design])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its optimiser, at the edge tau = 0
        fitted = VarianceBasedLikelihoodEstimator(method="REML").fit(
            y[:, None], variances[:, None], columns
        )
    tau2 = max(0.0, float(np.squeeze(fitted.params_["tau2"])))
    line = WLS(y, columns, weights=1 / (variances + tau2)).fit(use_t=True)
    ends = line.conf_int()
    slopes = []
    for place, term in enumerate(["constant", *terms]):
        numbers = [size * float(value) for value in (line.params[place], *ends[place])]
        estimate, low, high = numbers
        slopes.append(Slope(term, estimate, low, high, float(line.pvalues[place])))
    together = line.f_test(np.eye(len(terms) + 1)[1:])
    return MetaRegression(slopes, float(together.pvalue), size * float(np.sqrt(tau2)))
