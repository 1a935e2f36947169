"""Interventions with their matched controls, one module per family; shared by experiments."""

from ..core.lazy import on_first_use

__getattr__ = on_first_use(__name__, {})
