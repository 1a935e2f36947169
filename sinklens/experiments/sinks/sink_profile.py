"""Which sinks a model has: by layer, head and key position, beside their nulls.

`sink_rate` is the share of heads whose score of key 0 (mean over queries i >= 0 of A_i0) exceeds a
threshold, decided per prompt and then averaged over prompts, layers and heads (Gu et al. 2025,
2410.10781, and its published code, which thresholds first): `gu` 0.3, `strict` 0.8. `sink_mass` is
the mean over queries i >= 1 of A_i0. Both lie in [0, 1]. The baseline of every row is uniform
attention over the keys that each layer lets a query see. Bidirectional models have a row for the
last position, and models with learned sinks one for what these take (both are explained in
`probes/sinks.py`).

Three further inputs tell what the sink follows: `no_bos` (the same windows without column 0),
`random` (uniform random tokens) and `repeated` (one token repeated). A low score at key 0 can mean
that the mass went elsewhere: `later_sink_share` tells in how many prompts positions 1 <= k <= T/2
score above 0.3; a quarter of the prompts makes a later sink. A sink that is bound to a token moves
with it: `some_later_sink_share` tells in how many prompts a head has one at whichever of these
positions, and the findings which tokens hold them. The null, `later_sink_null`, is the score under
uniform attention. Scores fall as T grows; compare only at the same T.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...core.labels import head_label
from ...metrics import SINK_THRESHOLDS
from ...models.capabilities import Capabilities
from ...models.prompts import Prompts, random_prompts, repeated_prompts, token_text
from ...probes import ResidualNorms, SinkScores, ValueNorms
from ...probes.sinks import SinkScoreValues
from ...results.estimates import Sample, proportion
from ...results.figures import Forest, Heatmap, Stack
from ...results.record import Record
from ...runner.config import ExperimentConfig
from ...runner.needs import WITH_ATTENTION, at_least_tokens
from ...runner.registry import experiment
from ...runner.run import Run
from ...stats.nulls import uniform_sink_mass, uniform_sink_scores

INPUTS = ("natural", "no_bos", "random", "repeated")
LATER_SHARE = 0.25
STANDS_OUT = 1.1
"""Times the other positions' norm, below which there is no peak to name."""
MOST_TOKENS = 5  # that are named as holders of later sinks


@dataclass(frozen=True)
class SinkProfileConfig(ExperimentConfig):
    """Settings; `conditions` are the inputs: `natural`, `no_bos`, `random`, `repeated`."""


def strongest_head(result: Record) -> Iterator[str]:
    """The head with the largest sink mass."""
    by_head = result.arrays["sink_mass"]
    mass = by_head.values
    strongest = head_label(by_head.head(int(mass.argmax())))
    uniform = result.find(metric="sink_mass", condition="position0", against=None).baseline
    largest = f"{float(mass.max()):.2f}"
    if float(mass.max()) > uniform:
        yield f"The strongest head is {strongest} with a sink mass of {largest}."
    else:
        yield (
            f"No head gives position 0 more than uniform attention does ({uniform:.2f}); the "
            f"largest sink mass is {largest} ({strongest})."
        )


def later_sinks(result: Record) -> Iterator[str]:
    """How many heads have a sink at a later key, the same one or whichever, and at which tokens."""
    same = int((result.arrays["later_sink_share"].values >= LATER_SHARE).any(-1).sum())
    some = int((result.arrays["some_later_sink_share"].values >= LATER_SHARE).sum())
    found, prompts = result.findings["later_sinks"], result.effects[0].n_prompts
    least = math.ceil(LATER_SHARE * prompts)
    tokens = "".join(
        f"; of {found['keys']} such keys over heads and prompts {one['keys']} hold "
        f"{one['token']!r} ({one['first']} the first in its prompt), at positions "
        f"{one['positions'][0]} to {one['positions'][-1]}"
        for one in found["tokens"][:1]
    )
    yield (
        f"Later sinks (a key in 1 .. T/2 whose score exceeds 0.3 in at least {least} of {prompts} "
        f"prompts; uniform attention scores at most "
        f"{float(result.arrays['later_sink_null'].values[1]):.3f} there): "
        f"{same} of {result.arrays['sink_mass'].values.numel()} heads have one that is at the same "
        f"key in that many prompts, {some} one at whichever key{tokens}."
    )


def norm_ratio(result: Record) -> Iterator[str]:
    """Where the norm at position 0 is largest, and where it stands out most."""
    norm, others = (result.arrays[name].values for name in ("position0_norm", "other_norm"))
    ratio = norm / others
    largest, peak = int(norm.argmax()), int(ratio.argmax())
    if float(ratio[peak]) < STANDS_OUT:
        yield (
            "The residual norm at position 0 does not stand out: it is at most "
            f"{float(ratio[peak]):.3g} times that of the other positions "
            f"({_entering(peak, len(norm))})."
        )
        return
    yield (
        f"The residual norm at position 0 is largest {_entering(largest, len(norm))} "
        f"({float(norm[largest]):.3g}); relative to the other positions it is largest "
        f"{_entering(peak, len(norm))} ({float(ratio[peak]):.3g} times theirs, at a norm of "
        f"{float(norm[peak]):.3g})."
    )


def _entering(layer: int, inputs: int) -> str:
    return f"entering layer {layer}" if layer < inputs - 1 else "leaving the last layer"


NORMS = {"residual": ResidualNorms, "value": ValueNorms}
MEASURES = {
    "sink_rate": proportion("share of heads", "uniform attention", ".1%"),
    "sink_mass": proportion("share of attention", "uniform attention", ".1%"),
}
SAYS = (
    "Position 0 gets {sink_mass/position0|value} from later queries, "
    "{sink_mass/position0|verdict}.",
    "The last position gets {sink_mass/last_position}.",
    "Learned sinks take {sink_mass/learned_sink}.",
    "{sink_rate/gu|value} have a sink score above 0.3 (gu), {sink_rate/strict|value} above 0.8 "
    "(strict); uniform attention scores {uniform_score:.3f}.",
    strongest_head,
    "On no_bos input position 0 gets {sink_mass/position0:no_bos}.",
    "On random input position 0 gets {sink_mass/position0:random}.",
    "On repeated input position 0 gets {sink_mass/position0:repeated}.",
    later_sinks,
    norm_ratio,
)


@experiment(
    paper="Gu et al. 2025 (2410.10781)",
    question="Which sinks does the model have, and are they stronger than chance?",
    needs=(
        WITH_ATTENTION,
        at_least_tokens(2),
    ),
    conditions=INPUTS,
    measures=MEASURES,
    says=SAYS,
    figure=Stack(
        (
            Heatmap("sink_mass", "By layer and head", "sink mass"),
            Forest(("sink_mass",)),
        ),
        "Attention to position 0, beside uniform attention",
    ),
    draws_controls=False,
    smallest={},
)
def sink_profile(run: Run[SinkProfileConfig]) -> None:
    """Sink scores and sink mass on natural and control inputs, beside uniform attention."""
    run.refuse(_refusals(run))
    # Everything else is read beside natural text.
    inputs = list(dict.fromkeys(["natural", *run.conditions]))
    run.announce(sum(run.batches(_input(run, name)) for name in inputs))
    for name in inputs:
        prompts = _input(run, name)
        sinks = SinkScores(run.model)
        if name == "natural":
            norms = {site: probe(run.model) for site, probe in NORMS.items()}
            for site in NORMS:
                if lacking := run.capabilities.lacking(site):
                    run.note(f"Norms of {site} are left out: {lacking}.")
                    del norms[site]
            run.read(sinks, *norms.values(), prompts=prompts)
            _keep_arrays(run, sinks.compute(), norms)
        else:
            run.read(sinks, prompts=prompts)
            run.keep(f"sink_mass_{name}", sinks.compute().mass.mean(0), "layer head")
        suffix = "" if name == "natural" else f":{name}"
        _add_rows(run, sinks.compute(), prompts, suffix)
    scores = [float(_uniform_scores(run, n)[0]) for n in run.prompts.lengths.tolist()]
    run.facts(uniform_score=statistics.fmean(scores))
    if run.capabilities.learned_sinks:
        run.note(
            "This model has learned sinks: attention rows sum to less than 1, and uniform "
            "attention gives the sink as much as a key."
        )


def _refusals(run: Run[SinkProfileConfig]) -> dict[str, str]:
    """Why there is no input without BOS, where there is none."""
    if not run.prompts.bos:
        return {"no_bos": "the prompts have no BOS to take away"}
    if run.prompts.length < 3:
        return {"no_bos": "one token is left without BOS"}
    return {}


def _input(run: Run[SinkProfileConfig], name: str) -> Prompts:
    """One of the four inputs, of the same size."""
    prompts, seed = run.prompts, run.config.seed
    if name == "no_bos":
        return prompts.without_first()
    if name == "natural":
        return replace(prompts, answers=None)
    make = {"random": random_prompts, "repeated": repeated_prompts}[name]
    made = make(run.model, n=len(prompts), length=prompts.longest, bos=prompts.bos, seed=seed)
    return made.as_long_as(prompts)


def _add_rows(
    run: Run[SinkProfileConfig], values: SinkScoreValues, prompts: Prompts, suffix: str
) -> None:
    """The model-level rows of one input, each prompt beside the null of its length."""
    capabilities, causal = run.capabilities, run.capabilities.causal
    lengths, add = prompts.lengths.tolist(), partial(run.add, prompts=prompts)
    nulls = {length: _uniform(capabilities, length) for length in set(lengths)}
    scores, masses = np.moveaxis(np.array([nulls[length] for length in lengths]), 1, 0)
    for part, layers in capabilities.layer_groups(max(lengths)):
        score = values.scores[:, layers, :, 0]
        null = scores[:, layers]
        for preset, threshold in SINK_THRESHOLDS.items():
            rate = Sample((score > threshold).double().mean((1, 2)), (null > threshold).mean(1))
            add("sink_rate", f"{preset}{suffix}{part}", rate)
        mass = values.mass[:, layers].double().mean((1, 2))
        uniform = masses[:, layers].mean(1)
        add("sink_mass", f"position0{suffix}{part}", Sample(mass, uniform))
    if not causal:
        last = values.last.double().mean((1, 2))
        add("sink_mass", f"last_position{suffix}", Sample(last, 1 / np.array(lengths)))
    if capabilities.learned_sinks:
        shares = {length: _learned_share(capabilities, length) for length in set(lengths)}
        null_sink = np.array([shares[length] for length in lengths])
        taken = values.unplaced.double().mean((1, 2))
        add("sink_mass", f"learned_sink{suffix}", Sample(taken, null_sink))


def _uniform_scores(run: Run[SinkProfileConfig], length: int) -> Float[np.ndarray, " key"]:
    """The sink score of every key under uniform attention without windows."""
    capabilities = run.capabilities
    return uniform_sink_scores(
        length, causal=capabilities.causal, learned_sink=capabilities.learned_sinks
    )


def _uniform(capabilities: Capabilities, length: int) -> np.ndarray:
    """Of uniform attention, the sink score and the sink mass of key 0, `[2, layer]`."""
    windows = capabilities.visible_keys(length)
    alike = {"causal": capabilities.causal, "learned_sink": capabilities.learned_sinks}
    scores = [uniform_sink_scores(length, window=w, **alike)[0] for w in windows]
    masses = [uniform_sink_mass(length, window=w, **alike) for w in windows]
    return np.array([scores, masses])


def _learned_share(capabilities: Capabilities, length: int) -> float:
    """What a learned sink takes whose logit is that of every key, mean over layers and queries."""
    windows = capabilities.visible_keys(length)
    keys = [min(query + 1, w or length) for w in windows for query in range(1, length)]
    return float(np.mean(1 / (1 + np.array(keys))))


def _keep_arrays(
    run: Run[SinkProfileConfig], scores: SinkScoreValues, norms: Mapping[str, Any]
) -> None:
    """What a figure or a closer look needs, averaged over prompts."""
    length = scores.scores.shape[-1]
    above = (scores.scores > SINK_THRESHOLDS["gu"]).float().mean(0)
    keys = torch.arange(length)
    elsewhere = (keys == 0) | (keys > length // 2)
    later = above.clone()
    later[..., elsewhere] = 0
    sinks = (scores.scores > SINK_THRESHOLDS["gu"]) & ~elsewhere
    null = torch.from_numpy(_uniform_scores(run, length))
    run.keep("sink_mass", scores.mass.mean(0), "layer head")
    run.keep("sink_rate", above[..., 0], "layer head")
    run.keep("sink_score", scores.scores.mean(0), "layer head key")
    run.keep("later_sink_null", null, "key")
    run.keep("later_sink_share", later, "layer head key")
    run.keep("some_later_sink_share", sinks.any(-1).float().mean(0), "layer head")
    run.facts(later_sinks=_tokens_of(run, sinks))
    if "residual" in norms:
        residual = norms["residual"].compute()
        run.keep("position0_norm", residual.position0.mean(0), "layer_input")
        run.keep("other_norm", residual.others.mean(0), "layer_input")
    if "value" in norms:
        value = norms["value"].compute()
        run.keep("position0_value_norm", value.position0.mean(0), "layer key_value_head")
        run.keep("other_value_norm", value.others.mean(0), "layer key_value_head")


def _tokens_of(
    run: Run[SinkProfileConfig], sinks: Bool[Tensor, "prompt layer head key"]
) -> dict[str, Any]:
    """The tokens that hold later sinks: in how many heads and prompts, and where."""
    tokens, counts = run.prompts.tokens.cpu(), sinks.sum((1, 2))
    held: dict[int, dict[str, Any]] = {}
    for prompt, key in counts.nonzero().tolist():
        token, count = int(tokens[prompt, key]), int(counts[prompt, key])
        one = held.setdefault(token, {"keys": 0, "first": 0, "positions": set()})
        one["keys"] += count
        one["first"] += count if token not in tokens[prompt, :key].tolist() else 0
        one["positions"].add(key)
    ordered = sorted(held.items(), key=lambda item: (-item[1]["keys"], item[0]))[:MOST_TOKENS]
    return {
        "keys": int(counts.sum()),
        "tokens": [
            {**one, "token": token_text(run.model, token), "positions": sorted(one["positions"])}
            for token, one in ordered
        ],
    }
