"""Models, tokenizers, folders, settings and sizes of prompts that nobody meant.

Each input runs the model, so that one takes tenths of a second.
"""

from __future__ import annotations

import copy
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

import sinklens
from sinklens.models.prompts import corpus
from sinklens.runner import registry
from tests import families
from tests.fuzz import damaged, model, scalars, typed, values

TEXT = corpus()[:2000]
QUIET = {"draws": 0, "null_models": 0, "progress": False}
FIRST = ("sink_profile", "bos_replacement", "position0_patching", "sink_head_ablation")
NUMBERS = (torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e-45, 0.0)

CONDITIONS = "zero mean drop_edge token:e token: other_token natural strict residual key value"
HEADS = "sink all L0H1 L1H3 L0H4 L-1H0 L00H01"
METRICS = "loss kl sink_mass logit_diff"
KEYS = "conditions heads layers metrics part positions each batch_size memory"

words = st.sampled_from(f"{CONDITIONS} {HEADS} {METRICS}".split())
specs = st.lists(words, min_size=1, max_size=3).map(",".join) | st.lists(
    words | st.sampled_from([":", ",", "-", "1:8", "0:0", "9:1", " "]), max_size=3
).map("".join)
names = st.sampled_from(FIRST)
keys = st.sampled_from(KEYS.split())


def configure_and_run(given: tuple[str, dict[str, Any]]) -> None:
    """Run an experiment with settings."""
    name, settings = given
    prompts = sinklens.Prompts(torch.arange(4, 16).view(2, 6), False, "tokens")
    with typed():
        finite(sinklens.run(name, model(), prompts, **{**QUIET, **settings}))


def finite(result: sinklens.ExperimentResult) -> None:
    """What is saved loads, to the same bytes."""
    with tempfile.TemporaryDirectory() as place:
        loaded = sinklens.ExperimentResult.load(result.save(Path(place) / "out"))
        assert loaded.files() == result.files()


def measure(bridge: Any, experiment: str, n: int = 2, length: int = 6, bos: Any = None) -> None:
    """Cut prompts and run an experiment on them."""
    prompts = sinklens.prompts(bridge, TEXT, n=n, length=length, bos=bos)
    finite(sinklens.run(experiment, bridge, prompts, **QUIET))


def with_a_weight(given: tuple[int, int, int, float, str]) -> None:
    """Run with some entries of one weight replaced, and put them back."""
    which, first, count, number, experiment = given
    weights = [weight for _, weight in sorted(model().original_model.named_parameters())]
    weight = weights[which % len(weights)]
    before = weight.detach().clone()
    with torch.no_grad():
        weight.view(-1)[first % weight.numel() :][:count] = number
    try:
        with typed():
            sinklens.check(model())
            measure(model(), experiment)
    finally:
        with torch.no_grad():
            weight.copy_(before)


special = st.none() | st.sampled_from(["<pad>", "<bos>", "<eos>", "<unk>", "e", "<new>", ""])


@st.composite
def tokenizers(draw: Any) -> Any:
    """A tokenizer whose special tokens are missing, shared, ordinary or beyond the embedding."""
    made = families.tiny_tokenizer(bos=draw(st.booleans()))
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        if draw(st.booleans()):
            setattr(made, name, draw(special))
    made.add_tokens(draw(st.lists(st.text(min_size=1, max_size=4), max_size=3)))
    if draw(st.booleans()):
        made.add_special_tokens({"additional_special_tokens": draw(st.lists(words, max_size=2))})
    made.padding_side = draw(st.sampled_from(["left", "right"]))
    bos = draw(st.sampled_from([None, True, False]))
    return made, draw(st.sampled_from([0, 2, 1000])), bos, draw(names)


def with_tokenizer(given: tuple[Any, int, Any, str]) -> None:
    """Load a model with it, cut prompts and run."""
    tokenizer, start, bos, experiment = given
    plain = families.llama()
    plain.config.bos_token_id = start if start < 64 else None
    with typed():
        bridge = sinklens.load(plain, tokenizer=tokenizer)
        sinklens.Prompts.from_strings(bridge, ["<bos>a text", "<pad>"], bos=bos)
    with typed():
        measure(sinklens.load(families.llama(), tokenizer=tokenizer), experiment, bos=bos)


def with_size(given: tuple[str, int, int, Any]) -> None:
    """Run on prompts of one token, of two, on one prompt, beyond the context."""
    name, n, length, bos = given
    smallest = registry.get(name).smallest
    with typed():
        prompts = sinklens.prompts(model(), TEXT, n=n, length=length, bos=bos)
        finite(sinklens.run(name, model(), prompts, **{**QUIET, **smallest}))


@cache
def folder() -> dict[str, bytes]:
    """The files of a saved model."""
    with tempfile.TemporaryDirectory() as place:
        families.llama().save_pretrained(place)
        families.tiny_tokenizer().save_pretrained(place)
        return {path.name: path.read_bytes() for path in Path(place).iterdir()}


@st.composite
def folders(draw: Any) -> dict[str, bytes]:
    """A model's folder of which one file is damaged, or a value of its JSON another."""
    files = dict(folder())
    name = draw(st.sampled_from(sorted(files)))
    if name.endswith(".json") and draw(st.booleans()):
        content = copy.deepcopy(json.loads(files[name]))
        key = draw(st.sampled_from(sorted(content)))
        content[key] = draw(values | st.integers(-1, 200) | scalars)
        files[name] = json.dumps(content).encode()
    else:
        files[name] = draw(damaged(files[name]))
    return files


def load_folder(files: dict[str, bytes]) -> None:
    """Load it."""
    with tempfile.TemporaryDirectory() as place:
        for name, content in files.items():
            (Path(place) / name).write_bytes(content)
        with typed():
            sinklens.load(place)


KINDS = {
    "specs": (configure_and_run, st.tuples(names, st.dictionaries(keys, specs, max_size=2))),
    "weights": (
        with_a_weight,
        st.tuples(
            st.integers(0, 100),
            st.integers(0, 5000),
            st.sampled_from([1, 32, 10**6]),
            st.sampled_from(NUMBERS),
            names,
        ),
    ),
    "tokenizers": (with_tokenizer, tokenizers()),
    "sizes": (
        with_size,
        st.tuples(
            st.deferred(lambda: st.sampled_from(sorted(registry.all_experiments()))),
            st.integers(1, 3),
            st.sampled_from([1, 2, 3, 4, families.MAX_POSITIONS + 1]),
            st.sampled_from([None, True, False]),
        ),
    ),
    "folders": (load_folder, folders()),
}
