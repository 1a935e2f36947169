"""Cards of the shipped models: what was trained, how, and what was measured on the stored file.

Every figure is measured on the fp16 weights as they were read back, in float32, on text that was
not trained on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from . import corpus
from .recipes import BOS, WINDOW, Recipe

LOSS_PROMPTS, PROFILE_PROMPTS = 512, 64


def write_card(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Measure the model in `folder` and write `card.json` and `README.md` beside it."""
    import torch

    from ..engine import evaluate
    from ..experiments.registry import run
    from ..models import load
    from ..text import prompts

    model = load(folder)
    text = prompts(model, n=LOSS_PROMPTS, length=WINDOW)
    loss = float(evaluate(model, text, [], ["loss"], progress=False).clean.mean())
    profile = run(
        "sink_profile", model, prompts(model, n=PROFILE_PROMPTS, length=WINDOW), progress=False
    )
    training = json.loads((folder / "training.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        parameters = sum(p.numel() for p in model.original_model.parameters())
    measured = {
        f"{e.metric} {e.condition}": {"value": round(e.value, 4), "uniform": round(e.baseline, 4)}
        for e in profile.effects
    }
    card = {
        "name": recipe.name,
        "description": recipe.description,
        "licence": "MIT; trained on text in the public domain (CC0)",
        "data": f"200 State of the Union addresses, SHA-256 {corpus.TEXT_SHA256}; "
        f"windows of {WINDOW} tokens with BOS (id {BOS})",
        "recipe": {
            key: value
            for key, value in dataclasses.asdict(recipe).items()
            if key not in ("name", "description", "config")
        },
        "seed": training["seed"],
        "parameters": parameters,
        "bytes": len(weights),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "training_seconds": training["seconds"],
        "training_loss": training["loss"],
        "held_out_loss": {"nats": round(loss, 4), "prompts": LOSS_PROMPTS},
        "sinks": {"prompts": PROFILE_PROMPTS, "length": WINDOW, **measured},
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    (folder / "README.md").write_text(_page(card, profile.summary))
    return card


def _page(card: dict[str, Any], summary: list[str]) -> str:
    """The card as a page."""
    recipe = card["recipe"]
    rows = "\n".join(
        f"| {name} | {entry['value']:.3f} | {entry['uniform']:.3f} |"
        for name, entry in card["sinks"].items()
        if isinstance(entry, dict)
    )
    sentences = "\n".join(f"- {line}" for line in summary)
    made = (
        f"{recipe['steps']} steps of {recipe['batch_size']} windows, AdamW, learning rate "
        f"{recipe['learning_rate']} (cosine, {recipe['warmup']} steps of warm-up), weight decay "
        f"{recipe['weight_decay']} on all parameters, betas {tuple(recipe['betas'])}, seed "
        f"{card['seed']}; float32, one thread, {card['training_seconds']} s"
    )
    loss = card["held_out_loss"]
    return f"""# {card["name"]}

{card["description"]}. {card["parameters"]:,} parameters, {card["bytes"] / 2**20:.2f} MiB (fp16).

- Data: {card["data"]}. The 33 addresses that `sinklens.prompts` reads are not among them.
- Recipe: {made}. `python -m sinklens.zoo.train {card["name"]} --out FOLDER` makes it again.
- Training loss: {card["training_loss"][-1][1]:.3f} nats a token over the last steps.
- Held-out loss: {loss["nats"]:.3f} nats a token ({loss["prompts"]} windows of the prompts' corpus).
- Licence: {card["licence"]}.

Measured on the stored file, {card["sinks"]["prompts"]} windows of {card["sinks"]["length"]} tokens:

{sentences}

| sink measure | value | uniform attention |
|---|---|---|
{rows}
"""
