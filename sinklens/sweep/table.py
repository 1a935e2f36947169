"""One table of effects of all results of sweeps, in long form.

Results of other settings, prompts, schema or version of sinklens are refused where nobody asked for
them together: one specification may ask for several settings of an experiment, or somebody may say
so (`mixed`). The column `settings` then tells them apart.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from ..core.errors import SinklensError, UsageError, shortened
from ..core.json_files import read_json
from ..core.paths import path_of
from ..core.storage import write_file
from ..results.differences import NOT_SETTINGS as REMARKS
from ..results.saved import SCHEMA, read_vouched
from ..stats.effects import EffectSize
from .by_head import COLUMN, rows_with_heads
from .folder import OF_A_TASK, SweepFolder

COLUMNS = {
    "task": "name of the result's folder",
    "experiment": "the experiment",
    "model": "name of the model",
    "revision": "revision of a Hub id",
    "step": "training step of a shipped model",
    "model_seed": "training seed of a shipped model",
    "weights": "hash of the weights",
    "parameters": "how many the model has; tied ones count once",
    "family": "kind of model in transformers, such as llama",
    "architecture": "class of the model",
    "n_layers": "blocks",
    "n_heads": "query heads of a block",
    "d_model": "width of the residual stream",
    "position_encoding": "absolute, rotary, rotary in some layers, alibi or none",
    "norm": "LN or RMS",
    "norm_placement": "pre, sandwich, post sub-block (before it is added), post (on the sum)",
    "dtype": "dtype of the weights",
    "device": "device of the run",
    "bos": "whether prompts start with BOS",
    "text": "what prompts were cut from",
    "prompts": "hash of the prompts",
    "n": "number of prompts",
    "length": "tokens in each",
    "seed": "seed of the random draws",
    "settings": "settings of the experiment, as JSON",
    **{one.name: f"field of EffectSize: {one.name}" for one in fields(EffectSize)},
    COLUMN: "on the row of the sink mass: that of each head, as JSON",
    "schema": "schema of result.json",
    "sinklens": "version",
    "transformer_lens": "version",
    "transformers": "version",
    "torch": "version",
    "numpy": "version",
    "scipy": "version",
    "python": "version",
}
"""The columns and what they hold."""
WHOLE = (
    *("step", "model_seed", "parameters", "n_layers", "n_heads", "d_model", "n", "length", "seed"),
    *("layer", "head", "n_prompts", "n_draws", "schema"),
)
NUMBERS = ("baseline", "value", "effect", "ci_low", "ci_high", "p_value", "q_value", "d_z")
NOT_SETTINGS = (*REMARKS, "seed", "batch_size", "memory")
"""Parts of the settings in which results may differ."""
Variant = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Found:
    """A result that was found.

    Attributes:
        name: The name of its folder.
        source: Its folder.
        values: What all of its rows share, by column.
        rows: The rows.
    """

    name: str
    source: Path
    values: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def variant(self) -> Variant:
        """In what results of one experiment may not differ unless it was asked for."""
        return tuple((k, self.values[k]) for k in ("settings", "n", "length", "schema", "sinklens"))


def load_sweep(folders: str | Path | Sequence[str | Path], *, mixed: bool = False) -> pd.DataFrame:
    """All effects of a sweep, or of several, in long form, one line a row of a result.

    The columns are those of `sinklens.sweep.table.COLUMNS`. Results of tasks that the specification
    asks for no more are left out; `table.attrs["left_out"]` counts them. Results stand in order of
    their folders' names, so that shards give the table of the whole.

    Args:
        folders: The folder of a sweep, or any folder of results; or several, of which a result that
            is in two counts once.
        mixed: Whether to keep results of different settings and versions that no one specification
            asks for together.

    Raises:
        SinklensError: There is no result, one is damaged, or they may not be mixed.
    """
    given = [folders] if isinstance(folders, (str, Path)) else folders
    return _table([path_of(folder) for folder in given], mixed)


def merge(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    mixed: bool = False,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Write all effects of several sweeps into one file, and return them.

    Args:
        folders: As in `load_sweep`.
        output: A `.parquet` or `.csv` file.
        mixed: As in `load_sweep`.
        overwrite: Whether to replace a file that is there.

    Raises:
        SinklensError: As in `load_sweep`, or the file cannot be written.
        UsageError: It is of another kind.
    """
    target = path_of(output)
    if target.suffix not in (".parquet", ".csv"):
        raise UsageError(f"{target} is neither .parquet nor .csv")
    if target.exists() and not overwrite:
        raise SinklensError(f"{target} exists; choose another name, or use --overwrite")
    table = load_sweep(folders, mixed=mixed)
    content = io.BytesIO()
    if target.suffix == ".csv":
        table.to_csv(content, index=False)
    else:
        try:
            table.to_parquet(content, index=False)
        except ImportError as error:
            raise SinklensError(
                "a .parquet file needs pyarrow: pip install 'sinklens[sweep]'; or write a .csv"
            ) from error
    try:
        write_file(target, content.getvalue())
    except OSError as error:
        raise SinklensError(f"cannot write {shortened(target)}: {error.strerror}") from error
    return table


def _table(folders: Sequence[Path], mixed: bool) -> pd.DataFrame:
    """The rows of all results in the folders."""
    found: dict[str, Found] = {}
    sweeps, left_out = [], 0
    for folder in folders:
        names = None
        if SweepFolder(folder).is_sweep():
            names = set(SweepFolder(folder).about()["tasks"])
            sweeps.append(names)
        for part in _parts(folder):
            if names is None or part.name in names:
                found.setdefault(part.name if names is not None else str(part), _read(part))
            else:
                left_out += 1
    if not found:
        said = ", ".join(map(shortened, folders))
        raise SinklensError(f"there is no result in {said}; `sinklens sweep DIR --status` says why")
    if not mixed:
        _require_alike(found.values(), sweeps)
    table = _framed(sorted(found.values(), key=lambda one: one.name))
    table.attrs["left_out"] = left_out
    return table


def _parts(folder: Path) -> Iterator[Path]:
    """The folders of results in a folder, in order of their names."""
    if (folder / "result.json").is_file():
        yield folder
        return
    inner = SweepFolder(folder).result("") if SweepFolder(folder).is_sweep() else folder
    yield from sorted(path.parent for path in inner.glob("*/result.json"))


def _read(folder: Path) -> Found:
    """A result as far as the table has it.

    Raises:
        SinklensError: It is damaged.
    """
    try:
        content = read_vouched(folder)
        about = read_json(folder / OF_A_TASK) if (folder / OF_A_TASK).exists() else {}
    except SinklensError as error:
        raise SinklensError(f"{error}; the same sweep again measures it anew") from error
    known, anatomy = content["provenance"], about.get("anatomy", {})
    model, prompts, versions = known["model"], known["prompts"], known.get("versions", {})
    settings = {k: v for k, v in content["settings"].items() if k not in NOT_SETTINGS}
    own = {
        "task": about.get("task", folder.name),
        "experiment": content["experiment"],
        "model": model["name"],
        "revision": model.get("revision"),
        "step": model.get("step"),
        "model_seed": model.get("seed"),
        "weights": model.get("weights"),
        "architecture": model.get("architecture"),
        "dtype": known.get("dtype"),
        "device": known.get("device"),
        "bos": known["bos"],
        "text": prompts["source"],
        "prompts": prompts.get("hash"),
        "n": prompts["n"],
        "length": prompts["length"],
        "seed": known.get("seed"),
        "settings": json.dumps(settings, sort_keys=True),
        "schema": content.get("schema", SCHEMA),
        **{name.replace("-", "_"): version for name, version in versions.items()},
    }
    return Found(folder.name, folder, {**anatomy, **own}, rows_with_heads(folder, content))


def _require_alike(found: Iterable[Found], sweeps: Sequence[set[str]]) -> None:
    """Refuse results of one experiment that differ, unless one specification asks for all of them.

    Raises:
        SinklensError: There are some.
    """
    variants: dict[str, dict[Variant, list[Found]]] = defaultdict(lambda: defaultdict(list))
    for one in found:
        variants[one.values["experiment"]][one.variant].append(one)
    for experiment, by_variant in variants.items():
        asked = any(
            all(any(one.name in names for one in same) for same in by_variant.values())
            for names in sweeps
        )
        if len(by_variant) > 1 and not asked:
            first, second = (same[0] for same in list(by_variant.values())[:2])
            raise SinklensError(
                f"results of {experiment} differ: {_difference(first.values, second.values)} "
                f"({first.source}, {second.source}); merge them apart, or keep both, told apart by "
                "the column settings, with --mixed (mixed=True)"
            )


def _difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """In what two results differ that may not."""
    for name in ("schema", "sinklens", "n", "length"):
        if first[name] != second[name]:
            return f"{name} is {first[name]} in one and {second[name]} in another"
    one, other = (json.loads(values["settings"]) for values in (first, second))
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return "; ".join(
        f"{name} is {one.get(name)!r} in one and {other.get(name)!r} in another" for name in names
    )


def _framed(found: Iterable[Found]) -> pd.DataFrame:
    """The rows with all columns."""
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    of_a_row = {COLUMN, *(one.name for one in fields(EffectSize))}
    for one in found:
        for name, values in columns.items():
            if name in of_a_row:
                values += [row.get(name) for row in one.rows]
            else:
                values += [one.values.get(name)] * len(one.rows)
    kinds = dict.fromkeys(WHOLE, "Int64") | dict.fromkeys(NUMBERS, "float64")
    kinds |= {"bos": "boolean"}
    return pd.DataFrame(
        {name: pd.Series(values, dtype=kinds.get(name, "str")) for name, values in columns.items()}
    )
