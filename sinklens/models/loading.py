"""Load a model for sinklens, and record what TransformerLens does not.

`load` turns a shipped name, a folder, a `.gguf` file, a hub id, a Hugging Face model or a bridge
into a `TransformerBridge` with raw weights, eager attention and eval mode. `origin`,
`bos_token_id`, `ordinary_tokens` and `weights_hash` give what experiments need to know about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.errors import SinklensError, UsageError, shortened
from ..core.paths import path_of
from ..core.protocol import HookedModel
from ..core.terminal import status
from . import shipped
from .agreement import agreement, require_as_on_cpu, require_one_stack, require_tokens
from .gguf import convert_gguf, first_line, quiet_transformers
from .names import hub_id, require_hub_id, require_reachable
from .obstacles import NO_BLOCKS
from .origins import ORIGINS, Origin, require_eval_mode, short_prompt
from .placement import (
    DeviceMap,
    Placement,
    dtype_name,
    placement,
    require_as_it_is,
    require_plain,
)
from .tokenizers import bos_before_boot, find_tokenizer, openable
from .weights import devices
from .wrapping import build, keep_device, keep_epsilons, why_not_wrapped

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

UNTRUSTED = ("mps",)
"""Kinds of device on which a model is compared with itself on the CPU."""


def load(
    source: Any,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    device_map: DeviceMap | None = None,
    n_devices: int | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    step: int | None = None,
    seed: int | None = None,
) -> TransformerBridge:
    """A `TransformerBridge` in eval mode with eager attention and raw weights.

    Args:
        source: A bridge (returned untouched), a Hugging Face model (**taken over in place** by
            TransformerLens and set to eval mode), an existing folder or `.gguf` file, the name of a
            shipped model, a Hub id, or a short name of one (`gpt2`); tried in this order.
        tokenizer: A tokenizer to use instead of the one beside the weights. A Hugging Face model
            without one gives a bridge that works on tokens only.
        device: Its device; by default TransformerLens chooses. A model object stays on its own.
        device_map: Several devices, or the CPU and disk, as accelerate takes them: `"auto"`,
            `"balanced"` or a device for each module. Hooks run where their layer is.
        n_devices: As many CUDA devices, the layers balanced over them.
        dtype: `float32` (the default), `float64`, `float16` or `bfloat16`, as text or of torch. A
            model object keeps its own.
        revision: A Hub revision.
        step: A training step of a shipped model; the last one by default.
        seed: A training seed of a shipped model.

    Raises:
        SinklensError: There is no such model, the file is not what its name says, TransformerLens
            does not support its architecture, or a bridge is in train mode.
        UsageError: A dtype or device is unknown, is not that of a model object, or devices are
            given in more than one way.
    """
    chosen = dtype_name(dtype)
    tokenizer = openable(tokenizer)
    if isinstance(source, (str, Path)):
        where = placement(device, chosen or "float32", device_map, n_devices)
        with status(f"loading {source}"):
            return _load_named(source, tokenizer, where, revision, step, seed)
    if device_map is not None or n_devices is not None:
        raise UsageError(
            "device_map and n_devices need a name to load; give device_map to from_pretrained "
            "where the model object is made"
        )
    if any(value is not None for value in (revision, step, seed)):
        raise UsageError("revision, step and seed need a name to load, not a model object")
    if isinstance(source, torch.nn.Module):
        require_as_it_is(source, device, chosen)
    if hasattr(source, "hook_dict"):
        require_eval_mode(source)
        return source
    if isinstance(source, torch.nn.Module) and hasattr(source, "config"):
        require_plain(source)
        return _wrap(source, tokenizer)
    raise UsageError(
        f"cannot load a {type(source).__name__}; give a shipped name, a folder, a .gguf file, "
        "a Hub id, a Hugging Face model or a TransformerBridge"
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
        model: The model it will be compared with.
        source: As in `load`.
        revision: A hub revision.
        step: A training step of a shipped model.
        seed: A training seed of a shipped model.

    Raises:
        SinklensError: As in `load`.
    """
    dtype = str(model.cfg.dtype).removeprefix("torch.")
    spread = len(devices(model)) > 1
    where = {"device_map": "auto"} if spread else {"device": model.cfg.device}
    return load(source, dtype=dtype, revision=revision, step=step, seed=seed, **where)


def _load_named(
    source: str | Path,
    tokenizer: Any,
    where: Placement,
    revision: str | None,
    step: int | None,
    seed: int | None,
) -> TransformerBridge:
    """Load by name or path: an existing path, a shipped name, then a Hub id."""
    path = path_of(source)
    there = _is_there(path)
    if revision is not None and (there or str(source) in shipped.names()):
        raise UsageError(f"revision picks a version of a hub id; {source} is none")
    if there and (step is not None or seed is not None):
        raise UsageError(f"step and seed pick a checkpoint of a shipped model; {path} is a path")
    if there or isinstance(source, Path):
        folder = _model_folder(path)
        kind = "folder" if path.is_dir() else "gguf"
        known = Origin(kind, path.name, revision)
        return _boot(str(folder), known, tokenizer, where, revision)
    name = str(source)
    if name in shipped.names():
        known = Origin("shipped", name, step=step, seed=seed)
        with shipped.folder(name, step=step, seed=seed) as folder:
            bridge = _boot(str(folder), known, tokenizer, where, revision)
        # TransformerLens follows the architecture; the card says what this model was trained on.
        bridge.cfg.default_prepend_bos = bool(shipped.card(name)["bos"])
        return bridge
    if path.suffix == ".gguf" or name.startswith(("/", "./", "../", "~")):
        raise SinklensError(f"there is no file or folder {shortened(name)}")
    hub = require_hub_id(name) if "/" in name else hub_id(name)
    if step is not None or seed is not None:
        raise UsageError(
            f"step and seed pick a checkpoint of a shipped model; {hub} is a hub id, whose "
            "checkpoints are picked by revision"
        )
    try:
        return _boot(hub, Origin("hub", hub, revision), tokenizer, where, revision)
    except SinklensError as error:
        require_reachable(hub, revision, name, error)
        raise


def _is_there(path: Path) -> bool:
    """Whether a path exists; one that no file system could hold does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _model_folder(path: Path) -> Path:
    """The folder with Hugging Face files that a folder or `.gguf` file stands for."""
    if not _is_there(path):
        raise SinklensError(f"there is no file or folder {shortened(path)}")
    if path.is_file():
        return convert_gguf(path)
    if not path.is_dir():
        raise SinklensError(f"{path} is a pipe or a device; give a folder or a .gguf file")
    if not (path / "config.json").exists():
        raise SinklensError(
            f"the folder {path} has no config.json; give a folder that save_pretrained wrote"
        )
    return path


def _boot(
    name: str, known: Origin, tokenizer: Any, where: Placement, revision: str | None
) -> TransformerBridge:
    """Boot a local folder or Hub id, keeping what TransformerLens would overwrite."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoConfig, AutoModelForCausalLM

    config = None
    try:
        with quiet_transformers(), _own_random_state(), _no_foreign_code():
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
            require_one_stack(_class_name(config, known.name), config)
            if tokenizer is None:
                tokenizer = find_tokenizer(name, revision)
            bos = bos_before_boot(tokenizer, config)
            if tokenizer is None:
                hugging_face = AutoModelForCausalLM.from_pretrained(
                    name,
                    config=config,
                    revision=revision,
                    dtype=where.dtype,
                    trust_remote_code=False,
                    **where.mapped,
                )
                if where.device is not None:
                    hugging_face = hugging_face.to(where.device)
                bridge = _wrap(hugging_face, None)
            else:
                bridge = TransformerBridge.boot_transformers(
                    name,
                    tokenizer=tokenizer,
                    device=where.device,
                    dtype=where.dtype,
                    revision=revision,
                    trust_remote_code=False,
                    **where.mapped,
                )
    except SinklensError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise SinklensError(
                f"{known.name} brings code of its own, which sinklens never runs; load it with "
                "Transformers and give the model object to sinklens.load"
            ) from error
        reason = why_not_wrapped(error, _class_name(config, known.name))
        reason = reason.replace(name, known.name)
        raise SinklensError(f"cannot load {known.name}: {reason}") from error
    keep_epsilons(bridge)
    keep_device(bridge)
    bridge.eval()
    if known.kind in ("gguf", "shipped"):  # a folder of sinklens's own, not the user's
        bridge.cfg.model_name = known.name
        bridge.original_model.config._name_or_path = known.name
        bridge.original_model.name_or_path = known.name
    ORIGINS[bridge] = Origin(known.kind, known.name, revision, known.step, known.seed, bos)
    _compare(bridge)
    return bridge


def _wrap(hugging_face: Any, tokenizer: Any) -> TransformerBridge:
    """Take over a Hugging Face model object."""
    config = hugging_face.config
    require_one_stack(type(hugging_face).__name__, config)
    require_tokens(type(hugging_face).__name__, hugging_face)
    if not config.architectures:
        config.architectures = [type(hugging_face).__name__]
    bos = bos_before_boot(tokenizer, config)
    name = getattr(config, "_name_or_path", "") or type(hugging_face).__name__
    hugging_face.eval()
    try:
        with _own_random_state():
            bridge = build(hugging_face, tokenizer, name)
    except Exception as error:
        reason = why_not_wrapped(error, _class_name(config, name))
        raise SinklensError(f"cannot wrap {name}: {reason}") from error
    keep_epsilons(bridge)
    keep_device(bridge)
    bridge.eval()
    ORIGINS[bridge] = Origin("hugging_face", Path(name).name, bos_token_id=bos)
    _compare(bridge)
    return bridge


def _compare(bridge: TransformerBridge) -> None:
    """Compare a bridge with the model that it wraps, and keep how far they agree.

    Raises:
        SinklensError: They differ beyond rounding, the model does not run, or it has no blocks or
            tokens.
    """
    known, architecture = ORIGINS[bridge], str(bridge.cfg.architecture)
    require_tokens(architecture, bridge.original_model)
    if not hasattr(bridge, "blocks"):
        raise SinklensError(NO_BLOCKS.format(architecture))
    try:
        found = agreement(bridge, short_prompt(bridge)[:1])
        if torch.device(bridge.cfg.device).type in UNTRUSTED:
            require_as_on_cpu(bridge, short_prompt(bridge)[:1])
    except SinklensError:
        raise
    except Exception as error:
        raise SinklensError(
            f"{architecture} does not run in {str(bridge.cfg.dtype)[6:]} in "
            f"TransformerLens: {first_line(error)}"
        ) from error
    ORIGINS[bridge] = replace(known, agreement=found)


def _class_name(config: Any, name: str) -> str:
    """The class of a model, from its config."""
    return str((getattr(config, "architectures", None) or [name])[0])


@contextmanager
def _no_foreign_code() -> Iterator[None]:
    """Make Transformers refuse a folder's own code wherever it would ask at the terminal.

    TransformerLens hands on `trust_remote_code` only where it is true.
    """
    from transformers import dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds to wait for an answer
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


def _own_random_state() -> AbstractContextManager[None]:
    """Preserve the caller's random state: booting GPT-2 or NeoX draws from the global generator."""
    return torch.random.fork_rng(devices=[])
