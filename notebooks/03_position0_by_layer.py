# %% [markdown] id="title"
# # Patching position 0, layer by layer
#
# A sink is attention to position 0. What is there to attend to? This notebook replaces what position 0
# holds, at one layer at a time, and reads off when the model needs it, and which part of it.
#
# After it you can
#
# 1. patch the residual stream at one position and one layer, with a hook of three lines;
# 2. say what an effect "at layer 3" is about, and check both ends of the curve against something known;
# 3. read a curve over layers beside its control;
# 4. tell a need for a direction from one for a norm, and a need for the key from one for the value.
#
# Start with `notebooks/01_first_sink.ipynb`: it explains effects, intervals and contrasts. Nothing below is
# downloaded. Statements about numbers are checked by an `assert` in the code that follows them.

# %% id="install"
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("sinklens") is None:  # as on Colab
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "sinklens"], check=True)

# %% id="setup"
from functools import partial

import plotly.express as px
import plotly.io
import torch

import sinklens
from sinklens.results.drawing.shown import keep_figures

torch.set_grad_enabled(False)
px.defaults.template = "simple_white"
plotly.io.templates["simple_white"].layout.legend = {"orientation": "h", "y": -0.25}
keep_figures()

model = sinklens.load("rope")
prompts = sinklens.prompts(model, n=16, length=64)
N = model.cfg.n_layers
STAGES = [f"blocks.{layer}.hook_resid_pre" for layer in range(N)] + [
    f"blocks.{N - 1}.hook_resid_post"
]

# %% [markdown] id="constant"
# ## 1. A patch by hand
#
# In a causal model position 0 sees only itself. With BOS in front, it therefore holds **the same vector in
# every prompt**: a constant of the model, one per layer. A run on BOS alone gives it.
#
# It is not an ordinary vector. Up to block 1 its norm is like that of other positions; block 1 multiplies it,
# and later blocks hardly change it. Below, `entering block 2` is the residual stream that block 2 reads.

# %% id="constant-run"
_, cache = model.run_with_cache(prompts.tokens, names_filter=STAGES)
stream = torch.stack([cache[name] for name in STAGES])  # [stage, prompt, position, d_model]
_, cache = model.run_with_cache(prompts.tokens[:1, :1], names_filter=STAGES)
alone = torch.stack([cache[name][0, 0] for name in STAGES])  # [stage, d_model]

assert (stream[:, :, 0] == stream[:, :1, 0]).all()  # the same in every prompt
torch.testing.assert_close(stream[:, 0, 0], alone, rtol=0, atol=1e-5)  # and without a prompt

stages = [f"entering block {layer}" for layer in range(N)] + ["at the end"]
at0, later = stream[:, :, 0].norm(dim=-1).mean(1), stream[:, :, 1:].norm(dim=-1).mean((1, 2))
for stage, norm, others in zip(stages, at0, later, strict=True):
    print(f"{stage:18}  position 0 {norm:.2f}   other positions {others:.2f}")
assert (at0[:2] < 1.5 * later[:2]).all()
assert at0[2] > 5 * at0[1] and at0[-1] < 1.1 * at0[2]

# %% [markdown] id="patch"
# So we need no second prompt to patch from: run another token alone, keep what it leaves at each stage, and
# write that into position 0. Everything else in the forward pass stays as it is, until later positions read
# position 0.
#
# Both ends of the curve are known in advance:
#
# - Patching what **enters block 0** is the same as having put that token there in the first place.
# - Patching **at the end** does nothing to later predictions: no attention is left to read it.
#
# A patch that missed either would have a bug. Between the ends, an effect at a layer is about that layer
# *and all later ones*, since the patched vector stays in the residual stream.

# %% id="patch-run"
the = model.tokenizer.convert_tokens_to_ids("Ġthe")
_, cache = model.run_with_cache(torch.tensor([[the]]), names_filter=STAGES)
other = [cache[name][0, 0] for name in STAGES]


def write(x, hook, vector):
    """Write a vector at position 0 of [prompt, position, d_model]."""
    x[:, 0] = vector
    return x


def loss(tokens, hooks=()):
    """The loss in nats of each prompt, over the predictions after position 0."""
    losses = model.run_with_hooks(
        tokens, return_type="loss", loss_per_token=True, fwd_hooks=list(hooks)
    )
    return losses[:, 1:].mean(1)


clean = loss(prompts.tokens)
by_hand = [
    (loss(prompts.tokens, [(name, partial(write, vector=vector))]) - clean).mean().item()
    for name, vector in zip(STAGES, other, strict=True)
]
for stage, effect in zip(stages, by_hand, strict=True):
    print(f"{stage:18}  {effect:+.3f} nats")

swapped = prompts.tokens.clone()
swapped[:, 0] = the
assert abs(by_hand[0] - (loss(swapped) - clean).mean()) < 1e-4  # the same as another token
assert abs(by_hand[-1]) < 1e-6  # nothing reads it
assert by_hand[2] > by_hand[1]

# %% [markdown] id="not-monotone"
# The curve falls, but not everywhere: patching what enters block 2 costs more than patching what enters
# block 1, although the second patch reaches more of the model. An earlier patch also gives later blocks the
# chance to work on the new vector as they would have done in a run with that token, and block 1, which
# writes the large norm, is such a block. "What costs most at layer *l*" is not "what layer *l* does".
#
# ## 2. Beside a control
#
# Replacing what *any* position holds costs something. `position0_patching` patches every layer with tokens
# drawn at random (`other_token`), and as a **control** does the same at a later position. Like the control in
# notebook 1, it counts only the predictions after that position; the *difference* compares the two at the
# same predictions. `null_models=0` leaves models with random weights out, which takes a few minutes with them.

# %% id="layers-run"
layers = sinklens.run(
    "position0_patching",
    model,
    prompts,
    conditions=("other_token",),
    metrics=("loss", "sink_mass"),
    draws=3,
    null_models=0,
)


def curve(result, condition, kind="treatment", metric="loss"):
    """The rows of a condition, layer by layer."""
    rows = [
        row
        for row in result.effects
        if (row.condition, row.kind, row.metric) == (condition, kind, metric)
    ]
    assert [row.layer for row in rows] == list(range(N))
    return rows


treatment = curve(layers, "other_token:residual")
contrast = curve(layers, "other_token:residual", kind="contrast")
assert all(row.ci_low > 0 for row in treatment)
assert all(row.ci_low > 0 and row.q_value < 0.05 for row in contrast)
# Our one token is among what random tokens do, within a factor of two.
assert all(0.5 < row.effect / mine < 2 for row, mine in zip(treatment, by_hand, strict=False))
layers

# %% [markdown] id="layers-read"
# At every layer position 0 matters, and more than a later position does: all six differences lie above 0.
# And wherever the vector is replaced, the sink is gone in the layers that still read it.

# %% id="layers-sink"
for row in curve(layers, "other_token:residual", metric="sink_mass"):
    print(f"L{row.layer}: attention to position 0 from L{row.layer} on", end=" ")
    print(f"{row.baseline:.2f} -> {row.value:.2f}")
    assert row.baseline > 0.3 and row.value < 0.06
layers.plot()

# %% [markdown] id="direction"
# ## 3. Direction or norm?
#
# The norm of position 0 is its most visible feature. Is it what the model needs? Two edits take it apart:
#
# - `rescaled` keeps the direction, and gives it the mean norm of the other positions at that layer;
# - `redirected` keeps the norm, and gives it a random direction.
#
# A prediction first. Each block reads the stream through RMSNorm, which divides by the norm:
#
# > RMSNorm(*c* *x*) = RMSNorm(*x*) for *c* > 0,
#
# up to the small ε in its denominator. So rescaling what enters the last block can do nothing at
# all. Rescaling earlier can do something, but only because what later blocks *add* at position 0 then weighs
# more beside the smaller vector.

# %% id="direction-run"
parts = sinklens.run(
    "position0_patching",
    model,
    prompts,
    conditions=("rescaled", "redirected"),
    metrics=("loss",),
    draws=3,
    null_models=0,
)
rescaled = [row.effect for row in curve(parts, "rescaled:residual")]
redirected = [row.effect for row in curve(parts, "redirected:residual")]
replaced = [row.effect for row in treatment]

assert abs(rescaled[-1]) < 1e-5  # the closed form
assert max(rescaled) == rescaled[2] and rescaled[2] < 0.1 * replaced[2]
assert all(0.8 < new / old < 1.7 for new, old in zip(redirected, replaced, strict=True))

px.line(
    {"another token": replaced, "redirected": redirected, "rescaled": rescaled},
    labels={"index": "entering layer", "value": "change of the loss (nats)", "variable": ""},
    title="rope: what is changed at position 0",
    markers=True,
)

# %% [markdown] id="direction-read"
# A random direction costs about what another token costs, at every layer. The norm alone costs less than a
# tenth of that where it costs most, entering block 2, and nothing entering the last block, as predicted.
#
# That is a statement about what the trained model **reads**. It does not say that the norm is idle: a vector
# of norm 5 among updates of norm 1 keeps its direction, whatever later blocks add. The norm protects the
# direction.

# %% id="direction-table"
parts

# %% [markdown] id="key-value"
# ## 4. The key or the value?
#
# Attention reads two things at a position: the **key** decides how much attention goes there, the **value**
# is what comes back. `other_token:key` and `other_token:value` write one of them at one layer only, and
# leave the residual stream alone; so, other than before, layer *l* means layer *l*. `mean_token:value` writes
# the mean value of 256 tokens, each alone at position 0: a value, but nobody's in particular.
#
# For comparison, here is how large the value of BOS is beside those of the tokens that follow it: less than a
# quarter of theirs in every block but block 1, where it is more than twice as large.

# %% id="value-norms"
VALUES = [f"blocks.{layer}.attn.hook_v" for layer in range(N)]  # [prompt, position, head, d_head]
_, cache = model.run_with_cache(prompts.tokens, names_filter=VALUES)
drained = []
for name in VALUES:
    norms = cache[name].flatten(2).norm(dim=-1)
    drained.append((norms[:, 0].mean() / norms[:, 1:].mean()).item())
print("value norm of BOS over that of other tokens:", *(f"{ratio:.2f}" for ratio in drained))
assert max(ratio for layer, ratio in enumerate(drained) if layer != 1) < 0.25 and drained[1] > 2

# %% id="key-value-run"
reads = sinklens.run(
    "position0_patching",
    model,
    prompts,
    conditions=("other_token:key", "other_token:value", "mean_token:value"),
    metrics=("loss",),
    draws=3,
    null_models=0,
)
key, value, mean_value = (
    [row.effect for row in curve(reads, condition)]
    for condition in ("other_token:key", "other_token:value", "mean_token:value")
)
assert all(token > 1.5 * elsewhere for elsewhere, token in zip(key, value, strict=True))
assert max(mean_value) < 0.015 and max(key) < 0.035 and max(value) > 0.1
reads.plot()

# %% [markdown] id="key-value-read"
# Three different interventions, three different failures:
#
# - Another **key**: attention leaves position 0 and goes to the tokens between. That costs at most 0.035 nats
#   at one layer.
# - Another token's **value**: attention still goes to position 0, and now brings back what that token has to
#   say, to every query, in every head. At each layer this costs more than one and a half times as much as the
#   key; at two layers, more than 0.1 nats.
# - The **mean** value: at most 0.015 nats. Position 0 may hand on something, as long as it is nothing in
#   particular.
#
# So a sink is a place where attention can go *without bringing much back*. Had we tried `other_token:value`
# alone, we would have reported that the model needs the value of BOS, which the third condition denies.
#
# ### What these numbers can and cannot show
#
# - A patch writes a vector that this position never held after BOS. The model's answer to it is its answer to
#   an input out of distribution, for `redirected` more than for `other_token`.
# - Every interval is over 16 prompts of one text, and three draws of tokens, directions and control positions.
# - Layers are compared by eye here. Rows of neighbouring layers share prompts and draws, so that a difference
#   between them has its own interval, which neither row gives.

# %% [markdown] id="questions"
# ## Questions
#
# 1. Why does the experiment refuse to patch from *another prompt* of the same set?
#
# <details><summary>Answer</summary>
#
# With BOS in front, position 0 holds the same vector in all of them (section 1). The patch would write what
# is there already: no intervention, which sinklens treats as an error and not as an effect of 0.
#
# </details>
#
# 2. In a model with LayerNorm and biases, would rescaling what enters the last block still do nothing?
#
# <details><summary>Answer</summary>
#
# Yes, nearly: LayerNorm subtracts the mean and divides by the standard deviation, and both scale with the
# vector; the bias is added afterwards. It would do something in a model whose blocks read the stream without
# a norm, such as `postnorm`.
#
# </details>
#
# 3. Patching the key at layer 3 lowers the attention to position 0 there. In which layers can it lower it
#    besides?
#
# <details><summary>Answer</summary>
#
# In later ones only, and only through later positions: they attend elsewhere in layer 3, and so carry other
# queries into layers 4 and 5. The keys at position 0 of those layers are what they were, since position 0
# itself never reads a key but its own.
#
# </details>
#
# ## Exercise
#
# Does a model without a sink need position 0 less? Run section 2 on `sinklens.load("learned-sink")`, which has
# a learned place to put attention, and draw both curves in one figure. Then run `sinklens.compare` on the two
# results, and say for which layers the difference between the models has an interval that excludes 0.
