"""`diagnose`: the default battery."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import sinklens
from sinklens.cli import app

SMALL = ("--n-prompts", "3", "--length", "12", "--quiet")


def _forwards(card: sinklens.Diagnosis) -> int:
    return sum(result.provenance["forwards"] for result in card.results.values())


@pytest.mark.slow
def test_the_shipped_model_has_sinks_and_loses_them() -> None:
    card = sinklens.diagnose("rope", progress=False)
    assert list(card.results) == [
        "sink_profile",
        "bos_replacement",
        "sink_head_ablation",
        "position0_patching",
    ]
    assert _forwards(card) <= 60
    profile = card.results["sink_profile"]
    natural = profile.find(condition="position0", metric="sink_mass")
    assert natural.n_prompts == 16
    assert natural.ci_low is not None and natural.ci_low > 0.1
    for condition in ("mean", "zero", "random_token"):
        row = card.results["bos_replacement"].find(
            condition=condition, metric="sink_mass", kind="contrast"
        )
        assert row.ci_high is not None and row.ci_high < -0.1
    assert str(card).startswith("rope: a BOS sink that the model uses\n")
    assert card.findings[0] == (
        "rope: 6 layers of 4 heads, 16 prompts of 64 tokens with BOS from sotu."
    )
    page = card.full()
    assert "uniform attention" in page and "its later-position control" in page
    assert len(card.to_dataframe()) == sum(len(r.effects) for r in card.results.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["opt", "bert", "neox"])
def test_other_families_get_a_page_with_reasons(boot_family: Any, name: str) -> None:
    model = boot_family(name)
    text = "the quick brown fox jumps over the lazy dog. " * 30
    prompts = sinklens.prompts(model, text, n=8, length=24)
    card = sinklens.diagnose(model, prompts, progress=False)
    _is_a_screen(card)
    page = card.full()
    if name == "opt":
        assert "drop_edge" in page and "does nothing" in page
    if name == "bert":
        assert "Not run: position0_patching needs a causal model" in page
    if name == "neox":  # no BOS by default
        assert "Not run: bos_replacement needs prompts that start with BOS" in page
        assert "These prompts have no BOS" in str(card) or "No sink" in str(card)
        assert "Replacing BOS was not run: bos_replacement needs prompts that start" in str(card)


def _is_a_screen(card: sinklens.Diagnosis) -> None:
    lines = str(card).splitlines()
    assert len(lines) <= 12 and max(map(len, lines)) <= 100, lines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("rope", "rope: a BOS sink that the model uses"),
        pytest.param(
            "learned-sink",
            "learned-sink: no sink at position 0; learned sink logits take attention",
            marks=pytest.mark.slow,
        ),
        pytest.param("encoder", "encoder: no sink", marks=pytest.mark.slow),
    ],
)
def test_the_first_screen_says_what_the_rows_say(name: str, verdict: str) -> None:
    prompts = sinklens.prompts(sinklens.load(name), n=8, length=48)
    card = sinklens.diagnose(name, prompts, draws=2, null_models=2, progress=False)
    _is_a_screen(card)
    assert str(card).splitlines()[0] == verdict
    assert "..." not in str(card)
    text = " ".join(line.strip() for line in str(card).splitlines())
    mass = card.results["sink_profile"].find(condition="position0", metric="sink_mass")
    low, high = (mass.baseline + end for end in (mass.ci_low, mass.ci_high))
    assert f" takes {mass.value:.1%} [95% CI {low:.1%}, {high:.1%}] of later queries'" in text
    assert f"(uniform {mass.baseline:.1%})" in text
    heads = card.results["sink_profile"].array("sink_mass").to_numpy()
    assert f"{(heads > 0.3).sum() or 'no'} " in text and f"({heads.max():.1%})" in text
    metric = "kl" if name == "encoder" else "loss"
    replaced = {"metric": metric, "condition": "random_token"}
    cost = card.results["bos_replacement"].find(**replaced, kind="treatment")
    beyond = card.results["bos_replacement"].find(**replaced, kind="contrast", layers=None)
    assert f"{cost.effect:+.3g} nats [{cost.ci_low:.3g}, {cost.ci_high:.3g}]" in text
    assert f"(difference {beyond.effect:+.3g} [" in text
    rows = card.table()
    assert 4 <= len(rows) <= 14 and rows["claim"].iloc[0] == "1"
    assert rows["value"].iloc[0] == f"{mass.value:.4g}"
    third = rows[(rows["claim"] == "3") & (rows["metric"] == metric)].iloc[0]
    assert third["effect [95 %]"].startswith(f"{cost.effect:+.3g} [{cost.ci_low:.3g}, ")
    assert third["difference [95 %]"].startswith(f"{beyond.effect:+.3g} [")
    assert all(row in card.full() for row in rows["effect [95 %]"])
    assert f"{third['effect [95 %]']}</td>" in card._repr_html_()
    assert "All findings" in card._repr_html_() and f"<h4>{verdict}</h4>" in card._repr_html_()


def _overview_fits(card: sinklens.Diagnosis) -> None:
    """Beside each other where each plot has 150 pixels, else below each other."""
    for width, beside in ((390, False), (620, False), (1000, True)):
        layout = card.plot(width=width).layout
        inner = width - layout.margin.l - layout.margin.r
        axes = [layout.xaxis, layout.xaxis2, layout.xaxis3]
        assert all((axis.domain[1] - axis.domain[0]) * inner >= 149 for axis in axes)
        assert (axes[0].domain[1] < axes[1].domain[0]) == beside


def _overview_holds_the_numbers(card: sinklens.Diagnosis) -> None:
    """The map, the norms, every effect on the loss and its control, on wide and narrow pages."""
    profile, effects = card.results["sink_profile"], []
    for name, result in card.results.items():
        rows = [row for row in result.effects if row.metric == "loss" and row.kind != "contrast"]
        effects += [row.effect for row in rows if name != "sink_profile"]
    for width in (None, 390):
        drawn = card.plot(width=width)
        cells, *others = drawn.data
        np.testing.assert_array_equal(cells.z, profile.array("sink_mass").to_numpy())
        norms = {trace.name: trace.y for trace in others if trace.mode == "lines+markers"}
        for name, curve in (("position0_norm", "position 0"), ("other_norm", "other positions")):
            np.testing.assert_array_equal(norms[curve], profile.arrays[name].values.numpy())
        marks = [x for trace in others if trace.mode == "markers" for x in trace.x]
        assert sorted(marks) == sorted(effects)
        columns = {tuple(axis.domain) for axis in drawn.select_xaxes()}
        assert len(columns) == (3 if width is None else 1)
    assert card._repr_html_().count("<svg") == 3 + len(card.results)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder that the command wrote, and what it printed; leave the folder as it is."""
    folder = tmp_path_factory.mktemp("diagnosis") / "out"
    done = CliRunner().invoke(app, ["diagnose", "rope", *SMALL, "--out", str(folder)])
    assert done.exit_code == 0, done.output
    return folder, done.stdout


@pytest.mark.slow
def test_the_command_writes_what_show_prints(written: tuple[Path, str]) -> None:
    (folder, printed), runner = written, CliRunner()
    shown = runner.invoke(app, ["show", str(folder)])
    assert shown.exit_code == 0 and shown.stdout == printed
    full = runner.invoke(app, ["show", str(folder), "--full"])
    assert full.exit_code == 0 and full.stdout.startswith(printed)
    first, *findings = (folder / "findings.txt").read_text().splitlines(keepends=True)
    assert first.startswith("rope: 6 layers of 4 heads, 3 prompts") and first not in full.stdout
    assert full.stdout.endswith("".join(findings))
    sentences = [line for line in full.stdout.splitlines() if line.strip()]
    assert len(sentences) == len(set(sentences))
    table = runner.invoke(app, ["show", str(folder / "sink_head_ablation")])
    assert table.exit_code == 0 and table.stdout.startswith("sink_head_ablation")
    again = runner.invoke(app, ["diagnose", "rope", *SMALL, "--out", str(folder)])
    assert again.exit_code == 1 and "not empty" in again.stderr


@pytest.mark.slow
def test_a_diagnosis_is_loaded_again(written: tuple[Path, str], tmp_path: Path) -> None:
    folder, printed = written
    loaded = sinklens.Diagnosis.load(folder)
    assert f"{loaded}\n" == printed
    again = sinklens.Diagnosis.load(loaded.save(tmp_path / "again"))
    assert again == loaded and again.results["sink_profile"] == loaded.results["sink_profile"]
    frame = loaded.to_dataframe()
    assert set(frame["experiment"]) == set(loaded.results) and set(frame["model"]) == {"rope"}
    assert len(frame) == sum(len(result.effects) for result in loaded.results.values())
    assert loaded.plot().to_json() == again.plot().to_json()
    assert loaded.plot("bos_replacement").data
    _overview_holds_the_numbers(loaded)
    _overview_fits(loaded)
    with pytest.raises(sinklens.SinklensError, match="did you mean bos_replacement"):
        loaded.plot("bos_replacment")


@pytest.mark.slow
def test_a_diagnosis_without_its_refusals_is_shown(
    written: tuple[Path, str], tmp_path: Path
) -> None:
    """As version 0.1 saved it."""
    folder = Path(shutil.copytree(written[0], tmp_path / "out"))
    (folder / "diagnosis.json").unlink()
    assert f"{sinklens.Diagnosis.load(folder)}\n" == written[1]
    shutil.rmtree(folder / "bos_replacement")
    card = sinklens.Diagnosis.load(folder)
    assert "Replacing BOS was not run: the whole page says why." in str(card)
    (folder / "diagnosis.json").write_text("{")
    with pytest.raises(sinklens.SinklensError, match="damaged"):
        sinklens.Diagnosis.load(folder)


@pytest.mark.slow
def test_what_is_no_diagnosis_is_refused(written: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(sinklens.SinklensError, match=r"ExperimentResult.load reads a single"):
        sinklens.Diagnosis.load(written[0] / "sink_profile")
    folder = Path(shutil.copytree(written[0], tmp_path / "out"))
    (folder / "bos_replacement" / "values.safetensors").write_bytes(b"cut")
    with pytest.raises(sinklens.SinklensError, match="truncated"):
        sinklens.Diagnosis.load(folder)


@pytest.mark.slow
def test_overwriting_leaves_no_result_of_another_run(
    written: tuple[Path, str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(written[0], tmp_path / "out"))
    (folder / "mine.txt").write_text("keep")
    run = ["run", "sink_profile", "rope", *SMALL, "--out", str(folder), "--overwrite"]
    again = CliRunner().invoke(app, run)
    assert again.exit_code == 0, again.output
    assert sorted(path.name for path in folder.iterdir()) == [
        "mine.txt",
        "result.json",
        "run.json",
        "values.safetensors",
    ]
    assert sinklens.ExperimentResult.load(folder).experiment == "sink_profile"


def test_only_shared_settings_reach_the_battery() -> None:
    with pytest.raises(sinklens.SinklensError, match="conditions belongs to"):
        sinklens.diagnose("rope", conditions="natural")
