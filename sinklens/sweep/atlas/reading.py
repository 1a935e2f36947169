"""The table of `sinklens merge`, read from a file and refused where it is another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...core.errors import SinklensError, UsageError, in_one_line, shortened
from ...core.paths import path_of
from ...results.saved import SCHEMA
from ..table import COLUMNS, NUMBERS, WHOLE

TRUTHS = {"True": True, "False": False, "true": True, "false": False}
NEEDED = ("model", "experiment", "metric", "condition", "kind")
"""Columns that no row leaves empty."""


def read_effects(file: str | Path) -> pd.DataFrame:
    """The table, with the types that `load_sweep` gives.

    Rows without a finite value are left out; `attrs["left_out"]` counts them.

    Args:
        file: What `sinklens merge` wrote, `.parquet` or `.csv`.

    Raises:
        UsageError: It is of another kind.
        SinklensError: It is missing, damaged, empty, without the columns, or of another schema.
    """
    path = path_of(file)
    if path.is_dir():
        raise UsageError(
            f"{path} is a folder; `sinklens merge {path} -o effects.parquet` makes the table of it"
        )
    if path.suffix not in (".parquet", ".csv"):
        raise UsageError(f"{shortened(path)} is neither .parquet nor .csv")
    if not path.is_file():
        raise SinklensError(f"there is no file {shortened(path)}; `sinklens merge` writes it")
    table = _typed(path, _columns(path, _raw(path)))
    if table.empty:
        raise SinklensError(f"{path} has no rows; `sinklens sweep DIR --status` says why")
    schemas = sorted(set(table["schema"].dropna()))
    if schemas and schemas[-1] > SCHEMA:
        raise SinklensError(
            f"{path} holds results of schema {schemas[-1]}, and this sinklens reads up to {SCHEMA};"
            " use a newer one"
        )
    finite = np.isfinite(table[["baseline", "value", "effect"]].to_numpy(float)).all(axis=1)
    if not finite.any():
        raise SinklensError(f"{path} has no row with a finite value")
    kept = table[finite].reset_index(drop=True)
    kept.attrs["left_out"] = int((~finite).sum())
    return kept


def _raw(path: Path) -> pd.DataFrame:
    """What the file holds.

    Raises:
        SinklensError: It cannot be read.
    """
    try:
        if path.suffix == ".csv":
            return pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
        return pd.read_parquet(path)
    except ImportError as error:
        raise SinklensError(
            "a .parquet file needs pyarrow: pip install 'sinklens[sweep]'; or merge into a .csv"
        ) from error
    except (OSError, ValueError, MemoryError) as error:  # ArrowInvalid, ParserError, UnicodeError
        raise SinklensError(
            f"{path} is damaged or no table: {in_one_line(error)}; `sinklens merge` makes it again"
        ) from error


def _columns(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The columns of the table, in their order.

    Raises:
        SinklensError: Some are missing.
    """
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        said = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" * (len(missing) > 6))
        noun = "column" if len(missing) == 1 else "columns"
        raise SinklensError(
            f"{path} lacks the {noun} {said}; give the table that `sinklens merge` writes"
        )
    if not table.columns.is_unique:
        raise SinklensError(f"{path} has two columns of one name")
    return table[list(COLUMNS)]


def _typed(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The columns with their types.

    Raises:
        SinklensError: A value is of another type, or missing where none may be.
    """
    typed: dict[str, Any] = {}
    for name, column in table.items():
        try:
            typed[str(name)] = _column(str(name), column)
        except (TypeError, ValueError, OverflowError) as error:
            raise SinklensError(
                f"{path} is damaged: column {name} holds what it cannot hold: {in_one_line(error)}"
            ) from error
    for name in NEEDED:
        if typed[name].isna().any():
            raise SinklensError(f"{path} is damaged: column {name} is empty in some rows")
    return pd.DataFrame(typed, index=table.index)


def _column(name: str, column: pd.Series) -> pd.Series:
    if name in WHOLE:
        return pd.to_numeric(column).astype("Float64").astype("Int64")
    if name in NUMBERS:
        return pd.to_numeric(column).astype("float64")
    if name == "bos":
        known = column.map(lambda value: TRUTHS.get(value, value) if pd.notna(value) else pd.NA)
        return known.astype("boolean")
    return column.astype("str")
