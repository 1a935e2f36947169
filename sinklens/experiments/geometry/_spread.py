"""How far a changed token moves later states, clean and while something is done to the sink.

One token in the middle of each prompt is replaced by a random other one, and the states behind it
are compared at every depth. A condition acts on both runs alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...core.protocol import HookedModel
from ...core.seeds import content_seed
from ...engine import forwards_bar, read_under
from ...hooks.bos import replace_bos_embedding
from ...hooks.heads import ablate_heads
from ...hooks.intervention import Intervention
from ...hooks.matching import control_positions
from ...models import ordinary_tokens
from ...models.prompts import Prompts
from ...runner.run import Run
from ._states import Kept, Moved

DROP, MEAN, WITHOUT = "drop_edge", "bos_mean", "without_bos"
CONTROLS = {DROP: "later_key", MEAN: "later_position", WITHOUT: "later_token"}
ONE_WORD = "one_word"


def places(run: Run[Any]) -> list[int]:
    """A later position for each changed token, before it."""
    config = run.config
    count = config.words if config.draws else 0
    return control_positions(run.prompts.length, count, config.seed, config.positions)


def edit(run: Run[Any], model: HookedModel, name: str, place: int) -> Intervention | None:
    """What a condition does at a position; None where it is done to the prompts."""
    if name == DROP:
        layers, heads = run.capabilities.attention, range(run.capabilities.n_heads)
        every = [(layer, head) for layer in layers for head in heads]
        return ablate_heads(model, every, DROP, position=place)
    return replace_bos_embedding(model, "mean", position=place) if name == MEAN else None


def changed(run: Run[Any], position: int, draw: int) -> Prompts:
    """The prompts with another token at a position, whatever their order."""
    ordinary = ordinary_tokens(run.model).numpy()
    tokens = run.prompts.tokens.clone()
    for row in tokens:
        random = np.random.default_rng([content_seed(row, run.config.seed), draw])
        row[position] = int(random.choice(ordinary[ordinary != int(row[position])]))
    return replace(run.prompts, tokens=tokens)


def without(prompts: Prompts, place: int | None) -> Prompts:
    """The prompts without the token at a place."""
    if place is None:
        return prompts
    if place == 0:
        return prompts.without_first()
    left = [at for at in range(prompts.length) if at != place]
    return replace(prompts, tokens=prompts.tokens[:, left])


def _spread(
    run: Run[Any], model: HookedModel, draws: Sequence[int], name: str = "", place: int = 0
) -> Float[Tensor, "draw prompt site 2"]:
    """How far changed tokens move later states, under a condition at a place."""
    position, removed = run.prompts.length // 2, place if name == WITHOUT else None
    after = position - (removed is not None)
    action, last = edit(run, model, name, place), run.capabilities.n_layers - 1
    sizes = {"batch_size": run.config.batch_size, "memory": run.config.memory}

    def read(prompts: Prompts, probe: Kept | Moved) -> Tensor:
        run.count(run.batches())
        prompts = without(prompts, removed)
        with forwards_bar(run.batches(), run.config.progress) as advance:
            found = read_under(model, prompts, action, probe, last_layer=last, **sizes)
            advance(run.batches())
        values: Tensor = found.values
        return values

    kept = read(run.prompts, Kept(model, after))
    moved = [read(changed(run, position, draw), Moved(model, kept, after)) for draw in draws]
    return torch.stack(moved)


def spreads(
    run: Run[Any], model: HookedModel, draws: Sequence[int], *, controls: bool
) -> dict[str, Float[Tensor, "draw prompt site 2"]]:
    """By condition and control; of no condition under `ONE_WORD`."""
    found = {ONE_WORD: _spread(run, model, draws)}
    for name in run.conditions:
        found[name] = _spread(run, model, draws, name)
        placed = zip(draws, places(run), strict=False) if controls else ()
        others = [_spread(run, model, [draw], name, place) for draw, place in placed]
        if others:
            found[CONTROLS[name]] = torch.cat(others)
    return found


def readings(run: Run[Any], twin: bool) -> int:
    """How many readings of all prompts `spreads` takes, with those of a random model."""
    words, controls = run.config.words, 2 * len(places(run))
    own: int = 1 + words + len(run.conditions) * (1 + words + controls)
    return own + 2 * (1 + len(run.conditions)) * twin
