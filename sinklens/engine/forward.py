"""A forward pass that does only what is asked: from block k on, and up to the unembedding.

Four shortcuts, none of which changes the numbers of the parts that do run:

- **Prefix**: an edit in block k leaves what the blocks below put out as it was. Block k - 1 then
  hands on what it put out in the clean run, and the blocks below hand on anything; each stays in
  its place, so that position ids, masks and layer numbers are those of a whole forward. What comes
  out is equal to the last bit.
- **Unembedding on demand**: the forward stops short of the unembedding (it gets no rows: a single
  one takes as long as reading the whole matrix), and logits are computed afterwards, only where
  they are read, some rows at a time. Scalings and caps behind the unembedding stay in place, since
  the rows go through the model's own code.
- **No patterns**: where no hook asks for scores or patterns, they are not made, and where probes
  only read them, at long contexts, only some rows at a time (`attention`). Equal to float rounding.
- **No bridges**: with that, blocks in which no hook is run as Hugging Face wrote them (`bridges`).
  Equal to the last bit.

Which of them a model allows is found by trying each on a short prompt (`shortcuts`); elsewhere the
whole forward runs. The replacements of module code live inside `with` blocks only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..capabilities import hook_name
from ..models import ordinary_tokens
from ..protocol import HookedModel
from .attention import in_slices, without_patterns
from .bridges import Bridges, block_of, bridges_by_block, without_bridges

Hooks = Sequence[tuple[str, Any]]
Attention = Callable[[HookedModel], AbstractContextManager[None]]
UNEMBED = "unembed.hook_in"
WITHOUT_PATTERNS = ("residual", "z", "key", "value")
_TRIED_PROMPTS, _TRIED_LENGTH = 2, 8


@dataclass(frozen=True)
class Shortcuts:
    """What a model allows, found by trying.

    Attributes:
        prefix: Whether blocks can be left out.
        unembedding: Whether logits can be computed by rows.
        sites: Kinds of site that are read and edited alike without patterns; empty where attention
            has to stay as TransformerLens computes it.
        slices: Whether patterns can be read some queries at a time.
        bridges: Whether blocks without patterns are the same without bridges.
        tuple_length: How long the tuple is that a block puts out; None where it is a tensor.
    """

    prefix: bool
    unembedding: bool
    sites: frozenset[str]
    slices: bool
    bridges: bool
    tuple_length: int | None


NO_SHORTCUTS = Shortcuts(False, False, frozenset(), False, False, None)
_known: WeakKeyDictionary[Any, dict[tuple[Any, ...], Shortcuts]] = WeakKeyDictionary()


def shortcuts(model: HookedModel) -> Shortcuts:
    """The shortcuts that give this model's own numbers.

    Tried once per compatibility mode, dtype and device.
    """
    weight = next(iter(model.original_model.parameters()))
    mode = (bool(getattr(model, "compatibility_mode", False)), weight.dtype, weight.device)
    known = _known.setdefault(model, {})
    if mode not in known:
        known[mode] = _try_all(model)
    return known[mode]


@dataclass(frozen=True)
class Outcome:
    """A forward that has run as far as the unembedding, or whole where rows are not possible."""

    model: HookedModel
    hidden: Float[Tensor, "batch pos d_model"] | None
    whole: Float[Tensor, "batch pos d_vocab"] | None
    kept: dict[int, Any]

    @property
    def last(self) -> Float[Tensor, "batch pos width"]:
        """What the forward ended with."""
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
        return _unembed(
            self.model, self.hidden[prompts, positions], shortcuts(self.model).tuple_length
        )

    def part(self, rows: slice) -> Outcome:
        """The outcome for some rows of the batch."""
        return Outcome(
            self.model,
            None if self.hidden is None else self.hidden[rows],
            None if self.whole is None else self.whole[rows],
            {},
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
    bridges: Bridges = (),
    rows: bool = False,
) -> Outcome:
    """Run the model with hooks.

    Args:
        model: The model.
        tokens: What to run.
        hooks: Hooks; none in a block below `start`.
        start: The first block that runs; `below` stands for those before it.
        below: What block `start - 1` put out in the clean run of the same tokens.
        keep: Blocks whose output is kept, for later runs.
        attention: How attention is computed instead of as TransformerLens does; no hook may then
            ask for patterns (`is_pattern_free`). Runs that are compared should agree in this.
        bridges: Those that are passed by in blocks without hooks; only where the model allows it,
            and without patterns.
        rows: Whether logits are made by rows, afterwards; only where the model allows it, and not
            with hooks behind the input of the unembedding.
    """
    inputs: list[Tensor] = []
    reading = [(UNEMBED, partial(_keep_input, kept=inputs))] if rows else []
    hooked = {block_of(name) for name, _ in hooks} if bridges else set()
    with (
        nullcontext() if attention is None else attention(model),
        without_bridges(bridges, set(range(start, len(bridges))) - hooked),
        _replaced(model, start, below),
        _keeping(model, keep) as kept,
    ):
        logits = model.run_with_hooks(tokens, fwd_hooks=[*hooks, *reading])
    if rows:
        return Outcome(model, inputs[0], None, kept)
    return Outcome(model, None, logits, kept)


def is_pattern_free(model: HookedModel, allowed: Shortcuts, names: Iterable[Any]) -> bool:
    """Whether hooks of these names read and edit the same without patterns."""
    sites = allowed.sites
    last = len(model.blocks) - 1
    free = {"hook_embed", hook_name("resid_post", last)}
    for site in sites:
        free |= {hook_name(site, layer) for layer in range(last + 1)}
    return bool(sites) and all(isinstance(name, str) and name in free for name in names)


def repeat_output(output: Any, times: int) -> Any:
    """What a block put out, for a batch that holds the same prompts several times.

    Always a copy: an edit that writes in place must not reach the forwards that come after.
    """
    if isinstance(output, tuple):
        return (repeat_output(output[0], times), *output[1:])
    return output.repeat(times, *[1] * (output.ndim - 1))


def _unembed(
    model: HookedModel, rows: Float[Tensor, "row d_model"], tuple_length: int | None
) -> Float[Tensor, "row d_vocab"]:
    """Logits of rows of the unembedding's input, by way of a forward in which no block runs."""
    token = torch.zeros(1, 1, dtype=torch.long, device=rows.device)
    blank: Any = torch.zeros(1, 1, int(model.cfg.d_model), dtype=rows.dtype, device=rows.device)
    if tuple_length is not None:
        blank = (blank, *[None] * (tuple_length - 1))
    # No other hook can be in place, so PyTorch's own will do, which is found without a search.
    handle = model.unembed.hook_in.register_forward_hook(partial(_hand_on, rows[None]))
    try:
        with _replaced(model, len(model.blocks), blank):
            logits: Tensor = model(token)
    finally:
        handle.remove()
    return logits[0]


def _keep_input(activation: Tensor, hook: Any, *, kept: list[Tensor]) -> Tensor:
    """Keep what enters the unembedding and let no row through."""
    kept.append(activation)
    return activation[:1, :0]


@contextmanager
def _replaced(model: HookedModel, start: int, below: Any) -> Iterator[None]:
    """Have the blocks before `start` hand on what block `start - 1` put out."""
    replaced = [model.blocks[layer] for layer in range(start)]
    try:
        for block in replaced:
            # Into the instance's dictionary: TransformerLens passes attributes on to the module it
            # wraps.
            block.__dict__["forward"] = partial(_hand_on, below)
        yield
    finally:
        for block in replaced:
            block.__dict__.pop("forward", None)


def _hand_on(output: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of a block's forward, or of what a module puts out."""
    return output


@contextmanager
def _keeping(model: HookedModel, layers: Iterable[int]) -> Iterator[dict[int, Any]]:
    """Keep what some blocks put out."""
    kept: dict[int, Any] = {}
    handles = [
        model.blocks[layer].register_forward_hook(partial(_keep_output, kept=kept, layer=layer))
        for layer in set(layers)
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _keep_output(
    module: Any, inputs: Any, output: Any, *, kept: dict[int, Any], layer: int
) -> None:
    # Whatever a tuple holds besides the stream (weights, caches) belongs to that run alone.
    whole = isinstance(output, tuple)
    kept[layer] = (output[0], *[None] * (len(output) - 1)) if whole else output


def _try_all(model: HookedModel) -> Shortcuts:
    """Try each shortcut beside the whole forward."""
    pool = ordinary_tokens(model)
    choice = torch.arange(_TRIED_PROMPTS * _TRIED_LENGTH) * 7 % len(pool)
    tokens = pool[choice].view(_TRIED_PROMPTS, _TRIED_LENGTH).to(model.cfg.device)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        whole = model.run_with_hooks(tokens, fwd_hooks=[])
        try:
            with _keeping(model, range(len(model.blocks))) as kept:
                model.run_with_hooks(tokens, fwd_hooks=[])
        except Exception:  # no blocks where TransformerLens has them elsewhere
            return NO_SHORTCUTS
        form = len(kept[0]) if isinstance(kept[0], tuple) else None
        prefix = _works(_try_prefix, model, tokens, whole, kept)
        unembedding = prefix and _works(_try_unembedding, model, tokens, whole, form)
        sites: tuple[str, ...] = WITHOUT_PATTERNS
        if not _works(_try_without_patterns, model, tokens, sites):
            sites = tuple(s for s in sites if _works(_try_without_patterns, model, tokens, (s,)))
        slices = bool(sites) and _works(_try_slices, model, tokens, whole)
        bridges = bool(sites) and _works(_try_without_bridges, model, tokens)
    return Shortcuts(prefix, unembedding, frozenset(sites), slices, bridges, form)


def _works(trial: Any, *arguments: Any) -> bool:
    """Whether a trial says so; whatever it raises means no."""
    try:
        return bool(trial(*arguments))
    except Exception:
        return False


def _try_prefix(model: HookedModel, tokens: Tensor, whole: Tensor, kept: dict[int, Any]) -> bool:
    """Leave out the first block, all but the last, and all."""
    starts = {1, len(model.blocks) - 1, len(model.blocks)} - {0}
    for start in starts:
        with _replaced(model, start, kept[start - 1]):
            if not _close(model.run_with_hooks(tokens, fwd_hooks=[]), whole):
                return False
    return True


def _try_unembedding(model: HookedModel, tokens: Tensor, whole: Tensor, form: int | None) -> bool:
    """Compute all logits by rows."""
    inputs: list[Tensor] = []
    model.run_with_hooks(tokens, fwd_hooks=[(UNEMBED, partial(_keep_input, kept=inputs))])
    rows = _unembed(model, inputs[0].flatten(0, 1), form)
    return _close(rows.view(whole.shape), whole)


def _try_without_patterns(model: HookedModel, tokens: Tensor, sites: tuple[str, ...]) -> bool:
    """Read and edit kinds of site in the first and the last block, with patterns and without."""
    if next(iter(model.original_model.parameters())).dtype not in (torch.float32, torch.float64):
        return False  # in half precision the two differ by more than an edit may do
    names = [hook_name(site, layer) for site in sites for layer in (0, len(model.blocks) - 1)]
    runs = []
    for context in (nullcontext(), without_patterns(model)):
        seen: list[Tensor] = []
        hooks = [(name, partial(_keep_and_shift, kept=seen)) for name in dict.fromkeys(names)]
        with context:
            runs.append([model.run_with_hooks(tokens, fwd_hooks=hooks), *seen])
        if len(seen) != len(hooks):
            return False
    return all(_close(free, usual) for usual, free in zip(*runs, strict=True))


def _try_slices(model: HookedModel, tokens: Tensor, whole: Tensor) -> bool:
    """Read every layer's pattern some queries at a time."""
    layers = range(len(model.blocks))
    patterns: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    rows: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    hooks = [(hook_name("pattern", n), partial(_keep_pattern, kept=patterns[n])) for n in layers]
    model.run_with_hooks(tokens, fwd_hooks=hooks)

    def keep(part: Tensor, *, layer: int, first: int) -> None:
        rows[layer].append(part)

    with in_slices(model, [keep], queries=3):
        sliced = model.run_with_hooks(tokens, fwd_hooks=[])
    pairs = ((torch.cat(rows[n], dim=2), patterns[n][0]) for n in layers)
    return _close(sliced, whole) and all(_close(found, wanted) for found, wanted in pairs)


def _try_without_bridges(model: HookedModel, tokens: Tensor) -> bool:
    """Pass by every bridge, unless TransformerLens has hooks of its own on some."""
    if any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values()):
        return False
    bridges, blocks = bridges_by_block(model), range(len(model.blocks))
    runs = []
    for passed in (range(0), blocks):
        with (
            without_patterns(model),
            without_bridges(bridges, passed),
            _keeping(model, blocks) as k,
        ):
            logits = model.run_with_hooks(tokens, fwd_hooks=[])
        streams = [out[0] if isinstance(out, tuple) else out for out in k.values()]
        runs.append([logits, *streams])
    return all(torch.equal(usual, direct) for usual, direct in zip(*runs, strict=True))


def _keep_pattern(activation: Tensor, hook: Any, *, kept: list[Tensor]) -> None:
    kept.append(activation)


def _keep_and_shift(activation: Tensor, hook: Any, *, kept: list[Tensor]) -> Tensor:
    """Keep an activation and move it by something of its own size."""
    kept.append(activation)
    ramp = torch.linspace(-1, 1, activation.numel(), device=activation.device)
    return activation + ramp.view(activation.shape).to(activation) * activation.std()


def _close(found: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors are the same but for rounding."""
    if found.shape != wanted.shape:
        return False
    steps = 50 if wanted.dtype in (torch.float32, torch.float64) else 4
    allowed = steps * torch.finfo(wanted.dtype).eps * float(wanted.abs().max())
    return float((found - wanted).abs().max()) <= allowed
