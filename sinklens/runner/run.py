"""A run of one experiment on one model: what its function reads, compares and adds.

    @experiment(paper="Gu et al. 2025 (2410.10781)", question="...", needs=(CAUSAL,), ...)
    def my_experiment(run: Run[MyConfig]) -> None:
        (scores,) = run.read(SinkScores(run.model))
        run.add("sink_mass", "position0", Sample(scores.mass.mean((1, 2)), null=0.06))
        run.compare(lambda run: [my_comparison(run.model)])
        run.keep("sink_mass", scores.mass.mean(0), "layer head")

`Run` holds model, prompts, settings and capabilities; it counts and announces forward passes,
records which hooks fired, and makes the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, Generic

import torch

from ..core.errors import SinklensError, UsageError, unknown_name
from ..core.protocol import HookedModel
from ..engine import own_hook_points
from ..engine.evaluate import Evaluation, evaluate
from ..hooks.intervention import one_per_run
from ..metrics import Metric, needs_models, resolve_metrics
from ..models.capabilities import Capabilities, check
from ..models.prompts import Prompts, notes_on
from ..models.remarks import remarks_on
from ..probes import Probe
from ..results.estimates import Place, Reference, Sample, Share, rows_of, share_row
from ..results.notes import counted_notes, spread_notes
from ..results.result import ExperimentResult, identity
from ..stats.clusters import by_document
from ..stats.effects import EffectSize, Row, with_q_values
from ..stats.models import OfModels
from ..stats.skewness import uneven, uneven_notes
from .compare import (
    Compared,
    Comparison,
    ContrastKey,
    in_order,
    measure_of,
    without_control,
)
from .counted import Config, Counted
from .declaration import Experiment
from .described import described, own_hooks_note, per_prompt
from .needs import impossible_metrics, with_experts
from .null_models import few_prompts, judged_note, random_contrasts
from .precision import QUICK, quick_note
from .ranking import rank


class Run(Counted[Config], Generic[Config]):
    """One run.

    Attributes:
        model: The model.
        prompts: The prompts.
        prompt_numbers: Which of the run's prompts they are; some, on models with random weights.
        random_weights: Whether this is the same run of a model with random weights.
        config: The settings.
        capabilities: What can be edited and measured on the model.
        conditions: The conditions to run.
        metrics: The metrics to measure.
        rows: The rows so far.
    """

    def __init__(
        self, experiment: Experiment, model: HookedModel, prompts: Prompts, config: Config
    ) -> None:
        """Check needs, settings and metrics before any work.

        Raises:
            SinklensError: The model cannot do it.
            UsageError: A setting or the prompts do not fit.
        """
        super().__init__(experiment.name, experiment.measures, model, prompts, config)
        experiment.require_known(config)
        self._experiment = experiment
        self.prompt_numbers, self.random_weights = torch.arange(len(prompts)), False
        self.capabilities: Capabilities = check(model)
        self._attention = self.capabilities.attention
        self.note(*notes_on(model, prompts), *remarks_on(self.capabilities))
        if config.precision == QUICK:
            self.note(quick_note(config.draws, config.null_models))
        for need in experiment.needs:
            need.require(experiment.name, self.capabilities, prompts)
        self.conditions = list(config.conditions or experiment.default_conditions(config))
        self.metrics = self._choose_metrics()
        self.rows: list[Row] = []
        self._shortcuts: dict[str, bool] = {}
        self._own_hooks = own_hook_points(model)
        if self._own_hooks:
            self.note(own_hooks_note(self._own_hooks))

    def _choose_metrics(self) -> list[Any]:
        """The metrics that the model has; one that was asked for by name has to be one of them."""
        resolved = self._experiment.resolve_metrics(self.config)
        if not self.config.metrics:
            resolved = with_experts(resolved, self.capabilities)
        self._left_out = impossible_metrics(resolved, self.capabilities)
        for name, reason in self._left_out.items():
            if self.config.metrics:
                raise SinklensError(f"{name} cannot be measured: {reason}; use metrics=kl")
        return [metric for metric in resolved if metric.name not in self._left_out]

    def refuse(self, reasons: Mapping[str, str], *, none_is_fine: bool = False) -> None:
        """Leave conditions out, with the reason why each cannot act here.

        Args:
            reasons: By condition.
            none_is_fine: Whether the run goes on without any condition, for what it reads besides.

        Raises:
            SinklensError: One of them was asked for by name, or none is left.
        """
        refused = [condition for condition in self.conditions if condition in reasons]
        if refused and self.config.conditions:
            raise SinklensError(reasons[refused[0]])
        self.conditions = [name for name in self.conditions if name not in refused]
        self._left_out |= {name: reasons[name] for name in refused}
        if not (self.conditions or none_is_fine):
            said = "; ".join(dict.fromkeys(reasons[name] for name in refused))
            raise SinklensError(f"nothing is left to do: {said}")

    def read(
        self,
        *probes: Probe,
        model: HookedModel | None = None,
        prompts: Prompts | None = None,
    ) -> list[Any]:
        """What probes compute on a clean run.

        Args:
            probes: What to read.
            model: Another model than the run's.
            prompts: Other prompts than the run's.
        """
        return self.evaluate([], probes=probes, model=model, prompts=prompts).probes

    def evaluate(
        self,
        interventions: Sequence[Any],
        *,
        metrics: Sequence[Any] = (),
        probes: Sequence[Probe] = (),
        model: HookedModel | None = None,
        prompts: Prompts | None = None,
    ) -> Evaluation:
        """What the engine measures, counted; `compare` makes rows of it."""
        found = evaluate(
            model or self.model,
            prompts or self.prompts,
            interventions,
            metrics,
            probes=probes,
            **self.config.for_engine(),
        )
        self.count(found.forwards)
        self._shortcuts = self._shortcuts or found.shortcuts
        return found

    def compare(
        self,
        make: Callable[[Run[Config]], Sequence[Comparison]],
        metrics: Sequence[Any] | None = None,
        *,
        later: int = 0,
        twin_reads: int = 0,
    ) -> Compared:
        """Run all treatments and controls together and add their rows.

        Args:
            make: Makes the conditions with their controls for a run: for this one, and for the same
                run of models with random weights, which judge some contrasts (`null_models`).
            metrics: What to measure; by default the run's metrics.
            later: How many forward passes the experiment makes after it, to announce them.
            twin_reads: How many `make` takes for each model with random weights, and not for this.

        Raises:
            UsageError: `screen` was asked for and there is nothing to rank.
        """
        before, comparisons = self._forwards, make(self)
        reads = self._forwards - before
        metrics, ranking = list(self.metrics if metrics is None else metrics), None
        if self.config.screen:
            ranking = rank(self.model, self.prompts, self.config, comparisons, metrics)
            comparisons = ranking.chosen
            self.count(ranking.forwards)
            self._arrays["screening_estimates"] = ranking.array()
        if self.config.draws:
            self._notes += without_control(comparisons)
        order = in_order(comparisons)
        models = self.config.null_models if self._judged(resolve_metrics(metrics)) else 0
        self.announce_comparison(order, models, reads, later=later, twin_reads=twin_reads)
        found = self.evaluate(order, metrics=metrics)
        fired = {one.run: times for one, times in zip(order, found.fired, strict=True)}
        for intervention in one_per_run(order):
            self._fired[intervention.name] += fired[intervention.run]
        compared = Compared(found, comparisons)
        # What an experiment declares of a metric that it also reads itself has its own null.
        self._measures = {m.name: measure_of(m) for m in found.metrics} | self._measures
        nulls = self._random_contrasts(make, {one.place for one in comparisons}, found.metrics)
        self.rows += compared.rows(self.config.seed, nulls, self.config.interval)
        self._left_out |= compared.unreached()
        self._arrays |= compared.arrays()
        if (draws := compared.control_draws()) is not None:
            self._arrays["control_draws"] = draws
        if ranking is not None:
            self._findings["screening"] = ranking.settings([row.effect for row in self.rows])
            self._notes.append(ranking.note(self._findings["screening"]))
        return compared

    def _random_contrasts(
        self,
        make: Callable[[Run[Config]], Sequence[Comparison]],
        chosen: Set[tuple[Any, ...]],
        metrics: Sequence[Metric],
    ) -> dict[ContrastKey, OfModels]:
        """The same contrasts of models with random weights, of the metrics that need them."""
        judged, count = self._judged(metrics), self.config.null_models
        if not (judged and count):
            return {}
        config = replace(self.config, null_models=0, screen=False, progress=False)
        numbers = few_prompts(self.prompts, self.config.seed)

        def contrasts(model: HookedModel) -> dict[ContrastKey, float]:
            twin = Run(self._experiment, model, self.prompts.take(numbers), config)
            twin.conditions, twin.prompt_numbers = self.conditions, numbers
            twin.random_weights = True
            comparisons = [one for one in make(twin) if one.place in chosen]
            found = twin.evaluate(in_order(comparisons), metrics=judged)
            self._random_forwards += twin._forwards
            return Compared(found, comparisons).contrasts()

        nulls, reason = random_contrasts(self.model, count, self.config.seed, contrasts)
        if reason:
            names = ", ".join(metric.name for metric in judged)
            self.note(f"Contrasts of {names} are not judged by random weights: {reason}.")
        return nulls

    def _judged(self, metrics: Sequence[Metric]) -> list[Metric]:
        """The metrics whose contrasts are judged by models with random weights."""
        return [metric for metric in metrics if needs_models(metric) and self.config.draws]

    def add(
        self,
        metric: str,
        condition: str,
        sample: Sample | Share,
        *references: Reference,
        layer: int | None = None,
        head: int | None = None,
        queries: str | None = None,
        layers: str | None = None,
        prompts: Prompts | None = None,
    ) -> EffectSize:
        """Add the row of a value, and for each reference its row and the contrast.

        Args:
            metric: What was measured; declared in the experiment's `measures`.
            condition: Of what.
            sample: The values beside their null.
            references: Controls and empirical nulls.
            layer: The layer, if the row is about one.
            head: The head, if the row is about one.
            queries: The range of queries, if the row is about one.
            layers: The layers that are averaged, where they are not all.
            prompts: The prompts that were measured, where they are not the run's.

        Returns:
            The row of the value.

        Raises:
            UsageError: The metric is not declared.
        """
        own = f"{metric}/{condition}"
        if not {own, metric} & self._measures.keys():
            raise unknown_name("metric in the measures of this experiment", metric, self._measures)
        measure = self._measures[own if own in self._measures else metric]
        if isinstance(sample, Share):
            made = [share_row(metric, measure, condition, sample)]
        else:
            made = [
                *rows_of(
                    metric,
                    measure,
                    condition,
                    sample,
                    *references,
                    prompts=len(self.prompts),
                    seed=self.config.seed,
                    place=Place(layer, head, queries, layers),
                    method=self.config.interval,
                )
            ]
            made[0] = by_document(made[0], (prompts or self.prompts).documents)
        self.rows += made
        return made[0].effect

    def result(self) -> ExperimentResult:
        """The result, with its sentences.

        Raises:
            UsageError: The experiment's function added nothing.
        """
        if not (self.rows or self._arrays or self._findings):
            raise UsageError(
                f"{self._experiment.name} found nothing: its function has to add rows with "
                "run.add(...) or run.compare(...), or keep arrays with run.keep(...)"
            )
        rows = with_q_values(self.rows)
        effects = [row.effect for row in rows]
        marked = uneven(rows)
        notes = [*self._notes, *counted_notes(effects), *judged_note(rows, len(self.prompts))]
        notes += [*uneven_notes(rows, marked, self.config.interval), *spread_notes(effects)]
        if not self.config.draws and self._experiment.draws_controls:
            notes.append("No controls and no contrasts with them: draws is 0.")
        settings = {
            **self.config.recorded(),
            "left_out": self._left_out,
            "notes": notes,
            "footnotes": self._footnotes,
            "uneven": marked.rows,
        }
        metrics = {row.effect.metric for row in rows}
        result = ExperimentResult(
            experiment=self._experiment.name,
            effects=effects,
            summary=[],
            arrays=self._arrays,
            per_prompt=per_prompt(rows, len(self.prompts)),
            settings=settings,
            findings=self._findings,
            draws=self._draws,
            measures={n: m for n, m in self._measures.items() if n.partition("/")[0] in metrics},
            provenance={
                **identity(self.model, self.prompts),
                "seed": self.config.seed,
                "fired": dict(self._fired),
                "shortcuts": self._shortcuts,
                "own_hooks": self._own_hooks,
                "forwards": self._forwards,
                "forwards_with_random_weights": self._random_forwards,
            },
        )
        return described(result, self._experiment)
