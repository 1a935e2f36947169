"""Input that nobody meant: a right result or a typed error of one line, and nothing else.

    python -m tests.fuzz --n 10000            # every kind
    python -m tests.fuzz --n 1000 texts       # one
    python -m tests.fuzz.kills 50             # kill -9 at random moments of a run

Each kind is a function that hypothesis calls with one input after another; whatever is raised that
is not a `SinklensError`, or takes longer than `SECONDS`, is shown with the smallest input that does
it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import signal
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

import sinklens
from sinklens.cli.request import Request, Source
from sinklens.models.prompts import corpus
from sinklens.models.prompts.given import as_prompts
from sinklens.runner import registry
from tests import families, golden

SECONDS = 30
Files = dict[str, bytes]

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 2**63, 10**400])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["\x1b[31m", "../..", "1e5", "\ud800", "nan", "<script>", "0:1", "L0H0"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@contextmanager
def typed() -> Iterator[None]:
    """Let through what is right or typed; nothing takes for ever."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    except sinklens.SinklensError as error:
        assert str(error) and "\n" not in str(error) and "\x1b" not in str(error)
        str(error).encode()
    finally:
        signal.alarm(0)


@cache
def model() -> Any:
    """The tiny Llama."""
    return families.boot("llama")


@cache
def saved() -> tuple[Files, ...]:
    """The files of some results: of today, and of schema 1."""
    prompts = sinklens.prompts(model(), corpus()[:2000], n=3, length=8, bos=True)
    settings = {"draws": 1, "null_models": 0, "progress": False}
    found = [
        sinklens.run(name, model(), prompts, **settings).files()
        for name in ("sink_profile", "bos_replacement")
    ]
    with zipfile.ZipFile(Path(golden.__file__).parent / "schema1.zip") as archive:
        for name in ("sink_profile", "massive_activations"):
            files = ("result.json", "run.json", "values.safetensors")
            found.append({file: archive.read(f"{name}/{file}") for file in files})
    return tuple(found)


def look_at(files: Files) -> None:
    """Load a result and show it in every way."""
    with tempfile.TemporaryDirectory() as place:
        for name, content in files.items():
            (Path(place) / name).write_bytes(content)
        with typed():
            result = sinklens.ExperimentResult.load(place)
            for text in (str(result), result._repr_html_()):
                assert "\x1b" not in text or "<" in text
            result.to_dataframe(), result.per_prompt_frame(), result.plot()


@st.composite
def changed_json(draw: Any) -> Files:
    """A saved result of which one to three values are others, without the hash that would tell."""
    files = dict(draw(st.sampled_from(saved())))
    content = copy.deepcopy(json.loads(files["result.json"]))
    content.pop("sha256", None)
    for _ in range(draw(st.integers(1, 3))):
        at, steps = content, draw(st.integers(1, 5))
        for step in range(steps):
            keys = list(at) if isinstance(at, dict) else range(len(at))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if step == steps - 1 or not isinstance(at[key], (dict, list)):
                if draw(st.booleans()):
                    at[key] = draw(values)
                else:
                    del at[key]
                break
            at = at[key]
    return files | {"result.json": json.dumps(content).encode()}


def damaged(raw: bytes, most: int = 3) -> Any:
    """Bytes of which some are others, or that end early."""

    @st.composite
    def change(draw: Any) -> bytes:
        new = bytearray(raw)
        for _ in range(draw(st.integers(1, most))):
            # Near the start, where headers are, as often as anywhere.
            end = draw(st.sampled_from([16, min(400, len(raw)), len(raw)]))
            place = draw(st.integers(0, end - 1))
            new[place] = draw(st.sampled_from([0, 1, 255]) | st.integers(0, 255))
        return bytes(new[: draw(st.sampled_from([len(new), len(new), place]))])

    return change()


@st.composite
def changed_tensors(draw: Any) -> Files:
    """A saved result whose tensors are damaged, and hashed anew."""
    files = dict(draw(st.sampled_from(saved())))
    raw = draw(damaged(files["values.safetensors"]))
    content = json.loads(files["result.json"])
    content.pop("sha256", None)
    content["values_sha256"] = hashlib.sha256(raw).hexdigest()
    return {
        **files,
        "values.safetensors": raw,
        "result.json": json.dumps(content).encode(),
    }


@cache
def gguf_file() -> bytes:
    """A small GGUF file of a Llama without a tokenizer."""
    import numpy as np
    from gguf import GGUFWriter

    with tempfile.TemporaryDirectory() as place:
        writer = GGUFWriter(Path(place) / "a.gguf", "llama")
        for name, number in {
            "block_count": 1,
            "context_length": 32,
            "embedding_length": 8,
            "feed_forward_length": 8,
            "head_count": 2,
            "vocab_size": 8,
        }.items():
            getattr(writer, f"add_{name}")(number)
        writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
        writer.add_tensor("token_embd.weight", np.zeros((8, 8), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return (Path(place) / "a.gguf").read_bytes()


def load_gguf(raw: bytes) -> None:
    """Load a file as GGUF, with a cache of its own."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "a.gguf"
        file.write_bytes(raw)
        before = os.environ.get("SINKLENS_CACHE")
        os.environ["SINKLENS_CACHE"] = f"{place}/cache"
        try:
            with typed():
                sinklens.load(file)
        finally:
            os.environ.pop("SINKLENS_CACHE")
            if before is not None:
                os.environ["SINKLENS_CACHE"] = before
        left = list(Path(place).glob("cache/converting-*"))
        assert not left


@st.composite
def set_options(draw: Any) -> tuple[str, list[str]]:
    """An experiment and what is given by `--set`."""
    name = draw(st.sampled_from(sorted(registry.all_experiments())))
    known = sorted(registry.get(name).config.__dataclass_fields__)
    key = st.sampled_from(known) | st.text(max_size=8)
    value = scalars.map(str) | st.lists(scalars.map(str), max_size=3).map(",".join)
    pairs = draw(st.lists(st.tuples(key, value).map("=".join) | st.text(max_size=9), max_size=3))
    return name, pairs


def configure(options: tuple[str, list[str]]) -> None:
    """Read `--set` as the command does."""
    name, pairs = options
    with typed():
        request = Request(name, Source("rope"), None, 4, 8, None, 0, pairs)
        registry.configure(registry.get(name), request.settings())


def cut(text: str) -> None:
    """Make prompts of a text, and of it as one string."""
    for make in (
        lambda: sinklens.prompts(model(), text, n=2, length=5),
        lambda: sinklens.Prompts.from_strings(model(), [text, text]),
        lambda: sinklens.hooks.replace_bos_embedding(model(), f"token:{text}"),
    ):
        with typed():
            make()


texts = st.text(max_size=40) | st.sampled_from(["", "\0", "\ud800", "/dev/zero", "/", ".", "~x"])
ids = st.integers(-2, 70) | st.integers() | st.booleans() | st.floats() | st.text(max_size=2)
DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32]
tokens = (
    st.lists(st.lists(ids, max_size=5), max_size=4)
    | st.lists(st.lists(st.integers(0, 63), min_size=4, max_size=4), min_size=1, max_size=3)
    | st.tuples(
        st.lists(st.lists(st.integers(0, 63), min_size=4, max_size=4), min_size=1, max_size=3),
        st.sampled_from(DTYPES),
    ).map(lambda given: torch.tensor(given[0]).to(given[1]))
    | values
)


def measure(given: Any) -> None:
    """Measure on tokens."""
    with typed():
        prompts = as_prompts(model(), given)
        sinklens.evaluate(model(), prompts, [], ["loss", "sink_mass"], progress=False)
    with typed():
        sinklens.sink_scores(model(), given)
