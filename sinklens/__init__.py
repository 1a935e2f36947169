"""Which attention sinks does a transformer have, what holds them up, what breaks without them?

Causal experiments on TransformerLens models: every answer is an effect size with an interval, a
matched control and a null.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .battery import diagnose as diagnose
    from .capabilities import check as check
    from .core.errors import SinklensError as SinklensError
    from .effects import EffectSize as EffectSize
    from .engine import evaluate as evaluate
    from .experiments.registry import ExperimentConfig as ExperimentConfig
    from .experiments.registry import experiment as experiment
    from .experiments.registry import run as run
    from .models import load as load
    from .models import origin as origin
    from .probes import sink_scores as sink_scores
    from .results import Diagnosis as Diagnosis
    from .results import ExperimentResult as ExperimentResult
    from .text import Prompts as Prompts
    from .text import prompts as prompts
    from .text import random_prompts as random_prompts
    from .text import repeated_prompts as repeated_prompts

# Imported on first use, so that `import sinklens` costs nothing.
_HOMES = {
    "diagnose": "battery",
    "check": "capabilities",
    "EffectSize": "effects",
    "evaluate": "engine",
    "SinklensError": "core.errors",
    "ExperimentConfig": "experiments.registry",
    "experiment": "experiments.registry",
    "run": "experiments.registry",
    "load": "models",
    "origin": "models",
    "sink_scores": "probes",
    "Diagnosis": "results",
    "ExperimentResult": "results",
    "Prompts": "text",
    "prompts": "text",
    "random_prompts": "text",
    "repeated_prompts": "text",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605  (a list of strings, made from the table above)


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return __all__
