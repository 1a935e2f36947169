"""A partial forward pass: from block k on, up to the unembedding.

Three shortcuts, none of which changes the values of the parts that do run:

- **Prefix**: an intervention in block k leaves the outputs of earlier blocks unchanged. All blocks
  before k are replaced by functions that return the clean output of block k - 1; the modules stay
  in place, so that position ids, masks and layer numbers are those of a whole forward pass. Results
  are bitwise equal.
- **Unembedding on demand**: the forward pass gives the unembedding no rows (a single row takes as
  long as reading the whole matrix), and logits are computed afterwards, only where they are read,
  some rows at a time. Scaling and soft-capping after the unembedding are kept, since the rows pass
  through the model's own code.
- **No patterns**: where no hook needs scores or patterns, they are not materialised; where probes
  only read them, at long contexts, they are computed some rows at a time (`attention`). Equal
  within float rounding.

Which of them a model allows is determined by trying each (`shortcuts`); otherwise the whole forward
pass runs. With them no cache of keys and values is filled. Module code is replaced inside `with`
blocks only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import SinklensError
from ..core.protocol import HookedModel

Hooks = Sequence[tuple[str, Any]]
Attention = Callable[[HookedModel], AbstractContextManager[None]]
UNEMBED = "unembed.hook_in"


@dataclass(frozen=True)
class Outcome:
    """A forward pass up to the unembedding, or a whole one where rows are not possible.

    Attributes:
        model: The model that ran.
        hidden: The input of the unembedding.
        whole: All logits, where they were computed at once.
        kept: Outputs of some blocks.
        tuple_length: Length of the tuple that a block returns; None where it is a tensor.
    """

    model: HookedModel
    hidden: Float[Tensor, "batch pos d_model"] | None
    whole: Float[Tensor, "batch pos d_vocab"] | None
    kept: dict[int, Any]
    tuple_length: int | None = None

    @property
    def last(self) -> Float[Tensor, "batch pos width"]:
        """The final output: logits, or the input of the unembedding."""
        last = self.hidden if self.whole is None else self.whole
        assert last is not None
        return last

    def logits(
        self, prompts: Int[Tensor, " row"], positions: Int[Tensor, " row"]
    ) -> Float[Tensor, "row d_vocab"]:
        """The logits of some predictions."""
        if self.whole is not None:
            return self.whole[prompts, positions]
        assert self.hidden is not None
        return unembed(self.model, self.hidden[prompts, positions], self.tuple_length)

    def part(self, rows: slice) -> Outcome:
        """The outcome for some rows of the batch."""
        return Outcome(
            self.model,
            None if self.hidden is None else self.hidden[rows],
            None if self.whole is None else self.whole[rows],
            {},
            self.tuple_length,
        )


def forward(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    hooks: Hooks,
    *,
    start: int = 0,
    below: Any = None,
    keep: Iterable[int] = (),
    attention: Attention | None = None,
    rows: bool = False,
    tuple_length: int | None = None,
) -> Outcome:
    """Run the model with hooks.

    Args:
        model: The model.
        tokens: The tokens.
        hooks: Hooks; none in a block below `start`.
        start: The first block that runs; `below` replaces the earlier ones.
        below: The output of block `start - 1` in the clean run of the same tokens.
        keep: Blocks whose output is kept, for later runs.
        attention: How attention is computed instead of as TransformerLens does; no hook may then
            ask for patterns (`shortcuts.is_free_of`). Runs that are compared should agree in this.
        rows: Whether logits are computed afterwards, by rows; only where the model allows it, and
            not with hooks after the input of the unembedding.
        tuple_length: Length of the tuple that a block returns; None where it is a tensor.
    """
    inputs: list[Tensor] = []
    reading = [(UNEMBED, partial(keep_input, kept=inputs))] if rows else []
    with (
        nullcontext() if attention is None else attention(model),
        replaced(model, start, below),
        keeping(model, keep) as kept,
        without_cache(model) if rows or start else nullcontext(),
    ):
        logits = model.run_with_hooks(tokens, fwd_hooks=[*hooks, *reading])
    if rows:
        return Outcome(model, inputs[0], None, kept, tuple_length)
    return Outcome(model, None, logits, kept)


def repeat_output(output: Any, times: int) -> Any:
    """The output of a block, repeated for a batch that holds the same prompts several times.

    Always a copy: an intervention that writes in place must not reach later forward passes.
    """
    if isinstance(output, tuple):
        return (repeat_output(output[0], times), *output[1:])
    return output.repeat(times, *[1] * (output.ndim - 1))


def unembed(
    model: HookedModel, rows: Float[Tensor, "row d_model"], tuple_length: int | None
) -> Float[Tensor, "row d_vocab"]:
    """Logits of rows of the unembedding's input, through a forward pass in which no block runs."""
    token = torch.zeros(1, 1, dtype=torch.long, device=rows.device)
    blank: Any = torch.zeros(1, 1, int(model.cfg.d_model), dtype=rows.dtype, device=rows.device)
    if tuple_length is not None:
        blank = (blank, *[None] * (tuple_length - 1))
    # No other hook can be in place here, so that a plain PyTorch hook suffices.
    handle = model.unembed.hook_in.register_forward_hook(partial(_hand_on, rows[None]))
    try:
        with replaced(model, len(model.blocks), blank):
            logits: Tensor = model(token)
    finally:
        handle.remove()
    return logits[0]


def keep_input(activation: Tensor, hook: Any, *, kept: list[Tensor]) -> Tensor:
    """Keep the input of the unembedding and pass no row on."""
    kept.append(activation)
    return activation[:1, :0]


@contextmanager
def replaced(model: HookedModel, start: int, below: Any) -> Iterator[None]:
    """Have the blocks before `start` return the clean output of block `start - 1`."""
    replaced = [model.blocks[layer] for layer in range(start)]
    passed: set[int] = set()
    try:
        for number, block in enumerate(replaced):
            # Into the instance's dictionary: TransformerLens passes attributes on to the module it
            # wraps.
            block.__dict__["forward"] = partial(_hand_on_once, below, passed, number)
        yield
    finally:
        for block in replaced:
            block.__dict__.pop("forward", None)


def _hand_on_once(output: Any, passed: set[int], number: int, *args: Any, **kwargs: Any) -> Any:
    """In place of a block's forward, which a forward pass calls once.

    Raises:
        SinklensError: It is called again: by a hook that runs the model, or from another thread.
    """
    if number in passed:
        raise SinklensError(
            f"block {number} was called twice in one forward pass: a hook ran the model, or "
            "another thread did. Compute what a hook needs before sinklens.evaluate runs"
        )
    passed.add(number)
    return output


def _hand_on(output: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of the output of a module."""
    return output


@contextmanager
def keeping(model: HookedModel, layers: Iterable[int]) -> Iterator[dict[int, Any]]:
    """Keep the outputs of some blocks."""
    kept: dict[int, Any] = {}
    handles: list[Any] = []
    try:
        for layer in sorted(set(layers)):
            keep = partial(_keep_output, kept=kept, layer=layer)
            handles.append(model.blocks[layer].register_forward_hook(keep))
        yield kept
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def without_cache(model: HookedModel) -> Iterator[None]:
    """Have a model fill no cache of keys and values."""
    config: Any = getattr(model.original_model, "config", None)
    before = getattr(config, "use_cache", None)
    if not before:
        yield
        return
    try:
        config.use_cache = False
        yield
    finally:
        config.use_cache = before


def _keep_output(
    module: Any, inputs: Any, output: Any, *, kept: dict[int, Any], layer: int
) -> None:
    # Whatever else a block puts out (weights, caches) belongs to that run alone.
    whole = isinstance(output, (tuple, list))
    kept[layer] = (output[0], *[None] * (len(output) - 1)) if whole else output
