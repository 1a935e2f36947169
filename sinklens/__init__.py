"""Which attention sinks does a transformer have, what causes them, and what do they do?

Causal experiments on TransformerLens models: every answer is an effect size with a confidence
interval, a matched control and a null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .core.lazy import on_first_use

if TYPE_CHECKING:
    from . import hooks as hooks
    from . import metrics as metrics
    from . import models as models
    from . import probes as probes
    from . import zoo as zoo
    from .comparisons.own import compare_interventions as compare_interventions
    from .comparisons.pairs import compare_pairs as compare_pairs
    from .comparisons.pairs import patch_heads as patch_heads
    from .comparisons.pairs import patch_position as patch_position
    from .comparisons.tasks import TaskScores as TaskScores
    from .comparisons.tasks import evaluate_tasks as evaluate_tasks
    from .core.errors import SinklensError as SinklensError
    from .diagnosis import diagnose as diagnose
    from .engine.evaluate import evaluate as evaluate
    from .hooks.intervention import Intervention as Intervention
    from .models.capabilities import check as check
    from .models.loading import load as load
    from .models.origins import origin as origin
    from .models.prompts import Pairs as Pairs
    from .models.prompts import Prompts as Prompts
    from .models.prompts import prompts as prompts
    from .models.prompts import random_prompts as random_prompts
    from .models.prompts import repeated_prompts as repeated_prompts
    from .probes import sink_scores as sink_scores
    from .results.comparison import ResultComparison as ResultComparison
    from .results.comparison import compare as compare
    from .results.comparison import concat as concat
    from .results.diagnosis import Diagnosis as Diagnosis
    from .results.result import ExperimentResult as ExperimentResult
    from .runner.config import ExperimentConfig as ExperimentConfig
    from .runner.keeping import keep as keep
    from .runner.planning import plan as plan
    from .runner.registry import experiment as experiment
    from .runner.registry import run as run
    from .stats.effects import EffectSize as EffectSize
    from .sweep.driver import run_sweep as run_sweep
    from .sweep.pooling import pool as pool
    from .sweep.table import load_sweep as load_sweep
    from .views import attention_view as attention_view

__version__ = "0.2.0"

_HOMES = {
    "attention_view": "views",
    "diagnose": "diagnosis",
    "check": "models.capabilities",
    "compare_interventions": "comparisons.own",
    "compare_pairs": "comparisons.pairs",
    "TaskScores": "comparisons.tasks",
    "evaluate_tasks": "comparisons.tasks",
    "patch_heads": "comparisons.pairs",
    "patch_position": "comparisons.pairs",
    "EffectSize": "stats.effects",
    "evaluate": "engine",
    "SinklensError": "core.errors",
    "ExperimentConfig": "runner.config",
    "Intervention": "hooks.intervention",
    "experiment": "runner.registry",
    "keep": "runner.keeping",
    "plan": "runner.planning",
    "run": "runner.registry",
    "load": "models",
    "origin": "models",
    "sink_scores": "probes",
    "Diagnosis": "results.diagnosis",
    "ResultComparison": "results.comparison",
    "compare": "results.comparison",
    "concat": "results.comparison",
    "ExperimentResult": "results.result",
    "Pairs": "models.prompts",
    "Prompts": "models.prompts",
    "prompts": "models.prompts",
    "random_prompts": "models.prompts",
    "repeated_prompts": "models.prompts",
    "load_sweep": "sweep.table",
    "pool": "sweep.pooling",
    "run_sweep": "sweep.driver",
    "hooks": "hooks",
    "metrics": "metrics",
    "models": "models",
    "probes": "probes",
    "zoo": "zoo",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605  (a list of strings, made from the table above)

__getattr__ = on_first_use(__name__, _HOMES)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
