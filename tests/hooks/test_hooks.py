"""Hook functions on plain tensors, and makers that refuse what could not act."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sinklens
from sinklens.hooks import ablate_heads, drop_edge, mean_embedding, patch_position0
from tests import families

TOKENS = torch.tensor([[families.BOS, 5, 9, 17, 30, 8], [families.BOS, 7, 30, 12, 6, 40]])
PROMPTS = sinklens.Prompts(TOKENS, bos=True, source="tokens")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_drop_edge_keeps_the_sum_of_a_saturated_row(dtype: torch.dtype) -> None:
    pattern = torch.zeros(1, 1, 3, 3, dtype=dtype)
    pattern[..., 0] = 1
    pattern[0, 0, 2] = torch.tensor([0.99999, 1e-5, 0], dtype=dtype)
    edited = drop_edge(pattern, None, heads=[0])
    assert edited[0, 0, 0].tolist() == [1, 0, 0]  # query 0's own row
    assert edited[0, 0, 1].tolist() == [0, 0, 0]  # nothing was left to scale
    torch.testing.assert_close(edited[0, 0, 2], torch.tensor([0, 1, 0], dtype=dtype))
    # A learned sink takes a share of the row; the rest keeps its own sum.
    partial = torch.tensor([[[[0.5, 0.0], [0.3, 0.3]]]])
    assert drop_edge(partial, None, heads=[0])[0, 0, 1].tolist() == pytest.approx([0, 0.6])


@pytest.mark.parametrize("name", ["opt", "bert"])
@pytest.mark.parametrize("condition", ["drop_edge", "drop_edge_unnormalised"])
def test_an_ignored_edit_is_refused_by_the_engine(
    boot_family: Any, name: str, condition: str
) -> None:
    model = boot_family(name)
    edit = ablate_heads(model, [(0, 0), (1, 2)], condition)
    with pytest.raises(sinklens.SinklensError, match=r"hook_pattern.* does nothing.* z"):
        sinklens.evaluate(model, PROMPTS, [edit], ["kl"], progress=False)


def test_position_0_of_an_encoder_is_not_patched(boot_family: Any) -> None:
    with pytest.raises(sinklens.SinklensError, match="needs a causal model"):
        patch_position0(boot_family("bert"), 0, "other_token")


def test_the_mean_embedding_follows_the_weights() -> None:
    model = families.boot("llama")
    weight = model.original_model.get_input_embeddings().weight
    torch.testing.assert_close(mean_embedding(model), weight.detach().mean(0))
    with torch.no_grad():
        weight.mul_(3)
    torch.testing.assert_close(mean_embedding(model), weight.detach().mean(0))


def test_a_first_token_that_is_not_bos_is_refused(boot_family: Any) -> None:
    prompts = sinklens.Prompts(TOKENS[:, 1:], bos=True, source="tokens")
    with pytest.raises(sinklens.SinklensError, match="bos=True, but start with token"):
        sinklens.run("bos_replacement", boot_family("llama"), prompts, progress=False)
