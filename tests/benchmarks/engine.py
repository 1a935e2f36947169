"""How fast the engine is beside plain loops: `python -m tests.benchmarks.engine [--quick]`.

The whole table takes two hours on two cores; `--every 3` sweeps the heads of every third layer,
which lie as deep on average, `--quick` those of layers 2, 9, 16 and 23, whose ratios are larger.
Position 0 is patched in every layer, with `--quick` in those four.

Everything is measured on SmolLM2-135M with 4 prompts of 64 tokens, in one process, and printed as
ratios of medians over interleaved rounds. The bars are those that the engine was built to meet.

- `naive`: `model.run_with_hooks(tokens, return_type="loss")`, one head a time;
- `suffixes`: plain Hugging Face forwards (sdpa) from the block that is edited on, with the loss,
  which no exact method can avoid;
- `patching`: `transformer_lens.patching.generic_activation_patch`, zeros for every head's z.

They are for metrics of logits. One metric that reads attention (`sink_mass`) has every forward make
its patterns, as the naive loop does, and takes the part of the gain away that sdpa brings.
"""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import sinklens
from sinklens.capabilities import hook_name
from sinklens.engine.screening import estimate
from sinklens.hooks import ablate_heads
from sinklens.metrics import METRICS
from tests.conftest import SMOLLM2_FILE

N_PROMPTS, LENGTH, SAMPLED = 4, 64, 16


def zero_head(z: Tensor, hook: Any, *, head: int) -> Tensor:
    edited = z.clone()
    edited[:, :, head] = 0
    return edited


class Sweep:
    """Zero-ablation of the heads of some layers, done in several ways."""

    def __init__(self, model: Any, layers: Sequence[int]) -> None:
        self.model, self.layers = model, layers
        self.prompts = sinklens.prompts(model, n=N_PROMPTS, length=LENGTH)
        self.tokens = self.prompts.tokens
        self.heads = [(layer, head) for layer in layers for head in range(model.cfg.n_heads)]
        self.sample = list(range(1, LENGTH - 1, (LENGTH - 2) // SAMPLED))[:SAMPLED]

    def engine(self, positions: list[int] | None = None) -> Tensor:
        edits = [ablate_heads(self.model, [head], "zero") for head in self.heads]
        result = sinklens.evaluate(
            self.model, self.prompts, edits, ["loss"], positions=positions, progress=False
        )
        return result.values[:, 0]

    def naive(self, positions: list[int] | None = None) -> Tensor:
        rows = []
        for layer, head in self.heads:
            hook = (hook_name("z", layer), partial(zero_head, head=head))
            with torch.no_grad():
                losses = self.model.run_with_hooks(
                    self.tokens, fwd_hooks=[hook], return_type="loss", loss_per_token=True
                )
            rows.append(losses[:, positions or slice(1, None)].mean(1))
        return torch.stack(rows)

    def patching(self) -> Tensor:
        from transformer_lens import patching

        frame = pd.DataFrame(self.heads, columns=["layer", "head"])
        cache = {hook_name("z", layer): torch.zeros(1) for layer in self.layers}

        def setter(z: Tensor, index: Sequence[int], _: Any) -> Tensor:
            edited = z.clone()
            edited[:, :, index[1]] = 0
            return edited

        def metric(logits: Tensor) -> Tensor:
            return torch.nn.functional.cross_entropy(
                logits[:, 1:-1].flatten(0, 1), self.tokens[:, 2:].flatten()
            )

        with torch.no_grad():
            values: Tensor = patching.generic_activation_patch(
                self.model, self.tokens, cache, metric, setter, "z", index_df=frame
            )
        return values


class PlainSuffixes:
    """Hugging Face alone: blocks from k on, sdpa, and the loss, once a head."""

    def __init__(self, folder: str, sweep: Sweep) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="sdpa", dtype=torch.float32
        ).eval()
        self.sweep = sweep
        with torch.no_grad():
            self.hidden = self.model(sweep.tokens, output_hidden_states=True).hidden_states

    def run(self, positions: list[int] | None = None) -> None:
        stack = self.model.model
        every = stack.layers
        counted = torch.tensor(positions or range(1, LENGTH - 1))
        with torch.no_grad():
            for layer, _ in self.sweep.heads:
                stack.layers = every[layer:]
                try:
                    logits = self.model(
                        inputs_embeds=self.hidden[layer],
                        logits_to_keep=counted,
                        use_cache=False,
                    ).logits
                finally:
                    stack.layers = every
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), self.sweep.tokens[:, counted + 1].flatten()
                )


def patch_naively(model: Any, prompts: Any, layers: Sequence[int]) -> None:
    """Zero the residual at position 0 of each layer, a whole forward each."""
    for layer in layers:
        hook = (hook_name("residual", layer), zero_position0)
        with torch.no_grad():
            model.run_with_hooks(prompts.tokens, fwd_hooks=[hook], return_type="loss")


def zero_position0(residual: Tensor, hook: Any) -> Tensor:
    edited = residual.clone()
    edited[:, 0] = 0
    return edited


def patch_with_engine(model: Any, prompts: Any, layers: Sequence[int]) -> None:
    """The same as an experiment."""
    sinklens.run(
        "position0_patching",
        model,
        prompts,
        conditions=("zero",),
        layers=tuple(layers),
        metrics=("loss",),
        draws=0,
        progress=False,
    )


def screening(sweep: Sweep) -> None:
    """What an estimate of all heads costs, and whether it finds the largest."""
    edits = [ablate_heads(sweep.model, [head], "zero") for head in sweep.heads]
    guess = partial(estimate, sweep.model, sweep.prompts, edits, METRICS["loss"])
    guess()
    with torch.no_grad():
        taken = medians(5, {"estimate": guess, "forward": lambda: sweep.model(sweep.tokens)})
    cost = taken["estimate"] / taken["forward"]
    print(f"{'screening all of them, in forwards':45} {cost:.2f}    bar 4")
    clean = sinklens.evaluate(sweep.model, sweep.prompts, [], ["loss"], progress=False).clean
    exact = (sweep.engine() - clean).mean(1).abs()
    found = set(guess().mean(1).abs().topk(30).indices.tolist())
    share = len(found & set(exact.topk(10).indices.tolist())) / 10
    print(f"{'the exact ten largest among the 30 guessed':45} {share:.1f}     bar 0.9")


PEAK = """
import re, sys
import sinklens, torch
from sinklens.hooks import ablate_heads
from pathlib import Path
what, n, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = sinklens.load(Path(sys.argv[4]))
prompts = sinklens.prompts(model, n=n, length=length)
sinklens.check(model)
with torch.no_grad():
    if what == "forward":
        model(prompts.tokens[:1])
    elif what == "sdpa":
        model.original_model.set_attn_implementation("sdpa")
        for attention in (block.attn for block in model.blocks):
            attention.__dict__["forward"] = attention.original_component.forward
        model.original_model(prompts.tokens[:1])
    elif what == "profile":
        sinklens.run("sink_profile", model, prompts, conditions=("natural",), progress=False)
    else:
        edits = [ablate_heads(model, [(15, h)], "zero") for h in range(9)]
        sinklens.evaluate(model, prompts, edits, ["loss"], progress=False)
# The kernel's own count; getrusage would hand on the peak of the process that started this one.
print(int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**20)
"""


def peak(what: str, n: int, length: int, file: Path) -> float:
    """GiB that a process of its own needed at most, the model included."""
    arguments = [sys.executable, "-W", "ignore", "-c", PEAK, what, str(n), str(length), str(file)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def memory_and_growth(sweep: Sweep, file: Path) -> None:
    """Peak memory at a long context, and what twice the prompts cost."""
    profile = peak("profile", 1, 2048, file)
    for what, said in (("forward", "forward"), ("sdpa", "forward with sdpa")):
        ratio = profile / peak(what, 1, 2048, file)
        print(f"{f'sink_profile at 2,048 tokens, memory / {said}':60} {ratio:.2f}    bar 1.15")
    few, many = (peak("heads", n, LENGTH, file) for n in (8, 16))
    print(f"{'twice the prompts, peak memory':45} {many / few:.2f}    bar 1.05")
    model = sweep.model
    edits = [ablate_heads(model, [(15, head)], "zero") for head in range(model.cfg.n_heads)]
    ways = {
        str(n): partial(
            sinklens.evaluate,
            model,
            sinklens.prompts(model, n=n, length=LENGTH),
            edits,
            ["loss"],
            progress=False,
        )
        for n in (8, 16)
    }
    taken = medians(5, ways)
    print(f"{'twice the prompts, time':45} {taken['16'] / taken['8']:.2f}    bar 2.1")


def medians(rounds: int, ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The median time of each way over interleaved rounds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in times.items()}


def processor() -> str:
    """What the machine calls its processor."""
    file = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", file.read_text()) if file.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="every seventh layer")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every Nth layer")
    parser.add_argument("--rounds", type=int, default=5, help="5 and more for figures to keep")
    options = parser.parse_args()
    file = sinklens.models.cache_folder() / "tests" / SMOLLM2_FILE
    model = sinklens.load(Path(file))
    folder = str(sinklens.models._convert_gguf(Path(file)))
    first, step = (2, 7) if options.quick else (options.every // 2, options.every)
    layers = range(first, model.cfg.n_layers, step)
    # One edit a layer: over fewer layers the clean run would weigh more than it does in use.
    patched = layers if options.quick else range(model.cfg.n_layers)
    sweep = Sweep(model, list(layers))
    plain = PlainSuffixes(folder, sweep)
    print(processor(), f"{torch.get_num_threads()} threads")
    print({name: version(name) for name in ("torch", "transformer-lens", "transformers")})
    difference = (sweep.engine() - sweep.naive()).abs().max()
    print(f"{len(sweep.heads)} heads; largest difference from the naive loop {difference:.1e} nats")
    taken = medians(
        options.rounds,
        {
            "naive": sweep.naive,
            "engine": sweep.engine,
            "sampled": partial(sweep.engine, sweep.sample),
            "suffixes": plain.run,
            "sampled suffixes": partial(plain.run, sweep.sample),
            "patching": sweep.patching,
            "position 0": partial(patch_with_engine, model, sweep.prompts, patched),
            "position 0 naive": partial(patch_naively, model, sweep.prompts, patched),
        },
    )
    print({name: f"{seconds:.2f} s" for name, seconds in taken.items()})
    for what, above, below, bar in (
        ("all positions / naive loop", "engine", "naive", 0.65),
        ("16 positions / naive loop", "sampled", "naive", 0.48),
        ("all positions / plain suffixes", "engine", "suffixes", 1.15),
        ("16 positions / plain suffixes", "sampled", "sampled suffixes", 1.15),
        ("all positions / transformer_lens.patching", "engine", "patching", 0.65),
        ("position0_patching / naive loop", "position 0", "position 0 naive", 0.65),
    ):
        print(f"{what:45} {taken[above] / taken[below]:.3f}   bar {bar}")
    screening(sweep)
    memory_and_growth(sweep, Path(file))


if __name__ == "__main__":
    main()
