"""Clean and corrupted prompts, patched into each other: held to plain `run_with_hooks` code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import sinklens
from sinklens import Pairs, Prompts
from sinklens.comparisons.pairs import recovered

Boot = Callable[[str], TransformerBridge]
CLEAN = ["the king of spain", "a queen of france", "our town is old", "it is a day in may"]
CORRUPTED = ["zhe kong of spein", "o quean of frence", "her town in odd", "at is o dey in mey"]
ANSWERS = [("a", "b"), ("c", "d"), ("e", "f"), ("g", "h")]
HEADS = [(0, 1), (1, 0), (1, 3)]


def make(model: Any, which: slice = slice(None), **how: Any) -> Pairs:
    how = {"answers": ANSWERS[which], "bos": False, **how}
    return Prompts.pairs(model, CLEAN[which], CORRUPTED[which], **how)


def compare(model: Any, pairs: Pairs, **how: Any) -> sinklens.ExperimentResult:
    how = {"null_models": 0, "progress": False, **how}
    return sinklens.compare_pairs(model, pairs, **how)


class Plain:
    """One pair at a time, in TransformerLens alone."""

    def __init__(self, model: Any, pairs: Pairs) -> None:
        self.model, self.pairs = model, pairs
        self.sides = list(zip(pairs.patched.rows(), pairs.written.rows(), strict=True))

    def difference(self, hooks_of: Callable[[Any], list[Any]] | None, which: int = 0) -> np.ndarray:
        """The right minus the wrong logit of each pair's patched run (`which` = 0) or other run."""
        assert self.pairs.clean.answers is not None
        found = []
        for side, (right, wrong) in zip(self.sides, self.pairs.clean.answers.tolist(), strict=True):
            hooks: list[Any] = []
            if hooks_of is not None:
                with torch.no_grad():
                    _, cache = self.model.run_with_cache(torch.tensor([side[1 - which]]))
                hooks = hooks_of(cache)
            with torch.no_grad():
                tokens = torch.tensor([side[which]])
                logits = self.model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]
            found.append(float(logits[right] - logits[wrong]))
        return np.array(found)


def stream_hooks(cache: Any, *, layer: int, position: int) -> list[Any]:
    name = f"blocks.{layer}.hook_resid_pre"

    def write(x: Tensor, hook: Any) -> Tensor:
        x = x.clone()
        x[:, position] = cache[name][:, position]
        return x

    return [(name, write)]


def head_hooks(cache: Any) -> list[Any]:
    def write(z: Tensor, hook: Any, *, layer: int) -> Tensor:
        z = z.clone()
        for head in [head for at, head in HEADS if at == layer]:
            z[:, :, head] = cache[f"blocks.{layer}.attn.hook_z"][:, :, head]
        return z

    return [(f"blocks.{at}.attn.hook_z", partial(write, layer=at)) for at in (0, 1)]


@pytest.mark.parametrize("into", ["corrupted", "clean"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_patches_are_those_of_plain_code(boot_family: Boot, name: str, into: Any) -> None:
    model = boot_family(name)
    pairs = replace(make(model), into=into)
    assert pairs.clean.lengths.unique().numel() > 1
    result = compare(
        model,
        pairs,
        treatment={
            "position0": sinklens.patch_position(model, pairs, 1),
            "heads": sinklens.patch_heads(model, pairs, HEADS),
        },
        control={"position0": sinklens.patch_position(model, pairs, 1, position=1)},
    )
    plain = Plain(model, pairs)
    own = plain.difference(None)
    expected = {
        ("position0", None): plain.difference(lambda c: stream_hooks(c, layer=1, position=0)),
        ("position0", "given"): plain.difference(lambda c: stream_hooks(c, layer=1, position=1)),
        ("heads", None): plain.difference(head_hooks),
    }
    for (condition, against), patched in expected.items():
        kind = "treatment" if against is None else "control"
        row = result.find(metric="logit_diff", condition=condition, kind=kind)
        assert row.effect == pytest.approx((patched - own).mean(), abs=1e-4)
        assert abs(row.effect) > 1e-2


def gapped(model: Any, into: Any) -> Pairs:
    """Pairs whose clean run is right and whose corrupted run is wrong, by choice of answers."""
    pairs = replace(make(model), into=into)
    clean, corrupted = (
        torch.stack([model(row.tokens)[0, -1] for row in side])
        for side in (pairs.clean, pairs.corrupted)
    )
    order = (clean - corrupted).argsort(-1)
    answers = torch.stack([order[:, -1], order[:, 0]], 1)
    sides = {"clean": pairs.clean, "corrupted": pairs.corrupted}
    return replace(pairs, **{name: replace(s, answers=answers) for name, s in sides.items()})


@pytest.mark.parametrize("into", ["corrupted", "clean"])
@pytest.mark.parametrize("name", ["neox", "llama"])
def test_recovered_fraction(boot_family: Boot, name: str, into: Any) -> None:
    """A ratio of means, with the textbook's jackknife, and each pair's own fraction."""
    model = boot_family(name)
    pairs = gapped(model, into)
    result = compare(
        model,
        pairs,
        treatment={"position0": sinklens.patch_position(model, pairs, 1)},
        control=sinklens.patch_position(model, pairs, 1, position=1),
    )
    plain = Plain(model, pairs)
    own, other = plain.difference(None), plain.difference(None, 1)
    clean, corrupted = (own, other) if into == "clean" else (other, own)
    for kind, position in (("treatment", 0), ("control", 1)):
        hooks = {"layer": 1, "position": position}
        patched = plain.difference(lambda c, hooks=hooks: stream_hooks(c, **hooks))
        ratio, low, high = jackknife(patched - corrupted, clean - corrupted)
        row = result.find(
            metric="recovered_fraction", kind="measurement" if kind == "treatment" else kind
        )
        assert row.value == pytest.approx(ratio, abs=1e-4)
        assert row.baseline == (1 if into == "clean" else 0)
        ends = (row.ci_low + row.baseline, row.ci_high + row.baseline)  # type: ignore[operator]
        assert ends == pytest.approx((low, high), abs=1e-3)
        if kind == "treatment":
            array = result.arrays["recovered_by_pair"]
            each = (patched - corrupted) / (clean - corrupted)
            assert array.labels("condition") == ["position0"]
            np.testing.assert_allclose(array.values[0].numpy(), each, atol=1e-4)
    contrast = result.find(metric="recovered_fraction", kind="contrast")
    both = [result.find(metric="recovered_fraction", kind=k) for k in ("measurement", "control")]
    assert contrast.effect == pytest.approx(both[0].effect - both[1].effect, abs=1e-9)
    assert result.findings["patched"] == into
    assert f"against the unpatched {into} run" in result.summary[0]
    assert any("recovered_fraction of position0" in line for line in result.summary)


def jackknife(gained: np.ndarray, gap: np.ndarray) -> tuple[float, float, float]:
    """A ratio of means, with the t interval of its leave-one-out standard error."""
    count = len(gap)
    left = np.array([np.delete(gained, i).mean() / np.delete(gap, i).mean() for i in range(count)])
    error = np.sqrt((count - 1) / count * ((left - left.mean()) ** 2).sum())
    ratio, reach = gained.mean() / gap.mean(), stats.t.ppf(0.975, count - 1) * error
    return ratio, ratio - reach, ratio + reach


@pytest.mark.parametrize("into", ["corrupted", "clean"])
def test_everything_patched_is_the_other_run(boot_family: Boot, into: Any) -> None:
    """The whole stream entering block 0: a fraction of 1, or of 0; one pair, so no interval."""
    model = boot_family("llama")
    pairs = gapped(model, into)[0]
    with torch.no_grad():
        _, cache = model.run_with_cache(pairs.written.tokens)
    point = "blocks.0.hook_resid_pre"
    whole = sinklens.Intervention.from_values(point, cache[point])
    result = compare(model, pairs, treatment=whole)
    row = result.find(metric="recovered_fraction")
    assert row.value == pytest.approx(float(into == "corrupted"), abs=1e-5)
    assert row.ci_low is None
    assert row.value == pytest.approx(float(result.arrays["recovered_by_pair"].values[0, 0]))


def test_keys_and_values_of_position_0(boot_family: Boot) -> None:
    """Query 0's own output stays that of the patched run."""
    model = boot_family("gpt2")
    pairs = make(model)
    for part in ("key", "value"):
        site = f"blocks.1.attn.hook_{part[0]}"
        result = compare(
            model, pairs, treatment=sinklens.patch_position(model, pairs, 1, part=part)
        )

        def hooks_of(cache: Any, site: str = site) -> list[Any]:
            def write(x: Tensor, hook: Any) -> Tensor:
                x = x.clone()
                x[:, 0] = cache[site][:, 0]
                return x

            return [(site, write)]

        plain = Plain(model, pairs)
        changed = plain.difference(hooks_of) - plain.difference(None)
        # The last layer: query 0's own output reaches no later position.
        assert result.effects[0].effect == pytest.approx(changed.mean(), abs=1e-4)
        assert result.effects[0].condition == f"position0:{part}"


def test_no_fraction_of_nothing(boot_family: Boot) -> None:
    """Where the runs' mean difference cannot be told from 0, a note stands in its place."""
    model = boot_family("llama")
    pairs = gapped(model, "corrupted")
    answers = pairs.clean.answers
    assert answers is not None
    answers = torch.cat([answers[:2], answers[2:].flip(1)])
    sides = {"clean": pairs.clean, "corrupted": pairs.corrupted}
    turned = {name: replace(side, answers=answers) for name, side in sides.items()}
    pairs = replace(pairs, **turned)
    result = compare(model, pairs, treatment=sinklens.patch_heads(model, pairs, HEADS))
    assert {row.metric for row in result.effects} == {"logit_diff"}
    assert any(line.startswith("No recovered fraction") for line in result.notes())


def test_coverage_of_the_interval() -> None:
    """20 pairs, gaps of 2 +- 1: the interval holds the true ratio in 95 % of 2,000 samples."""
    random, truth, held = np.random.default_rng(0), 0.4, 0
    for _ in range(2000):
        gap = random.normal(2, 1, 20)
        patched = (truth * gap + random.normal(0, 0.5, 20))[None]
        values = recovered(patched, gap, np.zeros(20))[0]
        interval = stats.ttest_1samp(values, 0).confidence_interval()
        held += interval.low <= truth <= interval.high
    assert 0.93 < held / 2000 < 0.97


def test_metrics_without_logit_diff_have_no_fraction(boot_family: Boot, tmp_path: Path) -> None:
    model = boot_family("llama")
    pairs = make(model, answers=None)
    patch = sinklens.patch_heads(model, pairs, HEADS)
    result = compare(model, pairs, treatment=patch, metrics=["kl"])
    assert {row.metric for row in result.effects} == {"kl"}
    loaded = sinklens.ExperimentResult.load(result.save(tmp_path / "out"))
    assert loaded == result


def test_pairs_are_sliced_together(boot_family: Boot) -> None:
    model = boot_family("llama")
    pairs = make(model)
    assert (pairs.patched, pairs.written) == (pairs.corrupted, pairs.clean)
    assert pairs.reversed().patched == pairs.clean and pairs.reversed().reversed() == pairs
    some = pairs[1:3]
    assert len(some) == 2 and some.clean == pairs.clean[1:3]
    assert some.corrupted == pairs.corrupted[1:3]
