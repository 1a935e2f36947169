"""Whether the caller has hooks of their own on a model, which shortcuts would pass by or repeat.

They belong to the model as the caller sees it. TransformerLens wires some families with permanent
hooks, and libraries wrap modules; those are part of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..protocol import HookedModel

_LIBRARIES = ("transformer_lens.", "transformers.", "accelerate.", "torch.")


def has_own_hooks(model: HookedModel) -> bool:
    """Whether the caller has left hooks on the model, TransformerLens's or PyTorch's.

    They belong to the model as the caller sees it, and may sit where a shortcut would pass by or
    have them act twice; such a model gets whole forwards, one for each intervention. So does one
    with a block or an attention whose `forward` the caller has replaced. TransformerLens wires some
    families with permanent hooks of its own, which are part of the model.
    """
    handles = [
        handle
        for point in model.hook_dict.values()
        for handle in (*point.fwd_hooks, *point.bwd_hooks)
    ]
    wired = all(
        handle.is_permanent and _home(handle.user_hook).startswith("transformer_lens.")
        for handle in handles
    )
    return not wired or any(map(_is_altered, _modules(model)))


def _modules(model: HookedModel) -> Iterator[Any]:
    """Every module of the bridge and of the model that it wraps."""
    for whole in (model, model.original_model):
        if isinstance(whole, torch.nn.Module):
            yield from whole.modules()


def _is_altered(module: Any) -> bool:
    """Whether a module carries PyTorch hooks that no library wired, or a `forward` of its own.

    Hook points have their hooks from TransformerLens, which knows whose they are. What libraries
    replace lies in the modules that the bridge wraps and acts in every way of running them.
    """
    from transformer_lens.hook_points import HookPoint
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    if isinstance(module, HookPoint):
        return False
    if isinstance(module, GeneralizedComponent) and "forward" in module.__dict__:
        return True
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return not all(_home(hook).startswith(_LIBRARIES) for hook in hooks)


def _home(function: Any) -> str:
    """The module that a hook function comes from."""
    return str(getattr(getattr(function, "func", function), "__module__", ""))
