"""The two-by-two table's fourth figure: what both edits do beyond the sum of the two.

    interaction = effect of both - (effect of clamp_spikes + effect of drop_edge)

paired by prompt. Its control is the same of the three controls, read at the queries at which the
control of both is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ...stats.effects import Row, paired_row

CONDITIONS = ("clamp_spikes", "drop_edge", "both")
INTERACTION = "interaction"


def interaction_rows(
    rows: Sequence[Row], *, seed: int, clamped: Float[np.ndarray, "metric prompt"] | None
) -> list[Row]:
    """For every metric the effect of both against the sum of the two effects, and the control.

    Args:
        rows: Treatments and controls.
        seed: Decides the resamples of the tests.
        clamped: What clamping's control does at the queries that the control of both is read at.
    """
    found = {
        (row.effect.metric, row.effect.condition, row.effect.kind): row.values - row.baselines
        for row in rows
    }
    made = []
    units = {row.effect.metric: row.effect.unit for row in rows}
    for number, (metric, unit) in enumerate(units.items()):
        if any((metric, condition, "treatment") not in found for condition in CONDITIONS):
            continue
        how: dict[str, Any] = {"unit": unit, "tested": True, "seed": seed}
        clamp, drop, both = (found[metric, condition, "treatment"] for condition in CONDITIONS)
        made.append(paired_row(metric, INTERACTION, "treatment", both, clamp + drop, **how))
        if clamped is not None:
            other = found[metric, "both", "control"]
            added = clamped[number] + found[metric, "drop_edge", "control"]
            made += [
                paired_row(metric, INTERACTION, "control", other, added, unit=unit),
                paired_row(
                    metric, INTERACTION, "contrast", both - clamp - drop, other - added, **how
                ),
            ]
    return made
