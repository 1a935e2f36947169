"""The activations of one position: the values that position patching writes.

In a causal model position 0 sees only itself, so what it holds in a prompt of length 1 is what it
holds in any prompt with the same first token; `first_token_values` uses that.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.protocol import HookedModel
from ..models import alone
from ..models.capabilities import check, hook_name
from .base import SiteProbe

PartValues = dict[tuple[str, int], Float[Tensor, "prompt *shape"]]


class PositionValues(SiteProbe[Tensor]):
    """Activations at one position, by kind of site and layer."""

    def __init__(
        self, model: HookedModel, sites: Iterable[str], layers: Iterable[int], position: int = 0
    ) -> None:
        """Read kinds of site (`residual`, `key`, `value`, `z`) of some layers that have them."""
        there = {site: check(model).layers_of(site) for site in sites}
        keys = [(site, layer) for site in there for layer in layers if layer in there[site]]
        super().__init__(lambda key: hook_name(*key), keys)
        self._position = position

    def reduce(
        self, activation: Float[Tensor, "batch pos *shape"], key: tuple[str, int], /
    ) -> Float[Tensor, "batch *shape"]:
        """What stands at the position."""
        return activation[:, self._position]

    def compute(self) -> PartValues:
        """By site and layer: the activations of all prompts, `[prompt, ...]`."""
        return {key: self.at(key) for key in self.layers}


@alone
def first_token_values(
    model: HookedModel,
    tokens: Int[Tensor, " token"],
    sites: Iterable[str],
    layers: Iterable[int],
) -> PartValues:
    """What position 0 of a causal model holds after each of these first tokens.

    Runs each token as a prompt of length 1.
    """
    probe = PositionValues(model, sites, list(layers))
    with torch.no_grad():
        for batch in tokens.to(model.cfg.device).split(256):
            model.run_with_hooks(batch[:, None], fwd_hooks=probe.fwd_hooks, return_type=None)
    return probe.compute()
