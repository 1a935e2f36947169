"""How fast the engine is beside plain loops: `python -m tests.benchmarks.engine [--quick]`.

The whole table takes one to two hours on two cores; `--every 3` sweeps the heads of every third
layer, which lie as deep on average, `--quick` those of layers 2, 9, 16 and 23, whose ratios are
larger.
Position 0 is patched in every layer, with `--quick` in those four.

Everything is measured on SmolLM2-135M with 4 prompts of 64 tokens, in one process, and printed as
ratios of medians over interleaved rounds. The bars are those that the engine was built to meet.

- `naive`: `model.run_with_hooks(tokens, return_type="loss")`, one head a time;
- `suffixes`: plain Hugging Face forwards (sdpa) from the block that is edited on, with the loss,
  which no exact method can avoid;
- `patching`: `transformer_lens.patching.generic_activation_patch`, zeros for every head's z.

They are for metrics of logits. One metric that reads attention (`sink_mass`, which is among the
defaults of experiments) has every forward make its patterns, as the naive loop does, and takes the
part of the gain away that sdpa brings. What a model allows is found by trying before the clock
starts, once for a model as loaded; how long that takes is printed.
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
from sinklens.engine import shortcuts
from sinklens.engine.screening import estimate
from sinklens.hooks import ablate_heads
from sinklens.metrics import METRICS
from sinklens.models.capabilities import hook_name
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

    def run(self, positions: list[int] | None = None, layers: Sequence[int] = ()) -> None:
        """From the block of every head on, or once from each of some layers."""
        stack = self.model.model
        every = stack.layers
        counted = torch.tensor(positions or range(1, LENGTH - 1))
        with torch.no_grad():
            for layer in layers or [layer for layer, _ in self.sweep.heads]:
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


def patch_naively(model: Any, prompts: Any, layers: Sequence[int]) -> Tensor:
    """Zero the residual at position 0 of each layer, a whole forward each."""
    rows = []
    for layer in layers:
        hook = (hook_name("residual", layer), zero_position0)
        with torch.no_grad():
            losses = model.run_with_hooks(
                prompts.tokens, fwd_hooks=[hook], return_type="loss", loss_per_token=True
            )
        rows.append(losses[:, 1:].mean())
    return torch.stack(rows)


def zero_position0(residual: Tensor, hook: Any) -> Tensor:
    edited = residual.clone()
    edited[:, 0] = 0
    return edited


def patch_with_engine(model: Any, prompts: Any, layers: Sequence[int]) -> Tensor:
    """The same as an experiment."""
    result = sinklens.run(
        "position0_patching",
        model,
        prompts,
        conditions=("zero",),
        layers=tuple(layers),
        metrics=("loss",),
        draws=0,
        progress=False,
    )
    return torch.tensor([row.value for row in result.effects])


def screening(sweep: Sweep) -> None:
    """What an estimate of all heads costs, and whether it finds the largest."""
    edits = [ablate_heads(sweep.model, [head], "zero") for head in sweep.heads]
    guess = partial(estimate, sweep.model, sweep.prompts, edits, METRICS["loss"])
    guess()
    with torch.no_grad():
        taken = medians(5, {"estimate": guess, "forward": lambda: sweep.model(sweep.tokens)})
    cost = taken["estimate"] / taken["forward"]
    show("screening all of them, in forwards", cost, at_most=4)
    if len(sweep.heads) < 60:
        print("(too few heads to ask for the ten largest among 30)")
        return
    clean = sinklens.evaluate(sweep.model, sweep.prompts, [], ["loss"], progress=False).clean
    exact = (sweep.engine() - clean).mean(1).abs()
    found = set(guess().mean(1).abs().topk(30).indices.tolist())
    share = len(found & set(exact.topk(10).indices.tolist())) / 10
    show("share of the exact ten largest among the 30 guessed", share, at_least=0.9)


def show(
    what: str, ratio: float, *, at_most: float | None = None, at_least: float | None = None
) -> None:
    """Print a ratio, and whether it meets its bar."""
    bar = at_most if at_least is None else at_least
    met = ratio <= at_most if at_most is not None else at_least is None or ratio >= at_least
    print(
        f"{what:60} {ratio:6.3f}   "
        + ("" if bar is None else f"bar {bar}{'' if met else ' MISSED'}")
    )


PEAK = """
import re, sys
import sinklens, torch
from sinklens.hooks import ablate_heads
from pathlib import Path
what, n, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = sinklens.load(Path(sys.argv[4]))
prompts = sinklens.prompts(model, n=n, length=length)
sinklens.check(model)
def peak():  # the kernel's own count; getrusage would hand on that of the process that started this
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s*(\\d+)", status)[1]) / 2**20
Path("/proc/self/clear_refs").write_text("5")  # from here on
before = peak()
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
print(peak(), peak() - before)
"""


def peaks(kinds: dict[str, tuple[str, int, int]], file: Path) -> dict[str, tuple[float, float]]:
    """GiB that a process of its own needed at most, and how much of it beyond the loaded model.

    Medians of five interleaved runs: where memory is laid out differs from run to run.

    Args:
        kinds: By name what to run, on how many prompts of what length.
        file: The model.
    """
    found: dict[str, list[list[float]]] = {name: [] for name in kinds}
    for _ in range(5):
        for name, (what, n, length) in kinds.items():
            code = [sys.executable, "-W", "ignore", "-c", PEAK, what, str(n), str(length)]
            done = subprocess.run([*code, str(file)], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr)
            found[name].append([float(part) for part in done.stdout.split()[-2:]])
    return {
        name: (
            statistics.median(whole for whole, _ in taken),
            statistics.median(more for _, more in taken),
        )
        for name, taken in found.items()
    }


def memory_and_growth(sweep: Sweep, file: Path) -> None:
    """Peak memory at a long context, and what twice the prompts cost."""
    long = peaks({what: (what, 1, 2048) for what in ("profile", "forward", "sdpa")}, file)
    for what, said in (("forward", "plain forward"), ("sdpa", "forward with sdpa")):
        ratio = long["profile"][0] / long[what][0]
        show(f"sink_profile at 2,048 tokens, memory / {said}", ratio, at_most=1.15)
        show("  the same beyond the loaded model", long["profile"][1] / long[what][1])
    few, many = N_PROMPTS, 2 * N_PROMPTS
    grown = peaks({str(n): ("heads", n, LENGTH) for n in (few, many)}, file)
    show("twice the prompts, peak memory", grown[str(many)][0] / grown[str(few)][0], at_most=1.05)
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
        for n in (few, many)
    }
    taken = medians(5, ways)
    show("twice the prompts, time", taken[str(many)] / taken[str(few)], at_most=2.1)


def medians(rounds: int, ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The median time of each way over interleaved rounds; each round is printed as it ends."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds):
        # Each round starts with another one, so that none is always first after the same one.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = time.perf_counter()
            ways[name]()
            times[name].append(time.perf_counter() - began)
        taken = ", ".join(f"{name} {seconds[-1]:.1f} s" for name, seconds in times.items())
        print(f"  round {number + 1}: {taken}", flush=True)
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
    folder = str(sinklens.models.gguf.convert_gguf(Path(file)))
    first, step = (2, 7) if options.quick else (options.every // 2, options.every)
    layers = range(first, model.cfg.n_layers, step)
    # One edit a layer: over fewer layers the clean run would weigh more than it does in use.
    patched = layers if options.quick else range(model.cfg.n_layers)
    sweep = Sweep(model, list(layers))
    plain = PlainSuffixes(folder, sweep)
    print(processor(), f"{torch.get_num_threads()} threads")
    print({name: version(name) for name in ("torch", "transformer-lens", "transformers")})
    began = time.perf_counter()
    shortcuts(model)
    print(f"trying what this model allows takes {time.perf_counter() - began:.1f} s, once")
    require_same(model, sweep, patched)
    # The short measurements first: the sweep below takes nearly all of the time.
    screening(sweep)
    memory_and_growth(sweep, Path(file))
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
            "position 0 suffixes": partial(plain.run, layers=list(patched)),
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
        show(what, taken[above] / taken[below], at_most=bar)
    # No exact method takes less: the forwards from the patched blocks on, and a clean one.
    least = taken["position 0 suffixes"] + taken["position 0 naive"] / len(patched)
    show("  what it cannot avoid / naive loop", least / taken["position 0 naive"])
    show("  position0_patching / what it cannot avoid", taken["position 0"] / least)


def require_same(model: Any, sweep: Sweep, patched: Sequence[int]) -> None:
    """Hold the engine to the plain loops before anything is timed."""
    pairs = (
        ("all positions", sweep.engine(), sweep.naive()),
        ("16 positions", sweep.engine(sweep.sample), sweep.naive(sweep.sample)),
        (
            "position 0",
            patch_with_engine(model, sweep.prompts, patched),
            patch_naively(model, sweep.prompts, patched),
        ),
    )
    for what, found, wanted in pairs:
        difference = float((found - wanted).abs().max())
        print(f"{what}: {len(wanted)} edits, at most {difference:.1e} nats from the naive loop")
        if not difference <= 1e-5:
            raise SystemExit(f"{what} differs from the naive loop by {difference:.1e} nats")


if __name__ == "__main__":
    main()
