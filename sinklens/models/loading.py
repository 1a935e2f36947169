"""Load a model for sinklens, and record what TransformerLens does not.

`load` turns a shipped name, a folder, a `.gguf` file, a hub id, a Hugging Face model or a bridge
into a `TransformerBridge` with raw weights, eager attention and eval mode. `origin`,
`bos_token_id`, `ordinary_tokens` and `weights_hash` give what experiments need to know about it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.errors import SinklensError, UsageError, shortened
from ..core.protocol import HookedModel
from ..core.terminal import status
from . import shipped
from .agreement import agreement, require_as_on_cpu, require_one_stack
from .gguf import convert_gguf, first_line, quiet_transformers
from .names import hub_id, require_hub_id, require_reachable
from .origins import ORIGINS, Origin, require_eval_mode, short_prompt
from .placement import DTYPES, dtype_name, require_as_it_is, require_device, require_plain
from .wrapping import build, keep_epsilons, why_not_wrapped

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

UNTRUSTED = ("mps",)
"""Kinds of device on which a model is compared with itself on the CPU."""


def load(
    source: Any,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
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
        dtype: `float32` (the default), `float64`, `float16` or `bfloat16`, as text or of torch. A
            model object keeps its own.
        revision: A Hub revision.
        step: A training step of a shipped model; the last one by default.
        seed: A training seed of a shipped model.

    Raises:
        SinklensError: There is no such model, the file is not what its name says, TransformerLens
            does not support its architecture, or a bridge is in train mode.
        UsageError: A dtype or device is unknown, or is not that of a model object.
    """
    chosen = dtype_name(dtype)
    tokenizer = _with_files(tokenizer)
    if isinstance(source, (str, Path)):
        if device is not None:
            require_device(device)
        with status(f"loading {source}"):
            return _load_named(source, tokenizer, device, chosen or "float32", revision, step, seed)
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
    device = model.cfg.device
    return load(source, device=device, dtype=dtype, revision=revision, step=step, seed=seed)


def _load_named(
    source: str | Path,
    tokenizer: Any,
    device: Any,
    dtype: str,
    revision: str | None,
    step: int | None,
    seed: int | None,
) -> TransformerBridge:
    """Load by name or path: an existing path, a shipped name, then a Hub id."""
    path = Path(source)
    there = _is_there(path)
    if revision is not None and (there or str(source) in shipped.names()):
        raise UsageError(f"revision picks a version of a hub id; {source} is none")
    if there and (step is not None or seed is not None):
        raise UsageError(f"step and seed pick a checkpoint of a shipped model; {path} is a path")
    if there or isinstance(source, Path):
        folder = _model_folder(path)
        kind = "folder" if path.is_dir() else "gguf"
        known = Origin(kind, path.name, revision)
        return _boot(str(folder), known, tokenizer, device, dtype, revision)
    name = str(source)
    if name in shipped.names():
        known = Origin("shipped", name, step=step, seed=seed)
        with shipped.folder(name, step=step, seed=seed) as folder:
            bridge = _boot(str(folder), known, tokenizer, device, dtype, revision)
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
        return _boot(hub, Origin("hub", hub, revision), tokenizer, device, dtype, revision)
    except SinklensError as error:
        require_reachable(hub, revision, name, error)
        raise


def _is_there(path: Path) -> bool:
    """Whether a path exists; one that no file system could hold does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _with_files(tokenizer: Any) -> Any:
    """A tokenizer that TransformerLens can open again; one that is in memory only is written.

    Raises:
        UsageError: It is none.
    """
    if tokenizer is not None and not hasattr(tokenizer, "bos_token_id"):
        raise UsageError(
            f"tokenizer={shortened(repr(tokenizer))} is no tokenizer; give the object that "
            "AutoTokenizer.from_pretrained returns"
        )
    if tokenizer is None or "name_or_path" in getattr(tokenizer, "init_kwargs", {"name_or_path"}):
        return tokenizer
    with tempfile.TemporaryDirectory(prefix="sinklens-") as folder:
        tokenizer.save_pretrained(folder)
        return _find_tokenizer(folder, None)


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
    name: str, known: Origin, tokenizer: Any, device: Any, dtype: str, revision: str | None
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
                tokenizer = _find_tokenizer(name, revision)
            bos = _bos_before_boot(tokenizer, config)
            if tokenizer is None:
                hugging_face = AutoModelForCausalLM.from_pretrained(
                    name,
                    config=config,
                    revision=revision,
                    dtype=DTYPES[dtype],
                    trust_remote_code=False,
                )
                bridge = _wrap(hugging_face if device is None else hugging_face.to(device), None)
            else:
                bridge = TransformerBridge.boot_transformers(
                    name,
                    tokenizer=tokenizer,
                    device=device,
                    dtype=DTYPES[dtype],
                    revision=revision,
                    trust_remote_code=False,
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
    if not config.architectures:
        config.architectures = [type(hugging_face).__name__]
    bos = _bos_before_boot(tokenizer, config)
    name = getattr(config, "_name_or_path", "") or type(hugging_face).__name__
    hugging_face.eval()
    try:
        with _own_random_state():
            bridge = build(hugging_face, tokenizer, name)
    except Exception as error:
        reason = why_not_wrapped(error, _class_name(config, name))
        raise SinklensError(f"cannot wrap {name}: {reason}") from error
    keep_epsilons(bridge)
    bridge.eval()
    ORIGINS[bridge] = Origin("hugging_face", Path(name).name, bos_token_id=bos)
    _compare(bridge)
    return bridge


def _compare(bridge: TransformerBridge) -> None:
    """Compare a bridge with the model that it wraps, and keep how far they agree.

    Raises:
        SinklensError: They differ beyond rounding, or the model does not run.
    """
    known = ORIGINS[bridge]
    try:
        found = agreement(bridge, short_prompt(bridge)[:1])
        if torch.device(bridge.cfg.device).type in UNTRUSTED:
            require_as_on_cpu(bridge, short_prompt(bridge)[:1])
    except SinklensError:
        raise
    except Exception as error:
        raise SinklensError(
            f"{bridge.cfg.architecture} does not run in {str(bridge.cfg.dtype)[6:]} in "
            f"TransformerLens: {first_line(error)}"
        ) from error
    ORIGINS[bridge] = replace(known, agreement=found)


def _class_name(config: Any, name: str) -> str:
    """The class of a model, from its config."""
    return str((getattr(config, "architectures", None) or [name])[0])


def _find_tokenizer(name: str, revision: str | None) -> Any:
    """The tokenizer beside the weights, asked to prepend BOS where it can; None without files."""
    from transformers import AutoTokenizer

    path = Path(name)
    if path.is_dir() and not any(path.glob("tokenizer*")) and not any(path.glob("vocab*")):
        return None
    options = {"revision": revision, "trust_remote_code": False}
    try:
        return AutoTokenizer.from_pretrained(name, add_bos_token=True, **options)
    except ValueError:  # no BOS to add
        return AutoTokenizer.from_pretrained(name, **options)


def _bos_before_boot(tokenizer: Any, config: Any) -> int | None:
    """BOS of tokenizer or config, before TransformerLens fills a missing one with EOS."""
    if tokenizer is not None:
        for candidate in (tokenizer.bos_token_id, getattr(tokenizer, "cls_token_id", None)):
            if candidate is not None:
                return int(candidate)
    value = getattr(config, "bos_token_id", None)
    return None if value is None else int(value)


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
