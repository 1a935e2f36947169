"""Edits of massive entries, each with the control that it is set against.

What an edit writes is in `massive_activations`. `zero` and its like are set against as many entries
of median size, `zero:equal_norm` and its like against the same change in random other channels.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from ...core.protocol import HookedModel
from ...core.seeds import seeded
from ...hooks.intervention import Intervention
from ...hooks.position0 import MEAN_TOKENS
from ...hooks.spikes import replace_entries, shift_entries
from ...models import ordinary_tokens
from ...probes.positions import first_token_values
from ...probes.stream_entries import Entries, EntryValues
from ...runner.config import ExperimentConfig
from ...runner.old_compare import Comparison

EDITS = ("zero", "mean", "flipped_mean", "first_token_mean")
EQUAL_NORM = ":equal_norm"


class SpikeEdits:
    """Makes the interventions of a run, each once."""

    def __init__(
        self,
        model: HookedModel,
        config: ExperimentConfig,
        layer: int,
        entries: EntryValues,
    ) -> None:
        self._model, self._config, self._layer, self._entries = model, config, layer, entries
        self._first: Tensor | None = None
        self._asked: list[str] = []
        self._made: dict[str, list[Intervention]] = {}
        self._channels: dict[int, dict[int, int]] = {}  # by draw, where a channel's change went

    def comparison(self, condition: str) -> Comparison:
        """An edit beside one of its two controls."""
        self._asked.append(condition)
        edit = condition.removesuffix(EQUAL_NORM)
        massive, layer = self._entries.massive, self._layer
        values = self._values(edit, massive, self._massive_mean(massive))
        change = values - massive.value
        if edit not in self._made:
            made = replace_entries(self._model, layer, massive, values, name=edit)
            self._made[edit] = [
                dataclasses.replace(made, identity=changes_nothing(massive, change))
            ]
        if condition != edit:
            control = self.elsewhere(edit, change, self._config.draws)
            return Comparison(condition, self._made[edit], control)
        control = []
        for draw, ordinary in enumerate(self._entries.ordinary):
            written = self._values(edit, ordinary, self._channel_mean(ordinary))
            name = f"{edit} of median-size entries"
            control.append(
                replace_entries(self._model, layer, ordinary, written, name=name, draw=draw)
            )
        return Comparison(condition, self._made[edit], control)

    def own_means(self) -> dict[str, str]:
        """For each edit made that writes means which are what is there, a footnote.

        With the same first token in all prompts each entry of position 0 is its own mean.
        """
        made = self._made.get("mean")
        if made is None:
            return {}
        massive = self._entries.massive
        change = self._massive_mean(massive) - massive.value
        first = massive.position == 0
        same = "with the same first token in all prompts position 0 is its own mean"
        if made[0].identity:
            said = f"writes what is there: {same}, so the effect is 0 by construction"
            if not bool(first.all()):
                said = "writes what is there: each entry is its own mean, so the effect is 0"
        elif bool(first.any()) and changes_nothing(massive.part(first), change[first]):
            said = f"writes what is there at position 0: {same}; the effect is that of later ones"
        else:
            return {}
        return {name: said for name in ("mean", f"mean{EQUAL_NORM}") if name in self._asked}

    def channels_drawn(self) -> list[dict[str, int]]:
        """For each draw, to which other channel the change of each went."""
        drawn = (self._channels[draw] for draw in sorted(self._channels))
        return [{str(own): other for own, other in one.items()} for one in drawn]

    def _values(self, edit: str, entries: Entries, mean: Tensor) -> Tensor:
        """What an edit writes into entries whose means over prompts are given."""
        if edit == "zero":
            return torch.zeros_like(entries.value)
        if edit == "first_token_mean":
            if self._first is None:
                self._first = first_token_mean(self._model, self._layer, self._config.seed)
            return torch.where(entries.position == 0, self._first[entries.channel], mean)
        return mean if edit == "mean" else -mean

    def _massive_mean(self, massive: Entries) -> Tensor:
        """For each entry the mean of those in its channel, position 0 and the rest apart."""
        means = torch.zeros_like(massive.value)
        for channel in massive.channel.unique():
            for there in (massive.position == 0, massive.position > 0):
                mine = there & (massive.channel == channel)
                if bool(mine.any()):
                    means[mine] = massive.value[mine].double().mean().float()
        return means

    def _channel_mean(self, entries: Entries) -> Tensor:
        """For each entry the mean of its channel, position 0 and the rest apart."""
        return self._entries.means[(entries.position > 0).long(), entries.channel]

    def elsewhere(self, edit: str, change: Tensor, draws: int) -> list[Intervention]:
        """The same change in random other channels, one for each draw; none where `crowded`."""
        return (
            []
            if crowded(self._entries)
            else [self._elsewhere(edit, change, draw) for draw in range(draws)]
        )

    def _elsewhere(self, edit: str, change: Tensor, draw: int) -> Intervention:
        """One draw: each channel's change goes to a channel of its own."""
        massive = self._entries.massive
        own = massive.channel.unique()
        others = np.setdiff1d(np.arange(int(self._model.cfg.d_model)), own.numpy())
        random = seeded(self._config.seed, "channels", draw)
        chosen = torch.from_numpy(random.choice(others, len(own), replace=False))
        self._channels[draw] = dict(zip(own.tolist(), chosen.tolist(), strict=True))
        moved = massive._replace(channel=chosen[torch.searchsorted(own, massive.channel)])
        name = f"{edit} in other channels"
        made = shift_entries(self._model, self._layer, moved, change, name=name, draw=draw)
        return dataclasses.replace(made, identity=changes_nothing(massive, change))


def crowded(entries: EntryValues) -> str:
    """Why the same change cannot be made in other channels, empty where it can."""
    own, width = len(entries.massive.channel.unique()), entries.means.shape[-1]
    if 2 * own <= width:
        return ""
    return (
        f"{own} of {width} channels hold a massive entry somewhere, so that too few others are "
        "left to take an equal change each; a higher scale_free= (or times=) calls fewer massive"
    )


def changes_nothing(entries: Entries, change: Tensor) -> bool:
    """Whether an edit writes what is there, but for rounding.

    With a BOS position 0 is the same in every prompt, and each of its entries is its own mean.
    """
    return bool((change.abs() <= 1e-4 * entries.value.abs()).all())


def first_token_mean(model: HookedModel, layer: int, seed: int) -> Tensor:
    """What position 0 of the stream holds on average over ordinary first tokens."""
    site, block = ("residual", layer)
    if layer == int(model.cfg.n_layers):
        site, block = "resid_post", layer - 1
    tokens = seeded(seed, "massive", "first").choice(ordinary_tokens(model).numpy(), MEAN_TOKENS)
    return first_token_values(model, torch.from_numpy(tokens), [site], [block])[site, block].mean(0)
