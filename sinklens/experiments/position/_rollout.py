"""Rollout of attention: from which positions a query's state has come, over all layers.

With A the attention of a layer averaged over heads, row by row, and r the weight of the residual,

    R_0 = I,    R_(l+1) = (1 - r) A_l R_l + r R_l

so that R_ij is the weight of all paths from position j to query i. Kept is the row of the last
query, scaled to sum 1 where a learned sink has taken a part. The weight of the residual:

    norms        |x| / (|x| + |a|) at each query, x what enters the block, a what attention adds
    half         1/2 (Abnar and Zuidema 2020, 2005.00928)
    no_residual  0: the product of attention matrices (Wu et al. 2025, 2502.01951)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.protocol import HookedModel
from ...functional.graphs import permute_rows
from ...hooks.heads import drop_edge
from ...models.capabilities import check
from ...probes.base import SiteProbe
from ...probes.patterns import ATTENTION, ROW_PERMUTED, UNIFORM, PatternReader

NORMS, HALF, NO_RESIDUAL = WEIGHTINGS = ("norms", "half", "no_residual")
POSITION0, PROFILE = "position0", "profile"
Rolled = dict[tuple[str, str, str], Tensor]
"""By source, weighting and `POSITION0` (`[prompt, layer, draw]`, the share of position 0 after each
layer) or `PROFILE` (`[prompt, 1, draw, key]`, the shares of all positions after the last)."""


def step(
    rolled: Float[Tensor, "*#batch query key"],
    pattern: Float[Tensor, "*#batch query key"],
    residual: Float[Tensor, "*#batch query 1"] | float,
) -> Float[Tensor, "*#batch query key"]:
    """The rollout after one more layer."""
    after: Tensor = (1 - residual) * (pattern @ rolled) + residual * rolled
    return after


class Rollouts(SiteProbe[Rolled]):
    """The last query's rollout, of attention and with a reader of its nulls."""

    def __init__(
        self,
        model: HookedModel,
        weightings: Sequence[str],
        reader: PatternReader | None = None,
        *,
        without_key0: bool = False,
    ) -> None:
        """Read attention and, for `norms`, what enters a block and what attention adds.

        Args:
            model: The model.
            weightings: Of the residual.
            reader: Makes the nulls; none are made without it.
            without_key0: Whether later queries of uniform attention do not see key 0.
        """
        with_norms = NORMS in weightings
        layers = check(model).layers_of("pattern")
        # Attention that is delegated gives its pattern after its output.
        beside = ("residual", "pattern", "attn_out") if with_norms else ()
        super().__init__("resid_post" if with_norms else "pattern", layers, beside)
        self._weightings, self._reader = tuple(weightings), reader
        self._without_key0 = without_key0
        self._rolled: dict[tuple[str, str], Tensor] = {}

    def reduce(self, activation: Tensor, layer: Any, /) -> Rolled:
        """One layer on; what is kept of it."""
        pattern = self.held.get("pattern", activation)
        if layer == self.layers[0]:
            self._rolled = {}
        sources = dict(self._sources(pattern, layer))
        found: Rolled = {}
        for weighting in self._weightings:
            residual = self._residual(weighting)
            for source, mean in sources.items():
                identity = torch.eye(mean.shape[-1], device=mean.device).expand(mean.shape)
                rolled = step(self._rolled.get((source, weighting), identity), mean, residual)
                self._rolled[source, weighting] = rolled
                last = rolled[:, :, -1] / rolled[:, :, -1].sum(-1, keepdim=True)
                last = last.expand(len(pattern), *last.shape[1:])
                found[source, weighting, POSITION0] = last[..., 0]
                if layer == self.layers[-1]:
                    found[source, weighting, PROFILE] = last
        return found

    def _sources(self, pattern: Tensor, layer: int) -> Iterator[tuple[str, Tensor]]:
        """Attention averaged over heads and its nulls, `[batch or 1, draw, query, key]`."""
        if self._reader is None:
            yield ATTENTION, pattern.detach().float().mean(1, keepdim=True)
            return
        mean = self._reader.checked(pattern, layer).mean(1)
        yield ATTENTION, mean[:, None]
        even = self._reader.even(mean, layer)[:, None]
        yield UNIFORM, drop_edge(even, None, heads=[0]) if self._without_key0 else even
        visible = self._reader.visible(layer).to(mean.device)
        orders = self._reader.orders(self.count[layer], mean, layer)
        if draws := [permute_rows(mean, order, visible) for order in orders]:
            yield ROW_PERMUTED, torch.stack(draws, 1)

    def _residual(self, weighting: str) -> Float[Tensor, "batch 1 query 1"] | float:
        """The weight of the residual."""
        if weighting != NORMS:
            return 0.5 if weighting == HALF else 0.0
        sites = ("residual", "attn_out")
        entered, written = (self.held[site].float().norm(dim=-1) for site in sites)
        tiny = torch.finfo(torch.float32).tiny
        share: Tensor = entered / (entered + written).clamp_min(tiny)
        return share[:, None, :, None]

    def compute(self) -> Rolled:
        """Of all prompts."""
        return self.stacked()


def thirds(length: int) -> Float[Tensor, "third key"]:
    """1 where a position is in the first, middle or last third."""
    number = torch.arange(length) * 3 // length
    return (number == torch.arange(3)[:, None]).float()


def gap(
    profile: Float[Tensor, "*batch key"], less: int, excluded: Sequence[int] = ()
) -> Float[Tensor, "*batch"]:
    """The share of one third of the positions less that of the middle one.

    Args:
        profile: Shares of the positions.
        less: The third: 0 for the first, 2 for the last.
        excluded: Positions that do not count; shares are of the others' sum.
    """
    counted = profile.double().clone()
    counted[..., list(excluded)] = 0
    counted = counted / counted.sum(-1, keepdim=True)
    by_third = counted @ thirds(profile.shape[-1]).double().T
    difference: Tensor = by_third[..., less] - by_third[..., 1]
    return difference
