# %% [markdown] id="title"
# # Watching a sink emerge
#
# A sink is not built in: it comes during training, at some step, in some heads. `rope` ships with nine
# checkpoints, so that you can watch it come, and ask what came before.
#
# After it you can
#
# 1. follow any number of a model over its checkpoints, beside the value that it has without a mechanism;
# 2. say when a trait appeared, and how well that is known;
# 3. tell *a sink is there* from *the model uses it*, and date both;
# 4. say what one training run can show, and what it takes several for.
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

model = sinklens.load("rope")
prompts = sinklens.prompts(model, n=16, length=64)
steps = zoo.steps("rope")
print(steps)

# %% [markdown] id="heads"
# ## 1. Head by head
#
# `sinklens.load("rope", step=...)` gives a checkpoint. The loss falls fastest in the first few hundred steps:
# by step 512 it has done three quarters of its fall. Of the sink there is nothing by then. It comes in the
# second half of training, within about a thousand steps, and in most heads at once.

# %% id="heads-run"
checkpoints = {step: sinklens.load("rope", step=step) for step in steps}
scores = torch.stack(
    [sinklens.sink_scores(checkpoint, prompts.tokens) for checkpoint in checkpoints.values()]
)  # [step, layer, head]
losses = [
    checkpoint(prompts.tokens, return_type="loss").item() for checkpoint in checkpoints.values()
]
uniform = (1 / torch.arange(1, prompts.length + 1)).mean().item()
sink_heads = (scores > 0.3).sum((1, 2)).tolist()
for step, loss, mean, count in zip(steps, losses, scores.mean((1, 2)), sink_heads, strict=True):
    print(
        f"step {step:4}  loss {loss:.2f}  sink score {mean:.3f} (uniform {uniform:.3f})", end="  "
    )
    print(f"{count} sink heads")

at = {step: number for number, step in enumerate(steps)}
fallen = (losses[0] - losses[at[512]]) / (losses[0] - losses[-1])
risen = (scores[at[512]].mean() - uniform) / (scores[-1].mean() - uniform)
assert 0.75 < fallen < 0.85 and risen < 0.02
assert sink_heads[at[1024]] == 0 and sink_heads[at[2048]] >= 10 and sink_heads[-1] == 17

px.imshow(
    scores.flatten(1).T.numpy(),
    x=[str(step) for step in steps],
    y=[f"L{layer}H{head}" for layer in range(6) for head in range(4)],
    zmin=0,
    zmax=0.7,
    aspect="auto",
    color_continuous_scale="Blues",
    labels={"x": "training step", "y": "head", "color": "score"},
    title="rope: each head in training",
    height=560,
).update_xaxes(type="category")

# %% [markdown] id="null"
# ## 2. Less than nothing
#
# Without a null, the scores of the first 500 steps look like a small sink. They are not: uniform attention
# gives position 0 as much. In between, at step 128, position 0 gets **less** than under uniform attention. The
# model has learned by then to look at what was just said, and BOS is never what was just said.
#
# A sink therefore does not grow out of the head start that position 0 has under the causal mask. It falls
# below its null first, and comes later, by something else.

# %% id="null-run"
mean_score, top_score = scores.mean((1, 2)), scores.amax((1, 2))
assert mean_score[at[128]] < 0.8 * uniform
assert mean_score[at[256]] < uniform < top_score[at[256]] / 1.5
assert abs(mean_score[at[0]] - uniform) < 0.001

curves = pd.DataFrame({"mean over heads": mean_score, "strongest head": top_score})
figure = px.line(
    curves.set_axis([step + 1 for step in steps]),
    log_x=True,
    markers=True,
    labels={"index": "training step + 1", "value": "sink score", "variable": ""},
    title="rope: the sink and its null",
)
figure.add_hline(uniform, line_dash="dot", annotation_text="uniform attention")

# %% [markdown] id="traits"
# ## 3. What comes first?
#
# Papers describe several traits of position 0: its *values* get small ("value drain"), its residual stream
# gets a huge entry (a *spike*), attention goes there (*sink mass*). `sink_emergence` measures each at every
# checkpoint beside its null, and dates it: the **onset** is the first step at which half of the change from
# the first to the last checkpoint is reached.
#
# Of two onsets, one is later only if the checkpoints that bracket them do not overlap. The values fall first,
# between steps 128 and 256. Spike and sink both come between 1024 and 2048: which of them is first, these
# checkpoints cannot say, although both onsets have narrow intervals. Those are over prompts, and a hundred
# prompts more would not add a checkpoint.

# %% id="traits-run"
emergence = sinklens.run(
    "sink_emergence", model, prompts, conditions=("value_drain", "spike", "sink_mass"), draws=2
)
onsets = emergence.findings["onsets"]
for name, onset in onsets.items():
    print(f"{name}: step {onset['step']:.0f}, between the checkpoints {onset['between']}")

assert onsets["value_drain"]["between"] == [128, 256]
assert onsets["spike"]["between"] == onsets["sink_mass"]["between"] == [1024, 2048]
assert onsets["spike"]["ci_high"] < onsets["sink_mass"]["ci_low"]  # narrow, and no answer
emergence

# %% [markdown] id="use"
# ## 4. When does the model use it?
#
# That a sink is there does not mean that anything depends on it. So ask at every checkpoint: what does it cost
# to replace BOS by the mean embedding, and what does the same cost at a later position?

# %% id="use-run"
rows = []
for step, checkpoint in checkpoints.items():
    result = sinklens.run(
        "bos_replacement",
        checkpoint,
        prompts,
        conditions=("mean",),
        metrics=("loss", "sink_mass"),
        draws=3,
        null_models=0,
        progress=False,
    )
    treatment, control, contrast = (
        result.find(metric="loss", kind=kind) for kind in ("treatment", "control", "contrast")
    )
    rows.append(
        {
            "step": step,
            "sink mass": result.find(metric="sink_mass", kind="treatment").baseline,
            "BOS": treatment.effect,
            "a later position": control.effect,
            "difference": contrast.effect,
            "low": contrast.ci_low,
            "high": contrast.ci_high,
        }
    )
use = pd.DataFrame(rows).set_index("step")
use.round(3)

# %% id="use-figure"
assert use.loc[1024, "high"] < 0 and use.loc[1024, "sink mass"] > 0.08
assert use.loc[2048, "low"] < 0 < use.loc[2048, "high"] and use.loc[2048, "sink mass"] > 0.25
assert use.loc[4000, "low"] > 0

figure = px.scatter(
    use.reset_index(),
    x=[step + 1 for step in steps],
    y="difference",
    error_y=use["high"].to_numpy() - use["difference"].to_numpy(),
    error_y_minus=use["difference"].to_numpy() - use["low"].to_numpy(),
    log_x=True,
    labels={"x": "training step + 1", "difference": "cost beyond the control (nats)"},
    title="rope: what BOS is worth",
)
figure.update_traces(mode="lines+markers")
figure.add_hline(0, line_dash="dot")

# %% [markdown] id="use-read"
# Read the table from above:
#
# - At step 1024 position 0 gets more attention than chance (0.09, uniform 0.06), and BOS is worth *less* than
#   another token. Replacing a word costs something, because words say something.
# - At step 2048 more than a quarter of all attention goes to BOS, and replacing it does not cost
#   distinguishably more than replacing a word.
# - Only at the end does BOS matter more than a word.
#
# So the sink is there before the model depends on it. Attention maps alone would have dated both to the same
# step.
#
# ## 5. One run is one run
#
# The intervals above are over prompts. They say nothing about another training run. `rope` was trained three
# times, with other first weights and another order of data; of the other two runs the first and the last
# checkpoint are kept. All three end with a sink, of about the same mass, but **not in the same heads**: the
# first has sink heads in layer 0 and none in layer 1, the others in layer 1 and none in layer 0.
#
# `postnorm` was trained with nine checkpoints as well, and differs in where its norms stand. It ends without a
# sink, but not because nothing ever happened: at step 64 one head passes the threshold, and by step 256 it has
# lost that again. A sink head in the middle of training need not stay one.

# %% id="seeds-run"
in_layers, means = {}, {}
for seed in zoo.seeds("rope"):
    by_head = sinklens.sink_scores(sinklens.load("rope", seed=seed), prompts.tokens)
    in_layers[seed] = (by_head > 0.3).sum(1).tolist()
    means[seed] = by_head.mean().item()
    print(f"seed {seed}: sink score {means[seed]:.2f}, sink heads in each layer {in_layers[seed]}")
assert in_layers[0][0] > 0 and in_layers[0][1] == 0
assert all(in_layers[seed][0] == 0 and in_layers[seed][1] > 0 for seed in (1, 2))
assert max(means.values()) < 1.2 * min(means.values())

strongest = [
    sinklens.sink_scores(sinklens.load("postnorm", step=step), prompts.tokens).max().item()
    for step in zoo.steps("postnorm")
]
print("postnorm, strongest head at each checkpoint:", *(f"{score:.2f}" for score in strongest))
assert strongest[2] > 0.3 and max(strongest[4:]) < 0.2

# %% [markdown] id="limits"
# ### What these numbers can and cannot show
#
# - Nine checkpoints, spaced by factors of two. Nothing that happens between two of them can be ordered.
# - That values drain before the sink comes does not make the one the cause of the other. To test that, one
#   would train with values that cannot drain.
# - "Half of the change" needs a last checkpoint. Trained longer, `rope` could have gone further, and every
#   onset would move.
#
# ## Questions
#
# 1. At step 256 the mean over heads lies below uniform attention, and the strongest head well above it. Is that
#    head on its way to become a sink head?
#
# <details><summary>Answer</summary>
#
# Perhaps, but this does not show it. The strongest of 24 heads lies above their mean in any model: a maximum
# needs a null of its own, such as the strongest head of models with random weights. And `postnorm` has a
# stronger head at step 64, which came to nothing.
#
# </details>
#
# 2. Why does the sink mass under `mean` replacement (you can print it) say little about when BOS matters?
#
# <details><summary>Answer</summary>
#
# It says that the attention follows the BOS embedding, as soon as there is more attention than chance. Whether
# predictions depend on that attention is another question, which only the loss answers.
#
# </details>
#
# 3. With three seeds, what could you say about the order of value drain and sink if each run had all its
#    checkpoints?
#
# <details><summary>Answer</summary>
#
# Whether the order was the same in all three. If the order were a coin toss, three runs would agree with
# probability 1/4, so agreement would be weak evidence. The unit is the run, not the prompt.
#
# </details>
#
# ## Exercise
#
# Sections 3 and 4 date the sink of `rope`. Do the same for `postnorm`, which has the same checkpoints: which
# traits does it grow, and does BOS ever cost more than a later position? Then follow a trait of your own over
# both: any number that a function of `(checkpoint, prompts)` gives, beside the value that it has without the
# mechanism.
