"""Norms at the sink: of the residual stream, and of the values.

`ResidualNorms`: the L2 norm of the stream at position 0 and its mean over positions >= 1, entering
each block and leaving the last. `ValueNorms`: the L2 norm of the value at position 0 and its mean
over positions >= 1, by layer and key-value head; a head whose sink has a small value reads nothing
there, whatever its weight ("value drain", 2410.13835). Units are the model's own.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from ..core.protocol import HookedModel
from ..models.capabilities import hook_name
from .base import Gathered


class NormValues(NamedTuple):
    """Norms by prompt and site."""

    position0: Float[Tensor, "prompt *site"]
    others: Float[Tensor, "prompt *site"]


class _Norms:
    """Norm at position 0 and mean norm of the rest, at a list of hooks."""

    def __init__(self, names: list[str]) -> None:
        self._sites = range(len(names))
        self._seen = Gathered()
        self.fwd_hooks: list[tuple[str, Any]] = [
            (name, partial(self._read, site=site)) for site, name in enumerate(names)
        ]

    def _read(self, activation: Float[Tensor, "batch pos *rest"], hook: Any, *, site: int) -> None:
        norms = activation.float().norm(dim=-1)
        self._seen.add(("position0", site), norms[:, 0])
        self._seen.add(("others", site), norms[:, 1:].mean(1))

    def compute(self) -> NormValues:
        """Norms of all prompts."""
        gathered = [self._seen.stacked(what, self._sites) for what in ("position0", "others")]
        return NormValues(*gathered)

    def fill(self, clean: _Norms, times: int) -> None:
        """Take layers that were not seen from the clean run (`Resumable`)."""
        self._seen.fill(clean._seen, times)

    def reset(self) -> None:
        """Forget everything."""
        self._seen.clear()


class ResidualNorms(_Norms):
    """Norms of the residual stream entering each block and leaving the last, `[prompt, site]`."""

    def __init__(self, model: HookedModel) -> None:
        """Read the residual stream of `model`."""
        layers = int(model.cfg.n_layers)
        names = [hook_name("residual", layer) for layer in range(layers)]
        super().__init__([*names, hook_name("resid_post", layers - 1)])


class ValueNorms(_Norms):
    """Norms of the values, `[prompt, layer, key-value head]`."""

    def __init__(self, model: HookedModel) -> None:
        """Read the values of `model`."""
        super().__init__([hook_name("value", layer) for layer in range(int(model.cfg.n_layers))])
