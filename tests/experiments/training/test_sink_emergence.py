"""Onsets of known curves, and traits that are those of each checkpoint."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from typer.testing import CliRunner

import sinklens
from sinklens import SinklensError
from sinklens.cli import app
from sinklens.core.errors import UsageError
from sinklens.experiments.training import _followed
from sinklens.experiments.training._checkpoints import _number_in
from sinklens.experiments.training._onsets import onset_values
from sinklens.experiments.training._traits import largest_column, read_traits, references
from sinklens.functional.onset import onset
from sinklens.hooks.matching import control_positions
from sinklens.models import weights_hash
from sinklens.models.prompts import Prompts, random_prompts
from sinklens.probes.patterns import MeanPatterns, PatternReader
from sinklens.results.estimates import Sample
from sinklens.runner import registry
from sinklens.runner.run import Run
from sinklens.zoo import folder
from tests import families

pytestmark = pytest.mark.slow

STEPS = np.array([0.0, 1, 3, 7, 15])


def keep(module: Any, arguments: Any, output: Any, *, kept: list[Any]) -> None:
    kept.append(output)


def run(model: Any, prompts: Prompts, **settings: Any) -> Any:
    return sinklens.run("sink_emergence", model, prompts, progress=False, **settings)


@pytest.fixture(scope="module")
def rope() -> Any:
    return sinklens.load("rope")


@pytest.fixture(scope="module")
def prompts(rope: Any) -> Prompts:
    return sinklens.prompts(rope, n=5, length=24)


@pytest.fixture(scope="module")
def result(rope: Any, prompts: Prompts) -> Any:
    return run(rope, prompts)


def test_onset_of_known_curves() -> None:
    """log2(1 + step) is 0, 1, 2, 3, 4: a straight line is half way at 2, a jump in its middle."""
    assert onset(STEPS, np.array([0.0, 1, 2, 3, 4])) == pytest.approx(2)
    assert onset(STEPS, np.array([5.0, 5, 5, 9, 9])) == pytest.approx(2.5)
    assert onset(STEPS, np.array([1.0, 0.9, 0.25, 0.2, 0.0])) == pytest.approx(1 + 0.4 / 0.65)
    assert onset(STEPS, np.array([0.0, 6, 0, 10, 10])) == pytest.approx(5 / 6)  # the first time


def trait(curves: np.ndarray, null: float = 0.0) -> dict[int, Sample]:
    """A trait of prompts `[step, prompt]`."""
    return {int(s): Sample(row, null) for s, row in zip(STEPS, curves, strict=True)}


def test_onsets_of_prompts_that_agree_have_no_spread() -> None:
    curves = np.outer([0.0, 0, 1, 1, 1], [1.0, 2, 3, 4])
    values = onset_values(trait(curves), 1)
    assert values is not None
    np.testing.assert_allclose(values, 1.5)
    mixed = curves + np.outer([0.0, 1, 0, 0, 0], [0.3, 0, 0, 0])
    found = onset_values(trait(mixed), 1)
    whole = onset(STEPS, mixed.mean(1))
    without = [onset(STEPS, np.delete(mixed, p, 1).mean(1)) for p in range(4)]
    assert found is not None
    assert found.mean() == pytest.approx(whole)
    # Their standard error is the jackknife's: (n - 1) / n times the sum of squares, rooted.
    spread = math.sqrt(3 / 4 * sum((one - np.mean(without)) ** 2 for one in without))
    assert found.std(ddof=1) / 2 == pytest.approx(spread)
    assert spread > 0


def test_what_does_not_appear_has_no_onset() -> None:
    rising = np.outer([0.0, 0, 1, 1, 1], [1.0, 2, 3, 4])
    assert onset_values(trait(rising), 1) is not None
    assert onset_values(trait(rising, null=9.0), 1) is None  # ends below its null
    assert onset_values(trait(rising), -1) is None  # goes the other way
    assert onset_values(trait(-rising), -1) is not None
    falling = (
        1 - np.outer([0.0, 0.2, 0.5, 0.9, 1.0], np.ones(4)) + np.outer(np.ones(5), [-1, 1, -2, 2])
    )
    assert onset_values(trait(falling), 0) is None  # vanishes
    flat = np.tile([1.0, 2, 3, 4], (5, 1))
    assert onset_values(trait(flat), 1) is None
    noisy = np.outer([0.0, 0, 1, 1, 1], [1.0, -1, 2, -2])
    assert onset_values(trait(noisy), 1) is None
    assert onset_values({0: Sample(rising[0]), 1: Sample(rising[4])}, 1) is None


def test_traits_are_those_of_each_checkpoint(result: Any, prompts: Prompts) -> None:
    """Against plain Hugging Face on the same file: attention, values and hidden states."""
    assert result.findings["steps"] == [0, 32, 64, 128, 256, 512, 1024, 2048, 4000]
    assert result.findings["weights"]["64"] == weights_hash(sinklens.load("rope", step=64))
    for step in (32, 4000):
        with folder("rope", step=step) as path:
            plain = transformers.LlamaForCausalLM.from_pretrained(
                path, dtype=torch.float32, attn_implementation="eager"
            ).eval()
        places = control_positions(24, 5, 0)
        values: list[torch.Tensor] = []
        for layer in plain.model.layers:
            layer.self_attn.v_proj.register_forward_hook(partial(keep, kept=values))
        with torch.no_grad():
            out = plain(prompts.tokens, output_attentions=True, output_hidden_states=True)
        attention = torch.stack(out.attentions, 1)
        # The last hidden state of Hugging Face is normed; the block's own is not.
        ends: list[torch.Tensor] = []
        last = plain.model.layers[-1].register_forward_hook(partial(keep, kept=ends))
        with torch.no_grad():
            plain(prompts.tokens)
        last.remove()
        columns = attention.mean(2).sum(-2) / torch.arange(24, 0, -1)
        ratios = [
            state.abs().flatten(1).amax(1) / state.abs().flatten(1).median(1).values
            for state in (*out.hidden_states[:-1], ends[0])
        ]
        norms = (
            torch.stack(values[: len(plain.model.layers)], 1).unflatten(-1, (4, 32)).norm(dim=-1)
        )
        wanted = {
            "sink_mass": attention[..., 1:, 0].mean((1, 2, 3)),
            "largest_early_column": columns[..., :13].amax(-1).mean(1),
            "spike": torch.stack(ratios).amax(0),
            "value_drain": (norms[:, :, 0] / norms[:, :, 1:].mean(2)).mean((1, 2)),
        }
        for name, value in wanted.items():
            row = result.find(metric=name, condition=f"step{step}", kind="measurement")
            found = result.per_prompt["value"][result.effects.index(row)].float()
            torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5)
        if step < 4000:
            continue
        # What the last checkpoint is set against: the same at later positions.
        streams = torch.stack([*out.hidden_states[:-1], ends[0]])
        medians = torch.stack([s.abs().flatten(1).median(1).values for s in streams])
        peaks = (streams.abs().amax(-1) / medians[..., None]).amax(0)
        drains = (norms / norms[:, :, 1:].mean(2)[:, :, None]).mean((1, 3))
        later = {
            "sink_mass": [attention[..., p + 1 :, p].mean((1, 2, 3)) for p in places],
            "spike": [peaks[:, p] for p in places],
            "value_drain": [drains[:, p] for p in places],
        }
        uniform = np.mean([np.mean([1 / (i + 1) for i in range(p + 1, 24)]) for p in places])
        for name, values_at in later.items():
            row = result.find(metric=name, against="later_position", kind="control")
            found = result.per_prompt["value"][result.effects.index(row)].float()
            torch.testing.assert_close(found, torch.stack(values_at).mean(0), rtol=1e-5, atol=1e-5)
            contrast = result.find(metric=name, against="later_position", kind="contrast")
            own = wanted[name] if name != "spike" else peaks[:, 0]
            null = result.find(metric=name, condition="step4000", against=None).baseline
            if name == "spike":
                null = row.baseline
            assert contrast.value == pytest.approx(float(own.mean()) - null, rel=1e-5)
            assert contrast.baseline == pytest.approx(row.effect)
        mass = result.find(metric="sink_mass", against="later_position", kind="control")
        assert mass.baseline == pytest.approx(float(uniform))


def test_the_largest_column_stands_beside_permuted_rows(result: Any) -> None:
    """Which keep how peaked a row is, and have no column that all queries share."""
    null = result.find(metric="largest_early_column", against="row_permuted", kind="null")
    contrast = result.find(metric="largest_early_column", against="row_permuted", kind="contrast")
    last = result.find(metric="largest_early_column", condition="step4000", against=None)
    assert null.baseline == last.baseline < null.value < last.value / 1.5
    assert contrast.effect == pytest.approx(last.effect - null.effect) and contrast.ci_low > 0


@pytest.mark.parametrize("name", ["window", "encoder"])
def test_what_traits_are_set_against_is_measured_as_they_are(name: str) -> None:
    """Also where a query does not see all keys before it, or sees those after it."""
    model = sinklens.load(name)
    prompts = sinklens.prompts(model, n=2, length=40)
    declared = registry.get("sink_emergence")
    run = Run(declared, model, prompts, declared.config(draws=2, progress=False))
    traits = read_traits(run, model)
    beside = references(run, model, traits)
    reader = PatternReader(model, sinklens.check(model), prompts.tokens)
    probe = MeanPatterns(model, reader, [largest_column], uniform=True)
    sinklens.evaluate(model, prompts, [], [], probes=[probe], progress=False)
    read = probe.compute()
    own = read["attention", "largest"].double().mean(1).numpy()
    np.testing.assert_allclose(traits["largest_early_column"].values, own, atol=1e-6)
    even = float(read["uniform", "largest"].double().mean())
    assert traits["largest_early_column"].null == pytest.approx(even, abs=1e-6)
    for (reference,) in beside.values():
        values = reference.sample.values
        assert values.shape[-1] == 2 and torch.isfinite(values).all()


def test_the_last_checkpoint_stands_beside_random_weights(
    result: Any, rope: Any, prompts: Prompts
) -> None:
    """Which are like those of step 0: a fresh draw has no trait, and the summary says the rest."""
    for name in ("sink_mass", "spike", "largest_early_column"):
        null = result.find(metric=name, against="random_weights", kind="null")
        first = result.find(metric=name, condition="step0")
        last = result.find(metric=name, condition="step4000", against=None)
        contrast = result.find(metric=name, against="random_weights", kind="contrast")
        assert null.value == pytest.approx(first.value, rel=0.25)
        assert contrast.effect == pytest.approx(last.effect - null.effect)
        # One such model differs from the next, which an interval over prompts leaves out.
        assert contrast.ci_low is None and contrast.p_value is None
    line = next(line for line in result.summary if line.startswith("sink_mass"))
    assert "its later-position control (" in line
    assert "above uniform attention (" in line
    assert "one model with random weights (" in line
    few = {"checkpoints": ("0", "256", "4000"), "conditions": ("sink_mass",)}
    bare = run(rope, prompts, **few, random_weights=False, draws=0)
    assert {row.kind for row in bare.effects} == {"measurement"}
    assert any("draws is 0" in note for note in bare.notes())


def test_order_batches_and_seed(rope: Any) -> None:
    """Rows follow their prompts, batches change nothing, and the seed decides what is drawn."""
    prompts = sinklens.prompts(rope, n=3, length=12)
    few = {"checkpoints": ("0", "4000"), "draws": 2}
    whole = run(rope, prompts, **few)
    reverse = Prompts(prompts.tokens.flip(0), prompts.bos, prompts.source)
    for other in (run(rope, prompts, **few, batch_size=2), run(rope, reverse, **few)):
        for one, two in zip(whole.effects, other.effects, strict=True):
            assert (one.metric, one.condition, one.kind) == (two.metric, two.condition, two.kind)
            assert one.value == pytest.approx(two.value, rel=1e-5, abs=1e-6)
    torch.rand(2)
    again, seeded = run(rope, prompts, **few), run(rope, prompts, **few, seed=1)
    assert again.effects == whole.effects != seeded.effects
    read = [e for e in whole.effects if e.kind == "measurement"]
    assert read == [e for e in seeded.effects if e.kind == "measurement"]


def test_rows_of_some_queries_and_without_an_interval(rope: Any) -> None:
    """The first are followed with their range in the name, the others not at all."""
    prompts = sinklens.prompts(rope, n=3, length=12)
    steps = {"checkpoints": ("0", "4000"), "conditions": ("sink_mass",), "draws": 0}
    found = run(
        rope,
        prompts,
        **steps,
        experiment="absolute_position",
        rows=("residual_share:all_keys@1:8",),
    )
    rows = [e for e in found.effects if e.metric == "residual_share:all_keys@1:8"]
    assert len(rows) == 2 and all(e.ci_low is not None for e in rows)
    with pytest.raises(UsageError, match="no row constancy:position0"):
        run(
            rope,
            prompts,
            **steps,
            experiment="spike_sink_decoupling",
            rows=("constancy:position0",),
        )


def test_a_row_that_shrinks_does_not_appear() -> None:
    falling = np.outer([5.0, 4, 3, 2, 1], [1.0, 1.1, 0.9, 1])
    assert onset_values(trait(falling), 0) is None
    assert onset_values(trait(-falling), 0) is None
    assert onset_values(trait(falling[::-1]), 0) is not None


def test_sinks_of_rope_appear_late_and_after_the_values_drain(result: Any) -> None:
    onsets = result.findings["onsets"]
    assert onsets["value_drain"]["step"] < onsets["sink_mass"]["step"]
    assert onsets["sink_mass"]["between"] == [1024, 2048]
    order = result.find(metric="onset_order", condition="spike after value_drain")
    assert order.ci_low > 0
    said = result.summary[0]
    assert said.startswith("Order of onsets: ") and "spike after value_drain (+" in said
    # Two onsets between the same checkpoints are apart by the line drawn there alone.
    orders = [
        row.condition.split(" after ") for row in result.effects if row.metric == "onset_order"
    ]
    near = [pair for pair in orders if len({str(onsets[name]["between"]) for name in pair}) == 1]
    assert near
    for second, first in near:
        clause = f"{second} and {first} not resolved, since their bracketing checkpoints overlap"
        assert clause in said
    assert "One training run; another seed may order them otherwise." in result.summary
    late = next(line for line in result.summary if line.startswith("sink_mass goes from"))
    assert "Half-maximum reached at step 1" in late
    assert late.endswith("; bracketing checkpoints 1024, 2048).")
    steps = result.findings["steps"]
    middle = (math.log2(1 + steps[0]) + math.log2(1 + steps[-1])) / 2
    assert result.find(metric="onset", condition="spike").baseline == pytest.approx(middle)
    curves = [trace for trace in result.plot().data if trace.mode == "lines+markers"]
    assert len(result.summary) <= 12 and len(curves) == 4


def test_a_trait_that_stays_at_its_null_is_said_not_to_appear() -> None:
    model = sinklens.load("postnorm")
    found = run(model, sinklens.prompts(model, n=5, length=24), conditions=("sink_mass",))
    assert found.findings["onsets"] == {"sink_mass": None}
    line = next(line for line in found.summary if line.startswith("sink_mass"))
    assert line.endswith("No onset: it does not appear.")
    assert any("Without an onset" in note and "sink_mass" in note for note in found.notes())
    assert "share_of_change" not in found.arrays and found.plot().data


@pytest.mark.heavy
def test_rows_of_another_experiment_are_followed(rope: Any, prompts: Prompts) -> None:
    found = run(
        rope,
        prompts,
        checkpoints=("0", "256", "4000"),
        experiment="sink_profile",
        rows=("sink_rate:gu",),
        conditions=("sink_mass",),
    )
    other = sinklens.run("sink_profile", rope, prompts, progress=False)
    row = found.find(metric="sink_rate:gu", condition="step4000", against=None)
    assert row.value == pytest.approx(other.find(metric="sink_rate", condition="gu").value)
    edits = {"experiment": "sink_head_ablation", "checkpoints": ("0", "2048", "4000")}
    refused = run(rope, prompts, **edits, conditions=("sink_mass",))
    assert "no head" in refused.settings["left_out"]["sink_head_ablation at step 0"]
    assert {row.metric for row in refused.effects} >= {"loss:zero:matched", "kl:zero:matched"}
    # A row that has a control is followed as the contrast with it.
    ablation = sinklens.run("sink_head_ablation", rope, prompts, progress=False, null_models=0)
    contrast = ablation.find(metric="loss", condition="zero:matched", kind="contrast")
    followed = refused.find(metric="loss:zero:matched", condition="step4000")
    assert followed.value == pytest.approx(contrast.effect, rel=1e-5)
    assert followed.unit == "nats"
    assert refused.measure("loss:zero:matched").null == "no difference from its control"


def test_a_row_that_becomes_another_kind_is_left_out(
    rope: Any, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A contrast at step 0; at step 4000 there is no control, as where nothing can be matched."""
    draws = iter((2, 0))
    plain = registry.run

    def without_a_control_later(name: str, *given: Any, **settings: Any) -> Any:
        return plain(name, *given, **{**settings, "draws": next(draws), "null_models": 0})

    monkeypatch.setattr(_followed.registry, "run", without_a_control_later)
    edits = {"experiment": "bos_replacement", "rows": ("loss:zero",)}
    result = plain(
        "sink_emergence",
        rope,
        prompts,
        checkpoints=("0", "4000"),
        conditions=("sink_mass",),
        progress=False,
        **edits,
    )
    assert "loss:zero at step 4000" in result.settings["left_out"]
    followed = {row.condition for row in result.effects if row.metric == "loss:zero"}
    assert followed == {"step0"}
    assert result.measure("loss:zero").null == "no difference from its control"


def test_folders_are_checkpoints_of_any_model(prompts: Prompts, tmp_path: Path) -> None:
    paths = []
    for step in (0, 4000):
        with folder("rope", step=step) as path:
            paths.append(shutil.copytree(path, tmp_path / f"step{step}"))
    model = sinklens.load(paths[1])
    found = run(model, prompts, checkpoints=tuple(map(str, paths)), conditions=("sink_mass",))
    assert found.findings["steps"] == [0, 4000]
    assert all(math.isfinite(row.value) for row in found.effects)
    with pytest.raises(SinklensError, match="came as folder"):
        run(model, prompts)


def test_revisions_of_the_hub_are_checkpoints(rope: Any, prompts: Prompts, tmp_path: Path) -> None:
    """From a cache laid out as the hub's client does it, so that nothing is fetched."""
    cache = tmp_path / "hub" / "models--owner--name"
    (cache / "refs").mkdir(parents=True)
    for number, (revision, step) in enumerate({"main": None, "step64": 64, "step512": 512}.items()):
        (cache / "refs" / revision).write_text(f"{number:040x}")
        with folder("rope", step=step) as files:
            shutil.copytree(files, cache / "snapshots" / f"{number:040x}")
    command = [
        *(sys.executable, "-m", "sinklens", "run", "sink_emergence", "owner/name", "--quiet"),
        *("--n-prompts", str(len(prompts.tokens)), "--length", str(prompts.length)),
        *("--set", "checkpoints=step64,step512", "--set", "conditions=value_drain"),
        *("--out", str(tmp_path / "out")),
    ]
    here = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = sinklens.ExperimentResult.load(tmp_path / "out")
    assert found.provenance["model"]["name"] == "owner/name"
    wanted = run(rope, prompts, checkpoints=("64", "512"), conditions=("value_drain",))
    assert found.findings["weights"] == wanted.findings["weights"]
    assert [row.value for row in found.effects] == [row.value for row in wanted.effects]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoints": ("5",)}, "no checkpoint of step 5"),
        ({"checkpoints": ("last",)}, "no checkpoint of step last"),
        ({"checkpoints": ("4000",)}, "at least two checkpoints"),
        ({"checkpoints": ("64", "step64")}, "of the same step"),
        ({"checkpoints": ("64", "main")}, "no step can be read from checkpoint main"),
        ({"conditions": ("loss",)}, "unknown condition of sink_emergence 'loss'"),
        ({"metrics": ("loss",)}, "takes no metrics"),
        ({"positions": (3,)}, "no positions"),
        ({"rows": ("loss:zero",)}, "experiment="),
        ({"experiment": "sink_profil"}, "sink_profile"),
        ({"experiment": "sink_emergence"}, "itself"),
        ({"experiment": "sink_profile", "rows": ("sink_mas:gu",)}, "did you mean sink_mass"),
        ({"experiment": "sink_profile", "rows": ("sink_mass",)}, "has no condition"),
        ({"experiment": "sink_profile", "rows": ("sink_mass:gu",)}, "no row sink_mass:gu"),
    ],
)
def test_bad_settings(rope: Any, prompts: Prompts, settings: Any, message: str) -> None:
    few = {"checkpoints": ("0", "4000")} if "checkpoints" not in settings else {}
    with pytest.raises(SinklensError, match=message):
        run(rope, prompts, **few, **settings)


def test_steps_are_read_from_names() -> None:
    assert [
        _number_in(n) for n in ("step1000-tokens4B", "stage1-step-500", "rope2048", "main")
    ] == [
        1000,
        500,
        2048,
        None,
    ]


def test_a_model_of_unknown_origin_is_refused() -> None:
    model = families.boot("llama")
    with pytest.raises(SinklensError, match="where a model came from"):
        run(model, random_prompts(model, n=3, length=8))
    one = sinklens.load("nope")
    with pytest.raises(UsageError, match="no checkpoint"):
        run(one, sinklens.prompts(one, n=3, length=8), checkpoints=("32", "64"))


def test_the_command(tmp_path: Path) -> None:
    command = (
        "run sink_emergence rope --n-prompts 3 --length 16 --quiet --set checkpoints=0,256,4000"
    )
    done = CliRunner().invoke(app, [*command.split(), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    loaded = sinklens.ExperimentResult.load(tmp_path / "out")
    assert loaded.findings["steps"] == [0, 256, 4000]
