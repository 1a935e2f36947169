"""Every way to load a model gives the same logits as plain Hugging Face."""

from __future__ import annotations

import copy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

import sinklens
from sinklens.models import bos_token_id, load_like, ordinary_tokens, weights_hash
from tests import families

pytestmark = pytest.mark.slow

TOKENS = torch.tensor([[families.BOS, 5, 9, 17, 30]])


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out = model(TOKENS)
    return out if isinstance(out, torch.Tensor) else out.logits


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_a_folder_and_an_object(tmp_path: Path, name: str, with_tokenizer: bool) -> None:
    plain = families.FAMILIES[name]()
    expected = _logits(plain)
    plain.save_pretrained(tmp_path)
    tokenizer = families.tiny_tokenizer() if with_tokenizer else None
    if tokenizer is not None:
        tokenizer.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    folder = sinklens.load(tmp_path)
    taken_over = sinklens.load(copy.deepcopy(plain).train(), tokenizer=tokenizer)
    assert torch.equal(torch.get_rng_state(), state)
    for model, kind in ((folder, "folder"), (taken_over, "hugging_face")):
        torch.testing.assert_close(_logits(model), expected, atol=1e-5, rtol=0)
        assert sinklens.origin(model).kind == kind
        assert not model.training and not model.original_model.training
        assert bos_token_id(model) == families.BOS
        assert not set(ordinary_tokens(model).tolist()) & {families.PAD, families.BOS, families.EOS}
    if tokenizer is None:
        with pytest.raises(sinklens.SinklensError, match="no tokenizer"):
            sinklens.prompts(folder, "some text", n=1, length=2)
        prompts = sinklens.Prompts(TOKENS.repeat(2, 2), bos=True, source="tokens")
        assert sinklens.run("sink_profile", folder, prompts, progress=False).effects


def test_a_bridge_passes_untouched(boot_family: Any) -> None:
    bridge = boot_family("llama")
    assert sinklens.load(bridge) is bridge
    with pytest.raises(sinklens.SinklensError, match="need a name"):
        sinklens.load(bridge, step=3)


def test_another_model_is_loaded_in_the_same_dtype() -> None:
    half = sinklens.load("rope", dtype="bfloat16")
    early = load_like(half, "rope", step=32)
    assert {p.dtype for p in early.original_model.parameters()} == {torch.bfloat16}
    assert sinklens.origin(early).step == 32 and early.cfg.device == half.cfg.device


def test_the_hash_follows_the_weights() -> None:
    model = families.boot("llama")
    before = weights_hash(model)
    assert before == weights_hash(families.boot("llama")) == weights_hash(model)
    with torch.no_grad():
        next(iter(model.original_model.parameters())).add_(1e-3)
    assert weights_hash(model) != before


def test_weights_that_are_put_in_the_place_of_others_are_seen() -> None:
    """None of these counts as writing in place."""
    model = families.boot("llama")
    norm = model.original_model.model.norm
    seen = [weights_hash(model)]
    norm.weight = torch.nn.Parameter(2 * norm.weight)
    seen.append(weights_hash(model))
    state = {name: 3 * weight for name, weight in model.original_model.state_dict().items()}
    model.original_model.load_state_dict(state, assign=True)
    seen.append(weights_hash(model))
    model.original_model.to(torch.float64)
    seen.append(weights_hash(model))
    assert len(set(seen)) == 4


def test_a_gguf_file_is_converted_once(
    smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sinklens.models.gguf.convert_gguf(smollm2_gguf)
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert sinklens.models.gguf.convert_gguf(smollm2_gguf) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written


def test_capabilities_are_tried_once_for_each_mode() -> None:
    model = families.boot("gpt2")
    raw = sinklens.check(model)
    assert sinklens.check(model) is raw
    model.enable_compatibility_mode()
    assert sinklens.check(model) is not raw


def _native(**settings: Any) -> Any:
    """A model that TransformerLens makes by itself: no Hugging Face config, no tokenizer."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_native(
        TransformerBridgeConfig(
            d_model=16,
            d_head=4,
            n_layers=2,
            n_ctx=32,
            n_heads=4,
            d_vocab=40,
            d_mlp=32,
            act_fn="gelu",
            seed=0,
            **settings,
        )
    )
    return model.eval()


@pytest.mark.skipif(
    version("transformer-lens").startswith("3."),
    reason="TransformerLens 3 shows other hook points of models without a Hugging Face config",
)
@pytest.mark.parametrize(
    "settings", [{}, {"positional_embedding_type": "rotary", "n_key_value_heads": 2}]
)
def test_a_model_without_a_hugging_face_config(settings: Any) -> None:
    model = _native(**settings)
    found = sinklens.check(model)
    assert found.edits["pattern"] and found.edits["residual"] and not found.edits["scores"]
    assert found.causal and not found.bos and found.windows == (None, None)
    assert ordinary_tokens(model).tolist() == list(range(40))
    prompts = sinklens.random_prompts(model, n=3, length=8, bos=False)
    scores = sinklens.sink_scores(model, prompts.tokens)
    patterns: list[torch.Tensor] = []
    with torch.no_grad():
        model.run_with_hooks(
            prompts.tokens,
            fwd_hooks=[
                (f"blocks.{layer}.attn.hook_pattern", lambda a, hook: patterns.append(a))
                for layer in (0, 1)
            ],
        )
    expected = torch.stack([pattern[..., 0].mean((0, 2)) for pattern in patterns])
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)
    # A screen starts its gradients at the embedding, which Hugging Face models know by a method.
    screened = sinklens.run(
        "position0_patching", model, prompts, progress=False, draws=1, screen=True, top=1
    )
    assert screened.effects
    result = sinklens.run("reference_frame", model, prompts, progress=False, draws=1)
    assert "no Hugging Face configuration" in result.settings["left_out"]["random_weights"]
    with pytest.raises(sinklens.SinklensError, match="hook_attn_scores"):
        sinklens.run("absolute_position", model, prompts, progress=False)


def test_the_corpus_is_cut_once_for_tokenizers_that_cut_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another load of the same model gets the same tokens; another rule cuts again."""
    from tokenizers import normalizers

    from sinklens.models.prompts import shipped_text as text

    first, again = families.boot("llama"), families.boot("llama")
    assert first.tokenizer is not again.tokenizer
    prompts = sinklens.prompts(first, n=3, length=16)
    cut: list[str] = []
    encode = text.encode
    monkeypatch.setattr(text, "encode", lambda model, words: cut.append("") or encode(model, words))
    assert torch.equal(sinklens.prompts(again, n=3, length=16).tokens, prompts.tokens)
    assert not cut
    other = families.boot("llama")
    other.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("e", "z")
    changed = sinklens.prompts(other, n=3, length=16)
    assert len(cut) == 1 and not torch.equal(changed.tokens, prompts.tokens)
