"""A contrast beside those of other models: closed form, and how often a true null is rejected."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sinklens.stats.models import contrast_of, expected_contrasts, p_beside_models


def test_without_spread_over_prompts_it_is_a_prediction_interval() -> None:
    """A t-test of one new observation against a sample."""
    models = np.array([1.0, 1.5, 0.5, 2.0])
    own, other = np.full((3, 5), 4.0), np.full((3, 5), 1.0)
    t = (3.0 - models.mean()) / (models.std(ddof=1) * np.sqrt(1 + 1 / 4))
    assert p_beside_models(own, other, models, ratio=False) == pytest.approx(2 * stats.t.sf(t, 3))
    t = (np.log(4) - models.mean()) / (models.std(ddof=1) * np.sqrt(1 + 1 / 4))
    assert p_beside_models(own, other, models, ratio=True) == pytest.approx(2 * stats.t.sf(t, 3))


def test_a_ratio_does_not_depend_on_the_scale_of_both_effects() -> None:
    random = np.random.default_rng(0)
    own, other = random.exponential(size=(2, 4, 6))
    models = random.normal(size=5)
    p = p_beside_models(own, other, models, ratio=True)
    assert p_beside_models(1e-6 * own, 1e-6 * other, models, ratio=True) == pytest.approx(p)
    expected = expected_contrasts(other, models, ratio=True)
    np.testing.assert_allclose(expected, other.mean() * (np.exp(models) - 1))
    np.testing.assert_array_equal(expected_contrasts(other, models, ratio=False), models)


def test_what_cannot_be_tested_is_not() -> None:
    one = np.ones((3, 1))
    assert p_beside_models(one, one, np.array([0.0, 1.0]), ratio=False) is None
    many = np.ones((3, 4))
    assert p_beside_models(many, many, np.array([0.0]), ratio=False) is None
    for nothing in (0.0, 1e-14):
        for pair in ((many, nothing * many), (nothing * many, many), 2 * (nothing * many,)):
            assert p_beside_models(*pair, np.array([0.0, 1.0]), ratio=True) is None
    assert p_beside_models(many, many, np.zeros(3), ratio=False) == 1.0
    assert p_beside_models(2 * many, many, np.zeros(3), ratio=False) == 0.0
    assert contrast_of(2 * many, many, ratio=False) == 1.0


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_a_model_like_the_others_is_rejected_in_five_of_a_hundred(spread: float) -> None:
    """Whether models or prompts and draws differ most."""
    random, rejected = np.random.default_rng(1), 0
    for _ in range(1500):
        models = spread * random.normal(size=5)
        own = spread * random.normal() + random.normal(size=(3, 8)) + random.normal(size=(1, 8))
        p = p_beside_models(own, np.zeros_like(own), models, ratio=False)
        assert p is not None
        rejected += p <= 0.05
    assert 0.01 <= rejected / 1500 <= 0.07
