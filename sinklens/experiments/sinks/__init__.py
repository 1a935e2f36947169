"""Sinks: where they are and what the model loses without them."""
