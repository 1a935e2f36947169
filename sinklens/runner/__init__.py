"""How an experiment is declared, found, configured and run, and how conditions are compared."""

from ..core.lazy import on_first_use

__getattr__ = on_first_use(__name__, {})
