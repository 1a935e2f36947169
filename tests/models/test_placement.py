"""Models whose weights are spread or offloaded give the numbers that they give in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoModelForCausalLM

import sinklens
from sinklens import SinklensError
from sinklens.core.errors import UsageError
from sinklens.models import load_like, shipped, weights_hash
from sinklens.models.weights import devices, gated_weights, is_offloaded, projection
from sinklens.runner import registry

MAP = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    **{f"model.layers.{layer}": "disk" if layer % 2 else "cpu" for layer in range(6)},
    "model.norm": "disk",
    "lm_head": "cpu",
}
# Reading weights, editing, probing, and a model of the experiment's own beside it.
TRIED = ("bos_replacement", "position0_patching", "outlier_dimensions", "qk_eigenspectrum")


@pytest.fixture(scope="module")
def plain() -> Any:
    return sinklens.load("rope")


@pytest.fixture(scope="module")
def offloaded() -> Iterator[Any]:
    model = sinklens.load("rope", device_map=MAP)
    assert is_offloaded(model) and devices(model) == ["cpu", "disk"]
    yield model


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIED)
def test_offloaded_weights_give_the_same_rows(name: str, plain: Any, offloaded: Any) -> None:
    _compare(name, plain, offloaded)


@pytest.mark.heavy
@pytest.mark.parametrize("name", sorted({*registry.all_experiments()} - {*TRIED}))
def test_every_experiment_on_offloaded_weights(name: str, plain: Any, offloaded: Any) -> None:
    _compare(name, plain, offloaded)


def _compare(name: str, plain: Any, offloaded: Any, cut_with: Any = None) -> None:
    """The same rows to the last bit, but for those of a random model, which has no room."""
    settings = {"draws": 2, "null_models": 0, **registry.get(name).smallest}
    if "fisher" in settings:
        settings["fisher"] = False  # refused, below
    settings |= {"prompts": sinklens.prompts(cut_with or plain, n=3, length=20), "progress": False}
    mine, theirs = (_rows(sinklens.run(name, model, **settings)) for model in (offloaded, plain))
    assert mine
    assert all("random_weights" in key for key in theirs.keys() - mine.keys())
    assert mine == {key: theirs[key] for key in mine}


def _rows(result: sinklens.ExperimentResult) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    names = ("metric", "condition", "kind", "against", "layer", "head", "queries")
    return {
        tuple(getattr(row, name) for name in names): (row.value, row.baseline)
        for row in result.effects
    }


def test_weights_are_read_wherever_they_are(plain: Any, offloaded: Any) -> None:
    assert weights_hash(offloaded) == weights_hash(plain)
    for layer in (0, 1):
        weight = plain.blocks[layer].attn.o.original_component.weight
        heads = weight.T.reshape(int(plain.cfg.n_heads), -1, int(plain.cfg.d_model))
        assert torch.equal(projection(offloaded, layer, "W_O"), heads)
        mine, theirs = (gated_weights(model, layer) for model in (offloaded, plain))
        assert mine is not None and theirs is not None
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_a_device_map_without_offloading_keeps_everything_in_memory(plain: Any) -> None:
    model = sinklens.load("rope", device_map={"": "cpu"})
    assert not is_offloaded(model) and devices(model) == ["cpu"]
    assert weights_hash(load_like(model, "nope")) == weights_hash(sinklens.load("nope"))


ELSEWHERE = {
    "embedding on disk": {**MAP, "model.embed_tokens": "disk"},
    "everything on disk": dict.fromkeys(MAP, "disk"),
}


@pytest.mark.parametrize("tokens_only", [True, False])
@pytest.mark.parametrize("placed", ELSEWHERE)
def test_an_object_whose_first_weights_are_elsewhere_is_taken(
    placed: str, tokens_only: bool, plain: Any, tmp_path: Path
) -> None:
    model = dispatch_model(_rope(), ELSEWHERE[placed], "cpu", offload_dir=str(tmp_path))
    assert next(model.parameters()).is_meta
    tokenizer = None if tokens_only else plain.tokenizer
    taken = sinklens.load(model, tokenizer=tokenizer)
    assert str(taken.cfg.device) == "cpu" and is_offloaded(taken)
    same = sinklens.load(_rope(), tokenizer=tokenizer)
    _compare("bos_replacement", same, taken, cut_with=plain)


def test_a_map_may_offload_the_embedding(plain: Any) -> None:
    model = sinklens.load("rope", device_map={"": "disk"})
    assert str(model.cfg.device) == "cpu"
    _compare("bos_replacement", plain, model)


def test_a_model_without_weights_is_told_how_to_load_it() -> None:
    config = _rope().config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(SinklensError, match=r"no weights.*load\(path, device_map=\.\.\.\)"):
        sinklens.load(model)


def _rope() -> Any:
    """A Hugging Face model as its user has it."""
    with shipped.folder("rope") as folder:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


HALF = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    **{f"model.layers.{layer}": "disk" if layer % 2 else "cpu" for layer in range(30)},
    "model.norm": "disk",
    "lm_head": "cpu",
}


@pytest.fixture(scope="module")
def smollm2_twice(smollm2_gguf: Path) -> tuple[Any, Any]:
    """SmolLM2 with half of its layers on disk, and in memory."""
    model = sinklens.load(smollm2_gguf, device_map=HALF)
    assert is_offloaded(model) and devices(model) == ["cpu", "disk"]
    return model, sinklens.load(smollm2_gguf)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sink_profile", {}),
        ("bos_replacement", {"conditions": ("mean",)}),
        ("sink_head_ablation", {}),
    ],
)
def test_half_of_smollm2_on_disk(name: str, settings: Any, smollm2_twice: tuple[Any, Any]) -> None:
    settings = {"draws": 2, "null_models": 0, **settings}
    prompts = sinklens.prompts(smollm2_twice[1], n=4, length=32)
    mine, theirs = (
        _rows(sinklens.run(name, model, prompts, progress=False, **settings))
        for model in smollm2_twice
    )
    assert mine == theirs and len(mine) > 5


def test_gradients_of_offloaded_weights_are_refused(offloaded: Any) -> None:
    prompts = sinklens.prompts(offloaded, n=2, length=12)
    with pytest.raises(SinklensError, match=r"offloaded.*without fisher=True"):
        sinklens.run("reference_frame", offloaded, prompts, fisher=True, progress=False)


def test_no_random_model_beside_offloaded_weights(offloaded: Any) -> None:
    from sinklens.models.random_weights import random_weights

    with pytest.raises(SinklensError, match="offloaded"):
        random_weights(offloaded, 0)


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"device": "cpu", "device_map": "auto"}, UsageError, "device and device_map"),
        ({"device_map": "auto", "n_devices": 2}, UsageError, "device_map and n_devices"),
        ({"n_devices": 0}, UsageError, "at least 1"),
        ({"n_devices": 99}, SinklensError, "n_devices=99"),
        ({"device_map": {"": "meta"}}, SinklensError, "meta"),
        ({"device_map": {"": "cupid"}}, SinklensError, "cupid"),
        ({"device_map": "everywhere"}, SinklensError, "everywhere"),
    ],
)
def test_impossible_placements(settings: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        sinklens.load("rope", **settings)


def test_a_model_object_is_not_placed(plain: Any) -> None:
    with pytest.raises(UsageError, match="from_pretrained"):
        sinklens.load(plain, device_map="auto")
