"""Interventions with their matched controls, one module per family; shared by experiments."""
