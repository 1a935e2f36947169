"""A result on disk, as a table and as a figure."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import sinklens
from sinklens.models.prompts import corpus
from sinklens.results.record import Array
from sinklens.stats.effects import OVER_PROMPTS, EffectSize

SETTINGS: dict[str, dict[str, Any]] = {
    "sink_profile": {},
    "bos_replacement": {"conditions": ["mean", "random_token"]},
    "position0_patching": {"conditions": ["other_token", "zero"]},
    "sink_head_ablation": {"heads": "L0H1,L1H2"},
}
FIELDS = [
    *("metric", "condition", "kind", "against", "resampled", "layer", "head", "queries"),
    *("baseline", "value", "effect"),
    *("ci_low", "ci_high", "p_value", "q_value", "d_z", "n_prompts", "n_draws", "unit"),
    "layers",
]
SOURCE = ["experiment", "model", "revision", "step", "model_seed", "prompts"]


@pytest.fixture(scope="module")
def results(boot_family: Callable[[str], Any]) -> dict[str, sinklens.ExperimentResult]:
    model = boot_family("llama")
    prompts = sinklens.prompts(model, corpus()[:2000], n=8, length=12, bos=True)
    return {
        name: sinklens.run(name, model, prompts, draws=2, progress=False, **settings)
        for name, settings in SETTINGS.items()
    }


@pytest.fixture(params=list(SETTINGS))
def result(
    request: pytest.FixtureRequest, results: dict[str, sinklens.ExperimentResult]
) -> sinklens.ExperimentResult:
    return results[request.param]


def test_fields_are_those_of_the_design() -> None:
    assert [field.name for field in dataclasses.fields(sinklens.EffectSize)] == FIELDS


@pytest.mark.slow
def test_rows_without_layers_load(result: sinklens.ExperimentResult, tmp_path: Path) -> None:
    """Files of schema 2 from before rows named the layers that they average."""
    result.save(tmp_path / "out")
    file = tmp_path / "out" / "result.json"
    content = json.loads(file.read_text())
    del content["sha256"]  # which they had not either
    for row in content["effects"]:
        del row["layers"]
    file.write_text(json.dumps(content))
    loaded = sinklens.ExperimentResult.load(tmp_path / "out")
    assert [row.layers for row in loaded.effects] == [None] * len(result.effects)


def test_round_trip(result: sinklens.ExperimentResult, tmp_path: Path) -> None:
    result.save(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"result.json", "run.json", "values.safetensors"}
    loaded = sinklens.ExperimentResult.load(tmp_path / "out")
    assert loaded.experiment == result.experiment
    assert loaded.effects == result.effects and len(loaded.effects) > 2
    assert loaded.summary == result.summary and loaded.summary
    assert loaded.settings == result.settings
    assert loaded.findings == result.findings and loaded.draws == result.draws
    assert loaded.measures == result.measures and loaded.measures
    assert loaded.figure == result.figure
    assert loaded.provenance == result.provenance
    assert loaded.run == result.run
    assert loaded.arrays.keys() == result.arrays.keys() and loaded.arrays
    for name, array in result.arrays.items():
        assert loaded.arrays[name].dims == array.dims
        assert loaded.arrays[name].coords == array.coords
        assert len(array.dims) == array.values.ndim
        same = torch.allclose(loaded.arrays[name].values, array.values, 0, 0, equal_nan=True)
        assert same and loaded.arrays[name].values.dtype == array.values.dtype
    assert set(loaded.per_prompt) == {"value", "baseline"}
    for name, values in result.per_prompt.items():
        assert torch.allclose(loaded.per_prompt[name], values, 0, 0, equal_nan=True)
        assert values.shape == (len(result.effects), 8)


def test_rows_follow_from_the_prompts_values(result: sinklens.ExperimentResult) -> None:
    """The numbers of a row, from its values by prompt, without scipy."""
    values, baselines = result.per_prompt["value"], result.per_prompt["baseline"]
    quantile = 2.3646242510102993  # Student's t, 7 degrees of freedom, 97.5 %
    for number, effect in enumerate(result.effects):
        if effect.resampled != "prompt":
            assert effect.kind == "null" and torch.isnan(values[number]).all()
            continue
        differences = values[number] - baselines[number]
        mean, deviation = float(differences.mean()), float(differences.std())
        assert effect.effect == pytest.approx(mean, abs=1e-9)
        assert effect.value == pytest.approx(float(values[number].mean()), abs=1e-9)
        half = quantile * deviation / math.sqrt(8)
        lowest, highest = _ends(effect)
        if effect.n_draws == 1:
            assert effect.ci_low == pytest.approx(max(mean - half, lowest), abs=1e-9)
            assert effect.ci_high == pytest.approx(min(mean + half, highest), abs=1e-9)
        else:  # the choice of draws is in it as well
            wider = half * (1 - 1e-9)
            assert effect.ci_low <= max(mean - wider, lowest + 1e-9)
            assert effect.ci_high >= min(mean + wider, highest - 1e-9)
            if lowest + 1e-9 < effect.ci_low and effect.ci_high < highest - 1e-9:
                assert effect.ci_high - mean == pytest.approx(mean - effect.ci_low, abs=1e-9)
        if deviation > 1e-12:
            assert effect.d_z == pytest.approx(mean / deviation, rel=1e-6)


def _ends(effect: EffectSize) -> tuple[float, float]:
    """What a difference can be, from what its metric can be."""
    lowest = 0.0 if effect.metric in ("kl", "sink_mass", "sink_rate") else -math.inf
    highest = 1.0 if effect.metric in ("sink_mass", "sink_rate") else math.inf
    if effect.kind == "contrast":
        return lowest - highest, highest - lowest
    return lowest - effect.baseline, highest - effect.baseline


def test_only_signed_treatments_and_contrasts_are_tested(
    result: sinklens.ExperimentResult,
) -> None:
    for effect in result.effects:
        tested = effect.kind == "contrast" or (effect.kind == "treatment" and effect.metric != "kl")
        assert (effect.p_value is not None) == tested
        assert (effect.q_value is not None) == tested
        if tested:
            # With 8 prompts the signs can be flipped in 256 ways.
            flips = effect.p_value * 256
            if effect.n_draws == 1:
                assert flips == pytest.approx(round(flips), abs=1e-6)
            assert effect.p_value <= effect.q_value <= 1


def test_json_is_plain(result: sinklens.ExperimentResult, tmp_path: Path) -> None:
    text = (result.save(tmp_path / "out") / "result.json").read_text("utf-8")

    def refuse(constant: str) -> None:
        raise AssertionError(f"result.json holds {constant}")

    content = json.loads(text, parse_constant=refuse)
    assert isinstance(content["schema"], int)
    assert isinstance(content["effects"], list) and len(content["effects"]) == len(result.effects)
    for row, effect in zip(content["effects"], result.effects, strict=True):
        assert list(row) == FIELDS
        assert row == {name: getattr(effect, name) for name in FIELDS}
    assert text.count("\n") > len(result.effects)  # readable: not one line


def test_provenance(result: sinklens.ExperimentResult, boot_family: Callable[[str], Any]) -> None:
    known = result.provenance
    assert known["model"]["name"] == "tiny-llama" and known["model"]["weights"]
    assert (known["dtype"], known["device"], known["bos"]) == ("float32", "cpu", True)
    assert known["compatibility_mode"] is False
    assert known["prompts"]["n"] == 8 and known["prompts"]["hash"] and known["seed"] == 0
    assert known["versions"]["torch"] == torch.__version__
    fired = known["fired"]
    conditions = {effect.condition for effect in result.effects if effect.kind == "treatment"}
    assert set(fired) == conditions and all(count > 0 for count in fired.values())


def test_html(result: sinklens.ExperimentResult) -> None:
    html = result._repr_html_()
    assert "<table" in html and html.count("<tr") >= len(result.table()) + 1
    for effect in result.effects:
        assert effect.condition in html and effect.metric in html
    assert "with BOS" in html
    for text in (html, str(result)):
        assert "effect [95 %]" in text
        assert "nan" not in text.lower().replace("resonance", "")


def test_dataframe(result: sinklens.ExperimentResult) -> None:
    frame = result.to_dataframe()
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == [*SOURCE, *FIELDS] and len(frame) == len(result.effects)
    for number, effect in enumerate(result.effects):
        assert frame.loc[number, "effect"] == effect.effect
        assert frame.loc[number, "condition"] == effect.condition


def test_find(results: dict[str, sinklens.ExperimentResult]) -> None:
    result = results["bos_replacement"]
    row = result.find(metric="loss", condition="mean", kind="contrast")
    assert (row.metric, row.condition, row.kind) == ("loss", "mean", "contrast")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"metric": "los", "condition": "mean"}, r"0 rows match .*did you mean metric='loss'\?"),
        ({"metric": "loss", "condition": "meen"}, r"did you mean condition='mean'\?"),
        (
            {"metric": "loss", "condition": "xyz"},
            r"condition beside metric='loss' is one of 'mean', 'random_token'$",
        ),
        ({"n_prompts": 9}, r"0 rows match n_prompts=9; n_prompts is one of 8, 5$"),
        ({"metric": "loss", "layer": 3}, r"layer beside metric='loss' is None$"),
        (
            {"metric": "loss", "condition": "mean"},
            r"3 rows match .*; they differ in kind: 'treatment', 'control', 'contrast'; "
            r"against: None, 'later_position'$",
        ),
        ({"metrics": "loss"}, "unknown field of a row 'metrics'; did you mean metric"),
    ],
)
def test_find_says_what_is_near_or_what_differs(
    results: dict[str, sinklens.ExperimentResult], wanted: dict[str, Any], words: str
) -> None:
    with pytest.raises(sinklens.core.errors.UsageError, match=words):
        results["bos_replacement"].find(**wanted)


def test_frames_name_model_and_prompts(
    results: dict[str, sinklens.ExperimentResult], tmp_path: Path
) -> None:
    result = results["bos_replacement"]
    known = {"revision": "main", "step": 64, "seed": 1}
    model = {**result.provenance["model"], **known}
    result = dataclasses.replace(result, provenance={**result.provenance, "model": model})
    loaded = sinklens.ExperimentResult.load(result.save(tmp_path / "out"))
    for frame in (loaded.to_dataframe(), loaded.per_prompt_frame()):
        first = frame.loc[0, SOURCE].to_dict()
        assert first["experiment"] == "bos_replacement" and first["model"] == "tiny-llama"
        assert (first["revision"], first["step"], first["model_seed"]) == ("main", 64, 1)
        assert first["prompts"] == result.provenance["prompts"]["hash"]


def test_per_prompt_frame(result: sinklens.ExperimentResult) -> None:
    """Means over prompts are the rows."""
    frame = result.per_prompt_frame()
    over_prompts = [row for row in result.effects if row.resampled in OVER_PROMPTS]
    assert len(frame) == 8 * len(over_prompts) and set(frame["prompt"]) == set(range(8))
    names = ["metric", "condition", "kind", "against", "layer", "head", "queries"]
    means = frame.groupby(names, dropna=False, sort=False)[["value", "baseline", "effect"]].mean()
    assert len(means) == len(over_prompts)
    for row, mean in zip(over_prompts, means.to_dict("records"), strict=True):
        for name, value in mean.items():
            assert value == pytest.approx(getattr(row, name), abs=1e-9)


def test_arrays_are_labelled(results: dict[str, sinklens.ExperimentResult]) -> None:
    result = results["sink_profile"]
    stored = result.arrays["sink_mass"]
    mass = result.array("sink_mass")
    assert isinstance(mass, pd.DataFrame)
    assert (mass.index.name, mass.columns.name) == stored.dims
    for layer in mass.index:
        for head in mass.columns:
            assert mass.loc[layer, head] == float(stored.values[layer, head])
    np.testing.assert_array_equal(np.asarray(stored), stored.values.numpy())
    assert np.asarray(stored, dtype=float).dtype == float
    with pytest.raises(sinklens.core.errors.UsageError, match="did you mean sink_mass"):
        result.array("sink_mas")


def test_labels_of_arrays_of_any_number_of_axes() -> None:
    import xarray

    coords = {"threshold": ["gu", "strict"]}
    one = Array(torch.tensor([1.0, 2.0]), ("threshold",), coords).labelled("rate")
    assert one.loc["strict", "rate"] == 2.0 and one.index.name == "threshold"
    assert Array(torch.tensor(3.0), ()).labelled("norm").loc[0, "norm"] == 3.0
    three = Array(torch.arange(8.0).reshape(2, 2, 2), ("threshold", "layer", "head"), coords)
    labelled = three.labelled("rate")
    assert isinstance(labelled, xarray.DataArray) and labelled.dims == three.dims
    assert float(labelled.sel(threshold="strict", layer=0, head=1)) == 5.0


def test_more_axes_than_two_need_xarray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    three = Array(torch.zeros(2, 2, 2), ("a", "b", "c"))
    with pytest.raises(sinklens.SinklensError, match=r"rate .*a, b, c needs xarray: pip install"):
        three.labelled("rate")


def test_results_are_compared_by_what_they_hold(
    result: sinklens.ExperimentResult, tmp_path: Path
) -> None:
    loaded = sinklens.ExperimentResult.load(result.save(tmp_path / "out"))
    assert loaded == result and result == result
    assert dataclasses.replace(result, run={"seconds": 1e9}) == result
    assert result != "another thing" and result != dataclasses.replace(result, summary=["Other."])
    name, array = next(iter(result.arrays.items()))
    moved = dataclasses.replace(array, values=array.values + 1)
    assert moved != array and dataclasses.replace(array, values=array.values.clone()) == array
    assert dataclasses.replace(result, arrays={**result.arrays, name: moved}) != result
    values = {**result.per_prompt, "value": result.per_prompt["value"] + 1}
    assert dataclasses.replace(result, per_prompt=values) != result
    missing = {"value": result.per_prompt["value"]}
    assert dataclasses.replace(result, per_prompt=missing) != result


def test_contrast_is_treatment_minus_control(
    results: dict[str, sinklens.ExperimentResult],
) -> None:
    """Of each prompt, at the control's queries; the control's effect is its contrast's baseline."""
    result = results["bos_replacement"]
    for condition in ("mean", "random_token"):
        rows = {
            effect.kind: number
            for number, effect in enumerate(result.effects)
            if (effect.metric, effect.condition) == ("loss", condition)
        }
        differences = result.per_prompt["value"] - result.per_prompt["baseline"]
        treated, control = differences[rows["treatment"]], differences[rows["control"]]
        own = result.per_prompt["value"][rows["contrast"]]
        assert not torch.allclose(own, treated)  # which counts early queries as well
        torch.testing.assert_close(result.per_prompt["baseline"][rows["contrast"]], control)


def test_plot(result: sinklens.ExperimentResult, tmp_path: Path) -> None:
    from plotly.graph_objects import Figure

    loaded = sinklens.ExperimentResult.load(result.save(tmp_path / "out"))
    for shown in (result.plot(), loaded.plot()):
        assert isinstance(shown, Figure) and len(shown.data) > 0
    assert loaded.plot().to_json() == result.plot().to_json()


@pytest.mark.slow
def test_plot_and_table_in_a_fresh_process(
    results: dict[str, sinklens.ExperimentResult], tmp_path: Path
) -> None:
    """Its own figure, not the default, although nothing has imported the experiment."""
    folder = results["sink_profile"].save(tmp_path / "out")
    code = (
        "import sys, sinklens; r = sinklens.ExperimentResult.load(sys.argv[1]); "
        "print(r.plot().data[0].type); r._repr_html_(); "
        "assert 'transformer_lens' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["heatmap"]


def test_overwrite(result: sinklens.ExperimentResult, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    result.save(folder)  # empty is fine
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(sinklens.SinklensError, match="not empty"):
        result.save(folder)
    changed = dataclasses.replace(result, summary=["Another."])
    changed.save(folder, overwrite=True)
    assert sinklens.ExperimentResult.load(folder).summary == ["Another."]
    result.save(folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_no_draws_says_so(boot_family: Callable[[str], Any]) -> None:
    model = boot_family("llama")
    prompts = sinklens.prompts(model, corpus()[:2000], n=2, length=12, bos=True)
    result = sinklens.run("bos_replacement", model, prompts, draws=0, progress=False)
    assert {effect.kind for effect in result.effects} == {"treatment"}
    assert all(effect.n_draws == 1 for effect in result.effects)
    assert "No controls" in str(result) and "No controls" in result._repr_html_()
    assert "smallest p of a sign-flip test is 0.5, so that no row that it tests" in str(result)


@pytest.mark.slow
def test_one_prompt_has_no_interval(boot_family: Callable[[str], Any], tmp_path: Path) -> None:
    model = boot_family("llama")
    prompts = sinklens.prompts(model, corpus()[:2000], n=1, length=12, bos=True)
    result = sinklens.run("bos_replacement", model, prompts, draws=1, progress=False)
    for effect in result.effects:
        if effect.resampled == "prompt":
            assert (effect.ci_low, effect.ci_high, effect.p_value, effect.d_z) == (None,) * 4
    assert sinklens.ExperimentResult.load(result.save(tmp_path / "out")).effects == result.effects
    assert result.plot().data and "<table" in result._repr_html_()


@pytest.mark.parametrize("unit", ["1", "1 to d_model"])
def test_saved_units_that_are_none_are_not_shown(
    result: sinklens.ExperimentResult, unit: str, tmp_path: Path
) -> None:
    """Files of schema 2 from before a number without a unit had an empty one."""
    result.save(tmp_path / "out")
    file = tmp_path / "out" / "result.json"
    content = json.loads(file.read_text())
    del content["sha256"]  # which they had not either
    for row in [*content["effects"], *content["measures"].values()]:
        row["unit"] = unit
    file.write_text(json.dumps(content))
    loaded = sinklens.ExperimentResult.load(tmp_path / "out")
    assert {row.unit for row in loaded.effects} == {""}
    assert {measure.unit for measure in loaded.measures.values()} == {""}
    assert "1 to d_model" not in str(loaded) and "unit" not in loaded.table()
