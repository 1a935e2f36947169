"""What a finished result says and shows beside its rows: values by prompt, sentences, figure.

A sentence or a figure that fails, when all the work is done, is left out with a note.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core.errors import in_one_line
from ..results.effect_sentences import every_row
from ..results.figures import Effects, figure_of, to_json
from ..results.result import ExperimentResult
from ..results.wording import at_most, say
from ..stats.effects import OVER_PROMPTS, Row
from .declaration import Experiment

NAMED_HOOKS = 5


def described(result: ExperimentResult, experiment: Experiment) -> ExperimentResult:
    """The result with its sentences and its figure.

    Args:
        result: With its rows and findings.
        experiment: Declares them.
    """
    failed: list[str] = []
    lines = at_most(list(_sentences(result, experiment, failed)))
    figure = to_json(Effects())
    try:
        figure = to_json(figure_of(result, experiment.figure))
    except Exception as error:
        failed.append(f"The figure is the default one, since its own failed: {in_one_line(error)}.")
    notes = [*result.settings["notes"], *failed]
    return replace(
        result,
        summary=lines or [_nothing(result)],
        figure=figure,
        settings={**result.settings, "notes": notes},
    )


def _sentences(
    result: ExperimentResult, experiment: Experiment, failed: list[str]
) -> Iterator[str]:
    """What each part of `says` gives, or why it failed; without `says` a sentence of every row."""
    for part in experiment.says or (every_row,):
        try:
            yield from say(result, [part])
        except Exception as error:
            failed.append(f"{_named(part)} is not said, since it failed: {in_one_line(error)}.")


def _named(part: Any) -> str:
    """A template, or the name of a function."""
    return f'"{part}"' if isinstance(part, str) else getattr(part, "__name__", type(part).__name__)


def _nothing(result: ExperimentResult) -> str:
    """The summary of a run to whose rows no sentence applies."""
    left_out = result.settings["left_out"].items()
    reasons = "; ".join(f"{name}, since {reason}" for name, reason in left_out)
    return f"No summary sentence applies; see the table{reasons and f'; left out: {reasons}'}."


def per_prompt(rows: Sequence[Row], prompts: int) -> dict[str, Float[Tensor, "row prompt"]]:
    """Values and baselines of all rows; NaN where no prompts were resampled.

    Args:
        rows: The rows.
        prompts: The number of prompts.
    """
    both = {"value": "values", "baseline": "baselines"}
    numbers = {side: np.full((len(rows), prompts), np.nan) for side in both}
    for line, row in enumerate(rows):
        if row.effect.resampled in OVER_PROMPTS:
            for side, field in both.items():
                numbers[side][line] = getattr(row, field)
    return {side: torch.from_numpy(values) for side, values in numbers.items()}


def own_hooks_note(names: Sequence[str]) -> str:
    """That the model carried hooks of its user's."""
    more = len(names) - NAMED_HOOKS
    named = ", ".join(names[:NAMED_HOOKS]) + (f" and {more} more" if more > 0 else "")
    return f"The model carried hooks of its user's, under which everything was measured: {named}."
