"""The contrasts of models that were never trained, beside which those of a model are judged.

Position 0 is upstream of all others: on random weights its replacement changes predictions more
than that of a later position does, and attention to it follows from its own key. A contrast of a
measure without sign (KL), or of one that is about position 0 itself (sink mass), so differs from 0
without anything that training made. The same comparisons are run on models of the same
configuration with fresh weights, each on a few prompts, and the contrast c is judged by its
distance from theirs, c_1 to c_K:

    t = (c - mean(c_k)) / sqrt(error^2 + (1 + 1/K) variance(c_k))

For a measure without sign c is the logarithm of the ratio of treatment to control, since KL grows
with the scale of weights. Fresh weights are Hugging Face's initialisation: a model made from other
scales can differ from it for that reason alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..core.errors import SinklensError
from ..core.protocol import HookedModel
from ..core.seeds import content_seed, seeded
from ..engine.shortcuts import Shortcuts, assume_shortcuts, shortcuts
from ..models import in_use
from ..models.capabilities import Capabilities, assume_capabilities, check
from ..models.prompts import Prompts
from ..models.random_weights import random_twin
from ..results.estimates import RANDOM_MODELS
from ..stats.effects import Row
from ..stats.models import OfModels
from .compare import ContrastKey

PROMPTS = 2
"""On how many prompts each model is run; what differs between models is the larger part."""


def few_prompts(prompts: Prompts, seed: int) -> Int[Tensor, " chosen"]:
    """The numbers of the prompts that the models are run on, whatever the order of prompts."""
    keys = [content_seed(torch.tensor(row), seed) for row in prompts.rows()]
    return torch.tensor(sorted(range(len(prompts)), key=keys.__getitem__)[:PROMPTS])


def random_contrasts(
    model: HookedModel,
    count: int,
    seed: int,
    contrasts: Callable[[HookedModel], Mapping[ContrastKey, float]],
) -> tuple[dict[ContrastKey, OfModels], str]:
    """The contrasts of several models with random weights, or the reason why there are none.

    Args:
        model: The model whose configuration they have.
        count: How many.
        seed: Seed of their weights.
        contrasts: Runs the comparisons on one of them.
    """
    found: defaultdict[ContrastKey, list[float]] = defaultdict(list)
    tried: tuple[Capabilities, Shortcuts] | None = None
    for number in range(count):
        weights = int(seeded(seed, "null_model", number).integers(2**31))
        try:
            twin, reason = random_twin(model, None, weights)
            if twin is None:
                return {}, reason
            tried = tried or (check(twin), shortcuts(twin))  # the next differ in weights alone
            assume_capabilities(twin, tried[0])
            assume_shortcuts(twin, tried[1])
            with in_use(twin):  # as it is, which is then asked for once
                for key, contrast in contrasts(twin).items():
                    found[key].append(contrast)
        except SinklensError as error:
            return {}, str(error)
    arrays = {key: np.asarray(values) for key, values in found.items()}
    return {k: v for k, v in arrays.items() if len(v) == count and np.isfinite(v).all()}, ""


def judged_note(rows: Sequence[Row], prompts: int) -> list[str]:
    """What tested the differences that were judged by models with random weights, if some were.

    Args:
        rows: The rows of a result.
        prompts: The number of prompts of the run.
    """
    models = {
        r.effect.n_prompts for r in rows if f"{r.effect.against}".startswith(f"{RANDOM_MODELS}:")
    }
    few = min(PROMPTS, prompts)
    return [
        f"Differences that stand beside those of random weights are tested against {count} models "
        f"of the same configuration with random weights, on {few} prompt{'s' * (few != 1)} each, "
        "by a t-test (for KL on the logarithm of treatment over control), the others by sign flips."
        for count in sorted(models)
    ]
