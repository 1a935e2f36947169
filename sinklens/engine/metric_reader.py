"""Metrics of a forward pass, computed on a slice of predictions at a time.

A metric that is a mean over predictions is computed on rows of logits, so that `[batch, pos,
d_vocab]` never exists: at most `rows` rows at once, and only those of predictions that count.
User-defined metrics get all logits of one intervention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import SinklensError
from ..core.protocol import HookedModel
from ..functional.counted import counted_positions
from ..functional.precision import wide
from ..metrics import METRICS, LogitMetric, Metric, ProbeMetric
from ..models import origin
from ..models.prompts import Prompts
from ..probes import Probe
from ..probes.base import ReadsKey0, Resumable
from .attention import Key0Reader
from .forward import Outcome
from .hook_calls import METRIC_FORM, failures_of_metric
from .layers import is_by_layer
from .verify import Watch

CACHED_BYTES = 2**22  # of logits; on a CPU, KL took three times as long on rows of 64 MiB


class MetricReader:
    """Reads every metric of one batch of prompts, in the clean run and in edited ones.

    Attributes:
        beside_sdpa: Whether probes that need no more of a pattern than the weights on key 0 get
            these from `key0_readers` instead of by hook.
        widths: By metric, how many columns a reading has: one, or one for each layer; known once
            something was read.
    """

    def __init__(
        self,
        model: HookedModel,
        metrics: Sequence[Metric],
        sample: Sequence[int] | None,
        *,
        rows: int,
        memory: int,
    ) -> None:
        """Prepare the probes.

        Args:
            model: The model.
            metrics: What to read.
            sample: The positions whose predictions count, if not all.
            rows: Rows of logits to hold at once.
            memory: Bytes that the clean log-probabilities may take; beyond it they are computed
                again for every slice.
        """
        self._model, self._metrics = model, metrics
        self._sample, self._rows, self._memory = sample, rows, memory
        factories = dict.fromkeys(m.probe for m in metrics if isinstance(m, ProbeMetric))
        # Metrics that read the same probe share one. Edited runs have one of their own, which takes
        # what lies below the edit from that of the clean run.
        self._clean_probes = {factory: factory(model) for factory in factories}
        self._probes = {factory: factory(model) for factory in factories}
        self._by_row = {
            number: metric
            for number, metric in enumerate(metrics)
            if isinstance(metric, LogitMetric) and metric.by_row is not None
        }
        # These are not finite where a logit of their row is not; where only they read rows, logits
        # need no look of their own.
        telling = (METRICS["loss"], METRICS["kl"])
        self._tell = all(metric in telling for metric in self._by_row.values())
        self.beside_sdpa = False
        self.widths: list[int] = []
        self._tokens = torch.zeros(0, 0, dtype=torch.long)
        self._answers: Tensor | None = None
        self._clean: Outcome | None = None
        self._clean_rows: dict[int, Tensor] = {}
        self._clean_log_probs: Tensor | None = None
        self._clean_logits: Tensor | None = None  # of all positions, for metrics of a user's own

    @property
    def probes(self) -> list[Probe]:
        """What the metrics read of a clean run."""
        return list(self._clean_probes.values())

    @property
    def layers(self) -> list[Sequence[int]]:
        """By metric, the numbers of the layers that it has columns for, once it was read."""
        return [
            getattr(self._clean_probes[metric.probe], "layers", range(width))
            if is_by_layer(metric)
            else range(width)
            for metric, width in zip(self._metrics, self.widths, strict=True)
        ]

    @property
    def resumable(self) -> bool:
        """Whether the probes can take over what a clean run saw, and so share a forward."""
        return all(isinstance(probe, Resumable) for probe in self._probes.values())

    def hooks(self, *, clean: bool) -> list[tuple[str, Any]]:
        """The hooks of the probes, after a reset."""
        probes = self._of_run(clean)
        for probe in probes:
            probe.reset()
        by_hook = [p for p in probes if not (self.beside_sdpa and isinstance(p, ReadsKey0))]
        return [hook for probe in by_hook for hook in probe.fwd_hooks]

    def key0_readers(self, clean: bool) -> list[Key0Reader]:
        """What takes the weights on key 0 of each layer, while attention is left to `sdpa`."""
        return [probe.read_key0 for probe in self._of_run(clean) if isinstance(probe, ReadsKey0)]

    def _of_run(self, clean: bool) -> list[Probe]:
        return list((self._clean_probes if clean else self._probes).values())

    def start(self, batch: Prompts, clean: Outcome) -> None:
        """Take in the clean run of a batch, of prompts of one length."""
        self._tokens, self._answers = batch.tokens, batch.answers
        self._clean, self._clean_log_probs = clean, None
        self._clean_logits = None
        if any(isinstance(m, LogitMetric) and m.by_row is None for m in self._metrics):
            self._clean_logits = self._all_logits(clean)
        needed = any(metric.needs_clean for metric in self._by_row.values())
        shape = *self._tokens.shape, int(self._model.cfg.d_vocab)
        kind = torch.promote_types(clean.last.dtype, torch.float32)
        if needed and math.prod(shape) * kind.itemsize <= self._memory:
            # Filled where predictions count for any edit, while the clean run is read.
            self._clean_log_probs = torch.empty(shape, dtype=kind, device=clean.last.device)
        self._clean_rows = self._read_rows(clean, 0, "the clean run")

    def clean(self, position: int) -> Float[Tensor, "column batch"]:
        """Every metric of the clean run, where it counts for an intervention at a position."""
        assert self._clean is not None
        values = {factory: probe.compute() for factory, probe in self._clean_probes.items()}
        return self._all(position, self._clean_rows, values, self._clean_logits)

    def edited(
        self, outcome: Outcome, watches: Sequence[Watch]
    ) -> Float[Tensor, "reading column batch"]:
        """Every metric of interventions that shared a forward, at all places of each."""
        size, times = len(self._tokens), len(watches)
        probed = {}
        for factory, probe in self._probes.items():
            if isinstance(probe, Resumable):
                probe.fill(self._clean_probes[factory], times)
            probed[factory] = probe.compute()
        results = []
        for number, watch in enumerate(watches):
            part = slice(number * size, (number + 1) * size)
            mine = outcome.part(part)
            rows = self._read_rows(mine, min(watch.places), watch.intervention.name)
            values = probed
            if times > 1:  # resumable probes compute tuples of tensors, prompts first
                values = {key: type(v)(*(field[part] for field in v)) for key, v in probed.items()}
            whole = None if self._clean_logits is None else self._all_logits(mine)
            results += [self._all(place, rows, values, whole) for place in watch.places]
        return torch.stack(results)

    def _all(
        self, position: int, rows: dict[int, Tensor], probed: dict[Any, Any], whole: Tensor | None
    ) -> Float[Tensor, "column batch"]:
        """One number a prompt and metric, or a prompt, metric and layer."""
        if not self._metrics:
            return torch.zeros(0, len(self._tokens))
        counted = counted_positions(self._tokens.shape[1], position, self._sample)
        results = []
        for number, metric in enumerate(self._metrics):
            if isinstance(metric, ProbeMetric):
                row = metric.reduce(probed[metric.probe])
            elif metric.by_row is not None:
                row = rows[number][:, metric.counts(counted, self._tokens.shape[1])].mean(1)
            else:
                row = self._whole(metric, whole, counted)
            by_layer = is_by_layer(metric)
            if not isinstance(row, Tensor):
                what = "nothing" if row is None else f"a {type(row).__name__}"
                raise SinklensError(f"the metric {metric.name} returned {what}; {METRIC_FORM}")
            if row.ndim != 1 + by_layer or len(row) != len(self._tokens):
                raise SinklensError(
                    f"the metric {metric.name} returned shape {list(row.shape)}; it has to "
                    f"return one number per prompt, [{len(self._tokens)}"
                    f"{', layer' if by_layer else ''}]"
                )
            if not bool(torch.isfinite(row).all()):
                raise SinklensError(
                    f"the metric {metric.name} is NaN or infinite on these prompts; it has to be a "
                    "number"
                )
            results.append(wide(row.reshape(len(row), -1).T).cpu())
        self.widths = [len(columns) for columns in results]
        return torch.cat(results)

    def _whole(
        self, metric: LogitMetric, logits: Tensor | None, counted: Int[Tensor, " counted"]
    ) -> Tensor:
        """A metric that wants all logits."""
        assert logits is not None
        answers = self._answers
        with failures_of_metric(metric.name):
            row: Tensor = metric.function(
                logits,
                self._tokens.to(logits.device),
                clean_logits=self._clean_logits,
                positions=counted.to(logits.device),
                answers=None if answers is None else answers.to(logits.device),
            )
        return row

    def _all_logits(self, outcome: Outcome) -> Float[Tensor, "batch pos d_vocab"]:
        places = torch.cartesian_prod(
            torch.arange(len(self._tokens)), torch.arange(self._tokens.shape[1])
        )
        logits = outcome.logits(places[:, 0], places[:, 1])
        return logits.view(len(self._tokens), self._tokens.shape[1], -1)

    def _read_rows(self, outcome: Outcome, position: int, what: str) -> dict[int, Tensor]:
        """By metric, `[batch, pos]` with the value of each prediction that counts for it."""
        if not self._by_row:
            return {}
        length, size = self._tokens.shape[1], len(self._tokens)
        counted = counted_positions(length, position, self._sample)
        wanted = {n: metric.counts(counted, length) for n, metric in self._by_row.items()}
        kind = torch.promote_types(outcome.last.dtype, torch.float32)
        values = {n: torch.full((size, length), torch.nan, dtype=kind) for n in wanted}
        positions = torch.cat(list(wanted.values())).unique()
        takes = torch.zeros(max(wanted) + 1, length, dtype=torch.bool)
        for number, own in wanted.items():
            takes[number, own] = True
        places = torch.cartesian_prod(torch.arange(size), positions)
        for some in places.split(self._rows):
            made = outcome.logits(*some.T)
            if outcome is self._clean or not self._tell:
                self._require_finite(made, what)
            # Large slices make the product fast, small ones keep what is read of it in caches.
            few = max(1, CACHED_BYTES // (4 * made.shape[-1]))
            for logits, (prompts, at) in zip(
                made.split(few), (part.T for part in some.split(few)), strict=True
            ):
                if outcome is self._clean and self._clean_log_probs is not None:
                    self._clean_log_probs[prompts, at] = wide(logits).log_softmax(-1)
                for number, metric in self._by_row.items():
                    mine = takes[number, at]
                    if bool(mine.any()):
                        result = self._by_row_of(metric, logits, prompts, at, mine)
                        if not bool(torch.isfinite(result).all()):
                            self._require_finite(made, what)
                        values[number][prompts[mine], at[mine]] = wide(result).cpu()
        return values

    def _by_row_of(
        self, metric: LogitMetric, logits: Tensor, prompts: Tensor, at: Tensor, mine: Tensor
    ) -> Float[Tensor, " row"]:
        """One metric on those rows of a slice that count for it."""
        assert metric.by_row is not None and self._clean is not None
        if not bool(mine.all()):  # a copy of the logits, where it is needed
            logits, prompts, at = logits[mine], prompts[mine], at[mine]
        tokens, answers = self._tokens, self._answers
        following = tokens[prompts, (at + 1).clamp_max(tokens.shape[1] - 1)]
        clean = None
        if metric.needs_clean and self._clean_log_probs is not None:
            clean = self._clean_log_probs[prompts, at]
        elif metric.needs_clean:
            clean = wide(self._clean.logits(prompts, at)).log_softmax(-1)
        result: Tensor = metric.by_row(
            logits,
            next_tokens=following.to(logits.device),
            clean_log_probs=clean,
            answers=None if answers is None else answers[prompts].to(logits.device),
        )
        return result

    def _require_finite(self, logits: Tensor, what: str) -> None:
        # The maximum carries NaN on, at one number a row where the logits are thousands.
        if not bool(torch.isfinite(logits.amax(-1)).all()):
            raise SinklensError(
                f"{origin(self._model).name} gives NaN or infinite logits in {what}; "
                "its weights or its dtype cannot carry this"
            )
