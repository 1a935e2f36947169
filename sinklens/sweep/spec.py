"""What a sweep is asked for: a TOML file, read into types and refused before any work.

    seeds = [0, 1]
    models = ["rope", {name = "postnorm", steps = "all"}, "checkpoints/step*"]
    texts = [{length = 64, n = 16}, {path = "wiki.txt", length = 256}]
    experiments = ["sink_profile", {name = "bos_replacement", conditions = ["mean", "zero"]}]

    [settings]      # of all experiments
    draws = 3

    [ray]           # options of ray.remote, and `address`
    num_gpus = 1

    [slurm]         # parameters of submitit, and `cluster`
    slurm_partition = "gpu"

Paths are relative to the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from ..core.errors import SinklensError, UsageError, unknown_name
from ..core.json_files import read_regular
from ..models.placement import dtype_name
from ..runner import registry
from ..runner.config import fit

EVERY = "all"
OF_THE_SWEEP = {"seed": "seeds", "progress": "--quiet", "out": "--out", "overwrite": "--out"}


@dataclass(frozen=True)
class AskedModel:
    """A model, or several: its checkpoints, or all that a pattern matches.

    Attributes:
        name: A shipped name, a folder, a `.gguf` file, a Hub id, or a pattern with `*`.
        revisions: Revisions of a Hub id.
        steps: Training steps of a shipped model; None is all of them, empty the last.
        model_seeds: Training seeds of a shipped model; None is all of them, empty the first.
        dtype: Its dtype.
        device: Its device.
        device_map: Several devices, as `sinklens.load` takes them: `auto`, `balanced`.
    """

    name: str
    revisions: tuple[str, ...] = ()
    steps: tuple[int, ...] | None = ()
    model_seeds: tuple[int, ...] | None = ()
    dtype: str = "float32"
    device: str | None = None
    device_map: str | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown dtype, and devices that are given in two ways."""
        dtype_name(self.dtype)
        if self.device is not None and self.device_map is not None:
            raise UsageError(f"{self.name}: device and device_map say different things; give one")


@dataclass(frozen=True)
class AskedText:
    """What prompts are cut from, and how.

    Attributes:
        path: A text file or a folder of them; None is the shipped corpus.
        n: Number of prompts.
        length: Tokens in each, BOS included.
        bos: Whether prompts start with BOS; None is as the model does.
    """

    path: str | None = None
    n: int = 64
    length: int = 64
    bos: bool | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that give no prompts."""
        if self.n < 1 or self.length < 2:
            raise UsageError(
                f"prompts need n >= 1 and length >= 2, not n={self.n}, length={self.length}"
            )


@dataclass(frozen=True)
class AskedExperiment:
    """An experiment with its settings.

    Attributes:
        name: Its name.
        settings: Its settings, those of the whole sweep included.
        recorded: All of its settings but the seed, defaults included, ready for JSON.
    """

    name: str
    settings: dict[str, Any]
    recorded: dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """What a sweep is asked for.

    Attributes:
        base: The folder that paths are relative to.
        models: The models.
        texts: What prompts are cut from.
        experiments: The experiments.
        seeds: Seeds of the random draws, one run each.
        threads: Threads of a worker. Rounding depends on them, so that they are fixed.
        ray: Options of Ray.
        slurm: Parameters of SLURM.
    """

    base: Path
    models: tuple[AskedModel, ...]
    texts: tuple[AskedText, ...]
    experiments: tuple[AskedExperiment, ...]
    seeds: tuple[int, ...] = (0,)
    threads: int = 1
    ray: dict[str, Any] = field(default_factory=dict)
    slurm: dict[str, Any] = field(default_factory=dict)


KEYS = ("models", "texts", "experiments", "seeds", "settings", "threads", "ray", "slurm")


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        SinklensError: It cannot be read.
        UsageError: It is no TOML.
    """
    try:
        return tomllib.loads(read_regular(path).decode("utf-8"))
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise UsageError(f"{path} is no TOML: {error}") from error
    except SinklensError as error:
        raise SinklensError(
            f"cannot read {path}; give a TOML file that says what to run"
        ) from error


def parse(content: Mapping[str, Any], base: Path) -> Spec:
    """The specification that TOML says.

    Args:
        content: What `read_toml` returned.
        base: The folder that paths are relative to.

    Raises:
        UsageError: A key, name or value is wrong.
    """
    _require_known(content, KEYS, "key of a sweep")
    shared = _table(content, "settings")
    for part in ("models", "experiments"):
        if not content.get(part):
            raise UsageError(f'a sweep needs {part}, such as {part} = ["{_EXAMPLES[part]}"]')
    experiments = [_experiment(entry, shared) for entry in _entries(content, "experiments")]
    texts = [_filled(AskedText, entry, "text") for entry in _entries(content, "texts", "path")]
    spec = Spec(
        base=base,
        models=tuple(_filled(AskedModel, entry, "model") for entry in _entries(content, "models")),
        texts=tuple(texts) or (AskedText(),),
        experiments=tuple(experiments),
        seeds=fit("seeds", content.get("seeds", [0]), tuple[int, ...]),
        threads=fit("threads", content.get("threads", 1), int),
        ray=_table(content, "ray"),
        slurm=_table(content, "slurm"),
    )
    if not spec.seeds or min(spec.seeds) < 0 or spec.threads < 1:
        raise UsageError("a sweep needs seeds of at least 0, and threads of at least 1")
    return spec


_EXAMPLES = {"models": "rope", "experiments": "sink_profile"}


def _entries(
    content: Mapping[str, Any], part: str, called: str = "name"
) -> Sequence[dict[str, Any]]:
    """The entries of a list, each a table; a text alone is its name."""
    listed = content.get(part, [])
    if not isinstance(listed, list) or not all(isinstance(one, (str, dict)) for one in listed):
        raise UsageError(f"{part} is a list of names and tables, not {listed!r}")
    return [{called: one} if isinstance(one, str) else one for one in listed]


def _table(content: Mapping[str, Any], part: str) -> dict[str, Any]:
    table = content.get(part, {})
    if not isinstance(table, dict):
        raise UsageError(f"{part} is a table ([{part}]), not {table!r}")
    return dict(table)


def _filled(kind: type[Any], entry: Mapping[str, Any], what: str) -> Any:
    """A dataclass from a table.

    Raises:
        UsageError: A key is unknown or missing, or a value does not fit.
    """
    hints = get_type_hints(kind)
    _require_known(entry, hints, f"key of a {what}")
    if "name" in hints and "name" not in entry:
        raise UsageError(f"a {what} needs a name: {dict(entry)!r} has none")
    every = {one.name for one in fields(kind) if one.name in ("steps", "model_seeds")}
    values = {key: None if key in every and v == EVERY else v for key, v in entry.items()}
    return kind(**{key: fit(key, value, hints[key]) for key, value in values.items()})


def _experiment(entry: Mapping[str, Any], shared: Mapping[str, Any]) -> AskedExperiment:
    """An experiment whose settings are those that it has.

    Raises:
        UsageError: Its name or a setting is wrong.
    """
    settings = {**shared, **entry}
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise UsageError(f"an experiment needs a name: {dict(entry)!r} has none")
    for key, instead in OF_THE_SWEEP.items():
        if key in settings:
            raise UsageError(f"{key} is none of the settings of a sweep; use {instead}")
    config = registry.configure(registry.get(name), dict(settings))
    recorded = {key: value for key, value in config.recorded().items() if key != "seed"}
    return AskedExperiment(name, settings, recorded)


def _require_known(given: Mapping[str, Any], known: Any, what: str) -> None:
    for key in given:
        if key not in known:
            raise unknown_name(what, key, known)
