"""Interventions of one's own: from hooks to effect, control, interval, verdict and figure.

    result = sinklens.compare_interventions(
        model,
        prompts,
        treatment=[("blocks.2.hook_resid_pre", without_direction)],
        control=[("blocks.2.hook_resid_pre", without_random_direction)],
    )

The rows are those of every other experiment (`runner.compare`): the treatment beside the clean run,
the control beside it, and their difference, paired by prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.errors import SinklensError, UsageError, in_one_line
from ..core.protocol import HookedModel
from ..hooks.forms import FORMS, named_interventions
from ..hooks.intervention import Intervention
from ..models.prompts import Prompts
from ..results.effect_sentences import every_row
from ..results.estimates import Measure
from ..results.result import ExperimentResult
from ..results.wording import Says
from ..runner.compare import Compared, Comparison, Control
from ..runner.config import ExperimentConfig, setting
from ..runner.declaration import Experiment
from ..runner.registry import run
from ..runner.run import Run

NAME = "compare_interventions"
TREATMENT, GIVEN = "treatment", "given"
NO_CONTROL = "none was given"


@dataclass(frozen=True)
class OwnConfig(ExperimentConfig):
    """Settings; the draws are those of the interventions."""

    draws: int = setting(1, least=1, most=1)


def compare_interventions(
    model: HookedModel,
    prompts: Prompts | None = None,
    *,
    treatment: Any,
    control: Any = None,
    metrics: Any = (),
    positions: Sequence[int] | None = None,
    null_models: int = ExperimentConfig.null_models,
    seed: int = 0,
    batch_size: int | None = None,
    memory: int | None = None,
    progress: bool | None = None,
) -> ExperimentResult:
    """The effect of interventions of one's own, beside that of their controls.

    Predictions count after the edited position of an `Intervention`, else from position 1 on.

    Args:
        model: As in `sinklens.run`; it is left unchanged.
        prompts: As in `sinklens.run`.
        treatment: Hooks in any form of `hooks.forms`. A dictionary gives several conditions by
            name; several interventions of one condition are its random draws. A function of the
            model returns hooks that are made from it, also from models with random weights.
        control: The same for the control. A dictionary by condition gives each its own; one with
            other names gives every condition several controls.
        metrics: Names, functions or `Metric`s; by default `loss` and `kl`.
        positions: Count only predictions at these positions.
        null_models: On how many models with random weights the same hooks run, to judge contrasts
            of metrics without sign, and of those about position 0.
        seed: Seed of the resamples of the tests.
        batch_size: Prompts in a forward pass.
        memory: Bytes that a forward pass may hold.
        progress: Whether to show progress; None shows it in a terminal or a notebook.

    Raises:
        SinklensError: An intervention did not happen, or cannot be made on this model.
        UsageError: An argument is none of these forms.
    """
    return run(
        own_experiment(
            NAME,
            "What do these interventions do, and more than their controls?",
            lambda run: compare_given(run, treatment, control),
            metrics=("loss", "kl"),
        ),
        model,
        prompts,
        seed=seed,
        progress=progress,
        metrics=metrics,
        positions=positions,
        null_models=null_models,
        batch_size=batch_size,
        memory=memory,
    )


def own_experiment(
    name: str,
    question: str,
    function: Callable[[Run[OwnConfig]], Any],
    *,
    metrics: Sequence[str],
    measures: Mapping[str, Measure] | None = None,
    says: Says = (every_row,),
) -> Experiment:
    """An experiment that runs hooks of the caller's, without a place in the registry.

    Args:
        name: Its name in results.
        question: What it asks.
        function: Adds the rows to a run.
        metrics: The metrics to measure if none is asked for.
        measures: What kind of numbers its own rows are.
        says: Its sentences.
    """

    def perform(model: HookedModel, prompts: Prompts, config: OwnConfig) -> ExperimentResult:
        run: Run[OwnConfig] = Run(declared, model, prompts, config)
        function(run)
        return run.result()

    declared = Experiment(
        name,
        perform,
        OwnConfig,
        paper="",
        question=question,
        metrics=tuple(metrics),
        measures=dict(measures or {}),
        says=says,
        own_hooks=True,
    )
    return declared


def compare_given(run: Run[Any], treatment: Any, control: Any) -> Compared:
    """Run interventions of the caller's with their controls, and add their rows.

    Args:
        run: The run.
        treatment: As in `compare_interventions`.
        control: The same.
    """
    compared = run.compare(lambda run: _comparisons(run, treatment, control))
    run.facts(hook_points={one.condition: _points(one) for one in compared.comparisons})
    return compared


def _comparisons(run: Run[Any], treatment: Any, control: Any) -> list[Comparison]:
    """Every condition with its controls, for the prompts of a run."""
    if callable(treatment):
        treatment = _made_for(run.model, treatment)
    if callable(control):
        control = _made_for(run.model, control)

    def made(given: Any, default: str) -> dict[str, list[Intervention]]:
        groups = named_interventions(run.model, given, default)
        numbers = run.prompt_numbers
        return {name: [one.among(numbers) for one in group] for name, group in groups.items()}

    treated = made(treatment, TREATMENT)
    if not treated:
        raise UsageError("compare_interventions needs a treatment; this dictionary is empty")
    controls = {} if control is None else made(control, GIVEN)
    by_condition = isinstance(treatment, Mapping) and controls.keys() & treated.keys()
    unknown = controls.keys() - treated.keys()
    if by_condition and unknown:
        raise UsageError(
            f"there is a control for {sorted(unknown)[0]!r}, which is no condition of the "
            f"treatment; there are: {', '.join(treated)}"
        )
    made_by_name = [Control(name, group) for name, group in controls.items()]
    return [
        Comparison(
            condition,
            group,
            tuple(
                replace(one, name=GIVEN) if by_condition else one
                for one in made_by_name
                if not by_condition or one.name == condition
            ),
            no_control=NO_CONTROL,
        )
        for condition, group in treated.items()
    ]


def _made_for(model: HookedModel, make: Callable[[HookedModel], Any]) -> Any:
    """The hooks that a function makes for a model."""
    try:
        return make(model)
    except SinklensError:
        raise
    except Exception as error:
        raise UsageError(
            f"a function in place of hooks takes the model and returns hooks; "
            f"{getattr(make, '__name__', 'this one')} failed: {in_one_line(error)}. {FORMS}"
        ) from error


def _points(comparison: Comparison) -> dict[str, list[str]]:
    """The hook points of a treatment and of its controls, each once."""
    groups = {TREATMENT: comparison.treatment}
    groups |= {made.name: made.interventions for made in comparison.made}
    return {
        name: list(dict.fromkeys(point for one in group for point, _ in one.fwd_hooks))
        for name, group in groups.items()
    }
