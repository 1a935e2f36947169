"""All pages and downloads of an atlas, written whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ...core.errors import SinklensError
from ...core.json_files import json_bytes
from ...core.paths import path_of
from ...core.storage import require_free, write_files
from .checkpoints import Cell, Checkpoint, checkpoints_in, file_names
from .comparing import ATTRIBUTES, compare_by
from .comparison_page import comparison_page
from .headlines import measured_in
from .model_page import model_page
from .pages import DATA, FIRST, MODELS, Atlas, first_page
from .reading import read_effects

KNOWN = (
    *("model", "revision", "step", "model_seed", "family", "parameters", "n_layers", "n_heads"),
    *("d_model", "position_encoding", "norm", "norm_placement", "bos", "dtype", "weights"),
)
"""What the table of models says of each."""


def make_atlas(file: str | Path, folder: str | Path) -> Path:
    """Write the atlas of a table: pages that need no server and no network.

    Args:
        file: What `sinklens merge` wrote, `.parquet` or `.csv`.
        folder: The folder to write, which must be new or empty.

    Returns:
        The first page.

    Raises:
        UsageError: The file is of another kind.
        SinklensError: It is damaged, empty or of another schema, or the folder is in use.
    """
    target = path_of(folder)
    require_free(target, overwrite=False)
    write_files(target, _files(read_effects(file)))
    return target / FIRST


def _files(effects: pd.DataFrame) -> dict[str, bytes]:
    """All files by name."""
    measured = measured_in(effects)
    checkpoints = checkpoints_in(effects, measured)
    models = list(dict.fromkeys(one.model for one in checkpoints))
    compared = {name: compare_by(name, measured) for name in ATTRIBUTES}
    shown = {name: found for name, found in compared.items() if found}
    atlas = Atlas(
        measured,
        checkpoints,
        file_names(models),
        {name: f"by-{name.replace('_', '-')}.html" for name in shown},
        sorted(set(effects["sinklens"].dropna())),
        effects.attrs["left_out"],
    )
    data = dict(_data(effects, checkpoints))
    pages = {FIRST: first_page(atlas, data)}
    for name, found in shown.items():
        pages[atlas.comparisons[name]] = comparison_page(atlas, name, found)
    for model in models:
        own = [one for one in checkpoints if one.model == model]
        pages[f"{MODELS}/{atlas.files[model]}"] = model_page(atlas, model, own)
    files = {name: content.encode("utf-8", "replace") for name, content in pages.items()}
    return files | {f"{DATA}/{name}": content for name, content in data.items()}


def _data(effects: pd.DataFrame, checkpoints: list[Checkpoint]) -> Iterator[tuple[str, bytes]]:
    """The downloads."""
    yield "effects.csv", effects.to_csv(index=False).encode()
    packed = io.BytesIO()
    try:
        effects.to_parquet(packed, index=False)
    except ImportError as error:
        raise SinklensError("an atlas needs pyarrow: pip install 'sinklens[sweep]'") from error
    yield "effects.parquet", packed.getvalue()
    lines = [_flat(one) for one in checkpoints]
    yield "models.json", json_bytes({"models": lines})
    yield "models.csv", pd.DataFrame(lines).to_csv(index=False).encode()


def _flat(one: Checkpoint) -> dict[str, Any]:
    """A checkpoint with its measures, as plain values."""
    known = {name: one.known[name] for name in KNOWN}
    measures: Mapping[str, Cell] = one.cells
    numbers = {
        f"{key}{end}": value
        for key, cell in measures.items()
        for end, value in {
            "": cell.value,
            "_ci_low": cell.low,
            "_ci_high": cell.high,
            "_null": cell.null,
            "_reference": cell.reference,
        }.items()
    }
    return known | numbers
