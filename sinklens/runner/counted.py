"""How many forward passes a run takes: announced before, counted while they run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch

from ..core.protocol import HookedModel
from ..engine import Plan, announce, choose_sizes, is_awaited, seconds_of_pass
from ..hooks.intervention import Intervention, one_per_run
from ..models import origin
from ..models.prompts import Prompts
from ..results.estimates import Measure
from .collected import Collected
from .config import ExperimentConfig
from .null_models import PROMPTS

Config = TypeVar("Config", bound=ExperimentConfig)
LONG = 20
"""From this many forward passes on, one more is spent on an estimate of the time."""


class Counted(Collected, Generic[Config]):
    """The part of a run that counts."""

    def __init__(
        self,
        name: str,
        measures: Mapping[str, Measure],
        model: HookedModel,
        prompts: Prompts,
        config: Config,
    ) -> None:
        """Start with nothing counted."""
        super().__init__(measures)
        self._name = name
        self.model, self.prompts, self.config = model, prompts, config
        self.metrics: list[Any] = []
        self._forwards, self._random_forwards, self._announced = 0, 0, False
        self._fired: Counter[str] = Counter()
        self._began = time.perf_counter()

    def count(self, forwards: int, fired: Mapping[str, int] | None = None) -> None:
        """Count forwards, and hooks that fired, outside `read` and `compare`."""
        self._forwards += forwards
        self._fired.update(fired or {})

    def batches(self, prompts: Prompts | None = None, starts: int = 0) -> int:
        """In how many batches prompts are run.

        Args:
            prompts: The prompts, if not those of the run.
            starts: At how many blocks above the first interventions start.
        """
        prompts = prompts or self.prompts
        return -(-len(prompts) // self._batch_size(prompts, starts))

    def announce(self, forwards: int, random_forwards: int = 0, work: float | None = None) -> None:
        """Say how many forward passes the run takes, besides those that were counted already.

        Args:
            forwards: Those still to come.
            random_forwards: Those of models with random weights.
            work: The same in forward passes of all layers and one batch.
        """
        every, seconds, prompts = self._forwards + forwards, None, self.prompts
        if is_awaited() and every + random_forwards >= LONG:
            seconds = self._estimate(float(forwards if work is None else work), random_forwards)
        model, shape = origin(self.model).name, (len(prompts), prompts.length)
        announce(Plan(self._name, model, every, *shape, random_forwards, seconds))
        self._announced = True

    def announce_comparison(
        self,
        order: Sequence[Intervention],
        models: int,
        reads: int,
        *,
        later: int = 0,
        twin_reads: int = 0,
    ) -> None:
        """Say what a comparison takes, if nothing was said before.

        Args:
            order: The interventions.
            models: How many models with random weights run them too.
            reads: Forward passes that it took to make the interventions.
            later: Forward passes that follow the comparison.
            twin_reads: Those that each model with random weights takes besides to make them.
        """
        if self._announced:
            return
        runs = one_per_run(order)
        starts = len({one.first_layer for one in runs} - {0})
        layers = int(self.model.cfg.n_layers)
        parts = 1.0 + sum(1 - one.first_layer / layers for one in runs)
        batches, passes = self.batches(starts=starts), 1 + len(runs)
        of_each = self.batches(self.few, starts) * (passes + reads // self.batches())
        self.announce(
            batches * passes + later, models * (of_each + twin_reads), batches * parts + later
        )

    @property
    def few(self) -> Prompts:
        """As many prompts as models with random weights are run on."""
        return self.prompts.take(torch.arange(min(PROMPTS, len(self.prompts))))

    def _estimate(self, work: float, random_forwards: int) -> float | None:
        """Seconds from the start of the run to its end: shapes, times a first batch."""
        passed = time.perf_counter() - self._began
        batch = self.prompts.take(torch.arange(self._batch_size(self.prompts)))
        times = []
        for prompts in (self.few, self.few, batch):  # the first finds out about the model
            seconds = seconds_of_pass(self.model, prompts, self.metrics, **self.config.for_engine())
            if seconds is None:
                return None
            times.append(seconds)
        return passed + work * times[2] + random_forwards * times[1]

    def _batch_size(self, prompts: Prompts, starts: int = 0) -> int:
        return choose_sizes(
            self.model,
            len(prompts),
            prompts.length,
            batch_size=self.config.batch_size,
            memory=self.config.memory,
            starts=starts,
        ).prompts
