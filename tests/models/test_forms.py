"""Model objects in other forms: compiled, with adapters, quantised, on other devices."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import sinklens
from sinklens import SinklensError
from sinklens.models import loading
from sinklens.models.agreement import require_as_on_cpu
from sinklens.models.weights import gated_weights, projection
from tests import families, odd_models
from tests.reference import plain_families as reference

pytestmark = pytest.mark.slow

TOKENS = torch.tensor(
    [[families.BOS, 5, 9, 17, 30, 12, 44, 8], [families.BOS, 7, 7, 40, 22, 9, 3, 6]]
)


def loss_without_bos(model: Any) -> float:
    prompts = sinklens.Prompts(TOKENS, bos=True, source="tokens")
    settings = {"progress": False, "draws": 0, "null_models": 0, "metrics": "loss"}
    result = sinklens.run("bos_replacement", model, prompts, conditions="zero", **settings)
    return result.effects[0].value


@pytest.fixture(scope="module")
def wanted() -> Any:
    plain = families.llama()
    return pytest.approx(
        float(reference.loss(reference.without_bos(plain, TOKENS), TOKENS).mean()), abs=1e-4
    )


def test_compiled_models_are_refused() -> None:
    """They give the right numbers, and take minutes to compile for every hook anew."""
    in_place = families.llama()
    in_place.compile(backend="eager")
    bridge = sinklens.load(families.llama())
    for compiled in (torch.compile(families.llama(), backend="eager"), in_place):
        with pytest.raises(SinklensError, match="this LlamaForCausalLM is compiled"):
            sinklens.load(compiled)
    with pytest.raises(SinklensError, match="is compiled by"):
        loss_without_bos(torch.compile(bridge, backend="eager"))


class Adapted(nn.Module):
    """What a `PeftModel` shows; 0.21 was tried by hand, and its merged model is right."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.base_model, self.config, self.peft_config = model, model.config, {"default": None}

    def merge_and_unload(self) -> Any:
        return self.base_model


def test_adapters_beside_a_model_are_refused(wanted: Any) -> None:
    adapted = Adapted(families.llama())
    with pytest.raises(SinklensError, match=r"model.merge_and_unload\(\) gives one"):
        sinklens.load(adapted)
    assert loss_without_bos(sinklens.load(adapted.merge_and_unload())) == wanted


def test_weights_that_are_no_tensors_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates them
        quantised = torch.ao.quantization.quantize_dynamic(
            families.llama(), {nn.Linear}, dtype=torch.qint8
        )
    with pytest.raises(SinklensError, match="quantised weights that are no tensors"):
        sinklens.load(quantised)


def test_parametrised_weights_are_tensors() -> None:
    """As LoRA by `parametrize`, or weight norm: a weight that is computed when it is read."""
    plain, parametrised = families.llama(), families.llama()
    for model in (plain, parametrised):
        nn.utils.parametrizations.weight_norm(model.model.layers[0].self_attn.o_proj)
    with torch.no_grad():
        for model in (plain, parametrised):
            kept = model.model.layers[0].self_attn.o_proj.parametrizations.weight
            kept.original0.mul_(3)
    loss = reference.loss(reference.without_bos(plain, TOKENS), TOKENS).mean()
    found = loss_without_bos(sinklens.load(parametrised))
    assert found == pytest.approx(float(loss), abs=1e-4)


class Around(nn.Module):
    """A user's own module around a projection: a gate that hides it, or adds to it as LoRA does."""

    def __init__(self, inner: Any, shown: bool) -> None:
        super().__init__()
        self.inner, self.more = inner, nn.Linear(inner.in_features, inner.out_features, bias=False)
        nn.init.normal_(self.more.weight, std=0.3, generator=torch.Generator().manual_seed(0))
        if shown:
            self.weight, self.bias = inner.weight, inner.bias

    def forward(self, vectors: Tensor) -> Tensor:
        summed: Tensor = self.inner(vectors) + self.more(vectors)
        return summed


@pytest.mark.parametrize("shown", [True, False])
def test_weights_inside_of_other_modules_are_not_read(shown: bool) -> None:
    """Edits are right there; what a head writes through W_O alone would not be."""
    plain = families.llama()
    inner = plain.model.layers[1].self_attn.o_proj
    plain.model.layers[1].self_attn.o_proj = Around(inner, shown)
    loss = reference.loss(reference.without_bos(plain, TOKENS), TOKENS).mean()
    model = sinklens.load(plain)
    assert loss_without_bos(model) == pytest.approx(float(loss), abs=1e-4)
    said = "something else than its W_O" if shown else "has no W_O that TransformerLens can reach"
    prompts = sinklens.Prompts(TOKENS, bos=True, source="tokens")
    with pytest.raises(SinklensError, match=f"layer 1 of LlamaForCausalLM .*{said}"):
        sinklens.run("active_dormant", model, prompts, progress=False, random_weights=False)


@pytest.mark.parametrize("name", ["gate_proj", "up_proj", "down_proj"])
def test_weights_of_an_mlp_that_a_hook_changes_are_not_read(name: str) -> None:
    plain = families.llama()
    model = sinklens.load(plain)
    before = gated_weights(model, 1)
    assert before is not None
    handle = getattr(plain.model.layers[1].mlp, name).register_forward_hook(lambda *a: a[2] * 1.5)
    assert gated_weights(model, 1) is None and gated_weights(model, 0) is not None
    handle.remove()
    again = gated_weights(model, 1)
    assert again is not None and all(map(torch.equal, before, again))


def test_hooks_that_raise_on_other_inputs_have_their_projection_refused() -> None:
    """One that takes prompts alone, say, as the vectors of a trial are none."""

    def of_prompts(module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        if inputs[0].shape[:2] != TOKENS.shape:
            raise ValueError("expects prompts")

    plain = families.llama()
    model = sinklens.load(plain)
    plain.model.layers[0].self_attn.q_proj.register_forward_hook(of_prompts)
    with pytest.raises(SinklensError, match="projects by something else than its W_Q"):
        projection(model, 0, "W_Q")


def test_models_that_take_no_tokens_are_refused() -> None:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
    image = transformers.ViTForImageClassification(
        transformers.ViTConfig(**sizes, intermediate_size=32, image_size=8, patch_size=4)
    )
    with pytest.raises(SinklensError, match="takes pixel_values instead of tokens"):
        sinklens.load(image)


@pytest.mark.parametrize("make", [odd_models.deepseek_v4, odd_models.hrm_text])
def test_blocks_that_are_not_shown_are_refused_in_one_sentence(make: Any) -> None:
    """Several streams at once, and a stack that is gone through again and again."""
    with pytest.raises(SinklensError, match="shows neither the residual stream nor attention"):
        loss_without_bos(sinklens.load(make()))


def test_a_model_on_meta_is_refused() -> None:
    with pytest.raises(SinklensError, match="device meta has no weights"):
        sinklens.load(families.llama().to("meta"))


def test_without_gradients_and_in_inference_mode_numbers_are_the_same(wanted: Any) -> None:
    assert loss_without_bos(sinklens.load(families.llama().requires_grad_(False))) == wanted
    with torch.inference_mode():
        made = sinklens.load(families.llama())
        assert loss_without_bos(made) == wanted
    assert loss_without_bos(made) == wanted


def test_a_device_that_computes_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As MPS is: the CPU stands for it, and a forward pass is made to differ by a hundredth."""
    compared = []
    monkeypatch.setattr(loading, "UNTRUSTED", ("cpu",))
    monkeypatch.setattr(loading, "require_as_on_cpu", lambda *_: compared.append(True))
    bridge = sinklens.load(families.llama())
    assert compared == [True]
    require_as_on_cpu(bridge, TOKENS)
    before = bridge.forward

    def off(tokens: Tensor, **settings: Any) -> Tensor:
        return before(tokens, **settings) * 1.01

    monkeypatch.setattr(type(bridge), "__call__", lambda self, tokens: off(tokens))
    with pytest.raises(SinklensError, match=r"other logits on cpu than on the CPU.*device=\"cpu\""):
        require_as_on_cpu(bridge, TOKENS)
