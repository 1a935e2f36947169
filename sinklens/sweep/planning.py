"""What a sweep would take, without running it.

Checkpoints of one model have one shape: the first of them is loaded, the forward passes of each of
its experiments are counted on it and one is timed. How many there are can depend on the weights,
such as on which heads have sinks. The operations of a forward pass are those of its matrix
products, 2 for each parameter and token (Kaplan et al. 2020, 2001.08361), without attention itself;
of a model whose weights are not here they are said by its config.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..core.errors import SinklensError, in_one_line
from ..engine import Plan, duration
from ..models import count_parameters, parameters_by_config
from ..runner.planning import plan
from .tasks import Task
from .worker import Shared, release

OF_RANDOM_MODELS = 2
"""Prompts of a forward pass of a model with random weights."""


@dataclass(frozen=True)
class Part:
    """What the tasks of one model, text and experiment take.

    Attributes:
        model: The model.
        tasks: How many there are.
        plan: What one takes; None where it cannot be run.
        parameters: Of the model.
        error: Why it cannot be run.
    """

    model: str
    tasks: int
    plan: Plan | None = None
    parameters: int = 0
    error: str = ""

    @property
    def forwards(self) -> int:
        """Forward passes."""
        return 0 if self.plan is None else self.tasks * self.plan.forwards

    @property
    def seconds(self) -> float:
        """An estimate of the time on this machine."""
        return 0.0 if self.plan is None else self.tasks * (self.plan.seconds or 0.0)

    @property
    def operations(self) -> float:
        """An estimate of the floating-point operations."""
        if self.plan is None:
            return 0.0
        # At most: a forward pass holds all prompts, or as many as fit.
        rows = self.plan.forwards * self.plan.prompts
        rows += self.plan.random_forwards * OF_RANDOM_MODELS
        return 2.0 * self.parameters * self.tasks * rows * self.plan.length

    def __str__(self) -> str:
        """One line."""
        if self.plan is None:
            return f"{self.model}: {self.tasks} tasks cannot be run: {self.error}"
        return f"{self.tasks} x {self.plan}"


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep would take.

    Attributes:
        tasks: How many tasks it has.
        models: How many models it loads.
        parts: By model, text and experiment.
    """

    tasks: int
    models: int
    parts: list[Part] = field(default_factory=list)

    def __str__(self) -> str:
        """A line for each part, and the sum."""
        forwards = sum(part.forwards for part in self.parts)
        operations = sum(part.operations for part in self.parts)
        seconds = sum(part.seconds for part in self.parts)
        return "\n".join(
            [
                *map(str, self.parts),
                f"together: {self.tasks} tasks on {self.models} models; {forwards} forwards, at "
                f"most {operations:.2g} operations; about {duration(seconds)} on this machine, one "
                "after the other",
            ]
        )


def plan_sweep(tasks: Sequence[Task]) -> SweepPlan:
    """What tasks would take; nothing is written.

    Args:
        tasks: The tasks.
    """
    models = len({task.checkpoint for task in tasks})
    try:
        return SweepPlan(len(tasks), models, list(_parts(tasks)))
    finally:
        release()


def _parts(tasks: Sequence[Task]) -> Iterator[Part]:
    alike: dict[str, list[Task]] = {}
    for task in tasks:
        name = task.checkpoint.name
        known = f"{name} {task.text} {task.experiment} {task.recorded}"
        alike.setdefault(known, []).append(task)
    shared: dict[str, Shared] = {}
    for same in alike.values():
        first, name = same[0], same[0].checkpoint.name
        own = shared.setdefault(name, Shared())
        try:
            model, prompts = own.inputs(first)
        except Exception as error:
            yield Part(name, len(same), error=f"{_said(error)}{_pass_by_config(first)}")
            continue
        try:
            found = plan(first.experiment, model, prompts, seed=first.seed, **first.settings)
        except Exception as error:
            yield Part(name, len(same), error=_said(error))
            continue
        yield Part(name, len(same), found, count_parameters(model))


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, SinklensError) else in_one_line(error)


def _pass_by_config(task: Task) -> str:
    """What a forward pass takes on a model that cannot be loaded, where its config is there."""
    parameters = parameters_by_config(task.checkpoint.source, task.checkpoint.revision)
    if parameters is None:
        return ""
    operations = 2.0 * parameters * task.text.n * task.text.length
    return (
        f"; by its config it has {parameters:,} parameters, and a forward pass of all prompts "
        f"takes {operations:.2g} operations"
    )
