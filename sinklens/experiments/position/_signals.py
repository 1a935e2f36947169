"""Attention over positions as signals, read layer by layer beside what has no positions.

The signal of a query is its row, entries 0 to the query (all entries in both directions); of at
most `queries` queries, spread evenly over the second half of the prompt, measures are averaged.
Each stands beside

    uniform        the same weight on every visible key
    row_permuted   the weights of the row in random order among its visible keys
    random_logits  softmax of Gaussian logits of the same standard deviation as the row's own, which
                   are log A up to a constant (weights below 1e-10 count as that)

of which every draw is another for each prompt, layer, head and query, as the prompt's tokens say.
Keys outside of a sliding window are entries of 0 in all of them; every row keeps its sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...core.seeds import content_seed
from ...functional.graphs import permute_rows, uniform_attention
from ...metrics import ProbeMetric
from ...probes.base import LayerProbe, ResumableProbe
from ...probes.patterns import PatternReader
from ...runner.run import Run
from ._spectra import (
    FLOOR,
    correlation,
    hann,
    levels,
    positional_entropy,
    power,
    spectral_measures,
    wavelet_entropies,
    without_mean,
)

ATTENTION_KL = "attention_kl"
UNIFORM, PERMUTED, RANDOM = "uniform", "row_permuted", "random_logits"
Rows = Float[Tensor, "batch head query key"]
Key = tuple[str, str]
"""Metric and condition."""


@dataclass(frozen=True)
class Extraction:
    """Which signals are made of a pattern.

    Attributes:
        length: Positions in each prompt.
        queries: The queries whose rows are read.
        causal: Whether a row ends with its query.
        windows: Of how many of the last keys the window entropy is read.
        near: Up to which distance a key is near.
        wavelets: Whether wavelet entropies are read.
    """

    length: int
    queries: tuple[int, ...]
    causal: bool
    windows: tuple[int, ...]
    near: int
    wavelets: bool

    @property
    def lengths(self) -> Int[Tensor, " query"]:
        """The number of entries of each row."""
        rows = [query + 1 if self.causal else self.length for query in self.queries]
        return torch.tensor(rows)

    @property
    def level(self) -> int:
        """The depth of wavelets, as the shortest row has it."""
        return levels(int(self.lengths.min()))

    @property
    def offsets(self) -> int:
        """How many keys back every query has a key."""
        return min(self.queries) + 1


def extraction(length: int, queries: int, causal: bool, **more: Any) -> Extraction:
    """At most so many queries, from the middle of the prompt on, with at least 6 keys each."""
    first = max(5, length // 2 - 1)
    spread = np.linspace(first, length - 1, min(queries, length - first)).round().astype(int)
    return Extraction(length, tuple(dict.fromkeys(spread.tolist())), causal, **more)


def by_offset(
    rows: Rows, queries: Sequence[int], offsets: int
) -> Float[Tensor, "batch head one offset"]:
    """The attention to the key so many positions back, mean over queries."""
    at = torch.tensor(queries)[:, None] - torch.arange(offsets)
    return rows.gather(-1, at.expand(*rows.shape[:2], *at.shape)).mean(-2, keepdim=True)


def measures_of(rows: Rows, form: Extraction) -> dict[Key, Float[Tensor, "batch head *more"]]:
    """Everything that is made of the rows of a layer, mean over queries."""
    lengths, every = form.lengths, torch.tensor([form.length])
    offsets = torch.tensor([form.offsets])
    mean = rows.mean(-2, keepdim=True)
    back = by_offset(rows, form.queries, form.offsets)
    found: dict[Key, Tensor] = {}

    def add(signal: str, whole: Tensor, spectrum: Tensor, *names: str) -> Tensor:
        measures = spectral_measures(spectrum, whole.sum(-1))
        for name in names or measures:
            found[name, signal] = measures[name].nanmean(-1)
        return measures["spectral_entropy"]

    spectrum = power(rows, lengths)
    windowed = rows * hann(lengths, form.length)
    entropy, positional = add("row", windowed, spectrum), positional_entropy(rows)
    bare = power(without_mean(rows, lengths), lengths)
    add("row:mean_removed", rows, bare)
    add("row:no_window", rows, power(rows, lengths, window=False), "spectral_entropy")
    for signal, signals, size in (("mean_row", mean, every), ("offset", back, offsets)):
        windowed = signals * hann(size, signals.shape[-1])
        add(signal, windowed, power(signals, size), "low_share", "spectral_entropy")
        found["positional_entropy", signal] = positional_entropy(signals).mean(-1)
    found["positional_entropy", "row"] = positional.mean(-1)
    found["correlation", "queries"] = correlation(positional, entropy)
    total = spectrum.sum(-1, keepdim=True)
    shares = spectrum / total.masked_fill(total <= 0, torch.nan)
    found["spectrum", ""] = shares.nanmean((1, 2))[:, None]
    if form.wavelets:
        normalised, plain = wavelet_entropies(rows, lengths, form.level)
        for scale in range(form.level + 1):
            found["wavelet_entropy", f"scale{scale}"] = normalised[..., scale]
            found["wavelet_entropy_raw", f"scale{scale}"] = plain[..., scale]
    return found | mean_row(rows, form) | window_entropies(rows, form) | near_and_far(rows, form)


def mean_row(rows: Rows, form: Extraction) -> dict[Key, Float[Tensor, "batch head key"]]:
    """The mean of the rows alone."""
    return {("signal", ""): rows.mean(-2)}


def window_entropies(rows: Rows, form: Extraction) -> dict[Key, Float[Tensor, "batch head"]]:
    """Entropy of the last keys of each row among themselves, over that of as many equal ones."""
    found = {}
    for window in form.windows:
        chosen = [at for at, query in enumerate(form.queries) if query + 1 >= window]
        if not chosen:
            continue
        parts = [
            rows[..., at, form.queries[at] + 1 - window : form.queries[at] + 1] for at in chosen
        ]
        last = torch.stack(parts, -2)
        share = last / last.sum(-1, keepdim=True).clamp_min(FLOOR)
        entropy = torch.special.entr(share).sum(-1).mean(-1)
        found["window_entropy", f"last_{window}"] = entropy / np.log(window)
    return found


def near_and_far(rows: Rows, form: Extraction) -> dict[Key, Float[Tensor, "batch head"]]:
    """Attention to near keys and to others, with and without key 0."""
    queries, keys = torch.tensor(form.queries)[:, None], torch.arange(form.length)
    near = (queries - keys).abs() <= form.near
    found = {}
    for name, counted in (("every_key", keys >= 0), ("without_key0", keys > 0)):
        found["near", name] = (rows * (near & counted)).sum(-1).mean(-1)
        found["far", name] = (rows * (~near & counted)).sum(-1).mean(-1)
    return found


def random_rows(rows: Rows, noise: Rows, visible: Bool[Tensor, "query key"]) -> Rows:
    """Softmax of random logits with the standard deviation of a row's own, of the same sum."""
    logits = rows.clamp_min(FLOOR).log().masked_fill(~visible, 0)
    count = visible.sum(-1, keepdim=True)
    centred = (logits - logits.sum(-1, keepdim=True) / count).masked_fill(~visible, 0)
    deviation = ((centred**2).sum(-1, keepdim=True) / count).sqrt()
    drawn = (noise * deviation).masked_fill(~visible, -torch.inf)
    return drawn.softmax(-1) * rows.sum(-1, keepdim=True)


class Spectra(LayerProbe[dict[Key, Tensor]]):
    """Measures of signals of every layer, beside their nulls.

    `compute` gives them by metric and condition, `[prompt, layer, source, head, ...]`; the sources
    are attention, uniform, row-permuted draws and draws of random logits.
    """

    def __init__(
        self,
        run: Run[Any],
        tokens: Int[Tensor, "prompt pos"],
        form: Extraction,
        measures: Callable[[Rows, Extraction], dict[Key, Tensor]] = measures_of,
    ) -> None:
        """Read the pattern of every layer.

        Args:
            run: The run.
            tokens: The prompts, in the order in which they will run.
            form: Which signals to make.
            measures: What is made of the rows of a layer, heads behind prompts.
        """
        super().__init__("pattern", run.capabilities.layers_of("pattern"))
        self._reader = PatternReader(run.model, run.capabilities, tokens)
        self._seeds = [content_seed(row, run.config.seed) for row in tokens.cpu()]
        self._form, self._draws, self._measures = form, run.config.draws, measures

    def reduce(self, pattern: Rows, layer: int, /) -> dict[Key, Tensor]:
        """Of one layer."""
        queries = list(self._form.queries)
        rows = self._reader.checked(pattern, layer)[:, :, queries].cpu().double()
        sources = self._sources(rows, self._reader.visible(layer)[queries], layer)
        made = [self._measures(one, self._form) for one in sources]
        return {key: torch.stack([one[key] for one in made], 1) for key in made[0]}

    def _sources(
        self, rows: Rows, visible: Bool[Tensor, "query key"], layer: int
    ) -> Iterator[Rows]:
        yield rows
        yield (uniform_attention(visible) * rows.sum(-1, keepdim=True)).to(rows)
        first = self.count[layer]
        for kind in (PERMUTED, RANDOM):
            for draw in range(self._draws):
                seeds = self._seeds[first : first + len(rows)]
                drawn = [
                    np.random.default_rng([seed, layer, draw, *kind.encode()]) for seed in seeds
                ]
                size = rows.shape[1:]
                if kind == PERMUTED:
                    order = np.stack([one.random(size, np.float32) for one in drawn])
                    yield permute_rows(rows, torch.from_numpy(order), visible)
                else:
                    noise = np.stack([one.standard_normal(size, np.float32) for one in drawn])
                    yield random_rows(rows, torch.from_numpy(noise).double(), visible)


class Shift(NamedTuple):
    """What `AttentionShift` computes."""

    kl: Float[Tensor, "prompt layer"]


class AttentionShift(ResumableProbe[Any]):
    """KL(clean || intervened) of attention rows, mean over heads and some queries."""

    def __init__(self, model: Any, form: Extraction, layers: Sequence[int]) -> None:
        """Read the pattern of every layer."""
        super().__init__("pattern", layers)
        self._form = form
        self._clean: Tensor | None = None

    def reduce(self, pattern: Rows, layer: int, /) -> Any:
        """The rows of one layer."""
        return pattern[:, :, list(self._form.queries)]

    def fill(self, clean: Any, times: int) -> None:
        """Take over a clean run of the prompts, and the layers that were not run again."""
        super().fill(clean, times)
        self._clean = torch.cat([clean.stacked()] * times)

    def compute(self) -> Any:
        """Of all prompts; 0 in a clean run itself."""
        edited = self.stacked().double()
        clean = edited if self._clean is None else self._clean.double()
        return Shift(row_divergence(clean, edited).mean((-2, -1)).float())


def row_divergence(
    clean: Float[Tensor, "*batch key"], edited: Float[Tensor, "*batch key"]
) -> Float[Tensor, "*batch"]:
    """KL of rows as shares of their sums, in nats; weights count as at least 1e-30."""
    sides = [side / side.sum(-1, keepdim=True) for side in (clean, edited)]
    before, after = (side.clamp_min(1e-30).log() for side in sides)
    divergence: Tensor = (sides[0] * (before - after)).sum(-1)
    return divergence.clamp_min(0)


def attention_kl(form: Extraction, layers: Sequence[int]) -> ProbeMetric:
    """The metric of `AttentionShift`."""
    return ProbeMetric(
        ATTENTION_KL,
        partial(AttentionShift, form=form, layers=tuple(layers)),
        lambda shift: shift.kl,
        "nats",
        signed=False,
        lowest=0.0,
        reads="pattern",
    )
