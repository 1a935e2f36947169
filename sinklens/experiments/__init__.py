"""Experiments: one file each; `registry` finds them."""
