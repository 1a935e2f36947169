"""Effect sizes with intervals and tests, and null expectations."""
