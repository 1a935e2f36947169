"""What heads put out: the values that head ablations write.

`HeadMeans` streams the mean of `hook_z` over prompts, position 0 and the rest apart, since a sink
head's output at position 0 is another thing than its output elsewhere. `HeadOutputs` keeps every
prompt's output, for resampling. `SinkReads` keeps what each query reads from key 0, `A_i0 v_0`.
Shapes are those of query heads, also with grouped keys and values.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.errors import SinklensError
from ..core.protocol import HookedModel
from ..models.capabilities import check, hook_name
from .base import SiteProbe


class HeadMeans:
    """Mean head outputs: at position 0, and over all later positions."""

    def __init__(self, model: HookedModel, layers: Iterable[int]) -> None:
        """Read `hook_z` of some layers of `model`."""
        self._layers = sorted(set(layers))
        self._sums: dict[int, Tensor] = {}
        self._kind = torch.float32
        self._counts = torch.zeros(2, dtype=torch.float64)
        self.fwd_hooks: list[tuple[str, Any]] = [
            (hook_name("z", layer), partial(self._read, layer=layer)) for layer in self._layers
        ]

    def _read(self, z: Float[Tensor, "batch pos head d_head"], hook: Any, *, layer: int) -> None:
        self._kind = torch.promote_types(z.dtype, torch.float32)
        summed = torch.stack([z[:, 0].double().sum(0), z[:, 1:].double().sum((0, 1))]).cpu()
        self._sums[layer] = self._sums[layer] + summed if layer in self._sums else summed
        if layer == self._layers[0]:
            self._counts += torch.tensor([z.shape[0], z.shape[0] * (z.shape[1] - 1)])

    def compute(self) -> dict[int, Float[Tensor, "2 head d_head"]]:
        """By layer: the mean at position 0, then the mean over positions >= 1."""
        counts = self._counts[:, None, None]
        return {layer: (total / counts).to(self._kind) for layer, total in self._sums.items()}

    def reset(self) -> None:
        """Forget everything."""
        self._sums.clear()
        self._counts.zero_()


class HeadOutputs(SiteProbe[Tensor]):
    """Every prompt's head outputs, for some layers."""

    def __init__(self, model: HookedModel, layers: Iterable[int]) -> None:
        """Read `hook_z` of some layers of `model`."""
        super().__init__("z", sorted(set(layers)))

    def reduce(
        self, z: Float[Tensor, "batch pos head d_head"], layer: int, /
    ) -> Float[Tensor, "batch pos head d_head"]:
        """All of it."""
        return z

    def compute(self) -> dict[int, Float[Tensor, "prompt pos head d_head"]]:
        """By layer: the outputs of all prompts."""
        return {layer: self.at(layer) for layer in self.layers}


class _Edge(NamedTuple):
    """The weights on one key, and its value."""

    weight: Float[Tensor, "prompt head query"]
    value: Float[Tensor, "prompt head d_head"]


class SinkReads(SiteProbe[_Edge]):
    """What every query reads from one key of one layer: `A_ip v_p` for queries i > p, else 0."""

    def __init__(self, model: HookedModel, layer: int, position: int = 0) -> None:
        """Read pattern and values of a layer of `model`.

        Raises:
            SinklensError: The heads of that layer do not put out weights times values.
        """
        super().__init__("pattern", [layer], beside=["value"])
        capabilities = check(model)
        if reason := capabilities.gate("SinkReads", [layer]):
            raise SinklensError(reason)
        self._heads = [capabilities.key_value_head(head) for head in range(capabilities.n_heads)]
        self._position = position

    def reduce(self, pattern: Float[Tensor, "batch head query key"], layer: int, /) -> _Edge:
        """Weights and value, whose product is made once for all prompts."""
        value = self.held["value"][:, self._position][:, self._heads]
        return _Edge(pattern[..., self._position], value)

    def compute(self) -> Float[Tensor, "prompt query head d_head"]:
        """The read-outs of all prompts."""
        weight, value = self.at(*self.layers)
        reads = torch.einsum("phq,phd->pqhd", weight, value)
        reads[:, : self._position + 1] = 0
        return reads
