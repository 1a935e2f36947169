"""The steps in which the leading entry becomes massive: what writes each, and what removes it.

The leading entry is followed through all stages. It takes a step where its size over the median of
its layer, averaged over prompts, reaches the scale-free threshold, until it is below half of it
(`functional.massive.rises`). The peak of a step is the stage at which that ratio is largest; the
entry's size, in the model's own units, can grow further, and is largest at or after the peak.

    written_b = (entry after b - entry before b) / entry at the peak,           b up to the peak
    removed_b = (entry after b - entry before b) / entry where it is largest,   b behind that

so that with the embedding's the shares that are written sum to 1. The step-up is the sub-block of
the rise that writes most, the step-down the one that removes most until the next rise; where on
balance nothing is removed there is none. The rule is sinklens's own: Sun et al. 2026 (2603.05498)
name step-up and step-down blocks without one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ...core.labels import stage_name
from ...functional.massive import rises
from ...results.record import Record
from ...results.wording import null_verdict, number, phrase
from ...stats.effects import EffectSize
from ...stats.nulls import largest_share

STEP_SHARE = 0.5  # below it no single sub-block writes or removes the spike
NAMED_SHARE = 0.1  # sub-blocks that write or remove less are in the arrays only


@dataclass(frozen=True, eq=False)
class Step:
    """One rise of the leading entry, and its fall.

    Attributes:
        start: The first stage that belongs to the rise: behind the step before.
        first: The first stage at which the entry stands out.
        peak: The stage at which it stands out most, relative to the median.
        last: The last stage at which it stands out.
        end: The last stage before the next step, or of the model.
        entry: By prompt and stage, the entry.
        ratio: The entry's size over the median at the peak, averaged over prompts.
    """

    start: int
    first: int
    peak: int
    last: int
    end: int
    entry: Float[Tensor, "prompt stage"]
    ratio: float

    @property
    def largest(self) -> int:
        """The stage, at the peak or behind it, at which the entry is largest."""
        relative = self.entry[:, self.peak : self.end + 1] / self.entry[:, self.peak, None]
        return self.peak + int(relative.mean(0).argmax())

    @property
    def written(self) -> Float[Tensor, "prompt stage"]:
        """What the embedding and every sub-block up to the peak write of the entry there."""
        return _changes(self.entry)[:, : self.peak + 1] / self.entry[:, self.peak, None]

    @property
    def removed(self) -> Float[Tensor, "prompt stage"]:
        """What every sub-block behind the largest size writes (removes, where it is negative)."""
        after = _changes(self.entry)[:, self.largest + 1 : self.end + 1]
        return after / self.entry[:, self.largest, None]

    @property
    def step_up(self) -> int:
        """The stage after the sub-block that writes most (0 for the embedding)."""
        return self.start + int(self.written[:, self.start :].mean(0).argmax())

    @property
    def step_down(self) -> int | None:
        """The stage after the sub-block that removes most, where anything is removed."""
        if not self.removed_null:
            return None
        return self.largest + 1 + int(self.removed.mean(0).argmin())

    @property
    def written_null(self) -> float:
        """The largest of as many random shares as there are writers: the broken stick."""
        return largest_share(self.peak + 1)

    @property
    def removed_null(self) -> float:
        """The largest of as many random shares of all that is removed; 0 where nothing is."""
        removed = self.removed
        total = float(removed.sum(1).mean()) if removed.shape[1] else 0.0
        return total * largest_share(removed.shape[1]) if total < 0 else 0.0

    @property
    def layer(self) -> int:
        """The first block that the whole step enters: its input is intervened on."""
        return (self.step_up + 1) // 2

    def size(self, stage: int) -> float:
        """The entry's size after a stage, averaged over prompts, in the model's own units."""
        return float(self.entry[:, stage].abs().mean())

    def described(self) -> dict[str, Any]:
        """The step, for the findings of a result; shares below a tenth are left out."""
        down = self.step_down
        removers = self.removed.mean(0).tolist()
        return {
            "layer": self.layer,
            "from": stage_name(self.first),
            "to": stage_name(self.last),
            "peak_after": stage_name(self.peak),
            "peak_ratio": self.ratio,
            "peak_size": self.size(self.peak),
            "largest_after": stage_name(self.largest),
            "largest_size": self.size(self.largest),
            "step_up": stage_name(self.step_up),
            "step_down": None if down is None else stage_name(down),
            "writers": _named(self.written.mean(0).tolist(), 0),
            "removers": _named(removers, self.largest + 1),
        }


def find_steps(
    entry: Float[Tensor, "prompt stage"], median: Float[Tensor, "prompt stage"], threshold: float
) -> list[Step]:
    """All steps of an entry, in the order of the stages.

    Args:
        entry: The entry after every sub-block.
        median: The median size of the layer.
        threshold: What its size over the median reaches; where it never does, its largest value.
    """
    ratios = (entry.abs() / median).mean(0).tolist()
    found = rises(ratios, threshold)
    starts = [0, *(rise.last + 1 for rise in found[:-1])]
    ends = [*(rise.first - 1 for rise in found[1:]), len(ratios) - 1]
    return [
        Step(start, rise.first, rise.peak, rise.last, end, entry, ratios[rise.peak])
        for start, rise, end in zip(starts, found, ends, strict=True)
    ]


def _changes(entry: Float[Tensor, "prompt stage"]) -> Float[Tensor, "prompt stage"]:
    """What the embedding and every sub-block write."""
    changes = entry.clone()
    changes[:, 1:] = entry.diff(dim=1)
    return changes


def _named(shares: list[float], first: int) -> dict[str, float]:
    """The shares that are worth a name, by stage."""
    return {
        stage_name(stage): share
        for stage, share in enumerate(shares, first)
        if abs(share) >= NAMED_SHARE
    }


def steps_in_words(result: Record) -> Iterator[str]:
    """For each step its size, and the sub-blocks that write and remove it, as far as they do."""
    several = len(result.findings["steps"]) > 1
    for place, step in enumerate(result.findings["steps"], 1):
        yield (
            f"{f'Step {place}: t' if several else 'T'}he leading entry stands out from "
            f"{step['from']} to {step['to']}, most after {step['peak_after']} "
            f"({step['peak_size']:,.4g}, {step['peak_ratio']:,.0f} times the median). "
            f"{_written(result, step)} {_removed(result, step)}"
        )


def _written(result: Record, step: Mapping[str, Any]) -> str:
    """What writes the entry of a step up to its peak."""
    if step["step_up"] == "embedding":
        return "The embedding already holds the peak."
    row = _row_of("step_up", step, result)
    alone = "by" if row.value >= STEP_SHARE else "by no single sub-block;"
    besides = _besides(step["writers"], step["step_up"])
    return f"Written {alone} {row.condition}: {phrase(result, row)}{besides}."


def _removed(result: Record, step: Mapping[str, Any]) -> str:
    """What removes it again, from its largest size on."""
    row = None if step["step_down"] is None else _row_of("step_down", step, result)
    if row is None or -row.value < NAMED_SHARE:
        return f"No sub-block removes more than {NAMED_SHARE:.0%} of it."
    alone = "by" if -row.value >= STEP_SHARE else "by no single sub-block;"
    removed = {after: -share for after, share in step["removers"].items()}
    besides = _besides(removed, step["step_down"])
    largest = f"{step['largest_size']:,.4g} after {step['largest_after']}"
    measure = result.measure(row.metric)
    side = {"below": "above", "above": "below"}.get(null_verdict(row), null_verdict(row))
    return (
        f"Removed {alone} {row.condition}: {number(measure, -row.value)} of the largest size "
        f"({largest}), {side} {measure.null} ({number(measure, -row.baseline)}){besides}."
    )


def _row_of(metric: str, step: Mapping[str, Any], result: Record) -> EffectSize:
    return next(r for r in result.effects if (r.metric, r.condition) == (metric, step[metric]))


def _besides(shares: Mapping[str, float], named: str) -> str:
    """The others, the embedding included, that have a share of a tenth or more."""
    others = [f"{after} {share:.0%}" for after, share in shares.items() if after != named]
    return f"; besides {', '.join(others)}" if others else ""
