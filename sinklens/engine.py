"""Run interventions over prompts and measure; the only place that loops over forwards.

One batch of prompts at a time: a clean forward, then one forward an intervention, so that only one
batch of clean logits is held. An intervention that did not happen is an error: every hook has to
fire, and over the whole run at least one has to change the tensor it was given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from .capabilities import SITES, check
from .errors import SinklensError, UsageError
from .hooks.intervention import Intervention
from .metrics import LogitMetric, Metric, ProbeMetric, counted_positions, resolve_metrics
from .models import origin, require_eval_mode
from .probes import Probe
from .protocol import HookedModel
from .text import Prompts

DEFAULT_MEMORY = 2**30
_COPIES_OF_LOGITS = 5  # clean and edited logits, their log-probabilities, and room for the sum


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    Attributes:
        metrics: The metrics, in the order of the middle axis.
        values: In the edited run.
        baselines: In the clean run, at the positions that count for the intervention.
        clean: In the clean run, at positions >= 1.
        probes: What each of `probes` computed on the clean run.
        fired: How often the hooks of each intervention fired.
        forwards: Forwards of a batch that were run.
    """

    metrics: list[Metric]
    values: Float[Tensor, "intervention metric prompt"]
    baselines: Float[Tensor, "intervention metric prompt"]
    clean: Float[Tensor, "metric prompt"]
    probes: list[Any]
    fired: list[int]
    forwards: int


def evaluate(
    model: HookedModel,
    prompts: Prompts,
    interventions: Sequence[Intervention],
    metrics: Sequence[str | Metric | Callable[..., Tensor]],
    *,
    probes: Sequence[Probe] = (),
    batch_size: int | None = None,
    progress: bool | None = None,
    memory: int | None = None,
    positions: Sequence[int] | None = None,
) -> Evaluation:
    """Measure every intervention on every prompt.

    Args:
        model: In eval mode; it comes back as it was.
        prompts: The prompts.
        interventions: What to do, one forward each and batch.
        metrics: Names, `Metric`s or functions; may be empty if there are no interventions.
        probes: Read on the clean run only.
        batch_size: Prompts in a forward; by default as many as `memory` allows.
        progress: Whether to show a bar; None shows one in a terminal or a notebook.
        memory: Bytes for logits and what is computed from them (default 1 GiB).
        positions: Count only predictions at these positions.

    Raises:
        SinklensError: A hook did not fire or changed nothing, a hook name is unknown, the model is
            in train mode, or its output is not finite.
    """
    require_eval_mode(model)
    _require_fitting(model, prompts, positions)
    resolved = resolve_metrics(metrics) if metrics or interventions else []
    size = batch_size or _batch_size(model, prompts, memory or DEFAULT_MEMORY)
    batches = torch.arange(len(prompts)).split(size)
    watches = [_Watch(model, intervention) for intervention in interventions]
    measure = _Measure(model, prompts, resolved, positions)
    for probe in probes:
        probe.reset()
    forwards = len(batches) * (1 + len(interventions))
    values: list[Tensor] = []
    baselines: list[Tensor] = []
    clean: list[Tensor] = []
    with torch.no_grad(), _bar(forwards, progress) as advance:
        for index in batches:
            reading = [hook for probe in probes for hook in probe.fwd_hooks]
            clean_logits = measure.run(index, reading, "the clean run")
            at = {
                position: measure.read(index, clean_logits, clean_logits, position)
                for position in {0, *(watch.intervention.position for watch in watches)}
            }
            clean.append(at[0])
            advance()
            rows = []
            for watch in watches:
                logits = measure.run(index, watch.hooks(index), watch.intervention.name)
                rows.append(measure.read(index, logits, clean_logits, watch.intervention.position))
                advance()
            if rows:
                values.append(torch.stack(rows))
                baselines.append(
                    torch.stack([at[watch.intervention.position] for watch in watches])
                )
    for watch in watches:
        watch.verify()
    empty = torch.zeros(0, len(resolved), len(prompts))
    return Evaluation(
        metrics=resolved,
        values=torch.cat(values, -1) if values else empty,
        baselines=torch.cat(baselines, -1) if baselines else empty,
        clean=torch.cat(clean, -1),
        probes=[probe.compute() for probe in probes],
        fired=[sum(watch.fired) for watch in watches],
        forwards=forwards,
    )


def read_under(
    model: HookedModel,
    prompts: Prompts,
    intervention: Intervention | None,
    probe: Probe,
    *,
    last_layer: int,
    batch_size: int | None = None,
) -> Any:
    """What a probe computes while an intervention is in place, without going on to the logits.

    Args:
        model: In eval mode; it comes back as it was.
        prompts: The prompts.
        intervention: What is in place; None is a clean run.
        probe: Reads blocks up to `last_layer`.
        last_layer: The last block that has to run.
        batch_size: Prompts in a forward; by default all.
    """
    probe.reset()
    with torch.no_grad():
        for index in torch.arange(len(prompts)).split(batch_size or len(prompts)):
            hooks = [] if intervention is None else intervention.for_prompts(index).fwd_hooks
            model.run_with_hooks(
                prompts.tokens[index].to(model.cfg.device),
                fwd_hooks=[*hooks, *probe.fwd_hooks],
                stop_at_layer=last_layer + 1,
            )
    return probe.compute()


class _Measure:
    """Runs the model on a batch and reads every metric off the run."""

    def __init__(
        self,
        model: HookedModel,
        prompts: Prompts,
        metrics: list[Metric],
        positions: Sequence[int] | None,
    ) -> None:
        self._model = model
        self._prompts = prompts
        self._metrics = metrics
        self._sample = positions
        # Metrics that read the same probe share one.
        factories = {m.probe for m in metrics if isinstance(m, ProbeMetric)}
        self._probes = {factory: factory(model) for factory in factories}

    def run(self, index: Int[Tensor, " batch"], hooks: Any, what: str) -> Tensor:
        """Logits of a batch; probe hooks come after the edits, so that they see their effect."""
        reading = [hook for probe in self._probes.values() for hook in probe.fwd_hooks]
        for probe in self._probes.values():
            probe.reset()
        tokens = self._prompts.tokens[index].to(self._model.cfg.device)
        try:
            logits: Tensor = self._model.run_with_hooks(tokens, fwd_hooks=[*hooks, *reading])
        except IndexError as error:
            context = self._model.cfg.n_ctx
            if self._prompts.length <= context:
                raise
            raise SinklensError(
                f"prompts of {self._prompts.length} tokens are longer than the context of "
                f"{origin(self._model).name}, {context}; use shorter ones (--length)"
            ) from error
        # The maximum carries NaN on, at one number a position where the logits are thousands.
        if not bool(torch.isfinite(logits.amax(-1)).all()):
            raise SinklensError(
                f"{origin(self._model).name} gives NaN or infinite logits in {what}; "
                "its weights or its dtype cannot carry this"
            )
        return logits

    def read(
        self, index: Int[Tensor, " batch"], logits: Tensor, clean_logits: Tensor, position: int
    ) -> Float[Tensor, "metric batch"]:
        """Every metric of the run that has just ended, `position` being edited."""
        if not self._metrics:
            return torch.zeros(0, len(index))
        counted = counted_positions(self._prompts.length, position, self._sample).to(logits.device)
        computed = {factory: probe.compute() for factory, probe in self._probes.items()}
        answers = self._prompts.answers
        rows = []
        for metric in self._metrics:
            if isinstance(metric, LogitMetric):
                row = metric.function(
                    logits,
                    self._prompts.tokens[index].to(logits.device),
                    clean_logits=clean_logits,
                    positions=counted,
                    answers=None if answers is None else answers[index],
                )
                if row.shape != (len(index),):
                    raise SinklensError(
                        f"the metric {metric.name} returned shape {list(row.shape)}; it has to "
                        f"return one number a prompt, [{len(index)}]"
                    )
            else:
                row = metric.reduce(computed[metric.probe])
            if not bool(torch.isfinite(row).all()):
                raise SinklensError(
                    f"the metric {metric.name} is NaN or infinite on these prompts; it has to be a "
                    "number"
                )
            rows.append(row.float().cpu())
        return torch.stack(rows)


class _Watch:
    """Counts the firings of an intervention's hooks and looks whether they change anything."""

    def __init__(self, model: HookedModel, intervention: Intervention) -> None:
        self.intervention = intervention
        self.names = [name for name, _ in intervention.fwd_hooks]
        known = model.hook_dict
        for name in self.names:
            if name not in known:
                raise SinklensError(
                    f"{intervention.name} needs the hook {name}, which {model.cfg.architecture} "
                    "does not have; sinklens.check(model) says what can be edited"
                )
        if intervention.site in SITES:
            check(model).require(intervention.site, intervention.name)
        self.fired = [0] * len(self.names)
        self.changed = False

    def hooks(self, index: Int[Tensor, " batch"]) -> list[tuple[str, Any]]:
        """The hooks for a batch, each wrapped to be watched."""
        bound = self.intervention.for_prompts(index).fwd_hooks
        return [
            (name, partial(self._watched, function=function, number=number))
            for number, (name, function) in enumerate(bound)
        ]

    def _watched(self, activation: Tensor, hook: Any, *, function: Any, number: int) -> Any:
        edited = function(activation, hook=hook)
        self.fired[number] += 1
        if not self.changed and edited is not None:
            self.changed = not torch.equal(edited, activation)
        return edited

    def verify(self) -> None:
        """Fail if the intervention did not happen."""
        name = self.intervention.name
        if self.intervention.position:
            at = self.intervention.position
            name += f" at position {at} (a control; draws=0 leaves controls out)"
        for hook, count in zip(self.names, self.fired, strict=True):
            if not count:
                raise SinklensError(
                    f"{name} did not happen: its hook {hook} never fired on this model; "
                    "sinklens.check(model) says what can be edited"
                )
        if not self.changed and not self.intervention.identity:
            raise SinklensError(
                f"{name} did not happen: its hooks ({', '.join(self.names[:3])}) fired and changed "
                "nothing. A hook function has to return a new tensor that differs; an edit that is "
                "meant to change nothing is marked identity=True"
            )


def _require_fitting(model: HookedModel, prompts: Prompts, positions: Sequence[int] | None) -> None:
    """Refuse tokens that the model does not know and positions that prompts do not have."""
    largest, size = int(prompts.tokens.max()), int(model.cfg.d_vocab)
    if largest >= size or int(prompts.tokens.min()) < 0:
        raise UsageError(f"token {largest} is outside the vocabulary of {size}")
    wrong = [p for p in positions or () if not 0 <= p < prompts.length]
    if wrong:
        raise UsageError(f"there is no position {wrong[0]} in prompts of {prompts.length} tokens")


def _batch_size(model: HookedModel, prompts: Prompts, memory: int) -> int:
    """As many prompts as a memory budget allows for logits and what is computed from them."""
    each = prompts.length * int(model.cfg.d_vocab) * 4 * _COPIES_OF_LOGITS
    return max(1, min(len(prompts), memory // each))


def show_progress(progress: bool | None) -> bool:
    """Whether to show progress: as asked, else in a terminal or a notebook."""
    if progress is None:
        return sys.stderr.isatty() or "ipykernel" in sys.modules
    return progress


def announce(what: str, forwards: int, prompts: Prompts, progress: bool | None) -> None:
    """Say how many forwards something will take, where progress is shown."""
    if show_progress(progress):
        print(
            f"{what}: {forwards} forwards of {len(prompts)} x {prompts.length} tokens",
            file=sys.stderr,
        )


@contextmanager
def _bar(forwards: int, progress: bool | None) -> Iterator[Callable[[], object]]:
    """A bar that appears after two seconds."""
    with tqdm(
        total=forwards,
        delay=2,
        mininterval=0.5,
        disable=not show_progress(progress),
        unit="forward",
        leave=False,
    ) as bar:
        yield bar.update
