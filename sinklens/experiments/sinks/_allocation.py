"""The kinds of keys that a row of attention has, what each gets, and how that is removed.

A query's row has three kinds of keys: the sinks, the query itself (the diagonal), and all others.
Rows of queries that are sinks themselves have none of them: there a key would be of two kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...core.protocol import HookedModel
from ...functional.graphs import permute_rows
from ...hooks.intervention import HookFunction, Intervention
from ...models.capabilities import check, hook_name
from ...probes.base import LayerProbe, ResumableProbe
from ...probes.patterns import PatternReader

KINDS = ("parked", "diagonal", "spread")
FIRST, LEARNED = "first_key", "learned_sink"
MASSES = (*KINDS, FIRST, LEARNED)
LESS = 0.3
"""The alternative to `MOST`, which makes a head a sink head."""
ROWS = ("parked", "focused", "spread", f"parked_above_{LESS}")
NUMBERS = ("entropy", "squares")
MOST = 0.5
"""A row with more on sinks is parked, one of a smaller share of keys focused."""
Masks = Bool[Tensor, "kind query key"]


class Allocated(NamedTuple):
    """What `Allocation` computes: by head the mean over counted queries, and by query over heads.

    Sources are attention, uniform attention and, with draws, row-permuted attention (mean over
    draws), which has the effective numbers of attention.
    """

    mass: Float[Tensor, "prompt layer source head mass"]
    rows: Float[Tensor, "prompt layer source head kind"]
    keys: Float[Tensor, "prompt layer source head number"]
    mass_by_query: Float[Tensor, "prompt layer source query mass"]
    keys_by_query: Float[Tensor, "prompt layer source query"]
    first_share: Float[Tensor, "prompt layer source"]


def kinds_of_keys(length: int, sinks: Sequence[int]) -> Masks:
    """Which keys of each row are sinks, the query itself, and others, in the order of `KINDS`."""
    sink = torch.zeros(length, dtype=torch.bool)
    sink[list(sinks)] = True
    counted, itself = ~sink[:, None], torch.eye(length, dtype=torch.bool)
    return torch.stack([counted & sink, counted & itself, counted & ~sink & ~itself])


def effective_keys(
    rows: Float[Tensor, "*batch key"],
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """The effective number of keys: e to the entropy, and one over the sum of squares.

    Both are n for n equal weights; of a row that sums to less than 1 they are of its shares.
    """
    shares = rows / rows.sum(-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    entropy: Tensor = torch.special.entr(shares).sum(-1)
    squares: Tensor = shares.square().sum(-1)
    return entropy.exp(), 1 / squares.clamp_min(torch.finfo(rows.dtype).tiny)


def remove_mass(
    pattern: Float[Tensor, "batch head query key"],
    hook: Any,
    *,
    masks: Masks,
    kind: int,
    beside: int | None = None,
) -> Float[Tensor, "batch head query key"]:
    """Remove what one kind of key gets from each row, and leave the rest of the row as it is.

    Args:
        pattern: The pattern.
        hook: The hook point.
        masks: The kinds of keys.
        kind: The kind that loses attention, all of its keys in proportion.
        beside: Removes no more than this kind gets in the same row; None removes all.
    """
    chosen = masks[kind].to(pattern.device)
    if beside is None:
        return pattern.masked_fill(chosen, 0)
    rows = pattern.float()
    mass = (rows * chosen).sum(-1, keepdim=True)
    most = (rows * masks[beside].to(pattern.device)).sum(-1, keepdim=True)
    left = 1 - torch.minimum(mass, most) / mass.clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(chosen, rows * left, rows).to(pattern)


def remove_and_rescale(
    pattern: Float[Tensor, "batch head query key"], hook: Any, *, masks: Masks, kind: int
) -> Float[Tensor, "batch head query key"]:
    """Remove what one kind of key gets, and scale the rest of each row to its former sum.

    A row without any other weight has nothing to scale and becomes 0.
    """
    rows = pattern.float()
    kept = rows.masked_fill(masks[kind].to(pattern.device), 0)
    tiny = torch.finfo(torch.float32).tiny
    scale = rows.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp_min(tiny)
    return (kept * scale).to(pattern)


def everywhere(name: str, layers: Sequence[int], edit: HookFunction) -> Intervention:
    """An edit of the patterns of all heads of some layers."""
    hooks = [(hook_name("pattern", layer), edit) for layer in layers]
    return Intervention(name, "pattern", min(layers), hooks)


class MassLeft(NamedTuple):
    """What `RowSums` computes."""

    left: Float[Tensor, "prompt layer"]


class RowSums(ResumableProbe[MassLeft]):
    """What rows sum to, mean over heads and over queries i >= 1."""

    def __init__(self, model: HookedModel) -> None:
        """Read the pattern of every layer of `model` that has attention."""
        super().__init__("pattern", check(model).layers_of("pattern"))

    def reduce(self, pattern: Float[Tensor, "batch head query key"], layer: Any, /) -> MassLeft:
        """Of one layer."""
        return MassLeft(pattern[:, :, 1:].float().sum(-1).mean((1, 2)))


class Allocation(LayerProbe[Allocated]):
    """Masses, kinds of rows and effective numbers of keys, beside uniform and permuted rows."""

    def __init__(self, reader: PatternReader, sinks: Sequence[int]) -> None:
        """Read the pattern of every layer with attention.

        Args:
            reader: Knows the masks and the random orders.
            sinks: The keys that are sinks.
        """
        super().__init__("pattern", reader.capabilities.attention)
        self._reader, self._sinks = reader, list(sinks)
        self._counted = kinds_of_keys(reader.length, sinks)[0].any(-1)

    def reduce(self, pattern: Float[Tensor, "batch head query key"], layer: int, /) -> Allocated:
        """Of one layer."""
        reader, learned = self._reader, self._reader.capabilities.learned_sinks
        pattern, visible = reader.checked(pattern, layer), reader.visible(layer)
        visible, counted = visible.to(pattern.device), self._counted.to(pattern.device)
        seen = visible.sum(-1)
        even = (visible / (seen[:, None] + learned)).expand_as(pattern)
        permuted = [
            self._masses(pattern, permute_rows(self._places(pattern), order, visible), learned)
            for order in reader.orders(self.count[layer], pattern[:, 0], layer)
        ]
        own, uniform = (self._masses(one, self._places(one), learned) for one in (pattern, even))
        keys, of_even = effective_keys(pattern), seen.expand_as(pattern[..., 0]).float()
        shares = keys[0] / seen
        rows = [[kinds_of_rows(own, shares)], [kinds_of_rows(uniform, torch.ones_like(shares))]]
        masses = [[own], [uniform]]
        if permuted:
            masses.append(permuted)
            rows.append([kinds_of_rows(one, shares) for one in permuted])
        mass, kinds = (
            torch.stack([torch.stack(draws).mean(0) for draws in every], 1)
            for every in (masses, rows)
        )
        number = torch.stack([torch.stack(keys, -1), torch.stack([of_even, of_even], -1)], 1)
        first = torch.stack([pattern[..., 0].mean((1, 2)), even[..., 0].mean((1, 2))], 1)
        by_head = [values[:, :, :, counted].mean(3) for values in (mass, kinds, number)]
        return Allocated(
            by_head[0], by_head[1], by_head[2], mass.mean(2), number[..., 0].mean(2), first
        )

    def _places(self, pattern: Tensor) -> Float[Tensor, "batch query key"]:
        """At every key its own number."""
        keys = torch.arange(pattern.shape[-1], device=pattern.device, dtype=pattern.dtype)
        return keys.expand_as(pattern[:, 0])

    def _masses(
        self,
        pattern: Float[Tensor, "batch head query key"],
        places: Float[Tensor, "batch query key"],
        learned: bool,
    ) -> Float[Tensor, "batch head query mass"]:
        """What each row gives to each of `MASSES`, where `places` names the key at every place."""
        chosen = torch.cat([places[..., self._sinks], places.diagonal(0, 1, 2)[..., None]], -1)
        index = chosen.long()[:, None].expand(*pattern.shape[:3], -1)
        *sinks, itself = pattern.gather(-1, index).unbind(-1)
        sums, parked = pattern.sum(-1), torch.stack(sinks).sum(0)
        spread = (sums - parked - itself).clamp_min(0)
        rest = (1 - sums) if learned else torch.zeros_like(sums)
        return torch.stack([parked, itself, spread, sinks[0], rest], -1)


def kinds_of_rows(
    mass: Float[Tensor, "batch head query mass"], shares: Float[Tensor, "batch head query"]
) -> Float[Tensor, "batch head query kind"]:
    """Whether each row is of each of the kinds `ROWS`.

    Args:
        mass: What it gives to each of `MASSES`.
        shares: The effective number of keys over the number that the query sees.
    """
    away = mass[..., MASSES.index("parked")] + mass[..., MASSES.index(LEARNED)]
    parked, few = away > MOST, shares <= MOST
    kinds = (parked, ~parked & few, ~parked & ~few, away > LESS)
    return torch.stack(kinds, -1).to(mass.dtype)
