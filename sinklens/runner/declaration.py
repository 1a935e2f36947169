"""What an experiment declares: its question, needs, conditions, measures, sentences and figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from ..core.errors import UsageError, unknown_name
from ..metrics import Metric, resolve_metrics
from ..results.estimates import Measure
from ..results.figures import Effects, Figured
from ..results.result import ExperimentResult
from ..results.wording import Says
from .config import ExperimentConfig
from .needs import Need


@dataclass(frozen=True)
class Experiment:
    """An experiment as it was declared.

    Attributes:
        name: The name of its function.
        function: `(model, prompts, config) -> ExperimentResult`.
        config: The class of its settings.
        paper: What it follows, by author, year and arXiv number.
        question: One line for `sinklens list`.
        needs: What it needs of a model and of prompts.
        conditions: All conditions that there are; `*` stands for any text (`token:*`).
        defaults: The conditions to run if none is asked for.
        metrics: The metrics to measure if none is asked for; empty where it has measures of its
            own and counts no predictions.
        measures: By metric what kind of number it is, or by `metric/condition` where conditions
            have units or nulls of their own.
        says: The sentences of the summary; empty says one of every condition.
        figure: What is drawn, or a function of the result that gives it.
        draws_controls: Whether `draws=0` leaves controls out.
        smallest: The settings of the smallest run that reaches all of it, for tests.
        own_hooks: Whether it runs hooks of the caller's, whose finished work is never resumed.
    """

    name: str
    function: Callable[..., ExperimentResult]
    config: type[ExperimentConfig]
    paper: str
    question: str
    needs: tuple[Need, ...] = ()
    conditions: tuple[str, ...] = ()
    defaults: Callable[[Any], Sequence[str]] | Sequence[str] = ()
    metrics: tuple[str, ...] = ()
    measures: Mapping[str, Measure] = field(default_factory=dict)
    says: Says = ()
    figure: Figured = field(default_factory=Effects)
    draws_controls: bool = True
    smallest: Mapping[str, Any] = field(default_factory=dict)
    own_hooks: bool = False

    def default_conditions(self, config: ExperimentConfig) -> Sequence[str]:
        """The conditions to run if none was asked for."""
        chosen = self.defaults(config) if callable(self.defaults) else self.defaults
        return chosen or [name for name in self.conditions if "*" not in name]

    def resolve_metrics(self, config: ExperimentConfig) -> list[Metric]:
        """The metrics that were asked for, else the defaults."""
        return resolve_metrics(config.metrics or self.metrics) if self.metrics else []

    def require_known(self, config: ExperimentConfig) -> None:
        """Refuse conditions and settings that this experiment does not have.

        Raises:
            UsageError: There is one.
        """
        for condition in config.conditions:
            if not any(fnmatchcase(condition, known) for known in self.conditions):
                names = [name.replace("*", "<text>") for name in self.conditions]
                raise unknown_name(f"condition of {self.name}", condition, names)
        if self.metrics:
            return
        unused = {
            "metrics": bool(config.metrics),
            "screen": config.screen,
            "positions": config.positions is not None,
        }
        for name, given in unused.items():
            if given:
                raise UsageError(
                    f"{self.name} takes no {name}: it has measures of its own and counts no "
                    "predictions"
                )
