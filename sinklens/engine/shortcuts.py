"""Which shortcuts a model allows, determined by comparing each with the whole forward pass.

Every trial runs two short prompts of ordinary tokens, if possible under an intervention, so that a
shortcut that is correct on a clean run only (for a stack of blocks that runs several times) is
detected. The outcome is cached as long as the model stays as it is (`models.state`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..core.protocol import HookedModel
from ..models import model_state, ordinary_tokens
from ..models.capabilities import hook_name
from ..models.state import State
from .attention import in_slices, with_key0_weights, without_patterns
from .forward import UNEMBED, keep_input, keeping, replaced, unembed, without_cache

SITES = ("residual", "z", "key", "value", "attn_out", "mlp_out", "resid_post")
ROUNDINGS = 10
_TRIED_PROMPTS, _TRIED_LENGTH, _TRIED_QUERIES = 2, 8, 3


@dataclass(frozen=True)
class Shortcuts:
    """What a model allows.

    Attributes:
        prefix: Whether earlier blocks can be skipped.
        unembedding: Whether logits can be computed by rows.
        sites: Kinds of site with the same values and effects when patterns are not materialised;
            empty where attention has to stay as TransformerLens computes it.
        key0: Whether the weights on key 0 can be read then.
        slices: Whether patterns can be read some queries at a time.
        sliced_sites: Kinds of site with the same values while patterns are read in slices.
        tuple_length: Length of the tuple that a block returns; None where it is a tensor.
    """

    prefix: bool
    unembedding: bool
    sites: frozenset[str]
    key0: bool
    slices: bool
    sliced_sites: frozenset[str]
    tuple_length: int | None


NO_SHORTCUTS = Shortcuts(False, False, frozenset(), False, False, frozenset(), None)
_known: WeakKeyDictionary[Any, tuple[State, Shortcuts]] = WeakKeyDictionary()


def shortcuts(model: HookedModel) -> Shortcuts:
    """The shortcuts that give this model's own numbers."""
    state = model_state(model)
    known = _known.get(model)
    if known is None or known[0] != state:
        known = (state, _try_all(model))
        _known[model] = known
    return known[1]


def assume_shortcuts(model: HookedModel, tried: Shortcuts) -> None:
    """Take over what was tried on a model of the same class and configuration, loaded alike."""
    _known[model] = (model_state(model), tried)


def is_free_of(model: HookedModel, sites: Iterable[str], names: Iterable[Any]) -> bool:
    """Whether these hooks are only at the embedding, at the end, or at the given sites."""
    sites, last = list(sites), len(model.blocks) - 1
    free = {"hook_embed", hook_name("resid_post", last)}
    free |= {hook_name(site, layer) for site in sites for layer in range(last + 1)}
    return all(isinstance(name, str) and name in free for name in names)


def is_before_unembedding(model: HookedModel, names: Iterable[Any]) -> bool:
    """Whether no hook of these names, or of another name of the same point, is in the unembedding.

    Logits that are made by rows would not pass through it.
    """
    points, known = {id(point) for point in model.unembed.modules()}, model.hook_dict
    return all(isinstance(name, str) and id(known.get(name)) not in points for name in names)


def _try_all(model: HookedModel) -> Shortcuts:
    """Compare each shortcut with the whole forward pass."""
    pool = ordinary_tokens(model)
    choice = torch.arange(_TRIED_PROMPTS * _TRIED_LENGTH) * 7 % len(pool)
    tokens = pool[choice].view(_TRIED_PROMPTS, _TRIED_LENGTH).to(model.cfg.device)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        whole = model.run_with_hooks(tokens, fwd_hooks=[])
        try:
            with keeping(model, range(len(model.blocks))) as kept:
                model.run_with_hooks(tokens, fwd_hooks=[])
        except Exception:  # no blocks where TransformerLens has them elsewhere
            return NO_SHORTCUTS
        form = len(kept[0]) if isinstance(kept[0], tuple) else None
        prefix = _works(_try_prefix, model, tokens, whole, kept)
        unembedding = prefix and _works(_try_unembedding, model, tokens, whole, form)
        # In half precision sdpa differs by more than some interventions.
        exact = whole.dtype in (torch.float32, torch.float64)
        sites = _alike(model, tokens, without_patterns) if exact else frozenset()
        patterns = _patterns(model, tokens)
        noise = _rounding(model, tokens, whole, patterns)
        key0 = bool(sites) and _works(_try_key0, model, tokens, whole, patterns, noise)
        slices = _works(_try_slices, model, tokens, whole, patterns, noise)
        sliced = _alike(model, tokens, _in_some_slices) if slices else frozenset()
    return Shortcuts(prefix, unembedding, sites, key0, slices, sliced, form)


def _alike(model: HookedModel, tokens: Tensor, attention: Callable[..., Any]) -> frozenset[str]:
    """The sites with the same values and effects under another attention."""
    if _works(_try_attention, model, tokens, attention, SITES):
        return frozenset(SITES)
    return frozenset(s for s in SITES if _works(_try_attention, model, tokens, attention, (s,)))


def _in_some_slices(model: HookedModel) -> AbstractContextManager[None]:
    """Attention some queries at a time, without readers."""
    return in_slices(model, [], _TRIED_QUERIES)


def _works(trial: Any, *arguments: Any) -> bool:
    """Whether a trial succeeds; any error other than lack of memory means no."""
    try:
        return bool(trial(*arguments))
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False


def _try_prefix(model: HookedModel, tokens: Tensor, whole: Tensor, kept: dict[int, Any]) -> bool:
    """Skip the first block, all but the last, and all, with an intervention after them."""
    last = len(model.blocks)
    for start in {1, last - 1, last} - {0}:
        # The first blocks to run get another residual stream, as under an intervention: a block
        # that runs again after them would then have to return something else.
        seen: list[Tensor] = []
        shift = partial(_keep_and_shift, kept=seen)
        hooks = [] if start == last else [(hook_name("residual", start), shift)]
        wanted = whole if start == last else model.run_with_hooks(tokens, fwd_hooks=hooks)
        # What a module may have kept for itself is then of another text.
        model.run_with_hooks(tokens.flip(1), fwd_hooks=[])
        with replaced(model, start, kept[start - 1]), without_cache(model):
            if not _close(model.run_with_hooks(tokens, fwd_hooks=hooks), wanted):
                return False
    return True


def _try_unembedding(model: HookedModel, tokens: Tensor, whole: Tensor, form: int | None) -> bool:
    """Compute all logits by rows."""
    inputs: list[Tensor] = []
    model.run_with_hooks(tokens, fwd_hooks=[(UNEMBED, partial(keep_input, kept=inputs))])
    rows = unembed(model, inputs[0].flatten(0, 1), form)
    return _close(rows.view(whole.shape), whole)


def _try_attention(
    model: HookedModel, tokens: Tensor, attention: Callable[..., Any], sites: Sequence[str]
) -> bool:
    """Read and edit kinds of site in the first and last block, with both kinds of attention."""
    names = [hook_name(site, layer) for site in sites for layer in (0, len(model.blocks) - 1)]
    runs = []
    for context in (nullcontext(), attention(model)):
        seen: list[Tensor] = []
        hooks = [(name, partial(_keep_and_shift, kept=seen)) for name in dict.fromkeys(names)]
        with context:
            runs.append([model.run_with_hooks(tokens, fwd_hooks=hooks), *seen])
        if len(seen) != len(hooks):
            return False
    return all(_close(free, usual) for usual, free in zip(*runs, strict=True))


def _rounding(
    model: HookedModel, tokens: Tensor, whole: Tensor, patterns: dict[int, list[Tensor]]
) -> float:
    """What one rounding of the embeddings does to logits or patterns: much where scores are large.

    A shortcut that computes the same in another order differs by as much.
    """
    nudge = ("hook_embed", _round_otherwise)
    again = _patterns(model, tokens, nudge)
    changes = [model.run_with_hooks(tokens, fwd_hooks=[nudge]) - whole]
    changes += [a - b for n in patterns for a, b in zip(again[n], patterns[n], strict=True)]
    return max(float(difference.abs().max()) for difference in changes)


def _round_otherwise(embedding: Tensor, hook: Any) -> Tensor:
    """Every second entry changed by its last bit."""
    step = torch.ones_like(embedding)
    step[..., ::2] += torch.finfo(embedding.dtype).eps
    return embedding * step


def _patterns(
    model: HookedModel, tokens: Tensor, *more: tuple[str, Any]
) -> dict[int, list[Tensor]]:
    """Every layer's pattern as TransformerLens makes it; fewer where it does not."""
    kept: dict[int, list[Tensor]] = {layer: [] for layer in range(len(model.blocks))}
    known = model.hook_dict
    names = {n: hook_name("pattern", n) for n in kept}
    hooks = [(at, partial(_keep_pattern, kept=kept[n])) for n, at in names.items() if at in known]
    model.run_with_hooks(tokens, fwd_hooks=[*more, *hooks])
    return kept


def _try_key0(
    model: HookedModel,
    tokens: Tensor,
    whole: Tensor,
    patterns: dict[int, list[Tensor]],
    noise: float,
) -> bool:
    """Read every layer's weights on key 0."""
    found: dict[int, Tensor] = {}

    def keep(weights: Tensor, *, layer: int) -> None:
        found[layer] = weights

    with with_key0_weights(model, [keep]):
        logits = model.run_with_hooks(tokens, fwd_hooks=[])
    return _close(logits, whole, noise) and all(
        _close(found[layer], pattern[..., 0], noise) for layer, (pattern,) in patterns.items()
    )


def _try_slices(
    model: HookedModel,
    tokens: Tensor,
    whole: Tensor,
    patterns: dict[int, list[Tensor]],
    noise: float,
) -> bool:
    """Read every layer's pattern some queries at a time."""
    layers = range(len(model.blocks))
    rows: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def keep(part: Tensor, *, layer: int, first: int) -> None:
        rows[layer].append(part)

    with in_slices(model, [keep], queries=_TRIED_QUERIES):
        sliced = model.run_with_hooks(tokens, fwd_hooks=[])
    pairs = ((torch.cat(rows[n], dim=2), patterns[n][0]) for n in layers)
    return _close(sliced, whole, noise) and all(_close(a, b, noise) for a, b in pairs)


def _keep_pattern(activation: Tensor, hook: Any, *, kept: list[Tensor]) -> None:
    kept.append(activation)


def _keep_and_shift(activation: Tensor, hook: Any, *, kept: list[Tensor]) -> Tensor:
    """Keep an activation and shift it by a ramp of its own scale."""
    kept.append(activation)
    ramp = torch.linspace(-1, 1, activation.numel(), device=activation.device)
    return activation + ramp.view(activation.shape).to(activation) * activation.std()


def _close(found: Tensor, wanted: Tensor, noise: float = 0.0) -> bool:
    """Whether two tensors are equal within rounding error, or some times what a rounding does."""
    if found.shape != wanted.shape:
        return False
    steps = 50 if wanted.dtype in (torch.float32, torch.float64) else 4
    allowed = steps * torch.finfo(wanted.dtype).eps * float(wanted.abs().max())
    return float((found - wanted).abs().max()) <= max(allowed, ROUNDINGS * noise)
