"""The forward passes of one evaluation: a clean one for each batch, then the edited ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import SinklensError
from ..core.protocol import HookedModel
from ..models import origin
from ..models.prompts import Prompts
from ..probes import Probe
from ..probes.base import Sliceable
from .attention import in_slices, with_key0_weights, without_patterns
from .forward import Attention, Outcome, forward, repeat_output
from .hook_calls import CannotShareError, failures_of
from .metric_reader import MetricReader
from .shortcuts import NO_SHORTCUTS, is_before_unembedding, is_free_of, shortcuts
from .sizes import Sizes, require_room
from .user_hooks import has_own_hooks
from .verify import Watch, shared_hooks

_Attend = Callable[[bool], Attention | None]
"""How a forward pass attends: takes whether it is the clean one."""


def _as_usual(clean: bool) -> None:
    """Patterns of whole layers, as TransformerLens makes them."""


class Sweep:
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
        self._attend = self._choose_attention(probes, sizes)
        require_room(model, prompts.longest, self._matrices())
        self._rows = self._allowed.unembedding and is_before_unembedding(model, self._names())
        self._index, self._batch = torch.zeros(0, dtype=torch.long), prompts
        self._kept: dict[int, Any] = {}

    def _names(self) -> list[Any]:
        """Every hook point that something is attached to."""
        hooks = [*self._reading, *self._measure.hooks(clean=True)]
        return [*(name for name, _ in hooks), *(n for watch in self._watches for n in watch.names)]

    def _choose_attention(self, probes: Sequence[Probe], sizes: Sizes) -> _Attend:
        """As cheap as the hooks allow: no patterns, weights on key 0, slices, else as usual."""
        sites, sliced = self._allowed.sites, self._allowed.sliced_sites
        if sites and is_free_of(self._model, sites, self._names()):
            return lambda clean: without_patterns
        if self._allowed.key0:
            self._measure.beside_sdpa = True
            if is_free_of(self._model, sites, self._names()):
                readers = self._measure.key0_readers
                return lambda clean: partial(with_key0_weights, readers=readers(clean))
            self._measure.beside_sdpa = False
        queries = sizes.queries
        if self._watches or queries >= self._prompts.longest or not self._allowed.slices:
            return _as_usual
        sliceable = [probe for probe in probes if isinstance(probe, Sliceable)]
        hooks = [h for p in probes if not isinstance(p, Sliceable) for h in p.fwd_hooks]
        names = [name for name, _ in [*hooks, *self._measure.hooks(clean=True)]]
        if not is_free_of(self._model, sliced, names):
            return _as_usual
        self._reading = hooks
        of_probes = [probe.read_queries for probe in sliceable]
        return lambda clean: partial(in_slices, readers=of_probes, queries=queries)

    def _matrices(self) -> int:
        """How many matrices of query by key a layer makes: none, the mask, or one for each head."""
        if self._attend is _as_usual:
            return int(self._model.cfg.n_heads)
        return 0 if self._attend(True) is without_patterns else 1

    def used(self) -> dict[str, bool]:
        """What was spared."""
        return {
            "prefix": self._from_blocks,
            "unembedding": self._rows,
            "patterns": self._attend is not _as_usual,
        }

    def run_clean(self, index: Int[Tensor, " batch"]) -> None:
        """The clean run of a batch."""
        self._index, self._batch = index, self._prompts.take(index)
        self._kept = {}  # before those of this batch are there
        keep = {start - 1 for start in self._starts if start}
        hooks = [*self._reading, *self._measure.hooks(clean=True)]
        outcome = self._forward(self._batch.tokens, hooks, attention=self._attend(True), keep=keep)
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
                attention=self._attend(False),
                start=start,
                below=repeat_output(self._kept[start - 1], times) if start else None,
            )
        return self._measure.edited(outcome, watches)

    def _forward(self, tokens: Int[Tensor, "batch pos"], hooks: Any, **how: Any) -> Outcome:
        try:
            tokens = tokens.to(self._model.cfg.device)
            how |= {"rows": self._rows, "tuple_length": self._allowed.tuple_length}
            return forward(self._model, tokens, hooks, **how)
        except IndexError as error:
            context = self._model.cfg.n_ctx
            if self._batch.length <= context:
                raise
            raise SinklensError(
                f"prompts of {self._batch.length} tokens are longer than the context of "
                f"{origin(self._model).name}, {context}; use shorter ones (--length)"
            ) from error
