"""Where the caller has hooks of their own on a model, which shortcuts would skip or repeat.

They belong to the model as the caller sees it. TransformerLens wires some families with permanent
hooks, and libraries wrap modules; those are part of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..core.protocol import HookedModel

_LIBRARIES = ("sinklens.models.", "transformer_lens.", "transformers.", "accelerate.", "torch.")


def own_hook_points(model: HookedModel) -> list[str]:
    """Where the caller has left hooks on the model, TransformerLens's or PyTorch's.

    They belong to the model as the caller sees it, and may sit where a shortcut would pass by or
    have them act twice; such a model gets whole forwards, one for each intervention. So does one
    with a block or an attention whose `forward` the caller has replaced. TransformerLens wires some
    families with permanent hooks of its own, which are part of the model.
    """
    return list(dict.fromkeys(_altered(model)))


def has_own_hooks(model: HookedModel) -> bool:
    """Whether there are any of `own_hook_points`."""
    return next(_altered(model), None) is not None


def _altered(model: HookedModel) -> Iterator[str]:
    """The names of modules with hooks of the caller's: TransformerLens's, where they have one."""
    from torch.nn.modules import module as torch_module

    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        yield "every module"
    known: Any = model.hook_dict
    usual = {id(point): name for name, point in known.items() if name != point.name}
    seen: set[int] = set()
    for whole in (model, model.original_model):
        if not isinstance(whole, torch.nn.Module):
            continue
        for name, module in whole.named_modules():
            if id(module) not in seen and _is_altered(module):
                yield usual.get(id(module), name or "the model")
            seen.add(id(module))


def _is_altered(module: Any) -> bool:
    """Whether a module carries hooks that no library wired, or a `forward` that none put there.

    Hook points have their hooks from TransformerLens, which knows whose they are; others on them
    are the caller's.
    """
    from transformer_lens.hook_points import HookPoint
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    hooks = {**module._forward_hooks, **module._forward_pre_hooks}
    if isinstance(module, HookPoint):
        handles = (*module.fwd_hooks, *module.bwd_hooks)
        wired = all(
            handle.is_permanent and _home(handle.user_hook).startswith("transformer_lens.")
            for handle in handles
        )
        return not wired or bool(hooks.keys() - {handle.hook.id for handle in handles})
    forward = module.__dict__.get("forward")
    if forward is not None:
        bridge = isinstance(module, GeneralizedComponent)
        if bridge or not _home(forward).startswith(_LIBRARIES):
            return True
    return not all(_home(hook).startswith(_LIBRARIES) for hook in hooks.values())


def _home(function: Any) -> str:
    """The module that a hook function comes from."""
    return str(getattr(getattr(function, "func", function), "__module__", ""))
