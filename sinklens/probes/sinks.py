"""How much attention each key position gets: sink scores and sink mass.

For key k of a head, over T positions (Gu et al. 2025, 2410.10781, section 2):

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
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.protocol import HookedModel
from ..functional.precision import wide
from ..models import alone, require_eval_mode
from ..models.capabilities import check
from ..models.prompts.token_ids import token_tensor
from .base import ResumableProbe, SliceableProbe


class SinkScoreValues(NamedTuple):
    """What `SinkScores` computes."""

    scores: Float[Tensor, "prompt layer head key"]
    mass: Float[Tensor, "prompt layer head"]
    last: Float[Tensor, "prompt layer head"]
    unplaced: Float[Tensor, "prompt layer head"]


class SinkScores(SliceableProbe[SinkScoreValues], ResumableProbe[SinkScoreValues]):
    """Sink scores by prompt, layer, query head and key position, and sink mass."""

    def __init__(self, model: HookedModel) -> None:
        """Read the pattern of every layer of `model`."""
        super().__init__(model)
        self._causal = check(model).causal

    def sums(self, rows: Float[Tensor, "batch head some key"], first: int, /) -> SinkScoreValues:
        """The sums over queries of each score."""
        rows = wide(rows)
        later = rows[:, :, max(1 - first, 0) :]
        earlier = rows[:, :, : rows.shape[-1] - 1 - first]
        # A causal pattern is 0 above the diagonal, so that the sum over all queries is over i >= k.
        visible = rows if self._causal else rows.tril(first)
        return SinkScoreValues(
            scores=visible.sum(-2),
            mass=later[..., 0].sum(-1),
            last=earlier[..., -1].sum(-1),
            unplaced=later.shape[-2] - later.sum((-2, -1)),
        )

    def means(self, sums: SinkScoreValues, length: int, /) -> SinkScoreValues:
        """Key k is seen by T - k queries; the others count all but one query."""
        queries = torch.arange(length, 0, -1, device=sums.scores.device)
        return SinkScoreValues(sums.scores / queries, *(total / (length - 1) for total in sums[1:]))


class SinkWeightValues(NamedTuple):
    """What `SinkWeights` computes."""

    scores: Float[Tensor, "prompt layer head 1"]
    mass: Float[Tensor, "prompt layer head"]


class SinkWeights(ResumableProbe[SinkWeightValues]):
    """The sink score of key 0 and sink mass, for which the weights on key 0 suffice."""

    def __init__(self, model: HookedModel) -> None:
        """Read the pattern of every layer of `model` that has attention."""
        super().__init__("pattern", check(model).layers_of("pattern"))

    def reduce(
        self, pattern: Float[Tensor, "batch head query key"], layer: int, /
    ) -> SinkWeightValues:
        """The means over queries."""
        return self._means(pattern[..., 0])

    def read_key0(self, weights: Float[Tensor, "batch head query"], *, layer: int) -> None:
        """Read a layer without its pattern (`ReadsKey0`)."""
        self._gather(layer, self._means(weights), len(weights))

    @staticmethod
    def _means(weights: Float[Tensor, "batch head query"]) -> SinkWeightValues:
        weights = wide(weights)
        return SinkWeightValues(weights.mean(-1, keepdim=True), weights[..., 1:].mean(-1))


class KeyMass(SliceableProbe[dict[int, Tensor]]):
    """The mean weight that later queries give to some keys, `[prompt, layer, head]` for each.

    For key 0 this is the sink mass: a query's weight on itself does not count.
    """

    def __init__(self, model: HookedModel, keys: Sequence[int]) -> None:
        """Read the pattern of every layer of `model`."""
        super().__init__(model)
        self._keys = list(dict.fromkeys(keys))

    def sums(self, rows: Float[Tensor, "batch head some key"], first: int, /) -> dict[int, Tensor]:
        """By key, the sum over later queries."""
        return {key: wide(rows[:, :, max(key + 1 - first, 0) :, key]).sum(-1) for key in self._keys}

    def means(self, sums: dict[int, Tensor], length: int, /) -> dict[int, Tensor]:
        """By key, the mean over later queries."""
        return {key: total / (length - 1 - key) for key, total in sums.items()}


@alone
def sink_scores(model: HookedModel, tokens: Any) -> Float[Tensor, "layer head"]:
    """The sink score of key 0 by layer and query head, averaged over prompts.

    Args:
        model: The model.
        tokens: Prompts of one length, BOS included if it is meant to be there: a tensor, or lists
            of token ids.

    Returns:
        The mean over queries i >= 0 of A_i0, between 0 and 1. Uniform causal attention over T
        positions gives (1 + 1/2 + ... + 1/T) / T.
    """
    require_eval_mode(model)
    probe, rows = SinkScores(model), token_tensor(model, tokens)
    check(model).require_readable((name for name, _ in probe.fwd_hooks), "sink_scores")
    with torch.no_grad():
        model.run_with_hooks(rows, fwd_hooks=probe.fwd_hooks, return_type=None)
    return probe.compute().scores[..., 0].mean(0)
