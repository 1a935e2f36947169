"""Metrics: on logits, or computed from a probe.

Logit metrics are functions `fn(logits, tokens, *, clean_logits, positions, answers)` that return
one number per prompt, in float64 on a model in float64 and in float32 on others. `positions` are
those whose predictions count: after the intervened position.

- `loss`: next-token cross-entropy in nats (the last position has no target and is left out);
- `kl`: KL(clean || intervened) of the next-token distribution in nats;
- `logit_diff`: logit of the correct minus that of the incorrect answer at the last position.

Probe metrics, by prompt, averaged over heads and over the layers that the intervention can reach
(`hooks.reach`):

- `sink_mass`: mean attention of queries i >= 1 to key 0;
- `sink_rate`: share of heads whose sink score of key 0 exceeds 0.3 (Gu et al. 2025, 2410.10781);
- `position0_norm`: the largest norm of the residual stream at position 0, entering each block and
  leaving the last, as far as it can be reached;
- `experts_changed`: share of tokens that go to other experts than in the clean run, in any layer;
  measured by default in mixtures of experts (`probes.experts`).

They remain properties of position 0 when the intervention is a control at a later position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .core.errors import UsageError, unknown_name
from .core.protocol import HookedModel
from .functional.precision import wide
from .probes import Probe, ResidualNorms, SinkWeights
from .probes.experts import RoutedAnew
from .probes.norms import NormValues
from .probes.sinks import SinkScoreValues, SinkWeightValues

SINK_THRESHOLDS = {"gu": 0.3, "strict": 0.8}
EXPERTS_CHANGED = "experts_changed"
SINK_MASS = 0.3
"""A head with a larger sink mass is a sink head."""


@dataclass(frozen=True)
class LogitMetric:
    """A metric on logits.

    Attributes:
        name: The name in tables.
        function: `fn(logits, tokens, *, clean_logits, positions, answers)` -> `[prompt]`.
        unit: The unit.
        higher_is_better: Whether higher is better; None where neither is.
        signed: Whether it can be negative; only then a sign-flip test of a treatment makes sense.
        causal_only: Whether it needs next-token predictions.
        by_row: For a metric that is a mean over predictions: the value of each prediction, as
            `fn(logits, *, next_tokens, clean_log_probs, answers)` -> `[row]` on rows of logits.
            The engine then need not hold all logits at once.
        counts: Of the positions that count, those whose predictions `by_row` takes; whether one is
            taken may not depend on the others.
        needs_clean: Whether `by_row` needs the clean log-probabilities.
    """

    name: str
    function: Callable[..., Tensor]
    unit: str = ""
    higher_is_better: bool | None = None
    signed: bool = True
    causal_only: bool = False
    by_row: Callable[..., Tensor] | None = None
    counts: Callable[[Int[Tensor, " counted"], int], Int[Tensor, " taken"]] = lambda p, _: p
    needs_clean: bool = False

    highest = None

    @property
    def lowest(self) -> float | None:
        """The smallest value that it can have."""
        return None if self.signed else 0.0


@dataclass(frozen=True)
class ProbeMetric:
    """A metric of a probe's values.

    Attributes:
        name: The name in tables.
        probe: Makes the probe.
        reduce: What is made of its values: `[prompt]`, or `[prompt, layer]` where `reads` is given.
        unit: The unit.
        higher_is_better: Whether higher is better; None where neither is.
        signed: Whether it can be negative.
        lowest: The smallest value that it can have.
        highest: The largest.
        causal_only: Whether it needs next-token predictions.
        reads: What is read in each layer (`hooks.reach.READABLE`), so that only layers that an
            intervention can reach count; None for one number per prompt.
        over_layers: What makes one number of those layers.
    """

    name: str
    probe: Callable[[HookedModel], Probe]
    reduce: Callable[[Any], Tensor]
    unit: str = ""
    higher_is_better: bool | None = None
    signed: bool = True
    lowest: float | None = None
    highest: float | None = None
    causal_only: bool = False
    reads: str | None = None
    over_layers: Callable[[Tensor, int], Tensor] = torch.mean


Metric = LogitMetric | ProbeMetric


def loss(
    logits: Float[Tensor, "prompt pos d_vocab"],
    tokens: Int[Tensor, "prompt pos"],
    *,
    clean_logits: Float[Tensor, "prompt pos d_vocab"],
    positions: Int[Tensor, " counted"],
    answers: Int[Tensor, "prompt 2"] | None,
) -> Float[Tensor, " prompt"]:
    """Mean next-token cross-entropy in nats of the predictions made at `positions`."""
    made = with_next_token(positions, tokens.shape[1])
    losses = [
        loss_by_row(mine[made], next_tokens=row[made + 1]).mean()
        for mine, row in zip(logits, tokens, strict=True)  # one by one they stay in the caches
    ]
    return torch.stack(losses)


def loss_by_row(
    logits: Float[Tensor, "row d_vocab"], *, next_tokens: Int[Tensor, " row"], **_: Any
) -> Float[Tensor, " row"]:
    """Cross-entropy in nats of each prediction."""
    return torch.nn.functional.cross_entropy(wide(logits), next_tokens, reduction="none")


def with_next_token(positions: Int[Tensor, " counted"], length: int) -> Int[Tensor, " made"]:
    """The positions that have a next token.

    Raises:
        UsageError: None of them has one.
    """
    made = positions[positions < length - 1]
    if not len(made):
        raise UsageError(
            f"of the predictions at positions {positions.tolist()} none has a next token in "
            f"prompts of {length} tokens; use longer prompts or other positions"
        )
    return made


def kl(
    logits: Float[Tensor, "prompt pos d_vocab"],
    tokens: Int[Tensor, "prompt pos"],
    *,
    clean_logits: Float[Tensor, "prompt pos d_vocab"],
    positions: Int[Tensor, " counted"],
    answers: Int[Tensor, "prompt 2"] | None,
) -> Float[Tensor, " prompt"]:
    """Mean KL(clean || intervened) in nats over the predictions made at `positions`."""
    divergences = [
        kl_by_row(after[positions], clean_log_probs=wide(before[positions]).log_softmax(-1))
        for before, after in zip(clean_logits, logits, strict=True)
    ]
    return torch.stack([rows.mean() for rows in divergences])


def kl_by_row(
    logits: Float[Tensor, "row d_vocab"], *, clean_log_probs: Float[Tensor, "row d_vocab"], **_: Any
) -> Float[Tensor, " row"]:
    """KL(clean || intervened) in nats of each prediction.

    With x the change of the logits less its mean under the clean prediction p, this is
    log(sum p e^x), and since that mean is 0, log(1 + sum p (e^x - 1 - x)). A difference of
    log-probabilities has an error of 1e-7 nats in float32, which is more than many edits do to a
    model with random weights.
    """
    clean = clean_log_probs.exp()
    change, whole = wide(logits) - clean_log_probs, clean.sum(-1)
    for _step in range(2):  # what float32 leaves of a large mean is small
        change -= (torch.linalg.vecdot(clean, change) / whole)[:, None]
    # Float32 log-probabilities sum to 1 within 1e-5 only.
    more = torch.linalg.vecdot(clean, torch.expm1(change).sub_(change)) / whole
    divergence: Tensor = more.log1p_()
    beyond = ~divergence.isfinite()  # e^x overflows
    if bool(beyond.any()):
        shifted = (clean_log_probs[beyond] + change[beyond]).logsumexp(-1)
        divergence[beyond] = shifted - whole[beyond].log()
    return divergence


def logit_diff(
    logits: Float[Tensor, "prompt pos d_vocab"],
    tokens: Int[Tensor, "prompt pos"],
    *,
    clean_logits: Float[Tensor, "prompt pos d_vocab"],
    positions: Int[Tensor, " counted"],
    answers: Int[Tensor, "prompt 2"] | None,
) -> Float[Tensor, " prompt"]:
    """Logit of the correct minus logit of the incorrect answer, at the last position.

    Raises:
        UsageError: The prompts have no answers.
    """
    return logit_diff_by_row(
        logits[:, -1], answers=None if answers is None else answers.to(logits.device)
    )


def logit_diff_by_row(
    logits: Float[Tensor, "row d_vocab"], *, answers: Int[Tensor, "row 2"] | None, **_: Any
) -> Float[Tensor, " row"]:
    """Logit of the correct minus logit of the incorrect answer.

    Raises:
        UsageError: The prompts have no answers.
    """
    if answers is None:
        raise UsageError(
            "logit_diff needs prompts with answers: Prompts.from_strings(model, [...], "
            'answers=[(" right", " wrong"), ...])'
        )
    chosen = wide(logits).gather(-1, answers)
    return chosen[:, 0] - chosen[:, 1]


def last_position(positions: Int[Tensor, " counted"], length: int) -> Int[Tensor, " 1"]:
    """The last position, whichever count."""
    return torch.tensor([length - 1])


def sink_mass(values: SinkScoreValues | SinkWeightValues) -> Float[Tensor, "prompt layer"]:
    """Sink mass by layer, averaged over heads."""
    return values.mass.mean(2)


def sink_rate(
    values: SinkScoreValues | SinkWeightValues, threshold: float = 0.3
) -> Float[Tensor, "prompt layer"]:
    """Share of heads, by layer, whose score of key 0 exceeds the threshold."""
    return (values.scores[..., 0] > threshold).float().mean(2)


def position0_norm(values: NormValues) -> Float[Tensor, "prompt site"]:
    """The norm at position 0, entering each block and leaving the last."""
    return values.position0


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        LogitMetric(
            "loss",
            loss,
            "nats",
            False,
            causal_only=True,
            by_row=loss_by_row,
            counts=with_next_token,
        ),
        LogitMetric("kl", kl, "nats", False, signed=False, by_row=kl_by_row, needs_clean=True),
        LogitMetric(
            "logit_diff", logit_diff, "logits", True, by_row=logit_diff_by_row, counts=last_position
        ),
        ProbeMetric(
            "sink_mass",
            SinkWeights,
            sink_mass,
            "share of attention",
            lowest=0.0,
            highest=1.0,
            reads="pattern",
        ),
        ProbeMetric(
            "sink_rate",
            SinkWeights,
            sink_rate,
            "share of heads",
            lowest=0.0,
            highest=1.0,
            reads="pattern",
        ),
        ProbeMetric(
            "position0_norm",
            ResidualNorms,
            position0_norm,
            "norm",
            reads="residual",
            over_layers=torch.amax,
            lowest=0.0,
        ),
        ProbeMetric(
            EXPERTS_CHANGED,
            RoutedAnew,
            lambda values: values.share,
            "share of tokens",
            signed=False,
        ),
    )
}


def resolve_metrics(metrics: Any) -> list[Metric]:
    """Metrics by name or as given; a plain function is a logit metric.

    Args:
        metrics: Names, `Metric`s or functions, one or several; names may be separated by commas.

    Raises:
        UsageError: A name is unknown, or there is no metric at all.
    """
    if isinstance(metrics, str):
        metrics = metrics.split(",")
    if not isinstance(metrics, Iterable):
        metrics = [metrics]
    resolved: list[Metric] = []
    for metric in metrics:
        if isinstance(metric, (LogitMetric, ProbeMetric)):
            resolved.append(metric)
        elif isinstance(metric, str):
            if metric not in METRICS:
                raise unknown_name("metric", metric, METRICS)
            resolved.append(METRICS[metric])
        elif callable(metric):
            resolved.append(LogitMetric(getattr(metric, "__name__", "metric"), metric))
        else:
            raise UsageError(f"a metric is a name or a function, not a {type(metric).__name__}")
    if not resolved:
        raise UsageError("no metrics to measure")
    return resolved


def needs_models(metric: Metric) -> bool:
    """Whether contrasts of a metric differ from 0 in models with random weights as well.

    Those of a measure without sign do, and of one about position 0; see `runner.null_models`.
    """
    return not metric.signed or isinstance(metric, ProbeMetric)
