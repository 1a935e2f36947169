"""Massive activations: the largest entry of the residual stream, beside the median one.

For each prompt, entering each block and leaving the last: the largest |x| over positions and
channels, where it is, and the median |x| over the same entries (2402.17762 calls an activation
massive above 100 and 1,000 times this median; a scale-free reading takes the ratio alone). Units
are the model's own; ratios have none. A large ratio says that an entry stands out, not that
anything depends on it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from ..core.protocol import HookedModel
from ..models.capabilities import hook_name
from .base import Gathered


class PeakValues(NamedTuple):
    """The largest entries by prompt and site."""

    largest: Float[Tensor, "prompt site"]
    median: Float[Tensor, "prompt site"]
    position: Float[Tensor, "prompt site"]
    channel: Float[Tensor, "prompt site"]

    @property
    def ratio(self) -> Float[Tensor, "prompt site"]:
        """The largest entry over the median one."""
        return self.largest / self.median


class ResidualPeaks:
    """The largest entry of the stream entering each block and leaving the last."""

    def __init__(self, model: HookedModel, *, first: int = 0) -> None:
        """Read the residual stream of `model`, from what enters block `first` on."""
        layers = int(model.cfg.n_layers)
        names = [hook_name("residual", layer) for layer in range(first, layers)]
        names.append(hook_name("resid_post", layers - 1))
        self._sites = range(len(names))
        self._seen = Gathered()
        self.fwd_hooks: list[tuple[str, Any]] = [
            (name, partial(self._read, site=site)) for site, name in enumerate(names)
        ]

    def _read(
        self, activation: Float[Tensor, "batch pos channel"], hook: Any, *, site: int
    ) -> None:
        flat = activation.float().abs().flatten(1)
        largest, where = flat.max(1)
        self._seen.add(("largest", site), largest)
        self._seen.add(("median", site), flat.median(1).values)
        self._seen.add(("position", site), where // activation.shape[-1])
        self._seen.add(("channel", site), where % activation.shape[-1])

    def compute(self) -> PeakValues:
        """Peaks of all prompts."""
        gathered = [self._seen.stacked(what, self._sites) for what in PeakValues._fields]
        return PeakValues(*gathered)

    def fill(self, clean: ResidualPeaks, times: int) -> None:
        """Take layers that were not seen from the clean run (`Resumable`)."""
        self._seen.fill(clean._seen, times)

    def reset(self) -> None:
        """Forget everything."""
        self._seen.clear()
