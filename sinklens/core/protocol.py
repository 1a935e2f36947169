"""The interface that sinklens needs of a model: that of a TransformerLens `TransformerBridge`.

TransformerLens's own protocol (`transformer_lens.model_protocol`) lacks `hooks()`, with which every
intervention here is applied.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable


@runtime_checkable  # so that shape checks in tests can look at it
class HookedModel(Protocol):
    """A causal or bidirectional transformer with TransformerLens hook points."""

    @property
    def cfg(self) -> Any:
        """The TransformerLens configuration."""

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer, or None."""

    @property
    def original_model(self) -> Any:
        """The Hugging Face model underneath."""

    @property
    def hook_dict(self) -> Any:
        """Hook points by name."""

    @property
    def blocks(self) -> Any:
        """The blocks, in order."""

    @property
    def unembed(self) -> Any:
        """The unembedding."""

    @property
    def training(self) -> bool:
        """Whether the model is in train mode."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""

    def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model with hooks that are removed afterwards."""

    def hooks(self, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]:
        """Attach hooks for the length of a `with` block."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The weights by name."""
