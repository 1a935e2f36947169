"""Thirteen scores of inactive heads, and the orders in which they would remove them.

By prompt and query head, with A the attention, v the values and z what the head puts out, before
W_O (Sandoval-Segura et al. 2025, 2504.03889, of which version 2 has thirteen and version 4 twelve):

    first_token_weight   mean over queries of A_i0; a larger one is less active, of all others a
                         smaller one
    entropy              mean over queries of - sum_k A_ik log A_ik, in nats
    first_value_norm     |v_0|
    value_norm           mean over positions of |v_i|
    last_output_norm     |z| at the last position
    output_norm          mean over positions of |z_i|

`...:layer` divides a score by its mean over the heads of the layer, `last_output_norm:head` by the
head's own `output_norm`; where that is 0 the score is 0. Query heads that share a key-value head
share its values.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.labels import Head
from ...core.protocol import HookedModel
from ...models.capabilities import Capabilities
from ...models.weights import projection
from ...probes.base import LayerProbe

PARTS = (
    "first_token_weight",
    "entropy",
    "first_value_norm",
    "value_norm",
    "last_output_norm",
    "output_norm",
)
BY_LAYER, BY_HEAD = ":layer", "last_output_norm:head"
SCORES = (*(name for part in PARTS for name in (part, f"{part}{BY_LAYER}")), BY_HEAD)
HIGHER_IS_DORMANT = ("first_token_weight", f"first_token_weight{BY_LAYER}")
Parts = dict[str, Tensor]
Scores = Mapping[str, Float[Tensor, "prompt layer head"]]


class PatternParts(LayerProbe[Parts]):
    """Weight of the first token and entropy of attention rows, mean over queries."""

    def __init__(self, capabilities: Capabilities) -> None:
        """Read the pattern of every layer with attention."""
        super().__init__("pattern", capabilities.attention)

    def reduce(self, pattern: Float[Tensor, "batch head query key"], layer: int, /) -> Parts:
        """`[batch, head]` each."""
        pattern = pattern.float()
        entropy = torch.special.entr(pattern).sum(-1).mean(-1)
        return {"first_token_weight": pattern[..., 0].mean(-1), "entropy": entropy}


class ValueParts(LayerProbe[Parts]):
    """Norms of values, and at one position what is behind W_O over the mean of later ones."""

    def __init__(self, model: HookedModel, capabilities: Capabilities) -> None:
        """Read the values of every layer with attention."""
        super().__init__("value", capabilities.attention)
        self._heads = [capabilities.key_value_head(head) for head in range(capabilities.n_heads)]
        self._outputs = {la: projection(model, la, "W_O") for la in capabilities.attention}

    def reduce(self, value: Float[Tensor, "batch pos key_value d_head"], layer: int, /) -> Parts:
        """Norms `[batch, head]`; `behind_output` `[batch, head, pos]`."""
        value = value.float()[:, :, self._heads]
        norms = value.norm(dim=-1)
        written = torch.einsum("bphd,hdm->bhpm", value, self._outputs[layer].to(value))
        return {
            "first_value_norm": norms[:, 0],
            "value_norm": norms.mean(1),
            "behind_output": written.norm(dim=-1),
        }


class OutputParts(LayerProbe[Parts]):
    """Norms of what heads put out, before W_O."""

    def __init__(self, capabilities: Capabilities) -> None:
        """Read the output of the heads of every layer with attention."""
        super().__init__("z", capabilities.attention)

    def reduce(self, z: Float[Tensor, "batch pos head d_head"], layer: int, /) -> Parts:
        """`[batch, head]` each."""
        norms = z.float().norm(dim=-1)
        return {"last_output_norm": norms[:, -1], "output_norm": norms.mean(1)}


def with_relative(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All thirteen scores of the six parts."""
    scores = {}
    for name in PARTS:
        values = parts[name].double()
        scores[name] = values
        scores[f"{name}{BY_LAYER}"] = _over(values, values.mean(-1, keepdim=True))
    scores[BY_HEAD] = _over(scores["last_output_norm"], scores["output_norm"])
    return scores


def _over(values: Tensor, whole: Tensor) -> Tensor:
    """A quotient; 0 where both are."""
    return values / whole.clamp_min(torch.finfo(values.dtype).tiny)


def least_active(score: str, values: Mapping[Head, float]) -> list[Head]:
    """All heads, the least active by a score first; equal ones in the order of the layers."""
    sign = -1 if score in HIGHER_IS_DORMANT else 1
    return sorted(values, key=lambda head: sign * values[head])


def overlap(
    one: Float[Tensor, "prompt layer head"], other: Float[Tensor, "prompt layer head"], count: int
) -> Float[Tensor, " prompt"]:
    """Of the `count` heads that are least active by first-token weight, those by a norm as well."""
    first = (-one).flatten(1).argsort(stable=True, dim=1)[:, :count]
    second = other.flatten(1).argsort(stable=True, dim=1)[:, :count]
    shared: Tensor = (first[:, :, None] == second[:, None]).any(-1)
    return shared.double().mean(1)
