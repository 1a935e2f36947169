"""The atlas that is shipped: `atlas/effects.parquet`, the table of `atlas/shipped.toml`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sinklens.sweep.atlas.checkpoints import file_names
from sinklens.sweep.atlas.reading import read_effects
from sinklens.sweep.atlas.site import make_atlas
from sinklens.sweep.driver import read_sweep
from tests.conftest import SMOLLM2_FILE

FOLDER = Path(__file__).parents[2] / "atlas"
TABLE = FOLDER / "effects.parquet"
MOST_BYTES = 1_000_000


def test_the_table_has_all_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "shipped.toml").write_bytes((FOLDER / "shipped.toml").read_bytes())
    (tmp_path / SMOLLM2_FILE).touch()  # only found, not read
    asked = {
        (one.checkpoint.name, one.checkpoint.step, one.checkpoint.model_seed or 0)
        for one in read_sweep(tmp_path / "shipped.toml").tasks
    }
    table = read_effects(TABLE)
    lines = table[["model", "step", "model_seed"]].drop_duplicates()
    there = {
        (line.model, None if line.step is pd.NA else int(line.step), int(line.model_seed or 0))
        for line in lines.fillna({"model_seed": 0}).itertuples()
    }
    assert there == asked and TABLE.stat().st_size < MOST_BYTES
    assert set(table["n"]) == {16} and set(table["length"]) == {64}


def test_its_site_has_a_page_of_every_model(tmp_path: Path) -> None:
    first = make_atlas(TABLE, tmp_path / "site")
    models = sorted(set(read_effects(TABLE)["model"]))
    index = first.read_text("utf-8")
    for model, page in file_names(models).items():
        assert f'href="models/{page}"' in index
        said = (first.parent / "models" / page).read_text("utf-8")
        assert f"<h1>{model}</h1>" in said and "Position 0 takes" in said
