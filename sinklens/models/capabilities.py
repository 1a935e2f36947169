"""What can be intervened on and measured in a model, found by trying it.

Some families delegate attention to Hugging Face; there an intervention on the pattern or the scores
fires a hook and changes nothing. Others have layers without attention, hooks with other axes, heads
that do not write what they read, or masks of another form. `check` therefore tries every kind of
site in every layer on two short prompts (`trials`). They are about 8 tokens long, so the check
costs about as much as a few forward passes; it is cached as long as the model stays as it is
(`state`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import SinklensError, UsageError, in_one_line
from ..core.labels import Head
from ..core.protocol import HookedModel
from . import bos_token_id, in_use, look_again, model_state, origin, require_eval_mode
from .agreement import compared, require_one_stack
from .masks import read_masks
from .obstacles import (
    NO_EFFECT,
    attention_layers,
    gated_layers,
    has_experts,
    hidden_values,
    layer_list,
    layers_of,
    meant_shapes,
    obstacles_to_edits,
    require_blocks,
    unreadable_hooks,
)
from .origins import short_prompt
from .state import State
from .trials import has_learned_sinks, is_causal, read_sites

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
    try:
        with model.hooks(fwd_hooks=[(name, lambda activation, hook: None)]):
            return ""
    except ValueError as error:
        return str(error)


@dataclass(frozen=True)
class Capabilities:
    """What sinklens can do on a model.

    Attributes:
        architecture: The Hugging Face class name.
        n_layers: Blocks.
        n_heads: Query heads per block.
        n_key_value_heads: Key-value heads per block.
        attention: The layers with attention, as far as TransformerLens shows it: all of them in
            most models, some in hybrids, none in Mamba.
        edits: By kind of site, whether an intervention there takes effect in every layer that has
            such a site.
        causal: Whether no logit depends on a later token.
        bos: Whether the model has a BOS token.
        windows: By layer, the number of keys a query sees, None where it sees all.
        learned_sinks: Whether attention rows sum to less than 1 (a learned sink takes the rest).
        obstacles: By kind of site why an intervention takes no effect, or would act on something
            else than it means.
        unreadable: By hook point why it cannot be read for what its name says.
        other_masks: By layer the longest prompt that its mask leaves as it is without a window;
            beyond it the mask has another form. None where there is no such length.
        gated: The layers in which a head's output is not its weights times its values.
        experts: Whether TransformerLens shows which experts of a mixture tokens go to.
        hidden_experts: Whether there are experts, and it does not.
        agreement: The largest difference to the logits of the plain Hugging Face model; None where
            they cannot be compared.
        unlike_plain: Whether that is more than rounding: one of the two was edited, or the bridge
            is wrong.
    """

    architecture: str
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    attention: tuple[int, ...]
    edits: dict[str, bool]
    causal: bool
    bos: bool
    windows: tuple[int | None, ...]
    learned_sinks: bool
    obstacles: Mapping[str, str] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    other_masks: tuple[int | None, ...] = ()
    gated: tuple[int, ...] = ()
    experts: bool = False
    hidden_experts: bool = False
    agreement: float | None = None
    unlike_plain: bool = False

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
        hook = hook_name(site, 0).replace("blocks.0", "blocks.*")
        why = self.obstacles.get(site, NO_EFFECT)
        works = ", ".join(name for name, possible in self.edits.items() if possible)
        others = f" Interventions on {works} do work." if works else ""
        beside = f" {instead}" if instead else ""
        return f"{what} needs {hook} to take effect; on {self.architecture} {why}.{others}{beside}"

    def require_readable(self, names: Iterable[Any], what: str) -> None:
        """Refuse hook points that do not hold what their names say.

        Raises:
            SinklensError: The message names the layer, the kind of site and the reason.
        """
        for name in names:
            if isinstance(name, str) and name in self.unreadable:
                raise SinklensError(
                    f"{what} reads {name}; on {self.architecture} {self.unreadable[name]}"
                )

    def layers_of(self, site: str) -> Sequence[int]:
        """The layers that have a kind of site: those with attention for what is in it."""
        return layers_of(site, self.attention, self.n_layers)

    def by_head(self, values: Float[Tensor, "layer head"]) -> dict[Head, float]:
        """Numbers of the layers with attention by layer and head, in that order."""
        rows = zip(self.attention, values.tolist(), strict=True)
        return {(layer, head): one for layer, row in rows for head, one in enumerate(row)}

    def lacking(self, site: str) -> str:
        """Why a kind of site cannot be read in every layer that has it, empty where it can."""
        kinds = (site, "resid_post") if site == "residual" else (site,)
        names = [hook_name(kind, layer) for kind in kinds for layer in self.layers_of(site)]
        return next((self.unreadable[name] for name in names if name in self.unreadable), "")

    def gate(self, what: str, layers: Iterable[int] | None = None) -> str:
        """Why something that goes through A v would be wrong, empty where it would not."""
        wrong = [la for la in self.gated if layers is None or la in layers]
        if not wrong:
            return ""
        return (
            f"{what} takes the output of a head for its attention weights times its values; on "
            f"{self.architecture} it is not in {layer_list(wrong, self.n_layers)} (a gate or a "
            "norm stands between them)"
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
        """How many keys a query sees in prompts of a length, by layer with attention; None for all.

        Raises:
            SinklensError: Some layer has a mask of another form.
        """
        if reason := self.unknown_mask(length):
            raise SinklensError(reason)
        windows = [self.windows[layer] for layer in self.attention]
        return [None if w is None or w >= length else w for w in windows]

    def unknown_mask(self, length: int) -> str:
        """Why it is not known which keys a query sees in prompts of a length, empty where it is."""
        for layer in self.attention:
            most = self.other_masks[layer]
            if most is not None and length > most:
                shorter = f"; use prompts of at most {most} tokens" if most > 1 else ""
                return (
                    f"the attention mask of layer {layer} of {self.architecture} is neither "
                    f"causal, nor full, nor a sliding window in prompts of {length} tokens, and "
                    f"uniform attention under it is not known{shorter}"
                )
        return ""

    def layer_groups(self, length: int) -> list[tuple[str, list[int]]]:
        """All layers with attention, and where windows are short also those with and without one.

        Layers are given by their place among those with attention, as what is read of them.
        """
        windows = self.visible_keys(length)
        layers = list(range(len(windows)))
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
    """Run the model on two prompts, clean and with an intervention on every kind of site."""
    config = getattr(model.original_model, "config", None)  # `boot_native` has none, and no window
    architecture = str(model.cfg.architecture)
    require_one_stack(architecture, config)
    tokens = short_prompt(model)
    n_layers, n_heads = int(model.cfg.n_layers), int(model.cfg.n_heads)
    groups = int(getattr(model.cfg, "n_key_value_heads", None) or n_heads)
    names = {site: [hook_name(site, layer) for layer in range(n_layers)] for site in SITES}
    with torch.no_grad(), warnings.catch_warnings():
        # TransformerLens warns about exactly the interventions that are tested here.
        warnings.simplefilter("ignore", UserWarning)
        read = names | {"resid_post": [hook_name("resid_post", la) for la in range(n_layers)]}
        clean = _read_plainly(model, tokens, read)
        if not bool(torch.isfinite(clean.logits).all()):
            raise SinklensError(
                f"{origin(model).name} gives NaN or infinite logits on plain tokens; its weights "
                "or its dtype are broken"
            )
        shapes = meant_shapes(tokens.shape[1], n_heads, groups, int(model.cfg.d_model))
        require_blocks(architecture, names, clean)
        attention = attention_layers(names, clean)
        unreadable = unreadable_hooks(read, clean, shapes, attention)
        gated = gated_layers(names, clean, unreadable)
        unreadable |= hidden_values(model, tokens, clean, names, gated)
        obstacles = obstacles_to_edits(model, tokens, clean, names, unreadable, attention)
        patterns = [
            None if name in unreadable else clean.held[name].float() for name in names["pattern"]
        ]
        causal = is_causal(clean.logits, patterns)
        masks = read_masks(model, tokens, patterns, config, causal=causal)
        # One that was given may have been edited by its user: then this is said, not refused.
        found = None if origin(model).agreement is not None else compared(model, tokens[:1])
    experts = any(name.endswith("mlp.hook_expert_indices") for name in model.hook_dict)
    learned = has_learned_sinks(patterns, clean.logits.dtype)
    if learned and getattr(model, "compatibility_mode", False):
        raise SinklensError(
            f"{architecture} has learned sinks, and compatibility mode folds value biases as if "
            "attention rows summed to 1, which changes the model; use it without "
            "enable_compatibility_mode()"
        )
    return Capabilities(
        architecture=architecture,
        n_layers=n_layers,
        n_heads=n_heads,
        n_key_value_heads=groups,
        attention=attention,
        edits={site: site not in obstacles for site in SITES},
        causal=causal,
        bos=bos_token_id(model) is not None,
        windows=masks.windows,
        learned_sinks=learned,
        obstacles=obstacles,
        unreadable=unreadable,
        other_masks=masks.others,
        gated=gated,
        experts=experts,
        hidden_experts=not experts and has_experts(model.original_model),
        agreement=found.difference if found else origin(model).agreement,
        unlike_plain=found is not None and not found.rounding,
    )


def _read_plainly(model: HookedModel, tokens: Int[Tensor, "2 pos"], read: Any) -> Any:
    """What a forward pass without an edit holds.

    Raises:
        SinklensError: It fails, as by a hook of the user's own that is called in another way.
    """
    try:
        return read_sites(model, tokens, read)
    except (SinklensError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise SinklensError(
            f"{origin(model).name} fails on two prompts of {tokens.shape[1]} plain tokens: "
            f"{in_one_line(error)}; look at hooks of your own that it carries"
        ) from error
