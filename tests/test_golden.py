"""All experiments give the numbers that are stored in `golden/`.

What is stored was made before rows had a field for what they are set against; `schema1.upgraded`
says where each old row is now. Numbers agree to the tolerance that another processor needs.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from sinklens.results.schema1 import upgraded
from tests import golden

pytestmark = pytest.mark.slow

ROUNDING = 1e-4
# Counts of resamples, of which some are nearly ties.
RESAMPLED = ("p_value", "q_value")
# Of an effect within rounding error these are another processor's rounding.
OF_ROUNDING = (*RESAMPLED, "d_z")
# Over a spread that is only rounding, d_z means nothing and is None.
SPREAD_OF_ROUNDING = 1e14
KEY = ("metric", "condition", "kind", "against", "layer", "head", "queries")
# A treatment that stood twice counted twice in its family of tests.
OTHER_FAMILY = {("massive_activations", "treatment"): ("q_value",)}
# Contrasts read the treatment at the queries that the control counts, and where there are several
# draws their choice is part of every interval and p.
SAME_QUERIES = ("value", "effect", "ci_low", "ci_high", "d_z", "p_value", "q_value")
OF_DRAWS = ("ci_low", "ci_high", "p_value", "q_value")
# Both sides of a contrast are distances from their null now, which is the same for both.
OTHER_NULL = {("sink_reading_heads", "contrast"): ("baseline", "value")}
# What removes a spike counts from its largest size on, as a share of that; where nothing is removed
# on balance there is no such row.
OTHER_SIZE = ("step_down",)
# Entries of median size stand at the positions of the massive ones.
OTHER_CONTROL = ("median_entries",)
# Spikes are intervened on at each step, of which the one of the peak was the only one. What is done
# together with that is done together with all steps, and rows of other steps join the families.
AT_STEPS = ("zero", "mean", "flipped_mean", "first_token_mean", "clamp_spikes")
WITH_ALL_STEPS = ("both", "interaction")
OF_SPIKES = ("massive_activations", "spike_sink_decoupling")
# Of the published code's own rows, those over the layers that its notebooks take.
OTHER_LAYERS = re.compile(
    "(kl_reduction|mean_persistence|star_likeness|combined_star|centralisation|fiedler) published"
)
OF_LAYERS = ("baseline", "value", "effect", "ci_low", "ci_high", "d_z")


@pytest.fixture(scope="module")
def stored() -> dict[str, dict[str, Any]]:
    return golden.stored()


@pytest.mark.parametrize("case", list(golden.cases()), ids=lambda case: case.name)
def test_every_stored_number_is_found(case: golden.Case, stored: dict[str, dict[str, Any]]) -> None:
    expected = stored[case.name]
    if "refused" in expected:
        assert "refused" in golden.content_of(case)
        return
    content = golden.content_of(case)
    found = {tuple(row[name] for name in KEY): row for row in content["effects"]}
    of_spikes = case.experiment in OF_SPIKES
    several = of_spikes and len(content["findings"]["entry_points"]) > 1
    rows = upgraded(case.experiment, expected["effects"])
    rounded = {(old["metric"], old["kind"]) for _, old in rows if abs(old["effect"]) < ROUNDING}
    drawn = {(r["metric"], r["kind"]) for r in found.values() if r["n_draws"] > 1}
    for _, old in rows:
        if old["metric"] in OTHER_SIZE or old["against"] in OTHER_CONTROL:
            continue
        if several and old["condition"] in WITH_ALL_STEPS:
            continue
        if of_spikes and old["condition"] in AT_STEPS:
            old = {**old, "layer": content["findings"]["layer"]}
        row = found[tuple(old[name] for name in KEY)]
        changed = OTHER_FAMILY.get((case.experiment, old["kind"]), ())
        if of_spikes:
            changed += ("q_value",)
        if case.settings_now != case.settings:  # which now ask for a second control as well
            changed = ("q_value",)
        if row["kind"] == "contrast":
            changed += SAME_QUERIES
        if row["n_draws"] > 1 or (old["metric"], old["kind"]) in drawn:
            changed += OF_DRAWS
        changed += OTHER_NULL.get((old["metric"], old["kind"]), ())
        if OTHER_LAYERS.match(f"{old['metric']} {old['condition']}"):
            changed += OF_LAYERS
        if abs(old["effect"]) < ROUNDING:
            changed += OF_ROUNDING
        elif (old["metric"], old["kind"]) in rounded:
            changed += ("q_value",)
        if abs(old["d_z"] or 0) > SPREAD_OF_ROUNDING:
            changed += ("d_z",)
        for field, value in old.items():
            tolerance = 0.02 if field in RESAMPLED else ROUNDING
            if isinstance(value, float):
                value = pytest.approx(value, rel=10 * ROUNDING, abs=tolerance)
            assert field in changed or row[field] == value, (field, row, old)
