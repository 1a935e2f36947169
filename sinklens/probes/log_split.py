"""Attention split in the log domain, and what heads read at position 0.

`LogSplit`: the softmax makes log A_ij = s_ij - log Z_i with Z_i the sum of exp s_ij over the keys
that query i sees; a learned sink with logit b adds exp b to it. The largest error of that identity,
over weights above 1e-30 (smaller ones lose digits, then underflow), says whether the scores that a
hook shows are what the softmax gets. b is not read from the weights but from the rows:
exp b / Z_i is what row i lacks to sum to 1, so b = s_ij - log A_ij + log(1 - sum_j A_ij); it is
taken at the query that lacks most, and the error tells whether it holds for all.

`SinkReadouts`: the weight that later queries give to a key k, 0 by default, and what it brings in
beside all that the head writes, mean over i > k of |A_ik W_O v_k| / |W_O z_i|. A large weight on a
small value reads nothing. The ratio is no share: what is read at other keys can cancel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.errors import SinklensError
from ..core.protocol import HookedModel
from ..models.capabilities import check
from ..models.weights import projection
from .base import LayerProbe, SiteProbe

SMALLEST_WEIGHT = 1e-30


class LogSplitValues(NamedTuple):
    """What `LogSplit` computes.

    Attributes:
        error: The largest error of log A = s - log Z, nats.
        sink_logit: The logit b of learned sinks; None where rows sum to 1.
    """

    error: Float[Tensor, "prompt layer"]
    sink_logit: Float[Tensor, "layer head"] | None


class LogSplit(SiteProbe[Tensor]):
    """Whether scores and weights fit together, and the logit of learned sinks."""

    def __init__(self, model: HookedModel) -> None:
        """Read scores and pattern of every layer of `model`."""
        capabilities = check(model)
        super().__init__("pattern", capabilities.layers_of("pattern"), beside=["scores"])
        self._learned, self._windows = capabilities.learned_sinks, capabilities.windows
        self._sink_logits: dict[int, Tensor] = {}

    def reduce(
        self, pattern: Float[Tensor, "batch head query key"], layer: int, /
    ) -> Float[Tensor, " batch"]:
        """The largest error of a layer."""
        size, window = pattern.shape[-1], self._windows[layer]
        seen = torch.ones(size, size, dtype=torch.bool, device=pattern.device).tril()
        seen = seen if window is None else seen.triu(1 - window)
        scores = self.held["scores"].float().masked_fill(~seen, -torch.inf)
        weights = pattern.float()
        log_z = scores.logsumexp(-1, keepdim=True)
        # Below the smallest normal number of their dtype, weights lose digits.
        smallest = max(SMALLEST_WEIGHT, torch.finfo(pattern.dtype).tiny)
        logs = weights.clamp_min(smallest).log()
        if self._learned:
            if layer not in self._sink_logits:
                self._sink_logits[layer] = _sink_logit(scores, logs, weights)
            b = self._sink_logits[layer][:, None, None]
            log_z = torch.logaddexp(log_z, b)
        errors = (logs - scores + log_z).abs().masked_fill(weights <= smallest, 0.0)
        return errors.amax((1, 2, 3))

    def compute(self) -> LogSplitValues:
        """Of all prompts."""
        learned = [self._sink_logits[layer].cpu() for layer in self.layers if self._learned]
        return LogSplitValues(self.stacked(), torch.stack(learned) if learned else None)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._sink_logits.clear()


def _sink_logit(
    scores: Float[Tensor, "batch head query key"],
    logs: Float[Tensor, "batch head query key"],
    weights: Float[Tensor, "batch head query key"],
) -> Float[Tensor, " head"]:
    """The logit of each head's learned sink, from the query whose weights lack most."""
    lacking = 1 - weights.sum(-1)
    largest = weights.argmax(-1, keepdim=True)
    log_z = (scores.gather(-1, largest) - logs.gather(-1, largest)).squeeze(-1)
    found = log_z + lacking.clamp_min(SMALLEST_WEIGHT).log()
    by_head = lacking.transpose(0, 1).flatten(1).argmax(-1, keepdim=True)
    return found.transpose(0, 1).flatten(1).gather(-1, by_head).squeeze(-1)


class SinkReadoutValues(NamedTuple):
    """What `SinkReadouts` computes.

    Attributes:
        weight: Mean weight of the key, over queries after it.
        readout: Mean norm of what the key brings in over the norm of all that the head writes.
    """

    weight: Float[Tensor, "prompt layer head"]
    readout: Float[Tensor, "prompt layer head"]


class SinkReadouts(LayerProbe[SinkReadoutValues]):
    """What heads read at a key, position 0 by default: by weight, and by what it brings in."""

    def __init__(self, model: HookedModel, key: int = 0, after: int = 0) -> None:
        """Read pattern, values and outputs of every layer of `model`.

        Args:
            model: The model.
            key: The key that is read.
            after: The position after which queries count, the key or a later one.

        Raises:
            SinklensError: The heads of some layer do not put out weights times values.
        """
        capabilities = check(model)
        if reason := capabilities.gate("SinkReadouts"):
            raise SinklensError(reason)
        super().__init__("z", capabilities.layers_of("z"), beside=["value", "pattern"])
        self._key, self._first = key, max(key, after) + 1
        self._heads = [capabilities.key_value_head(head) for head in range(capabilities.n_heads)]
        outputs = [projection(model, layer, "W_O").float() for layer in range(len(model.blocks))]
        self._grams = [output @ output.transpose(-1, -2) for output in outputs]

    def hold(self, activation: Float[Tensor, " batch *shape"], site: str, /) -> Tensor:
        """The key's values, or the weights on it."""
        at_key = activation[:, self._key] if site == "value" else activation[..., self._key]
        return at_key.float()

    def reduce(self, z: Float[Tensor, "batch pos head d_head"], layer: int, /) -> SinkReadoutValues:
        """Weight and read-out of a layer's heads."""
        gram, weight = self._grams[layer], self.held["pattern"][..., self._first :]
        value = self.held["value"][:, self._heads]
        brought = torch.einsum("bhd,hde,bhe->bh", value, gram, value).clamp_min(0).sqrt()
        later = z[:, self._first :].float()
        written = torch.einsum("bihd,hde,bihe->bhi", later, gram, later).clamp_min(0).sqrt()
        ratio = weight * brought[..., None] / written.clamp_min(torch.finfo(torch.float32).tiny)
        return SinkReadoutValues(weight.mean(-1), ratio.mean(-1))
