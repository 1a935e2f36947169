# %% [markdown] id="title"
# # Texts of your own: unequal lengths, chats, clean and corrupted pairs
#
# Most notebooks run a model on windows of one text, all of one length. Your prompts are sentences, chats,
# or pairs that differ in one word. This notebook brings each of them.
#
# After it you can
#
# 1. run any experiment on prompts of unequal length, and say why no padding is needed;
# 2. cut windows within documents, and see where the interval is over documents;
# 3. bring conversations through a chat template, with one BOS;
# 4. patch a clean and a corrupted run into each other, and report how much is recovered.
#
# Start with `notebooks/01_first_sink.ipynb`. Nothing below is downloaded. Statements about numbers are
# checked by an `assert` in the code that follows them.

# %% id="install"
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("sinklens") is None:  # as on Colab
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "sinklens"], check=True)

# %% id="setup"
import torch

import sinklens
from sinklens import Prompts

torch.set_grad_enabled(False)
model = sinklens.load("rope")

# %% [markdown] id="lengths"
# ## 1. Prompts of unequal length
#
# `Prompts.from_strings` takes a list, a column of a data set, any iterable of strings. BOS is put in front
# where the model is used to it. `show` prints the tokens with a bar between them.

# %% id="lengths-make"
texts = [
    "The state of the Union is strong",
    "Our people want peace",
    "I have the honor to report to the Congress that the Treasury is full",
    "We have done our duty",
    "The laws of this country are the laws of its people",
    "Trade with the nations of Europe has grown in the last year",
]
prompts = Prompts.from_strings(model, texts)
prompts.show(3)
print(prompts, prompts.lengths.tolist())
assert prompts.bos and prompts.length < prompts.longest

# %% [markdown] id="lengths-why"
# Prompts of one length run together, as they are, without padding and without a mask; values come back in
# the order given. So every prompt has the numbers that it has alone. A tokenizer's padded batch is taken
# apart in the same way: `Prompts.from_tokens(model, tokenizer(texts, padding=True))`.

# %% id="lengths-run"
result = sinklens.run(
    "bos_replacement", model, prompts, conditions=["mean"], metrics=["loss"], draws=2
)

together = sinklens.evaluate(model, prompts, [], ["loss"]).clean[0]
alone = [sinklens.evaluate(model, prompt, [], ["loss"]).clean[0, 0] for prompt in prompts]
torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=1e-5)
assert abs(result.find(kind="treatment").baseline - together.mean()) < 1e-5
result

# %% [markdown] id="documents"
# A *document* is a text from which several windows are cut, never across its end. Windows of one document
# are alike, so the interval of a single measurement is then over documents, and the row says so
# (`resampled`). Differences between two runs of the same window are hardly alike, and stay over prompts.

# %% id="documents-run"
documents = [" ".join(texts[start:] + texts[:start]) for start in range(4)]
windows = sinklens.prompts(model, documents, n=8, length=24)
profile = sinklens.run("sink_profile", model, windows)

mass = profile.find(metric="sink_mass", condition="position0")
print(windows.documents.tolist(), mass.resampled, mass.n_prompts)
assert mass.resampled == "document" and mass.n_prompts == 4

# %% [markdown] id="chat"
# ## 2. Conversations
#
# `Prompts.from_chat` renders lists of messages in the model's own chat template. Instruction-tuned models
# bring one with their tokenizer. `rope` was trained on speeches and has none, so this cell writes a small
# one. The template writes BOS itself; sinklens sees to it that there is one, not two.
#
# The *preamble* is what stands before the user's first words: BOS, the system prompt, the header of the
# turn. It is the same in every prompt here, which is worth knowing when position 0 attracts attention: the
# positions after it hold no content of the user's, either.

# %% id="chat-run"
model.tokenizer.chat_template = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
system = {"role": "system", "content": "You are a clerk of the House."}
questions = ["Who wrote the act?", "What did the Senate say of the treaty with France?", "Why?"]
chats = Prompts.from_chat(
    model,
    [[system, {"role": "user", "content": question}] for question in questions],
    add_generation_prompt=True,
)
chats.show(1)
print(chats.lengths.tolist(), "of which preamble:", chats.preamble.tolist())
bos = model.tokenizer.bos_token_id
assert chats.bos and all(row.count(bos) == 1 for row in chats.rows())
assert len(set(chats.preamble.tolist())) == 1
sinklens.run("sink_profile", model, chats).plot()

# %% [markdown] id="pairs"
# ## 3. Clean and corrupted pairs
#
# To find out *where* a model keeps a fact, run it on two prompts that differ in one word and write a piece
# of one run into the other. After "of the United" the model says " States"; after "of the American" it says
# " people". The logit difference D between the two answers tells the runs apart.
#
# The two prompts of a pair need equally many tokens, since they are patched position by position; different
# pairs may differ in length.

# %% id="pairs-make"
subjects = [
    "The Government of",
    "the citizens of",
    "the interests of",
    "The laws of",
    "the flag of",
]
subjects += ["the history of", "the people of", "the commerce of", "The Army of", "the credit of"]
pairs = Prompts.pairs(
    model,
    clean=[f"{subject} the United" for subject in subjects],
    corrupted=[f"{subject} the American" for subject in subjects],
    answers=[(" States", " people")] * len(subjects),
)
clean, corrupted = (
    sinklens.evaluate(model, side, [], ["logit_diff"]).clean[0]
    for side in (pairs.clean, pairs.corrupted)
)
print(f"D clean {clean.mean():.2f}, corrupted {corrupted.mean():.2f}")
assert (clean > 0).all() and (corrupted < 0).all()

try:
    Prompts.pairs(model, ["the people of the United"], ["the people of the several"])
except sinklens.SinklensError as error:
    print(error)

# %% [markdown] id="heads"
# ### Heads
#
# `patch_heads` writes the outputs of heads in one run into the other; `pairs.into` says which run is
# patched, by default the corrupted one, and `pairs.reversed()` turns that around. The **recovered
# fraction** is
#
# > (*D*<sub>patched</sub> − *D*<sub>corrupted</sub>) / (*D*<sub>clean</sub> − *D*<sub>corrupted</sub>),
#
# each *D* a mean over pairs: a ratio of means. It is 0 in the corrupted and 1 in the clean run. The mean of
# the pairs' own fractions would be decided by pairs whose two runs hardly differ; these fractions are in
# `arrays["recovered_by_pair"]` for you to look at.


# %% id="heads-run"
def heads_of(*layers):
    """The clean outputs of all heads of some layers."""
    heads = [(layer, head) for layer in layers for head in range(model.cfg.n_heads)]
    return sinklens.patch_heads(model, pairs, heads)


heads = sinklens.compare_pairs(
    model,
    pairs,
    treatment={f"heads of L{layer}": heads_of(layer) for layer in range(6)}
    | {"all heads": heads_of(*range(6))},
)
every = heads.find(metric="recovered_fraction", condition="all heads")
patched = heads.find(metric="logit_diff", condition="all heads").value
ratio = (patched - corrupted.mean()) / (clean.mean() - corrupted.mean())
assert abs(every.value - ratio) < 1e-4
assert 0 < every.value < 0.5
heads

# %% [markdown] id="heads-read"
# All heads together bring back a small part only. That is no surprise: the word that differs stands at the
# very position from which the answer is read, and its own residual stream carries it past every head.
# Attention matters where the answer has to be fetched from somewhere else.

# %% [markdown] id="position0"
# ### Position 0
#
# With BOS in front, position 0 holds the same in both runs of a pair, whatever the layer: a causal model
# sees nothing else there. Patching it would be no intervention, so it is refused. Without BOS
# (`bos=False`) the first token can differ.

# %% id="position0-run"
try:
    sinklens.patch_position(model, pairs, layer=2)
except sinklens.SinklensError as error:
    print(error)

first = [
    (" House of", " Secretary of", (" Rep", " the")),
    (" Secretary of the", " House of the", (" T", " United")),
    (" year of", " part of", (" $", " Rep")),
    (" act of", " part of", (" $", " the")),
    (" year of", " States of", (" $", " the")),
    (" people of", " year of", (" the", " $")),
    (" Department of", " act of", (" the", " $")),
    (" States of", " act of", (" the", " $")),
]
starts = Prompts.pairs(
    model,
    clean=[pair[0] for pair in first],
    corrupted=[pair[1] for pair in first],
    answers=[pair[2] for pair in first],
    bos=False,
)
position0 = sinklens.compare_pairs(
    model,
    starts,
    treatment={
        f"from block {layer} on": sinklens.patch_position(model, starts, layer)
        for layer in range(6)
    },
)
recovered = position0.to_dataframe().query("metric == 'recovered_fraction'")
assert list(recovered["layer"]) == list(range(6))
assert recovered["value"].iloc[0] > recovered["value"].iloc[-1] > 0
# Pairs that differ in their first token only are recovered whole at block 0.
fractions = position0.array("recovered_by_pair").to_numpy()[0]
only_first = ((starts.clean.tokens != starts.corrupted.tokens).sum(1) == 1).numpy()
assert abs(fractions[only_first] - 1).max() < 1e-4 and only_first.sum() == 6
position0

# %% id="position0-plot"
position0.plot()

# %% [markdown] id="limits"
# The earlier the layer, the more is recovered: later tokens read position 0 in every layer, and what they
# have read before the patch stays. At block 0 everything is recovered in pairs that differ in their first token
# only, and less in those that differ elsewhere too (" House" and " Secretary" are several tokens).
#
# ### What these numbers can and cannot show
#
# - Ten and eight hand-made pairs, one small model. The interval is over pairs like these.
# - Writing clean values into the corrupted run (*denoising*) shows what suffices to bring the answer back;
#   writing corrupted values into the clean run (`pairs.reversed()`, *noising*) shows what it needs. The two
#   need not agree.
# - The fraction can lie outside 0 to 1.
#
# ## Questions
#
# 1. Run the heads with `pairs.reversed()`, with patches made of it. Does the sum of what denoising recovers
#    and what noising leaves have to be 1?
#
# <details><summary>Answer</summary>
#
# No. It would be if the model were linear. Run it: what the heads recover one way and leave the other way do not
# add up.
#
# </details>
#
# 2. Give `answers` whose logit difference hardly changes between the runs, such as two rare words. What
#    becomes of the recovered fraction?
#
# <details><summary>Answer</summary>
#
# Where the interval of the difference between the runs holds 0, there is no such row, and a note says why:
# a ratio with a denominator near 0 can be anything.
#
# </details>
#
# 3. Pad the texts of part 1 to one length with the model's padding token and pass the token ids to
#    `Prompts.from_tokens` without a mask. What happens, and why is that better than a number?
#
# <details><summary>Answer</summary>
#
# It is refused, and the message names `attention_mask` and `pad_id`. Padding in front would be position 0,
# and padding behind would be counted among the predictions.
#
# </details>
#
# ## Exercise
#
# Take ten sentences of your own in which one word decides the next, and a second version of each with another word
# there. Check that D is positive in one run and negative in the other, patch all heads of one layer at a time in both
# directions, and say in which layers the word is fetched. How do you know that it is not a matter of these ten?
