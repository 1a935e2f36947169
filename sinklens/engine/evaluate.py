"""The loop over prompts and interventions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import SinklensError
from ..core.protocol import HookedModel
from ..hooks.forms import as_interventions
from ..hooks.intervention import Intervention
from ..metrics import Metric, resolve_metrics
from ..models import origin, require_eval_mode
from ..models.prompts import Prompts, as_prompts
from ..probes import Probe
from ..probes.base import Sliceable
from .attention import in_slices, without_patterns
from .fitting import require_fitting
from .forward import Attention, Outcome, forward, repeat_output
from .hook_calls import CannotShareError, failures_of
from .layers import ByLayer, over_layers, split_by_layer
from .metric_reader import MetricReader
from .progress import forwards_bar
from .resume import Call, current_call
from .shortcuts import NO_SHORTCUTS, is_before_unembedding, is_free_of, shortcuts
from .sizes import Sizes, choose_sizes, require_room
from .user_hooks import has_own_hooks
from .verify import Watch, shared_hooks


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    Attributes:
        metrics: The metrics, in the order of the middle axis.
        values: Metrics of the intervened run; those that are read by layer over the layers that the
            intervention can reach, NaN where it reaches none.
        baselines: Metrics of the clean run, at the positions and layers that count for the
            intervention.
        clean: Metrics of the clean run, at positions >= 1 and over all layers.
        by_layer: The metrics, each by layer.
        probes: What each of `probes` computed on the clean run.
        fired: How often the hooks of each intervention fired.
        forwards: Forward passes, one per batch and intervention, however they were run.
        shortcuts: The shortcuts in use: `prefix`, `unembedding`, `patterns` (of whole layers).
    """

    metrics: list[Metric]
    values: Float[Tensor, "intervention metric prompt"]
    baselines: Float[Tensor, "intervention metric prompt"]
    clean: Float[Tensor, "metric prompt"]
    by_layer: list[ByLayer]
    probes: list[Any]
    fired: list[int]
    forwards: int
    shortcuts: dict[str, bool] = field(default_factory=dict)


def evaluate(
    model: HookedModel,
    prompts: Prompts,
    interventions: Any,
    metrics: Any,
    *,
    probes: Sequence[Probe] = (),
    batch_size: int | None = None,
    progress: bool | None = None,
    memory: int | None = None,
    positions: Sequence[int] | None = None,
) -> Evaluation:
    """Measure every intervention on every prompt.

    Args:
        model: In eval mode; it is left unchanged.
        prompts: The prompts, or what `models.prompts.as_prompts` makes some of. Those of one length
            run together, as they are; values stand in the order given.
        interventions: The interventions, in any of the forms of `hooks.forms`: `Intervention`s,
            lists of pairs of hook point and function, a dictionary of them by name. Those that
            start at the same block share forward passes; those that differ in the predictions
            that count only (`read_after`) are one.
        metrics: Names, `Metric`s or functions; may be empty if there are no interventions.
        probes: Read on the clean run only.
        batch_size: Prompts in a forward pass; by default as `memory` allows, fewer on a CPU.
        progress: Whether to show a bar; None shows one in a terminal or a notebook.
        memory: Bytes that a forward pass may hold; by default 1 GiB, at most a quarter of all.
        positions: Count only predictions at these positions; logits are computed only there.

    Raises:
        SinklensError: A hook did not fire or changed nothing, a hook name is unknown, the model is
            in train mode, or its output is not finite.
        UsageError: There is no such position, or a size is below 1.
    """
    require_eval_mode(model)
    interventions = as_interventions(model, interventions)
    if not isinstance(prompts, Prompts):
        prompts = as_prompts(model, prompts)
    # Runs that only read probes have no predictions to count.
    require_fitting(model, prompts, positions if metrics else None)
    resolved = resolve_metrics(metrics) if metrics or interventions else []
    watches, readings = _watches(model, interventions)
    starts = {watch.first_layer for watch in watches} - {0}
    call = current_call()
    sizes = choose_sizes(
        model,
        len(prompts),
        prompts.longest,
        batch_size=batch_size,
        memory=memory,
        starts=len(starts),
    )
    measure = MetricReader(model, resolved, positions, rows=sizes.rows, memory=sizes.memory // 2)
    for probe in probes:
        probe.reset()
    # Probes gather what they read in the order in which it runs.
    order = None if probes else prompts.by_length()
    batches = prompts.batches(sizes.prompts, order)
    forwards = len(batches) * (1 + len(watches))
    sweep = _Sweep(model, prompts, watches, measure, sizes, probes)
    values, baselines, clean = [], [], []
    with torch.no_grad(), forwards_bar(forwards, progress) as advance:
        for batch, index in enumerate(batches):
            sweep.run_clean(index)
            clean.append(measure.clean(0))
            advance(1)
            rows: list[Tensor] = [torch.empty(0)] * len(watches)
            for group in sweep.groups():
                edits = {number: watches[number] for number in group}
                results = _finished(call, batch, edits, index)
                if results is None:
                    results = sweep.run_group(list(edits.values()))
                    _keep(call, batch, edits, index, results)
                counts = [len(watch.places) for watch in edits.values()]
                for number, result in zip(group, results.split(counts), strict=True):
                    rows[number] = result
                advance(len(group))
            if rows:
                at = {place: measure.clean(place) for watch in watches for place in watch.places}
                values.append(torch.stack([rows[run][place] for run, place in readings]))
                uncounted = [one.last_uncounted for one in interventions]
                baselines.append(torch.stack([at[place] for place in uncounted]))
    for watch in watches:
        watch.verify()
    given = torch.cat(batches).argsort()
    read = torch.cat(clean, -1)[..., given]
    none = read.new_zeros(0, *read.shape)
    by_layer = split_by_layer(
        resolved,
        measure.widths,
        interventions,
        torch.cat(values, -1)[..., given] if values else none,
        torch.cat(baselines, -1)[..., given] if baselines else none,
        int(model.cfg.n_layers),
    )
    over_reached = torch.zeros(2, len(interventions), len(resolved), len(prompts))
    for axis, one in enumerate(by_layer):
        over_reached[:, :, axis] = one.over(range(len(interventions)), one.first)
    over_all = torch.zeros(len(resolved), len(prompts))
    for axis, part in enumerate(read.split(measure.widths)):
        over_all[axis] = over_layers(resolved[axis], part)
    return Evaluation(
        metrics=resolved,
        values=over_reached[0],
        baselines=over_reached[1],
        clean=over_all,
        by_layer=by_layer,
        probes=[probe.compute() for probe in probes],
        fired=[sum(watches[run].fired) for run, _ in readings],
        forwards=forwards,
        shortcuts=sweep.used(),
    )


def _watches(
    model: HookedModel, interventions: Sequence[Intervention]
) -> tuple[list[Watch], list[tuple[int, int]]]:
    """One watch for all interventions that share hooks, and by intervention its watch and place."""
    shared: dict[tuple[int, int], list[Intervention]] = {}
    for one in interventions:
        shared.setdefault(one.run, []).append(one)
    watches = [
        Watch(model, same[0], dict.fromkeys(one.last_uncounted for one in same))
        for same in shared.values()
    ]
    number = {run: i for i, run in enumerate(shared)}
    return watches, [
        (number[one.run], watches[number[one.run]].places.index(one.last_uncounted))
        for one in interventions
    ]


class _Sweep:
    """Runs one batch of prompts after another, clean and edited."""

    def __init__(
        self,
        model: HookedModel,
        prompts: Prompts,
        watches: Sequence[Watch],
        measure: MetricReader,
        sizes: Sizes,
        probes: Sequence[Probe],
    ) -> None:
        self._model, self._prompts, self._measure = model, prompts, measure
        self._watches = watches
        own = has_own_hooks(model)  # which may count on the batch, and must not act twice
        self._allowed = NO_SHORTCUTS if own else shortcuts(model)
        self._from_blocks = self._allowed.prefix and measure.resumable
        self._starts = [w.first_layer if self._from_blocks else 0 for w in watches]
        shared = measure.resumable and not own
        self._together = sizes.interventions if shared else 1
        self._reading = [hook for probe in probes for hook in probe.fwd_hooks]
        self._attention = self._how_to_attend(probes, sizes)
        require_room(model, prompts.longest, self._matrices())
        self._rows = self._allowed.unembedding and is_before_unembedding(model, self._names())
        self._index, self._batch = torch.zeros(0, dtype=torch.long), prompts
        self._kept: dict[int, Any] = {}

    def _names(self) -> list[Any]:
        """Every hook point that something is attached to."""
        hooks = [*self._reading, *self._measure.hooks(clean=True)]
        return [*(name for name, _ in hooks), *(n for watch in self._watches for n in watch.names)]

    def _how_to_attend(self, probes: Sequence[Probe], sizes: Sizes) -> Attention | None:
        """Without patterns, in slices where probes only read large ones, else as usual."""
        sites, sliced = self._allowed.sites, self._allowed.sliced_sites
        if sites and is_free_of(self._model, sites, self._names()):
            return without_patterns
        queries = sizes.queries
        if self._watches or queries >= self._prompts.longest or not self._allowed.slices:
            return None
        sliceable = [probe for probe in probes if isinstance(probe, Sliceable)]
        hooks = [h for p in probes if not isinstance(p, Sliceable) for h in p.fwd_hooks]
        names = [name for name, _ in [*hooks, *self._measure.hooks(clean=True)]]
        if not is_free_of(self._model, sliced, names):
            return None
        self._reading = hooks
        readers = [probe.read_queries for probe in sliceable]
        return partial(in_slices, readers=readers, queries=queries)

    def _matrices(self) -> int:
        """How many matrices of query by key a layer makes: none, the mask, or one for each head."""
        if self._attention is without_patterns:
            return 0
        return 1 if self._attention else int(self._model.cfg.n_heads)

    def used(self) -> dict[str, bool]:
        """What was spared."""
        return {
            "prefix": self._from_blocks,
            "unembedding": self._rows,
            "patterns": self._attention is not None,
        }

    def run_clean(self, index: Int[Tensor, " batch"]) -> None:
        """The clean run of a batch."""
        self._index, self._batch = index, self._prompts.take(index)
        self._kept = {}  # before those of this batch are there
        keep = {start - 1 for start in self._starts if start}
        hooks = [*self._reading, *self._measure.hooks(clean=True)]
        outcome = self._forward(self._batch.tokens, hooks, keep=keep)
        self._kept = outcome.kept
        if not bool(torch.isfinite(outcome.last).all()):
            raise SinklensError(
                f"{origin(self._model).name} gives NaN or infinite activations in the clean run; "
                "check its weights and its dtype"
            )
        self._measure.start(self._batch, outcome)

    def groups(self) -> Iterator[list[int]]:
        """Numbers of interventions that share a forward."""
        for start in sorted(set(self._starts)):
            same = [number for number, other in enumerate(self._starts) if other == start]
            for first in range(0, len(same), self._together):
                yield same[first : first + self._together]

    def run_group(self, watches: Sequence[Watch]) -> Float[Tensor, "reading column batch"]:
        """Interventions of the same first block, together if their hooks allow it."""
        before = [list(watch.fired) for watch in watches]
        try:
            return self._run_together(watches)
        except CannotShareError:
            for watch, fired in zip(watches, before, strict=True):
                watch.fired = fired
            return torch.cat([self._run_together([watch]) for watch in watches])

    def _run_together(self, watches: Sequence[Watch]) -> Float[Tensor, "reading column batch"]:
        start = watches[0].first_layer if self._from_blocks else 0
        times = len(watches)
        with failures_of([watch.intervention.name for watch in watches]):
            outcome = self._forward(
                self._batch.tokens.repeat(times, 1),
                [*shared_hooks(watches, self._index), *self._measure.hooks(clean=False)],
                start=start,
                below=repeat_output(self._kept[start - 1], times) if start else None,
            )
        return self._measure.edited(outcome, watches)

    def _forward(self, tokens: Int[Tensor, "batch pos"], hooks: Any, **how: Any) -> Outcome:
        try:
            tokens = tokens.to(self._model.cfg.device)
            how |= {"attention": self._attention, "rows": self._rows}
            how |= {"tuple_length": self._allowed.tuple_length}
            return forward(self._model, tokens, hooks, **how)
        except IndexError as error:
            context = self._model.cfg.n_ctx
            if self._batch.length <= context:
                raise
            raise SinklensError(
                f"prompts of {self._batch.length} tokens are longer than the context of "
                f"{origin(self._model).name}, {context}; use shorter ones (--length)"
            ) from error


def _keep(
    call: Call, batch: int, group: Mapping[int, Watch], index: Tensor, results: Tensor
) -> None:
    """Keep a finished group on disk, if there is a folder for it."""
    tensors = {"values": results}
    for number, watch in group.items():
        tensors[f"watch{number}"] = torch.tensor([int(watch.changed), *watch.fired])
    call.store(batch, _group_name(group, index), tensors)


def _group_name(group: Mapping[int, Watch], index: Tensor) -> str:
    """A name that identifies the interventions of a group and their prompts."""
    said = [watch.identity for watch in group.values()]
    digest = hashlib.sha256(repr((said, index.tolist())).encode()).hexdigest()[:12]
    return f"{min(group)}-{max(group)}-{digest}"


def _finished(
    call: Call, batch: int, group: Mapping[int, Watch], index: Tensor
) -> Float[Tensor, "reading column batch"] | None:
    """A group that an earlier run finished, its watches as they were after it."""
    tensors = call.load(batch, _group_name(group, index))
    if tensors is None or not {"values", *(f"watch{number}" for number in group)} <= set(tensors):
        return None
    for number, watch in group.items():
        changed, *fired = tensors[f"watch{number}"].tolist()
        watch.changed, watch.fired = bool(changed), fired
    return tensors["values"]
