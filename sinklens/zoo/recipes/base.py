"""What a recipe is, and what all members of the family share.

Width, depth, heads, vocabulary, windows, optimiser and schedule are those of `rope`; a recipe says
where its member differs, by intention and otherwise. Some architectures bring further differences;
`also_differs` then lists them, and a control member that shares some of them may exist.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ...models.shipped.text import BOS, EOS, PAD
from ..corpus import VOCABULARY
from ..tasks import Task, TextWindows

if TYPE_CHECKING:
    from transformers import PretrainedConfig

N_LAYERS, N_HEADS, D_MODEL, D_HEAD, D_MLP = 6, 4, 128, 32, 256
D_MLP_WITHOUT_GATE = 384  # two matrices of this width have as many parameters as three of `D_MLP`
CONTEXT = 256
ROPE_THETA = 10_000.0
NORM_EPSILON = 1e-6  # set where an architecture has another default
CHECKPOINTS = (32, 64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True)
class Recipe:
    """How one member of the zoo is trained; together with a seed it determines the weights.

    Attributes:
        name: The shipped name.
        description: One line for `sinklens models`.
        config: Makes the Hugging Face configuration, whose architecture is a class of transformers.
        differs: The one intended difference from `rope`.
        also_differs: What else differs, because the architecture brings it.
        control: The member that shares some of those other differences, if there is one.
        control_shares: Which of them it shares.
        task: The tokens it is trained on.
        steps: Optimiser steps.
        batch_size: Windows per step.
        learning_rate: Peak of the cosine schedule, reached after `warmup` steps; it ends at 0.
        weight_decay: On all parameters, norm gains and biases included.
        warmup: Steps of linear warm-up.
        betas: Of AdamW.
        max_gradient_norm: Gradients are scaled down to this norm.
        first_weights: The entry of `FIRST_WEIGHTS` that changes the untrained model; by default it
            stays as transformers makes it.
        frozen: Endings of the names of parameters that stay as they were initialised.
        checkpoints: Steps whose weights are kept besides the last.
        seeds: The seeds that are shipped; checkpoints are those of the first.
    """

    name: str
    description: str
    config: Callable[[], PretrainedConfig]
    differs: str
    also_differs: tuple[str, ...] = ()
    control: str | None = None
    control_shares: str = ""
    task: Task = field(default_factory=TextWindows)
    steps: int = 4000
    batch_size: int = 32
    learning_rate: float = 4e-3
    weight_decay: float = 0.5
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.999)
    max_gradient_norm: float = 1.0
    first_weights: str | None = None
    frozen: tuple[str, ...] = ()
    checkpoints: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)

    def digest(self) -> str:
        """A digest of what determines a run of this recipe; its descriptions do not count.

        It sees settings, not code: of `first_weights` the name, of the task its description.
        """
        words = {"description", "differs", "also_differs", "control", "control_shares", "seeds"}
        parts = {
            part.name: getattr(self, part.name)
            for part in fields(self)
            if part.name not in words | {"config", "task"}
        }
        parts["config"] = self.config().to_dict() | {"transformers_version": None}
        parts["task"] = self.task.description
        content = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def token_ids() -> dict[str, int]:
    """Vocabulary and special tokens, which are distinct: a BOS that pads has a zero embedding."""
    return {
        "vocab_size": VOCABULARY,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }


def llama_shape() -> dict[str, Any]:
    """The arguments that configurations of Llama's kind share."""
    return {
        **token_ids(),
        "hidden_size": D_MODEL,
        "intermediate_size": D_MLP,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "num_key_value_heads": N_HEADS,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        "use_cache": False,
    }
