"""GGUF files: converted once to a cached Hugging Face folder with dequantised weights."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.errors import SinklensError, shortened
from ..core.json_files import json_bytes, read_json
from ..core.locks import passing_folder, remove_left

CONTENT = "sinklens.json"
UNDER_WAY = "converting-"


def cache_folder() -> Path:
    """The cache of converted models: `SINKLENS_CACHE`, else `~/.cache/sinklens`."""
    return Path(os.environ.get("SINKLENS_CACHE") or Path.home() / ".cache" / "sinklens")


def convert_gguf(file: Path) -> Path:
    """A Hugging Face folder with the dequantised weights of a `.gguf` file, made once.

    The folder is named after the file's hash and appears whole or not at all. One that is damaged
    is made again.

    Raises:
        SinklensError: It is no GGUF file, is damaged, or the cache cannot be written.
    """
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise SinklensError(
                f"{file} is not a GGUF file; give a .gguf file or a folder that save_pretrained "
                "wrote"
            )
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    cache = cache_folder()
    folder = cache / f"gguf-{digest}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        remove_left(cache, UNDER_WAY)
        if _is_whole(folder):
            return folder
        with passing_folder(cache, UNDER_WAY) as passing:
            _convert(file, passing / "model")
            with contextlib.suppress(OSError):  # another process was faster
                if folder.exists():
                    folder.rename(passing / "damaged")
                (passing / "model").rename(folder)
    except (OSError, ValueError) as error:
        raise SinklensError(
            f"cannot write converted models into {shortened(cache)}: {error}; set SINKLENS_CACHE "
            "to a folder that can be written"
        ) from error
    return folder


def _convert(file: Path, target: Path) -> None:
    """Write a folder for a `.gguf` file, and what its files are.

    Raises:
        SinklensError: The file is damaged.
        OSError: The folder cannot be written.
    """
    try:
        with quiet_transformers():
            _require_sound(file)
            model, tokenizer = _dequantised(file)
    except Exception as error:
        raise SinklensError(f"cannot read {file} as GGUF: {first_line(error)}") from error
    target.mkdir()
    _write(model, tokenizer, target)
    made = {path.name: _sums_of(path) for path in sorted(target.iterdir())}
    (target / CONTENT).write_bytes(json_bytes(made))


def _is_whole(folder: Path) -> bool:
    """Whether a converted model is as it was written, to the bit."""
    try:
        made = read_json(folder / CONTENT)
        return bool(made) and all(_sums_of(folder / name) == sums for name, sums in made.items())
    except (SinklensError, OSError):
        return False


def _sums_of(path: Path) -> str:
    """A checksum of a file at the speed of memory: a hash of sums of 128 words of 8 bytes."""
    if not path.stat().st_size:
        return ""
    raw = np.memmap(path, np.uint8, "r")
    whole = len(raw) // 1024 * 1024
    sums = raw[:whole].view(np.uint64).reshape(-1, 128).sum(1)
    return hashlib.sha256(sums.tobytes() + raw[whole:].tobytes()).hexdigest()


def _require_sound(file: Path) -> None:
    """Refuse a header that names more blocks or weights than there are, before any is made.

    Raises:
        ValueError: It does.
    """
    from gguf import GGUFReader

    reader = GGUFReader(file)
    for name, field in reader.fields.items():
        if name.endswith(".block_count") and field.contents() > len(reader.tensors):
            raise ValueError(f"{name} is {field.contents()}, of {len(reader.tensors)} tensors")
    _require_weights(file, sum(int(tensor.n_elements) for tensor in reader.tensors))


def _require_weights(file: Path, there: int) -> None:
    """Refuse a header that asks for more weights than there are, before any is made.

    Transformers would draw those that are missing, and take whatever memory a header asks for.

    Raises:
        ValueError: It does.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    with torch.device("meta"):  # where weights take no memory
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    wanted = sum(weight.numel() for weight in model.parameters())
    unembedding = model.get_output_embeddings()
    if unembedding is not None and not config.tie_word_embeddings:
        wanted -= unembedding.weight.numel()  # which can stand in the file once, with the embedding
    if wanted > there:
        raise ValueError(f"its header asks for {wanted:,} weights, of which it has {there:,}")


def _dequantised(file: Path) -> tuple[Any, Any]:
    """The model of a `.gguf` file in float32, as transformers reads it, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": file.name, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
    return model, AutoTokenizer.from_pretrained(file.parent, **options)


def _write(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write config, tokenizer and weights.

    Raises:
        OSError: The folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # A config that still says "GGUF" makes transformers look for the quantised file again.
    del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:  # tied weights once
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.contiguous()
    try:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # what a full disk is to safetensors
        raise OSError(first_line(error)) from error
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Switch off transformers' loading bars within a `with` block."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """The first line of a library's error message, which may be long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:400]
