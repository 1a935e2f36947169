"""One head on two texts: is it dormant on one and active on the other?

The head whose first-token weight differs most between the prompts and another text (code, by
default) is ablated on both, beside other heads of its layer. It is chosen for that difference,
which is therefore not tested; what its ablation costs is not chosen for.

Guo et al. 2024 (2410.13835) show such a head of Llama-2-7B (L16H25), dormant on Wikipedia and
active on GitHub, in a figure without numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from torch import Tensor

from ...core.errors import UsageError
from ...core.labels import head_label
from ...core.seeds import seeded
from ...models import origin
from ...models.prompts import Prompts, own_prompts
from ...models.prompts import prompts as make_prompts
from ...probes import HeadMeans
from ...results.effect_sentences import effect_sentence
from ...results.estimates import Effect, Reference
from ...results.record import Record
from ...runner.run import Run
from ._removal import removed
from ._scores import OutputParts, PatternParts

PROMPTS, OTHER = "prompts", "other_text"
OTHER_HEADS = "other_heads"
TASK_ONLY = "this model was trained on sequences of a task, and other text is nothing to it"


def shipped_code() -> str:
    """Python source of this package, as it was once: the text beside prose."""
    return resources.files("sinklens").joinpath("data/code.txt").read_text("utf-8")


def add_two_texts(run: Run[Any], scores: Mapping[str, Tensor]) -> None:
    """The rows of the head that differs most between the two texts.

    Args:
        run: The run.
        scores: Of its prompts, `[prompt, layer, head]`.
    """
    reason, other = _other_prompts(run)
    if other is None:
        run.left_out("two texts", reason)
        return
    probes = PatternParts(run.capabilities), OutputParts(run.capabilities)
    parts, outputs = run.read(*probes, prompts=other)
    means = {
        PROMPTS: scores["first_token_weight"].mean(0),
        OTHER: parts["first_token_weight"].double().mean(0),
    }
    output_norms = {PROMPTS: scores["output_norm"], OTHER: outputs["output_norm"]}
    difference = (means[OTHER] - means[PROMPTS]).abs()
    place, chosen = divmod(int(difference.argmax()), difference.shape[1])
    layer = run.capabilities.attention[place]
    run.facts(
        contrasted_head=head_label((layer, chosen)),
        **{f"weight_on_{name}": float(mean[place, chosen]) for name, mean in means.items()},
    )
    others = [head for head in range(difference.shape[1]) if head != chosen]
    count = min(run.config.draws, len(others))
    drawn = seeded(run.config.seed, "heads beside").choice(len(others), count, replace=False)
    heads = [chosen, *(others[i] for i in sorted(drawn))]
    if run.config.other_text is None:
        run.note("The other text is Python code that comes with the package.")
    run.drawn(other_heads=[head_label((layer, head)) for head in heads[1:]])
    for name, prompts in ((PROMPTS, run.prompts), (OTHER, other)):
        values = None
        if run.config.edit == "mean":
            (values,) = run.read(HeadMeans(run.model, [layer]), prompts=prompts)
        edits = [removed(run, [(layer, head)], output_norms[name], values) for head in heads]
        found = run.evaluate(edits, metrics=["loss"], prompts=prompts)
        after, before = found.values[:, 0], found.baselines[:, 0]
        references = []
        if count:
            control = Effect(after[1:].numpy(), before[1:].numpy(), count)
            references.append(Reference(control, OTHER_HEADS))
        own = Effect(after[0].numpy(), before[0].numpy())
        run.add("loss_without_head", name, own, *references, layer=layer, head=chosen)


def forwards_of_two_texts(run: Run[Any]) -> int:
    """How many forward passes `add_two_texts` makes."""
    if _other_prompts(run)[1] is None:
        return 0
    edits = 1 + min(int(run.config.draws), run.capabilities.n_heads - 1)
    of_means = run.batches() if run.config.edit == "mean" else 0
    return run.batches() + 2 * (of_means + run.batches(starts=1) * (1 + edits))


def _other_prompts(run: Run[Any]) -> tuple[str, Prompts | None]:
    """As many windows of the other text as there are prompts, or why there are none."""
    prompts, known = run.prompts, origin(run.model)
    if run.model.tokenizer is None:
        return "without a tokenizer there is no other text; load the model with tokenizer=", None
    if "loss" not in {metric.name for metric in run.metrics}:
        return "the loss is not measured", None
    if known.kind == "shipped" and own_prompts(known.name, prompts).source == "backcopy":
        return TASK_ONLY, None
    text = shipped_code() if run.config.other_text is None else run.config.other_text
    size = {"n": len(prompts), "length": prompts.length}
    try:
        return "", make_prompts(run.model, text, bos=prompts.bos, **size)
    except UsageError as error:
        if run.config.other_text is not None:
            raise
        return str(error), None


def two_texts_in_words(result: Record) -> Iterator[str]:
    """Which head differs most, and what it is worth on each text."""
    known = result.findings
    if "contrasted_head" not in known:
        return
    yield (
        f"Of all heads {known['contrasted_head']} differs most in first-token weight: "
        f"{known['weight_on_prompts']:.2f} on the prompts, {known['weight_on_other_text']:.2f} on "
        "the other text (chosen for it)."
    )
    for row in result.effects:
        if (row.metric, row.kind) == ("loss_without_head", "treatment"):
            yield effect_sentence(result, "Head removed, on", row)
