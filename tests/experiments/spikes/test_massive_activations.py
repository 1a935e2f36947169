"""Massive activations: planted ones are found exactly, and effects are those of plain Hugging Face.

The planted model is a GPT-2 whose MLP biases write a known number into a channel that nothing else
writes to. The second computation (`plain_metrics`) uses forward hooks on plain Hugging Face layers
and numpy, and shares nothing with sinklens but the draws.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from typer.testing import CliRunner

import sinklens
from sinklens import SinklensError
from sinklens.cli import app
from sinklens.core.labels import stage_name
from sinklens.core.seeds import seeded
from sinklens.engine.shortcuts import assume_shortcuts, shortcuts
from sinklens.functional.massive import rises
from sinklens.hooks import replace_entries
from sinklens.models.prompts import Prompts, random_prompts
from sinklens.probes import Criterion, Entries, PeakTrace, StreamEntries
from sinklens.probes.stream_entries import LargestEntries
from sinklens.stats.nulls import gaussian_exceeds, gaussian_peak_ratio, largest_share
from sinklens.zoo.constructed import ConstructedSink, constructed_sink
from tests import families
from tests.reference import plain_hf

pytestmark = pytest.mark.slow

CHANNEL, UP, DOWN = 7, 5000.0, -4000.0
WIDTH, LAYERS = 32, 4


def planted() -> transformers.GPT2LMHeadModel:
    """A GPT-2 with `UP` in one channel from layer 1's MLP on, and `DOWN` more from layer 3's."""
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=families.VOCABULARY,
            bos_token_id=families.BOS,
            eos_token_id=families.EOS,
            pad_token_id=families.PAD,
            n_layer=LAYERS,
            n_head=4,
            n_embd=WIDTH,
            n_positions=64,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            architectures=["GPT2LMHeadModel"],
            attn_implementation="eager",
        )
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        for layer, block in enumerate(model.transformer.h):
            for projection in (block.attn.c_proj, block.mlp.c_proj):
                projection.weight[:, CHANNEL] = 0
                projection.bias[CHANNEL] = 0
            block.mlp.c_proj.bias[CHANNEL] = {1: UP, 3: DOWN}.get(layer, 0.0)
    return model


def run(model: Any, prompts: Prompts, **settings: Any) -> Any:
    settings = {"null_models": 0, "progress": False, **settings}
    return sinklens.run("massive_activations", model, prompts, **settings)


@pytest.fixture(scope="module")
def model() -> Any:
    return sinklens.load(planted(), tokenizer=families.tiny_tokenizer())


@pytest.fixture(scope="module")
def prompts(model: Any) -> Prompts:
    return random_prompts(model, n=5, length=12)


def test_a_planted_spike_is_found_exactly(model: Any, prompts: Prompts) -> None:
    result = run(model, prompts, draws=2, criterion="absolute:layer_median")
    plain = planted()
    with torch.no_grad():
        embedded = plain.transformer.wte(prompts.tokens) + plain.transformer.wpe.weight[:12]
    own = embedded[..., CHANNEL]
    found = result.findings
    # Nothing but the two biases writes to the channel, so the largest entry sits where the
    # embedding is largest, and keeps its size until layer 3's MLP.
    assert found["channels"][0] == CHANNEL
    assert found["peak_after"] in {stage_name(stage) for stage in range(4, 8)}
    peak = own.max(1)
    stages = [stage_name(stage) for stage in range(2 * LAYERS + 1)]
    assert list(result.arrays["top_magnitude"].coords["stage"]) == stages
    sizes = result.arrays["top_magnitude"].values[:, 0]
    assert sizes[5] == pytest.approx(float((UP + peak.values).mean()), rel=1e-6)
    assert found["peak_size"] == pytest.approx(float(sizes[stages.index(found["peak_after"])]))
    up = result.find(metric="step_up", condition="L1 MLP")
    down = result.find(metric="step_down", condition="L3 MLP")
    assert up.value == pytest.approx(float((UP / (UP + peak.values)).mean()), rel=1e-5)
    assert down.value == pytest.approx(float((DOWN / (UP + peak.values)).mean()), rel=1e-5)
    before = stages.index(found["peak_after"]) + 1
    assert (up.layer, up.baseline) == (1, pytest.approx(largest_share(before)))
    # All that the sub-blocks after the peak take away is what layer 3's MLP does.
    removed = down.value * largest_share(len(stages) - before)
    assert down.baseline == pytest.approx(removed, rel=1e-3)
    share = float((peak.indices == 0).float().mean())
    assert result.find(metric="peak_at_position0").value == pytest.approx(share)
    # Every position holds the spike, so all of them are edited, where they enter layer 2.
    entries = found["entries"]
    assert found["layer"] == 2
    assert [(e["channel"], e["place"], e["per_prompt"]) for e in entries] == [
        (CHANNEL, "position 0", 1.0),
        (CHANNEL, "later positions", 11.0),
    ] or [e["per_prompt"] for e in entries] == [11.0, 1.0]
    sentences = {
        "Written by L1 MLP: 100% of the peak, above": up,
        "Removed by L3 MLP: 80% of the largest size": down,
    }
    for sentence, row in sentences.items():
        (line,) = (line for line in result.summary if sentence in line)
        assert f"the broken-stick expectation ({abs(row.baseline):.0%})" in line


def test_criteria_and_kurtosis() -> None:
    stream = torch.ones(1, 3, 100)
    stream[0, 1, 4] = -2000.0
    stream[0, 2] = 3.0
    assert Criterion(100.0, 1000.0).holds(stream).nonzero().tolist() == [[0, 1, 4]]
    assert Criterion(100.0, 2001.0).holds(stream).sum() == 0
    assert Criterion(2001.0, 1.0).holds(stream).sum() == 0
    stream[0, 1] = 5.0
    stream[0, 1, 4] = -2000.0
    # The token's own median is 5, the prompt's is 3.
    assert Criterion(100.0, 500.0, "layer_median").holds(stream).sum() == 1
    assert Criterion(100.0, 401.0, "token_median").holds(stream).sum() == 0
    assert Criterion(100.0, 400.0, "token_median").holds(stream).sum() == 1


def test_gaussian_null() -> None:
    """What the baseline says about Gaussian entries holds for drawn ones."""
    draws = np.abs(np.random.default_rng(0).standard_normal((400, 2000)))
    ratio = np.median(draws.max(1)) / np.median(draws)
    assert gaussian_peak_ratio(2000) == pytest.approx(ratio, rel=0.02)
    fourth, second = (draws**4).mean(1), (draws**2).mean(1)
    assert pytest.approx(float((fourth / second**2).mean()), rel=0.02) == 3 * 2000 / 2002


def test_rises_and_their_falls() -> None:
    """A fall to half the threshold separates two rises; less does not."""
    ratios = [1.0, 60.0, 80.0, 30.0, 70.0, 24.0, 49.0, 50.0, 90.0, 26.0]
    assert rises(ratios, 50.0) == [(1, 2, 4), (7, 8, 9)]
    assert rises(ratios, 1000.0) == [(8, 8, 8)]  # at least the largest
    assert rises([2.0, 1.5, 1.2], 1.0) == [(0, 0, 2)]


def test_writers_of_a_peak_that_is_not_the_largest_size() -> None:
    """The stream grows faster than the spike, so that its ratio peaks before its size does.

    Plain Hugging Face hidden states hold the sizes: what writes up to the peak sums to all of it,
    with what the embedding holds, and what removes counts from the largest size on.
    """
    plain = planted()
    with torch.no_grad():
        for layer, block in enumerate(plain.transformer.h):
            block.mlp.c_proj.bias[CHANNEL] = [4000.0, 500.0, 3000.0, -6000.0][layer]
        # All other channels become 50 times as large in layer 2.
        for parameter in plain.transformer.h[2].mlp.c_proj.parameters():
            keep = parameter[..., CHANNEL].clone()
            parameter *= 50.0
            parameter[..., CHANNEL] = keep
    model = sinklens.load(copy.deepcopy(plain), tokenizer=families.tiny_tokenizer())
    prompts = random_prompts(model, n=5, length=12)
    result = run(model, prompts, draws=1, criterion="scale_free")
    left: list[Tensor] = []
    for block in plain.transformer.h:
        block.register_forward_hook(lambda _, __, out: left.append(_first(out)))
    with torch.no_grad():
        embedded = plain(prompts.tokens, output_hidden_states=True).hidden_states[0]
    states = torch.stack([embedded, *left])
    (found,) = result.findings["steps"]
    assert (found["peak_after"], found["largest_after"]) in {
        (peak, largest)
        for peak in ("L1 attention", "L1 MLP", "L2 attention", "L0 MLP")
        for largest in ("L2 MLP", "L3 attention")
    }
    layer = 1 if found["peak_after"] in ("L0 MLP", "L1 attention") else 2
    ratio = (states.abs().flatten(2).amax(2) / states.abs().flatten(2).median(2).values).mean(1)
    assert int(ratio.argmax()) == layer
    rows, positions = torch.arange(5), states[layer].abs().amax(2).argmax(1)
    entry = states[:, rows, positions, CHANNEL]
    shares = result.arrays["written_share"]
    assert float(shares.values.sum()) == pytest.approx(1, abs=1e-6)
    by_layer = {"embedding": float((entry[0] / entry[layer]).mean())}
    for at in range(layer):
        by_layer[f"L{at} MLP"] = float(((entry[at + 1] - entry[at]) / entry[layer]).mean())
    for writer, share in zip(shares.coords["writer"], shares.values.tolist(), strict=True):
        assert share == pytest.approx(by_layer.get(writer, 0.0), abs=1e-5), writer
    assert found["peak_size"] == pytest.approx(float(entry[layer].mean()), rel=1e-5)
    assert found["largest_size"] == pytest.approx(float(entry[3].mean()), rel=1e-5)
    assert set(found["removers"]) == {"L3 MLP"}
    down = result.find(metric="step_down", condition="L3 MLP")
    assert down.value == pytest.approx(float(((entry[4] - entry[3]) / entry[3]).mean()), rel=1e-5)
    assert -1 < down.value < down.baseline < 0


def _first(output: Any) -> Tensor:
    """The stream that leaves a block."""
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream


def test_a_step_that_is_no_more_than_random_shares_is_said_to_be_none() -> None:
    """Six sub-blocks write alike, so that each has a fifth or a sixth of the peak."""
    plain = planted()
    with torch.no_grad():
        for layer, block in enumerate(plain.transformer.h):
            for projection in (block.attn.c_proj, block.mlp.c_proj):
                projection.bias[CHANNEL] = UP / 6 if layer < 3 else 0.0
    model = sinklens.load(plain, tokenizer=families.tiny_tokenizer())
    result = run(model, random_prompts(model, n=5, length=12), draws=1)
    (row,) = (row for row in result.effects if row.metric == "step_up")
    assert 0.15 < row.value < 0.25 < row.baseline
    line = next(line for line in result.summary if "no single sub-block" in line)
    assert "below the broken-stick expectation" in line and "; besides L" in line


def test_the_largest_of_random_shares() -> None:
    """A stick broken at random into 8 parts, drawn as spacings of uniform points."""
    points = np.sort(np.random.default_rng(0).random((20_000, 7)))
    shares = np.diff(points, axis=1, prepend=0, append=1)
    assert largest_share(8) == pytest.approx(shares.max(1).mean(), rel=0.01)


def plain_metrics(plain: Any, tokens: Tensor, layer: int, edit: Any = None) -> dict[str, Any]:
    """Logits, and sink figures from a layer on, with `edit(stream)` applied to what enters it."""

    def hook(module: Any, arguments: Any) -> Any:
        return (edit(arguments[0]), *arguments[1:])

    handle = plain.model.layers[layer].register_forward_pre_hook(hook) if edit else None
    try:
        record = plain_hf.run(plain, tokens, plain_hf.Edit())
    finally:
        if handle is not None:
            handle.remove()
    return {
        "logits": record.logits,
        "loss": plain_hf.loss(record.logits, tokens, 0),
        "sink_mass": record.sink_mass()[:, layer:].mean((1, 2)),
        "sink_rate": (record.sink_score(0)[:, layer:] > 0.3).float().mean((1, 2)),
    }


CONDITIONS = ("zero", "mean", "flipped_mean", "first_token_mean")


def check_against_plain(plain: Any, model: Any, tokens: Tensor) -> Any:
    """Peak, every edit and two controls on every metric, from the definitions."""
    # In the same kernel of attention: two float32 kernels differ by 2e-5 nats in a KL of 3.5, and
    # lie 1.2e-5 (sdpa) and 3e-5 (eager) from float64. Kernels are compared in engine/test_key0.py.
    assume_shortcuts(model, replace(shortcuts(model), key0=False))
    prompts = Prompts(tokens, bos=True, source="test")
    result = run(model, prompts, draws=1, conditions=CONDITIONS)
    layer = result.findings["layer"]
    with torch.no_grad():
        states = plain(tokens, output_hidden_states=True, use_cache=False).hidden_states
    stream = states[layer].numpy()
    size = np.abs(stream)
    flat = size.reshape(len(size), -1)
    median = np.quantile(flat, 0.5, axis=1, method="lower")[:, None, None]
    if result.findings["criterion"] == "scale_free":
        massive = size >= result.settings["scale_free"] * median
    else:
        massive = (size >= 100) & (size >= 1000 * median)
    rows, positions, channels = massive.nonzero()
    means = {
        (channel, position == 0): stream[:, :, channel][
            massive[:, :, channel] & ((np.arange(size.shape[1]) == 0) == (position == 0))
        ].mean()
        for position, channel in zip(positions, channels, strict=True)
    }

    def written(where: Any, values: Any) -> Any:
        def edit(x: Tensor) -> Tensor:
            x = x.clone()
            x[tuple(map(torch.as_tensor, where))] = torch.as_tensor(values, dtype=x.dtype)
            return x

        return edit

    own = np.array([means[c, p == 0] for p, c in zip(positions, channels, strict=True)])
    random = seeded(0, "massive", "first").choice(
        sinklens.models.ordinary_tokens(model).numpy(), 256
    )
    with torch.no_grad():
        alone = plain(torch.from_numpy(random)[:, None], output_hidden_states=True, use_cache=False)
    first = alone.hidden_states[layer][:, 0].mean(0).numpy()
    ordinary: list[tuple[int, int, int]] = []
    for row in range(len(size)):
        # At the same positions, nearest to the median of each.
        for position in massive[row].any(1).nonzero()[0]:
            here, taken = size[row, position], massive[row, position]
            usual = np.quantile(here, 0.5, method="lower")
            distance = np.where(taken, np.inf, np.abs(here - usual))
            for channel in np.argsort(distance)[: taken.sum()]:
                ordinary.append((row, int(position), int(channel)))
    (moved,) = result.draws["control_channels"][f"L{layer}"]
    elsewhere = [moved[str(channel)] for channel in channels]
    there, values = (rows, positions, channels), stream[massive]
    edits = {
        ("zero", None): written(there, 0.0),
        ("mean", None): written(there, own),
        ("flipped_mean", None): written(there, -own),
        ("first_token_mean", None): written(there, np.where(positions == 0, first[channels], own)),
        ("zero", "median_entries"): written(tuple(zip(*ordinary, strict=True)), 0.0),
        ("zero", "other_channels"): written(
            (rows, positions, elsewhere), stream[rows, positions, elsewhere] - values
        ),
    }
    clean = plain_metrics(plain, tokens, layer)
    for (condition, against), edit in edits.items():
        edited = plain_metrics(plain, tokens, layer, edit)
        edited["kl"] = plain_hf.kl(clean["logits"], edited["logits"], 0)
        for metric in ("loss", "kl", "sink_mass", "sink_rate"):
            kind = "control" if against else "treatment"
            named = {"condition": condition, "kind": kind, "against": against, "layer": layer}
            row = result.find(metric=metric, **named)
            found = result.per_prompt["value"][result.effects.index(row)]
            np.testing.assert_allclose(
                found, edited[metric], atol=1e-5, err_msg=f"{condition} {metric}"
            )
            before = 0.0 if metric == "kl" else float(clean[metric].mean())
            assert row.effect == pytest.approx(float(edited[metric].mean()) - before, abs=1e-5)
    check_position0(result, size, median[:, :, 0])
    # After the MLPs (the last state is behind the final norm); sizes after attention are between.
    entering = torch.stack([state.abs().flatten(1).amax(1) for state in states[:-1]], 1).mean(0)
    sizes = result.arrays["top_magnitude"].values[0:-1:2, 0]
    torch.testing.assert_close(sizes, entering, rtol=1e-5, atol=1e-4)
    return result


def check_position0(result: Any, size: Any, median: Any) -> None:
    """Position 0 of the stream that is edited, beside the positions of the control."""
    places = result.draws["control_positions"]
    assert places and all(1 <= place <= size.shape[1] // 4 for place in places)
    wide = size.astype(float)
    width = size.shape[2]
    figures = {
        "peak_ratio": (size.max(2) / median, gaussian_peak_ratio(width)),
        "kurtosis": (width * (wide**4).sum(2) / (wide**2).sum(2) ** 2, 3 * width / (width + 2)),
    }
    for metric, (values, null) in figures.items():
        here, later = values[:, 0], values[:, places].mean(1)
        rows = {
            kind: result.find(metric=metric, condition="position0", kind=kind)
            for kind in ("measurement", "control", "contrast")
        }
        assert rows["control"].against == rows["contrast"].against == "later_position"
        assert rows["measurement"].baseline == rows["control"].baseline == pytest.approx(null)
        for kind, wanted in (("measurement", here), ("control", later), ("contrast", here - null)):
            found = result.per_prompt["value"][result.effects.index(rows[kind])]
            np.testing.assert_allclose(found, wanted, rtol=1e-4)
        assert rows["contrast"].effect == pytest.approx((here - later).mean(), rel=1e-4)


def test_rope_agrees_with_plain_hugging_face() -> None:
    from sinklens.zoo import folder

    model = sinklens.load("rope")
    with folder("rope") as path:
        plain = transformers.LlamaForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    tokens = sinklens.prompts(model, n=4, length=24).tokens
    result = check_against_plain(plain, model, tokens)
    spikes = result.findings
    assert spikes["criterion"] == "scale_free" and spikes["positions"] == {"0": 4}
    # The entry is largest where it leaves the model, so that nothing removes it.
    assert spikes["step_down"] is None
    assert not [row for row in result.effects if row.metric == "step_down"]
    assert any("No sub-block removes more than 10% of it." in line for line in result.summary)
    check_sentences(result)


def check_sentences(result: Any) -> None:
    """The peak is in one channel, ratios have their threshold, and sinks are counted as well."""
    first, *others = result.findings["channels"]
    peak = result.summary[0]
    assert result.findings["leading_channels"] == [first]
    assert f", in channel {first} ({' and '.join(map(str, others))} large beside it)," in peak
    said = " ".join(result.summary)
    assert "the ratio to the layer's median alone (50 or more): 100%" in said
    assert "by scale_free (50 or more times the layer's median): channel" in said
    for metric in ("sink_mass", "sink_rate"):
        row = result.find(metric=metric, condition="zero", kind="treatment")
        assert f"zero at L2: {metric} over {row.layers} {row.effect:+.3g} {row.unit} [" in said


@pytest.mark.heavy
def test_smollm2_is_found_without_being_told(plain_smollm2: Any, smollm2_tokenizer: Any) -> None:
    """Channel 507 at position 0, written by layer 11's MLP; zeroing it costs nats."""
    model = sinklens.load(copy.deepcopy(plain_smollm2), tokenizer=smollm2_tokenizer)
    tokens = sinklens.prompts(model, n=3, length=24, bos=True).tokens
    result = check_against_plain(plain_smollm2, model, tokens)
    spikes = result.findings
    assert spikes["channels"][0] == 507 and spikes["positions"] == {"0": 3}
    assert float(result.arrays["top_magnitude"].values.max()) > 20_000
    assert result.find(metric="step_up", condition="L11 MLP").value > 0.9
    zero = {"metric": "loss", "condition": "zero", "kind": "contrast", "layer": 12}
    assert result.find(**zero, against="median_entries").effect > 1
    assert result.find(**zero, against="other_channels").effect > 1
    # BOS is the same everywhere, so that each of its entries is its own mean.
    mean = result.find(metric="loss", condition="mean", kind="treatment", layer=12)
    assert mean.effect == pytest.approx(0, abs=1e-4) and "mean" in result.settings["footnotes"]


def test_an_equal_change_goes_to_other_channels_of_the_same_positions(
    model: Any, prompts: Prompts
) -> None:
    """Its norm at each position is that of the treatment, channel 7 stays."""
    from sinklens.comparisons.spikes import OTHER_CHANNELS, SpikeEdits
    from sinklens.probes.stream_entries import EntryValues
    from sinklens.runner.registry import get
    from sinklens.runner.run import Run

    entries = Entries(*(torch.tensor(x) for x in ([0, 0, 1], [0, 3, 2], [7, 7, 9])), torch.ones(3))
    values = EntryValues(entries, [], torch.zeros(2, WIDTH), torch.ones(2))
    experiment = get("massive_activations")
    edits = SpikeEdits(Run(experiment, model, prompts, experiment.config(draws=4)), {2: values})
    stream = torch.randn(2, 12, WIDTH)
    _, cache = model.run_with_cache(prompts.tokens)
    held = cache["blocks.2.hook_resid_pre"][entries.prompt, entries.position, entries.channel]
    (made,) = edits.comparisons("zero", [OTHER_CHANNELS])
    (elsewhere,) = made.controls
    assert len(elsewhere.interventions) == 4
    for control in elsewhere.interventions:
        ((name, hook),) = control.for_prompts(torch.arange(2)).fwd_hooks
        change = hook(stream, hook=None) - stream
        assert name == "blocks.2.hook_resid_pre"
        assert change.nonzero()[:, :2].tolist() == [[0, 0], [0, 3], [1, 2]]
        torch.testing.assert_close(change[change != 0], -held, rtol=1e-5, atol=1e-3)
        moved = change.nonzero()[:, 2].tolist()
        assert moved[0] == moved[1] != moved[2] and not {7, 9} & set(moved)


def test_the_median_entries_stand_at_the_positions_of_the_massive_ones(
    model: Any, prompts: Prompts
) -> None:
    """As many of each position, other channels, nearest to its median; each draw takes others."""
    probe = StreamEntries(model, 2, Criterion(1.0, 3.0), draws=2)
    sinklens.evaluate(model, prompts, [], [], probes=[probe], progress=False)
    found = probe.compute()
    _, cache = model.run_with_cache(prompts.tokens)
    size = cache["blocks.2.hook_resid_pre"].abs().numpy()
    places = [entries_at(entries) for entries in (found.massive, *found.ordinary)]
    assert sum(map(len, places[0].values())) > len(places[0]) > 1
    for (prompt, position), own in places[0].items():
        here = size[prompt, position]
        distance = np.abs(here - np.quantile(here, 0.5, method="lower"))
        nearest = [c for c in np.argsort(distance, kind="stable") if c not in own]
        for draw, drawn in enumerate(places[1:]):
            wanted = nearest[draw * len(own) : (draw + 1) * len(own)]
            assert drawn[prompt, position] == set(wanted)
    assert places[0].keys() == places[1].keys() == places[2].keys()


def test_random_weights_have_their_own_largest_entries(
    model: Any, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many of each prompt as are given, whatever their places; and random models use them."""
    probe = StreamEntries(model, 2, Criterion(1.0, 3.0), draws=1)
    sinklens.evaluate(model, prompts, [], [], probes=[probe], progress=False)
    given = probe.compute()
    numbers = torch.tensor([1, 0])
    largest = LargestEntries(model, 1, given, numbers)
    sinklens.evaluate(model, prompts.take(numbers), [], [], probes=[largest], progress=False)
    found = entries_at(largest.compute().massive)
    _, cache = model.run_with_cache(prompts.tokens)
    size = cache["blocks.1.hook_resid_pre"].abs().numpy()
    for row, number in enumerate(numbers.tolist()):
        count = int((given.massive.prompt == number).sum())
        flat = np.argsort(-size[number].ravel(), kind="stable")[:count]
        wanted = {divmod(int(place), size.shape[-1]) for place in flat}
        mine = {(at, c) for (prompt, at), own in found.items() if prompt == row for c in own}
        assert count > 0 and mine == wanted

    made: list[str] = []

    class Counted(LargestEntries):
        def __init__(self, twin: Any, *rest: Any) -> None:
            assert twin is not model
            made.append("largest")
            super().__init__(twin, *rest)

    monkeypatch.setattr("sinklens.comparisons.spikes.LargestEntries", Counted)
    settings = {"metrics": ("kl",), "scale_free": 3.0, "conditions": ("zero",), "draws": 1}
    run(model, prompts, null_models=2, sweep_tokens=0, **settings)
    assert len(made) >= 2


def entries_at(entries: Entries) -> dict[tuple[int, int], set[int]]:
    """By prompt and position the channels."""
    channels: dict[tuple[int, int], set[int]] = {}
    for prompt, position, channel in torch.stack(entries[:3], 1).tolist():
        channels.setdefault((prompt, position), set()).add(channel)
    return channels


def test_a_spike_in_two_steps() -> None:
    """Written by layer 0's MLP, removed by layer 1's, written again by layer 2's.

    Each step is found, with its writer and remover, and zeroed alone and with the other. Nothing
    but biases writes to the channel: zeroed entering layer 1, it leaves it with what layer 1's MLP
    takes away, and layer 2's writes the second step whatever was before.
    """
    plain = planted()
    with torch.no_grad():
        for block, bias in zip(plain.transformer.h, [3000.0, -2990.0, 9000.0, 0.0], strict=True):
            block.mlp.c_proj.bias[CHANNEL] = bias
    model = sinklens.load(plain, tokenizer=families.tiny_tokenizer())
    prompts = random_prompts(model, n=5, length=12)
    result = run(model, prompts, draws=1, conditions=("zero",), criterion="scale_free")
    steps = result.findings["steps"]
    assert [(one["layer"], one["step_up"], one["step_down"]) for one in steps] == [
        (1, "L0 MLP", "L1 MLP"),
        (3, "L2 MLP", None),
    ]
    conditions = [("zero", 1), ("zero", 3), ("zero_all", None)]
    rows = [row for row in result.effects if (row.metric, row.kind) == ("loss", "treatment")]
    assert [(row.condition, row.layer) for row in rows] == conditions
    massive = {
        (metric, place): result.find(
            metric=metric, condition=place[0], layer=place[1], kind="treatment"
        ).value
        >= 50
        for metric in ("spike_L1", "spike_L3")
        for place in conditions
    }
    assert [name for name, again in massive.items() if not again] == [
        ("spike_L3", ("zero", 3)),
        ("spike_L3", ("zero_all", None)),
    ]
    unreached = result.find(metric="spike_L1", condition="zero", layer=3, kind="treatment")
    assert unreached.effect == 0
    (line,) = (line for line in result.summary if line.startswith("The largest entry over"))
    assert line.count("; still above the 50 times") == 3
    assert line.count("; below the 50 times") == 2
    # Both hooks in one forward pass of plain Hugging Face.

    def zeroed(module: Any, arguments: Any) -> Any:
        stream = arguments[0].clone()
        size = stream.abs()
        massive = size >= 50 * size.flatten(1).median(1).values[:, None, None]
        assert bool(massive[..., CHANNEL].all()) and int(massive.sum()) == massive[..., 0].numel()
        stream[..., CHANNEL] = 0
        return (stream, *arguments[1:])

    def lost(layers: Any) -> float:
        handles = [plain.transformer.h[at].register_forward_pre_hook(zeroed) for at in layers]
        with torch.no_grad():
            logits = plain(prompts.tokens).logits
        for handle in handles:
            handle.remove()
        return float(plain_hf.loss(logits, prompts.tokens, 0).mean())

    for row, layers in zip(rows, ([1], [3], [1, 3]), strict=True):
        assert row.value == pytest.approx(lost(layers), abs=1e-4)


def test_an_edit_that_changes_nothing_has_a_control_that_changes_nothing(model: Any) -> None:
    """Of a single prompt every entry is its own mean, so that nothing is moved elsewhere either."""
    prompts = random_prompts(model, n=1, length=12)
    result = run(model, prompts, draws=1, conditions=("mean",), equal_change=("mean",))
    for kind, against in (("treatment", None), ("control", "other_channels")):
        row = result.find(metric="loss", condition="mean", kind=kind, against=against)
        assert row.effect == pytest.approx(0, abs=1e-3)  # but for the rounding of a mean


def test_entries_follow_their_prompts(model: Any) -> None:
    entries = Entries(*(torch.tensor(x) for x in ([0, 2, 2], [1, 0, 4], [3, 5, 6])), torch.ones(3))
    edit = replace_entries(model, 1, entries, torch.tensor([10.0, 20.0, 30.0]))
    ((_, hook),) = edit.for_prompts(torch.tensor([2, 1])).fwd_hooks
    edited = hook(torch.zeros(2, 5, WIDTH), hook=None)
    assert edited.nonzero().tolist() == [[0, 0, 5], [0, 4, 6]]
    assert (float(edited[0, 0, 5]), float(edited[0, 4, 6])) == (20.0, 30.0)


def test_the_sweep_counts_tokens_that_spike() -> None:
    """Three tokens of the embedding hold the spike; at a later position they hold it too."""
    plain = planted()
    spiking = [10, 20, 30]
    with torch.no_grad():
        plain.transformer.wte.weight[spiking, CHANNEL] = 60_000.0
        for block in plain.transformer.h:
            block.mlp.c_proj.bias[CHANNEL] = 0.0
    model = sinklens.load(plain, tokenizer=families.tiny_tokenizer())
    tokens = torch.randint(4, 64, (4, 10), generator=torch.Generator().manual_seed(1))
    tokens[:, 4] = 20
    result = run(model, Prompts(tokens, bos=False, source="test"), sweep_tokens=1000, draws=0)
    found, ordinary = result.findings, len(sinklens.models.ordinary_tokens(model))
    assert found["vocabulary_tried"] == found["vocabulary_size"] == ordinary
    median = float(result.arrays["layer_median"].values.max())
    for place in ("position0", "later_position"):
        row = result.find(metric="vocabulary_spikes", condition=place)
        assert row.value == pytest.approx(3 / ordinary)
        assert (row.n_prompts, row.resampled) == (ordinary, "token")
        assert 0 <= row.baseline <= gaussian_exceeds(WIDTH, 1000 / median) + 1e-12
    (line,) = (line for line in result.summary if "first token" in line)
    assert line.count("beside Gaussian entries") == 2
    assert any("The embedding already holds the peak." in line for line in result.summary)


def test_no_spikes_is_a_finding_and_no_error() -> None:
    model = families.boot("llama")
    prompts = random_prompts(model, n=3, length=12)
    result = run(model, prompts)
    assert set(result.settings["left_out"]) >= {"zero", "mean"}
    assert "treatment" not in {row.kind for row in result.effects}
    assert any("Nothing was intervened on" in line for line in result.summary)
    with pytest.raises(SinklensError, match="criterion=scale_free"):
        run(model, prompts, conditions=("zero",))


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_works_or_refuses(name: str) -> None:
    model = families.boot(name)
    prompts = random_prompts(model, n=3, length=12)
    if name == "bert":
        with pytest.raises(SinklensError, match=r"causal.*ResidualPeaks"):
            run(model, prompts)
        with pytest.raises(SinklensError, match="norms the stream itself"):
            sinklens.evaluate(model, prompts, [], [], probes=[PeakTrace(model, [])], progress=False)
        return
    result = run(model, prompts, scale_free=3.0, draws=2, null_models=2)
    assert {row.kind for row in result.effects} == {
        "measurement",
        "treatment",
        "control",
        "contrast",
        "null",
    }
    assert len(result.summary) <= 12 and result.plot().data


def test_a_stream_that_is_mostly_zero_is_refused() -> None:
    """Any entry is infinitely many times a median of 0; without a size none is massive."""
    stream = torch.zeros(1, 3, 8)
    stream[0, 0, 2] = 500.0
    assert not Criterion(0.0, 50.0).holds(stream).any()
    assert Criterion(100.0, 1000.0).holds(stream).nonzero().tolist() == [[0, 0, 2]]
    model = constructed_sink(ConstructedSink())
    with pytest.raises(SinklensError, match="median entry of the residual stream is 0"):
        run(model, random_prompts(model, n=2, length=12))


def test_where_most_channels_are_massive_no_equal_change_is_made_elsewhere() -> None:
    model = families.boot("llama")
    prompts = random_prompts(model, n=3, length=12)
    result = run(model, prompts, criterion="scale_free", scale_free=1.01, draws=1)
    assert "too few others" in result.settings["left_out"]["other_channels"]
    contrast = result.find(metric="loss", condition="zero", kind="contrast")
    assert contrast.against == "median_entries"
    other = sinklens.run("spike_sink_decoupling", model, prompts, scale_free=1.01, progress=False)
    assert any("too few others" in note for note in other.settings["notes"])
    kinds = {row.kind for row in other.effects if row.condition == "clamp_spikes"}
    assert kinds == {"treatment"}


def test_parallel_blocks_in_bfloat16_are_no_norm_on_the_stream() -> None:
    """NeoX adds its three terms in another order than the probe, which rounds otherwise."""
    model = sinklens.load(families.neox().to(torch.bfloat16), tokenizer=families.tiny_tokenizer())
    prompts = random_prompts(model, n=3, length=12)
    assert run(model, prompts, scale_free=3.0, draws=1).summary


def test_means_that_are_what_is_there_at_position_0_only(model: Any) -> None:
    """With the same first token everywhere only later entries move, and a footnote says so."""
    tokens = torch.randint(4, 64, (3, 10), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = families.BOS
    found = run(model, Prompts(tokens, bos=True, source="test"), draws=1, conditions=("mean",))
    assert "at position 0" in found.settings["footnotes"]["mean"]
    assert not any("by construction" in line for line in found.summary)
    at = f"Massive entries set to mean at L{found.findings['layer']}: loss"
    assert any(line.startswith(at) for line in found.summary)


def test_stages_are_the_residual_stream(boot_family: Any) -> None:
    """The stage between attention and MLP is what TransformerLens calls resid_mid on a Llama."""
    model = boot_family("llama")
    prompts = random_prompts(model, n=2, length=9)
    probe = PeakTrace(model, [], top=2)
    sinklens.evaluate(model, prompts, [], [], probes=[probe], progress=False)
    _, cache = model.run_with_cache(prompts.tokens)
    names = ["blocks.0.hook_resid_pre"]
    names += [f"blocks.{layer}.hook_resid_{at}" for layer in range(2) for at in ("mid", "post")]
    for stage, name in enumerate(names):
        largest = cache[name].abs().flatten(1).topk(2).values
        torch.testing.assert_close(probe.compute().magnitude[:, stage], largest)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conditions": ("zero:equal_norm",)}, "unknown condition.*zero"),
        ({"equal_change": ("nil",)}, "flipped_mean"),
        ({"times": 1.0}, "above 1"),
        ({"conditions": ("nil",)}, "zero"),
        ({"criterion": "relative"}, "scale_free"),
        ({"layer": 9}, "no layer 9"),
        ({"sweep_tokens": -1}, "sweep_tokens"),
    ],
)
def test_bad_settings(model: Any, prompts: Prompts, settings: Any, message: str) -> None:
    with pytest.raises(SinklensError, match=message):
        run(model, prompts, **settings)


def test_the_command(tmp_path: Path) -> None:
    command = "run massive_activations rope --n-prompts 3 --length 16 --set draws=1 --quiet --out"
    done = CliRunner().invoke(app, [*command.split(), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    loaded = sinklens.ExperimentResult.load(tmp_path / "out")
    assert loaded.find(metric="loss", condition="zero", kind="treatment").effect > 0
