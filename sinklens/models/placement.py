"""Device, dtype and form of a model: what can be asked for, and what a model object has already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..core.errors import SinklensError, UsageError, unknown_name
from .gguf import first_line

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


DeviceMap = str | Mapping[str, str | int]
"""`auto`, `balanced`, ..., or a device for each module, as accelerate takes them."""


@dataclass(frozen=True)
class Placement:
    """Where weights are loaded to.

    Attributes:
        dtype: The dtype of the weights.
        device: One device for all of them; None leaves it to the device map or to TransformerLens.
        device_map: A device for each module.
        max_memory: Bytes that each device may hold.
    """

    dtype: torch.dtype
    device: Any = None
    device_map: DeviceMap | None = None
    max_memory: Mapping[Any, Any] | None = None

    @property
    def mapped(self) -> dict[str, Any]:
        """What accelerate is asked for, as `from_pretrained` takes it."""
        return {"device_map": self.device_map, "max_memory": self.max_memory}


def placement(
    device: Any, dtype: str, device_map: DeviceMap | None, n_devices: int | None
) -> Placement:
    """Where a model is to be loaded to, refused before anything is read where that cannot be.

    Raises:
        SinklensError: Torch cannot use a device, or there are fewer than `n_devices`.
        UsageError: More than one of `device`, `device_map` and `n_devices` is given.
    """
    from transformer_lens.utilities.multi_gpu import resolve_device_map

    given = {"device": device, "device_map": device_map, "n_devices": n_devices}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} say different things; give one of them")
    if n_devices is not None and n_devices < 1:
        raise UsageError(f"n_devices must be at least 1, not {n_devices}")
    if device is not None:
        require_device(device)
    try:
        resolved, most = resolve_device_map(n_devices, device_map, device)
    except ValueError as error:
        raise SinklensError(f"cannot place the model: {first_line(error)}") from error
    return Placement(DTYPES[dtype], device, resolved, most)


def placed_like(fresh: Any, model: Any) -> Any:
    """A new Hugging Face model, moved to where the weights of a bridge are."""
    device_map = getattr(model.original_model, "hf_device_map", None)
    if device_map is None or len(set(device_map.values())) == 1:
        return fresh.to(model.cfg.device)
    from accelerate import dispatch_model

    return dispatch_model(fresh, device_map=device_map)


def dtype_name(dtype: str | torch.dtype | None) -> str | None:
    """The name of a dtype that models can be loaded in.

    Raises:
        UsageError: There is no such dtype.
    """
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    return name


def require_device(device: Any) -> None:
    """Refuse a device that is not there, before anything is read.

    Raises:
        SinklensError: Torch cannot use it, or it holds no values.
    """
    try:
        kind = torch.zeros(1, device=device).device.type
    except Exception as error:
        raise SinklensError(f"cannot use device {device}: {first_line(error)}") from error
    if kind == "meta":
        raise SinklensError(
            "a model on the device meta has no weights; use cpu or cuda, or "
            "load(path, device_map=...) for a model that does not fit into memory"
        )


def run_device(model: torch.nn.Module) -> torch.device:
    """The device that tokens go to, also where accelerate keeps the first weights elsewhere.

    Such weights are on `meta`, and its hooks know where they are put while their module runs.
    """
    first = next((weight for weight in model.parameters() if weight.is_floating_point()), None)
    if first is None or not first.is_meta:
        return torch.device("cpu") if first is None else first.device
    for part in model.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            where = getattr(one, "execution_device", None)
            if where is not None:
                return torch.device(where)
    return first.device


def require_as_it_is(model: torch.nn.Module, device: Any, dtype: str | None) -> None:
    """Refuse to convert a model object, or to undo that it is compiled.

    Raises:
        SinklensError: It is compiled.
        UsageError: A dtype or a device was asked for that is not its own.
    """
    require_uncompiled(model)
    weight = next((w for w in model.parameters() if w.is_floating_point()), None)
    if weight is None:
        return
    where = run_device(model)
    require_device(where)
    own = str(weight.dtype).removeprefix("torch.")
    if dtype not in (None, own):
        raise UsageError(
            f"dtype={dtype} was asked for of a model in {own}, which load does not convert; call "
            f"model.to(torch.{dtype}) on the Hugging Face model first, or load it by name"
        )
    if device is not None and torch.device(device).type != where.type:
        raise UsageError(
            f"device={device} was asked for of a model on {where}, which load does not "
            f"move; call model.to({str(device)!r}) first, or load it by name"
        )


def require_uncompiled(model: Any) -> None:
    """Refuse a compiled model, which hooks would have compiled again and again.

    Raises:
        SinklensError: It is one.
    """
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        inside = type(getattr(model, "_orig_mod", model)).__name__
        raise SinklensError(
            f"this {inside} is compiled by torch.compile, which would compile it anew for every "
            "hook; give the model as it was before (model._orig_mod, or one without .compile())"
        )


def require_plain(model: Any) -> None:
    """Refuse Hugging Face objects that TransformerLens cannot wrap for their form.

    Raises:
        SinklensError: It is compiled, has adapters around it, or weights that are no tensors.
    """
    require_uncompiled(model)
    name = type(model).__name__
    if hasattr(model, "peft_config") and hasattr(model, "merge_and_unload"):
        raise SinklensError(
            f"{name} holds a model and adapters beside its weights, which TransformerLens cannot "
            "wrap; model.merge_and_unload() gives one model of both"
        )
    weights = [getattr(part, "weight", None) for part in model.modules()]
    if any(callable(weight) and not isinstance(weight, torch.nn.Module) for weight in weights):
        raise SinklensError(
            f"this {name} has quantised weights that are no tensors, which TransformerLens cannot "
            "read; load it in float32 or bfloat16"
        )
