"""Which keys a query can see, by layer: from the config, held to what patterns show.

A config names sliding windows in several ways, and some masks in none: Llama 4 attends in chunks.
Patterns of a short prompt show the mask itself, as the keys to which any head gives weight. Where
they contradict the config, queries are set to 0, which makes all scores alike, so that no weight on
a visible key is 0 by rounding.

A window that is longer than the prompt does not show. Some classes pass over what their config says
(MiniMax M2 has no window, Ministral 3 one in every layer), so one run is made with copies of the
config that have `SMALL` in place of its sizes. Layers that do not follow are shown a prompt that is
longer than the window.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.protocol import HookedModel
from ..functional.graphs import visible_keys
from .trials import seen_keys

Pattern = Float[Tensor, "batch head query key"]
Mask = Bool[Tensor, "query key"]
Form = tuple[int | None, int | None]
"""The window of a layer, and the longest prompt without a mask of another form."""
SLIDING = ("sliding_attention", "local")
SIZES = ("sliding_window", "window_size", "attention_chunk_size", "index_topk")
SMALL = 4
LONGEST = 1024
"""The longest window for which a prompt of more tokens is run."""
BEYOND = 8
"""How many tokens more: a set of keys that is no window does not look like one for as many."""


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
    named = _named(config, len(patterns))
    length = tokens.shape[1]
    meant = [_mask(length, form, causal) for form in named]
    seen = [None if one is None else seen_keys(one).cpu() for one in patterns]
    if _contradicted(seen, meant):
        seen = _with_even_scores(model, tokens, [mask is not None for mask in seen])
    forms = [
        form if mask is None or torch.equal(mask, expected) else _recognised(mask, causal)
        for form, mask, expected in zip(named, seen, meant, strict=True)
    ]
    longer = {name: size for name, size in _sizes(config).items() if size >= length}
    if longer:
        usual = _mask(length, (None, None), causal)
        hidden = [mask is not None and torch.equal(mask, usual) for mask in seen]
        with _small(model, config, longer):
            small = _with_even_scores(model, tokens, hidden)
        unlike = [
            layer
            for layer, mask in enumerate(small)
            if mask is not None and not _follows(mask, named[layer], causal)
        ]
        for layer, form in _shown(model, tokens, unlike, list(longer.values()), causal).items():
            forms[layer] = form
    forms = [
        known if form[0] is not None and form[0] == known[1] else form  # as many keys by chance
        for form, known in zip(forms, named, strict=True)
    ]
    windows, others = zip(*forms, strict=True)
    return Masks(windows, others)


def _contradicted(seen: Sequence[Mask | None], meant: Sequence[Mask]) -> bool:
    return any(a is not None and not torch.equal(a, b) for a, b in zip(seen, meant, strict=True))


def _with_even_scores(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], wanted: Sequence[bool]
) -> list[Mask | None]:
    """The masks of a run whose queries are 0, by layer; None where they are not wanted."""
    found: list[Mask | None] = [None] * len(wanted)
    known = model.hook_dict
    hooks: list[tuple[str, Any]] = []

    def read(layer: int) -> Any:
        def keep(pattern: Tensor, hook: Any) -> None:
            found[layer] = seen_keys(pattern).cpu()

        return keep

    for layer in range(len(wanted)):
        query, pattern = (f"blocks.{layer}.attn.hook_{name}" for name in ("q", "pattern"))
        if wanted[layer]:
            hooks += [(query, _to_zero)] if query in known else []
            hooks.append((pattern, read(layer)))
    model.run_with_hooks(tokens, fwd_hooks=hooks)
    return found


def _to_zero(query: Tensor, hook: Any) -> Tensor:
    return torch.zeros_like(query)


@contextmanager
def _small(model: HookedModel, config: Any, sizes: Iterable[str]) -> Iterator[None]:
    """The modules of a model with copies of a config that have `SMALL` in place of some sizes.

    The config itself may be that of another model too, and stays as it is.
    """
    small = copy.copy(config)
    for name in sizes:
        setattr(small, name, SMALL)
    configured = [part for part in model.original_model.modules() if hasattr(part, "config")]
    copies = [(part, _with_text_config(part.config, config, small)) for part in configured]
    changed = [(part, part.config, one) for part, one in copies if one is not part.config]
    try:
        for part, _, one in changed:
            part.config = one
        yield
    finally:
        for part, own, _ in changed:
            part.config = own


def _with_text_config(holder: Any, config: Any, other: Any) -> Any:
    """A config, or one that holds it, with another in its place."""
    if holder is config:
        return other
    names = [name for name, value in getattr(holder, "__dict__", {}).items() if value is config]
    if not names:
        return holder
    changed = copy.copy(holder)
    for name in names:
        setattr(changed, name, other)
    return changed


def _follows(mask: Mask, named: Form, causal: bool) -> bool:
    """Whether a mask is what a config names, with `SMALL` in place of its size."""
    window, other = named
    small = (window and SMALL, other and SMALL)
    return _recognised(mask, causal) == small


def _shown(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    layers: Sequence[int],
    sizes: Sequence[int],
    causal: bool,
) -> dict[int, Form]:
    """The masks of some layers in a prompt that is longer than windows of some sizes.

    Where a size is too long for that, masks are known up to it.
    """
    if not layers:
        return {}
    context = int(getattr(model.cfg, "n_ctx", 0) or max(sizes) + BEYOND)
    fit = [size for size in sizes if size <= LONGEST and size < context]
    known = min((size for size in sizes if size not in fit), default=None)
    found: dict[int, Form] = dict.fromkeys(layers, (None, known))
    if fit:
        length = min(max(fit) + BEYOND, context)
        prompt = tokens[:1].repeat(1, length // tokens.shape[1] + 1)[:, :length]
        wanted = [layer in layers for layer in range(int(model.cfg.n_layers))]
        for layer, mask in enumerate(_with_even_scores(model, prompt, wanted)):
            if mask is not None and (form := _recognised(mask, causal)) != (None, None):
                found[layer] = form
    return found


def _mask(length: int, form: Form, causal: bool) -> Mask:
    """The visible keys under a window, or in chunks."""
    window, chunk = form
    mask = visible_keys(length, causal=causal, window=window)
    if chunk is not None:
        number = torch.arange(length) // chunk
        mask = mask & (number[:, None] == number)
    return mask


def _recognised(mask: Mask, causal: bool) -> Form:
    """The window of a mask, or the longest prompt for which it is the usual one."""
    length = len(mask)
    seeing_first = int(mask[:, 0].sum())  # as many queries as a window has keys
    window = seeing_first if seeing_first < length else None
    if torch.equal(mask, _mask(length, (window, None), causal)):
        return window, None
    usual = _mask(length, (None, None), causal)
    queries, keys = (mask != usual).nonzero(as_tuple=True)
    return None, int(torch.maximum(queries, keys).min())


def _sizes(config: Any) -> dict[str, int]:
    """The sizes of windows, chunks and sets of keys that a config has."""
    found = {name: getattr(config, name, None) for name in SIZES}
    return {name: size for name, size in found.items() if isinstance(size, int) and size > 0}


def _named(config: Any, n_layers: int) -> list[Form]:
    """By layer the mask that the Hugging Face config names.

    TransformerLens's `cfg.window_size` can be None although layers have a window.
    """
    sizes = _sizes(config)
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    window = sizes.get("sliding_window", sizes.get("window_size"))
    if not getattr(config, "use_sliding_window", True):
        window = None
    chunk, most = sizes.get("attention_chunk_size"), sizes.get("index_topk")

    def form(kind: str | None) -> Form:
        slides = window is not None and (kind is None or kind in SLIDING)
        return window if slides else None, chunk if kind == "chunked_attention" else most

    return [form(kind) for kind in kinds or [None] * n_layers]
