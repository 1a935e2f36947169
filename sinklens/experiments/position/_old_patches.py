"""Patch position 0 layer by layer and read loss, KL and the sink.

Each row is one condition at one layer. What is written is in `sinklens.hooks.position0`; with
`other_token` every prompt gets another ordinary token, so that the interval covers the choice of
token. Control at a later position p, one a draw: for `other_token` and `mean_token` the residual at
p from a run with another token at p, for the others the same edit at p. With `places=`, further
positions are patched, each in the way of the control (`zero:residual@5`): a map over layers and
positions, of which `screen=True` runs the largest. Units: nats; sink mass is a share of attention.
An effect at layer l is that of the stream from l on: a patch at an early layer also changes what
later layers would have written at position 0. Each place counts the predictions after it, so that
rows of different places are means over different predictions.

Source: the act is named by 2606.06160; the conditions and controls are sinklens's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ...core.errors import UsageError, unknown_name
from ...core.protocol import HookedModel
from ...core.seeds import seeded
from ...engine import evaluate
from ...hooks.bos import replace_bos_embedding
from ...hooks.intervention import Intervention
from ...hooks.position0 import (
    MEAN_TOKENS,
    PARTS,
    POSITION0_CONDITIONS,
    RESIDUAL_ONLY,
    patch_position0,
)
from ...models import ordinary_tokens
from ...models.prompts import Prompts
from ...probes import PositionValues, ResidualNorms
from ...probes.positions import PartValues, first_token_values
from ...runner.config import ExperimentConfig
from ...runner.old_compare import Comparison

PLACE = "@"


class PatchValues:
    """What the patches write, read once for all layers; makes their comparisons."""

    def __init__(
        self,
        model: HookedModel,
        prompts: Prompts,
        config: ExperimentConfig,
        layers: list[int],
        conditions: list[str],
        positions: list[int],
        places: Sequence[int] = (0,),
    ) -> None:
        """Read what is written.

        Args:
            model: The model.
            prompts: The prompts.
            config: Seed and draws, and what the engine is told.
            layers: The layers that are patched.
            conditions: What is written, with its part (`other_token:key`).
            positions: The control's position in each draw.
            places: The positions of the treatments.
        """
        self._model, self._config = model, config
        parts = sorted({parse_condition(condition)[1] for condition in conditions})
        names = {parse_condition(condition)[0] for condition in conditions}
        self._positions, self._places = positions, [place for place in places if place]
        self.drawn: dict[str, Any] = {"control_positions": self._positions}
        self._other: PartValues = {}
        if "other_token" in names:
            others = _other_tokens(model, prompts.tokens, 0, config.seed, "position0")
            self.drawn["other_tokens"] = others.tolist()
            self._other = first_token_values(model, others, parts, layers)
        self._mean: PartValues = {}
        if "mean_token" in names:
            random = seeded(config.seed, "position0", "mean_token")
            chosen = random.choice(ordinary_tokens(model).numpy(), MEAN_TOKENS)
            self.drawn["mean_tokens"] = chosen.tolist()
            self._mean = {
                key: value.mean(0)
                for key, value in first_token_values(
                    model, torch.from_numpy(chosen), parts, layers
                ).items()
            }
        self._read_clean_run(prompts, parts, layers, names)
        self._read_control_runs(prompts, parts, layers, names)

    def _read_clean_run(
        self, prompts: Prompts, parts: list[str], layers: list[int], names: set[str]
    ) -> None:
        """Norms, and what edited positions put out themselves, from one clean run."""
        places = sorted({0, *self._positions, *self._places})
        outputs = {place: PositionValues(self._model, ["z"], layers, place) for place in places}
        norms = ResidualNorms(self._model)
        needs_outputs = parts != ["residual"]
        probes = ([norms] if "rescaled" in names else []) + (
            list(outputs.values()) if needs_outputs else []
        )
        self.forwards = 0
        if probes:
            self.forwards += evaluate(
                self._model, prompts, [], [], probes=probes, **self._config.for_engine()
            ).forwards
        self._norms = norms.compute().others.mean(0) if "rescaled" in names else None
        self._outputs = (
            {place: probe.compute() for place, probe in outputs.items()} if needs_outputs else {}
        )

    def _read_control_runs(
        self, prompts: Prompts, parts: list[str], layers: list[int], names: set[str]
    ) -> None:
        """What later positions hold in runs with another token there, a run a draw and place."""
        self._control: list[PartValues] = []
        self._there: dict[int, PartValues] = {}
        if not names & {"other_token", "mean_token"}:
            return

        def read(place: int, label: str, drawn: str) -> PartValues:
            tokens = prompts.tokens.clone()
            tokens[:, place] = _other_tokens(
                self._model, prompts.tokens, place, self._config.seed, label
            )
            self.drawn.setdefault(drawn, []).append(tokens[:, place].tolist())
            probe = PositionValues(self._model, parts, layers, place)
            # Causal: nothing after the place can matter, so the prompts end there.
            cut = replace(prompts, tokens=tokens[:, : place + 1], answers=None)
            self.forwards += evaluate(
                self._model, cut, [], [], probes=[probe], **self._config.for_engine()
            ).forwards
            return probe.compute()

        for draw, place in enumerate(self._positions):
            self._control.append(read(place, f"control{draw}", "control_tokens"))
        for place in self._places:
            self._there[place] = read(place, f"place{place}", "place_tokens")

    def comparison(self, with_: str, part: str, layer: int, place: int = 0) -> Comparison:
        """The treatment of one condition at one layer and place; at position 0 with its control."""
        random_draws = max(1, self._config.draws) if with_ == "redirected" else 1
        written = self._written(with_, part, layer)
        if place and with_ in ("other_token", "mean_token"):
            written = self._there[place][part, layer]
        treatment = [
            self._patch(with_, part, layer, place, draw, written) for draw in range(random_draws)
        ]
        if place:
            named = f"{with_}:{part}{PLACE}{place}"
            return Comparison(named, treatment, no_control="")
        control = []
        for draw, place in enumerate(self._positions):
            written = self._written(with_, part, layer)
            if with_ in ("other_token", "mean_token"):
                written = self._control[draw][part, layer]
            control.append(self._patch(with_, part, layer, place, draw, written))
        return Comparison(f"{with_}:{part}", treatment, control)

    def _written(self, with_: str, part: str, layer: int) -> Tensor | None:
        if with_ == "rescaled":
            assert self._norms is not None
            return self._norms[layer]
        written = {"mean_token": self._mean, "other_token": self._other}.get(with_)
        return written[part, layer] if written else None

    def _patch(
        self, with_: str, part: str, layer: int, place: int, draw: int, written: Tensor | None
    ) -> Any:
        own = None if part == "residual" else self._outputs[place]["z", layer]
        return patch_position0(
            self._model,
            layer,
            with_,
            part=part,
            values=written,
            own_output=own,
            position=place,
            seed=self._config.seed,
            draw=draw if with_ == "redirected" else None,
        )


def _other_tokens(
    model: HookedModel, tokens: Int[Tensor, "prompt pos"], place: int, seed: int, label: str
) -> Int[Tensor, " prompt"]:
    """For each prompt an ordinary token that differs from the one it has at a place.

    Seeded by the prompt's own tokens, so that it does not depend on where the prompt stands.
    """
    ordinary = ordinary_tokens(model).numpy()
    chosen = []
    for prompt in tokens.tolist():
        random = seeded(seed, "other_token", label, prompt)
        chosen.append(int(random.choice(ordinary[ordinary != prompt[place]])))
    return torch.tensor(chosen, device=tokens.device)


def parse_condition(condition: str) -> tuple[str, str]:
    """A condition's name and part, as in `other_token:residual`."""
    with_, _, part = condition.partition(":")
    if with_ not in POSITION0_CONDITIONS:
        raise unknown_name("condition", with_, POSITION0_CONDITIONS)
    if part not in PARTS:
        raise unknown_name("part", part, PARTS)
    if part != "residual" and with_ in RESIDUAL_ONLY:
        raise UsageError(f"{with_} is an edit of the residual stream, not of the {part}")
    return with_, part


RANDOM = ("random_token", "gaussian")
DEFAULT_CONDITIONS = ("mean", "zero", "random_token", "gaussian")


def compare_replacement(
    model: HookedModel, condition: str, positions: Sequence[int], config: ExperimentConfig
) -> Comparison:
    """BOS replaced under one condition, and the same edit at a later position in each draw."""

    def replacement(position: int, draw: int) -> Intervention:
        return replace_bos_embedding(
            model, condition, position=position, seed=config.seed, draw=draw
        )

    draws = max(1, config.draws) if condition in RANDOM else 1
    return Comparison(
        condition,
        [replacement(0, draw) for draw in range(draws)],
        [replacement(position, draw) for draw, position in enumerate(positions)],
    )
