"""Contrasts read treatment and control at the same queries, held against plain forward passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sinklens
from sinklens.hooks import replace_bos_embedding
from sinklens.models.prompts import Prompts

DRAWS = 3


def losses(model: Any, prompts: Prompts, hooks: Any = ()) -> Tensor:
    """`[prompt, pos]`, the loss of each next-token prediction."""
    with torch.no_grad():
        logits = model.run_with_hooks(prompts.tokens, fwd_hooks=list(hooks))
    rows = logits[:, :-1].log_softmax(-1).gather(-1, prompts.tokens[:, 1:, None])
    return -rows[..., 0]


def held_to_plain_forwards(model: Any, prompts: Prompts, condition: str) -> None:
    result = sinklens.run(
        "bos_replacement",
        model,
        prompts,
        conditions=(condition,),
        metrics=("loss",),
        draws=DRAWS,
        progress=False,
    )
    positions = result.draws["control_positions"]
    clean = losses(model, prompts)
    own, control = [], []
    for draw, at in enumerate(positions):
        of_bos, of_later = (
            replace_bos_embedding(model, condition, position=place, draw=draw) for place in (0, at)
        )
        difference = losses(model, prompts, of_bos.fwd_hooks) - clean
        own.append(difference[:, at + 1 :].mean(1))
        later = losses(model, prompts, of_later.fwd_hooks) - clean
        control.append(later[:, at + 1 :].mean(1))
    contrast = result.find(metric="loss", kind="contrast")
    assert contrast.value == pytest.approx(float(torch.stack(own).mean()), abs=1e-5)
    assert contrast.baseline == pytest.approx(float(torch.stack(control).mean()), abs=1e-5)
    of_draws = (torch.stack(own) - torch.stack(control)).double().numpy()
    by_prompt = of_draws.mean(0)
    error = by_prompt.std(ddof=1) / np.sqrt(len(by_prompt))
    assert contrast.ci_high - contrast.effect >= 1.9 * error  # and the draws beside


@pytest.mark.parametrize("condition", ["zero", "gaussian"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
def test_bos_replacement(name: str, condition: str, boot_family: Callable[[str], Any]) -> None:
    model = boot_family(name)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(4, int(model.cfg.d_vocab), (6, 20), generator=generator)
    tokens[:, 0] = sinklens.models.bos_token_id(model)
    held_to_plain_forwards(model, Prompts(tokens, bos=True, source="random"), condition)


@pytest.mark.heavy
def test_bos_replacement_on_smollm2(smollm2_gguf: Path) -> None:
    model = sinklens.load(smollm2_gguf)
    held_to_plain_forwards(model, sinklens.prompts(model, n=4, length=32), "zero")
