"""Which sinks a model has: by layer, head and key position, beside their nulls.

`sink_rate` is the share of heads whose score of key 0 (mean over queries i >= 0 of A_i0) exceeds a
threshold, decided per prompt and then averaged over prompts, layers and heads (2410.10781, and its
published code, which thresholds first): `gu` 0.3, `strict` 0.8. `sink_mass` is the mean over
queries i >= 1 of A_i0. Both lie in [0, 1]. The baseline of every row is uniform attention over the
keys that each layer lets a query see. Bidirectional models have a row for the last position, and
models with learned sinks one for what these take (both are explained in `probes/sinks.py`).

Three further inputs tell what the sink follows: `no_bos` (the same windows without column 0),
`random` (uniform random tokens) and `repeated` (one token repeated). A low score at key 0 can mean
that the mass went elsewhere: `later_sink_share` tells in how many prompts positions 1 <= k <= T/2
score above 0.3; a quarter of the prompts makes a later sink. Its null, `later_sink_null`, is the
score under uniform attention. Scores fall as T grows; compare only at the same T.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...core.errors import UsageError, unknown_name
from ...core.labels import head_label
from ...core.protocol import HookedModel
from ...engine import announce, evaluate
from ...metrics import SINK_THRESHOLDS
from ...models.capabilities import Capabilities, check
from ...models.prompts import Prompts, random_prompts, repeated_prompts
from ...probes import Probe, ResidualNorms, SinkScores, ValueNorms
from ...probes.sinks import SinkScoreValues
from ...results.figures import heatmap
from ...results.result import Array, ExperimentResult, assemble
from ...runner.comparison import beside_null
from ...runner.registry import ExperimentConfig, choose_conditions, experiment
from ...stats.effects import Row, paired_row
from ...stats.nulls import uniform_sink_mass, uniform_sink_scores

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

INPUTS = ("natural", "no_bos", "random", "repeated")
OTHER_PLACES = {"last_position": "The last position gets", "learned_sink": "Learned sinks take"}
LATER_SHARE = 0.25


@dataclass(frozen=True)
class SinkProfileConfig(ExperimentConfig):
    """Settings; `conditions` are the inputs: `natural`, `no_bos`, `random`, `repeated`."""

    def __post_init__(self) -> None:
        """Refuse settings that a description has no use for."""
        super().__post_init__()
        if self.metrics:
            raise UsageError("sink_profile measures sink_rate and sink_mass; it takes no metrics")
        if self.screen:
            raise UsageError("sink_profile runs no interventions, so there is nothing to screen")


def summary(result: ExperimentResult) -> list[str]:
    """How strong the sink is, where, and what happens to it on the control inputs."""
    lines = []
    mass = result.arrays["sink_mass"].values
    strongest = divmod(int(mass.argmax()), mass.shape[1])
    for row in result.effects:
        if row.metric == "sink_mass" and row.condition == "position0":
            lines.append(
                f"Position 0 gets {row.value:.1%} of the attention of later queries, "
                f"{beside_null(row)} uniform attention ({row.baseline:.1%})."
            )
        if row.condition in OTHER_PLACES:
            lines.append(
                f"{OTHER_PLACES[row.condition]} {row.value:.1%} of the attention, "
                f"{beside_null(row)} uniform attention ({row.baseline:.1%})."
            )
        if row.metric == "sink_rate" and row.condition in SINK_THRESHOLDS:
            lines.append(
                f"{row.value:.1%} of heads have a sink score above "
                f"{SINK_THRESHOLDS[row.condition]} ({row.condition}); uniform attention scores "
                f"{result.settings['uniform_score']:.3f}."
            )
    lines.append(
        f"The strongest head is {head_label(strongest)} with a sink mass of "
        f"{float(mass.max()):.2f}."
    )
    for name in ("no_bos", "random", "repeated"):
        rows = [e for e in result.effects if e.condition == f"position0:{name}"]
        if rows:
            lines.append(
                f"On {name} input position 0 gets {rows[0].value:.1%}, "
                f"{beside_null(rows[0])} uniform attention ({rows[0].baseline:.1%})."
            )
    later = int((result.arrays["later_sink_share"].values >= LATER_SHARE).any(-1).sum())
    lines.append(
        f"{later} of {mass.numel()} heads have a later sink (a key in 1 .. T/2 whose "
        f"score exceeds 0.3 in a quarter of the prompts; uniform attention scores at most "
        f"{float(result.arrays['later_sink_null'].values[1]):.3f} there)."
    )
    norm = result.arrays["position0_norm"].values
    others = result.arrays["other_norm"].values
    peak = int((norm / others).argmax())
    lines.append(
        f"The residual norm at position 0 peaks at {float(norm[peak]):.3g}, "
        f"{float(norm[peak] / others[peak]):.3g} times that of the other positions, "
        f"{'entering layer ' + str(peak) if peak < len(mass) else 'leaving the last layer'}."
    )
    return lines


def plot(result: ExperimentResult) -> Figure:
    """Sink mass by layer and head."""
    name = result.provenance["model"]["name"]
    return heatmap(result.arrays["sink_mass"], f"Attention to position 0, {name}", "sink mass")


@experiment(
    paper="2410.10781",
    question="Which sinks does the model have, and are they stronger than chance?",
    summary=summary,
    plot=plot,
)
def sink_profile(
    model: HookedModel, prompts: Prompts, config: SinkProfileConfig
) -> ExperimentResult:
    """Sink scores and sink mass on natural and control inputs, beside uniform attention.

    Raises:
        UsageError: An input is unknown, or the prompts are too short.
    """
    capabilities = check(model)
    if prompts.length < 2:
        raise UsageError("sink_profile needs prompts of at least two tokens")

    def refusal(name: str) -> str | None:
        if name not in INPUTS:
            raise unknown_name("condition", name, INPUTS)
        if name == "no_bos" and not prompts.bos:
            return "the prompts have no BOS to take away"
        if name == "no_bos" and prompts.length < 3:
            return "one token is left without BOS"
        return None

    inputs, left_out = choose_conditions(config, INPUTS, refusal)
    if "natural" not in inputs:  # everything else is read beside it
        inputs = ["natural", *inputs]
    announce("sink_profile", len(inputs), prompts, config.progress)
    rows: list[Row] = []
    arrays: dict[str, Array] = {}
    forwards, shortcuts = 0, dict[str, bool]()
    for name in inputs:
        tokens = _input(model, prompts, name, config.seed)
        sinks = SinkScores(model)
        norms, values = ResidualNorms(model), ValueNorms(model)
        probes: list[Probe] = [sinks, norms, values] if name == "natural" else [sinks]
        found = evaluate(model, tokens, [], [], probes=probes, **config.for_engine())
        forwards, shortcuts = forwards + found.forwards, shortcuts or found.shortcuts
        scores = sinks.compute()
        suffix = "" if name == "natural" else f":{name}"
        rows += _rows(scores, capabilities, tokens.length, suffix)
        if name == "natural":
            arrays = _arrays(scores, norms, values, capabilities.causal)
        else:
            arrays[f"sink_mass_{name}"] = Array(scores.mass.mean(0), ("layer", "head"))
    null = float(uniform_sink_scores(prompts.length, causal=capabilities.causal)[0])
    settings = {**config.recorded(), "left_out": left_out, "notes": [], "uniform_score": null}
    if capabilities.learned_sinks:
        settings["notes"] = ["This model has learned sinks: attention rows sum to less than 1."]
    return assemble(
        "sink_profile",
        model,
        prompts,
        rows,
        arrays=arrays,
        settings=settings,
        forwards=forwards,
        shortcuts=shortcuts,
    )


def _input(model: HookedModel, prompts: Prompts, name: str, seed: int) -> Prompts:
    """One of the four inputs, of the same size."""
    size = {"n": len(prompts), "length": prompts.length}
    if name == "no_bos":
        return prompts.without_first()
    if name == "random":
        return random_prompts(model, **size, bos=prompts.bos, seed=seed)
    if name == "repeated":
        return repeated_prompts(model, **size, bos=prompts.bos, seed=seed)
    return replace(prompts, answers=None)


def _groups(capabilities: Capabilities, length: int) -> Iterator[tuple[str, list[int]]]:
    """All layers, and where windows are shorter than the prompts, each kind apart."""
    yield "", list(range(capabilities.n_layers))
    short = [
        layer
        for layer, window in enumerate(capabilities.windows)
        if window is not None and window < length
    ]
    full = [layer for layer in range(capabilities.n_layers) if layer not in short]
    if short:
        if full:
            yield ":full", full
        yield ":window", short


def _rows(
    values: SinkScoreValues, capabilities: Capabilities, length: int, suffix: str
) -> list[Row]:
    """The model-level rows of one input."""
    windows = [None if w is None or w >= length else w for w in capabilities.windows]
    null_scores = np.array(
        [uniform_sink_scores(length, window=w, causal=capabilities.causal)[0] for w in windows]
    )
    null_mass = np.array(
        [uniform_sink_mass(length, window=w, causal=capabilities.causal) for w in windows]
    )
    score = values.scores[..., 0]
    rows = []
    for part, layers in _groups(capabilities, length):
        for preset, threshold in SINK_THRESHOLDS.items():
            rate = (score[:, layers] > threshold).double().mean((1, 2)).numpy()
            rows.append(
                _row(
                    "sink_rate",
                    f"{preset}{suffix}{part}",
                    rate,
                    float((null_scores[layers] > threshold).mean()),
                    "share of heads",
                )
            )
        mass = values.mass[:, layers].double().mean((1, 2)).numpy()
        null = float(null_mass[layers].mean())
        rows.append(_mass_row(f"position0{suffix}{part}", mass, null))
    if not capabilities.causal:
        last = values.last.double().mean((1, 2)).numpy()
        rows.append(_mass_row(f"last_position{suffix}", last, 1 / length))
    if capabilities.learned_sinks:
        unplaced = values.unplaced.double().mean((1, 2)).numpy()
        # Uniform over the keys and a learned sink with the logit that they have.
        keys = [
            min(query + 1, window or length) for window in windows for query in range(1, length)
        ]
        null = float(np.mean(1 / (1 + np.array(keys))))
        rows.append(_mass_row(f"learned_sink{suffix}", unplaced, null))
    return rows


def _mass_row(condition: str, values: np.ndarray, null: float) -> Row:
    """A share of attention beside that of uniform attention."""
    return _row("sink_mass", condition, values, null, "share of attention")


def _row(metric: str, condition: str, values: np.ndarray, null: float, unit: str) -> Row:
    """A measurement beside its analytic null."""
    return paired_row(
        metric, condition, "measurement", values, np.full_like(values, null), unit=unit
    )


def _arrays(
    scores: SinkScoreValues, norms: ResidualNorms, values: ValueNorms, causal: bool
) -> dict[str, Array]:
    """What a figure or a closer look needs, averaged over prompts."""
    length = scores.scores.shape[-1]
    later = (scores.scores > SINK_THRESHOLDS["gu"]).float().mean(0)
    keys = torch.arange(length)
    later[..., (keys == 0) | (keys > length // 2)] = 0
    residual, value = norms.compute(), values.compute()
    null = torch.from_numpy(uniform_sink_scores(length, causal=causal))
    rate = (scores.scores[..., 0] > SINK_THRESHOLDS["gu"]).float().mean(0)
    return {
        "sink_mass": Array(scores.mass.mean(0), ("layer", "head")),
        "sink_rate": Array(rate, ("layer", "head")),
        "sink_score": Array(scores.scores.mean(0), ("layer", "head", "key")),
        "later_sink_null": Array(null, ("key",)),
        "later_sink_share": Array(later, ("layer", "head", "key")),
        "position0_norm": Array(residual.position0.mean(0), ("layer_input",)),
        "other_norm": Array(residual.others.mean(0), ("layer_input",)),
        "position0_value_norm": Array(value.position0.mean(0), ("layer", "key_value_head")),
        "other_value_norm": Array(value.others.mean(0), ("layer", "key_value_head")),
    }
