"""How much of what a query reads comes from the reference points, in three spaces.

For every query i >= 1 that is none of them (`functional.reference_points`)

    share = |sum over reference points j of A_ij x_j| / |sum over all j of A_ij x_j|, at most 1

averaged over queries, with x_j in

    hidden_state  the stream that enters the block, head-averaged A (what the published code calls
                  value space)
    value         W_V h as the model computes it, each head's own A, the heads side by side
    output        the same through W_O, summed over heads, before any norm of it

In hidden-state space a massive activation at the reference point decides the share alone. Two
nulls keep values and reference points and change where the weights are: uniform attention, and
row-permuted attention (`probes.patterns`).
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.errors import SinklensError
from ..core.protocol import HookedModel
from ..functional.graphs import permute_rows
from ..functional.reference_points import contribution_share, reference_points
from ..models.weights import projection
from .base import LayerProbe
from .patterns import ATTENTION, ROW_PERMUTED, UNIFORM, PatternReader

SPACES = ("hidden_state", "value", "output")


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

        Raises:
            SinklensError: The heads of some layer do not put out weights times values.
        """
        capabilities = reader.capabilities
        if reason := capabilities.gate("ReferenceShares"):
            raise SinklensError(reason)
        # Where attention is delegated, the pattern comes after what it was used for.
        super().__init__(
            "resid_post", capabilities.attention, beside=["residual", "value", "pattern"]
        )
        self._reader, self._threshold = reader, threshold
        self._heads = [capabilities.key_value_head(head) for head in range(capabilities.n_heads)]
        self._outputs = {la: projection(model, la, "W_O") for la in capabilities.attention}

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
