"""How many heads read position 0, by weight and by what it brings in.

Nulls: uniform attention, whose heads all have the same weight; and for what is brought in uniform
attention over values of the same norm that have nothing to do with each other. Control: a later key
p at the queries after it, against position 0 at the same queries; the difference is not tested,
since position 0 differs from later ones in any model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...probes.log_split import SinkReadoutValues
from ...results.estimates import NOT_TESTED, Reference, Sample
from ...runner.run import Run
from ...stats.effects import Values
from ...stats.nulls import uniform_sink_mass

THRESHOLDS = (0.1, 0.2, 0.3, 0.5)
SHOWN = 0.3


def add_reading_heads(
    run: Run[Any],
    position0: SinkReadoutValues,
    positions: Sequence[int],
    later: Sequence[SinkReadoutValues],
    same_queries: Sequence[SinkReadoutValues],
) -> None:
    """The rows and arrays.

    Args:
        run: The run.
        position0: What heads read at position 0.
        positions: The later key in each draw.
        later: What the queries after it read there.
        same_queries: What these queries read at position 0.
    """
    length = run.prompts.length
    windows = [window or length for window in run.capabilities.visible_keys(length)]
    nulls: dict[str, Callable[[int, int], float]] = {
        "weight": lambda window, key: uniform_sink_mass(
            length, window=window, key=key, learned_sink=run.capabilities.learned_sinks
        ),
        "readout": lambda window, key: _unrelated_values(length, window, key),
    }
    for field, uniform in nulls.items():

        def share(read: SinkReadoutValues, field: str = field) -> Values:
            reading: Tensor = getattr(read, field) > SHOWN
            return np.asarray(reading.double().mean((1, 2)))

        null = {
            key: float(np.mean([uniform(window, key) for window in windows]) > SHOWN)
            for key in (0, *positions)
        }
        references = []
        if positions:
            there, here = (np.stack([*map(share, reads)]) for reads in (later, same_queries))
            # Uniform attention gives every key that these queries see the same weight.
            beside = float(np.mean([null[key] for key in positions]))
            draws = len(positions)
            own = Sample(here, beside, draws)
            other = Sample(there, beside, draws)
            references = [Reference(other, "later_key", own=own, models=NOT_TESTED)]
        own_null = Sample(share(position0), null[0])
        run.add("sink_reading_heads", f"{field}>{SHOWN}", own_null, *references)
    run.keep("sink_weight", position0.weight.mean(0), "layer head")
    run.keep("sink_readout", position0.readout.mean(0), "layer head")
    reading = torch.stack([position0.weight.mean(0), position0.readout.mean(0)])
    run.keep(
        "sink_reading_heads",
        torch.stack([(reading > least).double().mean((1, 2)) for least in THRESHOLDS], 1),
        "criterion threshold",
        criterion=[*nulls],
        threshold=THRESHOLDS,
    )


def _unrelated_values(length: int, window: int, key: int) -> float:
    """The mean over queries after a key of 1 / sqrt(keys that a query sees), 0 where it is hidden.

    Of uniform attention over values of the same norm that have nothing to do with each other.
    """
    queries = np.arange(key + 1, length)
    seen = np.minimum(queries + 1, window)
    return float(np.mean(np.where(queries - key < window, 1 / np.sqrt(seen), 0.0)))
