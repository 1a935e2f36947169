"""Make shipped members of trained runs: `python -m sinklens.zoo.collect RUNS [NAME ...]`.

RUNS holds a folder `NAME-seedS` for each run of `train.py`. The stored weights are copied beside
the package's other members, measured, and described on a card; a missing or unfinished run is an
error. Then the text of all cards is written again: the words of the recipes, and the findings,
which compare members. With `--words` only this last step is done.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..core.errors import unknown_name
from ..models import shipped
from ..models.shipped import card, names, without_weights
from . import cards
from .recipes import RECIPES, Recipe

MEMBERS = Path(shipped.__file__).parent / "members"


def collect(recipe: Recipe, runs: Path) -> None:
    """Copy one member's runs into the package and write its card, without findings."""
    target = MEMBERS / recipe.name
    target.mkdir(parents=True, exist_ok=True)
    first = finished_run(recipe, recipe.seeds[0], runs)
    for pattern in ("config.json", "tokenizer*"):
        for file in first.glob(pattern):
            shutil.copyfile(file, target / file.name)
    stored = [("model.safetensors", recipe.seeds[0], recipe.steps)]
    stored += [(f"step{step}.safetensors", recipe.seeds[0], step) for step in recipe.checkpoints]
    stored += [(f"seed{seed}.safetensors", seed, recipe.steps) for seed in recipe.seeds[1:]]
    weights = [_stored(recipe, *which, finished_run(recipe, which[1], runs)) for which in stored]
    total = sum(tensor.numel() for tensor in load_file(target / "model.safetensors").values())
    cards.write(cards.make_card(recipe, weights, total) | {"findings": []}, target)


def _stored(recipe: Recipe, file: str, seed: int, step: int, run: Path) -> dict[str, Any]:
    """Copy one weights file into the member's folder and return its entry on the card."""
    target = MEMBERS / recipe.name
    ends = step == recipe.steps
    shutil.copyfile(run / ("model.safetensors" if ends else file), target / file)
    figures = measure(recipe, target / file)
    entry: dict[str, Any] = {
        "file": file,
        "seed": seed,
        "step": step,
        "bytes": (target / file).stat().st_size,
        "sha256": cards.sha256(target / file),
        "figures": {
            name: {key: round(value, 4) for key, value in figure.items()}
            for name, figure in figures.items()
        },
    }
    if ends:
        log = json.loads((run / "training.json").read_text())
        full = measure(recipe, full_precision(recipe, run))
        entry["training_seconds"] = log["seconds"]
        entry["training_loss"] = [[step, round(loss, 4)] for step, loss in log["loss"]]
        entry["half_precision_change"] = {
            name: float(f"{figures[name]['value'] - full[name]['value']:.2g}")
            for name in ("held-out loss", "sink_mass position0")
        }
    print(f"{recipe.name} {file}: {figures['held-out loss']['value']:.4f}", flush=True)
    return entry


def finished_run(recipe: Recipe, seed: int, runs: Path) -> Path:
    """The folder of a finished run.

    Raises:
        SystemExit: The run is unfinished, or the recipe has changed since.
    """
    folder = runs / f"{recipe.name}-seed{seed}"
    if not (folder / "training.json").exists():
        raise SystemExit(f"{folder} has no finished run; train {recipe.name} with --seed {seed}")
    if json.loads((folder / "training.json").read_text()).get("recipe") != recipe.digest():
        raise SystemExit(f"{folder} was trained by another version of the recipe of {recipe.name}")
    return folder


def full_precision(recipe: Recipe, run: Path) -> Path:
    """The weights of the last saved state, in float32."""
    file = run / "state" / "full.safetensors"
    state = load_file(run / "state" / f"{recipe.steps}.safetensors")
    prefix = "weight."
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    save_file(weights, file, metadata={"format": "pt"})
    return file


def measure(recipe: Recipe, weights: Path) -> dict[str, dict[str, float]]:
    """The figures of one weights file of a member."""
    from ..models import load

    with without_weights(MEMBERS / recipe.name) as folder:
        shutil.copyfile(weights, folder / "model.safetensors")
        return cards.measure(load(folder), recipe)


def main() -> None:
    """Read the command line and collect."""
    parser = argparse.ArgumentParser(prog="python -m sinklens.zoo.collect", description=__doc__)
    parser.add_argument(
        "--words", action="store_true", help="only write the text of the cards again"
    )
    parser.add_argument("runs", type=Path, nargs="?")
    parser.add_argument("names", nargs="*", metavar="NAME", help="all members by default")
    options = parser.parse_args()
    for name in options.names:
        if name not in RECIPES:
            parser.error(str(unknown_name("member", name, RECIPES)))
    torch.set_num_threads(1)
    if not options.words and options.runs is None:
        parser.error("give the folder of the runs, or --words")
    for name in [] if options.words else options.names or RECIPES:
        collect(RECIPES[name], options.runs)
    everything = {name: card(name) | cards.words(RECIPES[name]) for name in names()}
    for name, content in everything.items():
        content["findings"] = cards.findings(content, everything)
        cards.write(content, MEMBERS / name)


if __name__ == "__main__":
    main()
