"""Massive entries of the residual stream intervened on, with two matched controls.

    zero              0
    mean              the mean over the massive entries of that channel, separately for position 0
                      and later positions
    flipped_mean      minus that
    first_token_mean  the same as `mean`, but at position 0 the mean over 256 ordinary first tokens,
                      each run as a prompt of length 1
    clamp_spikes      the magnitude of a median entry, the sign kept

Controls:

    median_entries    as many entries of median magnitude at the same positions, in other channels:
                      0 under `zero`, else their channel's mean
    other_channels    the same change made to random other channels of the same positions

Sun et al. 2024 (2402.17762) take the entries of median magnitude wherever they are; then they lie
at nearly all positions where the massive ones lie at few, and reach other queries than these.

A spike can be written in several steps. Each intervention is made at every entry point alone, and
where there are several at all of them in one forward pass (`zero_all`, `clamp_all`), with the
entries that are massive there in the clean run.

Where prompts share a BOS, position 0 is the same in all of them: each of its entries is its own
mean, and `mean` has no effect there by construction; a footnote says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core.protocol import HookedModel
from ..core.seeds import seeded
from ..hooks.intervention import Intervention, together
from ..hooks.position0 import MEAN_TOKENS
from ..hooks.spikes import replace_entries, shift_entries
from ..models import ordinary_tokens
from ..probes.positions import first_token_values
from ..probes.stream_entries import Entries, EntryValues, LargestEntries, SameEntries
from ..runner.compare import NO_POSITION, Comparison, Control
from ..runner.run import Run

EDITS = ("zero", "mean", "flipped_mean", "first_token_mean")
CLAMP = "clamp_spikes"
MEDIAN_ENTRIES, OTHER_CHANNELS = "median_entries", "other_channels"
OWN_MEAN = "with the same first token in all prompts position 0 is its own mean"


def at_all(edit: str) -> str:
    """The condition of an intervention at all entry points together."""
    return "clamp_all" if edit == CLAMP else f"{edit}_all"


class SpikeEdits:
    """Makes the interventions on massive entries at every entry point, and their controls.

    Attributes:
        crowded: The reason why a change cannot be made in other channels, empty where it can.
    """

    def __init__(self, run: Run[Any], entries: Mapping[int, EntryValues]) -> None:
        """Read what a run's stream holds at the entries; on random weights at its largest ones.

        Args:
            run: The run, which records the drawn channels.
            entries: By block whose input is intervened on (one past the last is the final output),
                the massive entries, and those of median magnitude.
        """
        self._run = run
        reading = LargestEntries if run.random_weights else SameEntries
        readers = {
            layer: reading(run.model, layer, own, run.prompt_numbers)
            for layer, own in entries.items()
        }
        run.read(*readers.values())
        entries = {layer: reader.compute() for layer, reader in readers.items()}
        self._layers = {layer: _LayerEdits(run, layer, own) for layer, own in entries.items()}
        self.crowded = next(filter(None, (one.crowded for one in self._layers.values())), "")

    def comparisons(self, edit: str, controls: Sequence[str]) -> list[Comparison]:
        """An intervention with the named controls, at each entry point and last at all of them."""
        made = [layer.comparison(edit, controls) for layer in self._layers.values()]
        taken = {f"L{layer}": own.taken for layer, own in self._layers.items() if own.taken}
        if taken:
            self._run.drawn(control_channels=taken)
        self._footnote(edit)
        return made if len(made) < 2 else [*made, self._together(at_all(edit), made)]

    def _together(self, name: str, made: Sequence[Comparison]) -> Comparison:
        """Several comparisons in one forward pass, control by control and draw by draw."""
        controls = [
            Control(
                same[0].name,
                [
                    together(f"{name} of {same[0].name}", *draw)
                    for draw in zip(*(control.interventions for control in same), strict=False)
                ],
            )
            for same in zip(*(one.controls for one in made), strict=True)
        ]
        return Comparison(
            name,
            [together(name, *(one.treatment[0] for one in made))],
            tuple(controls),
            no_control=next(filter(None, (one.no_control for one in made)), ""),
        )

    def _footnote(self, edit: str) -> None:
        """Say where an intervention writes what is there."""
        lines = {la: own.as_it_is[edit] for la, own in self._layers.items() if own.as_it_is[edit]}
        if lines:
            same = len(self._layers) == len(lines) and len(set(lines.values())) == 1
            whole = [f"{edit} {line}." for line in list(lines.values())[:1]]
            apart = [f"At L{layer} {edit} {line}." for layer, line in lines.items()]
            said = " ".join(whole if same else apart)
            self._run.footnote(edit, said)
            if len(self._layers) > 1:
                self._run.footnote(at_all(edit), said)


class _LayerEdits:
    """Makes the interventions on massive entries at one layer, and their controls.

    Attributes:
        crowded: The reason why a change cannot be made in other channels, empty where it can.
        taken: By draw, the other channel that each massive one's change is made in.
        as_it_is: By intervention, where it writes what is there, in words; empty where it does not.
    """

    def __init__(self, run: Run[Any], layer: int, entries: EntryValues) -> None:
        self._run, self._layer, self._entries = run, layer, entries
        self._first: Tensor | None = None
        self.crowded = crowded(entries)
        self.taken: list[dict[str, int]] = []
        self.as_it_is: dict[str, str] = {}

    def comparison(self, edit: str, controls: Sequence[str]) -> Comparison:
        """An intervention with the named controls."""
        massive = self._entries.massive
        values = self._values(edit, massive, self._massive_mean())
        change = values - massive.value
        self.as_it_is[edit] = (
            self._where_own_mean(change) if edit == "mean" else _as_it_is(massive, change)
        )
        treatment = replace_entries(self._run.model, self._layer, massive, values, name=edit)
        made = {
            MEDIAN_ENTRIES: lambda: self._of_median_size(edit),
            OTHER_CHANNELS: lambda: self._in_other_channels(edit, change),
        }
        return Comparison(
            edit,
            [self._placed(treatment, massive, change)],
            tuple(Control(name, made[name]()) for name in controls),
            no_control=self.crowded or NO_POSITION,
        )

    def _placed(self, edit: Intervention, entries: Entries, change: Tensor) -> Intervention:
        """An intervention that knows its layer, and whether it is meant to change anything."""
        return replace(edit, layer=self._layer, identity=changes_nothing(entries, change))

    def _values(self, edit: str, entries: Entries, mean: Tensor) -> Float[Tensor, " entry"]:
        """The values written into entries whose means over prompts are given."""
        if edit == "zero":
            return torch.zeros_like(entries.value)
        if edit == CLAMP:
            return entries.value.sign() * self._entries.median[entries.prompt]
        if edit == "first_token_mean":
            if self._first is None:
                self._first = first_token_mean(self._run.model, self._layer, self._run.config.seed)
            return torch.where(entries.position == 0, self._first[entries.channel], mean)
        return mean if edit == "mean" else -mean

    def _massive_mean(self) -> Float[Tensor, " entry"]:
        """Mean massive entry of each entry's channel, separately for position 0 and the rest."""
        massive = self._entries.massive
        means = torch.zeros_like(massive.value)
        for channel in massive.channel.unique():
            for there in (massive.position == 0, massive.position > 0):
                mine = there & (massive.channel == channel)
                if bool(mine.any()):
                    means[mine] = massive.value[mine].double().mean().float()
        return means

    def _where_own_mean(self, change: Float[Tensor, " entry"]) -> str:
        """Where `mean` writes what is there, in words."""
        massive = self._entries.massive
        first = massive.position == 0
        if not changes_nothing(massive, change):
            if not (bool(first.any()) and changes_nothing(massive.part(first), change[first])):
                return ""
            return f"writes what is there at position 0: {OWN_MEAN}; later entries change"
        if not bool(first.all()):
            return "writes what is there: each entry is its own mean, so the effect is 0"
        return f"writes what is there: {OWN_MEAN}, so the effect is 0 by construction"

    def _of_median_size(self, edit: str) -> list[Intervention]:
        """The same intervention on as many entries of median magnitude, in each draw."""
        drawn = []
        for draw, entries in enumerate(self._entries.ordinary):
            channel_mean = self._entries.means[(entries.position > 0).long(), entries.channel]
            values = self._values(edit, entries, channel_mean)
            name = f"{edit} of median-size entries"
            control = replace_entries(
                self._run.model, self._layer, entries, values, name=name, draw=draw
            )
            drawn.append(self._placed(control, entries, values - entries.value))
        return drawn

    def _in_other_channels(self, edit: str, change: Float[Tensor, " entry"]) -> list[Intervention]:
        """The same change in other channels, one for each massive channel, in each draw."""
        if self.crowded:
            return []
        massive, drawn, self.taken = self._entries.massive, [], []
        own = massive.channel.unique()
        others = np.setdiff1d(np.arange(int(self._run.model.cfg.d_model)), own.numpy())
        for draw in range(self._run.config.draws):
            random = seeded(self._run.config.seed, "channels", draw)
            chosen = torch.from_numpy(random.choice(others, len(own), replace=False))
            self.taken.append(dict(zip(map(str, own.tolist()), chosen.tolist(), strict=True)))
            elsewhere = massive._replace(channel=chosen[torch.searchsorted(own, massive.channel)])
            name = f"{edit} in other channels"
            shift = shift_entries(
                self._run.model, self._layer, elsewhere, change, name=name, draw=draw
            )
            drawn.append(self._placed(shift, massive, change))
        return drawn


def crowded(entries: EntryValues) -> str:
    """The reason why the change cannot be made in other channels, empty where it can."""
    own, width = len(entries.massive.channel.unique()), entries.means.shape[-1]
    if 2 * own <= width:
        return ""
    return (
        f"{own} of {width} channels hold a massive entry somewhere, so that too few others are "
        "left to take an equal change each; a higher scale_free= (or times=) calls fewer massive"
    )


def _as_it_is(entries: Entries, change: Float[Tensor, " entry"]) -> str:
    """That values other than means over these prompts are what is there."""
    if not changes_nothing(entries, change):
        return ""
    return "writes what is there within rounding error, so the effect is 0 by construction"


def changes_nothing(entries: Entries, change: Float[Tensor, " entry"]) -> bool:
    """Whether an intervention changes nothing beyond rounding error.

    With a BOS position 0 is the same in every prompt, and each of its entries is its own mean.
    """
    return bool((change.abs() <= 1e-4 * entries.value.abs()).all())


def first_token_mean(model: HookedModel, layer: int, seed: int) -> Float[Tensor, " channel"]:
    """The mean residual stream at position 0 over ordinary first tokens."""
    site, block = ("residual", layer)
    if layer == int(model.cfg.n_layers):
        site, block = "resid_post", layer - 1
    tokens = seeded(seed, "massive", "first").choice(ordinary_tokens(model).numpy(), MEAN_TOKENS)
    return first_token_values(model, torch.from_numpy(tokens), [site], [block])[site, block].mean(0)
