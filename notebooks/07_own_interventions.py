# %% [markdown] id="title"
# # Interventions of your own: from a hook to a published experiment
#
# You have written a hook function, in place as most are, and want to know what it does to a model. This
# notebook takes one hook all the way: from `run_with_hooks` to an effect with an interval and a control, a
# figure, an experiment with a name, and a package that others install.
#
# After it you can
#
# 1. give a hook of any form to sinklens, and tell when it did nothing;
# 2. measure a number of your own;
# 3. choose a control, and read the effect beside it;
# 4. declare the whole as an experiment, and ship it.
#
# You need to have seen a TransformerLens hook; `notebooks/01_first_sink.ipynb` explains effects, intervals
# and contrasts. Nothing below is downloaded. Statements about numbers are checked by an `assert` in the
# code that follows them.

# %% id="install"
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("sinklens") is None:  # as on Colab
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "sinklens"], check=True)

# %% id="setup"
from functools import partial

import torch

import sinklens

torch.set_grad_enabled(False)
model = sinklens.load("rope")
prompts = sinklens.prompts(model, n=16, length=32)

# %% [markdown] id="hook"
# ## 1. A hook, in place
#
# The hook turns the residual stream at one position around: the same norm, the opposite direction. It
# writes into the tensor that it gets and returns it, which TransformerLens allows. At position 0 the
# tokens after it lose whatever they read from BOS, and the loss rises.

# %% id="hook-run"
POINT = "blocks.2.hook_resid_pre"  # what enters block 2: [prompt, position, d_model]


def turn(x, hook, position=0):
    """Turn the residual stream at a position around."""
    x[:, position] *= -1
    return x


def mean_loss(hooks):
    """The loss in nats, over all prompts and predictions."""
    return model.run_with_hooks(prompts.tokens, return_type="loss", fwd_hooks=hooks).item()


clean, turned = mean_loss([]), mean_loss([(POINT, turn)])
print(f"loss {clean:.3f} -> {turned:.3f}")
assert turned > clean

# %% [markdown] id="nothing"
# A hook that does nothing is the most common mistake: a misspelt point, an edit of a copy. In a plain run
# it looks like an effect of 0. In sinklens it is an error that says so.


# %% id="nothing-run"
def turn_a_copy(x, hook):
    """Turn a copy, and return the original."""
    copy = x.clone()
    copy[:, 0] *= -1
    return x


try:
    sinklens.evaluate(model, prompts, [(POINT, turn_a_copy)], ["loss"])
except sinklens.SinklensError as error:
    message = str(error)
print(message)
assert "changed nothing" in message

# %% [markdown] id="metric"
# ## 2. A metric of your own
#
# A metric is a function of the logits that returns one number a prompt. It gets the logits of the run with
# the hooks, the tokens, the logits of the clean run, the positions whose predictions count (those after the
# edited one), and the answers, if the prompts have some. This one asks how sure the model is: the entropy
# of its predictions, in nats.


# %% id="metric-run"
def entropy(logits, tokens, *, clean_logits, positions, answers):
    """Mean entropy of the predictions that count, by prompt."""
    log_probs = logits[:, positions].float().log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1).mean(-1)


found = sinklens.evaluate(model, prompts, {"turned": [(POINT, turn)]}, ["loss", entropy])
print([metric.name for metric in found.metrics], found.values.shape)

# [intervention, metric, prompt]; the engine's numbers are those of the plain call.
by_token = model.run_with_hooks(
    prompts.tokens, return_type="loss", loss_per_token=True, fwd_hooks=[(POINT, turn)]
)
torch.testing.assert_close(found.values[0, 0], by_token[:, 1:].mean(1), rtol=0, atol=1e-4)

# %% [markdown] id="control"
# ## 3. A control, an effect, a figure
#
# Turning *any* position around does harm. Does position 0 matter more than another? The control is the same
# hook somewhere else. Three later positions are three **draws** of the control: each is run on every
# prompt, and the interval covers their choice.
#
# An `Intervention` says which position is edited, so that only predictions after it count. Bare pairs
# `(point, function)` are taken as an edit at position 0.


# %% id="control-run"
def turned_at(position, layer=2):
    """The hook at a position and a layer."""
    return sinklens.Intervention(
        name="turned",
        site="residual",
        first_layer=layer,
        fwd_hooks=[(f"blocks.{layer}.hook_resid_pre", partial(turn, position=position))],
        position=position,
        layer=layer,
    )


result = sinklens.compare_interventions(
    model,
    prompts,
    treatment={"turned": turned_at(0)},
    control={"later_position": [turned_at(position) for position in (3, 5, 7)]},
    metrics=["loss", entropy],
)

effect = result.find(metric="loss", kind="treatment")
contrast = result.find(metric="loss", kind="contrast")
assert effect.effect > 0
after = model(prompts.tokens, return_type="loss", loss_per_token=True)[:, 1:].mean()
assert abs(effect.baseline - after) < 1e-4
assert contrast.against == "later_position"
result

# %% [markdown] id="read"
# Read `difference` first: the effect less that of the control, paired by prompt, at the predictions that
# both count. If its interval holds 0, turning position 0 is not distinguishable from turning another
# position, however large the effect beside the clean run is.

# %% id="figure"
result.plot()

# %% [markdown] id="experiment"
# ## 4. An experiment of your own
#
# A comparison that you repeat deserves a name. An experiment is a function of a `Run`, which holds model,
# prompts and settings; `compare` takes a function that makes the comparisons. This one turns position 0
# around at every layer. Settings such as `draws`, `metrics`, `seed` and `batch_size` come with
# `ExperimentConfig`. You may run the cell again after a change: it replaces what it declared.

# %% id="experiment-run"
from sinklens.hooks.matching import control_positions
from sinklens.runner.compare import Comparison, Control
from sinklens.runner.run import Run


@sinklens.experiment(
    paper="",
    question="At which layer does the direction of position 0 matter?",
    metrics=("loss",),
)
def turned_position0(run: Run[sinklens.ExperimentConfig]) -> None:
    """Position 0 turned around at every layer, beside later positions."""
    config = run.config
    places = control_positions(run.prompts.length, config.draws, config.seed, config.positions)
    run.drawn(control_positions=list(places))
    run.compare(
        lambda run: [
            Comparison(
                "turned",
                [turned_at(0, layer)],
                (Control("later_position", [turned_at(at, layer) for at in places]),),
            )
            for layer in range(run.capabilities.n_layers)
        ]
    )


by_layer = sinklens.run("turned_position0", model, prompts, draws=3)
rows = by_layer.to_dataframe().query("kind == 'treatment'")
assert list(rows["layer"]) == list(range(6))
# The same hook as in part 3, so the same row.
assert abs(by_layer.find(kind="treatment", layer=2).effect - effect.effect) < 1e-6
by_layer

# %% id="experiment-plot"
by_layer.plot()

# %% [markdown] id="package"
# ## 5. A package that others install
#
# Another package adds experiments through an *entry point*: a line in its `pyproject.toml` by which Python
# lists what is installed. sinklens imports every module that is named in the group `sinklens.experiments`,
# and with that the experiments declared in it appear in `sinklens list`, `sinklens run` and
# `sinklens.run`. The package needs two files, `pyproject.toml`
#
# ```toml
# [project]
# name = "turned"
# version = "0.1"
# dependencies = ["sinklens"]
#
# [project.entry-points."sinklens.experiments"]
# turned = "turned"
#
# [build-system]
# requires = ["setuptools"]
# build-backend = "setuptools.build_meta"
#
# [tool.setuptools]
# py-modules = ["turned"]
# ```
#
# and `turned.py`, the code from above with its imports:
#
# ```python
# from functools import partial
#
# import sinklens
# from sinklens.hooks.matching import control_positions
# from sinklens.runner.compare import Comparison, Control
# from sinklens.runner.run import Run
#
#
# def turn(x, hook, position=0):
#     x[:, position] *= -1
#     return x
#
#
# def turned_at(position, layer):
#     hooks = [(f"blocks.{layer}.hook_resid_pre", partial(turn, position=position))]
#     return sinklens.Intervention("turned", "residual", layer, hooks, position, layer=layer)
#
#
# def comparison(layer, places):
#     control = Control("later_position", [turned_at(place, layer) for place in places])
#     return Comparison("turned", [turned_at(0, layer)], (control,))
#
#
# @sinklens.experiment(
#     paper="", question="Where does the direction of position 0 matter?", metrics=("loss",)
# )
# def turned_position0(run: Run[sinklens.ExperimentConfig]) -> None:
#     places = control_positions(run.prompts.length, run.config.draws, run.config.seed)
#     layers = range(run.capabilities.n_layers)
#     run.compare(lambda run: [comparison(layer, places) for layer in layers])
# ```
#
# After `pip install .`
#
# ```sh
# sinklens list turned_position0
# sinklens run turned_position0 rope --set draws=3 --out out
# ```
#
# The name on the left of `turned = "turned"` is free; the one on the right is the module. A package that
# cannot be imported is named and left out, and every other command works. A test for it can be one line:
# `sinklens.run("turned_position0", "rope", draws=1)`.

# %% [markdown] id="limits"
# ## What these numbers can and cannot show
#
# - The effect is that of turning a vector around, which no token does. A direction that a model would
#   meet (`position0_patching` with `other_token`) is another question.
# - A control at a later position differs from position 0 in more than its number: BOS stands in every
#   prompt, a later token differs from prompt to prompt.
# - One small model. The interval covers prompts like these and the choice of control positions, not other
#   models.
#
# ## Questions
#
# 1. Write the hook without `return x`. Does anything change?
#
# <details><summary>Answer</summary>
#
# No. A hook that returns nothing but has written into its tensor is an intervention, too; what it did is
# found by comparing with a copy.
#
# </details>
#
# 2. `compare_interventions` got `{"later_position": [...]}` with three interventions. What would
#    `{"third": turned_at(3), "fifth": turned_at(5)}` mean?
#
# <details><summary>Answer</summary>
#
# Two controls instead of draws of one: every metric has a contrast with each, and each contrast is a row of
# its own in the correction for multiple tests.
#
# </details>
#
# 3. Why does the clean loss in the table (`baseline`) differ from `clean` in part 1?
#
# <details><summary>Answer</summary>
#
# Only predictions after the edited position count, so the one made at BOS, which the hook edits, is left
# out. `clean` averages all of them.
#
# </details>
#
# ## Exercise
#
# Part 1 turns a vector around. Write a hook that shuffles the entries of the vector at a position instead: the same
# norm, the same entries, another direction. Compare it with the same at later positions, add the comparison with
# `turn` as a second treatment, and make an experiment of it with a setting that chooses the position.
