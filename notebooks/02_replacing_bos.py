# %% [markdown] id="title"
# # BOS replacement, and why zero misleads
#
# Does a model need its BOS token? The obvious test is to take its embedding away. But something has to stand in
# its place, and a vector of zeros, which looks like "nothing", is the choice that says least about BOS.
#
# After it you can
#
# 1. replace an embedding by its mean, another token, a random direction or zero, and say what each keeps;
# 2. derive what a zeroed position 0 does in a model with bias-free norms, and check it to rounding;
# 3. read sink mass and loss beside the same replacement at a later position, and say what that control matches;
# 4. choose replacements for a model that you do not know.
#
# Start with `notebooks/01_first_sink.ipynb`: it explains effects, intervals and contrasts. Nothing below is
# downloaded. Statements about numbers are checked by an `assert` in the code that precedes or follows them.

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
from sinklens.hooks import replace_bos_embedding
from sinklens.models import ordinary_tokens
from sinklens.results.drawing.shown import keep_figures

torch.set_grad_enabled(False)
px.defaults.template = "simple_white"
plotly.io.templates["simple_white"].layout.legend = {"orientation": "h", "y": -0.25}
keep_figures()

WITH = ("mean", "random_token", "gaussian", "zero")
models = {name: sinklens.load(name) for name in ("rope", "ntk", "layernorm")}
prompts = {name: sinklens.prompts(model, n=16, length=64) for name, model in models.items()}
assert all(one.bos for one in prompts.values())

N = models["rope"].cfg.n_layers
STAGES = [f"blocks.{layer}.hook_resid_pre" for layer in range(N)] + [
    f"blocks.{N - 1}.hook_resid_post"
]

# %% [markdown] id="vectors"
# ## 1. Four vectors in the place of BOS
#
# `replace_bos_embedding` writes one of them at position 0, before the first block:
#
# | | what is written | what it keeps |
# |---|---|---|
# | `mean` | the mean embedding of the vocabulary | what all tokens share |
# | `random_token` | the embedding of a token drawn at random | a real token, which may stand first |
# | `gaussian` | a random direction with the norm of the BOS embedding | the norm |
# | `zero` | zeros | nothing |
#
# The model answers each of them over all its blocks. Here is the norm of position 0 on the way, beside the
# smallest that *any* ordinary token has there when it stands first.

# %% id="vectors-run"
rope, tokens = models["rope"], prompts["rope"].tokens


def norms(model, tokens, hooks=(), position=0):
    """The norm of a position at each stage: [stage, prompt]."""
    with model.hooks(fwd_hooks=list(hooks)):
        _, cache = model.run_with_cache(tokens, names_filter=STAGES)
    return torch.stack([cache[name][:, position].norm(dim=-1) for name in STAGES])


at0 = {"BOS": norms(rope, tokens)[:, 0]}
for name in WITH:
    at0[name] = norms(rope, tokens, replace_bos_embedding(rope, with_=name).fwd_hooks)[:, 0]
vocabulary = norms(rope, ordinary_tokens(rope)[:, None])  # each token alone
at0["smallest of tokens"] = vocabulary.min(1).values

paths = pd.DataFrame(at0, index=[*map(str, range(N)), "end"])
print(paths.round(3))
assert (at0["zero"] == 0).all()  # exactly, at every stage
smallest, largest = at0["smallest of tokens"], vocabulary.max(1).values
assert 0.003 < smallest[0] < 0.004 and (smallest[1:] > 0.2).all()
assert (norms(rope, torch.tensor([[rope.tokenizer.pad_token_id]])) == 0).all()
for name in ("mean", "random_token", "gaussian"):
    assert (smallest < at0[name]).all() and (at0[name] < largest).all()
assert abs(at0["gaussian"][0] / at0["BOS"][0] - 1) < 1e-5
assert all(at0[name].max() < 0.4 * at0["BOS"].max() for name in WITH)

px.line(
    paths,
    labels={"index": "entering block", "value": "norm of position 0", "variable": ""},
    title="rope: position 0 after each replacement",
    line_dash="variable",
    symbol="variable",
)

# %% [markdown] id="no-trajectory"
# With any replacement the large norm of BOS is gone: none comes to 0.4 of it. Three of the curves run
# where tokens run. The fourth is **no token's trajectory**: after `zero`, position 0 stays at 0 in every layer.
# `bos_replacement` says so of its own accord (section 3). And being small at the input is not being zero: the
# smallest embedding has a norm below 0.004, and RMSNorm scales even that up, so that what enters block 1 is above
# 0.2 for every ordinary token. Only padding has an embedding of zeros, and no text holds it.
#
# The reason is two lines long. `rope` has RMSNorm and no biases, so that a block maps 0 to 0, and position 0
# sees only itself, so that attention can bring nothing to it:
#
# > RMSNorm(0) = 0, attention at position 0 = *W*<sub>O</sub> *W*<sub>V</sub> 0 = 0, MLP(0) = 0.
#
# ## 2. What later queries find there
#
# In every layer the key is 0 and the value is 0. A key of 0 gives every query the logit 0, whatever the query
# asks, and a value of 0 brings nothing back. In every head:
#
# > *A*<sub>i0</sub> = 1 / (1 + Σ<sub>j</sub> exp(*q*<sub>i</sub> · *k*<sub>j</sub>)), and the head's output is
# > *z*<sub>i</sub> = Σ<sub>j</sub> *A*<sub>ij</sub> *v*<sub>j</sub>, both sums over *j* = 1 to *i*.
#
# That is softmax over the other tokens **with 1 added to its denominator**. So `zero` should be the same as
# leaving BOS out, and giving each head a place to put attention that belongs to no token. (Positions in `rope` are
# relative, so that leaving out the first moves nothing.) We build that model without touching an embedding.

# %% id="plus-one"
PARTS = ("hook_k", "hook_v", "hook_attn_scores")
names = [f"blocks.{layer}.attn.{part}" for layer in range(N) for part in PARTS]
with rope.hooks(fwd_hooks=replace_bos_embedding(rope, with_="zero").fwd_hooks):
    _, cache = rope.run_with_cache(tokens, names_filter=names)
for name in names:
    first = cache[name][:, :, 1:, 0] if name.endswith("scores") else cache[name][:, 0]
    assert (first == 0).all()

totals = {}


def keep_total(scores, hook):
    """Keep log sum exp of each row of logits [prompt, head, query, key]."""
    totals[hook.layer()] = scores.logsumexp(-1, keepdim=True)


def add_one(pattern, hook):
    """Softmax with 1 added to its denominator: e^s / (1 + sum e^s)."""
    return pattern * torch.sigmoid(totals[hook.layer()])


PLUS_ONE = [(f"blocks.{layer}.attn.hook_attn_scores", keep_total) for layer in range(N)] + [
    (f"blocks.{layer}.attn.hook_pattern", add_one) for layer in range(N)
]


def loss(model, tokens, hooks=()):
    """The loss in nats at each prediction: [prompt, prediction]."""
    return model.run_with_hooks(
        tokens, return_type="loss", loss_per_token=True, fwd_hooks=list(hooks)
    )


def replaced(name, with_):
    """The loss after a replacement, at the predictions after position 0."""
    edit = replace_bos_embedding(models[name], with_=with_)
    return loss(models[name], prompts[name].tokens, edit.fwd_hooks)[:, 1:]


zeroed, rebuilt = replaced("rope", "zero"), loss(rope, tokens[:, 1:], PLUS_ONE)
torch.testing.assert_close(zeroed, rebuilt, rtol=0, atol=1e-4)  # at every single prediction
print(f"BOS zeroed {zeroed.mean():.4f}, without BOS, 1 added to the softmax {rebuilt.mean():.4f}")

# %% [markdown] id="plus-one-read"
# The two agree at each prediction. So `zero` is *two* interventions: BOS goes, and something comes that the
# model never had, a place for attention that holds nothing. If a head uses BOS for exactly that, `zero` hands
# back what it took. How much? Compare with leaving BOS out and adding nothing, where the first word has
# to stand first.

# %% id="left-out"
rows = {}
for name in ("rope", "ntk"):
    model, own = models[name], prompts[name].tokens
    clean = loss(model, own)[:, 1:].mean(1)
    cost = {with_: replaced(name, with_).mean(1) - clean for with_ in WITH}
    cost["BOS left out"] = loss(model, own[:, 1:]).mean(1) - clean
    rows[name] = {key: value.mean().item() for key, value in cost.items()}
    assert (cost["zero"] < cost["mean"]).float().mean() > 0.9  # of the prompts
costs = pd.DataFrame(rows).T
others = costs[["mean", "random_token", "gaussian"]]
assert ((others.T / costs["BOS left out"] - 1).abs() < 0.2).all(axis=None)
assert (costs["zero"] < 0.5 * costs["BOS left out"]).all()
assert (costs["zero"] < 0.5 * costs["mean"]).all()
costs.round(3)

# %% [markdown] id="left-out-read"
# `ntk` is `rope` with another rotary base. In both, three replacements cost about what leaving BOS out costs,
# within 20 %. `zero` costs less than half of it. Whoever had tried zero alone would have reported that BOS
# matters half as much as it does, or less.
#
# ## 3. Beside a later position
#
# Replacing *any* embedding costs something. `bos_replacement` makes the same replacements at positions drawn
# from the rest of the prompt, and counts treatment and control at the same predictions for the *difference*.

# %% id="experiment"
results = {
    name: sinklens.run(
        "bos_replacement",
        models[name],
        prompts[name],
        conditions=WITH,
        metrics=("loss", "sink_mass", "position0_norm"),
        draws=3,
        null_models=0,
        progress=False,
    )
    for name in ("rope", "ntk")
}


def row(name, condition, metric="loss", kind="treatment"):
    """One row of a model's result."""
    return results[name].find(metric=metric, condition=condition, kind=kind)


for name in results:
    for condition in ("mean", "zero"):  # nothing is drawn here: the same as by hand
        assert abs(row(name, condition).effect - costs.loc[name, condition]) < 1e-4
    assert row(name, "zero").ci_high < row(name, "mean").ci_low
    assert all(row(name, condition, kind="contrast").ci_low > 0 for condition in WITH)
    assert row(name, "zero", "position0_norm").value == 0
    assert "no token's trajectory" in str(results[name])
results["rope"]

# %% id="sinks"
query = torch.arange(1, 64)
uniform = (1 / (query + 1)).mean().item()
table = pd.DataFrame(
    [
        {
            "model": name,
            "replaced by": condition,
            "clean": row(name, condition, "sink_mass").baseline,
            "sink mass": row(name, condition, "sink_mass").value,
            "control, sink mass": row(name, condition, "sink_mass", "control").value,
            "loss": row(name, condition).effect,
            "control, loss": row(name, condition, kind="control").effect,
            "difference": row(name, condition, kind="contrast").effect,
        }
        for name in results
        for condition in WITH
    ]
)
print(f"uniform attention {uniform:.3f}")
zeros = table["replaced by"] == "zero"
assert (table["clean"] > 5 * uniform).all()
assert (table[zeros]["sink mass"] > 2 * uniform).all()
assert (table[~zeros]["sink mass"] < uniform).all()
assert ((table["control, sink mass"] - table["clean"]).abs() < 0.01).all()
assert (table["control, loss"] > 0).all()
table.round(3)

# %% [markdown] id="sinks-read"
# The sink tells the same story. After three replacements it is gone: position 0 gets less than uniform
# attention would give it. After `zero` it still gets more than twice that. That is not what is left of the
# BOS sink. It is the 1 in the denominator above, attention that goes to nothing. `zero` thus misleads twice: the
# sink seems to outlive BOS, and BOS seems to be worth less.
#
# ## What the control does
#
# The same replacement at a later position leaves the sink where it is, within 0.01: writing a strange vector
# *somewhere* does not end a sink. It costs some loss, since a word is missing. All differences are
# above 0: BOS matters more than a word does.
#
# But does the control share what is odd about `zero`? A later position sees others besides itself. With a query
# of 0 it attends to all of them alike, and is filled in the first block.

# %% id="control"
edit = replace_bos_embedding(rope, with_="zero", position=20)
filled = norms(rope, tokens, edit.fwd_hooks, position=20).mean(1)
words = norms(rope, tokens, position=20).mean(1)
print("zeroed at 20 ", *(f"{value:.2f}" for value in filled))
print("as it was    ", *(f"{value:.2f}" for value in words))
assert filled[0] == 0 and (filled[1:] > 0.4 * words[1:]).all()

PATTERN = "blocks.0.attn.hook_pattern"  # [prompt, head, query, key]
with rope.hooks(fwd_hooks=edit.fwd_hooks):
    _, cache = rope.run_with_cache(tokens, names_filter=PATTERN)
alike = cache[PATTERN][:, :, 20, :21]
torch.testing.assert_close(alike, torch.full_like(alike, 1 / 21))

results["ntk"].plot()

# %% [markdown] id="control-read"
# So the control of `zero` is at 0 when it enters block 0, and nowhere else; position 0 is at 0 throughout. The
# control matches the act, not its consequence, and the difference cannot take that consequence out.
# Another replacement can.
#
# ## 4. Where zero is harmless
#
# The derivation needs norms without bias. `layernorm` has LayerNorm with biases: a zeroed position leaves
# the first norm as its bias, and goes on from there like other vectors. Zero should not be special in it.

# %% id="layernorm"
model, own = models["layernorm"], prompts["layernorm"].tokens
path = norms(model, own, replace_bos_embedding(model, with_="zero").fwd_hooks)[:, 0]
clean = loss(model, own)[:, 1:].mean().item()
effects = {with_: replaced("layernorm", with_).mean().item() - clean for with_ in WITH}
print("norm of position 0 after zero:", *(f"{value:.2f}" for value in path))
print("loss:", *(f"{with_} {effect:+.3f}  " for with_, effect in effects.items()))
assert path[0] == 0 and (path[1:] > 0.3).all()
assert max(effects.values()) / min(effects.values()) < 1.15

bars = pd.DataFrame({**rows, "layernorm": effects}).loc[list(WITH)]
px.bar(
    bars.T,
    barmode="group",
    color_discrete_sequence=["#0b5394", "#6fa8dc", "#bbbbbb", "#e66100"],
    title="What replacing BOS costs",
    labels={"index": "", "value": "change of the loss (nats)", "variable": ""},
)

# %% [markdown] id="limits"
# All four agree within 15 %. Zero is not wrong in itself: it is wrong where a vector of zeros means something
# to the model, and whether it does is seen from `position0_norm`, before any loss is read.
#
# ### What these numbers can and cannot show
#
# - Read `zero` beside `mean` and `random_token`. Where they disagree, the question "does the model need BOS?" has
#   no answer yet; it depends on what stands there instead.
# - None of the other three is neutral. `mean` is no token's embedding, `random_token` brings a meaning, `gaussian` is
#   out of distribution. In `rope` and `ntk` they agree with each other and with leaving BOS out, which is
#   the reason to believe them, and has to be looked at anew in each model.
# - That `zero` costs less is a fact about these models, not a rule. For massive activations
#   Sun et al. 2024 (2402.17762) found the reverse: set to zero they ruin a model, set to their mean they hardly
#   change it.
# - Each interval is over 16 prompts of one text, and three draws of tokens, directions and control positions.

# %% [markdown] id="questions"
# ## Questions
#
# 1. A paper zeroes BOS, finds that the attention to position 0 falls by half, and concludes that
#    the sink is partly held up by the position. What should it have tried?
#
# <details><summary>Answer</summary>
#
# Another replacement, or the key at position 0: if it is 0, what is left is 1 / (1 + Σ<sub>j</sub> exp(*q*<sub>i</sub> · *k*<sub>j</sub>)),
# which a zero vector gets from softmax alone, at any position. A sink that the position holds up is still there
# with another token.
#
# </details>
#
# 2. Would adding a learned bias to the keys (and nothing else) change the derivation of section 2?
#
# <details><summary>Answer</summary>
#
# Position 0 would still stay at 0, and still bring back nothing, as values have no bias. But its key is then
# the bias, so that the logit is *q*<sub>i</sub> · *b* (with *b* rotated) and the 1 becomes exp(*q*<sub>i</sub> · *b*): each query decides how much
# attention goes to nothing.
#
# </details>
#
# 3. Why does `gaussian` keep the norm of the BOS embedding, although the first thing a block does is to divide
#    by the norm?
#
# <details><summary>Answer</summary>
#
# What the block *reads* does not depend on the norm, but what it writes is added to the stream, where it weighs more
# beside a small vector than beside a large one. With another norm, `gaussian` would change two things at once.
#
# </details>
#
# ## Exercise
#
# `learned` adds a learned vector for each position after the embedding. Predict, before running anything: does
# position 0 stay at 0 after `zero`? What do `zero` and `mean` cost, and does `random_token` cost more or less?
# Run `bos_replacement` on it and say what holds up position 0 in this model. Then write a
# hook with which block 0 reads a zero vector at position 0, and see whether it stays one.
#
# <details><summary>Hint</summary>
#
# `replace_bos_embedding` edits `hook_embed`. Print `norms(...)` after `zero`: its first number is the norm of what
# is added between `hook_embed` and `blocks.0.hook_resid_pre`. A hook at the latter sees the sum.
#
# </details>
