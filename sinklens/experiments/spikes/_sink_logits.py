"""How far the logit for the sink lies above others, in sink heads and in the rest.

Sink heads are chosen by the weight of key 0, so that a gap above 0 is no news there. The control is
the gap of a later key in the same heads, which was not chosen; the contrast reads both over the
same queries and the same other keys (`probes.sink_logit`). The null is 0,
that of uniform attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ...core.labels import Head
from ...core.protocol import HookedModel
from ...hooks.matching import control_positions
from ...models.capabilities import check
from ...models.prompts import Prompts
from ...probes import LogitGaps, Probe
from ...runner.config import ExperimentConfig
from ...stats.effects import Row, paired_row


class SinkGaps:
    """Reads the gaps of key 0 and of later keys in one forward.

    Attributes:
        places: The later key in each draw.
        probes: What to read in a clean run.
    """

    def __init__(self, model: HookedModel, prompts: Prompts, config: ExperimentConfig) -> None:
        """Draw the later keys; none where draws is 0 or no such position is left."""
        # A query after such a key has to see key 0 as well.
        seen = min(window or prompts.length for window in check(model).windows)
        self.places = control_positions(min(prompts.length, seen), config.draws, config.seed)
        self._seed, self._first = config.seed, LogitGaps(model)
        self._pairs = [(LogitGaps(model, p, p), LogitGaps(model, 0, p)) for p in self.places]
        self.probes: list[Probe] = [self._first, *(one for pair in self._pairs for one in pair)]

    def rows(self, heads: Sequence[Head]) -> Iterator[Row]:
        """The rows of sink heads and of the others, where there are any.

        Args:
            heads: The sink heads.
        """
        gaps = self._first.compute().gap
        sink = torch.zeros(gaps.shape[1:], dtype=torch.bool)
        for head in heads:
            sink[head] = True
        for name, chosen in (("sink_heads", sink), ("other_heads", ~sink)):
            if not bool(chosen.any()):
                continue

            def mean(probe: LogitGaps, chosen: torch.Tensor = chosen) -> np.ndarray:
                values: np.ndarray = probe.compute().gap[:, chosen].double().mean(1).numpy()
                return values

            named, unit = ("logit_gap", name), "nats"
            mine = mean(self._first)
            yield paired_row(*named, "measurement", mine, 0 * mine, unit=unit)
            if self._pairs:
                there = np.mean([mean(later) for later, _ in self._pairs], 0)
                here = np.mean([mean(first) for _, first in self._pairs], 0)
                draws = len(self._pairs)
                yield paired_row(*named, "control", there, 0 * there, unit=unit, n_draws=draws)
                yield paired_row(
                    *named,
                    "contrast",
                    here,
                    there,
                    unit=unit,
                    tested=True,
                    seed=self._seed,
                    n_draws=draws,
                )
