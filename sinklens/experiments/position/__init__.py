"""Absolute position: what attention knows of it, and from where."""
