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
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.protocol import HookedModel
from ..functional.graphs import permute_rows
from ..models.capabilities import hook_name
from .base import Gathered
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


class ReferenceShares:
    """The share of the reference points, by space and layer, for attention and its nulls."""

    def __init__(
        self, model: HookedModel, reader: PatternReader, *, threshold: float = 0.1
    ) -> None:
        """Read stream, values and pattern of every layer of `model`.

        Args:
            model: The model.
            reader: Knows the masks and the random orders.
            threshold: The mean received attention of a reference point.
        """
        self._reader, self._threshold = reader, threshold
        capabilities = reader.capabilities
        self._layers = range(capabilities.n_layers)
        self._heads = [capabilities.key_value_head(head) for head in range(capabilities.n_heads)]
        self._outputs = [model.blocks[layer].attn.W_O.detach() for layer in self._layers]
        self._seen = Gathered()
        self._held: dict[str, Tensor] = {}
        self.fwd_hooks: list[tuple[str, Any]] = []
        for layer in self._layers:
            self.fwd_hooks += [
                (hook_name("residual", layer), partial(self._hold, what="hidden_state")),
                (hook_name("value", layer), partial(self._hold, what="value")),
                (hook_name("pattern", layer), partial(self._hold, what="pattern")),
                # Where attention is delegated, the pattern comes after what it was used for.
                (hook_name("resid_post", layer), partial(self._reduce, layer=layer)),
            ]

    def _hold(self, activation: Tensor, hook: Any, *, what: str) -> None:
        self._held[what] = activation.detach()

    def _reduce(self, activation: Tensor, hook: Any, *, layer: int) -> None:
        """Turn what the block held into shares."""
        pattern = self._reader.checked(self._held["pattern"], layer)
        visible = self._reader.visible(layer).to(pattern.device)
        chosen = reference_points(pattern.mean(1), threshold=self._threshold)
        self._seen.add(("points", layer), chosen.float().mean(-1))
        share = partial(self._shares, chosen=chosen, layer=layer)
        done = sum(map(len, self._seen.parts((ATTENTION, layer))))
        self._seen.add((ATTENTION, layer), share(pattern))
        mean = pattern.mean(1)
        even = self._reader.even(mean, layer).expand_as(mean)
        self._seen.add((UNIFORM, layer), share(even[:, None]))
        draws = []
        for draw in range(self._reader.draws):
            order = self._reader.order(range(done, done + len(pattern)), layer, draw)
            order = order.to(pattern.device)[:, None].expand_as(pattern)
            draws.append(share(permute_rows(pattern, order, visible)))
        if draws:
            self._seen.add((ROW_PERMUTED, layer), torch.stack(draws, 1))
        self._held.clear()

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
        hidden = self._held["hidden_state"].float()
        values = self._held["value"].float()[:, :, self._heads]
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

    def compute(self) -> dict[str, Float[Tensor, "prompt layer *rest"]]:
        """Shares by source, `[prompt, layer, space]`; `points` is the share of keys that are one.

        Values of `row_permuted` have an axis of draws before that of spaces.
        """
        sources = ("points", ATTENTION, UNIFORM, *([ROW_PERMUTED] if self._reader.draws else []))
        return {source: self._seen.stacked(source, self._layers) for source in sources}

    def reset(self) -> None:
        """Forget everything."""
        self._seen.clear()
        self._held.clear()
