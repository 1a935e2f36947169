"""Effect sizes with intervals and tests, and null expectations."""

from ..core.lazy import on_first_use

__getattr__ = on_first_use(__name__, {})
