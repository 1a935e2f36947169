"""The norms of a model's blocks: where their outputs are, and their gain and bias."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.errors import SinklensError
from ...core.protocol import HookedModel
from ...models.capabilities import hook_name

NORMS = ("ln1", "ln2")
WAVE = 1000.0  # an input beside which the epsilon of a norm is within rounding error


def norm_hooks(model: HookedModel, norms: Sequence[str]) -> list[str]:
    """The outputs of the norms that blocks have; a model whose blocks have none is refused."""
    layers = range(int(model.cfg.n_layers))
    names = [hook_name(f"{norm}.hook_out", layer) for layer in layers for norm in norms]
    if not (present := [name for name in names if name in model.hook_dict]):
        raise SinklensError(
            f"outlier_dimensions reads the blocks' norms {' and '.join(norms)}; "
            f"{model.cfg.architecture} has none. massive_activations reads the residual stream"
        )
    return present


def norm_parameters(model: HookedModel, hooks: Sequence[str]) -> Float[Tensor, "2 norm channel"]:
    """Gain and bias of norms, from what they make of a wave of +1 and -1 and of its negative.

    Its mean is 0 and its mean square 1 up to a factor, so that a norm returns gain * wave + bias,
    whatever it stores (Gemma's holds gain - 1). A norm without bias is odd: it has exactly 0.
    """
    wave = torch.ones(int(model.cfg.d_model), dtype=model.cfg.dtype, device=model.cfg.device)
    wave[1::2] = -1
    both, paths = WAVE * torch.stack([wave, -wave])[None], [name.split(".")[1:3] for name in hooks]
    modules = [getattr(model.blocks[int(layer)], norm) for layer, norm in paths]
    with torch.no_grad():
        up, down = torch.stack([norm(both)[0] for norm in modules], 1).double().cpu()
    return torch.stack([(up - down) / 2 * wave.double().cpu(), (up + down) / 2])
