"""What a probe is, and the classes that most of them are made of.

`LayerProbe`: a kind of site, some layers, and `reduce`, which makes a few numbers a prompt of what
one layer holds. `compute` returns what `reduce` does (a tensor, a named tuple or a dict of tensors,
prompts first) for all prompts, with an axis of layers behind that of prompts. `SiteProbe` is the
same without `compute`, for probes that return something else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.errors import SinklensError
from ..core.protocol import HookedModel
from ..functional.precision import wide
from ..models.capabilities import check, hook_name

Values = TypeVar("Values", bound=Tensor | tuple[Tensor, ...] | Mapping[Any, Tensor])
"""A tensor, a named tuple of tensors, or tensors by key."""


@runtime_checkable  # so that shape checks in tests can look at it
class Probe(Protocol):
    """Hooks that read, and the value they have read so far."""

    @property
    def fwd_hooks(self) -> list[tuple[str, Any]]:
        """Pairs of hook name and function `fn(activation, hook)` that returns None."""

    def compute(self) -> Any:
        """The statistic over all prompts that ran since the last reset, in their order."""

    def reset(self) -> None:
        """Forget everything."""


@runtime_checkable
class Resumable(Probe, Protocol):
    """A probe that computes a tuple of tensors, prompts first, and can take over missing parts."""

    def fill(self, clean: Any, times: int) -> None:
        """Take what this probe has not seen from a probe of the clean run.

        Args:
            clean: A probe of the same kind that saw the same prompts without an edit.
            times: How often each of its prompts stands in this probe's batch, one after another.
        """


@runtime_checkable
class Sliceable(Probe, Protocol):
    """A probe that reads attention patterns, and can do so without its hooks, a few rows a call."""

    def read_queries(
        self, rows: Float[Tensor, "batch head some key"], *, layer: int, first: int
    ) -> None:
        """Read some rows of a layer's pattern.

        Args:
            rows: The attention of some queries to all keys.
            layer: The layer.
            first: The first query; the queries of a batch come in order, all of a layer in a row.
        """


@runtime_checkable
class ReadsKey0(Probe, Protocol):
    """A probe that needs no more of attention patterns than the weights on key 0."""

    def read_key0(self, weights: Float[Tensor, "batch head query"], *, layer: int) -> None:
        """Read the attention of every query to key 0, in place of the hook on the pattern."""


class SiteProbe(ABC, Generic[Values]):
    """Reduces what some layers hold to a few numbers a prompt, and gathers these by layer.

    Attributes:
        fwd_hooks: For `model.run_with_hooks`.
        layers: Where it reads, in order; with a function for a site, whatever that takes.
        held: While a layer is reduced, what `hold` kept of the sites beside.
        count: By layer, how many prompts were read since the last reset.
    """

    def __init__(
        self, site: str | Callable[[Any], str], layers: Iterable[Any], beside: Sequence[str] = ()
    ) -> None:
        """Read one kind of site of some layers.

        Args:
            site: As `hook_name` takes it, or a function that gives the hook's name for a layer.
            layers: The layers.
            beside: Other kinds of site of the same layers, which a forward reaches before `site`.
        """
        name = partial(hook_name, site) if isinstance(site, str) else site
        self.layers = list(layers)
        self.held: dict[str, Tensor] = {}
        self.count: Counter[Any] = Counter()
        self._beside = set(beside)
        self._seen: dict[Any, list[Values]] = {}
        self.fwd_hooks: list[tuple[str, Any]] = []
        for layer in self.layers:
            for other in beside:
                self.fwd_hooks.append((hook_name(other, layer), partial(self._hold, site=other)))
            self.fwd_hooks.append((name(layer), partial(self._read, layer=layer)))

    @abstractmethod
    def reduce(self, activation: Tensor, layer: Any, /) -> Values:
        """What to keep of one layer's activation, prompts first."""

    def hold(self, activation: Tensor, site: str, /) -> Tensor:
        """What `reduce` needs of a site beside."""
        return activation.detach()

    def _hold(self, activation: Tensor, hook: Any, *, site: str) -> None:
        self.held[site] = self.hold(activation, site)

    def _read(self, activation: Tensor, hook: Any, *, layer: Any) -> None:
        if missing := self._beside - self.held.keys():
            raise SinklensError(
                f"{type(self).__name__} needs the {' and '.join(sorted(missing))} of layer {layer} "
                "before the rest, and TransformerLens gives them later or not at all on this model"
            )
        self._gather(layer, self.reduce(activation, layer), len(activation))
        self.held.clear()

    def _gather(self, layer: Any, values: Values, prompts: int) -> None:
        """Keep what a batch was reduced to."""
        values = _by_field(lambda fields: kept(fields[0]), [values])
        self._seen.setdefault(layer, []).append(values)
        self.count[layer] += prompts

    def at(self, layer: Any) -> Values:
        """What `reduce` made of one layer, of all prompts.

        Raises:
            SinklensError: There was no run.
        """
        if layer not in self._seen:
            raise SinklensError(
                f"{type(self).__name__} has read nothing at {layer}: run the model with its "
                "fwd_hooks first"
            )
        return _by_field(up_to_shortest, self._seen[layer])

    def stacked(self) -> Values:
        """What `reduce` made of all layers, `[prompt, layer, ...]`.

        A key that it gives in some layers only is stacked over these.
        """
        return _by_field(partial(torch.stack, dim=1), [self.at(layer) for layer in self.layers])

    def reset(self) -> None:
        """Forget everything."""
        self._seen.clear()
        self.held.clear()
        self.count.clear()


class LayerProbe(SiteProbe[Values]):
    """A `SiteProbe` that computes what its `reduce` returns, stacked over layers."""

    def compute(self) -> Values:
        """Of all prompts, `[prompt, layer, ...]`."""
        return self.stacked()


class ResumableProbe(LayerProbe[Values]):
    """A `LayerProbe` that is `Resumable`: it reduces each prompt alone, to a named tuple."""

    def fill(self, clean: ResumableProbe[Values], times: int) -> None:
        """Take layers that were not seen from the clean run."""
        for layer in clean._seen.keys() - self._seen.keys():
            self._seen[layer] = [
                _by_field(lambda fields: torch.cat(fields * times), [clean.at(layer)])
            ]


class SliceableProbe(LayerProbe[Values]):
    """A `LayerProbe` of patterns that are reduced to means over queries, so it is `Sliceable`."""

    def __init__(self, model: HookedModel) -> None:
        """Read the pattern of every layer of `model` that has attention."""
        super().__init__("pattern", check(model).layers_of("pattern"))
        self._sums: Values | None = None

    @abstractmethod
    def sums(self, rows: Float[Tensor, "batch head some key"], first: int, /) -> Values:
        """What some queries, of which the first is query `first`, add to sums over queries."""

    @abstractmethod
    def means(self, sums: Values, length: int, /) -> Values:
        """The means, from sums over all queries of prompts of a length."""

    def reduce(self, pattern: Float[Tensor, "batch head query key"], layer: Any, /) -> Values:
        """The means of a whole pattern."""
        return self.means(self.sums(pattern, 0), pattern.shape[-1])

    def read_queries(
        self, rows: Float[Tensor, "batch head some key"], *, layer: int, first: int
    ) -> None:
        """Add up some rows of a pattern (`Sliceable`); with the last of them a batch is read."""
        length, end = rows.shape[-1], first + rows.shape[-2]
        sums = self.sums(rows, first)
        if self._sums is not None and first:
            sums = _by_field(lambda fields: fields[0] + fields[1], [self._sums, sums])
        self._sums = sums
        if end == length:
            self._gather(layer, self.means(sums, length), len(rows))
            self._sums = None


def stream_hook(model: HookedModel, layer: int) -> str:
    """The hook of the stream that enters block `layer`, or with L blocks and L leaves the last."""
    last = int(model.cfg.n_layers) - 1
    return hook_name("residual", layer) if layer <= last else hook_name("resid_post", last)


def up_to_shortest(batches: list[Tensor]) -> Tensor:
    """Batches in one; where prompts differ in length, axes of positions up to the shortest.

    Args:
        batches: Tensors, prompts first, alike but for the lengths of their other axes.
    """
    least = [min(sizes) for sizes in zip(*(batch.shape[1:] for batch in batches), strict=True)]
    return torch.cat([batch[:, *(slice(size) for size in least)] for batch in batches])


def kept(values: Tensor) -> Tensor:
    """Values on the CPU (`wide`); never a part of something larger, which would be kept too."""
    values = wide(values.detach()).cpu()
    whole = values.untyped_storage().nbytes() <= values.nbytes
    return values if whole else values.clone()


def _by_field(function: Callable[[list[Tensor]], Tensor], several: Sequence[Values]) -> Values:
    """A function of the tensors of the same field or key, for each of them."""
    parts: list[Any] = list(several)
    result: Any
    if isinstance(parts[0], Tensor):
        result = function(parts)
    elif isinstance(parts[0], Mapping):
        keys = dict.fromkeys(key for part in parts for key in part)
        result = {key: function([part[key] for part in parts if key in part]) for key in keys}
    else:
        result = type(parts[0])(*(function(list(same)) for same in zip(*parts, strict=True)))
    return cast(Values, result)
