"""One effect over models: which rows it takes, what it says, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import sinklens
from sinklens.core.errors import SinklensError, UsageError
from sinklens.stats.pooled import pooled
from sinklens.sweep.table import COLUMNS

N = 9


def row(model: str, effect: float, error: float | None = 0.1, **known: Any) -> dict[str, Any]:
    """A row of a treatment over nine prompts."""
    half = None if error is None else stats.t.isf(0.025, N - 1) * error
    ends = {} if half is None else {"ci_low": effect - half, "ci_high": effect + half}
    usual = {"experiment": "bos_replacement", "metric": "loss", "condition": "mean", "n": N}
    usual |= {"kind": "treatment", "unit": "nats", "n_prompts": N, "settings": "{}", "length": 8}
    return {**dict.fromkeys(COLUMNS), **usual, "model": model, "effect": effect, **ends, **known}


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(COLUMNS))


EFFECTS = np.array([0.5, 0.1, 0.3, 0.9, 0.2, 0.6])
ERRORS = np.array([0.1, 0.2, 0.1, 0.3, 0.1, 0.2])
SIZES = [1e6, 2e6, 4e6, 8e6, 16e6, 32e6]
KINDS = ["rotary", "rotary", "alibi", "alibi", "none", "none"]
SIX = [
    row(f"m{i}", e, s, parameters=size, position_encoding=kind)
    for i, (e, s, size, kind) in enumerate(zip(EFFECTS, ERRORS, SIZES, KINDS, strict=True))
]


def test_models_are_sorted_and_pooled() -> None:
    found = sinklens.pool(table(*SIX), "loss", "mean")
    assert list(found.units["label"]) == ["m1", "m4", "m2", "m0", "m5", "m3"]
    np.testing.assert_allclose(found.units["error"], ERRORS[[1, 4, 2, 0, 5, 3]])
    assert found.pooled is not None and found.notes == []
    assert found.pooled.estimate == pytest.approx(pooled(EFFECTS, ERRORS).estimate)
    said = str(found)
    assert said.startswith("bos_replacement, loss, mean (treatment): +0.38")
    assert "nats over 6 models (random effects, 95 % CI +0." in said


def test_few_models_do_not_generalise() -> None:
    found = sinklens.pool(table(*SIX[:4]), "loss", "mean")
    assert found.notes == ["4 models cannot generalise: what holds in others needs at least 5."]
    alone = sinklens.pool(table(SIX[0]), "loss", "mean")
    assert alone.pooled is None and "nothing to pool" in str(alone)


def test_the_unit_is_the_model_not_its_seeds() -> None:
    seeds = [{**one, "seed": seed} for one in SIX for seed in (0, 1, 2)]
    many, once = (sinklens.pool(table(*rows), "loss", "mean") for rows in (seeds, SIX))
    assert many.pooled and once.pooled
    assert many.pooled.ci_low == pytest.approx(once.pooled.ci_low)  # not narrower
    assert list(many.units["rows"]) == [3] * 6 and "averaged" in many.notes[-1]
    of_seeds = [row("rope", e, model_seed=i) for i, e in enumerate(EFFECTS)]
    over = sinklens.pool(table(*of_seeds), "loss", "mean", unit="model_seed", model="rope")
    assert "over 6 seeds" in over.sentence()


def test_rows_without_spread_have_no_weight() -> None:
    found = sinklens.pool(table(*SIX, row("flat", 0.4, None)), "loss", "mean")
    assert len(found.units) == 6 and "1 row has no spread" in found.notes[0]
    with pytest.raises(SinklensError, match="no row of loss, mean has an interval"):
        sinklens.pool(table(row("flat", 0.4, None)), "loss", "mean")


def test_a_covariate() -> None:
    found = sinklens.pool(table(*SIX), "loss", "mean")
    by_size = found.regress("parameters", log=True)
    assert [one.term for one in by_size.terms] == ["constant", "log10 parameters"]
    by_kind = found.regress("position_encoding")
    assert [one.term for one in by_kind.terms[1:]] == ["none less alibi", "rotary less alibi"]
    # On effects that lie on a line, its slope.
    line = [row(f"m{i}", 0.2 * i, parameters=10.0**i) for i in range(6)]
    slope = sinklens.pool(table(*line), "loss", "mean").regress("parameters", log=True).terms[1]
    assert slope.estimate == pytest.approx(0.2) and slope.ci_low == pytest.approx(0.2)
    with pytest.raises(UsageError, match="unknown covariate of every model 'parameter'; did you"):
        found.regress("parameter")
    with pytest.raises(UsageError, match="is the same in all of them"):
        found.regress("length")
    three = sinklens.pool(table(*SIX[::2]), "loss", "mean")
    with pytest.raises(SinklensError, match="3 models are too few to fit 3 coefficients"):
        three.regress("position_encoding")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"metric": "los"}, "unknown value of metric here 'los'; did you mean loss"),
        ({"step": 4000}, "unknown value of step here '4000'"),
        ({"stepp": 4000}, "unknown column 'stepp'; did you mean step"),
        ({"kind": "contrast"}, "unknown value of kind here 'contrast'"),
        ({"unit": "modell"}, "unknown column 'modell'; did you mean model"),
    ],
)
def test_what_is_not_there_is_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        sinklens.pool(table(*SIX), **{"metric": "loss", "condition": "mean", **asked})
    assert said in str(caught.value)


def test_rows_of_several_effects_are_refused() -> None:
    with pytest.raises(UsageError, match=r"differ in layer: 1, 2; choose one \(layer=...\)"):
        sinklens.pool(table(row("a", 0.1, layer=1), row("b", 0.1, layer=2)), "loss", "mean")
    steps = table(row("a", 0.1, step=0), row("a", 0.3, step=4000), row("b", 0.1, step=4000))
    with pytest.raises(UsageError, match=r"a has rows of several values of step"):
        sinklens.pool(steps, "loss", "mean")
    assert len(sinklens.pool(steps, "loss", "mean", step=4000).units) == 2
    both = sinklens.pool(steps, "loss", "mean", unit=("model", "step"))
    assert list(both.units["label"]) == ["a 0", "b 4000", "a 4000"]


def test_the_figure_has_every_model_and_the_pooled_one_below() -> None:
    figure = sinklens.pool(table(*SIX), "loss", "mean").plot()
    each, whole = figure.data
    assert list(each.x) == sorted(EFFECTS) and len(whole.x) == 1
    assert max(whole.y) < min(each.y) and list(figure.layout.yaxis.ticktext)[-1] == "pooled"
