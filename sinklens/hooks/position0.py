"""Patch position 0 inside the model: its residual stream, key or value at one layer.

Conditions, and what is written at position 0 of layer l:

- `other_token`: the value for another first token. Since position 0 of a causal model attends only
  to itself, this is the value in a prompt of length 1;
- `mean_token`: the mean over 256 ordinary tokens, each run as a prompt of length 1;
- `zero`;
- `rescaled` (residual only): own direction, mean norm of positions >= 1 at that layer;
- `redirected` (residual only): a random direction, own norm.

`part="residual"` patches the residual stream that enters block l, and with it the position's own
later trajectory. `key` and `value` write that layer's `hook_k` / `hook_v` at position 0 only; they
act on whole key-value groups, and query 0's own output is restored.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import SinklensError, UsageError, unknown_name
from ..core.protocol import HookedModel
from ..core.seeds import seeded
from ..models import bos_token_id, ordinary_tokens
from ..models.capabilities import check, hook_name
from ..probes.positions import first_token_values
from .intervention import (
    FwdHooks,
    Intervention,
    redirect_position,
    replace_position,
    rescale_position,
    restore_position,
)

POSITION0_CONDITIONS = ("other_token", "mean_token", "zero", "rescaled", "redirected")
RESIDUAL_ONLY = ("rescaled", "redirected")
PARTS = ("residual", "key", "value")
MEAN_TOKENS = 256


def patch_position0(
    model: HookedModel,
    layer: int,
    with_: str = "other_token",
    *,
    part: str = "residual",
    values: Tensor | None = None,
    own_output: Float[Tensor, "prompt n_heads d_head"] | None = None,
    position: int = 0,
    seed: int = 0,
    draw: int | None = None,
) -> Intervention:
    """Patch position 0 at one layer, or a later position as a control.

    Args:
        model: A causal model.
        layer: The block whose input, keys or values are patched.
        with_: `other_token`, `mean_token`, `zero`, `rescaled` or `redirected`.
        part: `residual`, `key` or `value`.
        values: What is written, `[...]` for all prompts alike or `[prompt, ...]`; for `rescaled`
            the new norm. By default `other_token` takes one seeded ordinary token for all prompts
            and `mean_token` the mean over `MEAN_TOKENS` of them; `rescaled` needs it.
        own_output: For `key` and `value`: the output of the patched position's own query,
            `hook_z[:, position]` of a clean run (`PositionValues`). By default that of BOS.
        position: The patched position.
        seed: Seed of tokens and directions.
        draw: The number of the draw, for `redirected`.

    Raises:
        UsageError: There is no such condition, part or layer, or values are missing.
        SinklensError: The model is not causal.
    """
    require_patch(model, layer, with_, part)
    name = hook_name(part, layer)
    if with_ == "redirected":
        random = seeded(seed, "redirected", layer, draw)
        direction = torch.from_numpy(random.standard_normal(int(model.cfg.d_model)))
        hooks: FwdHooks = [
            (name, partial(redirect_position, direction=direction, position=position))
        ]
        return _intervention(hooks, with_, part, layer, position, draw or 0)
    if with_ == "rescaled":
        if values is None:
            raise UsageError(
                "rescaled needs values=, the norm to give: the mean over prompts of "
                f"sinklens.probes.ResidualNorms(model).compute().others[:, {layer}]"
            )
        norm = float(values)
        return _intervention(
            [(name, partial(rescale_position, norm=norm, position=position))],
            with_,
            part,
            layer,
            position,
            draw,
        )
    if values is None:
        values = _default_values(model, layer, with_, part, seed)
    if part != "residual" and own_output is None:
        own_output = _bos_output(model, layer)
    bind = partial(
        _write_hooks,
        name=name,
        z_name=hook_name("z", layer),
        values=values,
        shape_rank=1 if part == "residual" else 2,
        own_output=own_output,
        position=position,
    )
    return _intervention(bind(None), with_, part, layer, position, draw, bind)


def require_patch(model: HookedModel, layer: int, with_: str, part: str) -> None:
    """Refuse a patch that does not exist.

    Args:
        model: The model.
        layer: The block.
        with_: What is written, as in `patch_position0`.
        part: `residual`, `key` or `value`.

    Raises:
        UsageError: There is no such condition, part or layer.
        SinklensError: The model is not causal, or the part cannot be edited.
    """
    if with_ not in POSITION0_CONDITIONS:
        raise unknown_name("condition", with_, POSITION0_CONDITIONS)
    if part not in PARTS:
        raise unknown_name("part", part, PARTS)
    if part != "residual" and with_ in RESIDUAL_ONLY:
        raise UsageError(
            f"{with_} applies to the residual stream only; part={part!r} takes other_token, "
            "mean_token and zero"
        )
    if not check(model).causal:
        raise SinklensError(
            "patch_position0 needs a causal model, in which position 0 attends only to itself; on "
            f"{model.cfg.architecture} use replace_bos_embedding or ablate_heads"
        )
    if not 0 <= layer < model.cfg.n_layers:
        raise UsageError(f"there is no layer {layer}: this model has {model.cfg.n_layers}")
    check(model).require(part, f"{with_}:{part}")
    check(model).require_readable([hook_name(part, layer)], f"{with_}:{part}")


def _intervention(
    hooks: FwdHooks,
    with_: str,
    part: str,
    layer: int,
    position: int,
    draw: int | None,
    bind: partial[FwdHooks] | None = None,
) -> Intervention:
    """The intervention made of some hooks."""
    return Intervention(
        name=f"{with_}:{part}",
        site=part,
        first_layer=layer,
        fwd_hooks=hooks,
        position=position,
        layer=layer,
        draw=draw,
        rebind=bind,
    )


def _write_hooks(
    index: Int[Tensor, " batch"] | None,
    *,
    name: str,
    z_name: str,
    values: Tensor,
    shape_rank: int,
    own_output: Tensor | None,
    position: int,
) -> FwdHooks:
    """The hooks that write values, for some of the prompts."""
    by_prompt = values.ndim > shape_rank and index is not None
    written = values[index] if by_prompt else values
    hooks: FwdHooks = [(name, partial(replace_position, values=written, position=position))]
    if own_output is not None:
        kept = own_output if index is None or len(own_output) == 1 else own_output[index]
        hooks.append((z_name, partial(restore_position, values=kept, position=position)))
    return hooks


def _default_values(model: HookedModel, layer: int, with_: str, part: str, seed: int) -> Tensor:
    """The values that are written by default."""
    if with_ == "zero":
        return torch.zeros(())
    random = seeded(seed, "position0", with_)
    count = MEAN_TOKENS if with_ == "mean_token" else 1
    tokens = torch.from_numpy(random.choice(ordinary_tokens(model).numpy(), count))
    return first_token_values(model, tokens, [part], [layer])[part, layer].mean(0)


def _bos_output(model: HookedModel, layer: int) -> Float[Tensor, "1 n_heads d_head"]:
    """The output of query 0 in a prompt that starts with BOS."""
    bos = bos_token_id(model)
    if bos is None:
        raise UsageError(
            "this model has no BOS, so give own_output=: hook_z of the edited position in a clean "
            "run (sinklens.probes.PositionValues)"
        )
    return first_token_values(model, torch.tensor([bos]), ["z"], [layer])["z", layer]
