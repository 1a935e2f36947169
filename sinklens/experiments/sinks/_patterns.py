"""Patterns of all prompts, and what is written in their place.

The pattern of a head can be replaced by its mean over the other prompts, by all weight on key 0, by
uniform attention or by another prompt's pattern. Every row keeps its sum, and query 0 its row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core.labels import Head
from ...functional.graphs import uniform_attention, visible_keys
from ...hooks.intervention import FwdHooks, Intervention
from ...models.capabilities import Capabilities, hook_name
from ...probes.base import SiteProbe
from ...runner.run import Run

ANOTHER = "another_prompt"
ByLayer = Mapping[int, Float[Tensor, "prompt head query key"]]


class Patterns(SiteProbe[Tensor]):
    """Every prompt's attention patterns."""

    def __init__(self, capabilities: Capabilities) -> None:
        """Read the pattern of every layer with attention."""
        super().__init__("pattern", capabilities.attention)

    def reduce(
        self, pattern: Float[Tensor, "batch head query key"], layer: Any, /
    ) -> Float[Tensor, "batch head query key"]:
        """All of it."""
        return pattern

    def compute(self) -> dict[int, Float[Tensor, "prompt head query key"]]:
        """By layer."""
        return {layer: self.at(layer) for layer in self.layers}


def write_rows(
    pattern: Float[Tensor, "batch head query key"],
    hook: Any,
    *,
    heads: list[int],
    values: Float[Tensor, "batch chosen query key"],
) -> Float[Tensor, "batch head query key"]:
    """Write patterns of heads; the row of query 0 stays."""
    edited = pattern.clone()
    edited[:, heads, 1:] = values[:, :, 1:].to(pattern)
    return edited


def overlap(
    one: Float[Tensor, "*batch query key"], other: Float[Tensor, "*batch query key"]
) -> Float[Tensor, "*batch"]:
    """The attention that two patterns have in common, mean over queries i >= 1."""
    common: Tensor = torch.minimum(one, other)[..., 1:, :].sum(-1)
    return common.mean(-1)


def distance(
    one: Float[Tensor, "*batch query key"], other: Float[Tensor, "*batch query key"]
) -> Float[Tensor, "*batch"]:
    """The squared distance of two patterns, over queries i >= 1."""
    return ((one - other) ** 2)[..., 1:, :].sum((-2, -1))


class Written:
    """What is written for the patterns of a run."""

    def __init__(self, run: Run[Any], patterns: ByLayer) -> None:
        """Take the patterns of a clean run.

        Args:
            run: The run, or its twin with random weights.
            patterns: By layer, of all its prompts.
        """
        length, capabilities = run.prompts.length, run.capabilities
        self._patterns = patterns
        self._sums = {layer: every.sum(0) for layer, every in patterns.items()}
        windows = zip(capabilities.attention, capabilities.visible_keys(length), strict=True)
        self._visible = {
            layer: visible_keys(length, causal=capabilities.causal, window=window)
            for layer, window in windows
        }

    def pattern(
        self, kind: str, layer: int, index: Int[Tensor, " batch"], order: Tensor | None = None
    ) -> Float[Tensor, "batch head query key"]:
        """What is written in a layer for some prompts; `order` names for each prompt another."""
        every, visible = self._patterns[layer], self._visible[layer]
        own = every[index]
        if order is not None:
            return every[order[index]]
        if kind == "mean":
            return (self._sums[layer] - own) / (len(every) - 1)
        sums = own.sum(-1, keepdim=True)
        if kind == "uniform":
            return sums * uniform_attention(visible)
        first = torch.zeros_like(own)
        first[..., :1] = sums
        return torch.where(visible[:, :1], first, own)

    def intervention(
        self, kind: str, heads: Sequence[Head], order: Tensor | None = None
    ) -> Intervention:
        """The patterns of heads replaced; `order` by those of other prompts."""
        by_layer = {layer: [h for at, h in heads if at == layer] for layer, _ in heads}

        def bind(index: Int[Tensor, " batch"]) -> FwdHooks:
            hooks: FwdHooks = []
            for layer, chosen in sorted(by_layer.items()):
                values = self.pattern(kind, layer, index, order)[:, chosen]
                write = partial(write_rows, heads=chosen, values=values)
                hooks.append((hook_name("pattern", layer), write))
            return hooks

        everyone = torch.arange(len(self._patterns[min(by_layer)]))
        same = all(
            torch.equal(self.pattern(kind, la, everyone, order)[:, hs], every[:, hs])
            for la, hs in by_layer.items()
            for every in (self._patterns[la],)
        )
        name = kind if order is None else f"pattern of {ANOTHER}"
        return Intervention(
            name, "pattern", min(by_layer), bind(everyone[:1]), identity=same, rebind=bind
        )
