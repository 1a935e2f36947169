"""The default battery: `diagnose` runs four experiments and writes one page.

What is printed is its first screen (`results.first_screen`); `full()` is the whole page.

The sink profile on its four inputs; BOS replaced with the mean embedding, zero and random tokens;
all sink heads mean-ablated, and their edges to the sink dropped; position 0 patched with the
residual stream of another token at six evenly spaced layers. `full`: 16 prompts of 64 tokens, 3
draws, 3 models with random weights; at most 60 forward passes of the batch, besides those of two
prompts on the models with random weights. `quick`: 8 prompts, none of those models, heads not
mean-ablated, and position 0 at three layers; the default for large models (`runner.precision`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .core.errors import SinklensError, UsageError
from .core.protocol import HookedModel
from .engine import Plan
from .models import in_use, load, look_again, origin
from .models.capabilities import check
from .models.prompts import Prompts, as_prompts, require_several
from .models.prompts import prompts as make_prompts
from .results.diagnosis import Diagnosis
from .results.effect_lists import effect_lists
from .results.result import ExperimentResult
from .runner import registry
from .runner.keeping import in_few_lines
from .runner.planning import plan
from .runner.precision import FULL, QUICK, by_size

SHARED = ("draws", "null_models", "precision", "seed", "progress", "batch_size", "memory")
LENGTH, DRAWS, NULL_MODELS = 64, 3, 3
N_PROMPTS = {FULL: 16, QUICK: 8}
PATCHED_LAYERS = {FULL: 6, QUICK: 3}
ABLATIONS = {FULL: ("mean", "drop_edge"), QUICK: ("drop_edge",)}


@in_few_lines
def diagnose(
    model: HookedModel | str | Any, prompts: Prompts | Any = None, **settings: Any
) -> Diagnosis:
    """The sinks of a model, and the effects of removing them, on one page.

    Args:
        model: A bridge, or anything that `sinklens.load` takes.
        prompts: Prompts, or what `sinklens.run` takes for them; by default windows of 64 tokens of
            the shipped corpus, 16 or, in a quick diagnosis, 8.
        **settings: Settings shared by all experiments (`draws`, `seed`, `batch_size`,
            `progress`, ...). `precision` is `quick` by default where the model has more than 20
            million parameters, else `full`.

    Raises:
        SinklensError: The model or the prompts cannot be used.
    """
    configure(settings)
    require_several(prompts)
    bridge: Any = load(model)
    look_again(bridge)
    with in_use(bridge):
        return _diagnosed(bridge, prompts, settings)


def _diagnosed(model: HookedModel, prompts: Any, settings: Mapping[str, Any]) -> Diagnosis:
    """The battery and the page on it."""
    if prompts is None:
        prompts = make_prompts(model, n=default_prompts(model, settings), length=LENGTH)
    prompts = as_prompts(model, prompts)
    results: dict[str, ExperimentResult] = {}
    refused: dict[str, str] = {}
    for name, own in _battery(model, settings).items():
        try:
            results[name] = registry.run(name, model, prompts, **own)
        except SinklensError as error:
            if name == "sink_profile":
                raise
            refused[name] = str(error)
    return Diagnosis(results, _findings(model, prompts, results, refused), refused)


def default_prompts(model: HookedModel, settings: Mapping[str, Any]) -> int:
    """How many prompts a diagnosis has where nobody says it."""
    return N_PROMPTS[settings.get("precision") or by_size(model)]


def plans(model: HookedModel, prompts: Prompts, **settings: Any) -> list[Plan]:
    """What each experiment of the diagnosis takes, without those that refuse the model.

    Args:
        model: A bridge.
        prompts: The prompts.
        **settings: As in `diagnose`.

    Raises:
        SinklensError: The model or the prompts cannot be used.
    """
    configure(settings)
    found = []
    for name, own in _battery(model, settings).items():
        try:
            found.append(plan(name, model, prompts, **own))
        except SinklensError:
            if name == "sink_profile":
                raise
    return found


def _battery(model: HookedModel, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The experiments with their settings."""
    precision = settings.get("precision") or by_size(model)
    own = {"draws": DRAWS, "null_models": NULL_MODELS} if precision == FULL else {}
    shared = {**own, **settings, "precision": precision}
    last = check(model).n_layers - 1
    layers = sorted(
        {int(layer) for layer in np.linspace(0, last, PATCHED_LAYERS[precision]).round()}
    )
    battery: dict[str, dict[str, Any]] = {
        "sink_profile": {},
        "bos_replacement": {"conditions": ("mean", "zero", "random_token")},
        "sink_head_ablation": {"conditions": ABLATIONS[precision]},
        "position0_patching": {"conditions": ("other_token:residual",), "layers": layers},
    }
    return {name: {**shared, **own} for name, own in battery.items()}


def configure(settings: dict[str, Any]) -> None:
    """Refuse settings that are not shared by all experiments, or do not fit.

    Raises:
        UsageError: There is one.
    """
    for name in settings:
        if name not in SHARED:
            raise UsageError(f"diagnose takes {', '.join(SHARED)}; {name} belongs to sinklens.run")
    registry.configure(registry.get("sink_profile"), settings)


def _findings(
    model: HookedModel,
    prompts: Prompts,
    results: dict[str, ExperimentResult],
    refused: dict[str, str],
) -> list[str]:
    """The page: model and prompts, the sinks, the effects of interventions, and notes."""
    capabilities = check(model)
    bos = "with" if prompts.bos else "without"
    lines = [
        f"{origin(model).name}: {capabilities.n_layers} layers of {capabilities.n_heads} heads, "
        f"{prompts.size} {bos} BOS from {prompts.source}.",
        "",
        "Sinks",
        *(f"  {line}" for line in results["sink_profile"].summary),
    ]
    for title, name, what in (
        ("BOS replacement", "bos_replacement", "Replacing BOS by"),
        ("Sink heads", "sink_head_ablation", "Ablating by"),
        ("Position 0 by layer", "position0_patching", "Patching position 0 with"),
    ):
        lines += ["", title]
        if name in refused:
            lines.append(f"  Not run: {refused[name]}")
            continue
        lines += [f"  {line}" for line in _causal(results[name], what)]
    lines += ["", "Notes"]
    seen = dict.fromkeys(note for result in results.values() for note in result.notes()[1:])
    lines += [f"  {note}" for note in seen]
    lines.append(
        "  Intervals are 95 % confidence intervals over prompts, and over draws where there are "
        "several. Differences from a control are paired by prompt and tested by sign flips, those "
        "of sink mass against models with random weights; significant means q <= 0.05."
    )
    return lines


def _causal(result: ExperimentResult, what: str) -> list[str]:
    """The effects on loss and sink mass beside their controls."""
    metrics = {row.metric for row in result.effects}
    shown = ("loss" if "loss" in metrics else "kl", "sink_mass")
    first = result.summary[:1] if result.experiment == "sink_head_ablation" else []
    return [*first, *effect_lists(result, what, shown)]
