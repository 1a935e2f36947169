"""Mathematics: tensors in, tensors out, independent of any model."""

from ..core.lazy import on_first_use

__getattr__ = on_first_use(__name__, {})
