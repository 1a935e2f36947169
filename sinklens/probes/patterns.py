"""Attention patterns reduced while the model runs, beside uniform and row-permuted ones.

Each layer's pattern is reduced by functions of the reader's choice as soon as it is there and then
forgotten. Three sources are reduced alike:

    attention     the pattern
    uniform       the same weight on every key that the layer lets a query see, together as much as
                  the query gives to keys (less than 1 where a learned sink takes a part)
    row_permuted  each row's weights in random order among the keys that its query sees, the same
                  order for all heads; every draw, layer and prompt has its own, which follows from
                  the prompt's tokens and not from its place

`MeanPatterns` reduces the head-averaged pattern. `HeadPatterns` keeps those of a few heads, to look
at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.errors import SinklensError
from ..core.labels import Head
from ..core.protocol import HookedModel
from ..core.seeds import content_seed
from ..functional.graphs import permute_rows, uniform_attention, visible_keys
from ..models.capabilities import Capabilities, hook_name
from .base import LayerProbe, SiteProbe

Reduction = Callable[..., dict[str, Tensor]]
"""`fn(pattern[batch, query, key], visible[query, key], layer) -> {name: [batch, ...]}`."""
ATTENTION, UNIFORM, ROW_PERMUTED = "attention", "uniform", "row_permuted"
ROW_SUM_ROOM = 0.02  # half precision


class PatternReader:
    """What a probe of patterns needs to know: which keys are visible, and the random orders.

    Attributes:
        capabilities: Of the model.
        length: Positions in each prompt.
    """

    def __init__(
        self,
        model: HookedModel,
        capabilities: Capabilities,
        tokens: Int[Tensor, "prompt pos"],
        *,
        draws: int = 0,
        seed: int = 0,
    ) -> None:
        """Refuse a model whose patterns cannot be read.

        Args:
            model: The model.
            capabilities: What `check` says of it, or of one with the same masks.
            tokens: The prompts, in the order in which they will run.
            draws: Random orders of each row.
            seed: Decides them, together with the tokens.

        Raises:
            SinklensError: TransformerLens gives no pattern for some layer.
        """
        self.capabilities, self.length, self.draws = capabilities, tokens.shape[1], draws
        capabilities.visible_keys(self.length)  # refuses masks of another form
        self._seeds = [content_seed(row, seed) for row in tokens.cpu()] if draws else []
        names = [hook_name("pattern", layer) for layer in capabilities.layers_of("pattern")]
        capabilities.require_readable(names, "PatternReader")

    def visible(self, layer: int) -> Bool[Tensor, "query key"]:
        """Which keys each query of a layer sees."""
        return _visible(self.length, self.capabilities.causal, self.capabilities.windows[layer])

    def checked(self, pattern: Tensor, layer: int) -> Float[Tensor, "batch head query key"]:
        """A pattern in float32, if it is one.

        Raises:
            SinklensError: Its rows are no shares of attention over the keys that are visible.
        """
        pattern = pattern.detach().float()
        if not bool(torch.isfinite(pattern).all()):
            raise SinklensError(
                f"layer {layer} of {self.capabilities.architecture} gives NaN or infinite "
                "attention; its weights or its dtype cannot carry this"
            )
        hidden = pattern.masked_fill(self.visible(layer).to(pattern.device), 0)
        sums = pattern.sum(-1)
        if bool((pattern < 0).any() | (sums > 1 + ROW_SUM_ROOM).any() | (hidden != 0).any()):
            raise SinklensError(
                f"what TransformerLens gives as the pattern of layer {layer} of "
                f"{self.capabilities.architecture} is not attention: its rows are no shares over "
                "the keys that the mask leaves; check the model with sinklens.check"
            )
        return pattern

    def even(
        self, mean: Float[Tensor, "batch query key"], layer: int
    ) -> Float[Tensor, "alike query key"]:
        """Uniform attention, one for all prompts where rows sum to 1, else one for each."""
        even = uniform_attention(self.visible(layer).to(mean.device))[None]
        return even * mean.sum(-1, keepdim=True) if self.capabilities.learned_sinks else even

    def orders(
        self, first: int, pattern: Float[Tensor, "batch *head query key"], layer: int
    ) -> Iterator[Float[Tensor, "batch query key"]]:
        """For each draw, random numbers that decide the order within rows.

        Args:
            first: The first prompt of the batch.
            pattern: Its pattern.
            layer: Whose pattern it is.
        """
        size = (self.length, self.length)
        seeds = self._seeds[first : first + len(pattern)]
        for draw in range(self.draws):
            generators = [np.random.default_rng([seed, layer, draw]) for seed in seeds]
            numbers = np.stack([one.random(size, np.float32) for one in generators])
            yield torch.from_numpy(numbers).to(pattern.device)


class MeanPatterns(LayerProbe[dict[tuple[str, str], Tensor]]):
    """Reductions of the head-averaged pattern of every layer, beside its nulls.

    `compute` gives them by source and name, `[prompt, layer, ...]`, over the layers where a
    reduction gave that name. Values of `row_permuted` have an axis of draws behind that of layers.
    """

    def __init__(
        self,
        model: HookedModel,
        reader: PatternReader,
        reductions: Sequence[Reduction],
        *,
        uniform: bool = True,
    ) -> None:
        """Reduce the pattern of every layer of `model`.

        Args:
            model: The model.
            reader: Knows the masks and the random orders.
            reductions: What to make of each pattern.
            uniform: Whether to reduce uniform attention too.
        """
        super().__init__("pattern", reader.capabilities.attention)
        self._reader, self._reductions, self._uniform = reader, list(reductions), uniform

    def reduce(
        self, pattern: Float[Tensor, "batch head query key"], layer: int, /
    ) -> dict[tuple[str, str], Tensor]:
        """By source and name."""
        visible = self._reader.visible(layer).to(pattern.device)
        mean = self._reader.checked(pattern, layer).mean(1)
        sources = {ATTENTION: self._reduced(mean, visible, layer)}
        if self._uniform:
            reduced = self._reduced(self._reader.even(mean, layer), visible, layer)
            sources[UNIFORM] = {k: v.expand(len(mean), *v.shape[1:]) for k, v in reduced.items()}
        draws = []
        for order in self._reader.orders(self.count[layer], mean, layer):
            draws.append(self._reduced(permute_rows(mean, order, visible), visible, layer))
        if draws:
            sources[ROW_PERMUTED] = {k: torch.stack([d[k] for d in draws], 1) for k in draws[0]}
        return {(source, k): v for source, named in sources.items() for k, v in named.items()}

    def _reduced(self, pattern: Tensor, visible: Tensor, layer: int) -> dict[str, Tensor]:
        reduced: dict[str, Tensor] = {}
        for reduction in self._reductions:
            reduced |= reduction(pattern, visible, layer)
        return reduced


class HeadPatterns(SiteProbe[Tensor]):
    """The patterns of a few heads."""

    def __init__(self, heads: Sequence[Head]) -> None:
        """Read the layers of some query heads."""
        super().__init__("pattern", sorted({layer for layer, _ in heads}))
        self._heads = list(heads)

    def reduce(
        self, pattern: Float[Tensor, "batch head query key"], layer: Any, /
    ) -> Float[Tensor, "batch chosen query key"]:
        """The heads of this layer, in the order of `compute`."""
        return pattern[:, [head for at, head in self._heads if at == layer]]

    def compute(self) -> Float[Tensor, "prompt head query key"]:
        """The patterns in the order of the heads."""
        places: Counter[int] = Counter()
        patterns = []
        for layer, _ in self._heads:
            patterns.append(self.at(layer)[:, places[layer]])
            places[layer] += 1
        return torch.stack(patterns, 1)


@cache
def _visible(length: int, causal: bool, window: int | None) -> Bool[Tensor, "query key"]:
    return visible_keys(length, causal=causal, window=window)
