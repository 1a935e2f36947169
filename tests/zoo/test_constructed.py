"""The constructed Llama does what its formulas say, to 1e-5, clean and under every kind of edit.

The edits are written here as raw TransformerLens hooks, so that nothing of sinklens but the model
and its formulas is under test.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.zoo.constructed import (
    BOS,
    IDENTITY,
    N_HEADS,
    N_LAYERS,
    OTHER,
    SINK_HEAD,
    UNIFORM_HEAD,
    VOCABULARY,
    VOTE,
    ConstructedRun,
    ConstructedSink,
    constructed_sink,
)

pytestmark = pytest.mark.slow

Hook = tuple[str, Callable[..., Tensor]]
N_PROMPTS, LENGTH = 4, 16
N_VOCABULARY = len(VOCABULARY)
LAYERS = range(N_LAYERS)
SINK_HEADS = [(layer, SINK_HEAD) for layer in LAYERS]
ALL_HEADS = [(layer, head) for layer in LAYERS for head in range(N_HEADS)]
HEAD_CHOICES = [SINK_HEADS, [(layer, UNIFORM_HEAD) for layer in LAYERS], ALL_HEADS]
HEAD_CHOICES += [[head] for head in ALL_HEADS]
CONTROL_POSITION = 3
OTHER_WORD = 7


@pytest.fixture(
    scope="module",
    params=[
        ConstructedSink(),
        ConstructedSink(sink_logit=0.0),
        ConstructedSink(sink_logit=2.0, word_vote=-1.0, bos_vote=0.0, bos_scale=1.0),
    ],
    ids=["default", "no-sink", "no-op-sink"],
)
def formulas(request: pytest.FixtureRequest) -> ConstructedSink:
    chosen: ConstructedSink = request.param
    return chosen


@pytest.fixture(scope="module")
def model(formulas: ConstructedSink) -> TransformerBridge:
    return constructed_sink(formulas)


@pytest.fixture(scope="module")
def prompts() -> np.ndarray:
    words = np.random.default_rng(0).integers(OTHER, N_VOCABULARY, (N_PROMPTS, LENGTH - 1))
    return np.hstack([np.full((N_PROMPTS, 1), BOS), words])


@pytest.fixture(scope="module")
def clean(formulas: ConstructedSink, prompts: np.ndarray) -> list[ConstructedRun]:
    return [formulas.run(prompt) for prompt in prompts]


def assert_matches(
    model: TransformerBridge, hooks: Sequence[Hook], expected: Sequence[ConstructedRun]
) -> None:
    """The hooked model's logits, patterns and residuals are those of the formulas, to 1e-5."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in LAYERS]
    names += [f"blocks.{layer}.hook_resid_pre" for layer in LAYERS]
    tokens = torch.tensor(np.stack([run.tokens for run in expected]))
    with model.hooks(fwd_hooks=list(hooks)):
        logits, cache = model.run_with_cache(tokens, names_filter=names)
    close(logits, [run.logits for run in expected])
    for layer in LAYERS:
        close(cache[names[layer]], [run.pattern[layer] for run in expected])
        close(cache[names[N_LAYERS + layer]], [run.residual[layer] for run in expected])


def close(measured: Tensor, expected: Any) -> None:
    np.testing.assert_allclose(measured.numpy(), np.stack(expected), rtol=0, atol=1e-5)


def write(name: str, position: int, vector: np.ndarray) -> Hook:
    """Write one vector (the same for all prompts), or one a prompt, at a position of a site."""

    def put(activation: Tensor, hook: Any) -> Tensor:
        edited = activation.clone()
        edited[:, position] = torch.tensor(vector, dtype=activation.dtype)
        return edited

    return name, put


def write_heads(layer: int, heads: Sequence[int], z: np.ndarray) -> Hook:
    """Write z[prompt, head, position, vocabulary] as the output of heads of one layer."""

    def put(activation: Tensor, hook: Any) -> Tensor:
        edited = activation.clone()
        for head in heads:
            edited[:, :, head, :N_VOCABULARY] = torch.tensor(z[:, head]).float()
        return edited

    return f"blocks.{layer}.attn.hook_z", put


def drop_edge(layer: int, heads: Sequence[int], key: int, renormalise: bool) -> Hook:
    def drop(activation: Tensor, hook: Any) -> Tensor:
        edited = activation.clone()
        for head in heads:
            rows = edited[:, head, key + 1 :]
            former = rows.sum(dim=-1, keepdim=True)
            rows[..., key] = 0.0
            if renormalise:
                rows *= former / rows.sum(dim=-1, keepdim=True)
        return edited

    return f"blocks.{layer}.attn.hook_pattern", drop


def heads_of(layer: int, heads: Sequence[tuple[int, int]]) -> list[int]:
    return [head for head_layer, head in heads if head_layer == layer]


# --- the clean model


def test_clean_run_matches(
    model: TransformerBridge, formulas: ConstructedSink, clean: list[ConstructedRun]
) -> None:
    assert_matches(model, [], clean)
    for query in range(LENGTH):
        for run in clean:
            assert run.pattern[0, SINK_HEAD, query, 0] == pytest.approx(formulas.sink_weight(query))
            np.testing.assert_allclose(run.pattern[:, UNIFORM_HEAD, query, 0], 1 / (1 + query))


def test_layer_1_follows_the_formulas_of_the_docstring() -> None:
    formulas = ConstructedSink()
    run = formulas.run([BOS, 5, 6])
    b0 = 2 * formulas.bos_vote  # both heads of layer 0 look at BOS alone
    a, u = 32 / (32 + 1), 1 / 2  # weights on BOS at i = 1, sink head and uniform head
    b1 = math.hypot(formulas.bos_vote * (a + u), formulas.word_vote * (2 - a - u))
    r0, r1 = math.sqrt(formulas.bos_scale**2 + b0**2 / 32), math.sqrt(1 + b1**2 / 32)
    odds = math.exp(formulas.sink_logit * (1 / r1) * (formulas.bos_scale / r0))
    assert run.pattern[1, SINK_HEAD, 1, 0] == pytest.approx(odds / (odds + 1))


def test_loss_and_kl_are_those_of_torch(
    model: TransformerBridge, formulas: ConstructedSink, prompts: np.ndarray
) -> None:
    tokens = torch.tensor(prompts)
    hook = write("hook_embed", 0, formulas.embedding[OTHER_WORD])
    logits, edited = model(tokens), model.run_with_hooks(tokens, fwd_hooks=[hook])
    for after in (0, CONTROL_POSITION):
        for i, prompt in enumerate(prompts):
            run = formulas.run(prompt)
            other = formulas.run(prompt, residual={(0, 0): formulas.embedding[OTHER_WORD]})
            loss = torch.nn.functional.cross_entropy(
                logits[i, after + 1 : -1], tokens[i, after + 2 :]
            )
            kl = torch.nn.functional.kl_div(
                edited[i, after + 1 :].log_softmax(-1),
                logits[i, after + 1 :].log_softmax(-1),
                log_target=True,
                reduction="batchmean",
            )
            assert run.loss(after) == pytest.approx(loss.item(), abs=1e-5)
            assert run.kl(other, after) == pytest.approx(kl.item(), abs=1e-5)


def test_only_the_sink_heads_are_sinks(prompts: np.ndarray) -> None:
    run = ConstructedSink().run(prompts[0])
    assert (run.sink_mass[:, SINK_HEAD] > 0.3).all()
    assert (run.sink_mass[:, UNIFORM_HEAD] < 0.3).all()
    long = ConstructedSink().run(np.r_[BOS, np.resize(prompts[:, 1:], 63)])
    assert (long.sink_mass[:, SINK_HEAD] > 0.3).all()


def test_attention_is_uniform_without_bos(
    model: TransformerBridge, formulas: ConstructedSink, prompts: np.ndarray
) -> None:
    runs = [formulas.run(prompt[1:]) for prompt in prompts]
    assert_matches(model, [], runs)
    np.testing.assert_allclose(runs[0].pattern[:, :, -1, 0], 1 / (LENGTH - 1))


def test_long_prompts_are_without_positions(
    model: TransformerBridge, formulas: ConstructedSink, prompts: np.ndarray
) -> None:
    assert_matches(model, [], [formulas.run(np.r_[BOS, np.resize(prompts[:, 1:], 511)])])


# --- bos_replacement, and its control at a later position


@pytest.mark.parametrize("position", [0, CONTROL_POSITION])
@pytest.mark.parametrize("condition", ["mean", "zero", "random_token", "gaussian"])
def test_embedding_replaced(
    model: TransformerBridge,
    formulas: ConstructedSink,
    prompts: np.ndarray,
    condition: str,
    position: int,
) -> None:
    noise = np.random.default_rng(1).normal(size=formulas.embedding.shape[1])
    vector = {
        "mean": formulas.embedding.mean(axis=0),
        "zero": np.zeros_like(noise),
        "random_token": formulas.embedding[OTHER_WORD],
        "gaussian": noise / np.linalg.norm(noise) * np.linalg.norm(formulas.embedding[BOS]),
    }[condition]
    expected = [formulas.run(prompt, residual={(0, position): vector}) for prompt in prompts]
    assert_matches(model, [write("hook_embed", position, vector)], expected)
    if condition == "zero" and position == 0:
        assert all(not run.residual[:, 0].any() for run in expected)


def test_bos_replaced_by_a_word_leaves_uniform_attention(
    formulas: ConstructedSink, prompts: np.ndarray
) -> None:
    run = formulas.run(prompts[0], residual={(0, 0): formulas.embedding[OTHER_WORD]})
    uniform = np.mean([1 / (1 + query) for query in range(1, LENGTH)])
    np.testing.assert_allclose(run.sink_mass, uniform)


# --- position0_patching, and its control at a later position


def residual_vectors(
    formulas: ConstructedSink, run: ConstructedRun, layer: int, position: int
) -> dict[str, np.ndarray]:
    """What each condition writes at a position as it enters a layer."""
    words = range(OTHER, N_VOCABULARY)
    own = run.residual[layer, position]
    later = np.linalg.norm(run.residual[layer, 1:], axis=-1).mean()
    direction = np.random.default_rng(2).normal(size=own.shape)
    other = run.tokens.copy()
    other[position] = OTHER_WORD
    return {
        "other_token": formulas.run(other).residual[layer, position],
        "mean_token": np.mean([formulas.run([word]).residual[layer, 0] for word in words], axis=0),
        "zero": np.zeros_like(own),
        "rescaled": own / np.linalg.norm(own) * later,
        "redirected": direction / np.linalg.norm(direction) * np.linalg.norm(own),
    }


@pytest.mark.parametrize("position", [0, CONTROL_POSITION])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "condition", ["other_token", "mean_token", "zero", "rescaled", "redirected"]
)
def test_residual_patched(
    model: TransformerBridge,
    formulas: ConstructedSink,
    clean: list[ConstructedRun],
    condition: str,
    layer: int,
    position: int,
) -> None:
    vectors = [residual_vectors(formulas, run, layer, position)[condition] for run in clean]
    expected = [
        formulas.run(run.tokens, residual={(layer, position): vector})
        for run, vector in zip(clean, vectors, strict=True)
    ]
    hook = write(f"blocks.{layer}.hook_resid_pre", position, np.stack(vectors))
    assert_matches(model, [hook], expected)


def test_rescaling_position_0_acts_only_on_later_layers(clean: list[ConstructedRun]) -> None:
    formulas = ConstructedSink()
    run = formulas.run(clean[0].tokens)
    first, last = (
        formulas.run(run.tokens, residual={(layer, 0): 0.25 * run.residual[layer, 0]})
        for layer in LAYERS
    )
    np.testing.assert_allclose(first.pattern[0], run.pattern[0], atol=1e-12)
    assert first.sink_mass[1, SINK_HEAD] < run.sink_mass[1, SINK_HEAD] - 0.05
    np.testing.assert_allclose(last.logits[1:], run.logits[1:], atol=1e-12)


def sources(formulas: ConstructedSink, condition: str) -> list[ConstructedRun]:
    """The prompts of length 1 whose key or value at position 0 is averaged and written."""
    words = {"other_token": [OTHER_WORD], "mean_token": range(OTHER, N_VOCABULARY), "zero": []}
    return [formulas.run([word]) for word in words[condition]]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("condition", ["other_token", "mean_token", "zero"])
def test_key_patched(
    model: TransformerBridge,
    formulas: ConstructedSink,
    prompts: np.ndarray,
    condition: str,
    layer: int,
) -> None:
    name = f"blocks.{layer}.attn.hook_k"
    tokens = [[run.tokens[0]] for run in sources(formulas, condition)]
    if tokens:
        _, cache = model.run_with_cache(torch.tensor(tokens), names_filter=name)
        written = cache[name][:, 0].mean(dim=0).numpy()
        key = float(np.mean([run.key[layer, 0] for run in sources(formulas, condition)]))
    else:
        written, key = np.zeros((1, 16)), 0.0
    expected = [formulas.run(prompt, key={layer: key}) for prompt in prompts]
    assert_matches(model, [write(name, 0, written)], expected)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("condition", ["other_token", "mean_token", "zero"])
def test_value_patched(
    model: TransformerBridge,
    formulas: ConstructedSink,
    clean: list[ConstructedRun],
    condition: str,
    layer: int,
) -> None:
    runs = sources(formulas, condition)
    value = np.zeros(N_VOCABULARY)
    if runs:
        value = np.mean([run.value[layer, 0] for run in runs], axis=0)
    written = np.zeros((1, 16))
    written[0, :N_VOCABULARY] = value
    hooks = [
        write(f"blocks.{layer}.attn.hook_v", 0, written),
        # Query 0 sees only itself; its own output stays what it was.
        keep_query_0(layer, clean),
    ]
    expected = [formulas.run(run.tokens, value={layer: value}) for run in clean]
    assert_matches(model, hooks, expected)


def keep_query_0(layer: int, clean: list[ConstructedRun]) -> Hook:
    z = np.zeros((len(clean), N_HEADS, 16))
    z[:, :, :N_VOCABULARY] = [run.z[layer, :, 0] for run in clean]
    return write(f"blocks.{layer}.attn.hook_z", 0, z)


# --- sink_head_ablation


@pytest.mark.parametrize("heads", HEAD_CHOICES, ids=str)
@pytest.mark.parametrize("condition", ["zero", "mean", "resample"])
def test_head_output_replaced(
    model: TransformerBridge,
    formulas: ConstructedSink,
    clean: list[ConstructedRun],
    condition: str,
    heads: list[tuple[int, int]],
) -> None:
    outputs = np.stack([run.z for run in clean])  # prompt layer head pos vocab
    mean = np.empty_like(outputs)
    mean[..., :1, :] = outputs[..., :1, :].mean(axis=0)
    mean[..., 1:, :] = outputs[..., 1:, :].mean(axis=(0, 3), keepdims=True)
    z = {
        "zero": np.zeros_like(outputs),
        "mean": mean,
        "resample": np.roll(outputs, 1, axis=0),
    }[condition]
    hooks = [write_heads(layer, heads_of(layer, heads), z[:, layer]) for layer in LAYERS]
    expected = [
        formulas.run(run.tokens, z={head: z[(i, *head)] for head in heads})
        for i, run in enumerate(clean)
    ]
    assert_matches(model, hooks, expected)


@pytest.mark.parametrize("key", [0, CONTROL_POSITION])
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("heads", HEAD_CHOICES, ids=str)
def test_edge_dropped(
    model: TransformerBridge,
    formulas: ConstructedSink,
    prompts: np.ndarray,
    heads: list[tuple[int, int]],
    renormalise: bool,
    key: int,
) -> None:
    hooks = [drop_edge(layer, heads_of(layer, heads), key, renormalise) for layer in LAYERS]
    edit: dict[str, Any] = {"dropped": heads, "dropped_key": key, "renormalise": renormalise}
    assert_matches(model, hooks, [formulas.run(prompt, **edit) for prompt in prompts])


@pytest.mark.parametrize("head", [SINK_HEAD, UNIFORM_HEAD])
def test_edge_dropped_by_hand(formulas: ConstructedSink, head: int) -> None:
    tokens = [BOS, 5, 6, 6]
    mean_of_words = np.zeros(N_VOCABULARY)
    mean_of_words[[5, 6]] = formulas.word_vote * np.array([1, 2]) / 3
    weight = formulas.sink_weight(3) if head == SINK_HEAD else 1 / 4
    scaled = formulas.run(tokens, dropped=[(0, head)]).z[0, head, 3]
    left = formulas.run(tokens, dropped=[(0, head)], renormalise=False).z[0, head, 3]
    np.testing.assert_allclose(scaled, mean_of_words)
    np.testing.assert_allclose(left, (1 - weight) * mean_of_words)


def test_every_edit_has_an_effect(prompts: np.ndarray) -> None:
    formulas = ConstructedSink()
    run, empty = formulas.run(prompts[0]), np.zeros((LENGTH, N_VOCABULARY))
    word = formulas.run([OTHER_WORD])
    edits: list[dict[str, Any]] = [{"z": {head: empty}} for head in ALL_HEADS]
    for scaled in (True, False):
        edits += [{"dropped": [head], "renormalise": scaled} for head in ALL_HEADS]
    for layer in LAYERS:
        edits += [{"residual": {(layer, 0): word.residual[layer, 0]}}]
        edits += [{"key": {layer: 0.0}}, {"value": {layer: word.value[layer, 0]}}]
    for edit in edits:
        assert run.kl(formulas.run(prompts[0], **edit)) > 1e-4, edit


# --- the bridge


def test_boots_in_eval_mode_without_gradients_or_a_trace() -> None:
    state = torch.random.get_rng_state()
    start = time.process_time()
    model = constructed_sink()
    assert time.process_time() - start < 2
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model(torch.tensor([[BOS, OTHER]])).requires_grad


def test_attention_rows_sum_to_1(model: TransformerBridge, prompts: np.ndarray) -> None:
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in LAYERS]
    _, cache = model.run_with_cache(torch.tensor(prompts), names_filter=names)
    for name in names:
        torch.testing.assert_close(cache[name].sum(dim=-1), torch.ones(N_PROMPTS, N_HEADS, LENGTH))


def test_tokenizer_knows_its_words() -> None:
    model = constructed_sink()
    tokens = model.to_tokens("The state of the Union")
    assert " ".join(VOCABULARY[i] for i in tokens[0]) == "<bos> the other of the other"
    assert (model.cfg.n_heads, model.cfg.n_key_value_heads) == (N_HEADS, 1)
    assert len({model.tokenizer.pad_token_id, model.tokenizer.eos_token_id, BOS}) == 3


def test_parts_of_the_stream_do_not_overlap() -> None:
    formulas = ConstructedSink()
    assert IDENTITY.stop == VOTE.start and VOTE.stop - VOTE.start == N_VOCABULARY
    assert not formulas.embedding[:, VOTE].any()
    norms = np.linalg.norm(formulas.embedding, axis=-1) / math.sqrt(32)
    np.testing.assert_allclose(np.delete(norms, BOS), 1)
    assert norms[BOS] == pytest.approx(formulas.bos_scale)
