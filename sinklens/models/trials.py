"""What a model shows when every kind of site is tried in every layer.

Two kinds of forward pass on a short prompt, whose length is none of the model's other sizes:

- `read_sites`: a clean one that keeps what every site holds, so that shapes can be compared with
  what the code means (`misshapen`), the mask can be read from the pattern (`seen_keys`), and heads
  can be tested for writing what they read, z = A v (`writes_what_it_reads`);
- `layers_changed`: one with noise at a kind of site in all layers at once. What enters each block
  is put back to that of the clean run, so that the layers do not disturb each other, and a layer's
  own output tells whether the noise took effect there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.protocol import HookedModel

Names = Sequence[str]
ROUNDINGS = 8  # of a logit, in half precision


@dataclass(frozen=True)
class Sites:
    """What the sites of a model held in one clean run.

    Attributes:
        logits: The logits.
        held: What each hook point held, by its name; one that never fired is missing.
    """

    logits: Float[Tensor, "batch pos d_vocab"]
    held: dict[str, Any]


def read_sites(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], names: Mapping[str, Names]
) -> Sites:
    """Run the model once and keep what every site holds.

    Args:
        model: The model.
        tokens: The prompts.
        names: Hook points by kind of site and layer.
    """
    held: dict[str, Any] = {}
    wanted = dict.fromkeys(name for by_layer in names.values() for name in by_layer)
    hooks = [(name, partial(_keep, held=held, name=name)) for name in wanted]
    known = model.hook_dict
    logits = model.run_with_hooks(tokens, fwd_hooks=[hook for hook in hooks if hook[0] in known])
    return Sites(logits, held)


def _keep(activation: Any, hook: Any, *, held: dict[str, Any], name: str) -> None:
    held[name] = activation.detach().clone() if isinstance(activation, Tensor) else activation


def misshapen(held: Any, axes: Mapping[str, int | None]) -> str:
    """How what a site holds differs from the shape that the code means; empty where it does not.

    Args:
        held: What it holds.
        axes: The meant axes with their sizes, None where any will do.
    """
    meant = f"[{', '.join(axes)}]"
    if not isinstance(held, Tensor):
        return f"that hook holds a {type(held).__name__} instead of {meant}"
    fits = held.ndim == len(axes) and all(
        size in (None, there) for size, there in zip(axes.values(), held.shape, strict=True)
    )
    if fits:
        return ""
    sizes = " x ".join("any" if size is None else str(size) for size in axes.values())
    return f"that hook holds {' x '.join(map(str, held.shape))} instead of {meant}, {sizes}"


def layers_changed(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    clean: Sites,
    site: Names,
    entries: Names,
) -> list[bool]:
    """In which layers noise at a kind of site changes what the layer puts out.

    Args:
        model: The model.
        tokens: The prompts of the clean run.
        clean: What it held.
        site: The site's hook points by layer.
        entries: The hook points at which the stream enters each block.
    """
    known, changed = model.hook_dict, [False] * len(entries)
    hooks: list[tuple[str, Any]] = []
    for layer, (name, entry) in enumerate(zip(site, entries, strict=True)):
        put_back = partial(_put_back, clean=clean.held[entry], changed=changed, before=layer - 1)
        hooks.append((entry, put_back))
        if name in known:
            hooks.append((name, add_noise))
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    changed[-1] = differs(logits, clean.logits)
    return changed


def _put_back(
    stream: Tensor, hook: Any, *, clean: Tensor, changed: list[bool], before: int
) -> Tensor:
    """Note whether the block before put out anything else than in the clean run, and undo it."""
    if before >= 0:
        changed[before] = differs(stream, clean)
    return clean.clone()


def differs(values: Tensor, clean: Tensor) -> bool:
    """Whether values of a run are not those of the clean run."""
    return not torch.allclose(values, clean, atol=1e-6, rtol=1e-5)


def add_noise(activation: Float[Tensor, "*shape"], hook: Any) -> Float[Tensor, "*shape"]:
    """Add seeded noise of the activation's own scale (of scale 1 where it is constant)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(activation.shape, generator=generator).to(activation)
    if activation.ndim == 4 and activation.shape[-1] == activation.shape[-2]:
        # Pattern or scores: masked entries hold the most negative number; use a moderate scale.
        return activation + noise
    return activation + noise * (activation.std() + 1)


def is_causal(
    logits: Float[Tensor, "2 pos d_vocab"],
    patterns: Sequence[Float[Tensor, "2 head query key"] | None],
) -> bool:
    """Whether logits of two prompts that differ in their last token alone are alike before it.

    In half precision rounding depends on how many tokens an expert gets, so that differences within
    it say nothing where patterns show that no query sees a later key.

    Args:
        logits: Of the two prompts.
        patterns: By layer; None where there is none.
    """
    before, other = logits[0, :-1], logits[1, :-1]
    if torch.allclose(before, other, atol=1e-4, rtol=1e-4):
        return True
    shown = [pattern for pattern in patterns if pattern is not None]
    room = ROUNDINGS * torch.finfo(logits.dtype).eps * float(logits.abs().max())
    rounded = bool(shown) and float((before - other).abs().max()) <= room
    return rounded and not any(bool(pattern.triu(1).any()) for pattern in shown)


def has_learned_sinks(
    patterns: Sequence[Float[Tensor, "2 head query key"] | None], dtype: torch.dtype
) -> bool:
    """Whether attention rows sum to less than 1."""
    least = 0.999 if dtype in (torch.float32, torch.float64) else 0.97
    return any(bool((one.sum(-1) < least).any()) for one in patterns if one is not None)


def seen_keys(pattern: Float[Tensor, "batch head query key"]) -> Bool[Tensor, "query key"]:
    """The keys to which some head gives weight in some prompt, by query."""
    return (pattern != 0).any(0).any(0)


def writes_what_it_reads(
    pattern: Float[Tensor, "batch head query key"],
    value: Float[Tensor, "batch pos n_kv d"],
    z: Float[Tensor, "batch pos head d"],
) -> bool:
    """Whether z = A v, each head with the values of its group.

    It is not where heads are gated or normed before the output projection, or values are clamped
    or normed behind their hook.
    """
    groups, rest = divmod(z.shape[2], value.shape[2])
    if rest or value.shape[-1] != z.shape[-1]:
        return False
    values = value.float().repeat_interleave(groups, 2)
    read = torch.einsum("bhqk,bkhd->bqhd", pattern.float(), values)
    room = relative_room(z.dtype)
    return float((read - z.float()).abs().max()) <= room * float(z.float().abs().max())


def relative_room(dtype: torch.dtype) -> float:
    """How far two values that are alike may lie apart, as a share of the largest."""
    return 1e-3 if dtype in (torch.float32, torch.float64) else 0.05
