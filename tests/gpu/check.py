"""Numbers on an accelerator beside those on the CPU, its speed and memory, in under five minutes.

`python -m tests.gpu.check [--device cuda] [--smollm2 FILE]`. Every experiment at its smallest
settings on `rope`, four of them on SmolLM2, float32 without TF32: rows have to agree to 1e-4 of
their size, and refusals have to be the same. Then the quick rows of the published speed
table as ratios within one process, the most memory that torch held, and how long all of it took.
`--device cpu --rope` compares the CPU with itself on `rope` alone, which tries the script.
"""

from __future__ import annotations

import argparse
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

import sinklens
from sinklens.runner import registry
from tests.benchmarks.engine import Sweep, medians, patch_naively, patch_with_engine, show
from tests.conftest import SMOLLM2_FILE

CLOSE = 1e-4
ON_SMOLLM2 = ("sink_profile", "bos_replacement", "position0_patching", "massive_activations")
LAYERS = (2, 9, 16, 23)
ROW = ("metric", "condition", "kind", "against", "layer", "head", "queries")


def rows(result: sinklens.ExperimentResult) -> dict[tuple[Any, ...], float]:
    return {tuple(getattr(row, name) for name in ROW): row.value for row in result.effects}


def rows_on(model: Any, name: str, settings: dict[str, Any]) -> dict[tuple[Any, ...], float]:
    settings = {"draws": 2, "null_models": 0, "random_weights": False, **settings}
    known = registry.get(name).config.__dataclass_fields__
    settings = {key: value for key, value in settings.items() if key in known}
    prompts = sinklens.prompts(model, n=4, length=32)
    return rows(sinklens.run(name, model, prompts, progress=False, **settings))


def is_refused(model: Any, name: str, settings: dict[str, Any]) -> bool:
    """Whether an experiment is refused on a model; what one device alone refuses is a defect."""
    try:
        rows_on(model, name, settings)
    except sinklens.SinklensError:
        return True
    return False


def largest_difference(name: str, models: list[Any], settings: dict[str, Any]) -> tuple[float, int]:
    """Of an experiment's rows on two devices, as a share of the larger of 1 and the value."""
    mine, theirs = (rows_on(model, name, settings) for model in models)
    if mine.keys() != theirs.keys():
        raise SystemExit(f"{name}: other rows on {models[1].cfg.device}")
    gaps = [abs(mine[key] - theirs[key]) / max(1.0, abs(mine[key])) for key in mine]
    return max(gap if math.isfinite(gap) else math.inf for gap in gaps), len(gaps)


def compare(models: list[Any], names: list[str], smallest: bool) -> bool:
    """Print each experiment's largest difference; whether all are rounding."""
    fine = True
    for name in names:
        began = time.perf_counter()
        settings = dict(registry.get(name).smallest) if smallest else {}
        try:
            gap, count = largest_difference(name, models, settings)
        except sinklens.SinklensError as error:
            alike = all(is_refused(model, name, settings) for model in models)
            fine &= alike
            print(f"{name:24} refused{'' if alike else ' on one device ALONE'}: {error}")
            continue
        fine &= gap <= CLOSE
        said = "" if gap <= CLOSE else "  DIFFERS"
        print(f"{name:24} {count:4} rows  {gap:.1e}  {time.perf_counter() - began:4.0f} s{said}")
    return fine


def speed(model: Any) -> None:
    """The quick rows of the published table that time forwards alone."""
    sweep = Sweep(model, LAYERS)
    ways = {
        "naive": sweep.naive,
        "engine": sweep.engine,
        "patching": sweep.patching,
        "position 0": partial(patch_with_engine, model, sweep.prompts, LAYERS),
        "position 0 naive": partial(patch_naively, model, sweep.prompts, LAYERS),
    }
    for way in ways.values():  # the first call makes kernels and tries what the model allows
        way()
    if torch.cuda.is_available():
        ways = {name: partial(finished, way) for name, way in ways.items()}
    taken = medians(3, ways)
    for what, above, below in (
        ("all positions / naive loop", "engine", "naive"),
        ("all positions / transformer_lens.patching", "engine", "patching"),
        ("position0_patching / naive loop", "position 0", "position 0 naive"),
    ):
        show(what, taken[above] / taken[below])


def finished(way: Any) -> Any:
    """Run to the end: CUDA works on after a call returns."""
    found = way()
    torch.cuda.synchronize()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smollm2", type=Path, help="the GGUF file; by default from the cache")
    parser.add_argument("--rope", action="store_true", help="leave SmolLM2 and its speed out")
    options = parser.parse_args()
    began = time.perf_counter()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    file = options.smollm2 or sinklens.models.cache_folder() / "tests" / SMOLLM2_FILE
    if not options.rope and not Path(file).is_file():
        raise SystemExit(f"there is no {file}; give --smollm2 FILE, or --rope")
    every = list(registry.all_experiments())
    where = ("cpu", options.device)
    fine = compare([sinklens.load("rope", device=device) for device in where], every, True)
    if not options.rope:
        models = [sinklens.load(Path(file), device=device) for device in where]
        fine &= compare(models, list(ON_SMOLLM2), False)
        speed(models[1])
    if torch.cuda.is_available():
        print(f"most memory: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
    print(f"took {time.perf_counter() - began:.0f} s")
    if not fine:
        raise SystemExit("some rows differ by more than rounding, or are refused on one device")


if __name__ == "__main__":
    main()
