"""How far the logit for the sink lies above others, in sink heads and in the rest.

Sink heads are chosen by the weight of key 0, so that a gap above 0, or above that of a later key,
is no news there, and sentences give no verdict on it. The control is the gap of a later key in the
same heads, which was not chosen; the contrast reads both over the same queries and the same other
keys (`probes.sink_logit`). It is not tested, since position 0 differs from later ones in any model:
a sign-flip test found a difference in 15 of 100 tiny models with random weights. The null is 0,
that of uniform attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...core.labels import Head
from ...hooks.matching import control_positions
from ...probes import LogitGaps, Probe
from ...results.estimates import NOT_TESTED, Reference, Sample
from ...results.record import Record
from ...results.wording import number, phrase
from ...runner.run import Run

SINK_HEADS = "sink_heads"


class SinkGaps:
    """Reads the gaps of key 0 and of later keys in one forward.

    Attributes:
        probes: What to read in a clean run.
    """

    def __init__(self, run: Run[Any]) -> None:
        """Draw the later keys; none where draws is 0 or no such position is left."""
        # A query after such a key has to see key 0 as well.
        windows = run.capabilities.visible_keys(run.prompts.length)
        length = min(window or run.prompts.length for window in windows)
        places = control_positions(length, run.config.draws, run.config.seed)
        run.drawn(gap_positions=places)
        self._run, self._first = run, LogitGaps(run.model)
        self._later = [LogitGaps(run.model, place, place) for place in places]
        self._same_queries = [LogitGaps(run.model, 0, place) for place in places]
        self.probes: list[Probe] = [self._first, *self._later, *self._same_queries]

    def add_rows(self, heads: Sequence[Head]) -> None:
        """The rows of sink heads and of the others, where there are any.

        Args:
            heads: The sink heads.
        """
        sink = torch.zeros(self._first.compute().gap.shape[1:], dtype=torch.bool)
        for layer, head in heads:
            sink[self._first.layers.index(layer), head] = True
        for name, chosen in ((SINK_HEADS, sink), ("other_heads", ~sink)):
            if bool(chosen.any()):
                references = []
                if self._later:
                    draws = len(self._later)
                    later = Sample(_mean_gap(self._later, chosen), draws=draws)
                    own = Sample(_mean_gap(self._same_queries, chosen), draws=draws)
                    references = [Reference(later, "later_key", own=own, models=NOT_TESTED)]
                sample = Sample(_mean_gap([self._first], chosen)[0])
                self._run.add("logit_gap", name, sample, *references)


def gaps_in_words(result: Record) -> Iterator[str]:
    """The gap in sink heads, which were chosen for it, and in the others with its verdicts."""
    parts = []
    for row in result.effects:
        if (row.metric, row.kind) == ("logit_gap", "measurement"):
            said = phrase(result, row)
            if row.condition == SINK_HEADS:
                measure, pairs = result.measure(row.metric), result.references(row)
                later = "".join(f"; a later key {number(measure, its.value)}" for its, _ in pairs)
                said = f"{phrase(result, row, 'value')} (heads chosen for it{later})"
            parts.append(f"in {row.condition.replace('_', ' ')} {said}")
    if parts:
        yield f"The logit of position 0 minus the mean of the others: {'; '.join(parts)}."


def _mean_gap(
    probes: Sequence[LogitGaps], heads: Bool[Tensor, "layer head"]
) -> Float[Tensor, "probe prompt"]:
    """The mean over heads, by probe and prompt."""
    return torch.stack([p.compute().gap[:, heads].double().mean(1) for p in probes])
