"""`diagnose`: the default battery."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

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
    page = str(card)
    assert page.startswith("rope: 6 layers of 4 heads, 16 prompts of 64 tokens with BOS from sotu.")
    assert "uniform attention" in page and "its later-position control" in page
    assert len(card.to_dataframe()) == sum(len(r.effects) for r in card.results.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["opt", "bert", "neox"])
def test_other_families_get_a_page_with_reasons(boot_family: Any, name: str) -> None:
    model = boot_family(name)
    text = "the quick brown fox jumps over the lazy dog. " * 30
    prompts = sinklens.prompts(model, text, n=8, length=24)
    page = str(sinklens.diagnose(model, prompts, progress=False))
    if name == "opt":
        assert "drop_edge" in page and "does nothing" in page
    if name == "bert":
        assert "Not run: position0_patching needs a causal model" in page
    if name == "neox":  # no BOS by default
        assert "Not run: bos_replacement needs prompts that start with BOS" in page


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
    assert (folder / "findings.txt").read_text() == printed
    shown = runner.invoke(app, ["show", str(folder)])
    assert shown.exit_code == 0 and shown.stdout == printed
    table = runner.invoke(app, ["show", str(folder / "sink_head_ablation")])
    assert table.exit_code == 0 and table.stdout.startswith("sink_head_ablation")
    again = runner.invoke(app, ["diagnose", "rope", *SMALL, "--out", str(folder)])
    assert again.exit_code == 1 and "not empty" in again.stderr


def test_a_diagnosis_is_loaded_again(written: tuple[Path, str], tmp_path: Path) -> None:
    folder, printed = written
    loaded = sinklens.Diagnosis.load(folder)
    assert f"{loaded}\n" == printed
    again = sinklens.Diagnosis.load(loaded.save(tmp_path / "again"))
    assert again == loaded and again.results["sink_profile"] == loaded.results["sink_profile"]
    frame = loaded.to_dataframe()
    assert set(frame["experiment"]) == set(loaded.results) and set(frame["model"]) == {"rope"}
    assert len(frame) == sum(len(result.effects) for result in loaded.results.values())
    assert loaded.plot().to_json() == loaded.results["sink_profile"].plot().to_json()
    assert loaded.plot("bos_replacement").data
    with pytest.raises(sinklens.SinklensError, match="did you mean bos_replacement"):
        loaded.plot("bos_replacment")


def test_what_is_no_diagnosis_is_refused(written: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(sinklens.SinklensError, match=r"ExperimentResult.load reads a single"):
        sinklens.Diagnosis.load(written[0] / "sink_profile")
    folder = Path(shutil.copytree(written[0], tmp_path / "out"))
    (folder / "bos_replacement" / "values.safetensors").write_bytes(b"cut")
    with pytest.raises(sinklens.SinklensError, match="truncated"):
        sinklens.Diagnosis.load(folder)


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


def test_the_report_is_one_page_without_a_network(
    written: tuple[Path, str], tmp_path: Path
) -> None:
    page, runner = tmp_path / "page.html", CliRunner()
    done = runner.invoke(app, ["report", str(written[0]), "-o", str(page)])
    assert done.exit_code == 0, done.output
    content = page.read_text()
    assert "BOS replacement" in content and content.count("<table") == 4
    assert content.count("plotly-graph-div") == 4 and 'src="http' not in content
    again = runner.invoke(app, ["report", str(written[0]), "-o", str(page)])
    assert again.exit_code == 1 and "exists" in again.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
