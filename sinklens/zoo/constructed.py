"""A Llama with hand-set weights: its sink and every intervention on it are known in closed form.

`constructed_sink()` boots a real Hugging Face Llama in TransformerLens; `ConstructedSink` holds the
same model as formulas, in float64. They agree to float32 rounding: ground truth for tests, and an
example small enough to follow by hand.

The model has a vocabulary of 15, two layers of two query heads that share one key-value head, no
MLP and no positions. Its residual stream x has three parts: `SHARED` (1 number), `IDENTITY` and
`VOTE` (one number a token each). With RMSNorm n(x) = x / r, r = |x| / sqrt(32), n(0) = 0:

    embedding   token t: SHARED = 4, IDENTITY = 4 at t, VOTE = 0, so that r = 1; BOS: all times
                `bos_scale` (a massive activation, which n divides away)
    query       q_i = n(x_i)[SHARED] / 4 in head 0, the sink head; 0 in head 1, the uniform head
    key         k_j = n(x_j)[IDENTITY of BOS] / 4: at first 1 for BOS and 0 for every word
    value       v_j: word t votes for itself, by `word_vote` n(x_j)[IDENTITY of t] / 4; BOS votes
                for the word "other", by `bos_vote` n(x_j)[IDENTITY of BOS] / 4
    attention   A_ij = exp(s q_i k_j) / sum over j' <= i of exp(s q_i k_j'), s = `sink_logit`
    head        z_i = sum_j A_ij v_j, added to VOTE of x_i
    logits      n(x_i)[VOTE] after the last layer

Words have key 0, so each head has one free number a query, its weight on position 0. With E = e^s:

    layer 0, sink head      A_i0 = E / (E + i)
    layer 0, uniform head   A_i0 = 1 / (1 + i)
    layer 1                 the same with E = exp(s q_i k_0), q_i = 1 / r_i, k_0 = bos_scale / r_0;
                            the values are k_0 and 1 / r_j times those of layer 0
    every head              z_i = A_i0 v_0 + (1 - A_i0) * mean of v_1 .. v_i

Heads write to VOTE alone and none reads it, so layer 0 reaches layer 1 only through r: where
b_i = |VOTE of x_i|, r_i = sqrt(1 + b_i^2 / 32) and r_0 = sqrt(bos_scale^2 + b_0^2 / 32). What an
intervention changes in these formulas:

    BOS -> a word           k_0 = 0: A_i0 = 1 / (1 + i) in both layers; v_0 = that word's vote
    BOS -> zero             the same with v_0 = 0; x_0 stays 0 in every layer
    BOS -> mean embedding   k_0 = n(mean)[IDENTITY of BOS] / 4, below 1; v_0 votes a bit for all
    residual, rescaled      nothing in that layer; r_0, and with it k_0 and v_0, in the next
    key, value              key: k_0 alone; value: v_0 alone, as queries i >= 1 see it
    drop_edge               z_i = mean of v_1 .. v_i
    drop_edge_unnormalised  z_i = (1 - A_i0) * mean of v_1 .. v_i
    zero, mean, resample    z_i = what is written there

Losses and KL are in nats. Limits: 2048 tokens; BOS at position 0 or nowhere; below 6 tokens even a
uniform head has a sink mass above 0.3.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS, OTHER = range(4)
# The commonest words of the shipped corpus; the tokenizer gives "other" for the rest.
WORDS = ("other", "the", "of", "to", "and", "in", "a", "that", "for", "be", "our", "is")
VOCABULARY = ("<pad>", "<bos>", "<eos>", *WORDS)
N_LAYERS, N_HEADS, D_MODEL, D_HEAD = 2, 2, 32, 16
SINK_HEAD, UNIFORM_HEAD = range(N_HEADS)
SHARED, IDENTITY, VOTE = 0, slice(1, 16), slice(16, 31)
# Two coordinates of 4 give a norm of sqrt(32) = sqrt(D_MODEL), which RMSNorm leaves as it is.
AMOUNT = 4.0
NO_EDIT: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True)
class ConstructedRun:
    """All that the formulas say about one prompt.

    Attributes:
        tokens: The prompt.
        residual: x as it enters each layer, and after the last.
        key: k_j.
        value: v_j as later queries see it.
        pattern: A_ij.
        z: What a head writes to VOTE; `hook_z` holds it in the first 15 of its 16 places.
        logits: Next-token logits.
    """

    tokens: Int[np.ndarray, " pos"]
    residual: Float[np.ndarray, "layer_and_end pos d_model"]
    key: Float[np.ndarray, "layer pos"]
    value: Float[np.ndarray, "layer pos vocab"]
    pattern: Float[np.ndarray, "layer head query key"]
    z: Float[np.ndarray, "layer head pos vocab"]
    logits: Float[np.ndarray, "pos vocab"]

    @property
    def sink_mass(self) -> Float[np.ndarray, "layer head"]:
        """Mean of A_i0 over queries i >= 1."""
        return np.asarray(self.pattern[:, :, 1:, 0].mean(axis=-1))

    def loss(self, after: int = 0) -> float:
        """Mean next-token loss in nats of the predictions made at positions > `after`."""
        made_at = np.arange(after + 1, len(self.tokens) - 1)
        return float(-log_softmax(self.logits, axis=-1)[made_at, self.tokens[made_at + 1]].mean())

    def kl(self, intervened: ConstructedRun, after: int = 0) -> float:
        """KL(self || intervened) in nats, averaged over positions > `after`."""
        clean, other = (log_softmax(run.logits[after + 1 :], axis=-1) for run in (self, intervened))
        return float((np.exp(clean) * (clean - other)).sum(axis=-1).mean())


@dataclass(frozen=True)
class ConstructedSink:
    """The construction and its closed forms.

    Attributes:
        sink_logit: s, the score of BOS in the sink heads; 0 makes a model without sinks.
        word_vote: What attending to a word adds to its own vote.
        bos_vote: What attending to BOS adds to the vote for "other"; 0 makes the sink a no-op.
        bos_scale: Norm of the BOS embedding over that of a word; positive.
    """

    sink_logit: float = math.log(32.0)
    word_vote: float = 2.0
    bos_vote: float = 3.0
    bos_scale: float = 4.0

    @property
    def embedding(self) -> Float[np.ndarray, "vocab d_model"]:
        """The embedding vectors; `embedding.mean(axis=0)` is what `mean` puts in place of BOS."""
        vectors = np.zeros((len(VOCABULARY), D_MODEL))
        vectors[:, SHARED] = AMOUNT
        vectors[:, IDENTITY] = AMOUNT * np.eye(len(VOCABULARY))
        vectors[BOS] *= self.bos_scale
        return vectors

    @property
    def votes(self) -> Float[np.ndarray, "token vocab"]:
        """Row t is the value of token t in layer 0."""
        votes = self.word_vote * np.eye(len(VOCABULARY))
        votes[BOS] = self.bos_vote * np.eye(len(VOCABULARY))[OTHER]
        return votes

    def sink_weight(self, query: int) -> float:
        """A_i0 = e^s / (e^s + i) of the sink head in layer 0, clean."""
        return math.exp(self.sink_logit) / (math.exp(self.sink_logit) + query)

    def run(
        self,
        tokens: Sequence[int] | Int[np.ndarray, " pos"],
        *,
        residual: Mapping[tuple[int, int], Float[np.ndarray, " d_model"]] = NO_EDIT,
        key: Mapping[int, float] = NO_EDIT,
        value: Mapping[int, Float[np.ndarray, " vocab"]] = NO_EDIT,
        z: Mapping[tuple[int, int], Float[np.ndarray, "pos vocab"]] = NO_EDIT,
        dropped: Collection[tuple[int, int]] = (),
        dropped_key: int = 0,
        renormalise: bool = True,
    ) -> ConstructedRun:
        """The formulas of the module docstring for one prompt, clean or intervened on.

        Args:
            tokens: The prompt.
            residual: (layer, position) -> x there as it enters the layer; (0, 0) replaces BOS.
            key: Layer -> k_0, in the unit of an clean BOS at layer 0.
            value: Layer -> v_0 for queries >= 1; query 0 keeps its own.
            z: (layer, head) -> what the head writes.
            dropped: The (layer, head) whose weight on `dropped_key` is 0 for later queries.
            dropped_key: Position 0, or that of a control.
            renormalise: True for `drop_edge`, False for `drop_edge_unnormalised`.
        """
        tokens = np.asarray(tokens)
        x = self.embedding[tokens]
        residuals, keys, values, patterns, zs = [], [], [], [], []
        for layer in range(N_LAYERS):
            for position in range(len(tokens)):
                x[position] = residual.get((layer, position), x[position])
            n = _normalised(x)
            q, k = n[:, SHARED] / AMOUNT, n[:, IDENTITY][:, BOS] / AMOUNT
            v = n[:, IDENTITY] / AMOUNT @ self.votes
            own_v0 = v[0].copy()
            k[0], v[0] = key.get(layer, k[0]), value.get(layer, own_v0)
            for head, s in ((SINK_HEAD, self.sink_logit), (UNIFORM_HEAD, 0.0)):
                a = _attention(s * q, k)
                if (layer, head) in dropped:
                    a = _without_edge(a, dropped_key, renormalise)
                patterns.append(a)
                zs.append(z.get((layer, head), np.vstack([own_v0, a[1:] @ v])))
            residuals.append(x)
            keys.append(k)
            values.append(v)
            x = x.copy()
            x[:, VOTE] += sum(zs[-N_HEADS:])
        by_head = (N_LAYERS, N_HEADS, len(tokens), -1)
        return ConstructedRun(
            tokens=tokens,
            residual=np.stack([*residuals, x]),
            key=np.stack(keys),
            value=np.stack(values),
            pattern=np.stack(patterns).reshape(by_head),
            z=np.stack(zs).reshape(by_head),
            logits=_normalised(x)[:, VOTE],
        )


def constructed_sink(formulas: ConstructedSink | None = None) -> TransformerBridge:
    """Boot the Llama of `formulas` (the default ones): eval mode, float32, no gradients."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = _llama(formulas or ConstructedSink())
    return build_bridge_from_module(
        model,
        "LlamaForCausalLM",
        hf_config=model.config,
        tokenizer=_tokenizer(),
        model_name="constructed_sink",
    )


def _normalised(x: Float[np.ndarray, "pos d_model"]) -> Float[np.ndarray, "pos d_model"]:
    r = np.linalg.norm(x, axis=-1, keepdims=True) / math.sqrt(D_MODEL)
    return np.asarray(x / np.where(r > 0, r, 1.0))


def _attention(q: Float[np.ndarray, " i"], k: Float[np.ndarray, " j"]) -> Float[np.ndarray, "i j"]:
    # The odds of a word are e^0 = 1, so row i is E / (E + i) and then i times 1 / (E + i).
    odds = np.tril(np.exp(np.outer(q, k)))
    return np.asarray(odds / odds.sum(axis=-1, keepdims=True))


def _without_edge(a: Float[np.ndarray, "i j"], j: int, scaled: bool) -> Float[np.ndarray, "i j"]:
    dropped = a.copy()
    dropped[j + 1 :, j] = 0.0
    if scaled:
        dropped[j + 1 :] /= 1.0 - a[j + 1 :, [j]]
    return dropped


def _llama(formulas: ConstructedSink) -> LlamaForCausalLM:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(VOCABULARY),
        hidden_size=D_MODEL,
        intermediate_size=D_HEAD,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=1,
        head_dim=D_HEAD,
        # RoPE turns place m of a head together with m + 8. At this base the slowest pair, m = 7,
        # turns by 1e-26 a token: its cosine is 1 in float32, and positions play no part.
        rope_parameters={"rope_type": "default", "rope_theta": 1e30},
        rms_norm_eps=1e-12,  # not 0, so that n(0) = 0
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    # Random weights are drawn before ours replace them; the caller's generator must not move.
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config).float().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.fill_(float(parameter.ndim == 1))  # norm scales 1, all else 0
    model.model.embed_tokens.weight.copy_(torch.from_numpy(formulas.embedding))
    model.lm_head.weight[:, VOTE] = torch.eye(len(VOCABULARY))
    slowest = D_HEAD // 2 - 1
    for layer in model.model.layers:
        attention = layer.self_attn
        # Scores are divided by sqrt(D_HEAD) = 4, so that BOS has (4 s) * 1 / 4 = s.
        attention.q_proj.weight[SINK_HEAD * D_HEAD + slowest, SHARED] = formulas.sink_logit
        attention.k_proj.weight[slowest, IDENTITY][BOS] = 1.0 / AMOUNT
        votes = torch.from_numpy(formulas.votes.T / AMOUNT)
        attention.v_proj.weight[: len(VOCABULARY), IDENTITY] = votes.float()
        for head in range(N_HEADS):
            z = slice(head * D_HEAD, head * D_HEAD + len(VOCABULARY))
            attention.o_proj.weight[VOTE, z] = torch.eye(len(VOCABULARY))
    return model


def _tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: i for i, token in enumerate(VOCABULARY)}
    # "other" is a word like the rest, hence not declared as a special token below.
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=VOCABULARY[OTHER]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # TransformerLens reads `name_or_path`, and asks the hub unless BOS is said to be prepended.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        name_or_path="constructed_sink",
        add_bos_token=True,
        bos_token=VOCABULARY[BOS],
        eos_token=VOCABULARY[EOS],
        pad_token=VOCABULARY[PAD],
    )
