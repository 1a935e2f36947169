"""Replace the BOS embedding.

At the embedding site (`hook_embed`, the output of the embedding, any scaling included) the vector
of position 0 is replaced before the first block. Conditions:

- `mean`: the mean output over the vocabulary;
- `zero`: zeros. With bias-free RMSNorm the residual stream at position 0 then stays at 0 in every
  layer, which no token's does;
- `random_token`: the output for one ordinary token, the same for all prompts;
- `gaussian`: a random direction with the norm of the replaced vector;
- `token:<text>`: the output for one given token.

The matched control is the same intervention at a later position.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import unknown_name
from ..core.protocol import HookedModel
from ..core.seeds import seeded
from ..models import alone, in_use, look_again, ordinary_tokens, weights_hash
from ..models.capabilities import check
from ..models.prompts import single_token
from .intervention import Intervention, redirect_position, replace_position

BOS_CONDITIONS = ("mean", "zero", "random_token", "gaussian", "token:<text>")
_CHUNK = 8192
_means: WeakKeyDictionary[Any, dict[tuple[str, bool, int], Tensor]] = WeakKeyDictionary()


def replace_bos_embedding(
    model: HookedModel,
    with_: str = "mean",
    *,
    position: int = 0,
    seed: int = 0,
    draw: int = 0,
) -> Intervention:
    """Replace the embedding at position 0, or at a later one as a control.

    Args:
        model: The model.
        with_: `mean`, `zero`, `random_token`, `gaussian` or `token:<text>`.
        position: The position whose embedding is replaced.
        seed: With `draw` it determines the token of `random_token` and the direction of `gaussian`.
        draw: The number of the draw.

    Raises:
        UsageError: There is no such condition, or the text is not one token.
        SinklensError: The embedding site does not hold what enters the first block.
    """
    check(model).require("embedding", with_)
    random = seeded(seed, "bos", with_, draw)
    if with_ == "gaussian":
        direction = torch.from_numpy(random.standard_normal(int(model.cfg.d_model)))
        function = partial(redirect_position, direction=direction, position=position)
    else:
        values = _replacement(model, with_, random, position)
        function = partial(replace_position, values=values, position=position)
    return Intervention(
        name=with_,
        site="embedding",
        first_layer=0,
        fwd_hooks=[("hook_embed", function)],
        position=position,
        draw=draw if with_ in ("random_token", "gaussian") else None,
    )


def random_token(model: HookedModel, with_: str, seed: int, draw: int) -> int:
    """The token whose embedding replaces BOS in a draw of `random_token`."""
    return int(seeded(seed, "bos", with_, draw).choice(ordinary_tokens(model).numpy()))


def _replacement(
    model: HookedModel, with_: str, random: Any, position: int
) -> Float[Tensor, " d_model"]:
    """The vector that replaces the BOS embedding."""
    if with_ == "zero":
        return torch.zeros(int(model.cfg.d_model))
    if with_ == "mean":
        return mean_embedding(model, position)
    if with_ == "random_token":
        token = int(random.choice(ordinary_tokens(model).numpy()))
        return embedding_outputs(model, torch.tensor([token]), position)[0]
    if with_.startswith("token:"):
        token = single_token(model, with_.removeprefix("token:"))
        return embedding_outputs(model, torch.tensor([token]), position)[0]
    raise unknown_name("condition", with_, BOS_CONDITIONS)


def mean_embedding(model: HookedModel, position: int = 0) -> Float[Tensor, " d_model"]:
    """The mean output of the embedding site over all rows of the vocabulary.

    Special tokens count, and so do padding rows beyond the tokenizer. Cached until the weights or
    the compatibility mode change: it takes one pass of every token through the embedding.
    """
    look_again(model)
    with in_use(model):
        return _mean_embedding(model, position)


def _mean_embedding(model: HookedModel, position: int) -> Float[Tensor, " d_model"]:
    """The mean of a model in use."""
    place = position if _depends_on_position(model) else 0
    key = (weights_hash(model), bool(getattr(model, "compatibility_mode", False)), place)
    known = _means.setdefault(model, {})
    if key not in known:
        total = torch.zeros(int(model.cfg.d_model), dtype=torch.float64)
        for tokens in torch.arange(int(model.cfg.d_vocab)).split(_CHUNK // (place + 1) + 1):
            total += _outputs_at(model, tokens, place).double().sum(0).cpu()
        known[key] = (total / int(model.cfg.d_vocab)).float()
    return known[key]


@alone
def embedding_outputs(
    model: HookedModel, tokens: Int[Tensor, " token"], position: int = 0
) -> Float[Tensor, "token d_model"]:
    """The output of the embedding site for tokens at a position.

    Runs the model up to its first block, so that scaling, and norms after the embedding, are the
    same as in a forward pass. In families that add positions before the site (BERT) it
    depends on `position`.
    """
    return _outputs_at(model, tokens, position if _depends_on_position(model) else 0)


def _depends_on_position(model: HookedModel) -> bool:
    """Whether the output of the embedding site depends on the position of a token."""
    token = ordinary_tokens(model)[:1]
    first, second = (_outputs_at(model, token, position) for position in (0, 1))
    return not torch.allclose(first, second, atol=1e-6)


def _outputs_at(
    model: HookedModel, tokens: Int[Tensor, " token"], position: int
) -> Float[Tensor, "token d_model"]:
    """Run prompts that repeat each token up to a position, and keep the embedding there."""
    collected: list[Tensor] = []
    prompts = tokens[:, None].expand(-1, position + 1).to(model.cfg.device)
    with torch.no_grad():
        model.run_with_hooks(
            prompts,
            fwd_hooks=[("hook_embed", partial(_keep_position, kept=collected, position=position))],
            stop_at_layer=0,
        )
    return collected[0]


def _keep_position(activation: Tensor, hook: Any, *, kept: list[Tensor], position: int) -> None:
    """Keep the activation of one position."""
    kept.append(activation[:, position].clone())
