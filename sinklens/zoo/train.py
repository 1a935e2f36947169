"""Train a shipped model again: `python -m sinklens.zoo.train NAME [--seed S] [--out FOLDER]`.

One thread, float32, so that the same machine gives the same weights bit for bit. The state is saved
regularly; the same command resumes an interrupted run. Hugging Face and `sinklens.load` read the
resulting folder, whose weights are stored as fp16. `collect.py` turns it into a shipped member.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from ..core.errors import UsageError
from ..models.shipped.untrained import save_weights, untrained_model
from .recipes import RECIPES, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAVE_EVERY = 200


def new_model(recipe: Recipe, seed: int) -> PreTrainedModel:
    """The untrained model of a recipe: step 0 of its training, the same for the same seed."""
    model = untrained_model(recipe.config(), seed, recipe.first_weights)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.endswith(recipe.frozen))
    return model


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to 0."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / (recipe.steps - recipe.warmup)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def new_optimizer(model: PreTrainedModel, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW on all parameters that are not frozen."""
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
    )


def save_state(model: PreTrainedModel, optimizer: torch.optim.AdamW, file: Path) -> None:
    """Write all that training needs to go on, in full precision and without pickle."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach().clone()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value.clone()
    partial = file.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(file)


def restore_state(model: PreTrainedModel, optimizer: torch.optim.AdamW, file: Path) -> None:
    """Put back what `save_state` wrote."""
    tensors = load_file(file)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"weight.{name}"])
            if parameter.requires_grad:
                optimizer.state[parameter] = {
                    key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
                }


def train(recipe: Recipe, folder: Path, *, seed: int = 0, stop_at: int | None = None) -> None:
    """Train a recipe into `folder`, going on from the state that is there.

    Args:
        recipe: What to train.
        folder: Receives the model, its tokenizer, checkpoints, `training.json` and `state/`.
        seed: Decides the first weights and the order of the windows.
        stop_at: Stop after this step (the schedule stays that of `recipe.steps`).

    Raises:
        UsageError: The folder holds a run of another recipe or seed.
    """
    torch.set_num_threads(1)
    state = folder / "state"
    own = {"name": recipe.name, "seed": seed, "recipe": recipe.digest()}
    log: dict[str, Any] = {**own, "step": 0, "seconds": 0.0, "loss": []}
    if (state / "log.json").exists():
        log |= {"recipe": None} | json.loads((state / "log.json").read_text())
    if any(log[key] != value for key, value in own.items()):  # its weights may have our shapes
        alike = (log["name"], log["seed"]) == (recipe.name, seed)
        raise UsageError(
            f"{folder} holds a run of {log['name']} with seed {log['seed']}"
            f"{' by another version of the recipe' if alike else ''}, which {recipe.name} "
            f"with seed {seed} cannot go on from; give another folder"
        )
    state.mkdir(parents=True, exist_ok=True)
    if not log["step"]:
        recipe.task.save_tokenizer(folder)
    model = new_model(recipe, seed)
    model.train()
    model.config.save_pretrained(folder)
    optimizer = new_optimizer(model, recipe)
    if log["step"]:
        restore_state(model, optimizer, state / f"{log['step']}.safetensors")
    stream = recipe.task.batches(recipe.batch_size, seed, log["step"])
    last = recipe.steps if stop_at is None else min(recipe.steps, stop_at)
    began, seconds_before, recent = time.perf_counter(), log["seconds"], []
    for step, batch in zip(range(log["step"], last), stream, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        loss = model(input_ids=batch.input_ids, labels=batch.labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
        optimizer.step()
        recent.append(loss.item())
        done = step + 1
        if done in recipe.checkpoints:
            save_weights(model, folder / f"step{done}.safetensors")
        if done % SAVE_EVERY == 0 or done == last:
            log["loss"].append([done, sum(recent) / len(recent)])
            log["seconds"] = seconds_before + time.perf_counter() - began
            recent = []
            save_state(model, optimizer, state / f"{done}.safetensors")
            previous, log["step"] = log["step"], done
            (state / "log.partial").write_text(json.dumps(log))
            (state / "log.partial").replace(state / "log.json")
            (state / f"{previous}.safetensors").unlink(missing_ok=True)
            print(
                f"{recipe.name} seed {seed} step {done} loss {log['loss'][-1][1]:.4f} "
                f"{log['seconds']:.0f} s",
                flush=True,
            )
    if log["step"] == recipe.steps:
        save_weights(model, folder / "model.safetensors")
        training = {
            "seed": seed,
            "recipe": own["recipe"],
            "steps": recipe.steps,
            "seconds": round(log["seconds"]),
            "loss": log["loss"],
        }
        (folder / "training.json").write_text(json.dumps(training, indent=1) + "\n")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m sinklens.zoo.train", description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, help="folder; NAME-seedS by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-at", type=int, metavar="STEP", help="and go on another time")
    options = parser.parse_args()
    folder = options.out or Path(f"{options.name}-seed{options.seed}")
    try:
        train(RECIPES[options.name], folder, seed=options.seed, stop_at=options.stop_at)
    except UsageError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
