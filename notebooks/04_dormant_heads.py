# %% [markdown] id="title"
# # Dormant and active heads
#
# Why would a head attend to BOS, which says nothing? One answer: a head that has nothing to do at a position has
# to put its attention somewhere, since the softmax gives it a whole unit to spend (Guo et al. 2024, 2410.13835).
# It is *dormant* there, and *active* where it has work. In a language model one can only guess at a head's work.
# Here it is known: `backcopy-1` has **one layer of one head**, and was trained on a task made for this question.
#
# After it you can
#
# 1. tell dormant from active by what the task asks, and not by looking at attention;
# 2. show that a dormant head writes next to nothing, by two routes: where attention goes, and what is there;
# 3. ablate a head where it is dormant and where it is active, and read the two apart;
# 4. say why a sink can be strong and worth nothing.
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
import plotly.express as px
import plotly.io
import torch

import sinklens
from sinklens.hooks import ablate_heads
from sinklens.results.drawing.shown import keep_figures
from sinklens.zoo.backcopy import is_trigger, optimum

torch.set_grad_enabled(False)
px.defaults.template = "simple_white"
plotly.io.templates["simple_white"].layout.legend = {"orientation": "h", "y": -0.25}
keep_figures()

model = sinklens.load("backcopy-1")
prompts = sinklens.prompts(model, n=16, length=256)
tokens = prompts.tokens
assert (model.cfg.n_layers, model.cfg.n_heads) == (1, 1)

# %% [markdown] id="task"
# ## 1. A task with something to do, and nothing to do
#
# Sequences of letters. After most letters the next one is drawn from a table of bigrams: looking further back
# does not help. After one of three **triggers**, the next letter is **the one before the trigger**: `ure` goes
# on with `r`. That is work for a head: look one position back, and copy.
#
# The best possible loss is therefore known everywhere: 0 after a trigger, the entropy of the bigram table
# elsewhere. The model comes close to both.

# %% id="task-run"
print(model.to_string(tokens[0, :40]))

trigger = is_trigger(tokens)
triggers = sorted(set(tokens[trigger].tolist()))
print("triggers:", *(repr(model.to_string([token])) for token in triggers))
assert len(triggers) == 3

# Predictions at positions 1 to 254; a position is active if it holds a trigger.
ACTIVE = trigger[:, 1:-1]
copied = tokens[:, 2:] == tokens[:, :-2]
assert copied[ACTIVE].all() and copied[~ACTIVE].float().mean() < 0.2  # by chance


def losses(hooks=()):
    """The loss in nats, [prompt, position], at positions 1 to 254."""
    every = model.run_with_hooks(
        tokens, return_type="loss", loss_per_token=True, fwd_hooks=list(hooks)
    )
    return every[:, 1:]


clean = losses()
best = optimum(tokens)
for name, where in (("after triggers", ACTIVE), ("after others", ~ACTIVE)):
    share = where.float().mean()
    print(f"{name}: {share:.0%} of positions, loss {clean[where].mean():.2f}", end="")
    print(f", best possible {best[where].mean():.2f}")
assert clean[ACTIVE].mean() < 0.1 and best[ACTIVE].max() == 0
assert abs(clean[~ACTIVE].mean() - best[~ACTIVE].mean()) < 0.01

# %% [markdown] id="attention"
# ## 2. Where the head looks
#
# At a trigger it looks one position back, and not at BOS at all. Elsewhere more than a third of its attention
# goes to BOS. The share at BOS before training, and that of uniform attention, are its nulls: 2 % each, at
# triggers and elsewhere alike.

# %% id="attention-run"
POINTS = {name: f"blocks.0.attn.hook_{name}" for name in ("pattern", "v", "z")}
_, cache = model.run_with_cache(tokens, names_filter=list(POINTS.values()))
pattern = cache[POINTS["pattern"]][:, 0]  # [prompt, query, key]
to_bos = pattern[:, 1:-1, 0]
back = torch.diagonal(pattern, offset=-1, dim1=1, dim2=2)[
    :, :-1
]  # from each query to the one before

untrained = sinklens.load("backcopy-1", step=0)
_, before = untrained.run_with_cache(tokens, names_filter=POINTS["pattern"])
to_bos_before = before[POINTS["pattern"]][:, 0, 1:-1, 0]
uniform = (1 / torch.arange(2, 256)).mean()

for name, where in (("triggers", ACTIVE), ("others", ~ACTIVE)):
    print(f"from {name:8}  to BOS {to_bos[where].mean():.3f}", end="")
    print(f" (untrained {to_bos_before[where].mean():.3f}, uniform {uniform:.3f})", end="")
    print(f"   to the letter before {back[where].mean():.2f}")
    assert 0.01 < to_bos_before[where].mean() < 0.03
assert to_bos[ACTIVE].mean() < 0.001 and back[ACTIVE].mean() > 0.75
assert to_bos[~ACTIVE].mean() > 1 / 3 and 0.015 < uniform < 0.025

first = tokens[0, 1:41]
px.bar(
    x=list(range(1, 41)),
    y=to_bos[0, :40].tolist(),
    color=["trigger" if t else "other" for t in ACTIVE[0, :40]],
    labels={"x": "query", "y": "attention to BOS", "color": "letter"},
    title="backcopy-1: attention to BOS",
    color_discrete_map={"trigger": "#d55e00", "other": "#0b5394"},
).update_xaxes(tickvals=list(range(1, 41)), ticktext=[model.to_string([t]) for t in first.tolist()])

# %% [markdown] id="drained"
# The switch is a matter of the letter alone: every trigger gives BOS less than 1 %, every other letter that is
# seen often more than 20 %.
#
# ## 3. What the head writes
#
# Attention to BOS is a way to write nothing only if BOS has nothing to say. It has not: the norm of its value is
# less than a third of that of other letters. Dormant, the head writes a vector a fifth as long as where it is
# active.

# %% id="drained-run"
value = cache[POINTS["v"]][:, :, 0].norm(dim=-1)
written = cache[POINTS["z"]][:, 1:-1, 0].norm(dim=-1)
print(f"value norm: BOS {value[0, 0]:.2f}, other letters {value[:, 1:].mean():.2f}")
print(f"written: at triggers {written[ACTIVE].mean():.2f}, elsewhere {written[~ACTIVE].mean():.2f}")
assert value[0, 0] < value[:, 1:].mean() / 3
assert 0.15 < written[~ACTIVE].mean() / written[ACTIVE].mean() < 0.25

at = tokens[:, 1:-1]
often = [token for token in at.unique().tolist() if (at == token).sum() > 50]
by_letter = {model.to_string([token]): to_bos[at == token].mean().item() for token in often}
print(*(f"{letter} {share:.2f}" for letter, share in by_letter.items()))
for token, share in zip(often, by_letter.values(), strict=True):
    assert share < 0.01 if token in triggers else share > 0.2

# %% [markdown] id="ablate"
# ## 4. What the head is worth
#
# Now take the head away, in two ways: its whole output (`zero`), or only its edge to BOS, with the rest of the
# row scaled up (`drop_edge`), so that a dormant head must look at letters. And read the loss at triggers and
# elsewhere **apart**. An average over all positions would mix them.

# %% id="ablate-run"
costs = {}
for condition in ("zero", "drop_edge"):
    change = losses(ablate_heads(model, [(0, 0)], condition).fwd_hooks) - clean
    costs[condition] = [change[where].mean().item() for where in (ACTIVE, ~ACTIVE)]
    print(f"{condition:10} at triggers {costs[condition][0]:+.4f} nats", end="")
    print(f", elsewhere {costs[condition][1]:+.4f} nats")
assert costs["zero"][0] > 2.5 and abs(costs["zero"][1]) < 0.01
assert all(abs(cost) < 0.001 for cost in costs["drop_edge"])

with model.hooks(fwd_hooks=ablate_heads(model, [(0, 0)], "drop_edge").fwd_hooks):
    _, cut = model.run_with_cache(tokens, names_filter=POINTS["z"])
made_to_look = cut[POINTS["z"]][:, 1:-1, 0].norm(dim=-1)[~ACTIVE].mean()
print(f"written elsewhere {written[~ACTIVE].mean():.2f}, without the edge {made_to_look:.2f}")
assert made_to_look < written[ACTIVE].mean() / 2

# %% [markdown] id="ablate-read"
# - Without its output the model loses more than 2.5 nats at triggers, and less than 0.01 elsewhere. The head is
#   active at the former and dormant at the latter **by what it is worth**, and that agrees with where it looks.
# - Without its edge to BOS it loses **nothing anywhere**: less than 0.001 nats.
#
# The second line is worth a pause. More than a third of the attention of a dormant head goes to the sink, and the
# sink is not needed. Made to look at letters instead, the head writes a longer vector than before, though less than
# half as long as where it is active, and no prediction depends on it. The sink is where attention goes when nothing
# depends on where it goes.
#
# The same with intervals over prompts, and with a control: the edge to another key instead of that to BOS.

# %% id="experiment-run"
result = sinklens.run(
    "sink_head_ablation",
    model,
    prompts,
    heads="all",
    conditions=("drop_edge", "zero"),
    metrics=("loss", "sink_mass"),
    draws=3,
    null_models=0,
)
edge = result.find(metric="loss", condition="drop_edge", kind="treatment")
whole = result.find(metric="loss", condition="zero", kind="treatment")
assert abs(edge.effect) < 0.001 and whole.ci_low > 0.5
by_hand = losses(ablate_heads(model, [(0, 0)], "zero").fwd_hooks) - clean
assert abs(whole.effect - by_hand.mean()) < 1e-4 and 0.8 < whole.effect < 0.9
result

# %% id="experiment-plot"
result.plot()

# %% [markdown] id="contrast-rope"
# ## 5. Is that what sinks are?
#
# It is what *this* sink is. In `rope`, the language model of the other notebooks, the same edit on its sink heads
# costs something, and more than the edge to another key does: there something depends on where attention goes.
# A dormant head explains why attention may go to BOS. It does not explain why a model would need it there.

# %% id="rope-run"
rope = sinklens.load("rope")
beside = sinklens.run(
    "sink_head_ablation",
    rope,
    sinklens.prompts(rope, n=16, length=64),
    conditions=("drop_edge",),
    metrics=("loss",),
    draws=3,
    null_models=0,
    progress=False,
)
print(*beside.summary, sep="\n")
assert beside.find(kind="treatment").effect > 0.1
assert beside.find(kind="contrast").ci_low > 0

# %% [markdown] id="limits"
# ### What these numbers can and cannot show
#
# - One model with one head, on a task where the work of a head is known. In a language model, "dormant" has to be
#   shown by ablation at single positions, and a head may be dormant on one kind of text and active on another.
# - `zero` puts the head's output where it never is. Dormant, it is near there anyway.
# - Whether a head is dormant *because* it attends to BOS, or attends to BOS because it is dormant, an ablation
#   after training cannot tell. Guo et al. (2410.13835) follow it through training.
#
# ## Questions
#
# 1. A head gives BOS 90 % of its attention at every position of every text you try. Is it dormant?
#
# <details><summary>Answer</summary>
#
# Not by that. What it writes is 90 % of the value of BOS and 10 % of other values, and if BOS has a large value,
# that is a large constant vector which later layers may use. Measure the value (section 3) and ablate (section 4).
#
# </details>
#
# 2. Averaged over all positions, ablating the head costs about 0.85 nats. Why is that number of little use?
#
# <details><summary>Answer</summary>
#
# It is the mean of more than 2.5 nats at a bit more than a quarter of the positions and nothing at the others, and
# would be another number for text with more triggers. It describes the text as much as the head.
#
# </details>
#
# 3. `drop_edge` changes nothing at triggers. Could you have said so without running it?
#
# <details><summary>Answer</summary>
#
# Yes. At triggers less than 0.1 % of attention goes to BOS (section 2), so there is no edge to drop. The edit
# checks itself there: had it changed the loss at triggers, it would have done something else.
#
# </details>
#
# ## Exercise
#
# `backcopy-3` has three layers of one head each. Make the table of section 2 for each of them, then ablate one head
# at a time and read the loss at triggers and elsewhere apart. Which head does the work? Is a head that gives BOS
# much attention *at triggers* dormant there?
