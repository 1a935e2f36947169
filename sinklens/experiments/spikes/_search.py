"""Find a model's massive activations without being told where: stages, channels, sub-blocks.

The peak is the stage whose largest entry, over the median of its layer, is largest on average over
prompts. Each prompt's leading entry is its largest one there; the spike channels are those that
lead or follow it in most prompts. Following the leading entry through the model gives what every
sub-block writes there:

    share_b = (stream after b - stream before b) / plateau,   plateau = the entry at the peak

A sub-block steps up if its mean share is at least 0.5, and steps down if it is at most -0.5. The
rule is sinklens's own: 2603.05498 names step-up and step-down blocks without one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core.errors import SinklensError
from ...core.labels import stage_name
from ...core.protocol import HookedModel
from ...engine import evaluate
from ...models.prompts import Prompts
from ...probes import Probe
from ...probes.residual_trace import Criterion, PeakTrace, PeakTraceValues, Written
from ...runner.config import ExperimentConfig

STEP_SHARE = 0.5
NAMED_SHARE = 0.1  # sub-blocks that write less of the peak are in the arrays only
CHANNELS = 3
FORWARDS = 2


@dataclass(frozen=True)
class Spikes:
    """Where the massive activations of a model are.

    Attributes:
        trace: The largest entries after every sub-block.
        criteria: The criteria that were looked at, by name.
        criterion: The name of the one that decides what counts as massive.
        peak: The stage at which the largest entry stands out most.
        positions: By prompt, the position of the leading entry.
        channels: The channels that lead, most frequent first.
        written: The stream's entries at the leading position, after every sub-block.
        shares: By prompt, what every sub-block writes of the leading entry's plateau.
    """

    trace: PeakTraceValues
    criteria: dict[str, Criterion]
    criterion: str
    peak: int
    positions: Int[Tensor, " prompt"]
    channels: list[int]
    written: Float[Tensor, "prompt stage channel"]
    shares: Float[Tensor, "prompt stage"]

    @property
    def step_up(self) -> int:
        """The stage after the sub-block that writes most of the peak (0 for the embedding)."""
        return int(self.shares[:, : self.peak + 1].mean(0).argmax())

    @property
    def step_down(self) -> int | None:
        """The stage after the sub-block that takes most away after the peak, if one does."""
        after = self.shares[:, self.peak + 1 :].mean(0)
        return self.peak + 1 + int(after.argmin()) if len(after) else None

    @property
    def layer(self) -> int:
        """The first block that the whole spike enters: its input is where the spike is edited."""
        return (self.step_up + 1) // 2

    @property
    def found(self) -> bool:
        """Whether any prompt has a massive activation."""
        return bool(self.trace.massive[..., list(self.criteria).index(self.criterion)].any())

    def described(self) -> dict[str, object]:
        """What was found, for the settings of a result."""
        steps = {"up": self.step_up, "down": self.step_down}
        return {
            "criterion": self.criterion,
            "peak_after": stage_name(self.peak),
            "peak_stage": self.peak,
            "channels": self.channels,
            "positions": {
                str(position): count
                for position, count in Counter(sorted(self.positions.tolist())).items()
            },
            "steps": {
                name: None
                if stage is None
                else {
                    "after": stage_name(stage),
                    "block": stage,
                    "share": float(self.shares[:, stage].mean()),
                }
                for name, stage in steps.items()
            },
            "writers": {
                stage_name(stage): share
                for stage, share in enumerate(self.shares.mean(0).tolist())
                if stage and abs(share) >= NAMED_SHARE
            },
        }


def find_spikes(
    model: HookedModel,
    prompts: Prompts,
    config: ExperimentConfig,
    criteria: Mapping[str, Criterion],
    chosen: str | None = None,
) -> Spikes:
    """Run the prompts twice and look.

    Args:
        model: A model whose sub-blocks add to the stream.
        prompts: The prompts.
        config: For the engine.
        criteria: What may count as massive, by name; the order is that of preference.
        chosen: The criterion that decides; None takes the first that any prompt meets, and the last
            if none does.

    Raises:
        SinklensError: The model norms the stream itself, or most of its stream is 0.
    """
    probe = PeakTrace(model, list(criteria.values()), top=min(CHANNELS, int(model.cfg.d_model)))
    _read(model, prompts, config, probe)
    trace = probe.compute()
    if not bool(trace.layer_median.all()) or not bool(trace.token_median.all()):
        raise SinklensError(
            "the median entry of the residual stream is 0 somewhere, as in models whose weights "
            "were set by hand, so that no entry can be compared with it; probes.ResidualPeaks "
            "reads the largest entries of any model"
        )
    met = [name for number, name in enumerate(criteria) if trace.massive[..., number].any()]
    peak = int((trace.magnitude[..., 0] / trace.layer_median).mean(0).argmax())
    positions = trace.position[:, peak, 0].long()
    # A channel counts where it holds a large entry at the leading position, not at another one.
    together = trace.position[:, peak] == positions[:, None]
    seen = Counter(trace.channel[:, peak][together].long().tolist())
    leading = Counter(trace.channel[:, peak, 0].long().tolist())
    frequent = [c for c, count in seen.items() if count >= len(prompts) / 2 or c in leading]
    channels = sorted(frequent, key=lambda c: (-leading[c], -seen[c], c))[:CHANNELS]
    # Each prompt's leading entry may lie in a channel of its own.
    candidates, leads = trace.channel[:, peak, 0].long().unique(return_inverse=True)
    followed = list(dict.fromkeys([*candidates.tolist(), *channels]))
    writing = Written(model, positions, followed)
    _read(model, prompts, config, writing)
    written = writing.compute()
    entry = written[torch.arange(len(prompts)), :, leads]
    differences = torch.cat([entry[:, :1], entry.diff(dim=1)], 1)
    return Spikes(
        trace=trace,
        criteria=dict(criteria),
        criterion=chosen or (met or list(criteria))[0 if met else -1],
        peak=peak,
        positions=positions,
        channels=channels,
        written=written[..., [followed.index(channel) for channel in channels]],
        shares=differences / entry[:, peak : peak + 1],
    )


def _read(model: HookedModel, prompts: Prompts, config: ExperimentConfig, probe: Probe) -> None:
    """Run the prompts with a probe."""
    evaluate(model, prompts, [], [], probes=[probe], **config.for_engine())
