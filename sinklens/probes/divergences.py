"""How far heads are from their mean without the sink columns, beside other columns.

The measure is that of `functional.divergence`, in nats; it is read layer by layer, and patterns
are forgotten at once. Sink columns are taken out, and as many others in their place: random ones,
and ones near the sinks, since early columns of a causal pattern can hold more weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core.protocol import HookedModel
from ..core.seeds import seeded
from ..functional.divergence import columns_nearby, head_divergence, sink_columns
from .base import LayerProbe
from .patterns import PatternReader


class DivergenceValues(NamedTuple):
    """What `HeadDivergences` computes, in nats.

    Attributes:
        whole: KL of heads to their mean.
        without_sinks: The same without the sink columns.
        without_random: Without as many random columns, mean over the sets.
        without_nearby: Without as many columns near the sinks that are none, mean over the sets.
        deviation: Standard deviation over the random sets, 0 where there are fewer than two.
        removed: Sink columns, as a share of all.
    """

    whole: Float[Tensor, "prompt layer"]
    without_sinks: Float[Tensor, "prompt layer percentile"]
    without_random: Float[Tensor, "prompt layer percentile"]
    without_nearby: Float[Tensor, "prompt layer percentile"]
    deviation: Float[Tensor, "prompt layer percentile"]
    removed: Float[Tensor, "prompt layer percentile"]


class HeadDivergences(LayerProbe[DivergenceValues]):
    """KL of heads to their mean with and without sink columns, and without others."""

    def __init__(
        self,
        model: HookedModel,
        reader: PatternReader,
        percentiles: Sequence[float],
        *,
        sets: int = 100,
        seed: int = 0,
    ) -> None:
        """Read the pattern of every layer of `model`.

        Args:
            model: The model.
            reader: Knows the masks.
            percentiles: What makes a sink column.
            sets: Random sets of columns for each, and as many sets of columns near the sinks; the
                same orders of columns for all prompts.
            seed: Decides them.
        """
        super().__init__("pattern", reader.capabilities.attention)
        self._reader, self._percentiles = reader, list(percentiles)
        random = seeded(seed, "columns")
        ranks = [random.permutation(reader.length) for _ in range(sets)]
        self._ranks = torch.from_numpy(np.array(ranks).reshape(sets, reader.length))
        near = seeded(seed, "columns nearby").random((sets, reader.length), np.float32)
        self._near = torch.from_numpy(near)

    def reduce(
        self, pattern: Float[Tensor, "batch head query key"], layer: int, /
    ) -> DivergenceValues:
        """The divergences of a layer, its mean over queries."""
        pattern = self._reader.checked(pattern, layer)
        visible = self._reader.visible(layer).to(pattern.device)
        ranks, near = self._ranks.to(pattern.device), self._near.to(pattern.device)
        sinks = [sink_columns(pattern, percentile) for percentile in self._percentiles]
        sets = [torch.zeros_like(sinks[0])[:, None], *(one[:, None] for one in sinks)]
        sets += [ranks < one.sum(-1)[:, None, None] for one in sinks]
        sets += [columns_nearby(one, near) for one in sinks]
        divergence = head_divergence(pattern, torch.cat(sets, 1), visible).mean(-1)
        count = len(self._percentiles)
        whole, without, rest = divergence.split([1, count, 2 * count * len(ranks)], 1)
        random, nearby = rest.unflatten(1, (2, count, len(ranks))).unbind(1)
        nothing = torch.zeros_like(without)
        return DivergenceValues(
            whole=whole[:, 0],
            without_sinks=without,
            without_random=random.mean(-1) if len(ranks) else nothing,
            without_nearby=nearby.mean(-1) if len(ranks) else nothing,
            deviation=random.std(-1) if len(ranks) > 1 else nothing,
            removed=torch.stack([one.float().mean(-1) for one in sinks], -1),
        )
