"""Screening: the estimate is the derivative of the exact effect, and only the largest rows run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import sinklens
from sinklens.engine.screening import estimate, shared_gradients
from sinklens.hooks import ablate_heads
from sinklens.hooks.intervention import Intervention
from sinklens.metrics import METRICS, LogitMetric
from sinklens.models.capabilities import check, hook_name
from tests import families
from tests.engine.helpers import random_prompts

pytestmark = pytest.mark.slow

Boot = Callable[[str], TransformerBridge]
CAUSAL = [name for name in families.FAMILIES if name != "bert"]


@pytest.mark.parametrize("site", ["z", "residual", "pattern"])
@pytest.mark.parametrize("name", CAUSAL)
def test_the_estimate_is_the_slope_of_the_effect(site: str, name: str, boot_family: Boot) -> None:
    """Held against the derivative by a factor on the edit, one for each prompt."""
    model = boot_family(name)
    if not check(model).edits[site]:
        pytest.skip("this edit does nothing on this family")
    prompts = random_prompts(3)
    tokens = prompts.tokens
    heads = model.cfg.n_heads
    shape = {"z": (12, heads, 8), "residual": (12, 32), "pattern": (heads, 12, 12)}[site]
    for layer in range(2):
        generator = torch.Generator().manual_seed(layer)
        direction = torch.randn(shape, generator=generator)
        edit = partial(add, direction=direction)
        guess = estimate(
            model,
            prompts,
            [Intervention("add", site, layer, [(hook_name(site, layer), edit)])],
            METRICS["loss"],
        )
        with torch.enable_grad():
            factor = torch.zeros(3, *[1] * len(shape), requires_grad=True)
            logits = model.run_with_hooks(
                tokens,
                fwd_hooks=[(hook_name(site, layer), partial(add, direction=factor * direction))],
            )
            losses = torch.nn.functional.cross_entropy(
                logits[:, 1:-1].transpose(1, 2), tokens[:, 2:], reduction="none"
            )
            slope = torch.autograd.grad(losses.mean(1).sum(), factor)[0].flatten()
        torch.testing.assert_close(guess[0], slope, rtol=1e-4, atol=1e-5)
        assert slope.abs().max() > 0.01
    assert all(parameter.grad is None for parameter in model.parameters())


def add(activation: Tensor, hook: Any, *, direction: Tensor) -> Tensor:
    return activation + direction


def test_only_the_largest_rows_run_and_both_values_are_reported() -> None:
    model = sinklens.load("rope")
    prompts = sinklens.prompts(model, n=4, length=32)
    run = partial(
        sinklens.run,
        "sink_head_ablation",
        model,
        prompts,
        heads=("all",),
        each=True,
        conditions=("zero", "mean"),
        metrics=("loss",),
        draws=0,
        progress=False,
    )
    screened, everything = run(screen=True, top=5), run()
    rows = [e for e in screened.effects if e.kind == "treatment"]
    for condition in ("zero", "mean"):
        mine = [e for e in rows if e.condition == condition]
        assert len(mine) == 5
        for row in mine:
            exact = everything.find(
                kind="treatment", condition=condition, layer=row.layer, head=row.head
            )
            assert row.effect == pytest.approx(exact.effect, abs=1e-5)
    said = screened.findings["screening"]
    guesses = screened.arrays["screening_estimates"].values
    assert len(said["ranked"]) == len(guesses) == 48 and said["run"] == 10
    by_label = dict(zip(said["ranked"], guesses.tolist(), strict=True))
    pairs = [(abs(by_label[f"{e.condition} L{e.layer}H{e.head}"]), abs(e.effect)) for e in rows]
    assert said["rank_correlation"] == pytest.approx(stats.spearmanr(pairs).statistic)
    zero = sorted((label for label in by_label if "zero" in label), key=lambda s: -abs(by_label[s]))
    assert {f"zero L{e.layer}H{e.head}" for e in rows if e.condition == "zero"} == set(zero[:5])
    assert any("p and q are too small" in line for line in screened.notes())


def test_positions_and_layers_are_ranked_together() -> None:
    """Of all positions and layers the largest run; a plain forward agrees with what they do."""
    model = sinklens.load("rope")
    prompts = sinklens.prompts(model, n=3, length=16)
    run = partial(
        sinklens.run,
        "position0_patching",
        model,
        prompts,
        conditions=("zero", "other_token"),
        places=tuple(range(14)),
        metrics=("loss",),
        draws=0,
        progress=False,
    )
    found = run(screen=True, top=4)
    rows = [e for e in found.effects if e.kind == "treatment"]
    said = found.findings["screening"]
    assert len(said["ranked"]) == 2 * 14 * 6 and said["run"] == len(rows) == 8
    guesses = dict(
        zip(said["ranked"], found.arrays["screening_estimates"].values.tolist(), strict=True)
    )
    zero = [name for name in guesses if name.startswith("zero")]
    largest = sorted(zero, key=lambda name: -abs(guesses[name]))[:4]
    assert {f"{e.condition} L{e.layer}" for e in rows if "zero" in e.condition} == set(largest)
    for row in rows:
        name, _, place = row.condition.partition("@")
        at, wrote = int(place or 0), prompts.tokens.clone()
        with torch.no_grad():
            written = torch.zeros(())
            if name.startswith("other_token"):
                drawn = found.draws
                others = drawn["place_tokens"][at - 1] if at else drawn["other_tokens"]
                wrote[:, at] = torch.tensor(others)
                _, cache = model.run_with_cache(wrote)
                written = cache[hook_name("residual", row.layer)][:, at]
            losses = [
                model.run_with_hooks(
                    prompts.tokens, fwd_hooks=hooks, return_type="loss", loss_per_token=True
                )[:, at + 1 :].mean()
                for hooks in (
                    [],
                    [(hook_name("residual", row.layer), partial(put, position=at, values=written))],
                )
            ]
        assert row.effect == pytest.approx(float(losses[1] - losses[0]), abs=1e-5)
    with pytest.raises(sinklens.SinklensError, match="no predictions are left"):
        run(places=(15,))


def put(residual: Tensor, hook: Any, *, position: int, values: Tensor) -> Tensor:
    edited = residual.clone()
    edited[:, position] = values
    return edited


def test_the_estimate_of_a_later_position_is_the_slope_of_its_effect() -> None:
    """A small edit at p moves the mean of the predictions after p by what the estimate says."""
    model = families.boot("llama")
    prompts = random_prompts(3)
    place, size = 5, 1e-2
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))

    def shift(residual: Tensor, hook: Any) -> Tensor:
        return put(residual, hook, position=place, values=residual[:, place] + size * direction)

    name = hook_name("residual", 1)
    edit = Intervention("shift", "residual", 1, [(name, shift)], position=place)
    guess = estimate(model, prompts, [edit], METRICS["loss"])[0]
    with torch.no_grad():
        clean, edited = (
            torch.nn.functional.cross_entropy(
                model.run_with_hooks(prompts.tokens, fwd_hooks=hooks)[:, :-1].transpose(1, 2),
                prompts.tokens[:, 1:],
                reduction="none",
            )
            for hooks in ([], [(name, shift)])
        )
    wanted = (edited - clean)[:, place + 1 :].mean(1)
    torch.testing.assert_close(guess, wanted, rtol=0.05, atol=1e-5)


def shift_at(place: int, direction: Tensor) -> Intervention:
    """Move the stream that enters block 1 at one position."""

    def shift(residual: Tensor, hook: Any) -> Tensor:
        return put(residual, hook, position=place, values=residual[:, place] + direction)

    return Intervention(
        f"shift{place}", "residual", 1, [(hook_name("residual", 1), shift)], position=place
    )


@pytest.mark.parametrize("places", [(2, 5, 9), tuple(range(10))])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_positions_share_gradients(name: str, places: tuple[int, ...], boot_family: Boot) -> None:
    """Each estimate is the slope of the mean of those predictions after it that no edit touches."""
    model = boot_family(name)
    prompts = random_prompts(3)
    # So small that an effect is its slope, and the same in every run.
    direction = 1e-2 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    edits = [shift_at(place, direction) for place in places]
    shared = shared_gradients(model, prompts, edits, METRICS["loss"])
    assert len(shared) == (1 if len(places) == 3 else 2) and all(one.of_part for one in shared)
    untouched = shared_gradients(model, prompts, edits[:2], METRICS["loss"], (7, 8, 10))
    assert [one.of_part for one in untouched] == [False]
    guess = estimate(model, prompts, edits, METRICS["loss"])

    def losses(hooks: Any) -> Tensor:
        with torch.no_grad():
            logits = model.run_with_hooks(prompts.tokens, fwd_hooks=hooks)
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), prompts.tokens[:, 1:], reduction="none"
        )

    clean = losses([])
    for place, edit, row in zip(places, edits, guess, strict=True):
        (mine,) = (one for one in shared if place in one.share)
        same = [p for p in mine.share if p]
        counted = [i for i in range(place + 1, 11) if i not in same]
        assert len(counted) >= 0.4 * (10 - place)
        wanted = (losses(edit.fwd_hooks) - clean)[:, counted].mean(1)
        torch.testing.assert_close(row, wanted, rtol=0.05, atol=2e-4)


def test_what_cannot_share_a_gradient(boot_family: Boot) -> None:
    """A metric of one's own may not be a mean over predictions, and BERT sees both ways."""
    prompts = random_prompts(3)
    edits = [shift_at(place, torch.ones(32)) for place in (2, 5, 9)]
    own = LogitMetric("own", lambda logits, tokens, **_: logits.mean((1, 2)))
    llama, bert = boot_family("llama"), boot_family("bert")
    assert len(shared_gradients(llama, prompts, edits, own)) == 3
    assert len(shared_gradients(bert, prompts, edits, METRICS["kl"])) == 3
    # The last position has one prediction after it, and keeps it.
    assert len(shared_gradients(llama, prompts, [shift_at(9, torch.ones(32))] * 2, own)) == 1
    late = [shift_at(place, torch.ones(32)) for place in (8, 9, 10)]
    shared = shared_gradients(llama, prompts, late, METRICS["kl"])
    assert sorted(place for one in shared for place in one.share) == [8, 9, 10]
    for one in shared:
        assert not set(one.counted.tolist()) & set(one.share) and 11 in one.counted


@pytest.mark.parametrize(
    ("experiment", "settings", "message"),
    [
        ("sink_head_ablation", {"screen": True}, "nothing to rank"),
        ("bos_replacement", {"screen": True}, "nothing to rank"),
        ("sink_profile", {"screen": True}, "takes no screen"),
        ("position0_patching", {"screen": True, "metrics": ("kl",)}, "signed metric"),
        ("position0_patching", {"screen": True, "top": 0}, "top must be at least 1"),
    ],
)
def test_what_cannot_be_screened(experiment: str, settings: dict[str, Any], message: str) -> None:
    model = sinklens.load("rope")
    with pytest.raises(sinklens.SinklensError, match=message):
        sinklens.run(
            experiment,
            model,
            sinklens.prompts(model, n=2, length=16),
            progress=False,
            **settings,
        )


def test_batches_and_models_without_gradients_give_the_same_estimates() -> None:
    model = families.boot("llama")
    prompts = random_prompts(3)
    edits = [ablate_heads(model, [(layer, 1)], "zero") for layer in range(2)]
    whole = estimate(model, prompts, edits, METRICS["loss"])
    one_by_one = estimate(model, prompts, edits, METRICS["loss"], memory=1)
    with torch.inference_mode():
        inferring = estimate(model, random_prompts(3), edits, METRICS["loss"])
    model.original_model.requires_grad_(False)
    frozen = estimate(model, prompts, edits, METRICS["loss"])
    torch.testing.assert_close(inferring, whole)
    torch.testing.assert_close(one_by_one, whole)
    torch.testing.assert_close(frozen, whole)
