"""Effect sizes with intervals and tests, and what no mechanism would give."""
