"""What can be intervened on and measured in a model, found by trying it.

Some families delegate attention to Hugging Face; there an intervention on the pattern or the scores
fires a hook and changes nothing. `check` therefore intervenes on every kind of site on one short
prompt, in the first and in the last layer, and tests whether the logits change. The prompt is 8
tokens long, so the check costs about as much as a few forward passes; it is cached as long as the
model stays as it is (`state`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import SinklensError, UsageError, in_one_line
from ..core.protocol import HookedModel
from . import (
    bos_token_id,
    in_use,
    look_again,
    model_state,
    ordinary_tokens,
    origin,
    require_eval_mode,
)
from .state import State

# Kinds of site, and their names for TransformerLens's `get_act_name`.
SITES = {
    "embedding": "embed",
    "residual": "resid_pre",
    "z": "z",
    "pattern": "pattern",
    "scores": "attn_scores",
    "key": "k",
    "value": "v",
}
_PROMPT_LENGTH = 8


def hook_name(site: str, layer: int) -> str:
    """The TransformerLens hook name of a kind of site.

    Args:
        site: A key of `SITES`, any short name that `get_act_name` knows, or a path inside a block
            (`ln1.hook_out`).
        layer: The block; ignored for the embedding.
    """
    if "." in site:
        return f"blocks.{layer}.{site}"
    from transformer_lens.utilities import get_act_name

    return str(get_act_name(SITES.get(site, site), None if site == "embedding" else layer))


def switched_off(model: HookedModel, name: str) -> str:
    """Why a hook point of the model never fires as it is set; empty where it does."""
    bridge: Any = model
    try:
        bridge.check_hooks_to_add(bridge.hook_dict[name], name, None)
    except ValueError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class Capabilities:
    """What sinklens can do on a model.

    Attributes:
        architecture: The Hugging Face class name.
        n_layers: Blocks.
        n_heads: Query heads per block.
        n_key_value_heads: Key-value heads per block.
        edits: By kind of site, whether an intervention there changes the logits in the first
            and in the last layer.
        causal: Whether no logit depends on a later token.
        bos: Whether the model has a BOS token.
        windows: By layer, the number of keys a query sees, None where it sees all.
        learned_sinks: Whether attention rows sum to less than 1 (a learned sink takes the rest).
    """

    architecture: str
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    edits: dict[str, bool]
    causal: bool
    bos: bool
    windows: tuple[int | None, ...]
    learned_sinks: bool

    def require(self, site: str, what: str, instead: str = "") -> None:
        """Refuse `what` if interventions at `site` do nothing on this model.

        Raises:
            SinklensError: The message names the sites that do work, and `instead` if given.
        """
        reason = self.refusal(site, what, instead)
        if reason:
            raise SinklensError(reason)

    def refusal(self, site: str, what: str, instead: str = "") -> str:
        """Why interventions at `site` do nothing on this model, empty where they work."""
        if self.edits[site]:
            return ""
        works = ", ".join(name for name, possible in self.edits.items() if possible)
        hook = hook_name(site, 0).replace("blocks.0", "blocks.*")
        return (
            f"{what} needs {hook} to take effect; on {self.architecture} an intervention there "
            f"does nothing. Interventions on {works} do work.{' ' + instead if instead else ''}"
        )

    def chosen_layers(self, asked: Sequence[int]) -> list[int]:
        """The requested layers, or all if none was requested.

        Raises:
            UsageError: There is no such layer.
        """
        wrong = [layer for layer in asked if not 0 <= layer < self.n_layers]
        if wrong:
            raise UsageError(
                f"there is no layer {wrong[0]}: this model has {self.n_layers}, from 0"
            )
        return list(asked) or list(range(self.n_layers))

    def visible_keys(self, length: int) -> list[int | None]:
        """By layer how many keys a query sees in prompts of a length, None where it sees all."""
        return [None if w is None or w >= length else w for w in self.windows]

    def layer_groups(self, length: int) -> list[tuple[str, list[int]]]:
        """All layers, or, where windows are shorter than the prompts, one group per window size."""
        windows, layers = self.visible_keys(length), list(range(self.n_layers))
        short = [layer for layer in layers if windows[layer] is not None]
        full = [layer for layer in layers if layer not in short]
        kinds = [(":full", full), (":window", short)] if short else []
        return [("", layers), *((name, group) for name, group in kinds if group)]

    def key_value_head(self, head: int) -> int:
        """The key-value head that a query head reads."""
        return head // (self.n_heads // self.n_key_value_heads)


_checked: WeakKeyDictionary[Any, tuple[State, Capabilities]] = WeakKeyDictionary()


def check(model: HookedModel) -> Capabilities:
    """What can be intervened on and measured in `model`, tried again when the model has changed.

    Raises:
        SinklensError: The model is in train mode, or its logits are not finite.
    """
    require_eval_mode(model)
    look_again(model)
    with in_use(model):
        state, known = model_state(model), _checked.get(model)
        if known is None or known[0] != state:
            known = (state, _try_everything(model))
            _checked[model] = known
    return known[1]


def assume_capabilities(model: HookedModel, tried: Capabilities) -> None:
    """Take over what was tried on a model of the same class and configuration, loaded alike."""
    _checked[model] = (model_state(model), tried)


def _try_everything(model: HookedModel) -> Capabilities:
    """Run the model on one prompt, clean and with an intervention on every kind of site."""
    tokens = _short_prompt(model)
    n_layers = int(model.cfg.n_layers)
    pattern_sums: list[float] = []
    reading = partial(_read_row_sum, sums=pattern_sums)
    with torch.no_grad(), warnings.catch_warnings():
        # TransformerLens warns about exactly the interventions that are tested here.
        warnings.simplefilter("ignore", UserWarning)
        names = [hook_name("pattern", layer) for layer in range(n_layers)]
        hooks = [(name, reading) for name in names if name in model.hook_dict]
        clean = _plain_logits(model, tokens, hooks)
        if not bool(torch.isfinite(clean).all()):
            raise SinklensError(
                f"{origin(model).name} gives NaN or infinite logits on plain tokens; its weights "
                "or its dtype are broken"
            )
        edits = {
            site: all(
                _edit_matters(model, tokens, clean, name)
                for name in {hook_name(site, 0), hook_name(site, n_layers - 1)}
            )
            for site in SITES
        }
    # The second prompt differs from the first in its last token only.
    causal = torch.allclose(clean[0, :-1], clean[1, :-1], atol=1e-4, rtol=1e-4)
    config = getattr(model.original_model, "config", None)  # `boot_native` has none, and no window
    return Capabilities(
        architecture=str(model.cfg.architecture),
        n_layers=n_layers,
        n_heads=int(model.cfg.n_heads),
        n_key_value_heads=int(getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads),
        edits=edits,
        causal=causal,
        bos=bos_token_id(model) is not None,
        windows=_windows(config, n_layers),
        learned_sinks=bool(pattern_sums)
        and min(pattern_sums) < (0.999 if clean.dtype == torch.float32 else 0.97),
    )


def _short_prompt(model: HookedModel) -> Int[Tensor, "2 pos"]:
    """Two prompts of ordinary tokens that differ in the last one."""
    choice = np.random.default_rng(0).choice(ordinary_tokens(model).numpy(), _PROMPT_LENGTH + 1)
    tokens = torch.from_numpy(choice[:_PROMPT_LENGTH]).repeat(2, 1)
    tokens[1, -1] = int(choice[-1])
    return tokens.to(model.cfg.device)


def _plain_logits(model: HookedModel, tokens: Int[Tensor, "2 pos"], hooks: Any) -> Tensor:
    """The logits of a forward pass.

    Raises:
        SinklensError: It fails, as by a hook of the user's own that is called in another way.
    """
    try:
        logits: Tensor = model.run_with_hooks(tokens, fwd_hooks=hooks)
    except (SinklensError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise SinklensError(
            f"{origin(model).name} fails on two prompts of {_PROMPT_LENGTH} plain tokens: "
            f"{in_one_line(error)}; look at hooks of your own that it carries"
        ) from error
    return logits


def _edit_matters(
    model: HookedModel, tokens: Int[Tensor, "2 pos"], clean: Tensor, hook_name: str
) -> bool:
    """Whether noise at a hook point changes the logits."""
    if hook_name not in model.hook_dict:
        return False
    edited = model.run_with_hooks(tokens, fwd_hooks=[(hook_name, _add_noise)])
    return not torch.allclose(edited, clean, atol=1e-6, rtol=1e-5)


def _add_noise(activation: Float[Tensor, "*shape"], hook: Any) -> Float[Tensor, "*shape"]:
    """Add seeded noise of the activation's own scale (of scale 1 where it is constant)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(activation.shape, generator=generator).to(activation)
    if activation.ndim == 4 and activation.shape[-1] == activation.shape[-2]:
        # Pattern or scores: masked entries hold the most negative number; use a moderate scale.
        return activation + noise
    return activation + noise * (activation.std() + 1)


def _read_row_sum(pattern: Float[Tensor, "batch head query key"], hook: Any, sums: Any) -> None:
    """Keep the smallest sum of an attention row."""
    sums.append(float(pattern.float().sum(-1).min()))


def _windows(config: Any, n_layers: int) -> tuple[int | None, ...]:
    """By layer, how many keys a query sees; None where it sees all.

    Read from the Hugging Face config: TransformerLens's `cfg.window_size` can be None although
    layers have a window.
    """
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    window = getattr(config, "sliding_window", None) or getattr(config, "window_size", None)
    if window is None or not getattr(config, "use_sliding_window", True):
        return (None,) * n_layers
    if kinds is None:
        return (int(window),) * n_layers
    return tuple(int(window) if kind in ("sliding_attention", "local") else None for kind in kinds)
