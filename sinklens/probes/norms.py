"""Norms at the sink: of the residual stream, and of the values.

`ResidualNorms`: the L2 norm of the stream at position 0 and its mean over positions >= 1, entering
each block and leaving the last. `ValueNorms`: the L2 norm of the value at position 0 and its mean
over positions >= 1, by layer and key-value head; a head whose sink has a small value reads nothing
there, whatever its weight ("value drain", Guo et al. 2024, 2410.13835). Units are the model's own.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from ..core.protocol import HookedModel
from ..functional.precision import wide
from ..models.capabilities import check
from .base import ResumableProbe, stream_hook


class NormValues(NamedTuple):
    """Norms by prompt and site."""

    position0: Float[Tensor, "prompt *site"]
    others: Float[Tensor, "prompt *site"]


class _Norms(ResumableProbe[NormValues]):
    """Norm at position 0 and mean norm of the rest."""

    def reduce(self, activation: Float[Tensor, "batch pos *rest"], layer: Any, /) -> NormValues:
        """The norms of a layer."""
        norms = wide(activation).norm(dim=-1)
        return NormValues(norms[:, 0], norms[:, 1:].mean(1))


class ResidualNorms(_Norms):
    """Norms of the residual stream entering each block and leaving the last, `[prompt, site]`."""

    def __init__(self, model: HookedModel) -> None:
        """Read the residual stream of `model`."""
        super().__init__(partial(stream_hook, model), range(int(model.cfg.n_layers) + 1))


class ValueNorms(_Norms):
    """Norms of the values, `[prompt, layer, key-value head]`."""

    def __init__(self, model: HookedModel) -> None:
        """Read the values of `model`."""
        super().__init__("value", check(model).layers_of("value"))
