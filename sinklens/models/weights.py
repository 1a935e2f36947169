"""Weights of a model, wherever they are: in memory, on several devices, or offloaded.

A model that was loaded with a device map can have weights that accelerate keeps on the CPU or on
disk and puts in place only while their module runs; until then they are on the device `meta`,
which holds no values. What reads weights outside of a forward pass reads them here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.errors import SinklensError
from ..core.protocol import HookedModel
from ..functional.quadratic_form import GatedWeights
from .trials import relative_room

Projection = Literal["W_Q", "W_K", "W_O"]


@contextmanager
def in_memory(module: torch.nn.Module) -> Iterator[None]:
    """Put the weights of a module and all below it in place for the length of a `with` block."""
    from accelerate.utils import align_module_device

    with ExitStack() as placed:
        for part in module.modules():
            placed.enter_context(align_module_device(part))
        yield


def projection(model: HookedModel, layer: int, name: Projection) -> Tensor:
    """A projection of an attention layer, `[head, d_model, d_head]`; `W_O` is transposed.

    Raises:
        SinklensError: There is none, or the layer computes with something else: a module of the
            user's own around it, such as an adapter or a gate.
    """
    attention: Any = model.blocks[layer].attn
    with in_memory(attention), torch.no_grad():
        try:
            weight: Tensor = getattr(attention, name).detach()
        except (AttributeError, NotImplementedError) as error:
            raise SinklensError(
                f"layer {layer} of {model.cfg.architecture} has no {name} that TransformerLens can "
                "reach; sink_profile and bos_replacement read no weights"
            ) from error
        if not _is_computed_with(attention, name, weight):
            raise SinklensError(
                f"layer {layer} of {model.cfg.architecture} projects by something else than its "
                f"{name} (an adapter or another module around it); sink_profile and "
                "bos_replacement read no weights"
            )
        return weight


def _is_computed_with(attention: Any, name: Projection, weight: Tensor) -> bool:
    """Whether the module of a projection multiplies with a weight."""
    if weight.ndim != 3:
        return True
    by_input = weight.flatten(0, 1) if name == "W_O" else weight.transpose(0, 1).flatten(1)
    return _multiplies_with(getattr(attention, name[-1].lower(), None), by_input)


def _multiplies_with(bridge: Any, weight: Float[Tensor, "d_in d_out"]) -> bool:
    """Whether what a module puts out changes with its input by a weight, tried on two vectors.

    Also where that cannot be tried: there is no such module, it takes other sizes, or it puts out
    more beside. Hooks on the module take part.
    """
    if bridge is None:
        return True
    vectors = torch.randn(2, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    expected = (vectors[1] - vectors[0]) @ weight
    try:
        outputs = bridge(vectors[None])
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError):  # a module that takes more, or other sizes
        return True
    except Exception:  # a hook that meets what it does not expect
        return False
    if outputs.shape[-1] != len(expected):  # a gate or values beside it
        return True
    difference = (outputs[0, 1] - outputs[0, 0] - expected).abs().max()
    return float(difference) <= relative_room(weight.dtype) * float(expected.abs().max())


def gated_weights(model: HookedModel, layer: int) -> GatedWeights | None:
    """The weights of one block's MLP; None where it is not a single gated MLP.

    Nor is it one whose modules compute with something else than these weights.
    """
    mlp: Any = getattr(model.blocks[layer], "mlp", None)
    if mlp is None:
        return None
    parts = []
    with in_memory(mlp), torch.no_grad():
        for name in ("gate", "in", "out"):
            weight = getattr(mlp, f"W_{name}", None)
            if not isinstance(weight, Tensor) or weight.ndim != 2:
                return None
            if not _multiplies_with(getattr(mlp, name, None), weight):
                return None
            parts.append(weight.detach().double().cpu())
    return GatedWeights(*parts)


def stored_weights(model: HookedModel) -> Iterator[tuple[str, Tensor]]:
    """Every weight and buffer by name, in alphabetical order, one in memory at a time."""
    from accelerate.utils import align_module_device

    original = model.original_model
    for name in sorted(weights := original.state_dict()):
        if not weights[name].is_meta:
            yield name, weights[name]
            continue
        place, _, leaf = name.rpartition(".")
        module = original.get_submodule(place)
        with align_module_device(module):
            yield name, module.state_dict()[leaf]


def is_offloaded(model: HookedModel) -> bool:
    """Whether some weights are in memory only while their module runs."""
    return any(weight.is_meta for weight in model.original_model.parameters())


def devices(model: HookedModel) -> list[str]:
    """Where the weights are kept, as the device map says it; the model's one device without one."""
    placed = getattr(model.original_model, "hf_device_map", None) or {"": model.cfg.device}
    return sorted({f"cuda:{at}" if isinstance(at, int) else str(at) for at in placed.values()})
