"""How far a query's logit for the sink lies above its logits for other keys.

    gap_i = log A_i0 - mean over 1 <= j <= i of log A_ij = s_i0 - mean of s_ij,

since the softmax's denominator is the same for all keys of a query; the mean over queries i >= 1 is
one number a prompt, layer and head, in nats. Guo et al. 2024 (2410.13835) call it the sink logit.
Keys that a window hides are left out, and so are queries that do not see the key. In models that
see both ways all keys j >= 1 count. For a control the same is read of a later key p, over queries i
> p and the keys that are neither 0 nor p, and of key 0 over the same.

Scores s are read where the softmax gets them from `hook_attn_scores`: an edge dropped from the
pattern then leaves its own layer's gap as it is, and what moves are the gaps of later layers. Where
attention is left to Hugging Face the pattern is read; weights below 1e-38 are taken as that, so
that no gap is infinite.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.protocol import HookedModel
from ..functional.precision import wide
from ..models.capabilities import check
from .base import ResumableProbe


class LogitGapValues(NamedTuple):
    """What `LogitGaps` computes."""

    gap: Float[Tensor, "prompt layer head"]


class LogitGaps(ResumableProbe[LogitGapValues]):
    """The gap between the sink's logit and others, by prompt, layer and head."""

    def __init__(self, model: HookedModel, key: int = 0, place: int = 0) -> None:
        """Read the scores of every layer of `model`, or its pattern.

        Args:
            model: The model.
            key: The key whose gap is read.
            place: Queries count after it, and it is none of the other keys, nor is key 0.
        """
        self._key, self._place = key, place
        capabilities = check(model)
        site = "scores" if capabilities.edits["scores"] else "pattern"
        super().__init__(site, capabilities.layers_of(site))
        self._of_pattern = site == "pattern"
        self._capabilities = capabilities

    def reduce(
        self, activation: Float[Tensor, "batch head query key"], layer: int, /
    ) -> LogitGapValues:
        """The mean gap over the queries that count.

        Raises:
            SinklensError: It is not known which keys a query sees.
        """
        length = activation.shape[-1]
        logits = wide(activation)
        if self._of_pattern:
            logits = logits.clamp_min(torch.finfo(torch.float32).tiny).log()
        seen = torch.ones(length, length, device=activation.device)
        seen = seen.tril() if self._capabilities.causal else seen
        windows = self._capabilities.visible_keys(length)
        window = windows[self._capabilities.attention.index(layer)]
        seen = seen if window is None else seen.triu(1 - window)
        queries = (seen[:, self._key] * seen[:, 0]).bool()
        queries[: self._place + 1] = False
        seen[:, [0, self._place]] = 0
        queries &= seen.any(-1)
        # Scores of hidden keys can be minus infinity, which times 0 is no number.
        others = logits.masked_fill(seen == 0, 0).sum(-1) / seen.sum(-1).clamp_min(1)
        return LogitGapValues((logits[..., self._key] - others)[..., queries].mean(-1))
