"""The files of a result: what they hold, and how damage is found.

`result.json` vouches for itself (`sha256`, of its content without that) and for
`values.safetensors` (`values_sha256`). Files from before it had a hash of its own are
checked field by field alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from ..core.errors import SinklensError
from ..core.json_files import json_bytes, read_json, read_regular
from .checked import require_content
from .schema1 import from_schema1

SCHEMA = 2


def files_of(
    content: Mapping[str, Any], tensors: Mapping[str, Tensor], run: Mapping[str, Any]
) -> dict[str, bytes]:
    """The files by name; `result.json` last, since it vouches for the values."""
    values = save_safetensors({n: values.contiguous().clone() for n, values in tensors.items()})
    full = {"schema": SCHEMA, **content, "values_sha256": hashlib.sha256(values).hexdigest()}
    return {
        "values.safetensors": values,
        "run.json": json_bytes(run),
        "result.json": json_bytes({**full, "sha256": _hash(full)}),
    }


def read_files(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """The content in today's schema, the tensors and the times that a folder holds.

    Raises:
        SinklensError: There is no result, or it is damaged or of another version.
    """
    content = read_json(folder / "result.json")
    schema = content.get("schema")
    if schema not in (1, SCHEMA) or isinstance(schema, bool):
        raise SinklensError(
            f"{folder} has result schema {schema}, this version reads 1 and {SCHEMA}"
        )
    own = content.pop("sha256", None)
    if own is not None and own != _hash(content):
        raise SinklensError(
            f"the result in {folder} is damaged: result.json is not as it was saved"
        )
    raw = read_regular(folder / "values.safetensors")
    if hashlib.sha256(raw).hexdigest() != content.get("values_sha256"):
        raise SinklensError(
            f"{folder / 'values.safetensors'} is truncated or belongs to another result; "
            "run the experiment again"
        )
    run = read_json(folder / "run.json")
    try:
        tensors = load_safetensors(raw)
        if schema == 1:
            content, tensors = from_schema1(content, tensors)
        require_content(content)
        _require_values(content, tensors)
    except (SinklensError, SafetensorError, *_OF_OLD_ROWS) as error:
        raise SinklensError(f"the result in {folder} is damaged: {error}") from error
    return content, tensors, run


def read_vouched(folder: Path) -> dict[str, Any]:
    """The content in today's schema alone, of files that are as they were saved.

    What vouches for itself byte by byte is not checked field by field, which takes longer.

    Raises:
        SinklensError: As in `read_files`.
    """
    raw = read_regular(folder / "result.json")
    before, sign, own = raw.rpartition(_OWN)
    if sign and own[:64] == hashlib.sha256(before + b"\n}\n").hexdigest().encode():
        content: dict[str, Any] = json.loads(raw)
        values = hashlib.sha256(read_regular(folder / "values.safetensors")).hexdigest()
        if content.get("schema") == SCHEMA and content.get("values_sha256") == values:
            return content
    return read_files(folder)[0]


_OWN = b',\n "sha256": "'
"""What stands before the hash that `json_bytes` writes last."""
_OF_OLD_ROWS = (KeyError, TypeError, AttributeError, ValueError, IndexError)


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json_bytes(content)).hexdigest()


def _require_values(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not those of the rows and arrays.

    Raises:
        SinklensError: One is missing or has another shape.
    """
    shapes = {tuple(tensors[f"per_prompt.{side}"].shape) for side in ("value", "baseline")}
    if len(shapes) > 1 or len(shape := shapes.pop()) != 2 or shape[0] != len(content["effects"]):
        raise SinklensError("the values by prompt are not those of its rows")
