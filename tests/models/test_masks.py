"""Which keys a query sees: what `check` says, beside the weights that plain Hugging Face gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

import sinklens
from sinklens.functional.graphs import visible_keys
from sinklens.models import masks
from sinklens.models.capabilities import check
from tests import families, odd_models
from tests.odd_models import LAYERS, decoder
from tests.reference import plain_attention

WINDOW = 10  # longer than the prompts that `check` runs
TOKENS = torch.arange(2 * (WINDOW + 4)).reshape(2, -1) + 8
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]


def _named(kind: str, text: str = "", **more: Any) -> PreTrainedModel:
    """A model whose config names a window."""
    config = getattr(transformers, f"{kind}{text}Config")(**decoder(sliding_window=WINDOW, **more))
    return families.random_model(getattr(transformers, f"{kind}ForCausalLM"), config)


def _gpt_neo() -> PreTrainedModel:
    """It makes its masks when it is made."""
    config = transformers.GPTNeoConfig(
        **families.ids(),
        num_layers=LAYERS,
        num_heads=families.N_HEADS,
        hidden_size=families.D_MODEL,
        max_position_embeddings=128,
        attention_types=[[["local", "global", "local"], 1]],
        window_size=WINDOW,
    )
    return families.random_model(transformers.GPTNeoForCausalLM, config)


EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MODELS: dict[str, tuple[Callable[[], PreTrainedModel], list[int | None]]] = {
    "Gemma 3": (partial(_named, "Gemma3", "Text", layer_types=LAYER_TYPES), [WINDOW, None, WINDOW]),
    "Ministral 3": (partial(_named, "Ministral3", layer_types=LAYER_TYPES), [WINDOW] * LAYERS),
    "MiniMax M2": (partial(_named, "MiniMaxM2", **EXPERTS), [None] * LAYERS),
    "Seed OSS": (partial(_named, "SeedOss"), [None] * LAYERS),
    "GPT-Neo": (_gpt_neo, [WINDOW, None, WINDOW]),
}
"""Models, and the windows that they have in truth."""


@pytest.mark.parametrize("name", MODELS)
def test_windows_that_no_short_prompt_shows_are_those_of_plain_attention(name: str) -> None:
    """Some classes pass over what their config says."""
    make, windows = MODELS[name]
    length = TOKENS.shape[1]
    for one, window in zip(plain_attention.attention(make(), TOKENS), windows, strict=True):
        assert torch.equal(one.seen, visible_keys(length, window=window))
    assert check(sinklens.load(make())).visible_keys(length) == windows


@pytest.mark.parametrize("make", [odd_models.chunked, odd_models.glm_moe_dsa])
@pytest.mark.parametrize("size", [4, WINDOW])
def test_masks_of_another_form_are_known_up_to_their_size(make: Any, size: int) -> None:
    usual = visible_keys(size + 1)
    shown = plain_attention.attention(make(size), TOKENS[:1, : size + 1])
    assert not torch.equal(shown[0].seen, usual)
    found = check(sinklens.load(make(size)))
    assert found.unknown_mask(size) == ""
    assert f"use prompts of at most {size} tokens" in found.unknown_mask(size + 1)


def test_windows_that_cannot_be_shown_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "LONGEST", WINDOW - 1)
    found = check(sinklens.load(MODELS["MiniMax M2"][0]()))
    assert found.visible_keys(WINDOW) == [None] * LAYERS
    assert f"use prompts of at most {WINDOW} tokens" in found.unknown_mask(WINDOW + 1)


def test_of_two_sizes_in_a_config_neither_hides_a_window() -> None:
    make, windows = MODELS["GPT-Neo"]
    for name, size in (("index_topk", 2000), ("attention_chunk_size", WINDOW + 2)):
        plain = make()
        setattr(plain.config, name, size)
        assert check(sinklens.load(plain)).windows == tuple(windows), name


@pytest.mark.parametrize("size", [8, WINDOW, 13])
def test_picked_keys_are_never_taken_for_a_window(size: int) -> None:
    for seed in range(4):
        plain = odd_models.glm_moe_dsa(size)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in plain.model.layers.parameters():
                if weight.ndim > 1:
                    weight.normal_(0, families.WEIGHT_STD, generator=generator)
        assert check(sinklens.load(plain)).windows == (None,) * LAYERS


def test_a_config_that_another_model_has_too_is_never_changed() -> None:
    """Another thread may run that model."""
    plain = MODELS["Gemma 3"][0]()
    config, model = plain.config, sinklens.load(plain)
    before, during = config.to_dict(), []
    handle = plain.register_forward_pre_hook(lambda *_: during.append(config.sliding_window))
    check(model)
    handle.remove()
    assert set(during) == {WINDOW} and config.to_dict() == before


def test_configs_come_back_where_the_trial_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = MODELS["Gemma 3"][0]()
    model = sinklens.load(plain)
    before = [part.config for part in plain.modules() if hasattr(part, "config")]

    def fails(*_: Any) -> None:
        assert plain.config.sliding_window == masks.SMALL
        raise RuntimeError("no room")

    monkeypatch.setattr(masks, "_with_even_scores", fails)
    with pytest.raises(RuntimeError, match="no room"):
        check(model)
    after = [part.config for part in plain.modules() if hasattr(part, "config")]
    assert all(one is other for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("name", "windows"), [("mistral", (4, 4)), ("gemma2", (4, None, 4)), ("llama", (None, None))]
)
@pytest.mark.parametrize("guess", [None, 3])
def test_the_mask_is_read_where_the_config_is_not_known(
    name: str, windows: tuple[int | None, ...], guess: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "_named", lambda config, n_layers: [(guess, None)] * n_layers)
    assert check(families.boot(name)).windows == windows
