"""How much of what a query reads comes from the reference points, in three spaces.

Reference points of a layer are the keys whose mean received attention (head-averaged, over all
queries) exceeds 0.1, else the top tenth, at most three tenths of all (2508.02546). For every other
query i >= 1

    share = |sum over reference points j of A_ij x_j| / |sum over all j of A_ij x_j|, at most 1

averaged over queries, with x_j in

    hidden_state  the stream that enters the block, head-averaged A (what the published code calls
                  value space)
    value         W_V h as the model computes it, each head's own A, the heads side by side
    output        the same through W_O, summed over heads, before any norm of it

In hidden-state space a massive activation at the reference point decides the share by itself. Two
nulls keep values and reference points and change where the weights are: uniform attention, and
row-permuted attention (`probes.patterns`).
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.protocol import HookedModel
from ..functional.graphs import permute_rows
from .base import LayerProbe
from .patterns import ATTENTION, ROW_PERMUTED, UNIFORM, PatternReader

SPACES = ("hidden_state", "value", "output")


def reference_points(
    pattern: Float[Tensor, "batch query key"],
    *,
    threshold: float = 0.1,
    fallback: float = 0.1,
    most: float = 0.3,
) -> Bool[Tensor, "batch key"]:
    """The keys that get most attention, by the rule of the module docstring; at least one."""
    mean = pattern.mean(-2)
    n = mean.shape[-1]
    ranks = mean.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    above = mean > threshold
    top = ranks < max(1, int(fallback * n))
    chosen = torch.where(above.any(-1, keepdim=True), above, top)
    return chosen & (ranks < max(1, int(most * n)))


def contribution_share(
    part: Float[Tensor, "batch query width"],
    whole: Float[Tensor, "batch query width"],
    counted: Bool[Tensor, "batch query"],
) -> Float[Tensor, " batch"]:
    """The mean over counted queries of |part| / |whole|, at most 1 each."""
    norm = whole.norm(dim=-1).clamp_min(torch.finfo(whole.dtype).tiny)
    share = (part.norm(dim=-1) / norm).clamp(max=1)
    mean: Tensor = (share * counted).sum(-1) / counted.sum(-1)
    return mean


class ReferenceShares(LayerProbe[dict[str, Tensor]]):
    """The share of the reference points, by space and layer, for attention and its nulls.

    `compute` gives shares by source, `[prompt, layer, space]`; `points` is the share of keys that
    are one. Values of `row_permuted` have an axis of draws before that of spaces.
    """

    def __init__(
        self, model: HookedModel, reader: PatternReader, *, threshold: float = 0.1
    ) -> None:
        """Read stream, values and pattern of every layer of `model`.

        Args:
            model: The model.
            reader: Knows the masks and the random orders.
            threshold: The mean received attention of a reference point.
        """
        capabilities = reader.capabilities
        # Where attention is delegated, the pattern comes after what it was used for.
        super().__init__(
            "resid_post", range(capabilities.n_layers), beside=["residual", "value", "pattern"]
        )
        self._reader, self._threshold = reader, threshold
        self._heads = [capabilities.key_value_head(head) for head in range(capabilities.n_heads)]
        self._outputs = [block.attn.W_O.detach() for block in model.blocks]

    def reduce(self, stream: Tensor, layer: int, /) -> dict[str, Tensor]:
        """The shares of one block, from what it held."""
        pattern = self._reader.checked(self.held["pattern"], layer)
        visible = self._reader.visible(layer).to(pattern.device)
        mean = pattern.mean(1)
        chosen = reference_points(mean, threshold=self._threshold)
        share = partial(self._shares, chosen=chosen, layer=layer)
        even = self._reader.even(mean, layer).expand_as(mean)
        shares = {
            "points": chosen.float().mean(-1),
            ATTENTION: share(pattern),
            UNIFORM: share(even[:, None]),
        }
        draws = []
        for order in self._reader.orders(self.count[layer], pattern, layer):
            order = order[:, None].expand_as(pattern)
            draws.append(share(permute_rows(pattern, order, visible)))
        return shares | ({ROW_PERMUTED: torch.stack(draws, 1)} if draws else {})

    def _shares(
        self,
        pattern: Float[Tensor, "batch head query key"],
        *,
        chosen: Bool[Tensor, "batch key"],
        layer: int,
    ) -> Float[Tensor, "batch space"]:
        """The share in every space."""
        counted = ~chosen
        counted[:, 0] = False
        hidden = self.held["residual"].float()
        values = self.held["value"].float()[:, :, self._heads]
        weight = self._outputs[layer].float()
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for weights in (pattern * chosen[:, None, None], pattern):
            by_head = weights.expand(-1, len(self._heads), -1, -1)
            read = torch.einsum("bhqk,bkhd->bqhd", by_head, values)
            written = torch.einsum("bqhd,hde->bqe", read, weight)
            parts.append((weights.mean(1) @ hidden, read.flatten(2), written))
        return torch.stack(
            [contribution_share(part, whole, counted) for part, whole in zip(*parts, strict=True)],
            -1,
        )
