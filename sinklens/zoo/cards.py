"""Cards of the shipped models: what was trained, how, and what was measured on the stored files.

Every figure is measured on the stored fp16 weights, computed in float32, on held-out text. `spike`
is the largest entry of the residual stream over the median entry, at the site where this ratio is
largest; `norm ratio` is the residual norm at position 0 over that of other positions, at the site
where it is largest (both averaged over prompts first).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..models.shipped import names
from ..models.shipped.text import TEXT_SHA256
from ..models.shipped.untrained import fingerprint
from .comparison import BASE, seed_p_value
from .recipes import Recipe
from .tasks import HELD_OUT_PROMPTS
from .train import new_model

PROFILE_PROMPTS = 64
LICENCE = "MIT; trained on text in the public domain (CC0)"
FIGURES = {
    "sink mass": "sink_mass position0",
    "sink rate": "sink_rate gu",
    "spike": "spike",
    "norm ratio": "norm ratio",
    "held-out loss": "held-out loss",
}
SIGNIFICANT = 0.05


def measure(model: Any, recipe: Recipe) -> dict[str, dict[str, float]]:
    """Every figure of a model's card: `value`, and `uniform` where there is an analytic null."""
    from ..engine import evaluate
    from ..models.prompts import prompts, prompts_of
    from ..probes import ResidualPeaks
    from ..runner.registry import run

    task = recipe.task
    many, few = (
        prompts_of(task.prompts, prompts(model, n=n, length=task.length, bos=task.bos))
        for n in (HELD_OUT_PROMPTS, PROFILE_PROMPTS)
    )
    peaks = ResidualPeaks(model)
    evaluate(model, few, [], [], probes=[peaks], progress=False)
    profile = run("sink_profile", model, few, progress=False)
    norms, others = (profile.arrays[f"{name}_norm"].values for name in ("position0", "other"))
    figures = {
        f"held-out {name}": {"value": value} for name, value in task.held_out(model, many).items()
    }
    figures |= {
        f"{row.metric} {row.condition}": {"value": row.value, "uniform": row.baseline}
        for row in profile.effects
    }
    figures["spike"] = {"value": float(peaks.compute().ratio.mean(0).max())}
    figures["norm ratio"] = {"value": float((norms / others).max())}
    return figures


def make_card(
    recipe: Recipe, weights: Sequence[Mapping[str, Any]], parameters: int
) -> dict[str, Any]:
    """A card without findings, which need the cards of the other members.

    Args:
        recipe: The recipe.
        weights: For each stored file its `file`, `seed`, `step`, `bytes`, `sha256`, `figures`, and
            for the ends of training runs `training_seconds`, `training_loss` and
            `half_precision_change`; the first is `model.safetensors`.
        parameters: Number of parameters.
    """
    said = ("differs", "also_differs", "control", "control_shares")
    hidden = ("name", "description", "config", "task", *said)
    return {
        **words(recipe),
        "licence": LICENCE,
        "bos": recipe.task.bos,
        "length": recipe.task.length,
        "prompts": recipe.task.prompts,
        "data": f"200 State of the Union addresses, SHA-256 {TEXT_SHA256}",
        "recipe": {
            key: value for key, value in dataclasses.asdict(recipe).items() if key not in hidden
        },
        "parameters": parameters,
        "untrained": {
            str(seed): round(fingerprint(new_model(recipe, seed)), 3) for seed in recipe.seeds
        },
        "weights": list(weights),
    }


def words(recipe: Recipe) -> dict[str, Any]:
    """The words of a card about its recipe."""
    return {
        "name": recipe.name,
        "description": recipe.description,
        "differs": {
            "on purpose": recipe.differs,
            "besides": list(recipe.also_differs),
            "control": recipe.control,
            "control shares": recipe.control_shares,
        },
        "task": recipe.task.description,
    }


def findings(card: Mapping[str, Any], cards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How a member differs from `rope` and from its control, tested over seeds."""
    if card["name"] == BASE or card["name"].startswith("backcopy"):
        return []
    others = [cards[name] for name in (BASE, card["differs"]["control"]) if name in cards]
    return [line for other in others for line in _differences(card, other)]


def _differences(card: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    for name, key in FIGURES.items():
        if name == "held-out loss" and card["task"] != other["task"]:
            yield (
                f"{name}: not compared with {other['name']}, whose loss is over different "
                f"predictions ({other['task']})."
            )
            continue
        own, base = (
            [run["figures"][key]["value"] for run in last_steps(one)] for one in (card, other)
        )
        # Relative to uniform attention, whose value depends on mask and length.
        p = seed_p_value(
            [value - (_uniform(card, key) or 0) for value in own],
            [value - (_uniform(other, key) or 0) for value in base],
        )
        yield (
            f"{name}: {_spread(own, _uniform(card, key))}; {other['name']} has "
            f"{_spread(base, _uniform(other, key))}: "
            f"{_verdict(p, {card['name']: len(own), other['name']: len(base)})}."
        )


def _verdict(p: float | None, seeds: Mapping[str, int]) -> str:
    """Whether a difference is significant over seeds, and what the test assumes."""
    single = [name for name, count in seeds.items() if count == 1]
    if p is None:
        alike = "one seed each" if len(single) == 2 else "no variation between the seeds"
        return f"{alike}, so no t test is possible"
    verdict = "significantly different" if p < SIGNIFICANT else "not significantly different"
    assumed = f", assuming that {single[0]}, with one seed, has the same variance" if single else ""
    return f"{verdict} (t test over seeds, p = {p:.2g}{assumed})"


def _uniform(card: Mapping[str, Any], key: str) -> float | None:
    """The value under uniform attention on this member, where a figure has that null."""
    uniform: float | None = card["weights"][0]["figures"][key].get("uniform")
    return uniform


def last_steps(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The end of training of each seed."""
    return [run for run in card["weights"] if run["step"] == card["recipe"]["steps"]]


def sha256(file: Path) -> str:
    """The hash of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write(card: Mapping[str, Any], folder: Path) -> None:
    """Write `card.json` and `README.md` into a member's folder."""
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    (folder / "README.md").write_text(_page(card))


def _spread(values: Sequence[float], uniform: float | None) -> str:
    """The mean over seeds, with their range and the value under uniform attention."""
    beside = []
    if len(values) > 1:
        beside.append(f"{min(values):.3f} to {max(values):.3f}, {len(values)} seeds")
    if uniform is not None:
        beside.append(f"uniform attention {uniform:.3f}")
    return f"{np.mean(values):.3f}" + (f" ({'; '.join(beside)})" if beside else "")


def _page(card: Mapping[str, Any]) -> str:
    """The card as a page."""
    recipe, first = card["recipe"], card["weights"][0]
    decay = f"weight decay {recipe['weight_decay']} on all parameters"
    if recipe["frozen"]:
        decay += f" (parameters named *{', *'.join(recipe['frozen'])} stay as initialised)"
    made = (
        f"{recipe['steps']} steps of {recipe['batch_size']} windows, AdamW, learning rate "
        f"{recipe['learning_rate']} (cosine, {recipe['warmup']} steps of warm-up), {decay}, betas "
        f"{tuple(recipe['betas'])}; float32, one thread"
    )
    rows = "\n".join(
        f"| {name} | {figure['value']:.3f} | {_number(figure.get('uniform'))} |"
        for name, figure in first["figures"].items()
    )
    curve = ", ".join(f"{step}: {loss:.3f}" for step, loss in first["training_loss"][4::5])
    besides = "; ".join(card["differs"]["besides"]) or "none"
    control = card["differs"]["control"]
    parts = [
        f"# {card['name']}\n\n{card['description']}. {card['parameters']:,} parameters, "
        f"{first['bytes'] / 2**20:.2f} MiB in fp16.",
        f"- Intended difference from `{BASE}`: {card['differs']['on purpose']}.\n"
        f"- Other differences: {besides}."
        + (
            f" The control `{control}` shares {card['differs']['control shares']}."
            if control in names()
            else ""
        ),
        f"- Task: {card['task']}.\n- Data: {card['data']}; the 33 addresses that "
        "`sinklens.prompts` reads are not among them.\n"
        f"- Recipe: {made}. `python -m sinklens.zoo.train {card['name']} --seed {first['seed']} "
        "--out FOLDER` reproduces it, bit for bit with the same versions and type of processor.\n"
        f"- Time: {first['training_seconds']} s. Training loss, nats, by step: {curve}.\n"
        f"- Half precision changes the held-out loss by "
        f"{first['half_precision_change']['held-out loss']:.1e} and the sink mass by "
        f"{first['half_precision_change']['sink_mass position0']:.1e}.\n"
        f"- Licence: {card['licence']}.",
    ]
    if card["findings"]:
        lines = "\n".join(f"- {line}" for line in card["findings"])
        parts.append(
            "## Comparison with other members\n\nEach line compares trained models by a t test "
            "with the training seed as the unit, on the value minus that of uniform attention "
            "where one is given. With three seeds the test has little power; p is not corrected "
            "for the number of lines."
            f"\n\n{lines}"
        )
    parts.append(
        f"## Measured on the stored file\n\n{HELD_OUT_PROMPTS} held-out prompts for the loss, "
        f"{PROFILE_PROMPTS} for all else, {card['length']} positions each.\n\n"
        f"| quantity | value | uniform attention |\n|---|---|---|\n{rows}"
    )
    if len(card["weights"]) > 1:
        parts.append(f"## Other stored weights\n\n{_stored_table(card)}")
    return "\n\n".join(parts) + "\n"


def _stored_table(card: Mapping[str, Any]) -> str:
    """Seeds and checkpoints, one line each."""
    lines = ["| seed | step | " + " | ".join(FIGURES) + " |", "|---|" + "---|" * (len(FIGURES) + 1)]
    for run in sorted(card["weights"], key=lambda run: (run["seed"], run["step"])):
        figures = [f"{run['figures'][key]['value']:.3f}" for key in FIGURES.values()]
        lines.append(f"| {run['seed']} | {run['step']} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
