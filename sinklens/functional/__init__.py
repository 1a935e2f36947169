"""Mathematics: tensors in, tensors out, independent of any model."""
