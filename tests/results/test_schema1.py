"""Results that version 0.1 saved still load, are shown and drawn, with the same numbers."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sinklens
from tests import golden

ARCHIVE = Path(golden.__file__).parent / "schema1.zip"
with zipfile.ZipFile(ARCHIVE) as archive:
    EXPERIMENTS = sorted({name.partition("/")[0] for name in archive.namelist()})


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_saved_result_loads_and_is_shown(experiment: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(ARCHIVE) as saved:
        saved.extractall(tmp_path)
    folder = tmp_path / experiment
    old = json.loads((folder / "result.json").read_text())
    assert old["schema"] == 1
    result = sinklens.ExperimentResult.load(folder)
    assert result.summary == old["summary"]
    assert sorted({(row.metric.partition(":")[0]) for row in result.effects}) == sorted(
        {row["metric"].partition(":")[0] for row in old["effects"]}
    )
    tensors = load_file(folder / "values.safetensors")
    for number, row in enumerate(result.effects):
        values = result.per_prompt["value"][number]
        assert row.value == pytest.approx(float(values.mean()), abs=1e-9)
        same = (tensors["per_prompt.value"] == values).all(1)
        assert bool(same.any())
        assert (row.against is None) == (row.kind in ("treatment", "measurement"))
    for name, array in result.arrays.items():
        assert torch.equal(array.values.nan_to_num(), tensors[f"arrays.{name}"].nan_to_num())
    text = str(result)
    assert all(row.metric in text for row in result.effects)
    assert "<table" in result._repr_html_() and result.plot().data
    again = sinklens.ExperimentResult.load(result.save(tmp_path / "again"))
    assert again == result and str(again) == text
    assert not {row.unit for row in result.effects} & {"1", "1 to d_model"}
    assert set(result.to_dataframe()["model"]) == {result.provenance["model"]["name"]}
    assert len(result.per_prompt_frame()) == result.per_prompt["value"].numel()
    assert len(result.table(numeric=True)) == len(result.table())
    assert all(one.effect.effect == 0 for one in sinklens.compare([result, again]).differences)


def test_a_schema_of_the_future_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(ARCHIVE) as saved:
        saved.extractall(tmp_path)
    file = tmp_path / EXPERIMENTS[0] / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": 3}))
    with pytest.raises(sinklens.SinklensError, match="this version reads 1 and 2"):
        sinklens.ExperimentResult.load(file.parent)
