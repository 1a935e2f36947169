"""Which tokens of the vocabulary spike as the first token, and which at a later position.

2603.05498 finds nearly every token of a model's vocabulary to spike at position 0 (98.4 to 99.9 %
of seven pretrained models, its Table 2). A causal model needs sequences of length 1 for that. Each
position is the other's control, and the null is that of Gaussian entries. A token spikes where its
largest entry at the peak's stage is at least as large as the criterion asks; the median is that of
the prompts, since a single position's is another. Shares have Wilson's interval over the tokens
that were tried: the unit is the token, so that they are no rows of the table. It says nothing of a
token at other positions or behind other text.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy import stats

from ...core.protocol import HookedModel
from ...core.seeds import seeded
from ...engine import evaluate
from ...models import ordinary_tokens
from ...models.prompts import Prompts
from ...probes.residual_trace import PositionPeaks
from ...runner.config import ExperimentConfig
from ...stats.nulls import gaussian_exceeds
from ._search import Spikes


def sweep_vocabulary(
    model: HookedModel,
    prompts: Prompts,
    config: ExperimentConfig,
    spikes: Spikes,
    count: int,
    later: int,
) -> dict[str, dict[str, float]]:
    """The share of the vocabulary that spikes as first token, and after the start of a prompt.

    Args:
        model: A causal model.
        prompts: The first one's start stands before the later position.
        config: For the seed and the engine.
        spikes: Where to look, and what counts.
        count: How many ordinary tokens to try, drawn at random; 0 tries none.
        later: The later position.

    Returns:
        By position its share, interval, null, threshold and how many tokens of how many were tried.
    """
    if not count:
        return {}
    criterion = spikes.criteria[spikes.criterion]
    median = getattr(spikes.trace, criterion.median)[:, spikes.peak].mean()
    threshold = max(criterion.magnitude, criterion.times * float(median))
    ordinary = tokens = ordinary_tokens(model)
    if count < len(ordinary):
        chosen = seeded(config.seed, "sweep").choice(len(ordinary), count, replace=False)
        tokens = ordinary[torch.from_numpy(np.sort(chosen))]
    sizes = {**config.for_engine(), "positions": None}
    shares = {}
    for position in (0, min(later, prompts.length)):
        start = prompts.tokens[0, :position].cpu().expand(len(tokens), -1)
        tried = torch.cat([start, tokens[:, None]], 1)
        probe = PositionPeaks(model, spikes.peak)
        inputs = replace(prompts, tokens=tried, answers=None, source="sweep")
        evaluate(model, inputs, [], [], probes=[probe], **sizes)
        spiking = int((probe.compute().largest[:, position] >= threshold).sum())
        interval = stats.binomtest(spiking, len(tokens)).proportion_ci(method="wilson")
        shares[f"position {position}"] = {
            "share": spiking / len(tokens),
            "ci_low": float(interval.low),
            "ci_high": float(interval.high),
            "tokens": len(tokens),
            "of": len(ordinary),
            "threshold": threshold,
            "null": gaussian_exceeds(int(model.cfg.d_model), threshold / float(median)),
        }
    return shares
