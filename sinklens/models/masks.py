"""Which keys a query can see, by layer: from the config, held to what patterns show.

A config names sliding windows in several ways, and some masks in none: Llama 4 attends in chunks.
Patterns of a short prompt show the mask itself, as the keys to which any head gives weight. Where
they contradict the config, queries are set to 0, which makes all scores alike, so that no weight on
a visible key is 0 by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.protocol import HookedModel
from ..functional.graphs import visible_keys
from .trials import seen_keys

Pattern = Float[Tensor, "batch head query key"]
SLIDING = ("sliding_attention", "local")


@dataclass(frozen=True)
class Masks:
    """The masks of all layers.

    Attributes:
        windows: By layer, the number of keys that a query sees, None where it sees all.
        others: By layer, the longest prompt without a mask of another form; None where all are.
    """

    windows: tuple[int | None, ...]
    others: tuple[int | None, ...]


def read_masks(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    patterns: Sequence[Pattern | None],
    config: Any,
    *,
    causal: bool,
) -> Masks:
    """The masks that config and patterns agree on.

    Args:
        model: The model.
        tokens: Short prompts.
        patterns: Of a run of these, by layer; None where there is none.
        config: The Hugging Face config, if there is one.
        causal: Whether the model is causal.
    """
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    windows, chunks = _windows(config, len(patterns)), _chunks(config, len(patterns))
    length = tokens.shape[1]
    meant = [_mask(length, w, c, causal) for w, c in zip(windows, chunks, strict=True)]
    seen = [None if one is None else seen_keys(one).cpu() for one in patterns]
    if _contradicted(seen, meant):
        seen = _with_even_scores(model, tokens, seen)
    for layer, (mask, expected) in enumerate(zip(seen, meant, strict=True)):
        if mask is not None and not torch.equal(mask, expected):
            windows[layer], chunks[layer] = _recognised(mask, causal)
    return Masks(tuple(windows), tuple(chunks))


def _contradicted(
    seen: Sequence[Bool[Tensor, "query key"] | None], meant: Sequence[Bool[Tensor, "query key"]]
) -> bool:
    return any(a is not None and not torch.equal(a, b) for a, b in zip(seen, meant, strict=True))


def _with_even_scores(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    seen: Sequence[Bool[Tensor, "query key"] | None],
) -> list[Bool[Tensor, "query key"] | None]:
    """The masks of a run whose queries are 0, by layer."""
    found: list[Bool[Tensor, "query key"] | None] = list(seen)
    known = model.hook_dict
    hooks: list[tuple[str, Any]] = []

    def read(layer: int) -> Any:
        def keep(pattern: Tensor, hook: Any) -> None:
            found[layer] = seen_keys(pattern).cpu()

        return keep

    for layer in range(len(seen)):
        query, pattern = (f"blocks.{layer}.attn.hook_{name}" for name in ("q", "pattern"))
        if seen[layer] is not None and query in known:
            hooks += [(query, _to_zero), (pattern, read(layer))]
    model.run_with_hooks(tokens, fwd_hooks=hooks)
    return found


def _to_zero(query: Tensor, hook: Any) -> Tensor:
    return torch.zeros_like(query)


def _mask(length: int, window: int | None, chunk: int | None, causal: bool) -> Bool[Tensor, "q k"]:
    """The visible keys under a window or in chunks."""
    mask = visible_keys(length, causal=causal, window=window)
    if chunk is not None:
        number = torch.arange(length) // chunk
        mask = mask & (number[:, None] == number)
    return mask


def _recognised(mask: Bool[Tensor, "q k"], causal: bool) -> tuple[int | None, int | None]:
    """The window of a mask, or the longest prompt for which it is the usual one."""
    length = len(mask)
    for size in range(1, length + 1):
        if torch.equal(mask, _mask(length, size if size < length else None, None, causal)):
            return (size if size < length else None), None
    usual = _mask(length, None, None, causal)
    whole = [n for n in range(1, length) if torch.equal(mask[:n, :n], usual[:n, :n])]
    return None, max(whole, default=0)


def _windows(config: Any, n_layers: int) -> list[int | None]:
    """By layer, how many keys a query sees; None where it sees all.

    Read from the Hugging Face config: TransformerLens's `cfg.window_size` can be None although
    layers have a window.
    """
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    window = getattr(config, "sliding_window", None) or getattr(config, "window_size", None)
    if window is None or not getattr(config, "use_sliding_window", True):
        return [None] * n_layers
    if kinds is None:
        return [int(window)] * n_layers
    return [int(window) if kind in SLIDING else None for kind in kinds]


def _chunks(config: Any, n_layers: int) -> list[int | None]:
    """By layer, the size of the chunks within which it attends; None where there are none."""
    kinds, size = getattr(config, "layer_types", None), getattr(config, "attention_chunk_size", 0)
    if not (kinds and size):
        return [None] * n_layers
    return [int(size) if kind == "chunked_attention" else None for kind in kinds]
