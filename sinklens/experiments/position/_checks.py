"""Checks that a position measure has to pass, made inside every run.

- log A = s - log Z: else the scores that a hook shows are not what the softmax gets;
- logits that depend on relative position only have a share of 0 (with the fitted mean logits);
- a constant added to all position ids changes logits that depend on absolute position, and others
  only within rounding error (rotary angles are rounded otherwise);
- position 0 of a causal model does not change with later tokens (`_fingerprint`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.errors import SinklensError
from ...core.protocol import HookedModel
from ...functional.logit_forms import FORMS
from ...models.capabilities import hook_name
from ...models.prompts import Prompts
from ...probes.log_split import LogSplitValues
from ...probes.logits import LogitForms
from ...results.wording import written
from ...runner.run import Run
from ...stats.effects import ROUNDING
from ._components import Components
from ._pairs import PairSets

SPLIT_ERROR, HALF_PRECISION_SPLIT_ERROR = 1e-3, 0.05  # nats
SHIFT = 5
SHIFT_ERROR = 1e-2  # nats
HALF_PRECISION_STEPS = 8  # a logit is a sum of many rounded products


def require_split(run: Run[Any], split: LogSplitValues) -> float:
    """The largest error of log A = s - log Z, nats.

    Raises:
        SinklensError: It is more than rounding.
    """
    error = float(split.error.max())
    whole = run.model.cfg.dtype in (torch.float32, torch.float64)
    if not error <= (SPLIT_ERROR if whole else HALF_PRECISION_SPLIT_ERROR):
        raise SinklensError(
            f"on {run.capabilities.architecture} log A differs from score - log Z by {error:.2g} "
            "nats: the scores that hook_attn_scores shows are not what the softmax gets. "
            "sink_profile and bos_replacement read the pattern alone"
        )
    return error


def shifted_positions(
    model: HookedModel, prompts: Prompts, windows: Sequence[int]
) -> dict[str, Any]:
    """The largest change of any logit when a constant is added to all position ids.

    `rounding` is that of the largest logit. `change` is None, with the reason in `why`, where the
    model takes no position ids.
    """
    room = int(getattr(model.cfg, "n_ctx", 0) or 0) - prompts.length
    step = min(SHIFT, room) if room > 0 else SHIFT
    tokens = prompts.tokens[:2]
    seen: list[dict[str, Tensor]] = [{}, {}]
    try:
        for number in (0, 1):
            hooks = [
                (hook_name("scores", layer), partial(_keep_scores, kept=seen[number]))
                for layer in range(len(windows))
            ]
            ids = torch.arange(prompts.length, device=tokens.device) + number * step
            with torch.no_grad():
                model.run_with_hooks(
                    tokens, fwd_hooks=hooks, position_ids=ids.expand(len(tokens), -1)
                )
    except Exception as error:  # whatever a family raises for an argument that it does not know
        return {"change": None, "step": step, "why": str(error).splitlines()[0][:200]}
    change = largest = 0.0
    for window, before, after in zip(windows, seen[0].values(), seen[1].values(), strict=True):
        visible = torch.ones_like(before[0, 0], dtype=torch.bool).tril().triu(1 - window)
        change = max(change, float((after - before)[..., visible].abs().max()))
        largest = max(largest, float(before[..., visible].abs().max()))
    rounding = max(SHIFT_ERROR, HALF_PRECISION_STEPS * torch.finfo(model.cfg.dtype).eps * largest)
    return {"change": change, "step": step, "rounding": rounding}


def _keep_scores(scores: Tensor, hook: Any, *, kept: dict[str, Tensor]) -> None:
    """Keep the scores of a layer."""
    kept[hook.name] = scores.float()


def toeplitz_share(pairs: PairSets, offsets: Float[Tensor, "layer head offset"]) -> float:
    """The largest residual share that the measure finds in logits of the offset alone.

    Args:
        pairs: The pair sets of the run.
        offsets: The fitted mean logit at every offset.
    """
    layers, size = len(offsets), offsets.shape[-1]
    probe = LogitForms(pairs.basis([size] * layers, FORMS))
    query = torch.arange(size)
    distance = (query[:, None] - query).clamp_min(0)
    for layer, (name, read) in enumerate(probe.fwd_hooks):
        assert name == hook_name("scores", layer)
        read(offsets[layer][:, distance].expand(3, -1, -1, -1), hook=None)
    components = Components(probe.compute())
    numbers = range(components.by_head["component"].shape[-1])
    return max(float(components.shares(number)[0].max()) for number in numbers)


def in_words(checks: Mapping[str, Any]) -> str:
    """What the checks of a run gave."""
    shifted = checks["shifted_positions"]
    if shifted["change"] is None:
        shift = f"position ids could not be shifted ({shifted['why']})"
    else:
        verdict = "position ids enter the logits by themselves"
        if shifted["change"] < shifted["rounding"]:
            verdict = "within rounding error"
        if shifted["change"] < SHIFT_ERROR:
            verdict = (
                "position ids enter the logits only through differences (content may still carry "
                "position)"
            )
        shift = (
            f"adding {shifted['step']} to all position ids changes logits by at most "
            f"{max(shifted['change'], ROUNDING):.1g} nats: {verdict}"
        )
    later = ""
    if checks["position0_change"] is not None:
        later = (
            "; changing later tokens changes the residual stream at position 0 by "
            f"{written(checks['position0_change'], '.1g')} of its norm"
        )
    return (
        f"Checks: log A = s - log Z holds to {max(checks['split_error'], ROUNDING):.1g} nats; "
        "logits that depend on relative position only have a share of "
        f"{written(checks['toeplitz_share'], '.1g')}; {shift}{later}."
    )
