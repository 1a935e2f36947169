"""What the papers claim, and what decides each claim here."""

from __future__ import annotations

import math

from sinklens.results.record import Record
from tests.claims.measured import Claim, Measured, lowest, row_of, seen_in
from tests.claims.rules import CONFIRMED, Above, AboveNull, Below, Near, OtherThanNull

TOKEN_MEDIAN, LAYER_MEDIAN = "absolute:token_median", "absolute:layer_median"


def a_sink(result: Record) -> str:
    """A claim about what becomes of a sink."""
    seen = seen_in(result.find(metric="sink_rate", condition="gu", kind="measurement"))
    there = seen is not None and AboveNull()(seen).word == CONFIRMED
    return "" if there else "natural text without BOS has no sink either"


def massive(result: Record) -> str:
    """A claim about massive activations, by the rule of either paper."""
    rows = [row for row in result.effects if row.condition in (TOKEN_MEDIAN, LAYER_MEDIAN)]
    return "" if any(row.value for row in rows) else "no activation is massive by the papers' rules"


def an_edit(result: Record) -> str:
    """A claim about setting massive activations to their mean, where that changes anything."""
    mean = lowest(result, row_of("loss", "mean", "treatment"))
    if ["mean", mean.layer] in result.findings["changes_nothing"]:
        return (
            "by construction: all prompts have the same first token, so the mean is what is there"
        )
    return ""


GU = "Gu et al. 2025 (2410.10781)"
MASSIVE = "Sun et al. 2024 (2402.17762)"
REFINED = "Owen et al. 2025 (2503.22329)"
SPIKE = "Sun et al. 2026 (2603.05498)"
POSITION = "Ruscio et al. 2026 (2606.06160)"
FRAMES = "Ruscio et al. 2025 (2508.02546)"
INPUTS = {"conditions": ("repeated", "random")}
PROFILE = Measured("sink_profile", INPUTS)
SEARCH = Measured(
    "massive_activations",
    {"draws": 0, "conditions": ("mean",), "metrics": ("loss",), "sweep_tokens": 256},
)
EDITS = {"criterion": LAYER_MEDIAN, "conditions": ("zero", "mean"), "metrics": ("loss",)}
EDITED = Measured("massive_activations", EDITS)
BOS = Measured(
    "absolute_position",
    {"draws": 2, "conditions": ("mean", "random_token"), "queries": ("1:8",), "first_tokens": 0},
    n_prompts=96,  # of fewer the component cannot be told from its null
    length=16,  # later tokens do not change what queries 1 to 7 see
)
PUBLISHED = Measured(
    "reference_frame",
    {"conditions": ("head_kl",), "preset": "published", "random_weights": False},
)
# What the papers print, as perplexities: the least rise by zero and the largest by the mean.
RISE_BY_ZERO = math.log(5729 / 4.88)  # LLaMA2-13B, WikiText
RISE_BY_MEAN = math.log(14.781 / 14.562)  # Llama-3.2-1B without BOS, C4
CLAIMS = (
    Claim(
        GU,
        "One token repeated, without BOS, gives a sink rate of 0 (0.00% in three models of 7 to 8 "
        "billion parameters)",
        Measured("sink_profile", INPUTS, bos=False),
        row_of("sink_rate", "gu:repeated"),
        Near(0.0, 0.0, 0.05),
        a_sink,
    ),
    Claim(
        f"ours, beside {GU}",
        "With BOS before the repeated token there is a sink",
        PROFILE,
        row_of("sink_rate", "gu:repeated"),
        AboveNull(),
    ),
    Claim(
        GU,
        "Random tokens have sinks as well (70.29% to 91.23%)",
        PROFILE,
        row_of("sink_rate", "gu:random"),
        AboveNull(),
    ),
    Claim(
        MASSIVE,
        "There are activations above 100 and 1,000 times the median of the token's hidden state",
        SEARCH,
        row_of("massive", TOKEN_MEDIAN),
        AboveNull(),
    ),
    Claim(
        REFINED,
        "There are activations above 100 and 1,000 times the median of the layer",
        SEARCH,
        row_of("massive", LAYER_MEDIAN),
        AboveNull(),
    ),
    Claim(
        MASSIVE,
        f"Setting them to zero is catastrophic (the least rise is ln(5729 / 4.88) = "
        f"{RISE_BY_ZERO:.2f} nats, LLaMA2-13B)",
        EDITED,
        row_of("loss", "zero", "treatment"),
        Above(RISE_BY_ZERO),
    ),
    Claim(
        MASSIVE,
        f"Setting as many entries of median size to zero is harmless (as the mean is: less than "
        f"{RISE_BY_MEAN:.3f} nats)",
        EDITED,
        row_of("loss", "zero", "control", against="median_entries"),
        Below(RISE_BY_MEAN),
    ),
    Claim(
        f"{MASSIVE}, {REFINED}",
        f"Setting them to their mean is harmless (the largest rise is ln(14.781 / 14.562) = "
        f"{RISE_BY_MEAN:.3f} nats, Llama-3.2-1B), with BOS",
        EDITED,
        row_of("loss", "mean", "treatment"),
        Below(RISE_BY_MEAN),
        an_edit,
    ),
    Claim(
        f"{MASSIVE}, {REFINED}",
        "The same without BOS, where first tokens differ",
        Measured("massive_activations", EDITS, bos=False),
        row_of("loss", "mean", "treatment"),
        Below(RISE_BY_MEAN),
        an_edit,
    ),
    Claim(
        SPIKE,
        "The vocabulary spikes at position 0 (98.40% to 99.93% in seven models; here a sample of "
        "256 tokens)",
        SEARCH,
        row_of("vocabulary_spikes", "position0"),
        Near(0.984, 0.9993, 0.02),
        massive,
    ),
    Claim(
        POSITION,
        "Attention logits have a residual-stream component, which is not relative position "
        "(without key 0)",
        BOS,
        row_of("residual_share", "without_key0", "contrast", against="diagonal_shift"),
        AboveNull(),
    ),
    *(
        Claim(
            POSITION,
            "Replacing the BOS embedding removes 40% of that component (without key 0) at early "
            f"queries (by what is not in the abstract: here by {words})",
            BOS,
            row_of("removed_without_key0", condition, "treatment"),
            Near(0.40, 0.40, 0.10),
        )
        for condition, words in (("mean", "the mean"), ("random_token", "random tokens"))
    ),
    *(
        Claim(
            FRAMES,
            f"Betti {dimension} of attention is the same in all layers of a decoder ({published} "
            "in the result file of Llama-3.2-3B)",
            PUBLISHED,
            row_of(f"betti{dimension}", "published"),
            OtherThanNull(),
        )
        for dimension, published in ((0, "26.41"), (1, "0"))
    ),
    Claim(
        FRAMES,
        "Without the sink columns heads are closer to their mean (the KL reduction of the "
        "published code, sinks above the 80th percentile; no published number was found)",
        PUBLISHED,
        row_of("kl_reduction", "published:percentile_0.8"),
        AboveNull(),
    ),
)
