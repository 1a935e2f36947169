"""Whether an intervention has tokens go to other experts than in the clean run.

A router decides by the stream that enters its block, so that an edit far below can send a token to
other experts, and what the model then computes differs in kind. Read where TransformerLens shows
which experts were chosen (`mlp.hook_expert_indices`). A token counts where its set of experts
differs in any layer; positions from 1 on count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.protocol import HookedModel
from .base import SiteProbe

CHOICES = "mlp.hook_expert_indices"


class RoutedAnewValues(NamedTuple):
    """What `RoutedAnew` computes."""

    share: Float[Tensor, " prompt"]


def layers_with_experts(model: HookedModel) -> Sequence[int]:
    """The layers whose choice of experts TransformerLens shows."""
    known = model.hook_dict
    return [la for la in range(int(model.cfg.n_layers)) if f"blocks.{la}.{CHOICES}" in known]


class RoutedAnew(SiteProbe[Tensor]):
    """The share of tokens with other experts than in a clean run, which `fill` gives."""

    def __init__(self, model: HookedModel) -> None:
        """Read the choices of every layer of `model` that shows them."""
        super().__init__(CHOICES, layers_with_experts(model), beside=["mlp.hook_in"])
        self._clean: Tensor | None = None

    def reduce(
        self, chosen: Int[Tensor, "token expert"], layer: int, /
    ) -> Int[Tensor, "batch pos expert"]:
        """The experts of each token in the order of their numbers."""
        return chosen.sort(-1).values.view(*self.held["mlp.hook_in"].shape[:2], -1)

    def fill(self, clean: RoutedAnew, times: int) -> None:
        """Take over a clean run of the prompts, and the layers that were not run again."""
        for layer in clean._seen.keys() - self._seen.keys():
            self._seen[layer] = [torch.cat([clean.at(layer)] * times)]
        self._clean = torch.cat([clean.stacked()] * times)

    def compute(self) -> RoutedAnewValues:
        """Of all prompts; 0 in a clean run itself."""
        chosen = self.stacked()
        other = chosen != (chosen if self._clean is None else self._clean)
        return RoutedAnewValues(other.any(-1).any(1)[:, 1:].double().mean(1).float())
