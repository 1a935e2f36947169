"""Position 0 patched at a layer, with a later position patched in the same way as its control.

With `other_token` every prompt gets a different ordinary token, so that the interval covers the
choice of token. The control at a later position p, one per draw, writes for `other_token` and
`mean_token` the value of p in a run with another token there, otherwise the same intervention at p.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..core.errors import UsageError, unknown_name
from ..core.protocol import HookedModel
from ..core.seeds import seeded
from ..hooks.intervention import Intervention
from ..hooks.position0 import (
    MEAN_TOKENS,
    PARTS,
    POSITION0_CONDITIONS,
    RESIDUAL_ONLY,
    patch_position0,
)
from ..models import ordinary_tokens
from ..models.prompts import Prompts
from ..probes import PositionValues, ResidualNorms
from ..probes.positions import PartValues, first_token_values
from ..runner.compare import Comparison, Control
from ..runner.run import Run

LATER = "later_position"
Written = Mapping[tuple[str, int], Tensor]
"""By part and layer what a patch writes: a vector for all prompts or each, or a norm."""
AS_LONG = (
    "{} writes what is there entering layer {}: within rounding error, position 0 has the mean "
    "norm of later positions in every prompt."
)
PLACE = "@"
FROM_TOKENS = ("other_token", "mean_token")  # the values come from runs with other tokens
CONDITIONS = tuple(
    f"{name}:{part}"
    for part in PARTS
    for name in POSITION0_CONDITIONS
    if part == "residual" or name not in RESIDUAL_ONLY
)


def parse_condition(condition: str) -> tuple[str, str]:
    """The name and part of a condition such as `other_token:residual`.

    Raises:
        UsageError: The condition or part does not exist, or they cannot be combined.
    """
    with_, _, part = condition.partition(":")
    if with_ not in POSITION0_CONDITIONS:
        raise unknown_name("condition", with_, POSITION0_CONDITIONS)
    if part not in PARTS:
        raise unknown_name("part", part, PARTS)
    if part != "residual" and with_ in RESIDUAL_ONLY:
        raise UsageError(f"{with_} applies to the residual stream, not to the {part}")
    return with_, part


class Position0Patches:
    """The values of the patches, read once for all layers; makes their comparisons."""

    def __init__(
        self,
        run: Run[Any],
        conditions: Sequence[str],
        layers: Sequence[int],
        positions: Sequence[int],
        places: Sequence[int] = (0,),
    ) -> None:
        """Read the values that are written.

        Args:
            run: The run, which records the draws.
            conditions: Conditions with their parts (`other_token:key`).
            layers: The layers that are patched.
            positions: The control's position in each draw.
            places: The positions of the treatments.
        """
        self._run, self._layers = run, list(layers)
        self._positions, self._places = positions, [place for place in places if place]
        self._names = {parse_condition(condition)[0] for condition in conditions}
        self._parts = sorted({parse_condition(condition)[1] for condition in conditions})
        run.drawn(control_positions=list(positions))
        self._written: dict[str, Written] = self._read_first_tokens()
        self._as_long: list[int] = []  # layers where position 0 has the norm of the others already
        self._read_clean_run()
        self._read_other_tokens()

    def comparison(self, condition: str, layer: int, place: int = 0) -> Comparison:
        """One condition at one layer and place; at position 0 with its control."""
        with_, part = parse_condition(condition)
        draws = max(1, self._run.config.draws) if with_ == "redirected" else 1
        written = self._there[place] if place and with_ in FROM_TOKENS else self._written.get(with_)
        treatment = [self._patch(with_, part, layer, place, draw, written) for draw in range(draws)]
        if with_ == "rescaled" and layer in self._as_long and not place:
            treatment = [replace(one, identity=True) for one in treatment]
            layers = ", ".join(map(str, self._as_long))
            self._run.footnote(condition, AS_LONG.format(condition, layers))
        if place:
            return Comparison(f"{condition}{PLACE}{place}", treatment, no_control="")
        control = []
        for draw, later in enumerate(self._positions):
            written = self._control[draw] if with_ in FROM_TOKENS else self._written.get(with_)
            control.append(self._patch(with_, part, layer, later, draw, written))
        return Comparison(condition, treatment, (Control(LATER, control),))

    def _read_first_tokens(self) -> dict[str, Written]:
        """The values of position 0 with another token, and averaged over ordinary tokens."""
        run, written = self._run, dict[str, Written]()
        if "other_token" in self._names:
            others = other_tokens(run.model, run.prompts, 0, run.config.seed, "position0")
            run.drawn(other_tokens=others.tolist())
            written["other_token"] = self._first_tokens(others)
        if "mean_token" in self._names:
            random = seeded(run.config.seed, "position0", "mean_token")
            chosen = random.choice(ordinary_tokens(run.model).numpy(), MEAN_TOKENS)
            run.drawn(mean_tokens=chosen.tolist())
            means = self._first_tokens(torch.from_numpy(chosen))
            written["mean_token"] = {key: value.mean(0) for key, value in means.items()}
        return written

    def _first_tokens(self, tokens: Int[Tensor, " token"]) -> PartValues:
        return first_token_values(self._run.model, tokens, self._parts, self._layers)

    def _read_clean_run(self) -> None:
        """Norms, and the patched positions' own outputs, from one clean run."""
        model = self._run.model
        norms = ResidualNorms(model)
        outputs = {}
        if self._parts != ["residual"]:
            places = sorted({0, *self._positions, *self._places})
            outputs = {at: PositionValues(model, ["z"], self._layers, at) for at in places}
        rescaled = "rescaled" in self._names
        if outputs or rescaled:
            self._run.read(*([norms] if rescaled else []), *outputs.values())
        self._outputs = {at: probe.compute() for at, probe in outputs.items()}
        if rescaled:
            own, mean = norms.compute().position0, norms.compute().others.mean(0)
            self._written["rescaled"] = {("residual", at): mean[at] for at in self._layers}
            rounding = torch.finfo(model.cfg.dtype).eps * mean
            same = ((own - mean).abs() <= rounding).all(0)
            self._as_long = [layer for layer in self._layers if bool(same[layer])]

    def _read_other_tokens(self) -> None:
        """Values of later positions with another token there, one run per draw and place."""
        self._control: list[PartValues] = []
        self._there: dict[int, PartValues] = {}
        if self._names & set(FROM_TOKENS):
            drawn: dict[str, list[list[int]]] = {}
            for draw, at in enumerate(self._positions):
                self._control.append(
                    self._read_there(at, f"control{draw}", "control_tokens", drawn)
                )
            for at in self._places:
                self._there[at] = self._read_there(at, f"place{at}", "place_tokens", drawn)
            self._run.drawn(**drawn)

    def _read_there(
        self, place: int, label: str, name: str, drawn: dict[str, list[list[int]]]
    ) -> PartValues:
        """The value of a position in a run with another token there."""
        run, prompts = self._run, self._run.prompts
        # Causal: nothing after the place can matter, so the prompts end there.
        tokens = prompts.tokens[:, : place + 1].clone()
        tokens[:, place] = other_tokens(run.model, prompts, place, run.config.seed, label)
        drawn.setdefault(name, []).append(tokens[:, place].tolist())
        probe = PositionValues(run.model, self._parts, self._layers, place)
        (values,) = run.read(probe, prompts=replace(prompts, tokens=tokens, answers=None))
        found: PartValues = values
        return found

    def _patch(
        self, with_: str, part: str, layer: int, place: int, draw: int, written: Written | None
    ) -> Intervention:
        return patch_position0(
            self._run.model,
            layer,
            with_,
            part=part,
            values=None if written is None else written[part, layer],
            own_output=None if part == "residual" else self._outputs[place]["z", layer],
            position=place,
            seed=self._run.config.seed,
            draw=draw if with_ == "redirected" else None,
        )


def other_tokens(
    model: HookedModel, prompts: Prompts, place: int, seed: int, label: str
) -> Int[Tensor, " prompt"]:
    """For each prompt an ordinary token that differs from the one it has at a place.

    Seeded by the prompt's own tokens, so that it does not depend on the order of the prompts.
    """
    ordinary = ordinary_tokens(model).numpy()
    chosen = []
    for prompt in prompts.rows():
        random = seeded(seed, "other_token", label, prompt)
        chosen.append(int(random.choice(ordinary[ordinary != prompt[place]])))
    return torch.tensor(chosen, device=prompts.tokens.device)
