"""Read the components of a run: clean, with logits shifted for the null, and under edits.

The null shifts each prompt's logits along their diagonals: what is a function of relative position
stays, and what prompts have in common at a position is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...core.errors import SinklensError
from ...core.seeds import seeded
from ...engine import Reading, default_memory, finished_or, forwards_bar, read_under
from ...functional.logit_forms import FORMS, DiagonalShift, PairBasis
from ...hooks.intervention import Intervention
from ...models import origin
from ...models.prompts import Prompts
from ...probes import Probe
from ...probes.logits import LogitForms, LogitFormValues, LogitSums
from ...runner.run import Run
from ._components import Components
from ._pairs import KEYS, PairSets

EDIT_FORMS = ("component",)


def diagonal_shift(prompts: Prompts, keys: str, size: int, seed: int) -> DiagonalShift:
    """How far the null moves each prompt's logits; follows from the prompt, not from its place."""
    steps = [
        int(seeded(seed, "diagonals", prompt).integers(1, max(2, size)))
        for prompt in prompts.tokens.tolist()
    ]
    return DiagonalShift(torch.tensor(steps), int(KEYS[keys]))


class Reader:
    """Runs the prompts, clean or under an edit, and reads the components.

    Attributes:
        windows: By layer, how many keys a query sees.
        forwards: Forward passes of all prompts.
    """

    def __init__(self, run: Run[Any], pairs: PairSets) -> None:
        """Prepare the pairs of a run."""
        self._run = run
        length = run.prompts.length
        self.windows = [window or length for window in run.capabilities.visible_keys(length)]
        self._clean = pairs.basis(self.windows, FORMS)
        self._edited = pairs.basis(self.windows, EDIT_FORMS)
        self._batch = run.config.batch_size or _prompts_at_once(run)
        batches = -(-len(run.prompts) // self._batch)
        self.forwards = batches * (1 if batches == 1 else 2)

    def clean(self, shift: DiagonalShift | None = None) -> Components:
        """Without an edit, and for the null with each prompt's logits shifted."""
        self._run.count(self.forwards)
        with forwards_bar(self.forwards, self._run.config.progress) as advance:
            values = self._read(None, self._clean, shift).values
            advance(self.forwards)
        if not bool(torch.isfinite(values.products).all()):
            raise SinklensError(
                f"{origin(self._run.model).name} gives NaN or infinite attention scores; its "
                "weights or its dtype cannot carry this"
            )
        return Components(values)

    def edited(self, interventions: Sequence[Intervention]) -> list[Components]:
        """Under each edit, which has to happen."""
        components = []
        forwards = self.forwards * len(interventions)
        with forwards_bar(forwards, self._run.config.progress) as advance:
            for intervention in interventions:
                make = partial(self._kept, intervention)
                kept = finished_or(self._run.model, intervention, make)
                self._run.count(self.forwards, {intervention.name: int(kept.pop("fired"))})
                components.append(Components(LogitFormValues(**kept), EDIT_FORMS))
                if not bool(torch.isfinite(components[-1].curve).all()):
                    raise SinklensError(
                        f"{intervention.name} gives NaN or infinite attention scores"
                    )
                advance(self.forwards)
        return components

    def _kept(self, intervention: Intervention) -> dict[str, Tensor]:
        """What is kept of an edit on disk."""
        values, fired = self._read(intervention, self._edited)
        return {**values._asdict(), "fired": torch.tensor(fired)}

    def _read(
        self,
        intervention: Intervention | None,
        basis: dict[int, PairBasis],
        shift: DiagonalShift | None = None,
    ) -> Reading:
        """One pass where all prompts fit into a forward, else one for the sums before it."""
        sums, before = None, 0
        if self._batch < len(self._run.prompts):
            sums, before = self._pass(intervention, LogitSums(basis, shift))
        values, fired = self._pass(intervention, LogitForms(basis, sums, shift))
        return Reading(values, before + fired)

    def _pass(self, intervention: Intervention | None, probe: Probe) -> Reading:
        return read_under(
            self._run.model,
            self._run.prompts,
            intervention,
            probe,
            last_layer=self._run.capabilities.n_layers - 1,
            batch_size=self._batch,
        )


def _prompts_at_once(run: Run[Any]) -> int:
    """How many prompts a forward may hold; it follows from shapes and budget alone."""
    config, length = run.model.cfg, run.prompts.length
    width, hidden = int(config.d_model), int(getattr(config, "d_mlp", 0) or 0)
    # A few patterns of one layer, in part in float64, and the activations of a block.
    each = 4 * length * (4 * width + 3 * max(hidden, width) + 12 * int(config.n_heads) * length)
    budget = run.config.memory or default_memory(run.model)
    return max(1, min(len(run.prompts), budget // each))
