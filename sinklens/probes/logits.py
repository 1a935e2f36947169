"""Attention logits of early queries, and the forms of `functional.logit_forms` in them.

`LogitForms` needs all prompts in one forward, or the sums from a run before (`LogitSums`): these
are `[layer, head, pair]`, once for all prompts, as the definition asks for; nothing of that size is
kept by prompt. Keys behind a window are in no pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..functional.logit_forms import DiagonalShift, PairBasis
from ..models.capabilities import hook_name
from .base import LayerProbe


class LogitFormValues(NamedTuple):
    """What `LogitForms` computes.

    Attributes:
        products: The forms c_p of each prompt with the others, a pair.
        by_query: Their component at each query, averaged over its keys and over heads, with the
            Toeplitz part of the last two pair sets.
        offsets: Each prompt's mean logit at every offset, over the last two pair sets; 0 where an
            offset does not occur.
    """

    products: Float[Tensor, "prompt layer head set form"]
    by_query: Float[Tensor, "prompt layer query 2"]
    offsets: Float[Tensor, "prompt layer head offset 2"]


def _logits(
    scores: Float[Tensor, "batch head query key"],
    basis: PairBasis,
    shift: DiagonalShift | None,
    first: int,
) -> Float[Tensor, "batch head pair"]:
    """The logits of the pairs of prompts number `first` and on, in float64.

    They are 0 where a window hides the key.
    """
    logits = scores[..., basis.query, basis.key].double()
    logits = logits.masked_fill(~basis.seen.to(scores.device), 0.0)
    return logits if shift is None else shift.moved(logits, basis, first)


class LogitSums:
    """The sum over prompts of the logits of early queries, by layer."""

    def __init__(self, basis: Mapping[int, PairBasis], shift: DiagonalShift | None = None) -> None:
        """Read the scores of every layer; `basis` says by layer which pairs."""
        self._basis, self._shift = basis, shift
        self._sums: dict[int, Tensor] = {}
        self._count: Counter[int] = Counter()
        self.fwd_hooks: list[tuple[str, Any]] = [
            (hook_name("scores", layer), partial(self._read, layer=layer)) for layer in basis
        ]

    def _read(
        self, scores: Float[Tensor, "batch head query key"], hook: Any, *, layer: int
    ) -> None:
        logits = _logits(scores, self._basis[layer], self._shift, self._count[layer])
        self._sums[layer] = self._sums.get(layer, 0) + logits.sum(0)
        self._count[layer] += len(logits)

    def compute(self) -> dict[int, Float[Tensor, "head pair"]]:
        """By layer."""
        return dict(self._sums)

    def reset(self) -> None:
        """Forget everything."""
        self._sums.clear()
        self._count.clear()


class LogitForms(LayerProbe[LogitFormValues]):
    """The forms of the module docstring, by prompt, layer, head and pair set."""

    def __init__(
        self,
        basis: Mapping[int, PairBasis],
        sums: Mapping[int, Float[Tensor, "head pair"]] | None = None,
        shift: DiagonalShift | None = None,
    ) -> None:
        """Read the scores of every layer, where they can be read (`check(model).edits["scores"]`).

        Args:
            basis: By layer, the pair sets and forms; the last two sets have the curves.
            sums: What `LogitSums` found in the same runs; None if all prompts are in one forward.
            shift: For the null.
        """
        super().__init__("scores", basis)
        self._basis, self._sums, self._shift = basis, sums, shift

    def reduce(
        self, scores: Float[Tensor, "batch head query key"], layer: int, /
    ) -> LogitFormValues:
        """The forms and curves of a layer."""
        basis = self._basis[layer]
        logits = _logits(scores, basis, self._shift, self.count[layer])
        whole = logits.sum(0) if self._sums is None else self._sums[layer]
        by_query, offsets = zip(*(c.read(logits, whole) for c in basis.curves), strict=True)
        return LogitFormValues(
            products=basis.products(logits, whole),
            by_query=torch.stack(by_query, -1),
            offsets=torch.stack(offsets, -1),
        )
