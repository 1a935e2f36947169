# %% [markdown] id="title"
# # What the papers claim, and what stands beside their null
#
# A number in a paper is a claim about a mechanism only beside two others: what comes out **without** the mechanism
# (the *null*), and what comes out when the same is done **somewhere else** (the *control*). This notebook takes
# claims from nine papers to `rope`, the trained model that ships with sinklens. Some stand, some fall,
# and some cannot be asked of this model.
#
# After it you can
#
# 1. say what would have to be measured beside a published number before believing it;
# 2. spot a measure that is full without any sink, and a claim that would hold in any model;
# 3. tell *confirmed*, *not confirmed* and *not testable* apart;
# 4. find the null and the control of every row that sinklens prints.
#
# Start with `notebooks/01_first_sink.ipynb`: it explains effects, intervals and contrasts. `docs/claims.md` has
# more claims, with the rule by which each is judged, for this model and for SmolLM2. Nothing below is downloaded.
# Statements about numbers are checked by an `assert` in the code that follows them.

# %% id="install"
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("sinklens") is None:  # as on Colab
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "sinklens"], check=True)

# %% id="setup"
import pandas as pd

import sinklens

model = sinklens.load("rope")
prompts = sinklens.prompts(model, n=8, length=32)
claims = []


def judged(claim, number, beside, verdict):
    """Add a line to the table at the end."""
    claims.append({"claim": claim, "here": number, "beside it": beside, "verdict": verdict})


# %% [markdown] id="repeated"
# ## 1. One token repeated has no sink (Gu et al. 2025, 2410.10781)
#
# The paper reports a sink rate of 0 for prompts that repeat a single token, in models run without BOS. Here it is
# 0 too. But what does *natural text* give without BOS? Also 0: this model has no sink at all then, so that the
# claim holds of repeated tokens as of anything. And with BOS in front, repeated tokens have a sink like natural
# text does.
#
# The number is right, and says nothing about repetition: **not testable** here.

# %% id="repeated-run"
rates = {}
for bos in (False, True):
    profile = sinklens.run(
        "sink_profile",
        model,
        sinklens.prompts(model, n=8, length=64, bos=bos),
        conditions=("natural", "repeated"),
        draws=2,
        null_models=0,
    )
    for condition in ("gu", "gu:repeated"):
        rates[bos, condition] = profile.find(metric="sink_rate", condition=condition).value
table = pd.Series(rates).unstack().rename(columns={"gu": "natural", "gu:repeated": "repeated"})
table.index = ["with BOS" if bos else "without BOS" for bos in table.index]

assert rates[False, "gu:repeated"] == rates[False, "gu"] == 0
assert rates[True, "gu:repeated"] > 0.5 and rates[True, "gu"] > 0.5
judged(
    "repeated tokens have no sink",
    f"{rates[False, 'gu:repeated']:.0%} of heads",
    f"natural text {rates[False, 'gu']:.0%}",
    "not testable",
)
table.map("{:.0%}".format)

# %% [markdown] id="massive"
# ## 2. Massive activations: there are some, and they are needed (Sun et al. 2024, 2402.17762)
#
# A few entries of the residual stream are far larger than all others. `massive_activations` finds them without
# being told where to look, names the sub-block that writes them, and sets them to zero where they first appear.
#
# *Are there any?* The paper asks for a magnitude of at least 100 and a thousand times the median. By that rule, no
# prompt of `rope` has one. By a rule without a scale (50 times the median of the layer) all have one, where Gaussian
# entries would give 6.5 at their largest. So the paper's claim about size is not confirmed here, and what follows
# is about large entries of a small model.
#
# *Does the model need them?* Setting them to zero raises the loss. Two controls stand beside it: as many entries of
# **median** size, which cost nothing, and, the harder one, the **same change in other channels** of the same
# positions. The second takes out the mere size of the edit, and costs something. The difference is what is left for
# the entries themselves, and it is most of the effect.

# %% id="massive-run"
massive = sinklens.run("massive_activations", model, prompts, draws=2, null_models=0)

peak = massive.find(metric="peak_ratio", condition="layer_median")
published = massive.find(metric="massive", condition="absolute:token_median")
assert massive.findings["criterion"] == "scale_free"
assert published.value == 0 and peak.value > 50 and 6 < peak.baseline < 7
zero = massive.find(metric="loss", condition="zero", kind="treatment")
median = massive.find(metric="loss", condition="zero", kind="control", against="median_entries")
other = massive.find(metric="loss", condition="zero", kind="control", against="other_channels")
beyond = massive.find(metric="loss", condition="zero", kind="contrast", against="other_channels")
assert zero.ci_low > 0 and median.ci_low < 0 < median.ci_high
assert other.ci_low > 0 and beyond.ci_low > 0 and beyond.effect > zero.effect / 2
judged(
    "there are activations above 100 and 1,000 times the median",
    f"{published.value:.0%} of prompts",
    f"{peak.value:.0f} times the median at most",
    "not confirmed",
)
judged(
    "the model needs its largest activations",
    f"{zero.effect:+.2f} nats at zero",
    f"other channels {other.effect:+.2f}",
    "confirmed",
)
massive

# %% id="massive-plot"
massive.plot()

# %% [markdown] id="decoupling"
# ## 3. Spikes and sinks can be decoupled (Sun et al. 2026, 2603.05498)
#
# The paper trains models in which one occurs without the other. In a trained `rope`, one can clamp the spikes, drop
# the edge of every sink head to position 0, and do both. If the two acted apart, their effects on the loss would add
# up. They do not: once the edges are gone, clamping the spikes costs next to nothing more. The **interaction** (the
# effect of both less the sum of the two) is negative and as large as the effect of clamping itself.
#
# Any two strong edits may interact, by saturation alone. So the same is computed from the two *controls*, each as
# large an edit as its treatment: their interaction is close to nothing. In this model the loss from clamping goes
# *through* the attention to position 0.

# %% id="decoupling-run"
decoupling = sinklens.run("spike_sink_decoupling", model, prompts, draws=2, null_models=0)

alone = decoupling.find(metric="loss", condition="clamp_spikes", kind="treatment")
both = decoupling.find(metric="loss", condition="interaction", kind="treatment")
elsewhere = decoupling.find(metric="loss", condition="interaction", kind="control")
assert both.ci_high < 0 and abs(both.effect) > 0.9 * alone.effect
assert abs(elsewhere.effect) < abs(both.effect) / 10
judged(
    "spikes and sinks act apart (on the loss)",
    f"interaction {both.effect:+.2f} nats",
    f"of the controls {elsewhere.effect:+.2f}",
    "not confirmed",
)
decoupling

# %% id="decoupling-plot"
decoupling.plot()

# %% [markdown] id="frame"
# ## 4. Attention is a star around an anchor (Ruscio et al. 2025, 2508.02546)
#
# The paper draws a graph: an edge wherever a query gives a key more than a threshold, and asks how star-like it is.
# At a threshold of 0.01, `rope` scores 100 %. So does **uniform attention**: with 32 positions nobody gets less than
# 1/32, every edge is there, and the graph of *any* spread-out attention is full. The measure shows the threshold.
#
# A threshold relative to uniform attention (twice as much) does not have that fault: uniform attention scores 0
# there. But it has a second null to pass: **row-permuted** attention, which keeps how concentrated each row is, and
# forgets where. That scores 16 %. The star of `rope` is far above both.

# %% id="frame-run"
frame = sinklens.run("reference_frame", model, prompts, draws=3)

at_threshold = frame.find(metric="star_likeness", condition="above_0.01", kind="measurement")
relative = frame.find(metric="star_likeness", condition="above_2x_uniform", kind="measurement")
permuted = frame.find(
    metric="star_likeness", condition="above_2x_uniform", against="row_permuted", kind="null"
)
assert at_threshold.value == at_threshold.baseline == 1
assert relative.baseline == 0 and 0.1 < permuted.value < 0.2 < relative.value
largest = frame.find(metric="largest_column", kind="contrast", against="row_permuted")
assert largest.ci_low > 0
judged(
    "attention is a star (threshold 0.01)",
    f"{at_threshold.value:.0%}",
    f"uniform attention {at_threshold.baseline:.0%}",
    "not testable",
)
judged(
    "attention is a star (twice uniform)",
    f"{relative.value:.0%}",
    f"row-permuted {permuted.value:.0%}",
    "confirmed",
)
frame

# %% id="frame-plot"
frame.plot()

# %% [markdown] id="position"
# ## 5. Replacing BOS removes 40 % of absolute position (Ruscio et al. 2026, 2606.06160)
#
# With rotary positions, the query-key interaction depends on the relative position of two tokens only. Attention can
# depend on absolute position through the causal mask (a later query sees more keys) and through the residual stream.
# The abstract says that replacing BOS removes 40 % of the second component at early queries. It does not say whether
# the column of BOS itself is counted.
#
# Counted, 92 % is removed. But replacing the token whose column one measures removes that column by construction. Not
# counted, the component is **not distinguishable from its null** with 8 prompts of 32 tokens, and a share of
# nothing is not a number: sinklens gives none. (With 96 prompts there is enough to ask, see `docs/claims.md`; the
# interval then is too wide for a verdict.)

# %% id="position-run"
position = sinklens.run(
    "absolute_position",
    model,
    prompts,
    conditions=("mean", "random_token"),
    first_tokens=4,
    null_models=0,
)

removed = position.find(
    metric="removed_all_keys", condition="mean", kind="treatment", queries="1:8"
)
left = position.find(
    metric="residual_share", condition="without_key0", kind="measurement", queries="1:8"
)
assert removed.ci_low > 0.8
assert left.ci_low < left.baseline < left.ci_high
rows = position.to_dataframe()
assert not rows["metric"].eq("removed_without_key0").any()
assert any("2606.06160" in line and "40%" in line for line in position.summary)
judged(
    "replacing BOS removes 40 % of absolute position",
    f"{removed.value:.0%} with the column of BOS",
    "without it, nothing to remove from",
    "not testable",
)
position

# %% id="position-plot"
position.plot()

# %% [markdown] id="spectrum"
# ## 6. Entropy over positions trades off against entropy over frequencies (Ruscio et al. 2025, 2410.18067)
#
# The paper takes a row of attention as a signal over positions. Where its entropy is low, that of its spectrum is
# high: a correlation of -0.42 to -0.74 in seven models, read as a trade-off that attention has learned. What the
# signal is and over what is correlated is not said; here it is a query's row, and prompts. `rope` has -0.47.
#
# Now take logits at random, with the standard deviation of the row's own, and a softmax: no positions, no content,
# nothing learned. They give **-0.83**. Any peak is narrow in position and broad in frequency. The number of the paper
# is what a softmax does, and `rope` is closer to 0 than that.
#
# A second look at the definition: the paper's Hann window is 0 at the first key. A third of attention here, the sink,
# is not in the spectrum at all.

# %% id="spectrum-run"
spectrum = sinklens.run(
    "positional_spectrum",
    model,
    prompts,
    conditions=("fast",),
    draws=2,
    null_models=0,
    wavelets=False,
)

own = spectrum.find(metric="entropy_correlation", condition="prompts", against=None)
random = spectrum.find(
    metric="entropy_correlation", condition="prompts", against="random_logits", kind="null"
)
beyond = spectrum.find(
    metric="entropy_correlation", condition="prompts", against="random_logits", kind="contrast"
)
assert own.ci_high < 0 and -0.74 < own.value < -0.42
assert random.value < own.value and beyond.ci_low > 0
assert 0.3 < spectrum.findings["on_key0"] < 0.4
fast = spectrum.find(metric="loss", condition="fast", kind="contrast")
assert fast.ci_low > 0
judged(
    "entropies over positions and frequencies trade off",
    f"rho {own.value:.2f}",
    f"random logits {random.value:.2f}",
    "not testable",
)
spectrum

# %% id="spectrum-plot"
spectrum.plot()

# %% [markdown] id="phases"
# An earlier version of the paper (Ruscio and Silvestri 2024, 2410.18067 v1) held that aligned phases of rotary planes
# sharpen attention. Over queries, alignment with the strongest key and sharpness of the row do correlate. With random
# phases, which keep every amplitude, they correlate **more**: a logit is alignment times amplitude, so that this is
# arithmetic. That a turn of the phases matters is another claim, and it stands: moving every key one token away costs
# loss, and the same angles in another order cost next to nothing.

# %% id="phases-run"
phases = sinklens.run("rope_phase", model, prompts, draws=2, null_models=0)

own = phases.find(metric="alignment_sharpness", condition="queries", against=None)
random = phases.find(metric="alignment_sharpness", against="random_phases", kind="null")
turned = phases.find(metric="loss", condition="one_token", kind="contrast")
assert own.ci_low > 0 and random.value > own.value
assert turned.ci_low > 0 and abs(turned.baseline) < turned.value / 5
judged(
    "aligned phases sharpen attention",
    f"rho {own.value:.2f}",
    f"random phases {random.value:.2f}",
    "not testable",
)
phases

# %% [markdown] id="allocation"
# ## 7. Attention without anything relevant is parked (Fu et al. 2026, 2601.00919)
#
# Softmax has to give its weight to something. If nothing is relevant, the paper holds, it goes to a sink. Then what
# is parked there should not be needed: a model could do without it, if the other weights stayed as they are.
#
# `rope` parks more than a third of its attention, where uniform attention would give key 0 a tenth. Is that needed?
# *All* parked attention taken away costs a small part of what *all* spread attention does. But there is more of the
# one than of the other, so that the sizes have to be matched: `parked:spread` removes, row by row, the lesser of both
# amounts from the sink, and as its control from the other keys. And the act matters: the same parked attention
# removed **and the rest scaled up** to the former sum (`parked:renormalised`) costs several times as much. It is
# not the attention to the sink that is missed, but that the other weights are as small as they are.
#
# One number says nothing here. Row-permuted attention weighs exactly as many keys as attention does: an effective
# number of keys cannot show that anything is parked.

# %% id="allocation-run"
allocation = sinklens.run("attention_allocation", model, prompts, draws=2, null_models=0)

mass = allocation.find(metric="mass", condition="parked", kind="measurement")
cost = {
    name: allocation.find(metric="loss", condition=name, kind="treatment")
    for name in ("parked", "spread", "parked:renormalised")
}
equal = allocation.find(metric="kl", condition="parked:spread", kind="contrast")
assert mass.value > 1 / 3 and 0.09 < mass.baseline < 0.11
assert cost["parked"].effect < cost["spread"].effect / 10
assert cost["parked:renormalised"].effect > 3 * cost["parked"].effect
assert equal.ci_high < 0
judged(
    "what is parked on the sink is not needed",
    f"{cost['parked'].effect:+.2f} nats without it",
    f"spread {cost['spread'].effect:+.2f}, rescaled {cost['parked:renormalised'].effect:+.2f}",
    "confirmed",
)
allocation

# %% id="allocation-plot"
allocation.plot()

# %% [markdown] id="synchronisation"
# ## 8. Sinks keep tokens apart (Liu et al. 2026, 2602.11534; Barbero et al. 2025, 2504.02732)
#
# Attention mixes, and a stack of it should make all token states alike. One paper holds that sinks come from that,
# the other that they slow it down: in Gemma 7B a changed word moves later states more when BOS is missing.
#
# *Are states alike?* Their mean cosine is above that of random directions. That sounds like a finding until one looks
# at a model of the same shape with **random weights**, where it is several times as large: training keeps states
# apart, and a positive cosine is no sign of a collapse.
#
# *Does a change spread further without the sink?* It does, by a third, and nothing like that happens when a later key is
# dropped, or in a model with random weights. Dropping the edge and removing BOS give the same number to the last
# digit: with rotary positions they are the same act.

# %% id="synchronisation-run"
synchronisation = sinklens.run("token_synchronisation", model, prompts, draws=2, null_models=0)

cosine = synchronisation.find(metric="cosine", condition="without_sinks", kind="measurement")
untrained = synchronisation.find(
    metric="cosine", condition="without_sinks", against="random_weights", kind="null"
)
assert cosine.ci_low > 0 and untrained.value > 3 * cosine.value
further = synchronisation.find(metric="spread", condition="drop_edge", kind="treatment")
without = synchronisation.find(metric="spread", condition="without_bos", kind="treatment")
later = synchronisation.find(metric="spread", condition="drop_edge", kind="control")
assert further.ci_low > 0 and abs(later.effect) < further.effect / 10
assert abs(further.value - without.value) < 1e-4
judged(
    "token states are alike",
    f"cosine {cosine.value:.2f}",
    f"random weights {untrained.value:.2f}",
    "not confirmed",
)
judged(
    "the sink keeps a change from spreading",
    f"{further.effect:+.1%} without it",
    f"a later key {later.effect:+.1%}",
    "confirmed",
)
synchronisation

# %% id="synchronisation-plot"
synchronisation.plot()

# %% [markdown] id="rollout"
# ## 9. Rolled out over layers, attention ends on the first token (Wu et al. 2025, 2502.01951)
#
# Multiply the attention matrices of all layers: the product says from which positions the last query's state has come.
# Under a causal mask that product drifts to the first token, *whatever* the attention. In `rope` it is there to 96 %.
# But **uniform attention under the same mask** gives 76 % already: most of that number is the mask's, as the paper says.
#
# The residual changes it. Weighted by its share of the norms, it leaves 34 % on position 0, where the mask alone would
# leave 8 %: that much is this model's sink. And of what is *not* on position 0, the first third gets no more than the
# middle third, where the mask alone would give it 14 % more. The bias for early positions in this model is a bias for
# one position; without the edge to it, no more of it is left. (This claim is about an algebra of weights, not about
# what the model needs, and has no line in the table.)

# %% id="rollout-run"
rollout = sinklens.run("position_bias", model, prompts, draws=2, null_models=0)


def of_clean_run(metric, condition):
    """The row of a value, with the mask alone as its baseline."""
    return rollout.find(metric=metric, condition=condition, against=None)


product = of_clean_run("share", "position0:no_residual")
weighted = of_clean_run("share", "position0")
rest = of_clean_run("gap", "first_middle:without_key0")
dropped = of_clean_run("gap", "first_middle:edge_dropped")
assert product.value > 0.9 and 0.7 < product.baseline < 0.8
assert 0.3 < weighted.value < 0.4 and 0.05 < weighted.baseline < 0.1
assert rest.ci_high < 0 and rest.value < 0 < 0.1 < rest.baseline
assert dropped.ci_high < 0 and abs(dropped.value) < 0.05 < 0.2 < dropped.baseline
rollout

# %% id="rollout-plot"
rollout.plot()

# %% [markdown] id="likelihood"
# ## 10. A word's likelihood decides how much it attends to itself (Ruscio et al. 2023, 2303.08288)
#
# The paper finds, in encoders, a strong rank correlation between the likelihood of a word and the attention that its
# position gives itself, in the layer where it is largest. In `rope`, a decoder, the correlation over words is negative.
# But words further on are likelier, since more stands before them, and they see more keys, among which attention is
# shared out. **Uniform attention** has the same correlation, without looking at any word. With length, frequency and
# position partialled out nothing is left that could be told from 0, and the *largest of six layers* is no larger than
# what permuted likelihoods give in their largest layer.
#
# Replacing words is the stronger test, and it agrees: neither the likeliest nor an unlikely word changes the attention
# of its position more than a word of the same frequency does. (Eight prompts are few: look at the intervals. This claim
# is about encoders in the paper and has no line in the table.)

# %% id="likelihood-run"
likelihood = sinklens.run("attention_likelihood", model, prompts, draws=2)

itself = likelihood.find(metric="rho", condition="self", against=None)
partial = likelihood.find(metric="rho", condition="self:partial", against=None)
assert itself.value < 0 and itself.baseline < itself.value
assert partial.ci_low < 0 < partial.ci_high
assert likelihood.findings["largest"]["self"]["p"] > 0.05
substituted = [
    likelihood.find(metric="self_attention", condition=name, kind="contrast")
    for name in ("likeliest", "unlikely")
]
assert all(row.ci_low < 0 < row.ci_high for row in substituted)
likelihood

# %% id="likelihood-plot"
likelihood.plot()

# %% [markdown] id="removed-heads"
# ## Four questions without a verdict
#
# The next four lines of work have no published number that could be asked of this model, so they add no line to the
# table. Each has a null or control that its headline needs.
#
# **Which heads can be removed?** (Sandoval-Segura et al. 2025, 2504.03889) A fifth of the heads is removed together,
# those with the smallest output first. That costs next to nothing, and as many heads of the *same layers*, drawn at
# random, cost a third of a nat: the score knows more than layers. By the published rule of thumb (more than 0.89 of
# the attention on the first token) not one head of `rope` is dormant.

# %% id="removed-heads-run"
dormant = sinklens.run(
    "active_dormant",
    model,
    prompts,
    conditions="output_norm:layer",
    metrics="loss",
    removed=(0.2,),
    draws=2,
    random_weights=False,
)

smallest = {"metric": "loss", "condition": "output_norm:layer@20%"}
removed_heads = dormant.find(**smallest, kind="treatment")
less = dormant.find(**smallest, kind="contrast", against="same_layers")
assert removed_heads.ci_low < 0 < removed_heads.ci_high < 0.1 and less.ci_high < 0
assert dormant.find(metric="dormant", condition="first_token_weight").value == 0
dormant

# %% [markdown] id="eigenvalues"
# **Do the eigenvalues of W<sub>QK</sub> tell which heads have a sink?** (Bao et al. 2024, 2402.02098) The paper expects
# attention to be concentrated where the eigenvalues are. Over the heads of `rope`, concentration goes with *less* sink
# mass; with the entries of the weights permuted, with more. Mean and variance tell nothing. There are six layers, and
# the interval is over layers, since heads of one layer are alike.

# %% id="eigenvalues-run"
spectrum = sinklens.run("qk_eigenspectrum", model, prompts, draws=2)

correlation = spectrum.find(
    metric="rank_correlation", condition="eigen_concentration", kind="measurement"
)
shuffled = spectrum.find(
    metric="rank_correlation",
    condition="eigen_concentration",
    against="permuted_weights",
    kind="null",
)
assert correlation.ci_high < 0 < shuffled.value and correlation.n_prompts == 6
spectrum

# %% [markdown] id="mean-patterns"
# **Does attention depend on the prompt at all?** (Xue et al. 2025, 2510.11602) A head's pattern shares 77 % of its
# attention with its mean over the other prompts. In a model with **random weights** it is 99 %: a large share says that
# attention is spread out, not that a model does without the prompt. Written in place of the pattern, the mean costs
# 0.8 nats, no less (that eight prompts could tell) than the pattern of another prompt does.

# %% id="mean-patterns-run"
fixed = sinklens.run(
    "input_dependence", model, prompts, conditions="mean:all", metrics="loss", draws=2
)

shared = fixed.find(metric="overlap", condition="all", kind="measurement")
untrained = fixed.find(metric="overlap", condition="all", against="random_weights", kind="null")
written = fixed.find(metric="loss", condition="mean:all", kind="treatment")
another = fixed.find(metric="loss", condition="mean:all", kind="contrast")
assert 0.7 < shared.value < 0.8 and untrained.value > 0.95
assert written.ci_low > 0.3 and another.ci_low < 0 < another.ci_high
fixed

# %% [markdown] id="constant-bias"
# **Is the sink a constant bias, or a tag of tokens?** (Zhang et al. 2025, 2502.00919, ask the second) What sink heads
# read from position 0 differs from its mean by 40 %, and from an earlier ordinary key by 270 %. Made constant, it
# costs nothing that can be measured, but neither does the same of a later key, which is read little. As for the tag:
# 13 % of a head's output varies along the value of position 0, where a random direction gives 3 %. The value of an
# *ordinary* earlier key gives 13 % too. Beside that null, the headline is gone.

# %% id="constant-bias-run"
bias = sinklens.run("bias_constancy", model, prompts, metrics="loss", draws=2)

inconstant = bias.find(metric="inconstancy", condition="sink_heads", kind="measurement")
ordinary = bias.find(
    metric="inconstancy", condition="sink_heads", against="earlier_key", kind="null"
)
tag = bias.find(metric="tag_share", condition="sink_heads", kind="measurement")
beyond_tag = bias.find(metric="tag_share", condition="sink_heads", kind="contrast")
constant = bias.find(metric="loss", condition="constant", kind="treatment")
assert inconstant.value < 0.5 and ordinary.value > 2
assert tag.ci_low > 0 and beyond_tag.ci_low < 0 < beyond_tag.ci_high
assert constant.ci_low < 0 < constant.ci_high < 0.05
bias

# %% [markdown] id="table"
# ## The table
#
# Twelve lines from nine papers, each with what stands beside it. None of the numbers in the column *here* would have
# told you its verdict.

# %% id="table-run"
verdicts = pd.DataFrame(claims).set_index("claim")
counts = verdicts["verdict"].value_counts()
assert len(claims) == 12 and counts["not testable"] == 5
verdicts

# %% [markdown] id="limits"
# ### What these numbers cannot show
#
# - The papers measured other models, mostly a thousand times as large. "Not confirmed" is a finding about `rope`, and
#   no refutation of a paper.
# - Clamping and dropping test what a **trained** model needs. What training would have produced without spikes or
#   sinks is another question, for which there are models: `qknorm`, `learned-sink`, `postnorm` (notebook 5).
# - When in training any of this appears is the subject of notebook 6.
# - "Not significantly different from its control" is not "no effect": look at the interval.
#
# ## Questions
#
# 1. Section 2 has two controls for one edit. Why is the cheaper one, entries of median size, not enough?
#
# <details><summary>Answer</summary>
#
# Because it changes little: zeroing a small entry is a small edit, and that a large edit costs more than a small one
# is not a finding about massive activations. The other control changes the stream by the same amount, elsewhere.
#
# </details>
#
# 2. Row-permuted attention has a largest column above that of uniform attention. Why?
#
# <details><summary>Answer</summary>
#
# It is a maximum over columns, and the rows are as concentrated as those of the model. Their large weights fall on
# columns at random, and on some column more of them fall than on others. Uniform rows have nothing to fall.
#
# </details>
#
# 3. Which of the first eight lines would change if the same were done on a model with random weights?
#
# <details><summary>Answer</summary>
#
# Not the star at threshold 0.01: near-uniform attention is full there as well, which is why that line says nothing
# about training. Nor the sink rate of 0 without BOS, nor the trade-off of entropies. The others need a peak, a sink
# or a loss that an edit can raise.
#
# </details>
#
# ## Exercise
#
# Take one claim from a paper that you know, with a number. Write down, before running anything, which null and which
# control you would want beside it, and what result would count as *not confirmed* and what as *not testable*. Then
# add it as another line: with an experiment of sinklens, or with your own hook and `compare_interventions`
# (notebook 7).
