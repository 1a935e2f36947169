"""What attention does in any Hugging Face model with eager attention, read where it is computed.

Nothing here imports sinklens or TransformerLens. A softmax over scores `[prompt, head, query, key]`
(with one more key for a learned sink) is a layer's attention, and the matrix that its weights are
multiplied with next holds the values. Layers that have attention come in their order. Weights can
be edited behind the softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.reference import plain_families as plain

PatternEdit = Callable[[int, Tensor], Tensor]
"""Of the number of a layer among those with attention and its weights, other weights."""
SOFTMAX = (nn.functional.softmax, torch.softmax, Tensor.softmax)
PRODUCTS = (torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__)


@dataclass
class Attention:
    """The attention of a layer.

    Attributes:
        scores: What its softmax gets, `[prompt, head, query, key]`.
        weights: What it gives.
        values: `[prompt, head, pos, d]`, of every query head.
    """

    scores: Tensor
    weights: Tensor
    values: Tensor

    @property
    def seen(self) -> Tensor:
        """Which keys some head of some prompt gives weight, `[query, key]`."""
        return (self.weights != 0).any(0).any(0)


class _Watch(TorchFunctionMode):
    """Keeps the attention of every layer, and edits its weights."""

    def __init__(self, length: int, edit: PatternEdit | None = None) -> None:
        super().__init__()
        self.found: list[Attention] = []
        self._length, self._edit, self._waiting = length, edit, False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._waiting and func in PRODUCTS and args[0].shape[-2:] == (self._length,) * 2:
            self._keep_values(args[1].detach())
        made = func(*args, **(kwargs or {}))
        if func in SOFTMAX and self._is_attention(made):
            scores, weights = (one[..., : self._length] for one in (args[0], made))
            if self._edit is not None:
                made = made.clone()
                made[..., : self._length] = self._edit(len(self.found), weights)
            clean = [one.detach().clone() for one in (scores, weights)]
            self.found.append(Attention(*clean, torch.zeros(0)))
            self._waiting = True
        return made

    def _is_attention(self, made: Tensor) -> bool:
        """Whether a softmax is over keys; a learned sink is one more."""
        wide = made.shape[-1] - self._length in (0, 1)
        return made.ndim == 4 and made.shape[2] == self._length and wide

    def _keep_values(self, values: Tensor) -> None:
        """Take in the values that belong to the last weights."""
        batch, heads = self.found[-1].weights.shape[:2]
        if values.ndim == 3:
            values = values.unflatten(0, (batch, -1))
        self.found[-1].values = values.expand(batch, heads, -1, -1).clone()
        self._waiting = False


def attention(model: Any, tokens: Tensor) -> list[Attention]:
    """The attention of every layer that has some."""
    with _Watch(tokens.shape[1]) as watch:
        plain.logits(model, tokens)
    return watch.found


def edited(length: int, edit: PatternEdit) -> _Watch:
    """In a `with` block, attention with other weights."""
    return _Watch(length, edit)


def without_key0(heads: Mapping[int, Sequence[int]], *, normalised: bool) -> PatternEdit:
    """The weight on key 0 taken away from later queries of some heads, by layer."""

    def edit(layer: int, weights: Tensor) -> Tensor:
        weights = weights.clone()
        for head in heads.get(layer, ()):
            rows = weights[:, head, 1:]
            kept = rows.clone()
            kept[..., 0] = 0
            left = kept.sum(-1, keepdim=True)
            scaled = torch.where(left > 0, kept * rows.sum(-1, keepdim=True) / left, kept)
            weights[:, head, 1:] = scaled if normalised else kept
        return weights

    return edit


def written(model: Any, layer: int, z: Tensor) -> Tensor:
    """What each head's vectors `[prompt, head, pos, d]` become behind the projection.

    One head at a time goes through the projection itself, whose bias is taken off.
    """
    projection = plain.output_projection(model, layer)
    parts = []
    with torch.no_grad():
        for head in range(z.shape[1]):
            alone = torch.zeros_like(z)
            alone[:, head] = z[:, head]
            joined = alone.transpose(1, 2).flatten(2)
            parts.append(projection(joined) - projection(torch.zeros_like(joined)))
    return torch.stack(parts, 1)
