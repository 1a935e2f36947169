"""Load a model for sinklens, and say what TransformerLens does not say about one.

`load` turns a shipped name, a folder, a `.gguf` file, a hub id, a Hugging Face model or a bridge
into a `TransformerBridge` with raw weights, eager attention and eval mode. `origin`,
`bos_token_id`, `ordinary_tokens` and `weights_hash` say what experiments have to know about it.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor

from .core.errors import SinklensError, UsageError, unknown_name
from .core.protocol import HookedModel

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class Origin:
    """Where a model came from.

    Attributes:
        kind: `shipped`, `hub`, `folder`, `gguf`, `hugging_face` (an object) or `bridge`.
        name: The shipped name, the hub id, or the name of the folder or file without its path.
        revision: The hub revision that was asked for.
        step: The training step of a shipped checkpoint.
        seed: The training seed of a shipped model.
        bos_token_id: The BOS token as tokenizer or config gave it before booting; None where the
            model has none (TransformerLens fills a missing BOS with EOS).
    """

    kind: str
    name: str
    revision: str | None = None
    step: int | None = None
    seed: int | None = None
    bos_token_id: int | None = None


_origins: WeakKeyDictionary[Any, Origin] = WeakKeyDictionary()
_hashes: WeakKeyDictionary[Any, tuple[tuple[int, ...], str]] = WeakKeyDictionary()


def load(
    source: Any,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    revision: str | None = None,
    step: int | None = None,
    seed: int | None = None,
) -> TransformerBridge:
    """A `TransformerBridge` in eval mode with eager attention and raw weights.

    Args:
        source: A bridge (returned untouched), a Hugging Face model (**taken over in place** by
            TransformerLens and set to eval mode), an existing folder or `.gguf` file, the name of a
            shipped model, or a hub id; read in this order.
        tokenizer: A tokenizer to use instead of the one beside the weights. A Hugging Face model
            without one gives a bridge that works on tokens only.
        device: Where to put it; by default TransformerLens decides.
        dtype: `float32`, `float64`, `float16` or `bfloat16`.
        revision: A hub revision.
        step: A training step of a shipped model; the last one by default.
        seed: A training seed of a shipped model.

    Raises:
        SinklensError: There is no such model, the file is not what its name says, TransformerLens
            does not support its architecture, or a bridge is in train mode.
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    if isinstance(source, (str, Path)):
        return _load_named(source, tokenizer, device, dtype, revision, step, seed)
    if any(value is not None for value in (revision, step, seed)):
        raise UsageError("revision, step and seed need a name to load, not a model object")
    if dtype != "float32" or device is not None:
        raise UsageError("dtype and device need a name to load; convert a model object yourself")
    if hasattr(source, "hook_dict"):
        require_eval_mode(source)
        return source
    if isinstance(source, torch.nn.Module) and hasattr(source, "config"):
        return _wrap(source, tokenizer)
    raise UsageError(
        f"cannot load a {type(source).__name__}; give a shipped name, a folder, a .gguf file, "
        "a hub id, a Hugging Face model or a TransformerBridge"
    )


def load_like(
    model: HookedModel,
    source: str | Path,
    *,
    revision: str | None = None,
    step: int | None = None,
    seed: int | None = None,
) -> TransformerBridge:
    """Load another model, or another checkpoint, on the device and in the dtype of `model`.

    Args:
        model: What it will be compared with.
        source: As `load` takes it.
        revision: A hub revision.
        step: A training step of a shipped model.
        seed: A training seed of a shipped model.

    Raises:
        SinklensError: As in `load`.
    """
    dtype = str(model.cfg.dtype).removeprefix("torch.")
    device = model.cfg.device
    return load(source, device=device, dtype=dtype, revision=revision, step=step, seed=seed)


def require_eval_mode(model: HookedModel) -> None:
    """Refuse a model in train mode: dropout makes two equal runs differ.

    Raises:
        SinklensError: The model, or the Hugging Face model underneath, is in train mode.
    """
    if model.training or getattr(model.original_model, "training", False):
        raise SinklensError(
            "the model is in train mode, where two equal runs can differ; call model.eval() first"
        )


def origin(model: HookedModel) -> Origin:
    """Where the model came from; kind `bridge` if `load` did not make it."""
    known = _origins.get(model)
    if known is None:
        known = Origin("bridge", str(model.cfg.model_name), bos_token_id=_guess_bos(model))
    return known


def bos_token_id(model: HookedModel) -> int | None:
    """The token that marks the start of a text, None where the model has none."""
    return origin(model).bos_token_id


def ordinary_tokens(model: HookedModel) -> Int[Tensor, " token"]:
    """All token ids that a text can contain: the vocabulary without special tokens.

    Rows of the embedding beyond the tokenizer's last entry are padding and left out too.
    """
    size = int(model.cfg.d_vocab)
    special = {bos_token_id(model)}
    config = getattr(model.original_model, "config", None)  # `boot_native` has none
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name, None)
        special.update(value if isinstance(value, (list, tuple)) else [value])
    tokenizer = model.tokenizer
    if tokenizer is not None:
        size = min(size, len(tokenizer))
        special.update(tokenizer.all_special_ids)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special.update(token for token, entry in added.items() if entry.special)
    return torch.tensor([token for token in range(size) if token not in special])


def weights_state(model: HookedModel) -> tuple[Any, ...]:
    """What changes when a weight is written, replaced or moved.

    Writing through `.data` without another storage goes unseen, and so does writing an inference
    tensor, which counts no versions.
    """
    return tuple(
        (name, w.data_ptr(), w.dtype, w.device, 0 if w.is_inference() else w._version)
        for name, w in model.original_model.state_dict().items()
    )


def weights_hash(model: HookedModel) -> str:
    """SHA-256 over all weights, by name, as they are now (16 hexadecimal digits).

    Kept per model while `weights_state` is the same.
    """
    state = model.original_model.state_dict()
    # Inference tensors count no versions; theirs are hashed every time.
    counted = not any(tensor.is_inference() for tensor in state.values())
    versions = weights_state(model)
    known = _hashes.get(model)
    if known is None or not counted or known[0] != versions:
        digest = hashlib.sha256()
        for name, tensor in sorted(state.items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(flat.numpy())
        known = (versions, digest.hexdigest()[:16])
        _hashes[model] = known
    return known[1]


def _load_named(
    source: str | Path,
    tokenizer: Any,
    device: Any,
    dtype: str,
    revision: str | None,
    step: int | None,
    seed: int | None,
) -> TransformerBridge:
    """Load what a name or a path means: an existing path, a shipped name, then a hub id."""
    from . import zoo

    path = Path(source)
    if path.exists() and (step is not None or seed is not None):
        raise UsageError(f"step and seed pick a checkpoint of a shipped model; {path} is a path")
    if path.exists() or isinstance(source, Path):
        folder = _model_folder(path)
        kind = "folder" if path.is_dir() else "gguf"
        known = Origin(kind, path.name, revision)
        return _boot(str(folder), known, tokenizer, device, dtype, revision)
    name = str(source)
    if name in zoo.names():
        known = Origin("shipped", name, step=step, seed=seed)
        with zoo.folder(name, step=step, seed=seed) as folder:
            bridge = _boot(str(folder), known, tokenizer, device, dtype, revision)
        # TransformerLens goes by the architecture; the card knows what this model was trained on.
        bridge.cfg.default_prepend_bos = bool(zoo.card(name)["bos"])
        return bridge
    if "/" not in name:
        raise SinklensError(
            f"{unknown_name('model', name, zoo.names())}; a model may also be a folder, a .gguf "
            "file or a hub id of the form owner/name"
        )
    if path.suffix == ".gguf" or name.startswith(("/", "./", "../", "~")):
        raise SinklensError(f"there is no file or folder {name}")
    if step is not None or seed is not None:
        raise UsageError(
            f"step and seed pick a checkpoint of a shipped model; {name} is a hub id, whose "
            "checkpoints are picked by revision"
        )
    return _boot(name, Origin("hub", name, revision), tokenizer, device, dtype, revision)


def _model_folder(path: Path) -> Path:
    """The folder with Hugging Face files that a folder or `.gguf` file stands for."""
    if not path.exists():
        raise SinklensError(f"there is no file or folder {path}")
    if path.is_file():
        return _convert_gguf(path)
    if not (path / "config.json").exists():
        raise SinklensError(
            f"the folder {path} has no config.json; give a folder that save_pretrained wrote"
        )
    return path


def _boot(
    name: str, known: Origin, tokenizer: Any, device: Any, dtype: str, revision: str | None
) -> TransformerBridge:
    """Boot a local folder or hub id, remembering what TransformerLens would overwrite."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with _quiet_transformers(), _own_random_state():
            config = AutoConfig.from_pretrained(name, revision=revision)
            if tokenizer is None:
                tokenizer = _find_tokenizer(name, revision)
            bos = _bos_before_boot(tokenizer, config)
            if tokenizer is None:
                hugging_face = AutoModelForCausalLM.from_pretrained(
                    name, config=config, revision=revision, dtype=DTYPES[dtype]
                )
                bridge = _wrap(hugging_face if device is None else hugging_face.to(device), None)
            else:
                bridge = TransformerBridge.boot_transformers(
                    name, tokenizer=tokenizer, device=device, dtype=DTYPES[dtype], revision=revision
                )
    except SinklensError:
        raise
    except Exception as error:
        raise SinklensError(f"cannot load {known.name}: {_first_line(error)}") from error
    _keep_epsilons(bridge)
    bridge.eval()
    _origins[bridge] = Origin(known.kind, known.name, revision, known.step, known.seed, bos)
    return bridge


def _wrap(hugging_face: Any, tokenizer: Any) -> TransformerBridge:
    """Take over a Hugging Face model object."""
    config = hugging_face.config
    if not config.architectures:
        config.architectures = [type(hugging_face).__name__]
    bos = _bos_before_boot(tokenizer, config)
    name = getattr(config, "_name_or_path", "") or type(hugging_face).__name__
    hugging_face.eval()
    try:
        with _own_random_state():
            bridge = _build(hugging_face, tokenizer, name)
    except Exception as error:
        raise SinklensError(f"cannot wrap {name}: {_first_line(error)}") from error
    _keep_epsilons(bridge)
    bridge.eval()
    _origins[bridge] = Origin("hugging_face", Path(name).name, bos_token_id=bos)
    return bridge


def _build(hugging_face: Any, tokenizer: Any, name: str) -> TransformerBridge:
    """Boot a Hugging Face object, with or without a tokenizer."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformer_lens.utilities.attn_implementation import force_eager_attention

    if tokenizer is None:  # boot_transformers would ask the hub for one
        force_eager_attention(hugging_face)
        return build_bridge_from_module(
            hugging_face,
            hugging_face.config.architectures[0],
            hf_config=hugging_face.config,
            model_name=name,
        )
    device = next(hugging_face.parameters()).device
    return TransformerBridge.boot_transformers(
        name, hf_model=hugging_face, tokenizer=tokenizer, device=device, dtype=hugging_face.dtype
    )


def _keep_epsilons(bridge: TransformerBridge) -> None:
    """Give every norm the epsilon of the Hugging Face module that it stands for.

    TransformerLens reads it from the config, where it does not know every name that it can have
    (StarCoder2 says `norm_epsilon`), and then takes 1e-5.
    """
    from transformer_lens.model_bridge.generalized_components.normalization import (
        NormalizationBridge,
    )

    for norm in bridge.modules():
        if not isinstance(norm, NormalizationBridge):
            continue
        own = getattr(norm.original_component, "eps", None)
        if isinstance(own, float) and own != norm.config.eps:
            norm.config = copy.copy(norm.config)  # other norms may share it
            norm.config.eps = own


def _find_tokenizer(name: str, revision: str | None) -> Any:
    """The tokenizer beside the weights, asked to prepend BOS where it can; None without files."""
    from transformers import AutoTokenizer

    path = Path(name)
    if path.is_dir() and not any(path.glob("tokenizer*")) and not any(path.glob("vocab*")):
        return None
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, add_bos_token=True)
    except ValueError:  # no BOS to add
        return AutoTokenizer.from_pretrained(name, revision=revision)


def _bos_before_boot(tokenizer: Any, config: Any) -> int | None:
    """BOS of tokenizer or config, before TransformerLens fills a missing one with EOS."""
    if tokenizer is not None:
        for candidate in (tokenizer.bos_token_id, getattr(tokenizer, "cls_token_id", None)):
            if candidate is not None:
                return int(candidate)
    value = getattr(config, "bos_token_id", None)
    return None if value is None else int(value)


def _guess_bos(model: HookedModel) -> int | None:
    """BOS of a bridge that somebody else booted.

    Its tokenizer may carry EOS in place of a missing BOS, so the Hugging Face config decides; a
    tokenizer whose BOS differs from its EOS is believed too.
    """
    value = getattr(getattr(model.original_model, "config", None), "bos_token_id", None)
    tokenizer = model.tokenizer
    if tokenizer is not None:
        if getattr(tokenizer, "cls_token_id", None) is not None:
            return int(tokenizer.cls_token_id)
        own = tokenizer.bos_token_id
        if value is None and own is not None and own != tokenizer.eos_token_id:
            return int(tokenizer.bos_token_id)
    return None if value is None else int(value)


def cache_folder() -> Path:
    """Where converted models are kept: `SINKLENS_CACHE`, else `~/.cache/sinklens`."""
    return Path(os.environ.get("SINKLENS_CACHE") or Path.home() / ".cache" / "sinklens")


def _convert_gguf(file: Path) -> Path:
    """A Hugging Face folder with the dequantised weights of a `.gguf` file, made once.

    The folder is named after the file's hash and appears whole or not at all.
    """
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise SinklensError(
                f"{file} is not a GGUF file; give a .gguf file or a folder that save_pretrained "
                "wrote"
            )
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    folder = cache_folder() / f"gguf-{digest}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="converting-") as partial:
        target = Path(partial) / "model"
        target.mkdir()
        try:
            with _quiet_transformers():
                _write_dequantised(file, target)
        except Exception as error:
            raise SinklensError(f"cannot read {file} as GGUF: {_first_line(error)}") from error
        with contextlib.suppress(OSError):  # another process was faster
            target.rename(folder)
    return folder


def _write_dequantised(file: Path, folder: Path) -> None:
    """Read a `.gguf` file with transformers and write config, tokenizer and float32 weights."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
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
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Switch off transformers' loading bars for a while."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _own_random_state() -> AbstractContextManager[None]:
    """Keep the caller's random state: booting GPT-2 or NeoX draws from the global generator."""
    return torch.random.fork_rng(devices=[])


def _first_line(error: Exception) -> str:
    """The first line of a message from a library, which may run to pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:400]
