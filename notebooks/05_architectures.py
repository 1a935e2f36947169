# %% [markdown] id="title"
# # Architecture: models that differ in one thing
#
# Which parts of an architecture bring sinks about? Published models differ in everything at once: size, data,
# tokenizer, positions, norms. The models that ship with sinklens were trained on the same tokens in the same
# order, and differ from `rope` in one respect each, as far as that can be done.
#
# After it you can
#
# 1. compare a measure across architectures whose nulls differ;
# 2. find a sink that has left the sequence;
# 3. keep apart *attention goes to position 0* and *the model needs position 0*, in both directions;
# 4. say what a difference between two models shows, with the spread between training seeds and with what else
#    differs.
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
import pandas as pd
import plotly.express as px
import plotly.io
import torch

import sinklens
from sinklens import zoo
from sinklens.results.drawing.shown import keep_figures

torch.set_grad_enabled(False)
px.defaults.template = "simple_white"
plotly.io.templates["simple_white"].layout.legend = {"orientation": "h", "y": -0.25}
keep_figures()

members = [name for name in zoo.names() if not name.startswith("backcopy")]
differs = {name: zoo.card(name)["differs"] for name in members}
assert len(zoo.names()) == 15
print(*(f"{name:14}{differs[name]['on purpose']}" for name in members), sep="\n")

# %% [markdown] id="sinks"
# ## 1. Sink mass, each beside its own null
#
# The two `backcopy` models have another task and are left out here (notebook 4 is about them). Each of the
# others gets prompts in its own form from the same text: `no-bos` without BOS, `encoder` with [CLS] and [SEP].
#
# Uniform attention does not give position 0 the same in all of them. In a causal model an early position is
# seen by more queries; with a window of 32, late queries do not see position 0 at all; in an encoder every
# query sees all 64 positions. A sink mass of 0.05 is average for `window`, and three times chance in `encoder`.

# %% id="sinks-run"
models = {name: sinklens.load(name) for name in members}
prompts = {name: sinklens.prompts(model, n=16, length=64) for name, model in models.items()}

rows = []
for name, model in models.items():
    profile = sinklens.run(
        "sink_profile", model, prompts[name], conditions=("natural",), null_models=0, progress=False
    )
    mass = profile.find(metric="sink_mass", condition="position0")
    [weights] = [
        file for file in zoo.card(name)["weights"] if (file["seed"], file["step"]) == (0, 4000)
    ]
    rows.append(
        {
            "model": name,
            "sink mass": mass.value,
            "uniform": mass.baseline,
            "above it": mass.effect,
            "low": mass.ci_low,
            "high": mass.ci_high,
            "spike": weights["figures"]["spike"]["value"],
            "loss": weights["figures"]["held-out loss"]["value"],
        }
    )
sinks = pd.DataFrame(rows).set_index("model").sort_values("above it", ascending=False)
sinks.round(3)

# %% id="sinks-figure"
nulls = sinks["uniform"]
assert nulls["encoder"] < 0.02 and nulls["window"] < 0.05 < nulls["rope"] < 0.06
assert abs(nulls["encoder"] - 1 / 64) < 1e-4
strong = set(sinks.query("`above it` > 0.2").index)
assert strong == {"layernorm", "ntk", "rope"}
assert abs(sinks.loc["learned-sink", "loss"] - sinks.loc["rope", "loss"]) < 0.01
assert set(sinks.query("high < 0").index) == {"postnorm", "encoder", "no-bos", "learned-sink"}
window, learned = sinks.loc["window"], sinks.loc["learned"]
assert window["sink mass"] < learned["sink mass"] and window["above it"] > learned["above it"]
assert window["low"] < learned["high"]

figure = px.bar(
    sinks.reset_index(),
    y="model",
    x="sink mass",
    orientation="h",
    title="Attention to position 0, and its null",
    height=460,
)
figure.add_scatter(
    x=nulls,
    y=nulls.index,
    mode="markers",
    name="uniform attention",
    marker={"symbol": "line-ns-open", "size": 14, "color": "black"},
)
figure.update_yaxes(autorange="reversed", title="")

# %% [markdown] id="sinks-read"
# Three models have a strong sink: `rope` and two that differ from it in the rotary base (`ntk`) or in norms and
# MLP (`layernorm`). Four give position 0 *less* than chance, among them `learned-sink`, whose held-out loss is
# that of `rope` within 0.01 nats.
#
# ## 2. A sink that has left the sequence
#
# In `learned-sink` each head has a learned logit *s*<sub>h</sub> in its softmax that belongs to no position:
#
# > *A*<sub>ij</sub> = exp(*q*<sub>i</sub> · *k*<sub>j</sub>) / (exp(*s*<sub>h</sub>) + Σ<sub>m ≤ i</sub> exp(*q*<sub>i</sub> · *k*<sub>m</sub>)),
# > so that Σ<sub>j ≤ i</sub> *A*<sub>ij</sub> < 1.
#
# What a row lacks to 1 went to that logit, and brought back nothing. Position 0 is not a sink in this model
# because something better is on offer.

# %% id="learned-run"
patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in range(6)]


def attention(name):
    """[layer, prompt, head, query, key], without query 0."""
    _, cache = models[name].run_with_cache(prompts[name].tokens, names_filter=patterns)
    return torch.stack([cache[pattern] for pattern in patterns])[:, :, :, 1:]


inside, to_bos = attention("learned-sink").sum(-1), attention("rope")[..., 0]
print(f"learned-sink: {1 - inside.mean():.2f} of attention goes to no position")
print(f"rope: {to_bos.mean():.2f} of attention goes to BOS")
torch.testing.assert_close(attention("rope").sum(-1), torch.ones_like(to_bos))
assert 1 - inside.mean() > 0.6 > to_bos.mean()
assert abs(to_bos.mean() - sinks.loc["rope", "sink mass"]) < 1e-4

figure = px.imshow(
    torch.stack([1 - inside.mean((1, 3)), to_bos.mean((1, 3))]).numpy(),
    facet_col=0,
    zmin=0,
    zmax=1,
    color_continuous_scale="Blues",
    labels={"x": "head", "y": "layer", "color": "share"},
    title="Attention to nothing, and to BOS",
)
names = {"facet_col=0": "learned-sink", "facet_col=1": "rope"}
figure.for_each_annotation(lambda note: note.update(text=names[note.text]))

# %% [markdown] id="need"
# Given such a place, heads use it more than `rope` uses BOS: more than 0.6 of all attention goes there. That is
# what one would expect if `rope`'s sink is a place to put attention that a head has no use for, and if BOS, which
# must hand on *some* value, is a worse place than none.
#
# ## 3. Sink and need
#
# Does a model without a sink not care what position 0 holds? Put another token there, at the input, beside the
# same at a later position. `other_token` at layer 0 is exactly that: another first token.


# %% id="need-run"
def cost(name):
    """What another token at position 0 costs, and what it costs beyond a later position."""
    result = sinklens.run(
        "position0_patching",
        models[name],
        prompts[name],
        conditions=("other_token",),
        layers=(0,),
        metrics=("loss",),
        draws=3,
        null_models=0,
        progress=False,
    )
    contrast = result.find(kind="contrast")
    return {
        "sink mass": sinks.loc[name, "sink mass"],
        "cost": result.find(kind="treatment").effect,
        "beyond a later position": contrast.effect,
        "low": contrast.ci_low,
        "high": contrast.ci_high,
    }


need = pd.DataFrame({name: cost(name) for name in ("rope", "layernorm", "learned-sink", "nope")}).T
assert (need.loc[["rope", "layernorm"], "low"] > 0).all()
assert need.loc["learned-sink", "high"] < 0
assert need.loc["nope", "cost"] > 3 and need.loc["nope", "sink mass"] < 0.08
assert abs(need.loc["nope", "beyond a later position"] / need.loc["nope", "cost"] - 1) < 0.05
need.round(3)

# %% [markdown] id="need-read"
# - `rope` and `layernorm` have a sink, and need BOS more than another token.
# - `learned-sink` has none, and needs it *less*.
# - `nope` has next to none (0.07, uniform 0.06), and without BOS its loss rises by **more than 3 nats**.
#
# The last row is the one to remember. `nope` has no positional encoding at all; position 0 is the only one that
# sees nothing but itself, and BOS, which stands nowhere else, marks it. What is left of attention to it, a share
# of 0.07, carries what the whole model stands on. **Little attention does not mean little effect**, and a sink
# mass is not a measure of importance.
#
# Is it the place or the token that `nope` needs? If it were the place, any token would do there, and we just
# put others in.
#
# ## 4. A difference between two models
#
# `postnorm` has no sink. Is that because of where its norms stand? Two objections come first.
#
# **Another seed?** Two runs of one recipe differ as well. `zoo.compare` runs all shipped seeds, and takes the
# *run* as its unit: `p_seeds` is a t test between the seeds of two members, three against three.

# %% id="seeds-run"
compared = zoo.compare(
    ["rope", "postnorm"],
    "sink_profile",
    n=8,
    conditions="natural",
    null_models=0,
    progress=False,
)
table = compared.table().query("metric == 'sink_mass'").set_index("member")
assert table.loc["postnorm", "seed_high"] < 0 < table.loc["rope", "seed_low"]
assert table.loc["postnorm", "p_seeds"] < 0.01
compared

# %% [markdown] id="confound"
# The ranges over seeds do not come near each other. So it is something about `postnorm`.
#
# **Something else about it?** A card says what differs besides the intention. No published architecture changes
# the place of its norms alone: this one also normalises queries and keys. `qknorm` does that and leaves the norms
# where they are in `rope`; `sandwich` has norms behind its sub-blocks and does not touch queries and keys.

# %% id="confound-run"
print(differs["postnorm"]["besides"])
assert any("queries and keys" in what for what in differs["postnorm"]["besides"])
trio = sinks.loc[["rope", "qknorm", "sandwich", "postnorm"], ["sink mass", "uniform", "spike"]]
assert trio.loc["qknorm", "sink mass"] < trio.loc["rope", "sink mass"] / 3
assert trio.loc["qknorm", "spike"] > trio.loc["rope", "spike"] / 2
assert abs(sinks.loc["sandwich", "above it"]) < 0.01 < sinks.loc["qknorm", "low"]
trio.round(3)

# %% [markdown] id="confound-read"
# Either change alone is enough to take most of the sink away: `qknorm` keeps less than a third of it, `sandwich`
# nothing above chance. So the place of the norms *need* not be why `postnorm` has none. And spike and sink do
# not go together: `qknorm` keeps more than half of the spike.
#
# ### What these numbers can and cannot show
#
# - Models of 1.2 million parameters, trained for 4,000 steps. A sink that needs longer is not in them.
# - One seed of each but two. Section 4 shows how large the spread between seeds can be where it is known.
# - "Differs in one respect" is as good as the cards say. `encoder` differs in a dozen.
#
# ## Questions
#
# 1. `window` has a sink mass of 0.095, `learned` one of 0.102. Which of the two is further from chance?
#
# <details><summary>Answer</summary>
#
# Chance is 0.049 in `window` and 0.059 in `learned`, so `window` is further above it by a little: 0.046 and
# 0.042. Their intervals overlap. Without the nulls one would have ranked them the other way round.
#
# </details>
#
# 2. `learned-sink` gives position 0 less than chance. Does that mean that it avoids BOS?
#
# <details><summary>Answer</summary>
#
# No. Its null already allows for one more place in the softmax, but its heads give that place far more than an
# even share, so every position gets less than chance. What is left over within the sequence may well be spread
# evenly.
#
# </details>
#
# 3. `nope` loses more than 3 nats without BOS. Which matched control would show that this is about position 0 and
#    not about any token out of place?
#
# <details><summary>Answer</summary>
#
# The one in the table: the same at a later position. The cost beyond it is as large as the cost itself, so
# another token at a later position costs next to nothing.
#
# </details>
#
# ## Exercise
#
# `alibi`, `learned` and `layernorm` share norms and MLP, and differ in how they know positions. Make their table
# as in section 3, with `sinks` beside it. Which explains how much a model needs position 0 better: its sink mass,
# or its positional encoding? Write down what you would need to train to be sure.
