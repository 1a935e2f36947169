"""The loop over prompts and interventions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.protocol import HookedModel
from ..hooks.forms import as_interventions
from ..hooks.intervention import Intervention
from ..metrics import Metric, resolve_metrics
from ..models import alone, require_eval_mode
from ..models.prompts import Prompts, as_prompts
from ..probes import Probe
from .fitting import require_fitting
from .layers import ByLayer, over_layers, split_by_layer
from .metric_reader import MetricReader
from .progress import forwards_bar
from .readable import require_readable
from .resume import Call, current_call
from .sizes import choose_sizes
from .sweep import Sweep
from .verify import Watch


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


@alone
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
    require_readable(model, [*probes, *measure.probes])
    for probe in probes:
        probe.reset()
    # Probes gather what they read in the order in which it runs.
    order = None if probes else prompts.by_length()
    batches = prompts.batches(sizes.prompts, order)
    forwards = len(batches) * (1 + len(watches))
    sweep = Sweep(model, prompts, watches, measure, sizes, probes)
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
        measure.layers,
        int(model.cfg.n_layers),
    )
    over_reached = read.new_zeros(2, len(interventions), len(resolved), len(prompts))
    for axis, one in enumerate(by_layer):
        over_reached[:, :, axis] = one.over(range(len(interventions)), one.first)
    over_all = read.new_zeros(len(resolved), len(prompts))
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
