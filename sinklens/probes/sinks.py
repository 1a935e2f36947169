"""How much attention each key position gets: sink scores and sink mass.

For key k of a head, over T positions (2410.10781, section 2):

    score_k = mean over queries i >= k of A_ik

Sink mass leaves query 0 out, which can only attend to itself: mean over queries i >= 1 of A_i0.
Both are shares of attention in [0, 1]. Uniform causal attention gives score_0 = H_T / T, 0.074 at
T = 64, so a score means nothing without its null. A score of 0 at key 0 can also mean that the mass
went to other positions (repeated tokens), not that there is no sink. Two such places are read as
well: the last key, which a bidirectional model may use (mean over queries i < T - 1 of A_i,T-1),
and a learned sink, which takes what the row sums lack (mean over queries i >= 1 of 1 - sum_k A_ik).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.protocol import HookedModel
from ..models.capabilities import check, hook_name
from .base import Gathered


class SinkScoreValues(NamedTuple):
    """What `SinkScores` computes."""

    scores: Float[Tensor, "prompt layer head key"]
    mass: Float[Tensor, "prompt layer head"]
    last: Float[Tensor, "prompt layer head"]
    unplaced: Float[Tensor, "prompt layer head"]


class SinkScores:
    """Sink scores by prompt, layer, query head and key position, and sink mass."""

    def __init__(self, model: HookedModel) -> None:
        """Read the pattern of every layer of `model`."""
        self._layers = range(int(model.cfg.n_layers))
        self._causal = check(model).causal
        self._seen = Gathered()
        self._sums: list[Tensor] = []
        self.fwd_hooks: list[tuple[str, Any]] = [
            (hook_name("pattern", layer), partial(self._read, layer=layer))
            for layer in self._layers
        ]

    def _read(
        self, pattern: Float[Tensor, "batch head query key"], hook: Any, *, layer: int
    ) -> None:
        """Read one layer's pattern."""
        self.read_queries(pattern, layer=layer, first=0)

    def read_queries(
        self, rows: Float[Tensor, "batch head some key"], *, layer: int, first: int
    ) -> None:
        """Add up some rows of a pattern (`Sliceable`); with the last of them a batch is read."""
        rows = rows.float()
        length = rows.shape[-1]
        end = first + rows.shape[-2]
        later = rows[:, :, max(1 - first, 0) :]
        earlier = rows[:, :, : length - 1 - first]
        # A causal pattern is 0 above the diagonal, so that the sum over all queries is over i >= k.
        visible = rows if self._causal else rows.tril(first)
        sums = [
            visible.sum(-2),
            later[..., 0].sum(-1),
            earlier[..., -1].sum(-1),
            later.shape[-2] - later.sum((-2, -1)),
        ]
        if first:
            sums = [before + more for before, more in zip(self._sums, sums, strict=True)]
        self._sums = sums
        if end == length:
            queries = torch.arange(length, 0, -1, device=rows.device)
            counts: list[Any] = [queries, *[length - 1] * 3]
            for what, total, count in zip(SinkScoreValues._fields, sums, counts, strict=True):
                self._seen.add((what, layer), total / count)

    def compute(self) -> SinkScoreValues:
        """The scores of all prompts."""
        gathered = [self._seen.stacked(what, self._layers) for what in SinkScoreValues._fields]
        return SinkScoreValues(*gathered)

    def fill(self, clean: SinkScores, times: int) -> None:
        """Take layers that were not seen from the clean run (`Resumable`)."""
        self._seen.fill(clean._seen, times)

    def reset(self) -> None:
        """Forget everything."""
        self._seen.clear()


class KeyMass:
    """The mean weight that later queries give to some keys, `[prompt, layer, head]` for each.

    For key 0 this is the sink mass: a query's weight on itself does not count.
    """

    def __init__(self, model: HookedModel, keys: Sequence[int]) -> None:
        """Read the pattern of every layer of `model`."""
        self._layers = range(int(model.cfg.n_layers))
        self._keys = list(dict.fromkeys(keys))
        self._seen = Gathered()
        self._sums: dict[int, Tensor] = {}
        self.fwd_hooks: list[tuple[str, Any]] = [
            (hook_name("pattern", layer), partial(self._read, layer=layer))
            for layer in self._layers
        ]

    def _read(
        self, pattern: Float[Tensor, "batch head query key"], hook: Any, *, layer: int
    ) -> None:
        self.read_queries(pattern, layer=layer, first=0)

    def read_queries(
        self, rows: Float[Tensor, "batch head some key"], *, layer: int, first: int
    ) -> None:
        """Add up some rows of a pattern (`Sliceable`); with the last of them a batch is read."""
        length, end = rows.shape[-1], first + rows.shape[-2]
        for key in self._keys:
            total = rows[:, :, max(key + 1 - first, 0) :, key].float().sum(-1)
            self._sums[key] = total if not first else self._sums[key] + total
            if end == length:
                self._seen.add((key, layer), self._sums[key] / (length - 1 - key))

    def compute(self) -> dict[int, Float[Tensor, "prompt layer head"]]:
        """Of all prompts, by key."""
        return {key: self._seen.stacked(key, self._layers) for key in self._keys}

    def reset(self) -> None:
        """Forget everything."""
        self._seen.clear()


def sink_scores(
    model: HookedModel, tokens: Int[Tensor, "prompt pos"]
) -> Float[Tensor, "layer head"]:
    """The sink score of key 0 by layer and query head, averaged over prompts.

    Args:
        model: The model.
        tokens: Prompts of one length, BOS included if it is meant to be there.

    Returns:
        The mean over queries i >= 0 of A_i0, between 0 and 1. Uniform causal attention over T
        positions gives (1 + 1/2 + ... + 1/T) / T.
    """
    probe = SinkScores(model)
    with torch.no_grad():
        rows = tokens if tokens.ndim == 2 else tokens[None]
        model.run_with_hooks(rows, fwd_hooks=probe.fwd_hooks, return_type=None)
    return probe.compute().scores[..., 0].mean(0)
