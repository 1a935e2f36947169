"""A model as it is: what is known of it ends with any write to it, and one thread uses it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jaxtyping
import pytest
import torch

import sinklens
from sinklens.hooks import mean_embedding
from sinklens.models import state
from tests import families

TEXT = "the sink of attention is where what is left of it goes, says the one who looks. " * 8


def run(model: Any, **settings: Any) -> sinklens.ExperimentResult:
    prompts = sinklens.prompts(model, TEXT, n=4, length=12, bos=True)
    settings = {"draws": 1, "null_models": 0, "progress": False, **settings}
    return sinklens.run("sink_head_ablation", model, prompts, heads="L0H1", **settings)


def in_inference_mode() -> Any:
    with torch.inference_mode():
        return families.boot("llama")


@pytest.fixture(params=["data", "in place", "inference"])
def model_and_write(request: pytest.FixtureRequest) -> tuple[Any, Callable[[Any, Any], None]]:
    """A model, and how its weights are written."""
    made = in_inference_mode() if request.param == "inference" else families.boot("llama")

    def write(weight: torch.Tensor, values: Any) -> None:
        mode = torch.inference_mode() if request.param == "inference" else torch.no_grad()
        with mode:
            (weight.data if request.param == "data" else weight).copy_(values)

    return made, write


def weight_of(model: Any) -> torch.Tensor:
    state_dict = model.original_model.state_dict()
    return next(w for name, w in state_dict.items() if "layers.1" in name and "o_proj" in name)


def test_the_check_is_of_the_weights_as_they_are(model_and_write: Any) -> None:
    model, write = model_and_write
    weight = weight_of(model)
    before = weight.clone()
    for _ in range(2):
        assert sinklens.check(model).edits["z"]
        write(weight, torch.zeros_like(before))
        assert not sinklens.check(model).edits["z"]
        write(weight, before)


def test_a_run_has_the_hash_of_its_weights(model_and_write: Any) -> None:
    model, write = model_and_write
    weight = weight_of(model)
    before = weight.clone()
    first = run(model)
    write(weight, before * 1.5)
    second = run(model)
    write(weight, before)
    third = run(model)
    hashes = [one.provenance["model"]["weights"] for one in (first, second, third)]
    assert hashes[0] == hashes[2] != hashes[1]
    assert first.effects == third.effects != second.effects


def test_means_are_of_the_weights_as_they_are(model_and_write: Any) -> None:
    model, write = model_and_write
    prompts = sinklens.prompts(model, TEXT, n=4, length=12, bos=True)
    settings = {"conditions": "mean", "draws": 1, "null_models": 0, "progress": False}
    first = sinklens.run("bos_replacement", model, prompts, **settings)
    embedding = model.original_model.get_input_embeddings().weight
    with torch.inference_mode():
        before = embedding.clone()
    changed = before.clone()
    changed[2] += 5  # a row that no prompt holds, so that the mean is all that changes
    assert 2 not in prompts.tokens
    write(embedding, changed)
    second = sinklens.run("bos_replacement", model, prompts, **settings)
    assert second.effects != first.effects


def test_a_mean_that_is_taken_alone_is_of_the_weights_as_they_are(model_and_write: Any) -> None:
    model, write = model_and_write
    embedding = model.original_model.get_input_embeddings().weight
    mean_embedding(model)
    with torch.inference_mode():
        changed = embedding + 1
    write(embedding, changed)
    torch.testing.assert_close(mean_embedding(model), changed.mean(0))


def test_the_checksum_sees_a_bit_and_an_exchange() -> None:
    model = families.boot("llama")
    weight = weight_of(model)
    seen = {state.model_state(model)}
    rows = torch.randperm(len(weight))
    for change in (
        lambda: weight.view(torch.int32)[3, 5].bitwise_xor_(1),
        lambda: weight.copy_(weight.clone()[:, torch.arange(32).roll(1)][rows]),
    ):
        version = weight._version
        with torch.no_grad():
            change()
        assert weight._version != version
        seen.add(state.model_state(model))
    assert len({one[-1] for one in seen}) == 3


def test_large_models_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"a": torch.arange(2.0**16), "b": torch.ones(3, dtype=torch.bfloat16)}
    read = sum(part.numel() for part in state._sums(weights["a"], 4))
    assert read == 2**16 * 4 // 8 // 128 // 4
    whole = state._checksum(weights)
    monkeypatch.setattr(state, "MOST_LOOKED_AT", 2**16)
    assert state._checksum(weights) != whole
    weights["a"] *= 2
    assert len({state._checksum(weights), whole}) == 2


def test_within_a_run_the_state_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.boot("llama")
    taken: list[int] = []
    original = state._weights_state
    monkeypatch.setattr(state, "_weights_state", lambda m: taken.append(1) or original(m))
    run(model)
    assert len(taken) == 1


@pytest.mark.slow
def test_threads_take_turns() -> None:
    model = families.boot("llama")
    wanted = [run(model, seed=seed).effects for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda seed: run(model, seed=seed).effects, range(4)))
        checked = list(pool.map(lambda _: sinklens.check(model), range(4)))
        tokens = torch.arange(24).view(2, 12)
        scores = list(pool.map(lambda _: sinklens.sink_scores(model, tokens), range(4)))
    assert results == wanted and len(set(map(str, checked))) == 1
    assert all(torch.equal(one, scores[0]) for one in scores)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_a_forward_pass_of_another_thread_meets_no_hooks() -> None:
    """It is refused where it would."""
    model = families.boot("llama")
    tokens = torch.arange(4, 16)[None]
    wanted = model(tokens)
    with ThreadPoolExecutor(1) as other:

        def within(logits: torch.Tensor, tokens: torch.Tensor, **_: Any) -> torch.Tensor:
            with pytest.raises(sinklens.SinklensError, match="in another thread"):
                other.submit(model, tokens).result()
            return logits[:, 0, 0]

        run(model, metrics=[within])
        assert torch.equal(other.submit(model, tokens).result(), wanted)


def test_the_callers_default_device_changes_nothing() -> None:
    model = families.boot("llama")
    wanted = run(model)
    prompts = sinklens.prompts(model, TEXT, n=4, length=12, bos=True)
    torch.set_default_device("meta")
    try:
        settings = {"draws": 1, "null_models": 0, "progress": False}
        found = sinklens.run("sink_head_ablation", model, prompts, heads="L0H1", **settings)
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)
    assert found.effects == wanted.effects


def test_the_callers_default_dtype_changes_nothing() -> None:
    model = families.boot("llama")
    wanted = run(model)
    torch.set_default_dtype(torch.float64)
    try:
        state.look_again(model)
        found = run(model)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.effects == wanted.effects


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_tokens_of_any_integers(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as a user calls
    model = families.boot("llama")
    tokens = torch.arange(4, 24).view(2, 10)
    prompts = [sinklens.Prompts(one, False, "tokens") for one in (tokens, tokens.to(dtype))]
    wanted, found = (sinklens.evaluate(model, p, [], ["loss"]).clean for p in prompts)
    assert torch.equal(found, wanted)
    scores = [sinklens.sink_scores(model, one) for one in (tokens, tokens.to(dtype))]
    assert torch.equal(*scores) and torch.equal(
        scores[0], sinklens.sink_scores(model, tokens.tolist())
    )
