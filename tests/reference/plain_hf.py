"""What the design asks of sinklens, a second time: plain torch on a Hugging Face Llama model.

Nothing here imports sinklens or TransformerLens, and nothing is shared with them: the attention of
each layer is written out again below, its mask included, and every edit is a line of it. What is
random in sinklens (tokens, vectors, permutations, control positions, control heads) is an argument
here, so that both sides can be given the same. Every value is returned per prompt.

Definitions, for a pattern A and prompts of T tokens:
    sink score of key k     mean over the queries i >= k of A_ik (for k = 0, query 0's 1 included)
    sink rate               share of the heads, over all layers, whose score of key 0 > threshold
    sink mass               mean over the queries i >= 1 of A_i0, then over layers and heads
    position-0 norm         largest norm at position 0 of the residual stream, over what enters each
                            block and what leaves the last one, before the final norm
    loss                    mean cross-entropy of the next token, in nats, of the predictions made
                            at positions after the edited one; the last position has no target
    kl                      mean KL(clean || edited) in nats at the same positions and the last one

Sink rate, sink mass and position-0 norm are read in the edited run, after the edit, and stay
properties of position 0 when the edit is a control at a later position: only `loss` and `kl`
depend on which predictions count.

For example: `sink_head_ablation(model, tokens, [(18, 8)], "drop_edge")["kl"].value`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

Head = tuple[int, int]  # (layer, query head)

GU, STRICT = 0.3, 0.8  # thresholds of the sink rate
BATCH = 8  # prompts in one forward: bounds memory, changes nothing else


@dataclass(frozen=True)
class Paired:
    """One metric in the clean and in the edited run, both [prompt]."""

    baseline: Tensor
    value: Tensor

    @property
    def effect(self) -> Tensor:
        """The paired difference, [prompt]."""
        return self.value - self.baseline


@dataclass(frozen=True)
class Edit:
    """What to change in a forward; the defaults change nothing.

    Attributes:
        embedding: Maps the output of `embed_tokens`, [prompt, pos, d_model], and the numbers of
            the prompts in this batch to a new output.
        pattern: Maps a layer's number and its attention [prompt, head, query, key] to a new one.
        z: Maps a layer's number, its head outputs [prompt, head, pos, d_head] and the numbers of
            the prompts in this batch to new ones.
    """

    embedding: Callable[[Tensor, Tensor], Tensor] = lambda embedding, rows: embedding
    pattern: Callable[[int, Tensor], Tensor] = lambda layer, pattern: pattern
    z: Callable[[int, Tensor, Tensor], Tensor] = lambda layer, z, rows: z


@dataclass
class Run:
    """What one forward of a batch gives, after the edit; the lists run over layers."""

    logits: Tensor = field(init=False)  # [prompt, pos, vocabulary]
    pattern: list[Tensor] = field(default_factory=list)  # [prompt, head, query, key]
    z: list[Tensor] = field(default_factory=list)  # [prompt, head, pos, d_head]
    norm: list[Tensor] = field(default_factory=list)  # [prompt], at position 0

    def sink_score(self, key: int) -> Tensor:
        """[prompt, layer, head]."""
        return torch.stack([a[:, :, key:, key].mean(-1) for a in self.pattern], dim=1)

    def sink_rate(self, threshold: float) -> Tensor:
        """[prompt]."""
        return (self.sink_score(0) > threshold).float().mean((1, 2))

    def sink_mass(self) -> Tensor:
        """[prompt, layer, head]."""
        return torch.stack([a[:, :, 1:, 0].mean(-1) for a in self.pattern], dim=1)


def prompts(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    n: int,
    length: int,
    bos_id: int | None,
    *,
    spread: bool = False,
) -> Tensor:
    """Consecutive windows of a text, [prompt, pos].

    `length` includes the BOS; `bos_id` None is no BOS. With `spread`, as for the shipped corpus,
    they are window floor(i M / n) of the M there are, else the first n.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    bos = [] if bos_id is None else [bos_id]
    width = length - len(bos)
    n_windows = len(ids) // width
    if n_windows < n:
        raise ValueError(f"the text gives {n_windows} windows of {width} tokens, asked for {n}")
    numbers = [i * n_windows // n if spread else i for i in range(n)]
    return torch.tensor([bos + ids[w * width : (w + 1) * width] for w in numbers])


@torch.inference_mode()
def run(model: LlamaForCausalLM, tokens: Tensor, edit: Edit, rows: Tensor | None = None) -> Run:
    """One forward of one batch under an edit; `rows` numbers its prompts (default: from 0)."""
    if not isinstance(model, LlamaForCausalLM) or model.training:
        raise ValueError("the reference is written for a LlamaForCausalLM in eval mode")
    record = Run()
    with _instrumented(model, edit, torch.arange(len(tokens)) if rows is None else rows, record):
        record.logits = model(tokens, use_cache=False).logits.float()
    return record


@contextmanager
def _instrumented(model: LlamaForCausalLM, edit: Edit, rows: Tensor, record: Run) -> Iterator[None]:
    embed, layers = model.model.embed_tokens, model.model.layers

    def note_norm(residual: Tensor) -> None:
        record.norm.append(residual[:, 0].float().norm(dim=-1))

    handles = [embed.register_forward_hook(lambda _, args, out: edit.embedding(out, rows))]
    for layer in layers:
        handles.append(layer.register_forward_pre_hook(lambda _, args: note_norm(args[0])))
    handles.append(layers[-1].register_forward_hook(lambda _, args, out: note_norm(out)))
    for number, layer in enumerate(layers):
        layer.self_attn.forward = _attention(layer.self_attn, number, edit, rows, record)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers:
            del layer.self_attn.forward  # the class's own shows again


def _attention(
    module: LlamaAttention, layer: int, edit: Edit, rows: Tensor, record: Run
) -> Callable[..., tuple[Tensor, Tensor]]:
    """`LlamaAttention.forward` written out, for prompts of equal length without padding."""

    def forward(
        hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: object
    ) -> tuple[Tensor, Tensor]:
        def heads(projection: nn.Module) -> Tensor:  # [prompt, head, pos, d_head]
            return projection(hidden_states).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)

        q, k, v = heads(module.q_proj), heads(module.k_proj), heads(module.v_proj)
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        # Query head h reads key-value head h // (query heads per key-value head).
        k, v = (x.repeat_interleave(module.num_key_value_groups, dim=1) for x in (k, v))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        pattern = edit.pattern(layer, scores.masked_fill(future, -torch.inf).softmax(-1))
        z = edit.z(layer, pattern @ v, rows)
        record.pattern.append(pattern)
        record.z.append(z)
        return module.o_proj(z.transpose(1, 2).flatten(2)), pattern

    return forward


def loss(logits: Tensor, tokens: Tensor, after: int) -> Tensor:
    """Next-token cross-entropy of the predictions made at positions > `after`, [prompt]."""
    log_probs = logits[:, after + 1 : -1].log_softmax(-1)
    return -log_probs.gather(-1, tokens[:, after + 2 :, None]).squeeze(-1).mean(-1)


def kl(clean: Tensor, edited: Tensor, after: int) -> Tensor:
    """KL(clean || edited) of the predictions made at positions > `after`, [prompt]."""
    p, q = (logits[:, after + 1 :].double().log_softmax(-1) for logits in (clean, edited))
    return (p.exp() * (p - q)).sum(-1).mean(-1)


def compare(
    model: LlamaForCausalLM, tokens: Tensor, edit: Edit, after: int = 0, first: int = 0
) -> dict[str, Paired]:
    """Every metric with and without an edit at position `after`; the top of the file defines them.

    Args:
        model: In eval mode.
        tokens: [prompt, pos].
        edit: The edit.
        after: Predictions at later positions count.
        first: The first layer whose attention the edit can change; sink mass averages from it on.

    Returns:
        `loss`, `kl`, `sink_mass`, `sink_rate` (threshold 0.3) and `position0_norm`.
    """
    sides: tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]] = ([], [])
    for rows in torch.arange(len(tokens)).split(BATCH):
        clean, edited = run(model, tokens[rows], Edit(), rows), run(model, tokens[rows], edit, rows)
        for side, this in zip(sides, (clean, edited), strict=True):
            values = {
                "loss": loss(this.logits, tokens[rows], after),
                "kl": kl(clean.logits, this.logits, after),
                "sink_mass": this.sink_mass()[:, first:].mean((1, 2)),
                "sink_rate": this.sink_rate(GU),
                "position0_norm": torch.stack(this.norm).amax(0),
            }
            side.append(values)
    return {
        name: Paired(*(torch.cat([batch[name] for batch in side]) for side in sides))
        for name in sides[0][0]
    }


def sink_profile(model: LlamaForCausalLM, tokens: Tensor) -> dict[str, Tensor]:
    """The sinks of some inputs: natural windows, `tokens[:, 1:]`, random or repeated tokens.

    Returns:
        `gu`, `strict`, `sink_mass`: model-level, [prompt]. `head_scores`: the sink score of every
        key, [prompt, layer, head, key]. `head_mass`: [prompt, layer, head].
    """
    runs = [run(model, batch, Edit()) for batch in tokens.split(BATCH)]
    scores = [torch.stack([r.sink_score(k) for k in range(tokens.shape[1])], -1) for r in runs]
    head_mass = torch.cat([r.sink_mass() for r in runs])
    return {
        "gu": torch.cat([r.sink_rate(GU) for r in runs]),
        "strict": torch.cat([r.sink_rate(STRICT) for r in runs]),
        "sink_mass": head_mass.mean((1, 2)),
        "head_scores": torch.cat(scores),
        "head_mass": head_mass,
    }


def sink_heads(model: LlamaForCausalLM, tokens: Tensor, threshold: float = 0.3) -> list[Head]:
    """The heads whose sink mass, averaged over the prompts, exceeds the threshold."""
    found = (sink_profile(model, tokens)["head_mass"].mean(0) > threshold).nonzero()
    return [(layer, head) for layer, head in found.tolist()]


def later_sinks(head_scores: Tensor) -> Tensor:
    """Which keys 1 <= k <= T/2 are a head's later sinks, bool [layer, head, key]."""
    in_enough_prompts = (head_scores > GU).float().mean(0) >= 0.25
    keys = torch.arange(head_scores.shape[-1])
    return in_enough_prompts & (keys >= 1) & (2 * keys <= len(keys))


def some_later_sink(head_scores: Tensor) -> Tensor:
    """In which prompts a head has one at whichever key, bool [prompt, layer, head]."""
    length = head_scores.shape[-1]
    return (head_scores[..., 1 : length // 2 + 1] > GU).any(-1)


def uniform(length: int, first_query: int) -> float:
    """Mean attention to a key under uniform causal attention: k for its score, 1 for the mass."""
    return sum(1 / (i + 1) for i in range(first_query, length)) / (length - first_query)


def bos_replacement(
    model: LlamaForCausalLM, tokens: Tensor, condition: str | int | Tensor, position: int = 0
) -> dict[str, Paired]:
    """Replace the embedding at one position.

    Args:
        model: In eval mode.
        tokens: [prompt, pos].
        condition: `"mean"` (over all rows of the embedding matrix), `"zero"`, a token's id (for all
            prompts), or Gaussian vectors, [d_model] or [prompt, d_model], of which the direction
            is used with the norm of the vector replaced.
        position: 0, or for the control a later one.
    """
    weight = model.model.embed_tokens.weight.detach()

    def replace(embedding: Tensor, rows: Tensor) -> Tensor:
        old = embedding[:, position]
        if isinstance(condition, Tensor):
            given = condition.expand(len(tokens), -1)[rows]
            new = given / given.norm(dim=-1, keepdim=True) * old.norm(dim=-1, keepdim=True)
        elif isinstance(condition, int):
            new = weight[condition]
        else:
            new = {"mean": weight.mean(0), "zero": torch.zeros_like(weight[0])}[condition]
        edited = embedding.clone()
        edited[:, position] = new
        return edited

    return compare(model, tokens, Edit(embedding=replace), after=position)


def drop_edge(row: Tensor, key: int, *, normalise: bool) -> Tensor:
    """Take the weight on one key away from attention rows [..., key].

    With `normalise`, the other weights are scaled to the row's former sum; a row that has no other
    weight has nothing to scale and is left at 0.
    """
    kept = row.clone()
    kept[..., key] = 0
    if not normalise:
        return kept
    total = kept.sum(-1, keepdim=True)
    return torch.where(total > 0, kept * row.sum(-1, keepdim=True) / total, kept)


def sink_head_ablation(
    model: LlamaForCausalLM,
    tokens: Tensor,
    heads: Sequence[Head],
    condition: str,
    *,
    permutation: Tensor | None = None,
    key: int = 0,
) -> dict[str, Paired]:
    """Ablate heads together.

    Args:
        model: In eval mode.
        tokens: [prompt, pos].
        heads: The heads; for the control of the z conditions, the control heads.
        condition: `"zero"`, `"mean"` or `"resample"` replace the heads' outputs z at every
            position by values of the clean run; `"drop_edge"` or `"drop_edge_unnormalised"` edit
            the pattern at one key, in the rows of the queries after it.
        permutation: For `"resample"`, prompt i takes the outputs of prompt `permutation[i]`.
        key: 0, or for the control of the pattern conditions a later one.
    """
    chosen = {layer: [h for at, h in heads if at == layer] for layer, _ in heads}

    if condition in ("drop_edge", "drop_edge_unnormalised"):

        def edit_pattern(layer: int, pattern: Tensor) -> Tensor:
            edited, where = pattern.clone(), chosen.get(layer, [])
            later = pattern[:, where, key + 1 :]
            edited[:, where, key + 1 :] = drop_edge(later, key, normalise=condition == "drop_edge")
            return edited

        return compare(model, tokens, Edit(pattern=edit_pattern), after=key, first=min(chosen))

    runs = [run(model, batch, Edit()).z for batch in tokens.split(BATCH)]
    clean = {
        layer: torch.cat([z[layer][:, where] for z in runs]) for layer, where in chosen.items()
    }

    def edit_z(layer: int, z: Tensor, rows: Tensor) -> Tensor:
        if layer not in chosen:
            return z
        values = clean[layer]  # [prompt, chosen head, pos, d_head], of all prompts
        if condition == "zero":
            new = torch.zeros_like(values)
        elif condition == "mean":
            new = values[:, :, 1:].mean((0, 2), keepdim=True).expand_as(values).clone()
            new[:, :, 0] = values[:, :, 0].mean(0)
        elif condition == "resample" and permutation is not None:
            new = values[permutation]
        else:
            raise ValueError(f"unknown condition {condition!r}, or resample without a permutation")
        edited = z.clone()
        edited[:, chosen[layer]] = new[rows]
        return edited

    return compare(model, tokens, Edit(z=edit_z), first=min(chosen) + 1)
