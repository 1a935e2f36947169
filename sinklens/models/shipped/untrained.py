"""The weights that training starts from: drawn from a configuration and a seed, not stored.

Another version of torch or transformers may draw others; `fingerprint` tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

SINUSOID_SIZE = 0.03  # root mean square; that of BERT's other embeddings is 0.02


def start_from_sinusoids(model: Any) -> None:
    """Start BERT's learned positions from the sinusoids of Vaswani et al. 2017 (1706.03762).

    A masked token says nothing, so that little can be learned before some head finds a neighbour,
    and random positions have no neighbours: with them the loss on training text was 5.35 after
    4,000 steps (frequencies alone give 5.47), from sinusoids 3.48.
    """
    positions = model.bert.embeddings.position_embeddings.weight
    count, width = positions.shape
    frequencies = 10000 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(count)[:, None] * frequencies
    with torch.no_grad():
        positions.copy_(SINUSOID_SIZE * math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], 1))


FIRST_WEIGHTS: dict[str, Callable[[Any], None]] = {"start_from_sinusoids": start_from_sinusoids}
"""What can change the weights that transformers draws, by the name that cards give it."""


def untrained_model(
    config: PretrainedConfig, seed: int, first_weights: str | None = None
) -> PreTrainedModel:
    """The untrained model of a configuration, the same for the same seed.

    Args:
        config: Its architecture is a class of transformers.
        seed: Decides the weights.
        first_weights: The entry of `FIRST_WEIGHTS` that changes them; by default they stay as
            transformers draws them.
    """
    import transformers

    model_class = getattr(transformers, config.architectures[0])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone, and put back
        model: PreTrainedModel = model_class._from_config(config)
    if first_weights is not None:
        FIRST_WEIGHTS[first_weights](model)
    return model


def fingerprint(model: PreTrainedModel) -> float:
    """A number that tells some weights from any others: their sum, each times cos(its number).

    Another way of drawing first weights moves it by about 10, another processor by rounding.
    """
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).double()
    return float(weights @ torch.arange(len(weights), dtype=torch.float64).cos())


def save_weights(model: PreTrainedModel, file: Path) -> None:
    """Write the weights as fp16 safetensors, tied tensors once."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.to(torch.float16).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
