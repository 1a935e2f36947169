"""The rows of what `massive_activations` finds, each beside what no mechanism would give.

The peak was chosen as the largest entry of all stages and positions; its null is chosen likewise.
What is not chosen has a control as well: the largest entry and the kurtosis at position 0 of the
stream that is edited, against those at a later position of the same stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ...core.labels import stage_name
from ...core.protocol import HookedModel
from ...models.prompts import Prompts
from ...probes.residual_trace import PositionPeakValues
from ...runner.old_comparison import with_control
from ...stats.effects import Row, paired_row
from ...stats.nulls import (
    gaussian_exceeds,
    gaussian_peak_kurtosis,
    gaussian_peak_ratio,
    largest_share,
)
from ._search import Spikes

POSITION0 = "position0"


def position_rows(
    peaks: PositionPeakValues,
    medians: Float[Tensor, " prompt"],
    width: int,
    places: Sequence[int],
    layer: int,
    seed: int,
) -> Iterator[Row]:
    """Position 0 of the stream that enters a block, beside later positions and Gaussian entries.

    Args:
        peaks: Of every position.
        medians: The median size of each prompt's entries there.
        width: Entries of a position.
        places: The control's later position in each draw; empty leaves controls out.
        layer: The block.
        seed: Decides the resamples of the tests.
    """
    ratios, units = peaks.largest / medians[:, None], ("times the median", "1 to d_model")
    nulls = gaussian_peak_ratio(width), 3 * width / (width + 2)
    for metric, values, null, unit in zip(
        ("peak_ratio", "kurtosis"), (ratios, peaks.kurtosis), nulls, units, strict=True
    ):
        numbers = values.double().numpy()
        even = np.full(len(numbers), null)
        first = paired_row(
            metric, POSITION0, "measurement", numbers[:, 0], even, unit=unit, layer=layer
        )
        later = numbers[:, list(places)].mean(1) if places else None
        yield from with_control(first, later, null, seed, len(places))


def peak_rows(model: HookedModel, prompts: Prompts, spikes: Spikes) -> list[Row]:
    """The peak and the steps, each beside what no mechanism would give."""
    trace, stages = spikes.trace, spikes.shares.shape[1]
    width = int(model.cfg.d_model)
    size = trace.magnitude[:, spikes.peak, 0]
    # The peak is the largest of all stages; taken as independent, they give the largest null.
    looked_at = stages * prompts.length
    gaussian = gaussian_peak_ratio(looked_at * width)

    def row(
        metric: str,
        condition: str,
        values: Tensor,
        null: float,
        unit: str,
        layer: int | None = None,
    ) -> Row:
        numbers = values.double().numpy()
        nulls = np.full_like(numbers, null)
        kind = "measurement"
        return paired_row(metric, condition, kind, numbers, nulls, unit=unit, layer=layer)

    rows = [
        row("peak_ratio", name, size / median[:, spikes.peak], gaussian, "times the median")
        for name, median in (
            ("layer_median", trace.layer_median),
            ("token_median", trace.token_median),
        )
    ]
    kurtosis = trace.kurtosis[:, spikes.peak]
    null = gaussian_peak_kurtosis(looked_at, width)
    rows.append(row("kurtosis", "peak", kurtosis, null, "1 to d_model"))
    at_first = (spikes.positions == 0).float()
    rows.append(row("peak_at_position0", "peak", at_first, 1 / prompts.length, "share of prompts"))
    for number, (name, criterion) in enumerate(spikes.criteria.items()):
        massive = trace.massive[..., number].amax(1)
        typical = getattr(trace, criterion.median)[:, spikes.peak].mean()
        times = max(criterion.times, criterion.magnitude / float(typical))
        null = gaussian_exceeds(looked_at * width, times)
        rows.append(row("massive", name, massive, null, "share of prompts"))
    steps = {"step_up": spikes.step_up, "step_down": spikes.step_down}
    for name, stage in steps.items():
        if stage:
            shares = spikes.shares[:, stage]
            null = _step_null(spikes, name)
            unit, layer = "share of the peak", (stage - 1) // 2
            rows.append(row(name, stage_name(stage), shares, null, unit, layer))
    return rows


def _step_null(spikes: Spikes, name: str) -> float:
    """What the largest of random shares would be, in all that is written or taken away again."""
    if name == "step_up":
        return largest_share(spikes.peak + 1)
    after = spikes.shares[:, spikes.peak + 1 :]
    return min(0.0, float(after.sum(1).mean())) * largest_share(after.shape[1])
