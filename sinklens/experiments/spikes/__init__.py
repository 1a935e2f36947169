"""Massive activations and their relation to sinks."""
