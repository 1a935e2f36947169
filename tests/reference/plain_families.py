"""The numbers of single edits on any Hugging Face model: hooks of plain PyTorch, and nothing else.

Nothing here imports sinklens or TransformerLens. Blocks are the longest list of as many modules as
the model has layers, attention weights are what a module in a block puts out as a square for every
head, and what a head writes is its slice of what enters the projection behind attention. Losses
and divergences are those of the predictions made at positions 1 and later, by prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Edit = Callable[[Any], Any]
OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo", "Wo")


def blocks(model: Any) -> list[nn.Module]:
    """The blocks in order."""
    config = model.config.get_text_config()
    count = getattr(config, "num_hidden_layers", None) or config.n_layer
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return list(lists[0])


def logits(model: Any, tokens: Tensor) -> Tensor:
    """Of a forward pass without cache."""
    settings = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    with torch.no_grad():
        found: Tensor = model(tokens, **settings).logits
    return found


def attention(model: Any, tokens: Tensor) -> dict[int, Tensor]:
    """By layer that has one, the attention weights [prompt, head, query, key]."""
    found: dict[int, Tensor] = {}
    length = tokens.shape[1]

    def keep(layer: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            for part in output if isinstance(output, (tuple, list)) else ():
                if isinstance(part, Tensor) and part.shape[2:] == (length, length):
                    found[layer] = part

        return hook

    handles = [
        module.register_forward_hook(keep(layer))
        for layer, block in enumerate(blocks(model))
        for module in block.modules()
    ]
    before = model.config.output_attentions
    model.config.output_attentions = True  # older classes leave the weights out otherwise
    try:
        logits(model, tokens)
    finally:
        model.config.output_attentions = before
        for handle in handles:
            handle.remove()
    return found


def sink_mass(model: Any, tokens: Tensor) -> dict[int, Tensor]:
    """By layer that has attention, the mean weight of key 0 over later queries, [prompt, head]."""
    return {layer: a[:, :, 1:, 0].mean(-1) for layer, a in attention(model, tokens).items()}


@contextmanager
def _before(module: nn.Module, edit: Edit) -> Iterator[None]:
    """Change the first input of a module."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if inputs:
            return (edit(inputs[0]), *inputs[1:]), named
        return inputs, {**named, "hidden_states": edit(named["hidden_states"])}

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _after(module: nn.Module, edit: Edit) -> Iterator[None]:
    """Change what a module puts out."""
    handle = module.register_forward_hook(lambda module, inputs, output: edit(output))
    try:
        yield
    finally:
        handle.remove()


def at_stage(model: Any, layer: int, edit: Edit) -> AbstractContextManager[None]:
    """Change the stream that enters a block, or that leaves the last one."""
    every = blocks(model)
    if layer < len(every):
        return _before(every[layer], edit)

    def last(output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    return _after(every[-1], last)


def at_zero(values: Tensor) -> Tensor:
    """Zeros at position 0."""
    values = values.clone()
    values[:, 0] = 0
    return values


def without_bos(model: Any, tokens: Tensor, embedding: nn.Module | None = None) -> Tensor:
    """Logits with zeros in place of the embedding at position 0.

    Args:
        model: The model.
        tokens: The prompts.
        embedding: What puts the embeddings out, if it is not the table.
    """
    with _after(embedding or model.get_input_embeddings(), at_zero):
        return logits(model, tokens)


def without_stream(model: Any, tokens: Tensor, layer: int) -> Tensor:
    """Logits with zeros in place of what enters a block at position 0."""
    with _before(blocks(model)[layer], at_zero):
        return logits(model, tokens)


def output_projection(model: Any, layer: int) -> nn.Module:
    """The projection behind a layer's attention."""
    (projection,) = (
        module
        for name, module in blocks(model)[layer].named_modules()
        if name.rpartition(".")[2] in OUTPUT_PROJECTIONS and "att" in name.lower()
    )
    return projection


def without_heads(model: Any, tokens: Tensor, heads: Mapping[int, Iterable[int]], n: int) -> Tensor:
    """Logits without what some of n heads write, by layer."""

    def of_layer(chosen: Iterable[int]) -> Edit:
        def edit(z: Tensor) -> Tensor:
            by_head = z.clone().unflatten(-1, (n, -1))
            by_head[..., list(chosen), :] = 0
            return by_head.flatten(-2)

        return edit

    with ExitStack() as edits:
        for layer, chosen in heads.items():
            edits.enter_context(_before(output_projection(model, layer), of_layer(chosen)))
        return logits(model, tokens)


def streams(model: Any, tokens: Tensor) -> list[Tensor]:
    """What enters each block, and what leaves the last, [prompt, pos, d_model]."""
    found: list[Tensor] = []

    def enter(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append((*inputs, named.get("hidden_states"))[0])

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    every = blocks(model)
    handles: list[Any] = [
        block.register_forward_pre_hook(enter, with_kwargs=True) for block in every
    ]
    handles.append(every[-1].register_forward_hook(leave))
    try:
        logits(model, tokens)
    finally:
        for handle in handles:
            handle.remove()
    return found


def loss(edited: Tensor, tokens: Tensor) -> Tensor:
    """Next-token cross-entropy in nats by prompt; the last position has no target."""
    losses = cross_entropy(edited[:, 1:-1].transpose(1, 2), tokens[:, 2:], reduction="none")
    return losses.mean(1)


def kl(clean: Tensor, edited: Tensor) -> Tensor:
    """KL(clean || edited) in nats by prompt, in float64."""
    before, after = (side[:, 1:].double().log_softmax(-1) for side in (clean, edited))
    return (before.exp() * (before - after)).sum(-1).mean(1)
