"""What attention does in any Hugging Face model with eager attention, read where it is computed.

Nothing here imports sinklens or TransformerLens. A softmax over scores `[prompt, head, query, key]`
(with one more key for a learned sink) is a layer's attention, and the matrix that its weights are
multiplied with next holds the values. Layers that have attention come in their order. Weights can
be edited behind the softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
        sink: The score of a learned sink `[prompt, head, query, 1]`, empty where there is none.
        values: `[prompt, head, pos, d]`, of every query head.
    """

    scores: Tensor
    weights: Tensor
    sink: Tensor
    values: Tensor

    @property
    def seen(self) -> Tensor:
        """Which keys some head of some prompt gives weight, `[query, key]`."""
        return (self.weights != 0).any(0).any(0)


class _Watch(TorchFunctionMode):
    """Keeps the attention of every layer, and edits its weights."""

    def __init__(self, tokens: Tensor, edit: PatternEdit | None = None) -> None:
        super().__init__()
        self.found: list[Attention] = []
        self._shape, self._edit, self._waiting = tokens.shape, edit, False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        length = self._shape[1]
        if self._waiting and func in PRODUCTS and args[0].shape[-2:] == (length, length):
            heads = self.found[-1].weights.shape[1]
            self.found[-1].values = self._by_head(args[1].detach()).expand(-1, heads, -1, -1)
            self._waiting = False
        made = func(*args, **(kwargs or {}))
        if func not in SOFTMAX or made.ndim < 3 or made.shape[-2] != length:
            return made
        # A learned sink is one key more.
        return self._seen(args[0], made) if made.shape[-1] - length in (0, 1) else made

    def _seen(self, scores: Tensor, made: Tensor) -> Tensor:
        """Take in what a softmax gets and gives, and say what it is to give."""
        length, flat = self._shape[1], made.shape
        scores, sink = self._by_head(scores.detach()).tensor_split([length], -1)
        made = self._by_head(made).clone()
        weights = made[..., :length]
        kept = Attention(scores.clone(), weights.detach().clone(), sink.clone(), torch.zeros(0))
        if self._edit is not None:
            made[..., :length] = self._edit(len(self.found), weights)
        self.found.append(kept)
        self._waiting = True
        return made.view(flat)

    def _by_head(self, joined: Tensor) -> Tensor:
        """`[prompt, head, ...]` of what may have prompts and heads as one axis."""
        return joined if joined.ndim == 4 else joined.unflatten(0, (self._shape[0], -1))


def attention(model: Any, tokens: Tensor) -> list[Attention]:
    """The attention of every layer that has some."""
    with _Watch(tokens) as watch:
        plain.logits(model, tokens)
    return watch.found


@contextmanager
def edited(tokens: Tensor, edit: PatternEdit) -> Iterator[None]:
    """Attention with other weights, on these prompts."""
    with _Watch(tokens, edit) as watch:
        yield
    assert watch.found, "no attention was found to edit"


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
