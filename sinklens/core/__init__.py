"""Foundations: errors, the model protocol, seeds, labels and files on disk."""
