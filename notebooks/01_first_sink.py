# %% [markdown] id="title"
# # A first look at an attention sink
#
# An **attention sink** is a key position, usually the first, that receives far more attention from later
# queries than its content explains. This notebook shows one in three ways:
#
# 1. **constructed by hand**, in a model whose attention is a one-line formula;
# 2. **found**, in `rope`, a small trained model that ships with sinklens, beside its null;
# 3. **removed**, by interventions that are compared with matched controls.
#
# After it you can
#
# 1. measure how much attention a position gets, beside what uniform attention would give it;
# 2. remove what may cause a sink, with hooks of your own and with an experiment;
# 3. read a row: effect, interval, matched control, difference;
# 4. say what such a row shows, and what it does not.
#
# You need to know what a transformer is and to have seen a TransformerLens hook. Nothing below is
# downloaded. Statements about numbers are checked by an `assert` in the code that follows them.

# %% id="install"
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("sinklens") is None:  # as on Colab
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "sinklens"], check=True)

# %% id="setup"
import pandas as pd
import plotly.express as px
import plotly.io
import torch

import sinklens
from sinklens.hooks import ablate_heads, replace_bos_embedding
from sinklens.results.drawing.shown import keep_figures
from sinklens.zoo.constructed import BOS, SINK_HEAD, ConstructedSink, constructed_sink

torch.set_grad_enabled(False)
px.defaults.template = "simple_white"
plotly.io.templates["simple_white"].layout.legend = {"orientation": "h", "y": -0.25}
keep_figures()

# %% [markdown] id="part1"
# ## 1. A sink constructed by hand
#
# `constructed_sink()` is a real Llama in TransformerLens whose weights were set by hand: 15 tokens,
# two layers of two heads, no MLP. In the first layer, head 0 gives BOS the logit *s* and every word the
# logit 0, so that query *i*, which sees BOS and *i* words, attends to BOS with
#
# > *A*<sub>i0</sub> = *E* / (*E* + *i*), where *E* = e<sup>s</sup>.
#
# `ConstructedSink` holds the same model in closed form. Formulas and measured patterns agree to float32
# rounding.

# %% id="hand-pattern"
hand, formulas = constructed_sink(), ConstructedSink()
words = sinklens.prompts(hand, n=8, length=32)
PATTERN = "blocks.0.attn.hook_pattern"  # [prompt, head, query, key]

_, cache = hand.run_with_cache(words.tokens, names_filter=PATTERN)
measured = cache[PATTERN][:, SINK_HEAD, :, 0]  # attention to position 0, by prompt and query

query = torch.arange(words.length)
formula = torch.tensor([formulas.sink_weight(i) for i in range(words.length)])
uniform = 1 / (query + 1)

assert (words.tokens[:, 0] == BOS).all()
torch.testing.assert_close(measured, formula.expand_as(measured), rtol=0, atol=1e-5)
assert (formula[1:] > uniform[1:]).all()

# %% [markdown] id="hand-edit"
# Every prompt has the same curve: this sink follows BOS, whatever the words are. Now put a word in place
# of BOS. The logit *s* was all that distinguished position 0; without it *E* = e<sup>0</sup> = 1 and
#
# > *A*<sub>i0</sub> = 1 / (1 + *i*),
#
# which is **uniform causal attention**: query *i* spreads its attention evenly over the *i* + 1
# positions it sees. This is the null against which any sink should be compared.
#
# `replace_bos_embedding` makes the intervention. An intervention in sinklens is a list of ordinary
# hooks.

# %% id="hand-edited-pattern"
edit = replace_bos_embedding(hand, with_="token:the")
with hand.hooks(fwd_hooks=edit.fwd_hooks):
    _, cache = hand.run_with_cache(words.tokens, names_filter=PATTERN)
edited = cache[PATTERN][:, SINK_HEAD, :, 0]

torch.testing.assert_close(edited, uniform.expand_as(edited), rtol=0, atol=1e-5)
assert edit.fwd_hooks[0][0] == "hook_embed"

curves = pd.DataFrame(
    {
        "formula E / (E + i)": formula,
        "formula 1 / (1 + i), uniform": uniform,
        "measured, BOS": measured.mean(0),
        "measured, BOS replaced with a word": edited.mean(0),
    }
)
figure = px.line(
    curves.iloc[:, :2],
    labels={"index": "query i", "value": "attention to position 0"},
    title="Constructed: attention to position 0",
    range_y=[0, 1.05],
)
for name, symbol in zip(curves.columns[2:], ("circle", "diamond"), strict=True):
    figure.add_scatter(y=curves[name], mode="markers", name=name, marker_symbol=symbol)
figure.update_layout(legend_title_text="")

# %% [markdown] id="part2"
# ## 2. A sink that emerged in training
#
# `rope` is a small trained Llama (`sinklens.zoo.card("rope")` has its data and recipe). Nothing in its
# loss asks for a sink. `sinklens.prompts` cuts windows from a text that ships with sinklens and prepends
# BOS.
#
# `sinklens.sink_scores` is the quickest measure: for each head, the mean over all queries *i* ≥ 0 of
# *A*<sub>i0</sub>. Uniform attention scores (1 + 1/2 + ... + 1/*T*) / *T*, which is not 0, so a score cannot be
# interpreted without it.

# %% id="rope-scores"
model = sinklens.load("rope")
prompts = sinklens.prompts(model, n=16, length=64)
print(model.to_string(prompts.tokens[0, :24]))

scores = sinklens.sink_scores(model, prompts.tokens)  # [layer, head]
null = (1 / torch.arange(1, prompts.length + 1)).mean().item()
print(f"strongest head {scores.max():.2f}, mean {scores.mean():.2f}, uniform attention {null:.3f}")

assert prompts.bos and scores.shape == (model.cfg.n_layers, model.cfg.n_heads)
assert scores.mean() > null > 0

# %% [markdown] id="profile"
# `sink_profile` answers the same question with everything needed to interpret the answer: intervals over
# prompts, uniform attention as `baseline`, and three control inputs (the same windows without BOS,
# random tokens, one token repeated). It reports the **sink mass**, the mean over queries *i* ≥ 1 of
# *A*<sub>i0</sub> (query 0 can attend only to itself), and the **sink rate**, the share of heads whose sink score
# exceeds a threshold: 0.3 (`gu`, Gu et al. 2025, 2410.10781) or 0.8 (`strict`).

# %% id="profile-run"
profile = sinklens.run("sink_profile", model, prompts)

mass = profile.find(metric="sink_mass", condition="position0")
assert mass.kind == "measurement"
assert abs(mass.effect - (mass.value - mass.baseline)) < 1e-9
assert mass.ci_low > 0  # the interval of value - baseline: above uniform attention
profile

# %% id="profile-heads"
profile.plot()

# %% [markdown] id="profile-null"
# The heatmap shows where the sink is, but not what uniform attention would give. Here are the four inputs
# with their nulls. The first bar is above its null, as asserted above. What do the others say about what
# the sink of `rope` follows: BOS, or whatever token comes first?

# %% id="profile-inputs"
rows = profile.to_dataframe().query("metric == 'sink_mass'")
names = rows["condition"].str.replace("position0:", "").replace("position0", "natural")
bars = pd.DataFrame({"input": names, "measured": rows["value"], "uniform": rows["baseline"]})
assert list(names) == ["natural", "no_bos", "random", "repeated"]

px.bar(
    bars,
    x="input",
    y=["measured", "uniform"],
    barmode="group",
    title="rope: attention to position 0",
    labels={"value": "sink mass", "variable": ""},
    color_discrete_map={"measured": "#0b5394", "uniform": "#999999"},
)

# %% [markdown] id="part3"
# ## 3. Causal interventions
#
# Observing a sink does not explain it. Remove what may cause it, and measure again. We start as any
# TransformerLens user would: the BOS embedding is replaced with the mean embedding, or with zeros, and
# the sink mass is read while the hooks are on. Both lower it. Afterwards the model is unchanged.

# %% id="remove-by-hooks"
patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]


def sink_mass(tokens, hooks=()):
    """Attention to position 0: the mean over prompts, layers, heads and queries >= 1."""
    with model.hooks(fwd_hooks=list(hooks)):
        _, cache = model.run_with_cache(tokens, names_filter=patterns)
    return sum(cache[name][:, :, 1:, 0].mean().item() for name in patterns) / len(patterns)


clean = sink_mass(prompts.tokens)
removed = {
    name: sink_mass(prompts.tokens, replace_bos_embedding(model, with_=name).fwd_hooks)
    for name in ("mean", "zero")
}
print(f"clean {clean:.3f}", *(f"{name} {value:.3f}" for name, value in removed.items()))

assert abs(clean - mass.value) < 1e-5  # the value of sink_profile
assert all(value < clean for value in removed.values())
assert abs(sink_mass(prompts.tokens) - clean) < 1e-6  # the hooks are gone

# The loss under an intervention, in one call: hooks go straight into run_with_hooks.
edit = replace_bos_embedding(model, with_="mean")
loss_edited = model.run_with_hooks(prompts.tokens, return_type="loss", fwd_hooks=edit.fwd_hooks)
loss_clean = model(prompts.tokens, return_type="loss")
print(f"loss {loss_clean:.3f} -> {loss_edited:.3f}")

# %% [markdown] id="read-row"
# Two losses are not a finding. *Any* perturbed embedding may cost something, and prompts differ. So
# `bos_replacement` runs the intervention under several conditions and adds, for each:
#
# - **effect [95 %]**: intervened minus clean, one difference per prompt, averaged, with a 95 % confidence
#   **interval** over prompts;
# - **against**: the matched control, here `later_position`: the same intervention at a later position,
#   averaged over draws of that position; **its effect** is the control's;
# - **difference [95 %]** and **q (difference)**: the effect minus that of the control, paired by prompt
#   (the *contrast*). Read these first: does BOS matter more than another position?
#
# A condition's name says only what was done; which control or null a row belongs to is in the column
# `against`, also in `to_dataframe()` and `find(..., against="later_position")`.
#
# `zero` needs a caveat. In a model with bias-free RMSNorm a zeroed position stays at zero in every layer,
# which no token ever does. Read it beside `mean` and `random_token`.
#
# Only predictions made after the intervened position count, so the clean loss in the table differs
# slightly from the one printed above: it leaves out the prediction made at BOS.

# %% id="bos-run"
bos = sinklens.run("bos_replacement", model, prompts)

by_token = model(prompts.tokens, return_type="loss", loss_per_token=True)  # [prompt, position]
baseline = bos.find(metric="loss", condition="mean", kind="treatment").baseline
assert abs(by_token[:, 1:].mean() - baseline) < 1e-5

for condition in ("mean", "zero"):
    row = {
        kind: bos.find(metric="sink_mass", condition=condition, kind=kind)
        for kind in ("treatment", "control", "contrast")
    }
    assert row["contrast"].against == row["control"].against == "later_position"
    assert row["treatment"].effect < 0
    assert abs(row["treatment"].value - removed[condition]) < 1e-5  # the same as with our own hooks
    difference = row["treatment"].effect - row["control"].effect
    assert abs(row["contrast"].effect - difference) < 1e-9
assert bos.find(metric="position0_norm", condition="zero", kind="treatment").value < 1e-6
bos

# %% id="bos-plot"
bos.plot()

# %% [markdown] id="heads"
# The alternative is to leave BOS alone and intervene on the heads that attend to it.
# `sink_head_ablation` takes the heads with a sink mass above 0.3. Three of its conditions:
#
# - `drop_edge`: the weight on key 0 is set to 0 and the rest of each row is renormalised to the row's
#   original sum, so that the attention goes to other tokens;
# - `drop_edge_unnormalised`: the weight is set to 0 and the rest is left unchanged, so that rows sum to
#   less than 1, on average by the head's sink mass;
# - `mean`: the head's output is replaced with its mean over prompts, which ablates the whole head and not
#   only its sink.
#
# Only `drop_edge` forces attention onto other tokens. The row of query 0 is left unchanged in both edge
# conditions.

# %% id="heads-edges"
per_head = profile.arrays["sink_mass"].values  # [layer, head]
sink_heads = [tuple(pair) for pair in (per_head > 0.3).nonzero().tolist()]
layer, head = sink_heads[0]

sums = {}
for condition in ("drop_edge", "drop_edge_unnormalised"):
    edit = ablate_heads(model, [(layer, head)], condition)
    with model.hooks(fwd_hooks=edit.fwd_hooks):
        _, cache = model.run_with_cache(prompts.tokens, names_filter=patterns[layer])
    pattern = cache[patterns[layer]][:, head]
    assert (pattern[:, 1:, 0] == 0).all() and (pattern[:, 0, 0] == 1).all()
    sums[condition] = pattern[:, 1:].sum(-1)

torch.testing.assert_close(sums["drop_edge"], torch.ones_like(sums["drop_edge"]))
torch.testing.assert_close(
    sums["drop_edge_unnormalised"].mean(), 1 - per_head[layer, head], rtol=0, atol=1e-5
)

# %% id="heads-run"
heads = sinklens.run(
    "sink_head_ablation", model, prompts, conditions=("drop_edge", "drop_edge_unnormalised", "mean")
)

assert heads.draws["heads"] == [f"L{layer}H{head}" for layer, head in sink_heads]
for condition in ("drop_edge", "drop_edge_unnormalised"):
    assert heads.find(metric="sink_mass", condition=condition, kind="treatment").effect < 0
heads

# %% [markdown] id="limits"
# ### What these numbers can and cannot show
#
# - **A difference whose interval excludes 0** says that the intervention does more (or less) than its
#   control on prompts like these. It covers the distribution of these prompts and this one model, not
#   other models.
# - **A difference whose interval includes 0** is not evidence of no effect; look at how wide it is. Where
#   many rows are tested, use `q (difference)`.
# - **The controls differ**, and the column `against` names them. For edges it is `later_key`, the edge of
#   the same heads to a later key; for `mean` it is `other_heads`, as many heads that are not sink heads
#   (where too few are left, a footnote says what is compared instead). A negative difference there means
#   that the other heads matter more.
# - **Sink mass under `drop_edge` falls by construction**: those weights are set to 0. The informative rows
#   are loss and KL.
# - **A smaller sink after replacing BOS** says that this model uses what the BOS embedding provides.
#   Whether a model *trained* without BOS would develop a sink elsewhere is another experiment.
#
# ## Questions
#
# 1. Why is the null of sink mass not 1 / *T*, although each of *T* positions is as good as another?
#
# <details><summary>Answer</summary>
#
# Query *i* sees only *i* + 1 keys and gives each 1 / (*i* + 1) under uniform attention. Early queries see few
# keys, position 0 among them, so that its mean over queries is well above 1 / *T*, and the more so the shorter
# the prompts are.
#
# </details>
#
# 2. Replacing BOS and replacing a later token cost the same. Has the model no sink?
#
# <details><summary>Answer</summary>
#
# It may have a strong one. The sink mass says where attention goes, the contrast in the loss whether predictions
# depend on BOS more than on another token. Either can be there without the other.
#
# </details>
#
# 3. Why must the rows `treatment` of `mean` and `zero` not depend on the seed, while those of `random_token` do?
#
# <details><summary>Answer</summary>
#
# `mean` and `zero` write one fixed vector; nothing is drawn. `random_token` draws its tokens, and every control
# draws its positions, with the seed.
#
# </details>
#
# ## Exercise
#
# Build `ConstructedSink(bos_vote=0.0)` and pass it to `constructed_sink`. Its sink is as strong, but BOS has no
# value to pass on. Predict the effect of `sink_head_ablation` with `drop_edge_unnormalised` on the loss, then run it
# with `heads="L0H0"`. Is `drop_edge` the same? Then give `rope` prompts without BOS
# (`sinklens.prompts(model, n=16, bos=False)`): what does `bos_replacement` say, and what does the experiment find
# that its message suggests?
