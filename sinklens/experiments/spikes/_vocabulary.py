"""Which tokens of the vocabulary spike as the first token, and which at a later position.

Sun, Canziani, LeCun and Zhu 2026 (2603.05498) find nearly every token of a model's vocabulary to
spike at position 0 (98.4 to 99.9 % of seven pretrained models, their Table 2). A causal model needs
prompts of length 1 for that. The null is that of Gaussian entries. A token spikes where its largest
entry at the peak's stage is at least as large as the criterion asks; the median is that of the
prompts, since a single position's is another. The resampling unit is the token (Wilson's interval).
It says nothing of a token at other positions or behind other text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...core.seeds import seeded
from ...models import ordinary_tokens
from ...models.prompts import Prompts
from ...probes.residual_trace import PositionPeaks
from ...results.estimates import Share
from ...runner.run import Run
from ...stats.nulls import gaussian_exceeds
from ._search import Spikes


def sweep_vocabulary(run: Run[Any], spikes: Spikes, count: int, later: int) -> None:
    """The share of the vocabulary that spikes as first token, and after the start of a prompt.

    Args:
        run: The run; its first prompt's start stands before the later position.
        spikes: Where to look, and what counts.
        count: How many ordinary tokens to try, drawn at random.
        later: The later position.
    """
    criterion = spikes.criteria[spikes.criterion]
    median = float(getattr(spikes.trace, criterion.median)[:, spikes.peak].mean())
    threshold = max(criterion.magnitude, criterion.times * median)
    null = gaussian_exceeds(int(run.model.cfg.d_model), threshold / median)
    ordinary = tokens = ordinary_tokens(run.model)
    if count < len(ordinary):
        chosen = seeded(run.config.seed, "sweep").choice(len(ordinary), count, replace=False)
        tokens = ordinary[torch.from_numpy(np.sort(chosen))]
    run.facts(
        vocabulary_tried=len(tokens),
        vocabulary_size=len(ordinary),
        vocabulary_threshold=threshold,
    )
    places = {"position0": 0, "later_position": min(later, run.prompts.length)}
    for name, position in places.items():
        start = run.prompts.tokens[0, :position].cpu().expand(len(tokens), -1)
        words = torch.cat([start, tokens[:, None]], 1)
        inputs = Prompts(words, bos=run.prompts.bos and position > 0, source="sweep")
        (peaks,) = run.read(PositionPeaks(run.model, spikes.peak), prompts=inputs)
        hits = int((peaks.largest[:, position] >= threshold).sum())
        run.add("vocabulary_spikes", name, Share(hits, len(tokens), null))
