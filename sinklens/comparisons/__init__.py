"""Interventions with their matched controls, one module a family; experiments share them."""
