"""One table of all results: what its columns say, and what is refused to stand in it together."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import sinklens
from sinklens.cli import app
from sinklens.core.errors import SinklensError, UsageError
from sinklens.results.result import ExperimentResult
from sinklens.stats.effects import EffectSize
from sinklens.sweep.driver import run_sweep
from sinklens.sweep.table import COLUMNS, load_sweep, merge
from tests.sweep.conftest import SPEC


@pytest.fixture(scope="module")
def swept(tiny_models: Path) -> Path:
    """The folder of a sweep that has ended; leave it as it is."""
    run_sweep(tiny_models / "spec.toml", tiny_models / "table", progress=False)
    return tiny_models / "table"


def swept_with(tiny_models: Path, name: str, **changed: str) -> Path:
    """Another sweep of one experiment on one model."""
    text = SPEC.replace("models/*", "models/llama").replace('"sink_profile", ', "")
    for before, after in changed.items():
        text = text.replace(f"{before} = ", f"{before} = {after} #")
    (tiny_models / f"{name}.toml").write_text(text.replace("seeds = [0, 1]", "seeds = [0]"))
    run_sweep(tiny_models / f"{name}.toml", tiny_models / name, progress=False)
    return tiny_models / name


def test_every_row_of_every_result_is_there(swept: Path) -> None:
    table = sinklens.load_sweep(swept)
    assert list(table) == list(COLUMNS) and table["task"].nunique() == 8
    for folder in swept.glob("tasks/*/"):
        result = ExperimentResult.load(folder)
        mine = table[table["task"] == folder.name]
        assert len(mine) == len(result.effects)
        for (_, line), effect in zip(mine.iterrows(), result.effects, strict=True):
            for name in EffectSize.__dataclass_fields__:
                value = getattr(effect, name)
                assert line[name] == value or (value is None and pd.isna(line[name])), name
        _require_heads(mine, result)
        known = result.provenance
        assert set(mine["weights"]) == {known["model"]["weights"]}
        assert set(mine["prompts"]) == {known["prompts"]["hash"]} and set(mine["n"]) == {2}
        assert set(mine["seed"]) == {known["seed"]} and set(mine["torch"]) == {
            known["versions"]["torch"]
        }
    kinds = {"family": {"llama", "gpt2"}, "position_encoding": {"rotary", "absolute"}}
    for name, values in kinds.items():
        assert set(table[name]) == values
    assert set(table["text"]) == {"text.txt"} and set(table["bos"]) == {True}


def _require_heads(rows: pd.DataFrame, result: ExperimentResult) -> None:
    """The row of the sink mass has that of every head, whose mean it is; no other row has."""
    told = rows["by_head"].dropna()
    assert len(told) == (result.experiment == "sink_profile")
    for place, text in told.items():
        masses = json.loads(text)
        for (layer, head), mass in np.ndenumerate(np.asarray(result.arrays["sink_mass"])):
            assert masses.pop(f"L{layer}H{head}") == pytest.approx(mass, rel=1e-4)
        assert not masses
        assert rows.loc[place, "condition"] == "position0"
        mean = np.mean([*json.loads(text).values()])
        assert rows.loc[place, "value"] == pytest.approx(mean, rel=1e-4)


def test_remarks_are_no_settings(swept: Path, tmp_path: Path) -> None:
    for number, folder in enumerate(sorted(swept.glob("tasks/*sink_profile*/"))[:2]):
        result = ExperimentResult.load(folder)
        remarks = {"uneven": [number], "notes": [str(number)], "left_out": {"no_bos": str(number)}}
        settings = {**result.settings, **remarks}
        replace(result, settings=settings).save(tmp_path / str(number))
    assert load_sweep(tmp_path)["settings"].nunique() == 1


def test_files_hold_the_same_table(swept: Path, tmp_path: Path) -> None:
    out = tmp_path / "effects.parquet"
    done = CliRunner().invoke(app, ["merge", str(swept), "-o", str(out)])
    assert done.exit_code == 0 and "effects of 8 results" in done.stdout, done.output
    table = load_sweep(swept)
    pd.testing.assert_frame_equal(pd.read_parquet(out), table, check_dtype=False)
    assert merge([swept, swept], tmp_path / "both.csv").equals(table)  # each result once
    assert len(pd.read_csv(tmp_path / "both.csv")) == len(table)
    with pytest.raises(SinklensError, match="exists"):
        merge([swept], out)
    with pytest.raises(UsageError, match=r"neither .parquet nor .csv"):
        merge([swept], tmp_path / "effects.xlsx")


def test_shards_give_the_table_of_the_whole(tiny_models: Path, swept: Path, tmp_path: Path) -> None:
    """One model of two; its tasks of one seed are a shard."""
    spec = tiny_models / "shards.toml"
    spec.write_text(SPEC.replace("models/*", "models/llama"))
    for number in (0, 1):
        options = ["--shard", f"{number}/2", "--out", str(tmp_path / f"{number}"), "--quiet"]
        done = CliRunner().invoke(app, ["sweep", str(spec), *options])
        assert done.exit_code == 0 and done.stdout.startswith("2 tasks in"), done.output
        assert load_sweep(tmp_path / f"{number}")["seed"].unique().tolist() == [number]
    for order in ("01", "10"):
        out = tmp_path / f"{order}.parquet"
        done = CliRunner().invoke(
            app, ["merge", *[str(tmp_path / n) for n in order], "-o", str(out)]
        )
        assert done.exit_code == 0 and "effects of 4 results" in done.stdout, done.output
        whole = load_sweep(swept)
        mine = whole[whole["model"] == "llama"].reset_index(drop=True)
        pd.testing.assert_frame_equal(pd.read_parquet(out), mine, check_dtype=False)


@pytest.mark.heavy
def test_other_settings_are_refused_unless_asked_for(tiny_models: Path, swept: Path) -> None:
    same = swept_with(tiny_models, "same")
    assert load_sweep([swept, same])["task"].nunique() == 8  # which holds it already
    other = swept_with(tiny_models, "other", draws="2")
    with pytest.raises(SinklensError, match=r"bos_replacement differ: draws is 1 in one and 2"):
        load_sweep([swept, other])
    mixed = load_sweep([swept, other], mixed=True)
    assert {json.loads(text)["draws"] for text in mixed["settings"]} == {1, 2}
    shorter = swept_with(tiny_models, "shorter", texts='[{n = 2, length = 7, path = "text.txt"}]')
    with pytest.raises(SinklensError, match=r"length is 8 in one and 7 in another"):
        load_sweep([swept, shorter])


@pytest.mark.heavy
def test_one_specification_may_ask_for_several_settings(tiny_models: Path) -> None:
    two = '[{name = "bos_replacement", draws = 1}, {name = "bos_replacement", draws = 2}]'
    both = swept_with(tiny_models, "two", experiments=two)
    assert load_sweep(both)["task"].nunique() == 2
    # As parts of it in two folders.
    first, second = sorted(both.glob("tasks/*"))
    apart = Path(shutil.copytree(both, both.with_name("apart")))
    shutil.rmtree(apart / "tasks" / first.name)
    shutil.rmtree(both / "tasks" / second.name)
    assert load_sweep([both, apart])["task"].nunique() == 2


def test_what_is_asked_for_no_more_is_left_out(tiny_models: Path, swept: Path) -> None:
    copy = Path(shutil.copytree(swept, swept.with_name("fewer")))
    spec: dict[str, Any] = json.loads((copy / "sweep.json").read_text())
    spec["tasks"] = spec["tasks"][:3]
    (copy / "sweep.json").write_text(json.dumps(spec))
    table = load_sweep(copy)
    assert table["task"].nunique() == 3 and table.attrs["left_out"] == 5
    shutil.rmtree(copy / "tasks")
    with pytest.raises(SinklensError, match="there is no result in"):
        load_sweep(copy)


def test_single_results_stand_in_a_table_too(swept: Path, tmp_path: Path) -> None:
    (one,) = swept.glob("tasks/models-llama-sink_profile-0-*/")
    shutil.copytree(one, tmp_path / "one")
    (tmp_path / "one" / "task.json").unlink()
    table = load_sweep(tmp_path)
    assert set(table["model"]) == {"llama"} and table["family"].isna().all()
    assert load_sweep(tmp_path / "one").equals(table)


def test_a_damaged_result_is_named(swept: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(swept, tmp_path / "copy"))
    (one,) = copy.glob("tasks/models-llama-sink_profile-0-*/")
    (one / "values.safetensors").write_bytes(b"")
    with pytest.raises(SinklensError, match=r"sink_profile-0-.*the same sweep again"):
        load_sweep(copy)
