"""What an experiment needs of a model and of prompts, checked in one place before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ..core.errors import SinklensError, UsageError
from ..metrics import EXPERTS_CHANGED, METRICS, Metric, ProbeMetric
from ..models.capabilities import Capabilities
from ..models.prompts import Prompts


@dataclass(frozen=True)
class Need:
    """One need, and what works without it.

    Attributes:
        what: What is needed, as it stands after "needs".
        met: Whether a model and prompts have it.
        instead: What would work where they have not.
        of_prompts: Whether it is about the prompts, so that asking for it is wrong usage.
    """

    what: str
    met: Callable[[Capabilities, Prompts], bool]
    instead: str = ""
    of_prompts: bool = False

    def otherwise(self, instead: str) -> Need:
        """The same need, with what would work for an experiment that has it."""
        return replace(self, instead=instead)

    def require(self, experiment: str, capabilities: Capabilities, prompts: Prompts) -> None:
        """Refuse a model or prompts that do not meet it.

        Raises:
            SinklensError: The model does not.
            UsageError: The prompts do not.
        """
        if self.met(capabilities, prompts):
            return
        if self.of_prompts:
            raise UsageError(
                f"{experiment} needs {self.what}; these are {prompts.size}. {self.instead}".strip()
            )
        raise SinklensError(
            f"{experiment} needs {self.what}; {capabilities.architecture} is not one. "
            f"{self.instead}".strip()
        )


NOT_CAUSAL = "it is a next-token measure and this model attends in both directions"
CAUSAL = Need("a causal model, in which position 0 sees only itself", lambda model, _: model.causal)
WITH_ATTENTION = Need(
    "a model with attention that TransformerLens shows",
    lambda model, _: bool(model.attention),
    "bos_replacement, position0_patching and massive_activations measure loss and KL there.",
)
ATTENTION_EVERYWHERE = Need(
    "a model with attention in every layer",
    lambda model, _: len(model.attention) == model.n_layers,
    "bos_replacement and position0_patching measure loss and KL there.",
)
READABLE_SCORES = Need(
    "a model whose attn.hook_attn_scores holds the scores that the softmax gets",
    lambda model, _: model.edits["scores"],
)

EQUAL_LENGTHS = Need(
    "prompts of one length",
    lambda _, prompts: prompts.length == prompts.longest,
    "prompts.up_to(length) cuts them; sink_profile, bos_replacement, position0_patching and "
    "sink_head_ablation take them as they are.",
    of_prompts=True,
)


def at_least_layers(count: int, why: str) -> Need:
    """A model with so many layers."""
    return Need(f"a model of at least {count} layers, {why}", lambda m, _: m.n_layers >= count)


def at_least_tokens(count: int) -> Need:
    """Prompts that are so long."""
    return Need(
        f"prompts of at least {count} tokens",
        lambda _, prompts: prompts.length >= count,
        "Use longer prompts (--length).",
        of_prompts=True,
    )


def at_least_prompts(count: int, why: str) -> Need:
    """So many prompts."""
    return Need(
        f"at least {count} prompts, {why}",
        lambda _, prompts: len(prompts) >= count,
        "Use more prompts (--n-prompts).",
        of_prompts=True,
    )


def with_experts(metrics: Sequence[Metric], capabilities: Capabilities) -> list[Metric]:
    """The default metrics of an experiment, in mixtures of experts with the share routed anew."""
    more = [METRICS[EXPERTS_CHANGED]] if metrics and capabilities.experts else []
    return [*metrics, *more]


def impossible_metrics(metrics: Iterable[Metric], capabilities: Capabilities) -> dict[str, str]:
    """By name, why a metric cannot be measured on a model."""
    reasons: dict[str, str] = {}
    for metric in metrics:
        if metric.causal_only and not capabilities.causal:
            reasons[metric.name] = NOT_CAUSAL
        elif metric.name == EXPERTS_CHANGED and not capabilities.experts:
            reasons[metric.name] = (
                f"TransformerLens shows no choice of experts in {capabilities.architecture}"
            )
        elif isinstance(metric, ProbeMetric) and metric.reads:
            lacking = capabilities.lacking(metric.reads)
            reasons |= {metric.name: f"on {capabilities.architecture} {lacking}"} if lacking else {}
    return reasons
